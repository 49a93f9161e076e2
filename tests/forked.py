"""A function in a process of its own, which has all that this one has imported; and what becomes of processes."""

import contextlib
import os
import time
import warnings
from pathlib import Path


def forked(action):
    """Start ``action`` and return the process's number; its exit code is 0 where the action returns, else 1."""
    with warnings.catch_warnings():
        # Threads of the parent are of no concern to the child.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        try:
            action()
            os._exit(0)
        finally:
            os._exit(1)
    return child


def wait_until(true, process=None):
    """While a process, if there is one, is at work."""
    limit = time.monotonic() + 90
    while not true():
        assert process is None or process.poll() is None, process.stderr.read().decode()[-2000:]
        assert time.monotonic() < limit
        time.sleep(0.005)


def alive(pid):
    """Whether it is there and no zombie: dead, and nobody here to bury it."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def exit_code(child):
    """Wait for it; minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
