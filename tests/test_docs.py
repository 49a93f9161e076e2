"""Commands and code in docs and README: every command parses, and the code of the pages runs."""

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import textwrap
import unicodedata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
GENERATED = {"docs/cli.md"}
"""Pages that mkdocs makes from the code (docs/hooks.py)."""
PROGRAMS = ("dtsf", "make", "python", "pytest", "dask", "git", "cd", "source", "mkdir", "cp", "for", "kill", "pip")

FENCES = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = {
    "make test": "runs this test",
    "make setup": "installs gigabytes; .ci/run runs it",
    "source .venv": "its programs are on the path of this test",
    "dtsf preprocess nucla --root DIR": "DIR stands for the user's folder",
    "dtsf train --protocol cross-subject:10": "needs the cache of the command before",
    "make reproduce-nucla": "tests/test_reproduce.py runs it on other data",
}
"""Commands that no test runs, each with the reason."""


def fences(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def indented(page):
    return re.findall(r"(?:^(?: {4,}).*\n?)+", FENCES.sub("", page.read_text()), re.MULTILINE)


def commands(block):
    """Return the commands of a block, without prompts and comments."""
    lines = (re.sub(r"\s+#.*$", "", line.strip().removeprefix("$ ")) for line in block.splitlines())
    return [line for line in lines if re.match(rf"(?:[A-Z_]+=\S+ )*(?:{'|'.join(PROGRAMS)})\b", line)]


def all_commands(page):
    """Return the commands of all blocks and of inline code."""
    blocks = [*fences(page, "sh"), *indented(page), *re.findall(r"`((?:dtsf|make) [^`\n]+)`", page.read_text())]
    return [line for block in blocks for line in commands(block)]


CALLS = {
    (page.name, call.strip())
    for page in PAGES
    for line in all_commands(page)
    for call in re.findall(r"(?:^|do |; |&& )\s*dtsf ([^;|&>]*)", line)
}
"""Every call of dtsf: the page and the arguments."""


@pytest.mark.parametrize(("page", "call"), sorted(CALLS))
def test_pages__every_dtsf_command_parses(page, call):
    import typer

    from dtsf.cli.app import app

    command = typer.main.get_command(app)
    words = shlex.split(call.replace("...", "").replace("[", "").replace("]", ""))
    words = [re.sub(r"^\$\w+$", "0", word) for word in words]
    # Options of dtsf itself are only looked up: parsing --install-completion would install it.
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    while words and words[0].startswith("--"):
        assert words.pop(0) in known, f"{page}: dtsf {call}"
    if not words:
        return
    try:
        context = command.make_context("dtsf", list(words))
        while hasattr(command, "resolve_command"):
            name, command, words = command.resolve_command(context, words)
            if "--help" in words or words == []:
                return  # named as such: `dtsf doctor`, `dtsf predict`
            context = command.make_context(name, list(words), parent=context)
    except typer.Exit:
        return
    except typer.BadParameter.__mro__[1] as error:
        pytest.fail(f"{page}: dtsf {call}: {error.format_message()}")


BENCHMARK = re.compile(r"benchmarks/(\w+)\.py((?: +[^;|&`#\n]+)?)")


def test_pages__every_option_of_a_benchmark_exists():
    found = 0
    for file in (*PAGES, ROOT / "Makefile"):
        for name, words in BENCHMARK.findall(file.read_text()):
            source = (ROOT / f"benchmarks/{name}.py").read_text()
            for option in re.findall(r"(?<!\S)--[a-z][\w-]*", re.sub(r"\"[^\"]*\"|'[^']*'", "", words)):
                found += 1
                assert f'"{option}"' in source or option == "--help", f"{file.name}: benchmarks/{name}.py {option}"
    assert found > 50


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "flops.py --frames 8",
        "scheduler.py --shards 4 --clips 2 --seconds 0.01 --workers 2",
        "scheduler.py --plan 100",
        "annotate.py --clips 70",
        "loader.py --megabytes 20 --batches 1",
        "train.py --clips 40 --steps 1",
    ],
)
def test_benchmark__runs_on_a_small_size(command, tmp_path):
    name, *words = command.split()
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / name, *words, "--json"],
        cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


def test_pages__contain_the_commands_that_no_test_runs():
    written = [line for page in PAGES for line in all_commands(page)]
    for command in NOT_RUN:
        assert any(line.startswith(command) for line in written), command


def anchors(page):
    """Yield the anchors of a page's headings, as GitHub and mkdocs spell them."""
    for heading in re.findall(r"^#+ (.*)$", FENCES.sub("", page.read_text()), re.MULTILINE):
        plain = unicodedata.normalize("NFKD", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)).encode("ascii", "ignore").decode()
        yield re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages__every_link_anchor_and_named_file_resolves(page):
    for name in re.findall(r"`((?:\.?\w+/)+[\w.-]+\.(?:py|toml|csv|yml))`", page.read_text()):
        if "NAME" not in name:
            assert any((ROOT / base / name).exists() for base in ("", "dtsf", "dtsf/model")), f"{page.name}: {name}"
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(<?([^)>\s]+)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if str(target.relative_to(ROOT)) in GENERATED:
            continue
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in set(anchors(target)), f"{page.name}: {link}"


