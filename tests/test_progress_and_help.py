"""Progress, quiet and verbose, help, completion, and what a screen shows first."""

import contextlib
import contextvars
import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

import dtsf as package
from dtsf.cli.screen import progress, set_verbosity

DTSF = Path(sys.executable).with_name("dtsf")


def test_progress__prints_lines_without_a_terminal(capfd):
    with progress("count", "things", every=0.2) as update:
        time.sleep(0.3)
        update(6, 10)
        time.sleep(0.2)
        update(8, 10, "well")
        time.sleep(0.25)
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith("count: running for 0 s")
    assert "count: 6 of 10 things" in lines[1]
    assert lines[-1].startswith("count: 8 of 10 things")
    assert lines[-1].endswith("left  well")
    assert 3 <= len(lines) <= 5


def test_progress__prints_nothing_for_short_work(capfd):
    with progress("count", "things") as update:
        update(1, 1)
    assert capfd.readouterr() == ("", "")


def on_terminal(command, cwd, **environment):
    """What a command writes to a terminal on stderr, and to stdout; it must end well."""
    main, side = pty.openpty()
    child = subprocess.Popen(
        command, cwd=cwd, stderr=side, stdout=subprocess.PIPE, text=True, env=os.environ | environment
    )
    os.close(side)
    shown = ""
    # A terminal that nobody reads fills up; Linux ends one whose other side is closed with EIO.
    with contextlib.suppress(OSError):
        while part := os.read(main, 10_000):
            shown += part.decode(errors="replace")
    os.close(main)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    return shown, out


def test_progress__has_a_new_rate_when_the_count_starts_again(capfd):
    def show():
        set_verbosity(quiet=False, verbose=True)
        with progress("train", "epochs", every=60) as update:
            update(1, 30)
            time.sleep(1.2)
            update(30, 30)
            update(1, 30, "calibration")
            update(3, 30, "calibration")

    contextvars.copy_context().run(show)
    *_, whole, first, third = capfd.readouterr().err.splitlines()
    assert whole.startswith("train: 30 of 30 epochs in 1 s")
    assert first.startswith("train: 1 of 30 epochs in 0 s")
    assert third.startswith("train: 3 of 30 epochs in 0 s")


def test_progress__shows_a_bar_on_a_terminal(world):
    shown, out = on_terminal([DTSF, "evaluate", "run", "--json"], world)
    assert json.loads(out)["n_groups"] == 10
    assert "evaluate" in shown
    assert "\x1b[" in shown


@pytest.mark.parametrize("words", [("--quiet", "preprocess"), ("preprocess", "--quiet"), ("preprocess", "-q")])
def test_quiet__prints_only_results_and_errors(dtsf, world, words):
    where = words.index("preprocess") + 1
    quiet = dtsf(*words[:where], "nucla", "--root", "data", "--workers", 1, *words[where:], cwd=world)
    assert (quiet.returncode, quiet.stderr, quiet.stdout) == (0, "", "")
    failed = dtsf(*words[:where], "nucla", "--root", "nowhere", *words[where:], cwd=world)
    assert failed.returncode == 2
    assert "nowhere does not exist" in failed.stderr


def test_quiet__prints_the_result_of_evaluate(dtsf, world):
    assert "top-1" in dtsf("evaluate", "run", "--quiet", cwd=world).stderr


def test_verbose__prints_details(dtsf, world):
    videos = sorted((world / "data/multiview_action_videos/a05").glob("*_s02_*"))
    loud = dtsf("predict", *videos, "--run", "run", "--verbose", "--json", cwd=world)
    assert "encoder efficientnet-lite0:16, weights" in loud.stderr
    assert loud.stderr.count(" frames") == 3
    assert json.loads(loud.stdout)["label"]
    both = dtsf("evaluate", "run", "--quiet", "--verbose", cwd=world)
    assert both.returncode == 2
    assert "contradict" in both.stderr


