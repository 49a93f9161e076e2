"""Helpers for tests: processes, folders in memory, empty files, and a server that runs ``dtsf`` commands.

As a program, it imports PyTorch once and forks a process for each command: a line of JSON in, the exit code out.
"""

import atexit
import contextlib
import json
import os
import signal
import sys
import threading
import time
import warnings
from pathlib import Path

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Folder in memory: fast, and a killed process loses nothing that it has written there."""


def touch(root, *names):
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


def wait_until(true, process=None, seconds=90):
    """Wait for a condition. ``process``: it must run meanwhile."""
    limit = time.monotonic() + seconds
    while not true():
        assert process is None or process.poll() is None, str(process.communicate())[-2000:]
        assert time.monotonic() < limit
        time.sleep(0.005)


def alive(pid):
    """True if a process runs and is not a zombie."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def resident(pid):
    """Return the memory of a process in bytes, 0 if it has ended."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def exit_code(child):
    """Wait for a process. Return its exit code, or minus its signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def preload():
    """Import the packages of most commands. No import may start a thread, because a fork would lose it."""
    import av  # noqa: F401
    import lightning_fabric  # noqa: F401
    import numba  # noqa: F401
    import torch  # noqa: F401

    import dtsf.api
    import dtsf.cli.app
    import dtsf.pipeline.preprocess  # noqa: F401

    assert threading.active_count() == 1


def serve():
    """Run commands until stdin ends."""
    preload()
    while line := sys.stdin.readline():
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            run(job)
        sys.stdout.write(f"{wait(child, time.monotonic() + job['timeout'])}\n")
        sys.stdout.flush()


def wait(child, deadline):
    """Wait for a process. Return its exit code, as subprocess does."""
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)


def run(job):
    """Run the command in the forked process. Does not return."""
    for descriptor, file in enumerate((os.devnull, job["out"], job["err"])):
        os.dup2(os.open(file, os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), descriptor)
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["cwd"])
    sys.argv = ["dtsf", *job["words"]]
    code = 1
    try:
        from dtsf.cli import main

        main()
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:  # noqa: BLE001
        sys.excepthook(*sys.exc_info())
    # The interpreter does this when it ends.
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
