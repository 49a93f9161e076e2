"""Windows of a recording, classified one block after the other: its movements from rest to rest, each as one window.

Where people never rest, and where a movement is longer than any event, windows of usual lengths slide instead.
Every camera is decoded once, and every frame on the grid is embedded once, however many windows it is in. Memory is bounded: a
block ends in a rest, or a little before what is read. Each block knows from which moments its cameras can be read again.
Letters: N windows, V cameras, T moments, F frames, P cells, C channels, K classes.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dtsf.cache.schema import CacheSpec
from dtsf.recordings.cameras import CameraStream, EmbeddedCamera, Source
from dtsf.recordings.movements import JOINED, find_movements, rest_level, strength
from dtsf.recordings.needed import AsNeeded, Classify, OpenCameras, Span, answer_movements

if TYPE_CHECKING:
    from dtsf.pipeline.encoders.choose import Encoder

DENSITY = 1.25  # moments of a window of the middle length over the frames of a clip
FIRST, KNOWN = (
    20.0,
    300.0,
)  # seconds that are read before the first decision, and over which the level of a rest is found
# People come to rest slowly: events end before their movements. So a movement is read nine times, with these edges, and the answers
# are averaged; its bout has the middle ones. Shares of a usual event.
STARTS, STOPS = (-0.05, 0.0, 0.05), (-0.2, -0.1, 0.0)


@dataclass(frozen=True)
class Grid:
    """Moments and windows of a recording. Moment ``k`` is at ``k / rate`` seconds of the recording's clock."""

    rate: float
    first: int  # first and last moment that a camera films
    last: int
    lengths: tuple[int, ...]  # of the windows, in moments
    hop: int  # moments from the start of one window to the next
    longest: int = 0  # moments of the longest movement that can be one event; 0: windows slide everywhere

    @property
    def usual(self) -> int:
        """Moments of a usual event."""
        return self.lengths[len(self.lengths) // 2]


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
    """Windows that start in the moments ``begin`` to ``end``. ``rest``: none of them reaches into the next block."""

    number: int
    begin: int
    end: int
    rest: bool
    spans_N2: np.ndarray  # first moment, and the one behind the last
    probabilities_NK: np.ndarray
    uncertainty_N: np.ndarray
    weights_NV: np.ndarray
    moved_VT: np.ndarray  # how much moves; NaN where a camera does not film
    # For each camera that is read in any case, the moment from which the next block can be made.
    restart: tuple[int, ...]
    opened_NV: np.ndarray  # 1 for the cameras that a window was read from
    read: tuple[int, ...]  # moments of each camera that were embedded for this block
    pictures: tuple[tuple[int, int, np.ndarray], ...] = ()  # (camera, moment, frame): new pictures, about two a second
    damaged: tuple[tuple[int, int], ...] = ()  # (camera, moment) of damaged frames


@dataclass(frozen=True)
class Resume:
    """Place where the windows go on: as the last block gave it. ``moved_VT``: of the moments before."""

    number: int = 0
    begin: int = 0
    restart: tuple[int, ...] = ()
    moved_VT: np.ndarray | None = None


def read_windows(
    sources: Sequence[Source],
    grid: Grid,
    spec: CacheSpec,
    encoder: Encoder,
    classify: Classify,
    *,
    needed: AsNeeded | None = None,
    resume: Resume | None = None,
    idle: float = 10.0,
    stopped: Callable[[], bool] = lambda: False,
) -> Generator[WindowBlock]:
    """Yield the blocks of windows. ``needed``: when a camera is opened; default: all are read. ``resume``: behind a block that is
    there.

    ``idle``: seconds without data after which a camera that is still filming is at its end. ``stopped``: called while such a camera
    sends nothing; True ends it. Raises VideoError: a camera cannot be decoded.
    """
    resume = resume or Resume(begin=grid.first)
    leads = needed.leads() if needed else [(k, grid.first, grid.last) for k in range(len(sources))]
    begins = resume.restart or tuple(first for _, first, _ in leads)
    every = max(1, round(grid.rate / 2))
    number, begin, known = resume.number, resume.begin, round(KNOWN * grid.rate)
    before_VT = np.zeros((len(sources), 0)) if resume.moved_VT is None else resume.moved_VT
    # What is read beyond the begin of a block: more than a chain of movements with the rests around it.
    ahead = max(2 * grid.longest, *grid.lengths) + math.ceil(3 * JOINED * grid.usual) + grid.usual
    with contextlib.ExitStack() as open_:

        def open_stream(k: int, ranges: Sequence[tuple[int, int]]) -> CameraStream:
            return open_.enter_context(CameraStream(sources[k], spec, grid.rate, ranges, idle, stopped))

        def embed(stream: CameraStream) -> EmbeddedCamera:
            return EmbeddedCamera(stream, encoder, spec.embedding_dtype, every)

        cameras = OpenCameras(len(sources), needed, open_stream, embed)
        for (k, _, last), first in zip(leads, begins, strict=True):
            cameras.leads.append((k, embed(open_stream(k, [(first, last)]))))
        while True:
            end = max(begin + ahead, grid.first + round(FIRST * grid.rate) if grid.longest else 0)
            for _, camera in cameras.leads:
                while not camera.ended and camera.stop < end:
                    camera.advance()
            final = all(camera.ended for _, camera in cameras.leads)
            end = max(begin, *(camera.stop for _, camera in cameras.leads)) if final else end
            before_VT = before_VT[:, -known:]
            moved_VT = np.full((len(sources), end - begin), np.nan)
            for k, camera in cameras.leads:
                moved_VT[k] = np.fmax(moved_VT[k], camera.moved(begin, end))
            found = _plan_block(np.concatenate([before_VT, moved_VT], 1), begin, end, grid, final=final)
            answers = answer_movements(_readings(found, grid), cameras, spec.frames, classify)
            last = final and found.end >= end
            left = tuple(
                max(first, camera.drop(found.end - grid.usual))
                for (_, first, _), (_, camera) in zip(leads, cameras.leads, strict=True)
            )
            pictures = tuple(
                (k, *one) for k, camera in cameras.leads for one in camera.take_pictures(found.end) if one[0] >= begin
            )
            damaged = [
                (k, one) for k, camera in cameras.leads for one in camera.take_damaged(found.end) if one >= begin
            ]
            moved_VT = moved_VT[:, : found.end - begin]
            read_V = np.isfinite(moved_VT).sum(1)
            for k, part in cameras.further:
                read_V[k] += part.stop - part.first
                damaged += [(k, moment) for moment in part.take_damaged(part.stop)]
            cameras.further.clear()
            spans_N2, p_NK, u_N, w_NV, opened_NV = (
                map(np.array, zip(*answers, strict=True)) if answers else [np.zeros(0)] * 5
            )
            arrays = spans_N2.reshape(-1, 2).astype(int), p_NK, u_N, w_NV, moved_VT
            read = tuple(read_V.tolist())
            yield WindowBlock(
                number, begin, found.end, found.rest, *arrays, left, opened_NV, read, pictures, tuple(damaged)
            )
            if last:
                return
            before_VT = np.concatenate([before_VT, moved_VT], 1)
            number, begin = number + 1, found.end


@dataclass(frozen=True)
class _BlockPlan:
    end: int
    rest: bool
    movements: list[tuple[int, int]]
    windows: list[tuple[int, int]]


def _plan_block(moved_VT: np.ndarray, begin: int, end: int, grid: Grid, *, final: bool) -> _BlockPlan:
    """Return the movements and windows that start from ``begin`` on, if they are known before ``end``."""

    def sliding(start: int, stop: int) -> list[tuple[int, int]]:
        first = start + (grid.first - start) % grid.hop
        return [(k, k + length) for k in range(first, stop, grid.hop) for length in grid.lengths if k + length <= end]

    strength_T = strength(moved_VT)
    level = rest_level(strength_T, grid.usual) if grid.longest else None
    if level is None:
        stop = end if final else end - max(grid.lengths)
        return _BlockPlan(stop, False, [], sliding(begin, stop))
    joined = math.ceil(JOINED * grid.usual)
    chains: list[list[tuple[int, int]]] = []
    for start, stop in find_movements(strength_T[-(end - begin) :], level, grid.usual):
        start, stop = begin + start, begin + stop
        if chains and start - chains[-1][-1][1] <= joined and stop - chains[-1][0][0] <= 2 * grid.longest:
            chains[-1].append((start, stop))
        else:
            chains.append([(start, stop)])
    movements, windows = [], []
    at = end - (0 if final else joined)  # where the block ends
    for chain in chains:
        first = chain[0][0]
        if final or chain[-1][1] + joined <= end:
            for k, (start, stop) in enumerate(chain):
                movements += [(start, last) for _, last in chain[k:] if last - start <= grid.longest]
                if stop - start > grid.longest:
                    windows += sliding(start, stop - min(grid.lengths) + 1)
        elif end - first <= 2 * grid.longest + joined:
            at = min(at, max(begin + 1, first - joined // 2))
        else:
            at = end - max(grid.lengths)
            windows += sliding(first, at)
    return _BlockPlan(at, not windows or windows[-1][1] <= at, movements, windows)


def _readings(found: _BlockPlan, grid: Grid) -> list[list[Span]]:
    """Return the spans that each movement and window is read with; the middle one is that of its bout."""
    starts, stops = ([round(edge * grid.usual) for edge in edges] for edges in (STARTS, STOPS))
    movements = [[(a + start, b + stop) for a in starts for b in stops] for start, stop in found.movements]
    return movements + [[span] for span in found.windows]


def plan_grid(
    extents: Sequence[tuple[float, float]], lengths: Sequence[float], frames: int, hop: float, longest: float = 0.0
) -> Grid:
    """Return the grid of the time that at least one camera films, for windows of ``lengths`` seconds, ``hop`` seconds apart.

    ``frames``: of a clip. A window of the middle length has :data:`DENSITY` times that number of moments. ``longest``: seconds of
    the longest movement that can be one event; 0: windows slide everywhere.
    """
    rate = float(max(1, round(DENSITY * frames / float(np.median(lengths)))))
    begin, end = min(extent[0] for extent in extents), max(extent[1] for extent in extents)
    moments = tuple(sorted({max(2, round(length * rate)) for length in lengths}))
    last = math.ceil(end * rate - 1e-6) - 1 if math.isfinite(end) else 1 << 40
    hop_moments = max(1, round(hop * rate))
    return Grid(rate, math.ceil(begin * rate - 1e-6), last, moments, hop_moments, round(longest * rate))
