"""Stage 1 with GPUs, tested without a GPU."""

import multiprocessing
import os
import signal
import threading
import time
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from types import SimpleNamespace

import numpy as np
import pytest
from test_preprocess import SMALL
from worker_tasks import DeadlyTask, TellingTask

from dtsf import api
from dtsf.errors import DataError, VideoError
from dtsf.pipeline import scheduler, worker, workers
from dtsf.pipeline.encoders.choose import load_encoder
from dtsf.pipeline.rows import decode_parallel, embed_batched
from dtsf.pipeline.video.decoder_process import Decoder, DecodeRequest, DecodeSettings
from dtsf.pipeline.workers import run_on_workers

N_VIDEOS = 7


@pytest.fixture(scope="module")
def requests(tmp_path_factory, make_video):
    folder = tmp_path_factory.mktemp("videos")
    paths = [make_video(folder / f"{k}.avi", 6 + k) for k in range(N_VIDEOS)]
    paths[3].write_bytes(b"no video")
    return [DecodeRequest(path) for path in paths]


class SumEncoder:
    """An encoder with one cell of one channel: the sum of a frame."""

    def __init__(self):
        self.calls = []

    def embed(self, frames_FHWC):
        self.calls.append(len(frames_FHWC))
        return frames_FHWC.reshape(len(frames_FHWC), 1, 1, -1).sum(-1, dtype=np.int64)


def decode_and_embed(n_decoders, requests, encoder, batch_size):
    decoders = [Decoder(DecodeSettings(4, 32)) for _ in range(n_decoders)]
    try:
        items = decode_parallel(decoders, requests)
        # One by one, as a worker does: a decoder may overwrite earlier frames.
        return [
            (str(item), None) if isinstance(item, VideoError) else (item[1]["frame_index"], cells.copy())
            for item, cells in embed_batched(items, encoder.embed, batch_size)
        ]
    finally:
        for decoder in decoders:
            decoder.close()


def test_embed_batched__equals_one_clip_at_a_time(requests):
    single, batched = SumEncoder(), SumEncoder()
    one = decode_and_embed(1, requests, single, 1)
    many = decode_and_embed(3, requests, batched, 4)
    assert single.calls == [4] * (N_VIDEOS - 1)
    assert batched.calls == [16, 8], "four clips, then the remaining two"
    assert len(one) == len(many) == N_VIDEOS
    for a, b in zip(one, many, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])
    assert many[3][1] is None
    assert not np.array_equal(many[0][1], many[1][1])
    idle = SumEncoder()
    assert [cells for _, cells in decode_and_embed(2, [requests[3]] * 3, idle, 2)] == [None] * 3
    assert idle.calls == []


def test_decoders_per_worker__is_its_share_of_the_cores(monkeypatch):
    assert worker.visible_gpus("pixels") == ()
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(worker, "visible_gpus", lambda encoder: () if encoder == "pixels" else ("0", "1"))
    assert worker.decoders_per_worker("efficientnet-lite0") == 8
    assert worker.decoders_per_worker("efficientnet-lite0", workers=4) == 4
    assert worker.decoders_per_worker("pixels") == 1


