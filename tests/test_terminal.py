"""What reaches a terminal: words, and nothing that it obeys; and what happens when it takes no more."""

import ast
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dtsf as package
from dtsf.cli import screen
from dtsf.cli.screen import table

PACKAGE = Path(package.__file__).parent
DTSF = Path(sys.executable).with_name("dtsf")
NASTY = "a\x1b[31mred\x07\r\nnew\u202eleft\u2066\x9b0m\udcb6\u2028"


def obeyed(text):
    """Characters that a terminal acts on, line ends aside."""
    return [c for c in text if not c.isprintable() and c not in "\n\u200c\u200d"]


@given(st.text(st.characters()))
def test_escape_control__leaves_no_control_character(text):
    shown = screen.escape_control(text)
    assert not obeyed(shown) or all(ord(c) >= 0xA0 for c in obeyed(shown))  # spaces of other scripts, unassigned
    assert not {"\x1b", "\x07", "\n", "\r", "\u202e", "\x9b", "\x00"} & set(shown)


@pytest.mark.parametrize("text", ["wave", "挥手", "жест 2", "يلوح", "नमस्ते", "\U0001f468\u200d\U0001f469", "a [bold]b[/]"])
def test_escape_control__does_not_change_text(text):
    assert screen.escape_control(text) == text


def _shown(capfd):
    return capfd.readouterr().err


def test_console__escapes_all_objects(capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    say = screen.results()
    say.print(NASTY)
    say.print(screen.styled((NASTY, "bold red"), NASTY))
    say.print(table(NASTY, [NASTY, "b"], [[NASTY, 1]]))
    from rich.panel import Panel
    from rich.text import Text

    say.print(Text(NASTY))
    say.print(Panel(NASTY))
    shown = _shown(capfd)
    assert not obeyed(shown)
    assert shown.count("\\x1b[31m") >= 6
    # One line a sentence: a name cannot begin a line of its own.
    assert not any(line.startswith("new") for line in shown.splitlines()[:2])


def test_progress_bar__escapes_title_and_note():
    import io

    from dtsf.cli.screen import progress_bar

    stream = io.StringIO()
    shown = screen.make_console(stream, force_terminal=True, width=200)
    with progress_bar("t\x1b[31m", "clips", shown) as update:
        update(1, 2, NASTY)
        time.sleep(1)
    assert "\x1b[31mred" not in stream.getvalue()
    assert "\x07" not in stream.getvalue()
    assert "\\x1b[31mred" in stream.getvalue()


def test_console__prints_markup_as_text(capfd):
    screen.results().print("[red]x[/red] [link=file:///etc/passwd]y[/link]")
    assert "[red]x[/red]" in _shown(capfd)


@pytest.mark.parametrize("words", [("predict", "n\x1b[31m\nope.mp4", "--run", "r\x1b"), ("evaluate", "\x1b]0;t\x07")])
def test_errors__escape_names_of_files(dtsf, world, tmp_path, words):
    done = dtsf(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert not obeyed(done.stderr)
    assert "\\x1b" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_usage_errors__escape_arguments(dtsf, tmp_path):
    done = dtsf("evaluate", "a", "b\x1b[31m", cwd=tmp_path)
    assert done.returncode == 2
    assert not obeyed(done.stderr)
    assert "Usage: dtsf evaluate" in done.stderr


def test_predict__escapes_labels_of_an_untrusted_run(dtsf, world, tmp_path):
    import shutil

    run = shutil.copytree(world / "run", tmp_path / "run")
    state = json.loads((run / "last/state.json").read_text())
    names = state["info"]["class_names"]
    state["info"]["class_names"] = [f"{NASTY[:20]}{k}" for k in range(len(names))]
    (run / "last/state.json").write_text(json.dumps(state))
    [video] = (world / "data/multiview_action_videos/a05").glob("v01_s02_e00.avi")
    done = dtsf("predict", video, "--run", run, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not obeyed(done.stderr)
    assert "\\x1b[31mred" in done.stderr


def run_into(stdout=None, stderr=None, *words, cwd):
    return subprocess.run(
        [DTSF, *map(str, words)],
        cwd=cwd,
        stdout=stdout or subprocess.PIPE,
        stderr=stderr or subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
        timeout=300,
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_full_disk__is_an_error_on_stdout_only(world):
    words = ("cache", "info", "cache")
    with open("/dev/full", "w") as full:
        quiet = run_into(None, full, *words, cwd=world)
        assert quiet.returncode == 0
        refused = run_into(full, None, *words, "--json", cwd=world)
        assert refused.returncode == 2
        assert b"cannot write the result to stdout: No space left" in refused.stderr
        wrong = run_into(None, full, "evaluate", "nowhere", cwd=world)
        assert wrong.returncode == 2


def test_closed_pipe__is_not_an_error(world):
    read, write = os.pipe()
    os.close(read)
    done = run_into(write, None, "cache", "info", "cache", "--json", cwd=world)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_package__writes_to_the_terminal_only_in_screen():
    """Of the package: who adds a print is sent to dtsf.cli.screen."""
    # The children of stage 1 speak to their parents by pipes; a table is written where its caller says.
    others = {"cli/screen.py", "pipeline/video/child_main.py", "cli/app.py"}
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        name = file.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(file.read_text())):
            text = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            writes = text == "print" or text.startswith(("sys.stdout.write", "sys.stderr.write", "typer.echo", "Console"))
            if writes and name not in others:
                found.append(f"{name}:{node.lineno} {text}")
    assert found == []
