"""What writes a file: never through a link, never half, and locks empty nothing."""

import ast
import contextlib
import errno
import os
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
from hostile import put_in_place

import dtsf
from dtsf.errors import CacheError, CheckpointError, ConfigError, DataError, FilmError
from dtsf.files.write import fresh_file, lock, open_log, sweep_orphans, write_atomically
from dtsf.report import film
from dtsf.report.page import write_page

PACKAGE = Path(dtsf.__file__).parent


@pytest.fixture
def victim(tmp_path):
    file = tmp_path / "victim"
    file.write_text("precious")
    yield file
    assert file.read_text() == "precious"


def _lock(path, busy=None):
    with lock(path, unwritable=CacheError, busy=busy):
        pass


def _lock_at_once(path):
    _lock(path, CacheError("busy"))


@pytest.mark.parametrize("write", [lambda p: write_atomically(p, b"new"), lambda p: write_page(p, "new")])
def test_write__replaces_a_link_and_does_not_follow_it(tmp_path, victim, write):
    (tmp_path / "file").symlink_to(victim)
    write(tmp_path / "file")
    assert not (tmp_path / "file").is_symlink()
    assert (tmp_path / "file").read_text() == "new"


@pytest.mark.parametrize("name", ["folder", ".", ".."])
def test_write__refuses_a_folder(tmp_path, monkeypatch, name):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="not written: Is a directory"):
        write_atomically(Path(name), b"new", error=lambda why: DataError(f"not written: {why}"))
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]


def test_write__keeps_the_other_name_of_a_hard_link_and_a_lock_the_content(tmp_path, victim):
    for use in (_lock, _lock_at_once):
        use(victim)
    for name in ("file", "log"):
        os.link(victim, tmp_path / name)
    write_atomically(tmp_path / "file", b"new")
    with pytest.raises(OSError, match="several names"):
        open_log(tmp_path / "log")


@pytest.mark.parametrize("use", [_lock, _lock_at_once, open_log])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_lock_and_log__refuse_special_files(tmp_path, victim, use, kind):
    path = tmp_path / "it"
    put_in_place(path, kind, victim)
    with pytest.raises((CacheError, OSError), match=r"is a link|not a regular file|directory|No such device"):
        use(path)


def test_write__temporary_names_are_unforeseeable(tmp_path):
    names = []
    for _ in range(2):
        with fresh_file(tmp_path / "f") as file:
            file.write(b"x")
            (name,) = (path.name for path in tmp_path.iterdir() if path.name != "f")
            names.append(name)
    assert len(set(names)) == 2
    assert all(str(os.getpid()) not in name or len(name) > 30 for name in names)
    (tmp_path / "f").unlink()
    # The longest name has a temporary one, too.
    write_atomically(tmp_path / ("n" * 255), b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["n" * 255]


def test_sweep_orphans__removes_folders_and_follows_no_link(tmp_path, victim):
    (tmp_path / "run/.dtsf-tmp-a").mkdir(parents=True)
    (tmp_path / "run/.dtsf-tmp-a/f").write_text("half")
    (tmp_path / "run/.dtsf-tmp-b").symlink_to(victim.parent)
    sweep_orphans(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_predict__full_disk_loses_the_film_only(world, performance, monkeypatch, tmp_path):
    full = Mock()
    full.write.side_effect = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(film, "fresh_file", lambda _: contextlib.nullcontext(full))
    run = dtsf.load(world / "run")
    with pytest.raises(FilmError, match="No space left") as caught:
        run.predict(performance, film=tmp_path / "film.mp4")
    assert caught.value.prediction == run.predict(performance)


def _train(world, run, *, epochs, **more):
    overrides = [f"train.epochs={epochs}"]
    dtsf.train(world / "cache", protocol="cross-subject:2", run=run, overrides=overrides, device="cpu", **more)


def test_train__deleted_run_folder_ends_with_its_name(world, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(CheckpointError, match="was deleted"):
        _train(world, run, epochs=3, on_epoch=lambda _: shutil.rmtree(run, ignore_errors=True))
    assert not run.exists()


@pytest.mark.parametrize("name", ["log.jsonl", "environment.json", "last", "metrics.json", "tensorboard"])
def test_resume__follows_no_link_in_the_run_folder(world, run_copy, tmp_path, victim, name):
    if (run_copy / name).exists():
        (run_copy / name).rename(tmp_path / "held")
    (run_copy / name).symlink_to(victim)
    # Either the link is refused, or a file takes its place; the victim stays.
    with contextlib.suppress(CheckpointError, ConfigError):
        _train(world, run_copy, epochs=2, resume=True)


MADE_OTHERWISE = {"doctor.py", "pipeline/datasets/synthetic.py", "pipeline/datasets/synthetic_sessions.py"}
"""These write into a new folder of their own, whose name nobody can foresee."""


def test_files__no_other_module_writes():
    """A new way to write a file belongs into dtsf.files.write."""
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        name = file.relative_to(PACKAGE).as_posix()
        calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
        for call in calls if name not in MADE_OTHERWISE else ():
            what = getattr(call.func, "attr", getattr(call.func, "id", ""))
            words = [a.value for a in call.args if isinstance(a, ast.Constant)]
            words += [k.value.value for k in call.keywords if k.arg == "mode" and isinstance(k.value, ast.Constant)]
            opens = what == "open" and any(isinstance(w, str) and len(w) < 4 and set(w) & set("wax+") for w in words)
            to_memory = what == "open" and any(ast.unparse(a) in ("os.devnull", "opened", "in_memory") for a in call.args)
            if (opens and not to_memory) or what in ("write_text", "write_bytes", "save_file", "touch", "mkstemp"):
                found.append(f"{name}:{call.lineno} {what}")
    assert found == []
