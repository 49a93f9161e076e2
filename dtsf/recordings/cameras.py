"""Cameras of a recording: each is decoded by its own process, which hands over stretches of frames in order."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dtsf.cache.schema import Box, CacheSpec
from dtsf.cache.status import Status
from dtsf.errors import VideoError
from dtsf.pipeline.video.stretches import Stretch
from dtsf.recordings.movements import change

if TYPE_CHECKING:
    from dtsf.pipeline.encoders.choose import Encoder

DEADLINE = 120.0  # seconds for one stretch of a finished file
COVERED = 0.9  # share of a window that a camera must film, as of a clip of the training
POLL = 0.5  # seconds between looks at whether to stop


@dataclass(frozen=True)
class Source:
    """Camera as the timeline reads it. ``chapters``: its files as ``(path, start, stop)``, in seconds of the recording's clock.
    ``live``: instead, what is still being written: ``-``, a URL or a file, which began at ``offset``.
    """

    view: str
    number: int  # of the view in the run, from 0
    chapters: tuple[tuple[str, float, float], ...] = ()
    offset: float = 0.0
    live: str | None = None
    region: Box | None = None
    ignore: tuple[Box, ...] = ()


class CameraStream(contextlib.AbstractContextManager["CameraStream"]):
    """Process that decodes ranges of one camera (their first and last moments of the grid), a few seconds ahead of the reader. A
    camera that is still filming has one, without an end.

    ``stopped``: called while a camera that is still filming sends nothing; True ends it.
    """

    def __init__(
        self,
        source: Source,
        spec: CacheSpec,
        rate: float,
        ranges: Sequence[tuple[int, int]],
        idle: float = 10.0,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.source, self._stopped = source, stopped
        self.damaged: set[int] = set()
        """Moments of damaged frames that were read, or will be read in a few seconds."""
        self._shape = (spec.size, spec.size, 3)
        self._buffer = bytearray()
        names = ("path", "start", "stop")
        request: dict[str, Any] = {
            "name": source.live or source.chapters[0][0],
            "live": source.live and {"source": source.live, "offset": source.offset, "idle": idle},
            **{"rate": rate, "size": spec.size, "crop": spec.crop},
            **{"region": source.region, "ignore": source.ignore, "parent": os.getpid()},
        }
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "dtsf.pipeline.video.stream", json.dumps(request)],
            stdin=None if source.live == "-" else subprocess.DEVNULL if source.live else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        if not source.live:
            # Not as an argument, whose length is limited: a day may have thousands of files.
            self._write([dict(zip(names, chapter, strict=True)) for chapter in source.chapters])
            self.ask(ranges)

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError), self._child:
            self._child.kill()

    def ask(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Ask for these ranges, in order, when all before are read to their ends."""
        self._write(ranges)

    def _write(self, document: object) -> None:
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # read() says why
            self._child.stdin.write(json.dumps(document).encode() + b"\n")
            self._child.stdin.flush()

    def read(self) -> Stretch | None:
        """Return the next stretch, or None at the end of each range. Raises VideoError: it cannot be decoded, or not in time."""
        until = None if self.source.live else time.monotonic() + DEADLINE
        while (end := self._buffer.find(b"\n")) < 0:
            self._fill(until)
        line: dict[str, Any] = json.loads(self._buffer[:end])
        del self._buffer[: end + 1]
        if "error" in line:
            raise VideoError(f"camera {self.source.view}: {line['error']}", Status(line["status"]))
        self.damaged.update(line["damaged"])
        if "end" in line:
            return None
        n_bytes = line["n"] * int(np.prod(self._shape))
        while len(self._buffer) < n_bytes:
            self._fill(until)
        frames_FSSC = np.frombuffer(bytes(self._buffer[:n_bytes]), np.uint8).reshape(line["n"], *self._shape)
        del self._buffer[:n_bytes]
        return Stretch(line["first"], frames_FSSC)

    def _fill(self, until: float | None) -> None:
        assert self._child.stdout is not None
        pipe = self._child.stdout.fileno()
        while not select.select([pipe], [], [], POLL)[0]:
            if self._stopped():
                # What the camera has filmed until now still follows.
                self._child.send_signal(signal.SIGTERM)
            if until is None or time.monotonic() < until:
                continue
            raise VideoError(
                f"camera {self.source.view}: no picture in {DEADLINE:g} s; run the same command again: it goes on",
                Status.TIMEOUT,
            )
        part = os.read(pipe, 1 << 20)
        if not part:
            code = self._child.wait()
            reason = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise VideoError(f"camera {self.source.view}: the decoder crashed ({reason})", Status.CRASHED)
        self._buffer += part


