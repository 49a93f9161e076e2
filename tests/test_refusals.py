"""Input that no part expects ends in one line that names it, and in exit code 2."""

import errno
import re
import subprocess
import sys
from concurrent.futures import CancelledError
from contextlib import nullcontext

import pytest
from pydantic import ValidationError

from dtsf import api
from dtsf.cli import app as cli
from dtsf.errors import CacheError, ConfigError, DataError
from dtsf.files.write import write_atomically
from dtsf.names import find_path
from dtsf.pipeline.datasets.manifest import catalog_manifest
from dtsf.pipeline.scheduler import run_tasks
from dtsf.pipeline.settings import PreprocessSettings
from dtsf.training.distributed import current_world
from dtsf.training.recipe import load_recipe

MANY = "9" * 400


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        *[(name, MANY, f"line 2: {name} .*too large") for name in ("offset", "start", "end", "fps")],
        ("offset", f"-{MANY}", "line 2: offset .*too large"),
        ("end", f"1{'0' * 300}:00:00", "line 2: end .*too large"),
        ("fps", f"0.{'0' * 300}1", "line 2: fps .*too small"),
        ("first", "9" * 10, "line 2: first .*a frame number"),
    ],
)
def test_manifest__a_number_that_is_none_is_named_by_its_line(tmp_path, column, cell, message):
    (tmp_path / "a.avi").touch()
    (tmp_path / "m.csv").write_text(f"path,label,group,view,{column}\na.avi,x,g,1,{cell}\n")
    with pytest.raises(DataError, match=message) as raised:
        catalog_manifest(tmp_path / "m.csv")
    assert len(str(raised.value)) < 300 + len(str(tmp_path))


def test_manifest__more_views_than_a_cache_holds_and_very_long_paths_are_no_defects(tmp_path):
    rows = [f"a.avi,x,g{k},v{k}" for k in range(4097)]
    (tmp_path / "m.csv").write_text("path,label,group,view\n" + "\n".join(rows) + "\n")
    with pytest.raises(DataError, match="4097 views, more than 4096: is 'v0' in column view a camera"):
        catalog_manifest(tmp_path / "m.csv")
    long = "z/" * 2500 + "a.avi"
    assert find_path(long) == long


@pytest.mark.parametrize(
    ("name", "value"),
    [("scheduler", ""), ("scheduler", "x"), ("scheduler", "http://host:1"), ("scheduler", "tcp://host"), ("name", "x" * 300)],
)
def test_preprocess_settings__refuse_what_is_no_address_or_name(name, value):
    with pytest.raises(ValidationError, match="must"):
        PreprocessSettings(**{name: value})


def test_preprocess_settings__take_the_addresses_that_dask_prints():
    for address in ("tcp://10.0.0.1:8786", "tls://gpu-1.lab:8786", "tcp://[fe80::1]:8786", "host:8786"):
        assert PreprocessSettings(scheduler=address).scheduler == address


@pytest.mark.parametrize(("status", "expected"), [("closed", "tcp://h:1 was lost.*run the same command again"), ("running", "^$")])
def test_run_tasks__a_scheduler_that_is_lost_is_named(monkeypatch, status, expected):
    class Client(nullcontext):
        subscribe_topic = staticmethod(lambda *_: None)

        def scheduler_info(self, **_):
            raise CancelledError

    Client.status = status
    monkeypatch.setattr("distributed.Client", lambda *_, **__: Client())
    with pytest.raises((DataError, CancelledError), match=expected):
        run_tasks([object()], 1, "tcp://h:1", lambda *_: None)


def test_load_recipe__deep_values_and_long_chains_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"model\.depth"):
        load_recipe("default", ["model.depth=" + "[" * 3000])
    for k in range(40):
        (tmp_path / f"r{k}.toml").write_text(f'extends = "r{k + 1}.toml"\n')
    with pytest.raises(ConfigError, match="more than 32 recipes extend each other"):
        load_recipe(str(tmp_path / "r0.toml"))


@pytest.mark.parametrize("change", [{"RANK": "y"}, {"WORLD_SIZE": ""}, {"RANK": "2", "WORLD_SIZE": "2"}, {"LOCAL_WORLD_SIZE": "0"}])
def test_current_world__names_a_variable_that_is_wrong(monkeypatch, change):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    for name, value in ({"RANK": "0", "WORLD_SIZE": "2"} | change).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="start with torchrun"):
        current_world()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "error: Too many open files: raise the limit (ulimit -n 1024)"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), "error: a/b: Permission denied"),
        (MemoryError("no 3 GB"), "error: not enough memory: no 3 GB"),
        (KeyError("x"), "internal error: KeyError"),
    ],
)
def test_main__an_error_of_the_system_is_no_defect_of_dtsf(monkeypatch, capsys, error, said):
    def fail(**_):
        raise error

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_main__help_into_a_closed_pipe_is_no_error():
    with subprocess.Popen(
        [sys.executable, "-c", "from dtsf.cli.app import main; main()", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        child.stdout.close()
        assert child.wait(60) == 0, child.stderr.read()


def test_run__that_stopped_early_says_so_in_every_answer(world, run_copy, performance):
    file = run_copy / "last/state.json"
    file.write_text(re.sub(r'"epoch": 2,', '"epoch": 1,', file.read_text()))
    run = api.load(run_copy)
    said = f"{run_copy} stopped after 1 of 2 epochs: dtsf train ... --out {run_copy} --resume finishes it"
    assert said in run.evaluate(world / "cache").notes
    assert said in run.predict(performance).notes
    assert not any("stopped" in note for note in api.load(world / "run").predict(performance).notes)


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "free disk space"), (errno.ENOENT, "make its folder again"), (errno.EIO, "check the disk")],
)
def test_write_atomically__advice_follows_from_the_refusal(tmp_path, monkeypatch, number, remedy):
    def refuse(_):
        raise OSError(number, "refused")

    monkeypatch.setattr("dtsf.files.write.os.fsync", refuse)
    with pytest.raises(CacheError, match=f"refused. Committed files are safe: {remedy}"):
        write_atomically(tmp_path / "a", b"x")
