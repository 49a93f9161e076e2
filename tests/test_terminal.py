"""The terminal: escapes, lost output, progress, quiet and verbose, help and completion."""

import ast
import contextlib
import contextvars
import io
import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dtsf as package
from dtsf.cli import screen
from dtsf.cli.screen import progress

PACKAGE = Path(package.__file__).parent
DTSF = Path(sys.executable).with_name("dtsf")
NASTY = "a\x1b[31mred\x07\r\nnew\u202eleft\u2066\x9b0m\udcb6\u2028"


def obeyed(text):
    """Characters that a terminal acts on, line ends aside."""
    return [c for c in text if not c.isprintable() and c not in "\n\u200c\u200d"]


def run(*words, cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **environment):
    options = {"cwd": cwd, "stdout": stdout, "stderr": stderr, "env": os.environ | {"OMP_NUM_THREADS": "1"} | environment}
    return subprocess.run([*map(str, words)], text=True, check=False, timeout=300, **options)


def on_terminal(*words, cwd):
    """Run a command. Return what it writes to a terminal on stderr, and to stdout."""
    main, side = pty.openpty()
    environment = os.environ | {"TERM": "xterm"}
    child = subprocess.Popen(words, cwd=cwd, stderr=side, stdout=subprocess.PIPE, text=True, env=environment)
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


@given(st.text(st.characters()))
def test_escape_control__leaves_no_control_character(text):
    shown = screen.escape_control(text)
    assert not obeyed(shown) or all(ord(c) >= 0xA0 for c in obeyed(shown))  # spaces of other scripts, unassigned
    assert not {"\x1b", "\x07", "\n", "\r", "\u202e", "\x9b", "\x00"} & set(shown)


@pytest.mark.parametrize("text", ["wave", "挥手", "жест 2", "يلوح", "नमस्ते", "\U0001f468\u200d\U0001f469", "a [bold]b[/]"])
def test_escape_control__does_not_change_text(text):
    assert screen.escape_control(text) == text


def test_console__escapes_all_objects(capfd, monkeypatch):
    from rich.panel import Panel
    from rich.text import Text

    monkeypatch.setenv("COLUMNS", "300")
    say = screen.results().print
    styled, table = screen.styled((NASTY, "bold red"), NASTY), screen.table(NASTY, [NASTY, "b"], [[NASTY, 1]])
    for one in (NASTY, styled, table, Text(NASTY), Panel(NASTY)):
        say(one)
    shown = capfd.readouterr().err
    assert not obeyed(shown)
    assert shown.count("\\x1b[31m") >= 6
    assert not any(line.startswith("new") for line in shown.splitlines()[:2])
    say("[red]x[/red] [link=file:///etc/passwd]y[/link]")
    assert "[red]x[/red]" in capfd.readouterr().err


