"""Run shards in this process, on local workers, or on a running dask cluster.

The task function is the same everywhere. Arrays stay in the worker; only counts of clips go through the scheduler.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from functools import partial
from typing import Any

from dtsf.errors import ConfigError, DataError
from dtsf.files.read import first_line
from dtsf.pipeline.worker import ShardTask, run_shard
from dtsf.pipeline.workers import run_and_report, run_on_workers, start_server

TOPIC = "dtsf-clips"
# Name of a GPU among dask's resources: ``dask worker ... --resources GPU=1``, one worker per GPU.
RESOURCE = "GPU"
CLIPS_A_WORKER = 4  # at least, for each local worker: fewer do not repay its start
TLS_FILES = ("ca-file", *(f"{who}.{what}" for who in ("scheduler", "worker", "client") for what in ("cert", "key")))
TLS_HINT = "A scheduler with TLS needs an address tls://HOST:PORT"


def run_tasks(
    tasks: list[ShardTask],
    n_workers: int,
    scheduler: str | None,
    on_clips: Callable[[int, int], None],
    *,
    gpus: tuple[str, ...] = (),
) -> None:
    """Run all shards and return when the last one is committed. One shard, or few clips, run in this process.

    ``scheduler``: address of a running dask scheduler; shards go to its workers that offer a GPU, if there are any. ``on_clips``:
    called with the numbers of clips and of bad clips since the last call. ``gpus``: names of this machine's GPUs; each local
    worker takes one. Raises ConfigError: no scheduler responds. DataError: it is lost, or local workers are killed.
    """
    if scheduler is not None:
        _run_on_cluster(tasks, scheduler, on_clips)
        return
    n_workers = workers_needed([len(task.clips) for task in tasks], n_workers)
    if n_workers > 1:
        run_on_workers(tasks, n_workers, on_clips, gpus)
        return
    for task in tasks:
        run_shard(task, lambda record: on_clips(1, not record.status.usable))


def start_early(n_clips: Sequence[int], n_workers: int) -> None:
    """Start the process from which local workers are forked, if :func:`run_tasks` will use any. It imports beside this process.
    ``n_clips``: of each shard.
    """
    if workers_needed(n_clips, n_workers) > 1:
        start_server()


def workers_needed(n_clips: Sequence[int], n_workers: int) -> int:
    """Return the number of local workers for shards of so many clips, at most ``n_workers``; 1: this process does the work."""
    return min(n_workers, len(n_clips), max(1, sum(n_clips) // CLIPS_A_WORKER))


def _run_on_cluster(tasks: list[ShardTask], scheduler: str, on_clips: Callable[[int, int], None]) -> None:
    with _connect(scheduler) as client:
        client.subscribe_topic(TOPIC, lambda event: on_clips(*event[1]))
        try:
            workers = client.scheduler_info(n_workers=-1)["workers"].values()
            offered = any(worker["resources"].get(RESOURCE, 0) >= 1 for worker in workers)
            resources = {RESOURCE: 1} if offered else None
            futures = client.map(_run_on_dask, tasks, pure=False, retries=1, resources=resources)
            for future in futures:
                future.result()
        except (CancelledError, OSError, TimeoutError) as error:
            if client.status == "running":  # an error of a worker
                raise
            raise DataError(
                f"the dask scheduler {scheduler} was lost. Finished shards are safe: start it, and run the same command again"
            ) from error


def _run_on_dask(task: ShardTask) -> int:
    """Run a shard on a dask worker and return its number."""
    from distributed import get_worker

    run_and_report(task, partial(get_worker().log_event, TOPIC), 1)
    return task.shard


@contextmanager
def _connect(scheduler: str) -> Iterator[Any]:
    """Yield a client of the running scheduler."""
    from distributed import Client

    _check_tls(scheduler)
    # It prints a traceback when the scheduler is lost, which one message says.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    try:
        # Dask's own configuration has the certificates and the time to wait.
        client = Client(scheduler, set_as_default=False)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        hint = "" if "://" not in scheduler or isinstance(error, ValueError) else f". {TLS_HINT}"
        raise ConfigError(f"no dask scheduler responds at {scheduler}: {first_line(error)}{hint}") from error
    with client:
        yield client


def check_scheduler(scheduler: str) -> None:
    """Connect to a running scheduler once. Raises ConfigError: none responds, or its certificates are missing."""
    with _connect(scheduler):
        pass


def _check_tls(scheduler: str) -> None:
    """Raise ConfigError if the address needs certificates and dask's configuration has none, or files that cannot be read."""
    import dask
    from distributed.security import Security

    if dask.config.get("distributed.client.security-loader", None):
        return
    try:
        arguments = Security().get_connection_args("client")
    except (OSError, ValueError) as error:  # also ssl.SSLError
        given = {str(dask.config.get(f"distributed.comm.tls.{key}", None)) for key in TLS_FILES} - {"None"}
        raise ConfigError(f"dask's TLS files cannot be read: {error} ({', '.join(sorted(given))})") from error
    encrypted = scheduler.startswith(("tls://", "wss://"))
    if encrypted and arguments.get("ssl_context") is None:
        raise ConfigError(
            f"--scheduler {scheduler} needs TLS, and dask's configuration names no certificates: set "
            "DASK_DISTRIBUTED__COMM__TLS__CA_FILE, ..__TLS__CLIENT__CERT and ..__TLS__CLIENT__KEY, or "
            "distributed.comm.tls in ~/.config/dask/*.yaml (docs/cluster.md)"
        )
    if not encrypted and arguments.get("require_encryption"):
        raise ConfigError(
            f"--scheduler {scheduler}: dask's configuration requires encryption (distributed.comm.require-encryption): "
            "give the address as tls://HOST:PORT"
        )