SHORT = """#!/usr/bin/env bash
# The commands are tested, not the accuracy: as few videos and epochs as possible.
if [ "${1-}" = train ] && [[ " $* " != *" --epochs "* && " $* " != *" --resume "* ]]; then set -- "$@" --epochs 2; fi
if [ "${1-} ${2-}" = "synth nucla" ]; then set -- "$@" --episodes 1; fi
exec "%s" "$@"
"""


def short_dtsf(folder):
    (folder / "dtsf").write_text(SHORT % Path(sys.executable).with_name("dtsf"))
    (folder / "dtsf").chmod(0o755)


def _run(script, cwd, checkout, *, short=False):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    with tempfile.TemporaryDirectory() as folder:
        if short:
            short_dtsf(Path(folder))
            environment["PATH"] = f"{folder}:{path}"
        command = ["timeout", "-k", "9", "1500", "bash", "-euo", "pipefail", "-c", script]
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture
def checkout(copy_checkout, tmp_path):
    """Return a copy of the files that git tracks, with the tools of this environment."""
    copy = copy_checkout(tmp_path / "checkout")
    # `make` finds a finished environment, newer than its sources, and installs nothing.
    (copy / ".venv/bin").mkdir(parents=True)
    (copy / ".venv/bin/python").symlink_to(sys.executable)
    short_dtsf(copy / ".venv/bin")
    for name in ("pyproject.toml", "constraints.txt"):
        os.utime(copy / name, (1e9, 1e9))
    (copy / ".venv/.done").touch()
    return copy


def test_page_about_datasets__its_reader_passes_its_test(checkout):
    page = ROOT / "docs/adding-a-dataset.md"
    for block in fences(page, "python"):
        name, _, text = block.partition("\n")
        (checkout / name.removeprefix("# ")).write_text(text)
    (command,) = re.findall(r"`(pytest [^`]+)`", page.read_text())
    assert "1 passed" in _run(command, checkout, checkout)


@pytest.mark.slow
def test_page_about_encoders__its_code_runs(tmp_path):
    (block,) = fences(ROOT / "docs/adding-an-encoder.md", "python")
    assert "efficientnet-lite0:32" in _run(f"python - <<'END'\n{block}END", tmp_path, ROOT)


@pytest.mark.slow
def test_page_about_python__its_cells_run(tmp_path):
    cells = fences(ROOT / "docs/python.md", "python")
    assert len(cells) >= 6
    (tmp_path / "cells.py").write_text("if __name__ == '__main__':\n" + textwrap.indent("".join(cells), "    "))
    printed = _run("python cells.py", tmp_path, ROOT)
    for words in ("{'ok': 60}", "all views of unseen subjects (2)", "no dataset in the cache nowhere"):
        assert words in printed
    assert (tmp_path / "prediction.mp4").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("page", ["quickstart", "cluster", "export", "recordings"])
def test_pages__every_command_runs_as_printed(tmp_path, page):
    script = "\n".join(fences(ROOT / f"docs/{page}.md", "sh"))
    assert len(commands(script)) >= 4
    _run(script, tmp_path, ROOT, short=True)
    if page == "quickstart":
        made = ("cache.html", "compare.html", "prediction.mp4", "runs/mine/report.html", "incoming/first/prediction.json")
        for name in made:
            assert (tmp_path / name).stat().st_size > 100, name
    if page == "recordings":
        (block,) = fences(ROOT / "docs/recordings.md", "python")
        printed = _run(f"python - <<'END'\n{block}END", tmp_path, ROOT)
        assert [line.split()[0] for line in printed.splitlines()] == ["s01", "s02", "s03"]
        for ending in ("csv", "json", "vtt", "eaf", "html"):
            assert (tmp_path / f"timeline/s03.{ending}").stat().st_size > 5, ending


@pytest.mark.slow
def test_readme__every_command_runs_as_printed(checkout):
    """Run block by block in the folder of the checkout, with drawn videos under the names in the text."""
    script = (
        "dtsf synth nucla --out drawn --subjects 2 --episodes 1 --quiet;"
        "sed s:^multiview:drawn/multiview: drawn/videos.csv > videos.csv;"
        "cp drawn/multiview_action_videos/a05/v01_s02_e00.avi cam1.mp4;"
        "cp drawn/multiview_action_videos/a05/v02_s02_e00.avi cam2.mp4"
    )
    _run(script, checkout, checkout, short=True)
    ran = []
    for block in [*fences(checkout / "README.md", "sh"), *indented(checkout / "README.md")]:
        lines = [line for line in commands(block) if not any(line.startswith(skipped) for skipped in NOT_RUN)]
        if lines:
            _run("\n".join(lines), checkout, checkout, short=True)
            ran += lines
    assert "make demo" in ran
    assert any(line.startswith("dtsf predict") for line in ran)