class EmbeddedCamera:
    """Embeddings of one camera from moment ``first`` on, up to the last one that was read."""

    def __init__(self, stream: CameraStream, encoder: Encoder, dtype: str, every: int) -> None:
        self.stream, self.ended, self.first = stream, False, 0
        self.pictures: list[tuple[int, np.ndarray]] = []
        self._encoder, self._dtype, self._every = encoder, dtype, every
        self._parts: list[np.ndarray] = []
        self._moved: list[np.ndarray] = []  # how much moves, of each stretch
        self._begins: list[int] = []  # first moment of each stretch

    @property
    def stop(self) -> int:
        """Moment behind the last one that is read."""
        return self._begins[-1] + len(self._parts[-1]) if self._parts else self.first

    def advance(self) -> None:
        """Read and embed one stretch."""
        stretch = self.stream.read()
        if stretch is None:
            self.ended = True
            return
        self._begins.append(stretch.first)
        if len(self._begins) == 1:
            self.first = stretch.first
        frames_FSSC = stretch.frames_FSSC
        # One call a clip's number of frames: as in preprocess, whose temporary arrays fit the caches of a core.
        made = [self._encoder.embed(frames_FSSC[k : k + 16]) for k in range(0, len(frames_FSSC), 16)]
        x_FPC = np.concatenate(made)
        self._parts.append(x_FPC.astype(self._dtype, copy=False))
        self._moved.append(change(x_FPC))
        numbered = enumerate(frames_FSSC, stretch.first)
        self.pictures += [(moment, frame.copy()) for moment, frame in numbered if moment % self._every == 0]

    def drop(self, moment: int) -> int:
        """Forget stretches that end before a moment. Return the first moment of the one that is left, or will be read next."""
        while self._parts and self._begins[0] + len(self._parts[0]) <= moment:
            end = self._begins[0] + len(self._parts[0])
            del self._parts[0], self._moved[0], self._begins[0]
            self.first = self._begins[0] if self._begins else end
        return self.first

    def take_pictures(self, end: int) -> list[tuple[int, np.ndarray]]:
        """Return and forget the pictures before a moment."""
        taken = [one for one in self.pictures if one[0] < end]
        self.pictures = [one for one in self.pictures if one[0] >= end]
        return taken

    def take_damaged(self, end: int) -> list[int]:
        """Return and forget the moments of damaged frames before a moment."""
        taken = sorted(moment for moment in self.stream.damaged if moment < end)
        self.stream.damaged.difference_update(taken)
        return taken

    def films(self, start: int, stop: int) -> bool:
        """Return whether the camera films nearly all of a window."""
        return stop > start and min(stop, self.stop) - max(start, self.first) >= COVERED * (stop - start)

    def window(self, start: int, stop: int, n_frames: int) -> np.ndarray:
        """Return the embeddings of frames of a window, as far as the camera films it: (F, P, C)."""
        start, stop = max(start, self.first), min(stop, self.stop)
        length = stop - start
        picked = (2 * np.arange(n_frames) + 1) * length // (2 * n_frames)
        joined = np.concatenate(self._parts) if len(self._parts) > 1 else self._parts[0]
        return np.asarray(joined[start + picked - self.first])

    def moved(self, begin: int, end: int) -> np.ndarray:
        """Return how much moves at these moments; NaN where the camera does not film."""
        row_T = np.full(end - begin, np.nan)
        for first, part in zip(self._begins, self._moved, strict=True):
            low, high = max(first, begin), min(first + len(part), end)
            if low < high:
                row_T[low - begin : high - begin] = part[low - first : high - first]
        return row_T
