"""Several trainings side by side, in forked processes of one thread each: folds, seeds, protocols, rows of a table.

A small network keeps one core busy, and a second thread of the same training slows it down. So a second core gets a training of its
own. A forked process has all imports already and shares the memory of its parent. It writes nothing to the terminal: reports, log
records, its result or its error come back through a pipe.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch

from dtsf.errors import DtsfError
from dtsf.model.scan import ScanInputs, causal_conv, selective_scan
from dtsf.training.distributed import current_world

T = TypeVar("T")
Report = Callable[[Any], None]
Job = Callable[[Report], T]

KEEP_MEMORY = (-1, -3)  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt


class _Sender(QueueHandler):
    """Log handler that sends records to the parent."""

    def enqueue(self, record: logging.LogRecord) -> None:
        self.queue(("log", record))  # type: ignore[operator]


def usable_workers(n_jobs: int, *, wanted: int | None = None, threads: int = 1) -> int:
    """Return how many of ``n_jobs`` trainings run at the same time: ``wanted``, by default one a core.

    1 means one after another in this process: with several threads a training, where PyTorch finds a GPU, under torchrun, and in
    a process that itself runs beside others.
    """
    nested = multiprocessing.parent_process() is not None
    alone = threads > 1 or nested or current_world().size > 1 or not sys.platform.startswith("linux")
    if alone or torch.cuda.is_available():
        return 1
    return max(1, min(n_jobs, wanted or len(os.sched_getaffinity(0))))


def _load_scan() -> None:
    """Load the kernels of the scan, which a machine's first training compiles for ten seconds, once for all forked processes."""
    x_111, one_1, still_1 = torch.ones(1, 1, 1, requires_grad=True), torch.ones(1), torch.zeros(1)
    convolved_111 = causal_conv(x_111, torch.ones(1, 1, 4), one_1)
    inputs = ScanInputs(convolved_111, x_111, -torch.ones(1, 1), x_111, x_111, one_1, x_111, still_1, False)
    selective_scan(inputs).sum().backward()


def side_by_side(
    jobs: Sequence[Job[T]], *, workers: int, on_report: Callable[[int, Any], None] = lambda *_: None
) -> Iterator[tuple[int, T]]:
    """Run jobs, at most ``workers`` at the same time, in their order. Yield the number of each and its result, as they finish.

    A job gets a function that sends a value to ``on_report(number, value)`` in this process. The first error of a job is raised
    here. Then, after Ctrl-C, and if the iteration is left, the other jobs are killed. A job that is killed from outside raises
    DtsfError. With one worker, the jobs run in this process.
    """
    if workers < 2 or len(jobs) < 2:
        for k, job in enumerate(jobs):
            yield k, job(partial(on_report, k))
        return
    _load_scan()
    context = multiprocessing.get_context("fork")
    waiting = list(enumerate(jobs))
    running: dict[Connection, tuple[int, BaseProcess]] = {}
    alive, lifeline = os.pipe()  # its end is closed when this process ends, also by a kill
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                k, job = waiting.pop(0)
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(job, sender, alive, lifeline), daemon=True)
                with warnings.catch_warnings():
                    # Python warns of threads. The child uses only what they do not hold.
                    warnings.simplefilter("ignore", DeprecationWarning)
                    process.start()
                sender.close()
                running[receiver] = k, process
            ready = wait(list(running))
            for receiver in [one for one in running if one in ready]:
                k, child = running[receiver]
                kind, value = _receive(receiver, child)
                if kind == "report":
                    on_report(k, value)
                elif kind == "log":
                    logging.getLogger(value.name).handle(value)
                elif kind == "error":
                    raise value
                else:
                    del running[receiver]
                    receiver.close()
                    child.join()
                    yield k, value
    finally:
        for receiver, (_, child) in running.items():
            child.kill()
            child.join()
            receiver.close()
        os.close(alive)
        os.close(lifeline)


def _receive(receiver: Connection, process: BaseProcess) -> tuple[str, Any]:
    try:
        # Plain pickle: multiprocessing would send descriptors of tensors, which end with their process.
        message: tuple[str, Any] = pickle.loads(receiver.recv_bytes())
    except EOFError:
        process.join()
        code = process.exitcode or 0
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        hint = (
            "perhaps the memory was full: run the same command again (dtsf train with --resume), with fewer --workers"
        )
        raise DtsfError(f"a training that ran beside others ended {how}; {hint}") from None
    return message


def _work(job: Job[Any], sender: Connection, alive: int, lifeline: int) -> None:
    """Run a job in the child and send its result or its error."""
    os.close(lifeline)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, args=(alive,), daemon=True).start()
    torch.set_num_threads(1)
    with suppress(
        AttributeError
    ):  # glibc only: freed memory is kept, else the system clears new pages for every result
        for option in KEEP_MEMORY:
            ctypes.CDLL(None).mallopt(option, 1 << 30)
    # Threads of the parent may have held the locks of its progress bar and of its log handlers.
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__

    def send(message: tuple[str, Any]) -> None:
        sender.send_bytes(pickle.dumps(message))

    logging.getLogger("dtsf").handlers = []
    logging.getLogger().handlers = [_Sender(send)]  # type: ignore[arg-type]
    try:
        message = "result", job(lambda value: send(("report", value)))
        send(message)
    except BaseException as error:  # noqa: BLE001  the parent raises it
        send(("error", _portable(error)))


def _portable(error: BaseException) -> BaseException:
    """Return the error with the child's traceback as a note; another error with its text if it cannot be sent."""
    text = "".join(traceback.format_exception(error))
    try:
        copy: BaseException = pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001  an error of any package
        return RuntimeError(text)
    if not isinstance(copy, DtsfError):
        copy.add_note(text)
    return copy


def _end_with_parent(alive: int) -> None:
    os.read(alive, 1)
    os._exit(1)