def test_help__every_command_has_quiet_and_verbose():
    from typer.testing import CliRunner

    from dtsf.cli.app import app

    groups = {group.name: group.typer_instance for group in app.registered_groups}
    commands = [(c.name,) for c in app.registered_commands]
    commands += [(name, c.name) for name, group in groups.items() for c in group.registered_commands]
    assert len(commands) >= 8
    for command in commands:
        shown = CliRunner().invoke(app, [*command, "--help"]).stdout
        assert "--quiet" in shown, command
        assert "--verbose" in shown, command


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("dtsf tr", {"train"}),
        ("dtsf cache in", {"info"}),
        ("dtsf train --prot", {"--protocol"}),
        ("dtsf re", {"report", "reproduce"}),
    ],
)
def test_completion__has_commands_and_options(tmp_path, line, expected):
    words = line.split()
    environment = os.environ | {
        "_DTSF_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    done = subprocess.run([DTSF], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert set(done.stdout.split()) == expected
    assert done.stderr == ""


def test_completion__works_in_bash(tmp_path):
    environment = os.environ | {
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
        "PATH": f"{DTSF.parent}:{os.environ['PATH']}",
    }
    script = (
        "source <(dtsf --show-completion bash); COMP_WORDS=(dtsf eval); COMP_CWORD=1; "
        '$(complete -p dtsf | sed "s/.*-F \\([^ ]*\\).*/\\1/") dtsf; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["evaluate"], done.stderr


def test_package__imports_no_torch_and_has_its_names():
    script = (
        "import sys, dtsf; assert 'torch' not in sys.modules and 'pydantic' not in sys.modules; "
        "from dtsf import preprocess, open_cache, train, load, DtsfError; assert set(dtsf.__all__) <= set(dir(dtsf)); "
        "assert 'torch' not in sys.modules; print(load.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "dtsf.api\n", done.stderr
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = package.trian


def test_dtsf__without_a_command_introduces_three_commands(dtsf, tmp_path):
    shown = dtsf(cwd=tmp_path, COLUMNS="80")
    lines = shown.stderr.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("  dtsf ")] == ["preprocess", "train", "predict"]
    assert "dtsf --help" in shown.stderr
    assert len(lines) <= 10
    assert max(map(len, lines)) <= 80
    assert shown.stdout == ""


def test_progress__prints_messages_above_the_bar_without_markup(tmp_path):
    script = (
        "import time; from dtsf.cli.screen import console, progress\n"
        "with progress('count', 'things') as update:\n"
        "    update(1, 2); console().print('a word'); update(2, 2, '[bold]x'); time.sleep(1)\n"
    )
    shown, _ = on_terminal([sys.executable, "-c", script], tmp_path, TERM="xterm")
    # The bar's line is taken away first, and drawn again below.
    before, after = shown.split("a word")
    assert before.endswith("\x1b[2K")
    assert "count" in after
    assert "[bold]x" in after


@pytest.mark.parametrize(("end", "stays"), [("pass", False), ("raise ValueError", False), ("raise KeyboardInterrupt", True)])
def test_progress__leaves_only_the_bar_of_an_interrupted_command(tmp_path, end, stays):
    script = (
        "from dtsf.cli.screen import console, progress\n"
        "try:\n"
        "    with progress('count', 'things') as update:\n"
        f"        update(1, 2); console().print('a word'); {end}\n"
        "except BaseException: pass\n"
        "console().print('end')\n"
    )
    shown, _ = on_terminal([sys.executable, "-c", script], tmp_path, TERM="xterm")
    # What stands after the last line that was erased.
    assert ("count" in shown.split("\x1b[2K")[-1]) == stays


def test_evaluation_table__shows_the_classes_of_lowest_recall():
    from dtsf.cli.run import evaluation_table

    names = [f"class {k}" for k in range(40)]
    recall = {name: (k % 7) / 10 for k, name in enumerate(names)}
    document = {
        **{"auroc_uncertainty": None, "top1": 0.5, "top5": 0.9, "ece": 0.1, "uncertainty": 0.2, "n_groups": 40, "n_clips": 40},
        **{"dataset": "d", "task": "t", "draws": 1, "adapted": False, "unknown": None, "left_out": {}, "groups_left_out": {}},
        **{"view_names": ["1"], "view_weights": [1.0], "view_top1": [0.5], "views": ["1"], "per_class": recall},
        "confusion": [[int(j == k) for j in range(40)] for k in range(40)],
    }
    *_, classes = evaluation_table(document)
    shown = [float(str(cell)) for cell in classes.columns[1].cells]
    assert len(shown) == 15
    assert shown == sorted(recall.values())[:15]
    assert "of 40" in str(classes.title)

