"""Helpers for tests: processes, folders in memory and empty files."""

import contextlib
import os
import time
import warnings
from pathlib import Path

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Folder in memory: fast, and a killed process loses nothing that it has written there."""


def touch(root, *names):
    """Make empty files. Return their folder."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def forked(action):
    """Run ``action`` in a forked process and return its number. The exit code is 0, or 1 after an error."""
    with warnings.catch_warnings():
        # The child does not use the parent's threads.
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
    """Wait for a condition. ``process``: it must run meanwhile."""
    limit = time.monotonic() + 90
    while not true():
        assert process is None or process.poll() is None, process.stderr.read().decode()[-2000:]
        assert time.monotonic() < limit
        time.sleep(0.005)


def alive(pid):
    """True if a process runs and is not a zombie."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def exit_code(child):
    """Wait for a process. Return its exit code, or minus its signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
