"""A fork of this process, with the part of ``subprocess.Popen`` that is asked of it: what is imported here is imported there.

For a process of one thread only: what another thread holds at that moment (a lock, half a malloc) is held in the fork for
ever. So stage 1 forks in processes of its own (:mod:`dtsf.pipeline.foreman`), before ONNX Runtime, whose import starts a
thread; and on Linux alone, where the kernel ends a process with its parent.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Fork", "can_fork", "die_with_parent", "is_of_one_thread"]


class Fork:
    """A process that does ``work`` and ends. Its stdin and stdout are pipes to here.

    Args:
        name: What ``ps`` and ``top`` call it; 15 characters at most.
        work: Called there. It is told of nothing but what it finds in its variables, and returns nothing.
        keep: File descriptors that it needs. Others are closed there: a pipe is at its end when its last writer is gone.

    """

    def __init__(self, name: str, work: Callable[[], None], *, keep: Iterable[int] = ()) -> None:
        requests, stdin = os.pipe()
        stdout, answers = os.pipe()
        parent = os.getpid()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _be(name, work, parent, requests, answers, keep)
        os.close(requests)
        os.close(answers)
        self.stdin = os.fdopen(stdin, "wb")
        self.stdout = os.fdopen(stdout, "rb")

    def kill(self) -> None:
        """End it now, whatever it is at."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def poll(self) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it lives."""
        return self._look(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int | None:
        """As :meth:`poll`, when it has ended or after ``timeout`` seconds."""
        if timeout is None:
            return self._look(0)
        limit = time.monotonic() + timeout
        while self.poll() is None and time.monotonic() < limit:
            time.sleep(0.002)
        return self.returncode

    def _look(self, how: int) -> int | None:
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, how)
            except ChildProcessError:  # who started us ignores SIGCHLD: nobody kept its exit code
                pid, status = self.pid, 0
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def _be(name: str, work: Callable[[], None], parent: int, requests: int, answers: int, keep: Iterable[int]) -> NoReturn:
    """What the fork does. It never returns: the frames below this one are those of the process that it was."""
    code = 1
    try:
        die_with_parent(parent)
        os.dup2(requests, 0)
        os.dup2(answers, 1)
        first = 3
        for descriptor in sorted({*keep}):
            os.closerange(first, descriptor)
            first = descriptor + 1
        os.closerange(first, 1 << 20)
        with open("/proc/self/comm", "w") as comm:
            comm.write(name)
        work()
        code = 0
    except (KeyboardInterrupt, SystemExit):
        pass  # a terminal tells it to every process, and who waits for this one says it; or its parent is gone
    except BaseException:  # noqa: BLE001 - os._exit would swallow it
        traceback.print_exc()
    finally:
        # Neither the exit handlers nor the buffers that it got with the fork are its own.
        os._exit(code)


def can_fork() -> bool:
    """Whether stage 1 forks on this system."""
    return sys.platform.startswith("linux")


def is_of_one_thread() -> bool:
    """Whether this process has no thread but this one; those of C libraries count."""
    return len(os.listdir("/proc/self/task")) == 1


def die_with_parent(parent: int) -> None:
    """Linux: let the kernel end this process with its parent; one that hangs would outlive a parent that was killed.

    Args:
        parent: Its process id, as it says itself: in a container it may well be 1.

    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    parent_death_signal = 1
    ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before the kernel was asked
        sys.exit()
