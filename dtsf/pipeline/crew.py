"""A process for each shard, where there are no more shards than processes: nothing to schedule, so nothing but Python.

A process gets its shard as a line of JSON and answers with a line now and then: how many clips are done, how many of them
are bad; at last an error in words, or that the shard is committed. One that dies is replaced by another that does the shard
again: what was not committed never existed.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dtsf import errors
from dtsf.errors import DataError, DtsfError
from dtsf.pipeline.decoder_child import die_with_parent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dtsf.pipeline.worker import ShardTask

__all__ = ["run_with_crew"]

ATTEMPTS = 20
"""Processes that a shard may lose: whoever kills so many means it, or the machine has too little memory."""


@dataclass
class _Member:
    """A shard and the process that is at it."""

    task: ShardTask
    process: subprocess.Popen[bytes]
    attempt: int = 1
    done: int = 0
    """Clips that were told of, by this process or one before it."""
    bad: int = 0
    buffer: bytes = b""
    committed: bool = False


def run_with_crew(tasks: list[ShardTask], on_clips: Callable[[int, int], None], environment: Mapping[str, str]) -> None:
    """Run all shards at once, each in a process of its own.

    Args:
        tasks: What to do.
        on_clips: Called now and then with the number of clips done since the last call, and how many of them are bad.
        environment: Variables of the processes beside those of this one.

    Raises:
        DtsfError: What a process could not do; the others are ended.
        DataError: The processes of one shard were lost again and again.

    """
    crew = []
    with selectors.DefaultSelector() as selector:
        try:
            for task in tasks:
                crew.append(_Member(task, _start(task, environment)))
                _watch(selector, crew[-1])
            while selector.get_map():
                for key, _ in selector.select():
                    _listen(selector, key.data, on_clips, environment)
        finally:
            for member in crew:
                _end(member.process)


def _start(task: ShardTask, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        # -P: a file of the current folder, such as queue.py, is not imported in the place of a library.
        [sys.executable, "-P", "-m", "dtsf.pipeline.crew", str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | environment,
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # killed already: that is seen when its answer is read
        process.stdin.write(_adapter().dump_json(task) + b"\n")
        process.stdin.close()
    return process


def _watch(selector: selectors.DefaultSelector, member: _Member) -> None:
    assert member.process.stdout is not None
    selector.register(member.process.stdout, selectors.EVENT_READ, member)


def _listen(
    selector: selectors.DefaultSelector,
    member: _Member,
    on_clips: Callable[[int, int], None],
    environment: Mapping[str, str],
) -> None:
    pipe = member.process.stdout
    assert pipe is not None
    part = os.read(pipe.fileno(), 65536)
    *lines, member.buffer = (member.buffer + part).split(b"\n")
    for line in lines:
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise getattr(errors, answer["kind"], RuntimeError)(answer["error"])
        member.committed = member.committed or "committed" in answer
        # A process that does the shard again comes by clips that were counted.
        if answer.get("done", 0) > member.done:
            on_clips(answer["done"] - member.done, max(0, answer["bad"] - member.bad))
            member.done, member.bad = answer["done"], max(answer["bad"], member.bad)
    if part and not member.committed:
        return
    selector.unregister(pipe)
    if not member.committed:
        # It is gone, or about to be: its exit code says whether it was killed.
        with contextlib.suppress(subprocess.TimeoutExpired):
            member.process.wait(timeout=5)
    _end(member.process)
    if member.committed:
        return
    if member.process.returncode > 0 or member.attempt == ATTEMPTS:
        raise DataError(
            f"the process of shard {member.task.shard} ended {member.attempt} times before it was done (exit code "
            f"{member.process.returncode}). What is committed is safe: run the same command again, with fewer --workers "
            "if memory is short"
        )
    member.attempt += 1
    member.buffer = b""
    member.process = _start(member.task, environment)
    _watch(selector, member)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _adapter() -> Any:
    from pydantic import TypeAdapter

    from dtsf.pipeline.worker import ShardTask

    return TypeAdapter(ShardTask)


def _serve() -> None:
    """The process: one shard from stdin, lines of JSON to stdout."""
    die_with_parent(int(sys.argv[1]))
    # Before anything is imported: who starts this process waits until a large shard is through the pipe. Bytes: it is
    # UTF-8, whatever the locale takes text for.
    line = sys.stdin.buffer.readline()
    # A library that writes to stdout must not write into the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    from dtsf.pipeline.worker import Counter, run_shard

    done = bad = 0

    def tell(counts: tuple[int, int]) -> None:
        nonlocal done, bad
        done, bad = done + counts[0], bad + counts[1]
        say({"done": done, "bad": bad})

    counter = Counter(tell)
    try:
        run_shard(_adapter().validate_json(line), counter.count)
    except DtsfError as error:
        say({"error": str(error), "kind": type(error).__name__})
    except Exception:  # noqa: BLE001 - it is told to who waits for this process
        say({"error": traceback.format_exc(), "kind": ""})
    else:
        counter.tell()
        say({"committed": True})


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        _serve()
