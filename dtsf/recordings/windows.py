"""Windows over the common time of a recording's cameras, classified one block after the other.

Every camera is decoded once, and every frame on the grid is embedded once, however many windows it is in. Memory is bounded by the
longest window. Windows come in blocks of :data:`BLOCK` starts; each block knows from which moments its cameras can be read again.
Letters: N windows, V cameras, F frames, P cells, C channels, K classes.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dtsf.cache.schema import CacheSpec
from dtsf.pipeline.video.clip import segment_centres
from dtsf.recordings.cameras import CameraStream, Source

if TYPE_CHECKING:
    from dtsf.pipeline.encoders.choose import Encoder

BLOCK = 8  # starts of windows that are classified together
DENSITY = 1.25  # moments of a window of the middle length over the frames of a clip
# Every second start is classified first, with windows of the middle length; it decides for starts so near.
STEP, REACH = 2, 2
PROMISING = 0.3  # probability of an event over that of no event from which windows of all lengths are classified
Classify = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""(N, V, F, P, C) embeddings -> (N, K) probabilities, (N,) uncertainty, (N, V) weights of the cameras."""


@dataclass(frozen=True)
class Grid:
    """Moments and windows of a recording. Moment ``k`` is at ``k / rate`` seconds of the recording's clock."""

    rate: float
    first: int  # first and last moment that all cameras film
    last: int
    lengths: tuple[int, ...]  # of the windows, in moments
    hop: int  # moments from one start to the next

    def starts(self, block: int) -> list[int]:
        """Return the first moments of the windows of a block."""
        begin = self.first + block * BLOCK * self.hop
        return [begin + k * self.hop for k in range(BLOCK)]


@dataclass(frozen=True)
class Window:
    """One classified window. ``start`` and ``stop``: seconds of the recording's clock. ``view_weights``: of each camera."""

    start: float
    stop: float
    probabilities: dict[str, float]
    uncertainty: float
    view_weights: tuple[float, ...]


@dataclass(frozen=True)
class WindowBlock:
    """Windows of successive starts S and all lengths L; NaN where a window reaches beyond the end."""

    number: int
    probabilities_SLK: np.ndarray
    uncertainty_SL: np.ndarray
    weights_SLV: np.ndarray
    restart: tuple[int, ...]  # for each camera, the moment from which the next block can be made
    pictures: tuple[tuple[int, int, np.ndarray], ...] = ()  # (camera, moment, frame): new pictures, about two a second


class Camera:
    """Embeddings of one camera from moment ``first`` on, up to the last one that was read."""

    def __init__(self, stream: CameraStream, encoder: Encoder, dtype: str, every: int) -> None:
        self.stream, self.ended, self.first = stream, False, 0
        self.pictures: list[tuple[int, np.ndarray]] = []
        self.notes: set[str] = set()
        self._encoder, self._dtype, self._every = encoder, dtype, every
        self._parts: list[np.ndarray] = []
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
        self._parts.append(np.concatenate(made).astype(self._dtype, copy=False))
        self.notes.update(stretch.notes)
        numbered = enumerate(frames_FSSC, stretch.first)
        self.pictures += [(moment, frame.copy()) for moment, frame in numbered if moment % self._every == 0]

    def drop(self, moment: int) -> int:
        """Forget stretches that end before a moment. Return the first moment of the one that is left, or will be read next."""
        while self._parts and self._begins[0] + len(self._parts[0]) <= moment:
            end = self._begins[0] + len(self._parts[0])
            del self._parts[0], self._begins[0]
            self.first = self._begins[0] if self._begins else end
        return self.first

    def take_pictures(self, end: int) -> list[tuple[int, np.ndarray]]:
        """Return and forget the pictures before a moment."""
        taken = [one for one in self.pictures if one[0] < end]
        self.pictures = [one for one in self.pictures if one[0] >= end]
        return taken

    def window(self, moments: np.ndarray) -> np.ndarray:
        """Return the embeddings at these moments: (F, P, C)."""
        joined = np.concatenate(self._parts) if len(self._parts) > 1 else self._parts[0]
        return np.asarray(joined[moments - self.first])