@pytest.mark.parametrize(
    ("variable", "count", "names"), [(None, 2, ("0", "1")), ("4,7", 2, ("4", "7")), ("", 0, ()), ("4,-1,7", 1, ("4",))]
)
def test_visible_gpus__follow_cuda_visible_devices(monkeypatch, variable, count, names):
    import torch

    monkeypatch.setattr(worker.os.path, "exists", lambda path: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert worker.visible_gpus("efficientnet-lite0") == names


def test_select_gpu__takes_the_same_gpu_for_every_shard(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    for number, name in ((0, "4"), (1, "7"), (2, "4"), (2, "4")):
        worker.select_gpu(number, ("4", "7"))
        assert os.environ["CUDA_VISIBLE_DEVICES"] == name


@dataclass
class EmptyTask:
    shard: int


@pytest.mark.parametrize(("shards", "gpu"), [([1], "4"), ([0, 1], "7"), ([0, 0, 1], "4")])
def test_run_on_workers__each_worker_selects_its_gpu_and_an_error_ends_all(shards, gpu):
    with pytest.raises(DataError, match=f"^{gpu}$"):
        run_on_workers([TellingTask(k) for k in shards], 3, lambda done, bad: None, gpus=("4", "7"))
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert multiprocessing.active_children() == []


def test_run_on_workers__a_shard_that_kills_its_workers_is_named():
    with pytest.raises(DataError, match="5 workers in a row were killed with shard 3.*fewer than --workers 2"):
        run_on_workers([DeadlyTask(3)], 2, lambda done, bad: None)


@pytest.mark.parametrize("seconds", [0.0, 0.5])
def test_run_on_workers__their_server_that_is_killed_is_replaced(seconds):
    """Killed before a worker is asked for, and while it is."""
    workers.start_server()
    server = forkserver._forkserver._forkserver_pid
    os.kill(server, signal.SIGSTOP)
    killer = threading.Timer(seconds, os.kill, (server, signal.SIGKILL))
    killer.start()
    if not seconds:
        killer.join()
    with pytest.raises(DataError, match="^4$"):
        run_on_workers([TellingTask(1)], 1, lambda done, bad: None, gpus=("4",))
    assert forkserver._forkserver._forkserver_pid != server
    assert multiprocessing.active_children() == []


def test_run_on_workers__the_end_of_the_killed_server_is_told_late(monkeypatch):
    """The system closes the sockets of a process before it tells its parent."""
    workers.start_server()
    os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
    told, real = time.monotonic() + 0.3, os.waitpid
    monkeypatch.setattr(os, "waitpid", lambda pid, how: (0, 0) if time.monotonic() < told and how else real(pid, how))
    with pytest.raises(DataError, match="^4$"):
        run_on_workers([TellingTask(1)], 1, lambda done, bad: None, gpus=("4",))


def test_run_on_workers__a_server_that_is_always_killed_is_named(monkeypatch):
    def start(_):
        raise EOFError

    monkeypatch.setattr(multiprocessing.get_context("forkserver").Process, "start", start)
    with pytest.raises(DataError, match="starts workers was killed 5 times in a row.*fewer than --workers 2"):
        run_on_workers([TellingTask(1)], 2, lambda done, bad: None)


def test_run_tasks__few_clips_run_in_this_process(monkeypatch):
    seen = []
    monkeypatch.setattr(scheduler, "run_shard", lambda task, on_clip: seen.append(task))
    monkeypatch.setattr(scheduler, "run_on_workers", lambda tasks, n_workers, *_: seen.append(n_workers))
    tasks = [SimpleNamespace(clips=(None,) * n) for n in (3, 2, 2)]
    scheduler.run_tasks(tasks, 8, None, lambda done, bad: None)
    assert seen == tasks
    scheduler.run_tasks([*tasks, SimpleNamespace(clips=(None,) * 5)], 8, None, lambda done, bad: None)
    assert seen[3:] == [3]


@pytest.mark.filterwarnings("ignore")
def test_run_tasks__on_a_cluster_shards_go_to_workers_that_offer_a_gpu(monkeypatch):
    from distributed import Scheduler, SpecCluster, Worker, get_worker

    seen = []
    monkeypatch.setattr(workers, "run_shard", lambda task, on_clip, workers: seen.append(get_worker().name))
    kinds = {
        name: {"cls": Worker, "options": {"nthreads": 1, "resources": resources, "dashboard": False}}
        for name, resources in (("plain", {}), ("other", {"GPU": 1}))
    }
    dask_scheduler = {"cls": Scheduler, "options": {"dashboard": False, "port": 0}}
    with SpecCluster(workers=kinds, scheduler=dask_scheduler, silence_logs=50) as cluster:
        tasks = [EmptyTask(k) for k in range(6)]
        scheduler.run_tasks(tasks, 2, cluster.scheduler_address, lambda done, bad: None, gpus=("0",))
    assert seen == ["other"] * 6


def test_run_shard__embeds_batches_on_a_gpu(monkeypatch, tmp_path, requests):
    """The encoder runs on the CPU here, but reports a GPU."""
    encoder = load_encoder("efficientnet-lite0:32", 96, 3, "cpu")
    calls = []

    def embed(frames):
        calls.append(len(frames))
        return encoder.embed(frames)

    monkeypatch.setattr(worker, "load_encoder", lambda *_, **__: replace(encoder, embed=embed, device="cuda"))
    monkeypatch.setattr(worker, "decoders_per_worker", lambda encoder, workers: 2)
    root = requests[0].path.parent
    lines = [f"{k}.avi,a,g{k},1" for k in range(N_VIDEOS)]
    (root / "list.csv").write_text("\n".join(["path,label,group,view", *lines]) + "\n")
    options = {**SMALL, "workers": 1, "max_bad": 0.5}
    batched = api.preprocess("manifest", root / "list.csv", tmp_path / "batched", **options)
    assert calls == [3 * (N_VIDEOS - 1)]
    monkeypatch.undo()
    single = api.preprocess("manifest", root / "list.csv", tmp_path / "single", **options)
    assert batched.verdicts == single.verdicts
    one, other = (api.open_cache(tmp_path / name) for name in ("single", "batched"))
    ids = [clip.id for clip in one.clips]
    a, b = (data.embeddings(ids).astype(float) for data in (one, other))
    np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3)
