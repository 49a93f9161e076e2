"""Stage 1 with several processes: a dask cluster, and processes killed at random times."""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import dask
import distributed  # noqa: F401 - before ``dask.config.set``: defaults that are loaded within it are lost after it
import pytest
from helpers import alive, resident, wait_until
from make_cache import snapshot
from test_preprocess import catalog_of, preprocess, start_script

from dtsf.cache.reader import open_dataset
from dtsf.errors import CacheError, ConfigError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def catalog(make_video, tmp_path_factory):
    root = tmp_path_factory.mktemp("cluster")
    for k in range(24):
        make_video(root / f"c{k:02d}.avi", 20 + k, 320, 240)
    (root / "c07.avi").write_bytes((root / "c08.avi").read_bytes()[:9000])
    return catalog_of(root, [f"c{k:02d}" for k in range(24)])


def other_file(path, source, k):
    """Write the same video with additional bytes at the end, which AVI readers ignore."""
    path.write_bytes(source.read_bytes() + b"%06d" % k)


def below(pid):
    """Return the ids of all descendants of a process."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1]) == pid:
                child = int(folder.name)
                found += [child, *below(child)]
    return found


def workers_of(pid, name, file="cmdline"):
    """Return the descendants with ``name`` in their command. A forked process has the command of its parent."""
    found = []
    for child in below(pid):
        with contextlib.suppress(OSError):
            if name in Path(f"/proc/{child}/{file}").read_bytes().decode():
                found.append(child)
    return found


WORKER, DECODER = "multiprocessing.forkserver", "dtsf.pipeline.video.decode"


def test_cluster__scheduler_and_two_workers_give_the_same_bytes(catalog, tmp_path):
    started, seen = [], []

    def dask(*words, stderr):
        command = [sys.executable, "-m", "dask", *words, "--no-dashboard"]
        options = {"env": os.environ | {"OMP_NUM_THREADS": "1"}, "text": True, "start_new_session": True}
        started.append(subprocess.Popen(command, stderr=stderr, **options))

    dask("scheduler", "--host", "127.0.0.1", "--port", "0", stderr=subprocess.PIPE)
    try:
        lines = iter(started[0].stderr.readline, "")
        address = next(found[1] for line in lines if (found := re.search(r"Scheduler at:\s+(tcp://\S+)", line)))
        for _ in range(2):
            dask("worker", address, "--nthreads", "1", "--local-directory", str(tmp_path), stderr=subprocess.DEVNULL)
        words = {"scheduler": address, "workers": 2, "shard_size": 1}
        result = preprocess(catalog, tmp_path / "c", **words, on_progress=seen.append)
    finally:
        for process in reversed(started):
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=30)
        started[0].stderr.close()
    assert result.verdicts == {"ok": 23, "truncated": 1}
    assert seen[-1].done == 24
    preprocess(catalog, tmp_path / "undisturbed", shard_size=1)
    assert snapshot(tmp_path / "c") == snapshot(tmp_path / "undisturbed")


def test_cluster__no_scheduler_at_the_address(catalog, tmp_path):
    seconds = {"distributed.comm.timeouts.connect": "2s"}
    with dask.config.set(seconds), pytest.raises(ConfigError, match="no dask scheduler responds at tcp://127.0.0.1:9"):
        preprocess(catalog, tmp_path, scheduler="tcp://127.0.0.1:9")


@pytest.mark.parametrize("shard_size", [1, 12])
def test_preprocess__killed_six_times_gives_the_same_bytes(catalog, tmp_path, shard_size):
    """In turn the main process (then the same command again) and one of its workers."""
    undisturbed = tmp_path / "undisturbed"
    preprocess(catalog, undisturbed, shard_size=shard_size)
    chance = random.Random(0)
    kills = rounds = 0
    process = start_script(tmp_path, catalog, tmp_path / "c0", 2, shard_size)
    try:
        while kills < 6:
            whole = kills % 2 == 0
            if not whole:
                wait_until(lambda: process.poll() is not None or workers_of(process.pid, WORKER))  # noqa: B023
            time.sleep(chance.uniform(0.2, 3.0))
            if process.poll() is not None:
                # This round finished: check it, and start with an empty cache.
                assert process.returncode == 0, process.stderr.read().decode()[-2000:]
                assert snapshot(tmp_path / f"c{rounds}") == snapshot(undisturbed)
                rounds += 1
            else:
                workers = workers_of(process.pid, WORKER)
                with contextlib.suppress(ProcessLookupError, IndexError):
                    os.kill(process.pid if whole else chance.choice(workers), signal.SIGKILL)
                    kills += 1
                if not whole:
                    continue
                process.wait()
            process.stderr.close()
            process = start_script(tmp_path, catalog, tmp_path / f"c{rounds}", 2, shard_size)
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors.decode()[-2000:]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    assert snapshot(tmp_path / f"c{rounds}") == snapshot(undisturbed)
    assert len(open_dataset(tmp_path / f"c{rounds}").clips) == 23


@pytest.fixture(scope="module")
def long_catalog(catalog, tmp_path_factory):
    """The 24 videos 10 times: enough for progress events, which come once a second."""
    root = tmp_path_factory.mktemp("long")
    for k in range(240):
        other_file(root / f"c{k:03d}.avi", catalog.root / f"c{k % 24:02d}.avi", k)
    return catalog_of(root, [f"c{k:03d}" for k in range(240)])


@pytest.fixture(scope="module")
def undisturbed_long(long_catalog, tmp_path_factory):
    cache = tmp_path_factory.mktemp("undisturbed_long")
    assert preprocess(long_catalog, cache, shard_size=120).clips == 240
    return cache


@pytest.mark.parametrize("lost", [WORKER, DECODER])
def test_preprocess__lost_process_costs_no_clip(long_catalog, undisturbed_long, tmp_path, lost):
    """A lost worker repeats its shard; a lost decoder is replaced. The temporary file of a killed worker is removed."""
    left = tmp_path / "nucla/pictures/c/0/0/0/0/.dtsf-tmp-of-a-killed-worker"
    # Decoder processes of earlier tests stay.
    before = below(os.getpid())
    killed = []

    def kill_one(progress):
        left.parent.mkdir(parents=True, exist_ok=True)
        left.write_bytes(b"half of it")
        if not killed:
            # The last one: the first is the server from which workers are forked.
            killed.append([pid for pid in workers_of(os.getpid(), lost) if pid not in before][-1])
            os.kill(killed[0], signal.SIGKILL)

    result = preprocess(long_catalog, tmp_path, workers=2, shard_size=120, on_progress=kill_one)
    assert result.verdicts == {"ok": 230, "truncated": 10}
    assert killed
    assert snapshot(tmp_path) == snapshot(undisturbed_long)
    assert set(workers_of(os.getpid(), DECODER)) <= set(before)


def test_preprocess__error_of_a_worker_is_raised_here(long_catalog, tmp_path):
    """A folder instead of a record causes an error in the worker."""
    before = workers_of(os.getpid(), DECODER)

    def block(progress):
        (tmp_path / "nucla/shards/00001.json").mkdir(exist_ok=True)

    with pytest.raises(CacheError, match=r"00001\.json"):
        preprocess(long_catalog, tmp_path, workers=2, shard_size=120, on_progress=block)
    assert workers_of(os.getpid(), DECODER) == before


def test_workers__names_in_any_locale_and_no_import_from_the_current_folder(make_video, tmp_path, monkeypatch):
    names = [f"{name}{k}" for name in ("höhe", "größe") for k in range(4)]
    for name in names:
        make_video(tmp_path / f"v/{name}.avi", 8, 64, 48)
    (tmp_path / "selectors.py").write_text("raise SystemExit('hijacked')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    catalog = catalog_of(tmp_path / "v", names)
    assert preprocess(catalog, tmp_path / "c", workers=2, shard_size=1).verdicts == {"ok": 8}


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_workers__end_with_the_run_even_if_decoders_hang(long_catalog, tmp_path, how):
    """The decoders are stopped by a signal, so they do not react to anything."""
    process = start_script(tmp_path, long_catalog, tmp_path / "c", 2, 120)
    members = []
    try:
        wait_until(lambda: len(decoding(process.pid)) == 2, process)
        for pid in decoding(process.pid):
            os.kill(pid, signal.SIGSTOP)
        members = below(process.pid)
        assert len(workers_of(process.pid, WORKER)) >= 2
        process.send_signal(how)
        # Less than the decoder's own limit for a clip.
        _, errors = process.communicate(timeout=40)
        assert process.returncode != 0
        assert (b"KeyboardInterrupt" in errors) == (how == signal.SIGINT)
        wait_until(lambda: not any(alive(pid) for pid in members))
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
        for pid in filter(alive, members):
            os.kill(pid, signal.SIGKILL)


def decoding(pid):
    """Return the decoders of a process that have loaded FFmpeg, which is the last step before their first clip."""
    return [child for child in workers_of(pid, DECODER) if child in workers_of(pid, "libavcodec", "maps")]


def test_preprocess__memory_is_constant_over_1200_clips(make_video, tmp_path):
    """Memory of this process and of the decoder, which is replaced twice."""
    first = make_video(tmp_path / "v/c0000.avi", 20, 96, 96)
    for k in range(1, 1200):
        other_file(tmp_path / f"v/c{k:04d}.avi", first, k)
    catalog = catalog_of(tmp_path / "v", [f"c{k:04d}" for k in range(1200)])
    used = []

    def look(progress):
        if progress.done % 150 == 0:
            used.append(sum(resident(pid) for pid in (os.getpid(), *below(os.getpid()))))

    result = preprocess(catalog, tmp_path / "c", on_progress=look)
    assert result.verdicts == {"ok": 1200}
    assert len(used) == 8
    assert max(used[1:]) < used[0] + 60e6, [round(n / 1e6) for n in used]
