"""Runs ``dtsf`` commands, each in a process of its own that is forked from one which has imported PyTorch and the rest.

A line of JSON in, the exit code out. What a command prints goes into files. ``conftest.py`` starts it once a test process.
"""

import atexit
import json
import os
import signal
import sys
import threading
import time


def preload():
    """Import what nearly all commands need. Nothing here may start a thread: a fork would lose it."""
    import av  # noqa: F401
    import lightning_fabric  # noqa: F401
    import numba  # noqa: F401
    import torch  # noqa: F401

    import dtsf.api
    import dtsf.cli.app
    import dtsf.cli.show
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
    """The exit code, as subprocess has it."""
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)


def run(job):
    """The command, in the forked process; does not return."""
    for descriptor, file in enumerate((os.devnull, job["out"], job["err"])):
        os.dup2(
            os.open(file, os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), descriptor
        )
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
    # What the interpreter does at its end.
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
