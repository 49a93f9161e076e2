"""Local workers of stage 1: processes of this machine, each with one shard at a time. Another process replaces one that is killed.
They are forked from a process with one thread and all imports, so that a start takes milliseconds.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from types import ModuleType
from typing import cast

from dtsf.cache.schema import ClipRecord
from dtsf.errors import DataError, DtsfError
from dtsf.pipeline.worker import ShardTask, run_shard, select_gpu

# Seconds between two progress events of a shard, so that their number grows with workers, not with clips.
REPORT_EVERY = 1.0
MAX_KILLED = 5  # workers in turn that a shard may lose; usually there is too little memory for so many workers
WORKER_ENVIRONMENT = {
    # By default the allocator returns memory after every layer of the encoder.
    **dict.fromkeys(("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), str(1 << 30)),
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    # Without it, importing ONNX Runtime (1.31) starts a thread and sends data to Microsoft.
    "ORT_DISABLE_TELEMETRY": "1",
}
PRELOAD = ["dtsf.pipeline.worker", "onnxruntime"]


@dataclass
class _Worker:
    number: int
    process: ForkServerProcess
    task: ShardTask


def run_on_workers(
    tasks: Iterable[ShardTask], n_workers: int, on_clips: Callable[[int, int], None], gpus: tuple[str, ...] = ()
) -> None:
    """Run all shards on local workers; arguments as :func:`dtsf.pipeline.scheduler.run_tasks`. An error of a shard is raised here.
    Raises DataError: several workers with the same shard were killed.
    """
    waiting, killed = deque(tasks), Counter[int]()
    workers: dict[Connection, _Worker] = {}

    def start(number: int) -> None:
        here, process = _start_process(number, gpus, n_workers)
        workers[here] = _Worker(number, process, waiting.popleft())
        _send(here, workers[here].task)

    def stop(connection: Connection) -> None:
        worker = workers.pop(connection)
        worker.process.kill()
        worker.process.join()
        connection.close()

    try:
        for number in range(min(n_workers, len(waiting))):
            start(number)
        while workers:
            for connection in cast("list[Connection]", wait(list(workers))):
                worker = workers[connection]
                try:
                    message = connection.recv()
                except (EOFError, OSError):
                    killed[worker.task.shard] += 1
                    if killed[worker.task.shard] == MAX_KILLED:
                        raise DataError(
                            f"{MAX_KILLED} workers in a row were killed with shard {worker.task.shard}, often for lack of "
                            f"memory. Finished shards are safe: try fewer than --workers {n_workers}"
                        ) from None
                    waiting.appendleft(worker.task)
                    stop(connection)
                    start(worker.number)
                    continue
                if isinstance(message, Exception):
                    raise message
                if message is not None:
                    on_clips(*message)
                elif waiting:
                    worker.task = waiting.popleft()
                    _send(connection, worker.task)
                else:
                    stop(connection)
    finally:
        for connection in list(workers):
            stop(connection)


def _start_process(number: int, gpus: tuple[str, ...], n_workers: int) -> tuple[Connection, ForkServerProcess]:
    """Start a worker; return its connection too. Raises DataError: the process that forks workers was killed several times."""
    for tries in range(1, MAX_KILLED + 1):
        start_server()
        here, there = multiprocessing.Pipe()
        process = multiprocessing.get_context("forkserver").Process(
            target=_serve, args=(there, number, gpus, n_workers), daemon=True
        )
        try:
            with _hidden_main():
                process.start()
        except (EOFError, ConnectionError):  # it was killed before it answered
            here.close()
            time.sleep(0.1 * tries)  # its sockets close before the system says that it has ended
        else:
            return here, process
        finally:
            there.close()
    raise DataError(
        f"the process that starts workers was killed {MAX_KILLED} times in a row, often for lack of memory. Finished shards are "
        f"safe: try fewer than --workers {n_workers}"
    )


def run_and_report(task: ShardTask, report: Callable[[tuple[int, int]], None], workers: int) -> None:
    """Run a shard. ``report``: called about once a second with the numbers of clips and of bad clips since the last call."""
    done, bad, reported_at = 0, 0, time.monotonic()

    def on_clip(record: ClipRecord) -> None:
        nonlocal done, bad, reported_at
        done, bad = done + 1, bad + (not record.status.usable)
        if time.monotonic() - reported_at >= REPORT_EVERY:
            report((done, bad))
            done, bad, reported_at = 0, 0, time.monotonic()

    run_shard(task, on_clip, workers=workers)
    if done:
        report((done, bad))


def start_server() -> None:
    """Start the process from which workers are forked, if none runs. Call it early: it imports beside this process.
    It has the environment of workers.
    """
    before = dict(os.environ)
    forkserver.set_forkserver_preload(PRELOAD)
    os.environ.update(WORKER_ENVIRONMENT)
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _hidden_main() -> Iterator[None]:
    """Hide the main module: a worker would import it again, and a script without a guard would start the run once more."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _send(connection: Connection, task: ShardTask) -> None:
    # A worker that was killed is noticed when its answer is read.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.send(task)


def _end_with_run() -> None:
    """End this worker, and so its decoder, with the main process. The server ends later: with the last of its workers."""
    run = multiprocessing.parent_process()
    assert run is not None
    run.join()
    os._exit(1)


def _serve(connection: Connection, number: int, gpus: tuple[str, ...], workers: int) -> None:
    """Run shards in a worker: sends progress, then None or an error for each."""
    threading.Thread(target=_end_with_run, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process stops its workers
    if gpus:
        select_gpu(number, gpus)
    with contextlib.suppress(EOFError, OSError):
        while True:
            task = connection.recv()
            try:
                run_and_report(task, connection.send, workers)
            except Exception as error:  # noqa: BLE001  raised in the main process
                if not isinstance(error, DtsfError):
                    error.add_note(traceback.format_exc())
                connection.send(error)
            else:
                connection.send(None)
