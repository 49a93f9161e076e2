"""Shards on forked processes of this machine, where there are no more shards than processes: nothing but Python.

This is the side of who wants them done. It starts the foreman, a new Python, and hears from it; the foreman forks the
members, and they their decoders (:mod:`dtsf.pipeline.foreman`). This process may have threads, so it never forks itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from dtsf import errors
from dtsf.errors import DataError
from dtsf.pipeline.foreman import ATTEMPTS
from dtsf.pipeline.forked import can_fork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from types import TracebackType

    from dtsf.pipeline.worker import ShardTask

__all__ = ["WORKER_ENVIRONMENT", "Crew", "crew_for"]

WORKER_ENVIRONMENT = {
    # The system's allocator gives memory back after every layer of the encoder; keeping it halves a worker's time
    # (measured: 90 clips on two workers, 56 s in the kernel of 94 s before).
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # Without it the import of ONNX Runtime (1.31) starts a thread, opens a database in the home folder and tells Microsoft.
    "ORT_DISABLE_TELEMETRY": "1",
}


class Crew:
    """Processes for shards. A context manager: entered early, the foreman imports while the caller does something else."""

    def __init__(self) -> None:
        self._foreman: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Crew:
        if self._foreman is None:
            # Python would answer a Ctrl-C at its start with a traceback: the new one takes it when it is ready for it.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                self._foreman = subprocess.Popen(
                    # -P: a file of the current folder, such as queue.py, is not imported in the place of a library.
                    [sys.executable, "-P", "-m", "dtsf.pipeline.foreman", str(os.getpid())],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=os.environ | WORKER_ENVIRONMENT,
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> int:
        """End the foreman, and with it all that it forked. Returns its exit code; 0 where there was none."""
        foreman, self._foreman = self._foreman, None
        if foreman is None:
            return 0
        foreman.kill()
        for pipe in (foreman.stdin, foreman.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        return foreman.wait()

    def run(self, tasks: list[ShardTask], on_clips: Callable[[int, int], None]) -> None:
        """Run all shards at once, each in a process of its own.

        Args:
            tasks: What to do.
            on_clips: Called now and then with the number of clips done since the last call, and how many of them are bad.

        Raises:
            DtsfError: What a process could not do; the others are ended.
            DataError: The processes were lost again and again.

        """
        todo = {task.shard: task for task in tasks}
        # Clips that were told of. A process that does the shard again comes by clips that were counted.
        told = dict.fromkeys(todo, (0, 0))
        for attempt in range(1, ATTEMPTS + 1):
            for answer in self._answers(list(todo.values())):
                if "error" in answer:
                    raise getattr(errors, answer["kind"], RuntimeError)(answer["error"])
                shard = answer["shard"]
                done, bad = told[shard]
                if answer.get("done", 0) > done:
                    told[shard] = answer["done"], max(answer["bad"], bad)
                    on_clips(answer["done"] - done, max(0, answer["bad"] - bad))
                if "committed" in answer:
                    del todo[shard]
                if not todo:
                    return
            code = self.close()
            if code > 0 or attempt == ATTEMPTS:
                break
        raise DataError(
            f"the process that leads the workers ended {attempt} times before they were done (exit code {code}). What is "
            "committed is safe: run the same command again, with fewer --workers if memory is short"
        )

    def _answers(self, tasks: list[ShardTask]) -> Iterator[dict[str, Any]]:
        """What the foreman and its members say, until all are done or it is gone."""
        from pydantic import TypeAdapter

        from dtsf.pipeline.worker import ShardTask

        self.__enter__()
        assert self._foreman is not None
        assert self._foreman.stdin is not None
        assert self._foreman.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # killed already: that is seen when its answers are read
            self._foreman.stdin.write(TypeAdapter(list[ShardTask]).dump_json(tasks) + b"\n")
            self._foreman.stdin.close()
        for line in self._foreman.stdout:
            if line.endswith(b"\n"):  # else it was killed while it wrote
                yield json.loads(line)


def crew_for(workers: int | None, scheduler: str | None) -> AbstractContextManager[Crew | None]:
    """A crew to be entered before anything else, or none where stage 1 with these settings will not use one."""
    if scheduler is None and (workers or os.cpu_count() or 1) > 1 and can_fork():
        return Crew()
    return contextlib.nullcontext()
