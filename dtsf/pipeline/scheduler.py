"""Run shards in this process or on dask: on local workers, or on a running cluster.

The task function is the same everywhere. Arrays stay in the worker; only counts of clips go through the scheduler.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from functools import partial
from multiprocessing import forkserver
from typing import Any

from dtsf.cache.schema import ClipRecord
from dtsf.errors import ConfigError, DataError
from dtsf.files.read import first_line
from dtsf.pipeline.worker import ShardTask, run_shard, select_gpu

TOPIC = "dtsf-clips"
# Name of a GPU among dask's resources: ``dask worker ... --resources GPU=1``, one worker per GPU.
RESOURCE = "GPU"
# Seconds between two progress events of a shard, so that the scheduler's load grows with workers, not with clips.
REPORT_EVERY = 1.0

WORKER_ENVIRONMENT = {
    # By default the allocator returns memory after every layer of the encoder. Keeping it halves the time of a worker.
    **dict.fromkeys(("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), str(1 << 30)),
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    # Without it, importing ONNX Runtime (1.31) starts a thread and sends data to Microsoft.
    "ORT_DISABLE_TELEMETRY": "1",
}
TLS_FILES = ("ca-file", *(f"{who}.{what}" for who in ("scheduler", "worker", "client") for what in ("cert", "key")))
DASK_SETTINGS = {
    # If a worker is killed, another worker repeats its shard.
    "distributed.scheduler.allowed-failures": 100,
    "distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT,
    "distributed.worker.multiprocessing-method": "forkserver",
    # Dask's monitors interrupt the task a hundred times a second.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.tick.limit": "1h",
    "distributed.scheduler.active-memory-manager.start": False,
    # Local workers speak to this machine only: they need no certificates, whatever the user's file asks of a cluster.
    "distributed.comm.require-encryption": False,
    "distributed.comm.default-scheme": "tcp",
    **{f"distributed.comm.tls.{key}": None for key in TLS_FILES},
}
TLS_HINT = "A scheduler with TLS needs an address tls://HOST:PORT"


def run_tasks(
    tasks: list[ShardTask],
    n_workers: int,
    scheduler: str | None,
    on_clips: Callable[[int, int], None],
    *,
    gpus: tuple[str, ...] = (),
) -> None:
    """Run all shards and return when the last one is committed. One local worker runs in this process, without dask.

    ``scheduler``: address of a running dask scheduler; shards go to its workers that offer a GPU, if there are any. ``on_clips``:
    called with the numbers of clips and of bad clips since the last call. ``gpus``: names of this machine's GPUs; each local
    worker takes one. Raises ConfigError: no scheduler responds. DataError: it is lost, or the local workers do not start.
    """
    if not tasks:
        return
    if scheduler is None and (n_workers == 1 or len(tasks) == 1):
        for task in tasks:
            run_shard(task, lambda record: on_clips(1, not record.status.usable))
        return
    n_workers = min(n_workers, len(tasks))
    run = _run_on_dask if scheduler else partial(_run_on_dask, gpus=gpus, workers=n_workers)
    with _connect(scheduler, n_workers) as client:
        client.subscribe_topic(TOPIC, lambda event: on_clips(*event[1]))
        try:
            workers = client.scheduler_info(n_workers=-1)["workers"].values()
            offered = any(worker["resources"].get(RESOURCE, 0) >= 1 for worker in workers)
            futures = client.map(run, tasks, pure=False, retries=1, resources={RESOURCE: 1} if offered else None)
            for future in futures:
                future.result()
        except (CancelledError, OSError, TimeoutError) as error:
            if client.status == "running":  # an error of a worker
                raise
            raise DataError(
                f"the dask scheduler {scheduler or 'of this run'} was lost. Finished shards are safe: start it, and run the "
                "same command again"
            ) from error


def _run_on_dask(task: ShardTask, gpus: tuple[str, ...] = (), workers: int = 1) -> int:
    """Run a shard on a dask worker and return its number."""
    from distributed import get_worker

    worker = get_worker()
    if gpus:
        select_gpu(int(worker.name), gpus)
    done, bad, reported_at = 0, 0, time.monotonic()

    def on_clip(record: ClipRecord) -> None:
        nonlocal done, bad, reported_at
        done, bad = done + 1, bad + (not record.status.usable)
        if time.monotonic() - reported_at >= REPORT_EVERY:
            worker.log_event(TOPIC, (done, bad))
            done, bad, reported_at = 0, 0, time.monotonic()

    run_shard(task, on_clip, workers=workers)
    if done:
        worker.log_event(TOPIC, (done, bad))
    return task.shard


@contextmanager
def _connect(scheduler: str | None, n_workers: int) -> Iterator[Any]:
    """Yield a client of the running scheduler, or of local workers."""
    if scheduler is None:
        # The workers are forked from a process with one thread and the imports that every worker needs. It starts before dask
        # is imported here: both imports then run at the same time.
        before = dict(os.environ)
        forkserver.set_forkserver_preload(["distributed.nanny", "dtsf.pipeline.worker"])
        os.environ.update(WORKER_ENVIRONMENT)
        try:
            forkserver.ensure_running()
        finally:
            os.environ.clear()
            os.environ.update(before)
    import dask
    from distributed import Client

    if scheduler is not None:
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
        return
    options: dict[str, Any] = {"n_workers": n_workers, "threads_per_worker": 1, "memory_limit": 0}
    # Any free port: by default dask takes port 8787, and prints a warning if it is in use.
    options |= {"dashboard_address": "127.0.0.1:0", "silence_logs": logging.CRITICAL}
    with (
        dask.config.set(DASK_SETTINGS),
        start_cluster(**options) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def check_scheduler(scheduler: str) -> None:
    """Connect to a running scheduler once. Raises ConfigError: none responds, or its certificates are missing."""
    with _connect(scheduler, 0):
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


def start_cluster(**options: Any) -> Any:
    """Start dask's local cluster. Raises DataError: its workers do not start, three times in a row."""
    from distributed import LocalCluster

    for attempt in range(3):
        try:
            return LocalCluster(**options)
        except RuntimeError as error:  # a worker was killed while it started
            if attempt == 2:
                raise DataError(f"the dask workers do not start: {error}. Try a smaller --workers") from error
    raise AssertionError("unreachable")
