"""The process that stage 1's workers are forked from: it imports what all of them need, once, and looks after them.

:mod:`dtsf.pipeline.crew` starts it, as a new Python of one thread, and gives it all shards as a line of JSON. It forks a
member for each, and each member forks its decoder before anything in it has a thread: four processes that begin to work at
once, where four that import numpy, pydantic, PyAV and decord for themselves take 0.4 CPU-seconds each. Members answer with a
line now and then: how many clips of which shard are done, how many of them are bad; at last an error in words, or that the
shard is committed. Their lines are passed on. One that dies is replaced by another that does the shard again: what was not
committed never existed.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import sys
import traceback
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from dtsf.errors import DataError, DtsfError
from dtsf.pipeline.forked import Fork, die_with_parent

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dtsf.pipeline.worker import ShardTask

__all__ = ["ATTEMPTS"]

ATTEMPTS = 20
"""Processes that a shard may lose: whoever kills so many means it, or the machine has too little memory."""


@dataclass
class _Member:
    """A shard and the process that is at it."""

    task: ShardTask
    process: Fork
    attempt: int = 1
    buffer: bytes = b""
    committed: bool = False


def _serve() -> None:
    """The process: shards from stdin, lines of JSON to stdout."""
    die_with_parent(int(sys.argv[1]))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    answers = _take_stdout()
    try:
        _import_for_all()
        # Bytes: it is UTF-8, whatever the locale takes text for.
        line = sys.stdin.buffer.readline()
        if line:
            _lead(_tasks(line), answers)
    except DtsfError as error:
        _say(answers, error=str(error), kind=type(error).__name__)
    except Exception:  # noqa: BLE001 - it is told to who waits for this process
        _say(answers, error=traceback.format_exc(), kind="")


def _take_stdout() -> IO[bytes]:
    """Where answers go. A library that writes to stdout must not write into them."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return answers


def _say(answers: IO[bytes], **answer: Any) -> None:
    answers.write(json.dumps(answer).encode() + b"\n")


def _import_for_all() -> None:
    """The imports of members and decoders that start no thread: so not ONNX Runtime and not PyTorch."""
    # A decoder that is missing here is missed, and told of, where it is needed.
    with contextlib.suppress(ImportError):
        import av  # noqa: F401
        import decord  # noqa: F401
    import PIL.Image  # noqa: F401

    import dtsf.pipeline.video.decode
    import dtsf.pipeline.worker  # noqa: F401


def _tasks(line: bytes) -> list[ShardTask]:
    from pydantic import TypeAdapter

    from dtsf.pipeline.worker import ShardTask

    return TypeAdapter(list[ShardTask]).validate_json(line)


def _lead(tasks: Iterable[ShardTask], answers: IO[bytes]) -> None:
    """Have all shards done at once, each by a process of its own."""
    crew: list[_Member] = []
    with selectors.DefaultSelector() as selector:
        try:
            for task in tasks:
                crew.append(_Member(task, _start(task)))
                selector.register(crew[-1].process.stdout, selectors.EVENT_READ, crew[-1])
            while selector.get_map():
                for key, _ in selector.select():
                    _listen(selector, key.data, answers)
        finally:
            for member in crew:
                _end(member.process)


def _start(task: ShardTask) -> Fork:
    return Fork("dtsf-shard", lambda: _work(task))


def _listen(selector: selectors.BaseSelector, member: _Member, answers: IO[bytes]) -> None:
    part = os.read(member.process.stdout.fileno(), 65536)
    *lines, member.buffer = (member.buffer + part).split(b"\n")
    for line in lines:
        member.committed = member.committed or "committed" in json.loads(line)
        answers.write(line + b"\n")
    if part and not member.committed:
        return
    selector.unregister(member.process.stdout)
    if not member.committed:
        # It is gone, or about to be: its exit code says whether it was killed.
        member.process.wait(timeout=5)
    _end(member.process)
    if member.committed:
        return
    code = member.process.returncode
    if (code is not None and code > 0) or member.attempt == ATTEMPTS:
        raise DataError(
            f"the process of shard {member.task.shard} ended {member.attempt} times before it was done (exit code "
            f"{code}). What is committed is safe: run the same command again, with fewer --workers if memory is short"
        )
    member.attempt += 1
    member.buffer = b""
    member.process = _start(member.task)
    selector.register(member.process.stdout, selectors.EVENT_READ, member)


def _end(process: Fork) -> None:
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def _work(task: ShardTask) -> None:
    """A member: one shard, and a line to stdout now and then."""
    from dtsf.pipeline.worker import Counter, run_shard

    answers = _take_stdout()
    done = bad = 0

    def tell(counts: tuple[int, int]) -> None:
        nonlocal done, bad
        done, bad = done + counts[0], bad + counts[1]
        _say(answers, shard=task.shard, done=done, bad=bad)

    counter = Counter(tell)
    try:
        run_shard(task, counter.count, fork=True)
    except DtsfError as error:
        _say(answers, error=str(error), kind=type(error).__name__)
    except Exception:  # noqa: BLE001 - it is told to who waits for this process
        _say(answers, error=traceback.format_exc(), kind="")
    else:
        counter.tell()
        _say(answers, shard=task.shard, committed=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        _serve()
