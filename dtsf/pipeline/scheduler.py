"""Where shards run: in this process, or on dask (workers of this machine, or a cluster that is running).

The task function is the same everywhere, no array leaves its process, and what comes back is a count of clips.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dtsf.errors import ConfigError, DataError
from dtsf.pipeline.gpu import RESOURCE, select_gpu
from dtsf.pipeline.worker import Counter, ShardTask, run_shard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TOPIC = "dtsf-clips"
LOCAL_CARDS, LOCAL_WORKERS = "dtsf-cards", "dtsf-workers"
"""Said by the workers started here beside cards: how many of both there are."""

WORKER_ENVIRONMENT = {
    # The system's allocator gives memory back after every layer of the encoder; keeping it halves a worker's time.
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # Without it the import of ONNX Runtime (1.31) starts a thread, opens a database in the home folder and tells Microsoft.
    "ORT_DISABLE_TELEMETRY": "1",
}


def run_tasks(
    tasks: list[ShardTask],
    n_workers: int,
    scheduler: str | None,
    on_clips: Callable[[int, int], None],
    *,
    cards: int = 0,
) -> None:
    """Run every shard, and return when all are committed. Raises ConfigError: no scheduler answers there. DataError: the
    workers cannot be started, or are lost again and again.

    Args:
        n_workers: Processes, where there is no ``scheduler``. One works in this process, without dask.
        scheduler: ``tcp://host:port`` of a running dask scheduler.
        on_clips: Called now and then with the number of clips done since the last call, and how many of them are bad.
        cards: Graphics cards of this machine that the encoder runs on; its dask workers take one each. On a running cluster
            the shards go to those workers that offer one (``dask worker ... --resources GPU=1``), if any does.
    """
    if not tasks:
        return
    if scheduler is None and (n_workers == 1 or len(tasks) == 1):
        for task in tasks:
            run_shard(task, lambda record: on_clips(1, not record.verdict.usable))
        return
    with _client(min(n_workers, len(tasks)), scheduler, cards) as client:
        client.subscribe_topic(TOPIC, lambda event: on_clips(*event[1]))
        futures = client.map(_run_on_dask, tasks, pure=False, retries=1, resources=_card_wanted(client))
        for future in futures:
            future.result()


def _run_on_dask(task: ShardTask) -> int:
    """Run a shard on a dask worker. Nothing large goes through the scheduler: an event a second, a number a shard."""
    from distributed import get_worker

    worker = get_worker()
    said = worker.state.total_resources
    if LOCAL_CARDS in said:
        select_gpu(int(worker.name), int(said[LOCAL_CARDS]), int(said[LOCAL_WORKERS]))
    counter = Counter(lambda counts: worker.log_event(TOPIC, counts))
    run_shard(task, counter.count)
    counter.report()
    return task.shard


def _card_wanted(client: Any) -> dict[str, int] | None:
    """What a shard asks of its worker: a card where any worker offers one, else nothing."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return {RESOURCE: 1} if any(worker["resources"].get(RESOURCE, 0) >= 1 for worker in workers) else None


@contextmanager
def _client(n_workers: int, scheduler: str | None, cards: int = 0) -> Iterator[Any]:
    import logging

    if scheduler is None:
        _start_forkserver()  # before dask is imported here, which takes as long
    import dask
    from distributed import Client

    if scheduler is not None:
        try:
            client = Client(scheduler, timeout="10s", set_as_default=False)
        except (OSError, ValueError) as error:
            raise ConfigError(f"no dask scheduler answers at {scheduler}: {error}") from error
        with client:
            yield client
        return
    settings = {
        # A worker that is killed takes its shard along, not the shard's fault: the next one does it.
        "distributed.scheduler.allowed-failures": 100,
        "distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT,
        "distributed.worker.multiprocessing-method": "forkserver",
        # What dask watches its workers with takes the interpreter a hundred times a second from the task that runs there.
        "distributed.worker.profile.enabled": False,
        "distributed.admin.system-monitor.interval": "10s",
        "distributed.admin.tick.interval": "1s",
        "distributed.admin.tick.limit": "1h",
        "distributed.scheduler.active-memory-manager.start": False,
    }
    with (
        dask.config.set(settings),
        _start_cluster(
            n_workers=n_workers,
            threads_per_worker=1,
            processes=True,
            # Left out, it takes port 8787 or, where that is taken, says so; nobody looks at it.
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
            memory_limit=0,
            # No more workers than cards are asked for, unless a person says so: then they share.
            **({"resources": {RESOURCE: 1, LOCAL_CARDS: cards, LOCAL_WORKERS: n_workers}} if cards else {}),
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def _start_forkserver() -> None:
    """Start the process that workers are forked from: clean, of one thread, with the imports that all of them need.

    It imports dask and the worker's modules while this process imports dask itself; a spawned worker would import them
    again, and each takes a second for it.
    """
    from multiprocessing import forkserver

    before = {name: os.environ.get(name) for name in WORKER_ENVIRONMENT}
    forkserver.set_forkserver_preload(["distributed.nanny", "dtsf.pipeline.worker"])
    os.environ.update(WORKER_ENVIRONMENT)
    try:
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    import distributed.utils

    # Else dask imports every package that it can work with, here and there.
    distributed.utils._forkserver_preload_set = True


def _start_cluster(**settings: Any) -> Any:
    from distributed import LocalCluster

    for attempt in range(3):
        try:
            return LocalCluster(**settings)
        except RuntimeError as error:  # a worker was killed while it started
            if attempt == 2:
                raise DataError(f"dask's workers cannot be started: {error}. Try fewer --workers") from error
    raise AssertionError("unreachable")
