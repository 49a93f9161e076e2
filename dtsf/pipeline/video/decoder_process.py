"""Decode in a child process with a deadline, so that a broken video cannot crash or hang the run. The child fills one of two
slots of shared memory while the parent embeds the other. It is a plain ``subprocess``: dask forbids those of ``multiprocessing``.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import mmap
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np

from dtsf.cache.status import Status
from dtsf.errors import DataError, VideoError
from dtsf.pipeline.video.clip import WHOLE, Span, reencode_hint
from dtsf.pipeline.video.crop import Crop

Item = tuple[np.ndarray, dict[str, Any]] | VideoError  # frames, (F, size, size, 3) uint8, and DecodedClip.facts
SLOTS = 2
CLIPS_A_CHILD = 500  # then a child is replaced, which frees the memory that a codec leaks; a start takes 0.3 s


@dataclass(frozen=True)
class DecodeSettings:
    """Settings of a decoder process; the fields are as in :func:`dtsf.pipeline.video.decode.decode_clip`."""

    n_frames: int
    size: int
    deadline: float = 60.0  # maximum seconds per clip: increase it for long files with few key frames
    check: str = "fast"
    crop: Crop = "centre"
    decoder: str = "pyav"


@dataclass(frozen=True)
class DecodeRequest:
    """One clip to decode."""

    path: Path
    span: Span = WHOLE
    extent_only: bool = False  # return only the seconds of its first and last picture, without decoding


class Decoder(contextlib.AbstractContextManager["Decoder"]):
    """Child process that decodes clips, one at a time. It starts at once and is replaced if it is lost."""

    def __init__(self, settings: DecodeSettings) -> None:
        self.settings = settings
        self._pending: tuple[DecodeRequest, float] | None = None  # the clip that was sent, and when
        self._slot, self._clips, self._buffer = 0, 0, b""
        shape = (SLOTS, settings.n_frames, settings.size, settings.size, 3)
        self._file = _shared_file(int(np.prod(shape)))
        self._map = mmap.mmap(self._file.fileno(), 0)
        self._frames: np.ndarray = np.frombuffer(self._map, np.uint8).reshape(shape)
        self._child = self._start()

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._child.pid

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child and free the shared memory."""
        self._stop()
        self._frames = np.empty(0, np.uint8)
        with contextlib.suppress(BufferError):
            self._map.close()  # the traceback of an exception may still refer to frames
        self._file.close()

    def cancel(self) -> None:
        """Drop a clip that was sent and not received, in whatever state its child is."""
        if self._pending is not None:
            self._pending = None
            self._stop()

    def send(self, request: DecodeRequest) -> None:
        """Start to decode a clip. The previous clip must have been received; its frames stay valid until the next call."""
        assert self._pending is None, "one clip at a time: receive() first"
        self._slot = (self._slot + 1) % SLOTS
        if self._child.poll() is not None or self._clips >= CLIPS_A_CHILD:
            self._stop()
            self._clips, self._buffer = 0, b""
            self._child = self._start()
        self._clips += 1
        self._pending = (request, time.monotonic())
        line = asdict(request) | {"path": os.fspath(request.path), "slot": self._slot}
        assert self._child.stdin is not None
        # A child that dies at this moment is noticed by receive().
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(json.dumps(line).encode() + b"\n")
            self._child.stdin.flush()

    def receive(self) -> Item:
        """Return the clip that was sent."""
        assert self._pending is not None, "no clip to receive: send() first"
        assert self._child.stdout is not None
        (request, sent_at), self._pending = self._pending, None
        pipe = self._child.stdout.fileno()
        while b"\n" not in self._buffer:
            # An answer that arrived in time counts, however late the caller reads it.
            left = max(0.0, self.settings.deadline - (time.monotonic() - sent_at))
            if not select.select([pipe], [], [], left)[0]:
                self._stop()
                limit = f"{self.settings.deadline:g} s; for a long file increase --deadline"
                return VideoError(f"{request.path}: not decoded in {limit}", Status.TIMEOUT)
            part = os.read(pipe, 65536)
            if not part:
                code = self._child.wait()
                self._stop()
                reason = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                hint = reencode_hint(request.path)
                return VideoError(f"{request.path}: the decoder crashed ({reason}); {hint}", Status.CRASHED)
            self._buffer += part
        line, self._buffer = self._buffer.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            return VideoError(answer["error"], Status(answer["status"]))
        return self._frames[self._slot], answer

    def _start(self) -> subprocess.Popen[bytes]:
        decode = {name: value for name, value in asdict(self.settings).items() if name != "deadline"}
        settings = {"decode": decode, "shape": self._frames.shape, "fd": self._file.fileno(), "parent": os.getpid()}
        return subprocess.Popen(
            # -P: no import from the current folder, where a file may have the name of a library.
            [sys.executable, "-P", "-m", "dtsf.pipeline.video.decode", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # FFmpeg's messages; the status of a clip summarises them
            pass_fds=[self._file.fileno()],
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    def _stop(self) -> None:
        # The end of the block waits for the child and closes its pipes.
        with contextlib.suppress(BrokenPipeError), self._child:
            self._child.kill()


def _shared_file(n_bytes: int) -> IO[bytes]:
    """Create a file without a name, which its last process frees: in memory, or on disk if there is too little memory."""
    refused = []
    for folder in ("/dev/shm", tempfile.gettempdir()):
        try:
            with contextlib.ExitStack() as if_refused:
                file = if_refused.enter_context(tempfile.TemporaryFile(dir=folder))
                # Reserves the space now. A sparse file on a full /dev/shm would kill the process with SIGBUS later.
                os.posix_fallocate(file.fileno(), 0, n_bytes)
                if_refused.pop_all()
            return file
        except OSError as error:
            refused.append(f"{folder}: {error.strerror}")
    raise DataError(
        f"no space for {n_bytes >> 20} MB of frames ({'; '.join(refused)}): free some space, set $TMPDIR to another folder, or "
        "use fewer --workers"
    )


@contextlib.contextmanager
def shared_decoders(settings: DecodeSettings, n: int = 1) -> Iterator[tuple[Decoder, ...]]:
    """Lend ``n`` decoders that stay alive from shard to shard, because a child takes 0.4 s to start."""
    decoders = _kept_decoders(settings, n)
    try:
        yield decoders
    finally:
        for decoder in decoders:
            decoder.cancel()


@lru_cache(maxsize=1)
def _kept_decoders(settings: DecodeSettings, n: int) -> tuple[Decoder, ...]:
    decoders = tuple(Decoder(settings) for _ in range(n))
    for decoder in decoders:
        atexit.register(decoder.close)
    return decoders


def decode_all(decoder: Decoder, requests: list[DecodeRequest]) -> Iterator[Item]:
    """Decode clips in order; the child decodes the next clip while the caller uses one. A frame is valid until the next item. A
    clip whose child died is tried once more, because the machine may be the cause (no memory). A clip beyond its deadline is not.
    """

    def items() -> Iterator[Item]:
        for k, request in enumerate(requests):
            item = decoder.receive()
            if isinstance(item, VideoError) and item.status == Status.CRASHED:
                decoder.send(request)
                item = decoder.receive()
            if k + 1 < len(requests):
                decoder.send(requests[k + 1])
            yield item

    if requests:
        decoder.send(requests[0])
    return items()