def test_table__breaks_lines_between_words(capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    rows = [("cross-subject:10", "1,500 clips, 500 groups", "100.0 ± 0.0", "100.0 100.0", "none", "2 min 32 s", "x" * 60)]
    screen.emit({}, [screen.table("", ["protocol", "tested on", "top-1 %", "by seed", "left out", "a run", "file"], rows)])
    shown = capfd.readouterr().err
    assert max(map(len, shown.splitlines())) <= 80
    for word in ("protocol", "cross-subject:10", "groups", "100.0", "top-1", "none"):
        assert word in shown
    assert shown.count("x" * 8) > 5  # a long word is not cut off


def test_progress_bar__escapes_title_and_note():
    stream = io.StringIO()
    shown = screen.make_console(stream, force_terminal=True, width=200)
    with screen.progress_bar("t\x1b[31m", "clips", shown) as update:
        update(1, 2, NASTY)
        time.sleep(1)
    assert "\x1b[31mred" not in stream.getvalue()
    assert "\x07" not in stream.getvalue()
    assert "\\x1b[31mred" in stream.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_progress__says_at_once_what_begins(capfd, monkeypatch, terminal):
    stream = io.StringIO()
    shown = screen.make_console(stream, force_terminal=terminal, width=200)
    monkeypatch.setattr(screen, "console", lambda: shown)
    with screen.progress("train", "epochs") as update:
        update(0, 0, "reading 9 clips")
        time.sleep(0.5 * terminal)  # the bar is drawn ten times a second
        assert "reading 9 clips" in stream.getvalue()
        update(1, 4, "loss 1")
        update(2, 4, "loss 0")
    assert "of 0" not in stream.getvalue()
    assert "0/0" not in stream.getvalue()


@pytest.mark.parametrize(
    ("words", "usage"),
    [("predict n\x1b[31m\nope.mp4 --run r\x1b", False), ("evaluate \x1b]0;t\x07", False), ("evaluate a b\x1b[31m", True)],
)
def test_errors__escape_names_of_files_and_arguments(dtsf, tmp_path, words, usage):
    done = dtsf(*words.split(" "), cwd=tmp_path)
    assert done.returncode == 2
    assert not obeyed(done.stderr)
    assert "\\x1b" in done.stderr
    assert ("Usage: dtsf evaluate" in done.stderr, len(done.stderr.splitlines()) == 1) == (usage, not usage)


def test_predict__escapes_labels_of_an_untrusted_run(dtsf, run_copy, performance, tmp_path):
    file = run_copy / "last/state.json"
    state = json.loads(file.read_text())
    state["info"]["class_names"] = [f"{NASTY[:20]}{k}" for k in range(len(state["info"]["class_names"]))]
    file.write_text(json.dumps(state))
    done = dtsf("predict", performance[0], "--run", run_copy, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not obeyed(done.stderr)
    assert "\\x1b[31mred" in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_full_disk__is_an_error_on_stdout_only(world):
    words = (DTSF, "cache", "info", "cache")
    with open("/dev/full", "w") as full:
        assert run(*words, cwd=world, stderr=full).returncode == 0
        refused = run(*words, "--json", cwd=world, stdout=full)
        assert refused.returncode == 2
        assert "cannot write the result to stdout: No space left" in refused.stderr
        assert run(DTSF, "evaluate", "nowhere", cwd=world, stderr=full).returncode == 2


def test_closed_pipe__is_not_an_error(world):
    read, write = os.pipe()
    os.close(read)
    done = run(DTSF, "cache", "info", "cache", "--json", cwd=world, stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_package__writes_to_the_terminal_only_in_screen():
    # The child of stage 1 writes to a pipe.
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
    with progress("count", "things") as update:
        update(1, 1)
    assert capfd.readouterr() == ("", "")


def test_progress__has_a_new_rate_when_the_count_starts_again(capfd):
    def show():
        screen.set_verbosity(quiet=False, verbose=True)
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
    shown, out = on_terminal(DTSF, "evaluate", "run", "--json", cwd=world)
    assert json.loads(out)["n_groups"] == 10
    assert "evaluate" in shown
    assert "\x1b[" in shown


SHOW = """from dtsf.cli.screen import console, progress
import time
try:
    with progress("count", "things") as update:
        update(1, 2); console().print("a word"); {end}
except BaseException: pass
console().print("end")
"""


def test_progress__prints_messages_above_the_bar_without_markup(tmp_path):
    script = SHOW.format(end='update(2, 2, "[bold]x"); time.sleep(1)')
    shown, _ = on_terminal(sys.executable, "-c", script, cwd=tmp_path)
    before, after = shown.split("a word")
    assert before.endswith("\x1b[2K")
    assert "count" in after
    assert "[bold]x" in after


@pytest.mark.parametrize(("end", "stays"), [("pass", False), ("raise ValueError", False), ("raise KeyboardInterrupt", True)])
def test_progress__leaves_only_the_bar_of_an_interrupted_command(tmp_path, end, stays):
    shown, _ = on_terminal(sys.executable, "-c", SHOW.format(end=end), cwd=tmp_path)
    assert ("count" in shown.split("\x1b[2K")[-1]) == stays


@pytest.mark.parametrize("words", [("--quiet", "preprocess"), ("preprocess", "--quiet"), ("preprocess", "-q")])
def test_quiet__prints_only_results_and_errors(dtsf, world, words):
    where = words.index("preprocess") + 1
    quiet = dtsf(*words[:where], "nucla", "--root", "data", "--workers", 1, *words[where:], cwd=world)
    assert (quiet.returncode, quiet.stderr, quiet.stdout) == (0, "", "")
    assert "nowhere does not exist" in dtsf.refusal(*words[:where], "nucla", "--root", "nowhere", *words[where:], cwd=world)


def test_verbose__prints_details_and_quiet_only_the_result(dtsf, world, performance):
    assert "top-1" in dtsf.said("evaluate", "run", "--quiet", cwd=world)
    loud = dtsf("predict", *performance, "--run", "run", "--verbose", "--json", cwd=world)
    assert "encoder efficientnet-lite0:16, weights" in loud.stderr
    assert loud.stderr.count(" frames") == 3
    assert json.loads(loud.stdout)["label"]
    assert "contradict" in dtsf.refusal("evaluate", "run", "--quiet", "--verbose", cwd=world)


def test_help__every_command_has_json_quiet_and_verbose():
    import typer.main

    from dtsf.cli.app import app

    waiting, commands = list(typer.main.get_command(app).commands.values()), []
    for command in waiting:
        below = getattr(command, "commands", {}).values()
        waiting += below
        commands += [] if below else [command]
    assert len(commands) >= 8
    for command in commands:
        options = {option for parameter in command.params for option in parameter.opts}
        assert {"--json", "--quiet", "--verbose"} <= options, command.name


@pytest.mark.parametrize(
    ("line", "expected"),
    [("tr", {"train"}), ("cache in", {"info"}), ("train --prot", {"--protocol"}), ("re", {"report", "reproduce"})],
)
def test_completion__has_commands_and_options(tmp_path, line, expected):
    environment = {"_DTSF_COMPLETE": "complete_bash", "COMP_WORDS": f"dtsf {line}", "COMP_CWORD": str(len(line.split()))}
    done = run(DTSF, cwd=tmp_path, **environment)
    assert set(done.stdout.split()) == expected
    assert done.stderr == ""


def test_completion__works_in_bash(tmp_path):
    script = (
        "source <(dtsf --show-completion bash); COMP_WORDS=(dtsf eval); COMP_CWORD=1; "
        '$(complete -p dtsf | sed "s/.*-F \\([^ ]*\\).*/\\1/") dtsf; echo "${COMPREPLY[@]}"'
    )
    path = f"{DTSF.parent}:{os.environ['PATH']}"
    done = run("bash", "-c", script, cwd=tmp_path, PATH=path, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert done.stdout.split() == ["evaluate"], done.stderr


def test_package__imports_no_torch_and_has_its_names(tmp_path):
    script = (
        "import sys, dtsf; assert 'torch' not in sys.modules and 'pydantic' not in sys.modules; "
        "from dtsf import preprocess, open_cache, train, load, DtsfError; assert set(dtsf.__all__) <= set(dir(dtsf)); "
        "assert 'torch' not in sys.modules; print(load.__module__)"
    )
    done = run(sys.executable, "-c", script, cwd=tmp_path)
    assert done.stdout == "dtsf.api\n", done.stderr
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = package.trian


def test_dtsf__without_a_command_introduces_three_commands(dtsf, tmp_path):
    shown = dtsf(cwd=tmp_path, COLUMNS="80")
    lines = shown.stderr.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("  dtsf ")] == ["preprocess", "train", "predict"]
    assert "dtsf --help" in shown.stderr
    assert (len(lines) <= 10, max(map(len, lines)) <= 80, shown.stdout) == (True, True, "")


def test_evaluation_lines__shows_the_classes_of_lowest_recall():
    from dtsf.cli.evaluation import evaluation_lines

    names = [f"class {k}" for k in range(40)]
    recall = {name: (k % 7) / 10 for k, name in enumerate(names)}
    document = {
        **{"auroc_uncertainty": None, "top1": 0.5, "top5": 0.9, "ece": 0.1, "uncertainty": 0.2, "n_groups": 40, "n_clips": 40},
        **{"dataset": "d", "task": "t", "draws": 1, "adapted": False, "unknown": None, "left_out": {}, "groups_left_out": {}},
        **{"view_names": ["1"], "view_weights": [1.0], "view_top1": [0.5], "views": ["1"], "per_class": recall},
        "probes": None,
        "notes": ["two subjects"],
        "confusion_cells": [(k, k, 1) for k in range(40)],
    }
    *lines, classes = evaluation_lines(document)
    assert "note: two subjects" in list(map(str, lines))
    shown = [float(str(cell)) for cell in classes.columns[1].cells]
    assert len(shown) == 15
    assert shown == sorted(recall.values())[:15]
    assert "of 40" in str(classes.title)