def read_windows(
    sources: Sequence[Source],
    grid: Grid,
    spec: CacheSpec,
    encoder: Encoder,
    classify: Classify,
    events: Sequence[bool],
    *,
    block: int = 0,
    restart: Sequence[int] = (),
    idle: float = 10.0,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[WindowBlock]:
    """Yield the blocks of windows from number ``block`` on. ``restart``: as that block's predecessor gave it.

    ``events``: of the classes, those that can be bouts. ``idle``: seconds without data after which a camera that is still filming
    is at its end. ``stopped``: called while such a camera sends nothing; True ends it. Raises VideoError: a camera cannot be
    decoded.
    """
    begins = tuple(restart) or (grid.first,) * len(sources)
    every = max(1, round(grid.rate / 2))
    with contextlib.ExitStack() as open_:
        streams = [
            open_.enter_context(CameraStream(source, spec, grid.rate, begin, grid.last, idle, stopped))
            for source, begin in zip(sources, begins, strict=True)
        ]
        cameras = [Camera(stream, encoder, spec.embedding_dtype, every) for stream in streams]
        while True:
            starts = grid.starts(block)
            needed = starts[-1] + max(grid.lengths)
            for camera in cameras:
                while not camera.ended and camera.stop < needed:
                    camera.advance()
            end = min(camera.stop for camera in cameras)
            if starts[0] + min(grid.lengths) > end:
                return
            made = _classify_block(cameras, starts, end, grid, spec, classify, np.array(events))
            left = tuple(camera.drop(starts[-1] + grid.hop) for camera in cameras)
            # Those that no earlier block had, whatever is decoded again after an interruption.
            seen = starts[0] + max(grid.lengths) if block else 0
            pictures = [
                (k, *one) for k, camera in enumerate(cameras) for one in camera.take_pictures(needed + grid.hop)
            ]
            yield WindowBlock(block, *made, left, tuple(one for one in pictures if one[1] >= seen))
            block += 1


def _classify_block(
    cameras: Sequence[Camera],
    starts: Sequence[int],
    end: int,
    grid: Grid,
    spec: CacheSpec,
    classify: Classify,
    events_K: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Classify windows of the middle length first, and those of all lengths only where one of them may be an event."""
    S, L, K, V = len(starts), len(grid.lengths), len(events_K), len(cameras)
    arrays = [np.full(shape, np.nan) for shape in ((S, L, K), (S, L), (S, L, V))]

    def fill(wanted_SL: np.ndarray) -> None:
        for k, length in enumerate(grid.lengths):
            used = [s for s in np.flatnonzero(wanted_SL[:, k]).tolist() if starts[s] + length <= end]
            if used:
                picked = segment_centres(length, spec.frames) if length > spec.frames else np.arange(length)
                x_NVFPC = np.stack([[camera.window(starts[s] + picked) for camera in cameras] for s in used])
                for array, values in zip(arrays, classify(x_NVFPC), strict=True):
                    array[used, k] = values

    first_SL = np.zeros((S, L), bool)
    first_SL[::STEP, L // 2] = True
    fill(first_SL)
    p_SK = arrays[0][:, L // 2]
    most_S = p_SK[:, events_K].max(1, initial=0.0)
    rest_S = p_SK[:, ~events_K].max(1, initial=0.0)
    promising_S = ~(most_S < PROMISING * rest_S)  # also what is not known
    promising_S[np.setdiff1d(np.arange(S), np.arange(0, S, STEP))] = False
    near_S = [promising_S[max(0, s - REACH) : s + REACH + 1].any() for s in range(S)]
    fill(np.array(near_S)[:, None] & ~first_SL)
    return arrays[0], arrays[1], arrays[2]


def plan_grid(extents: Sequence[tuple[float, float]], lengths: Sequence[float], frames: int, hop: float) -> Grid:
    """Return the grid of the common time of all cameras, for windows of ``lengths`` seconds, ``hop`` seconds apart.

    ``frames``: of a clip. A window of the middle length has :data:`DENSITY` times that number of moments.
    """
    rate = float(max(1, round(DENSITY * frames / float(np.median(lengths)))))
    begin, end = max(extent[0] for extent in extents), min(extent[1] for extent in extents)
    moments = tuple(sorted({max(2, round(length * rate)) for length in lengths}))
    last = math.ceil(end * rate - 1e-6) - 1 if math.isfinite(end) else 1 << 40
    return Grid(rate, math.ceil(begin * rate - 1e-6), last, moments, max(1, round(hop * rate)))
