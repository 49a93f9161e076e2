"""Answers to the movements of a block: by all cameras, or by as many as the answers need.

As needed, one camera is read all the time, and movements are found in its pictures. The others are read where an answer is not
sure.
Letters: N windows, V cameras, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from dtsf.recordings.cameras import COVERED, CameraStream, EmbeddedCamera

TOGETHER = 32  # windows that are classified together
LEAST = 1e-9  # smallest probability, before its logarithm
Span = tuple[int, int]  # first moment, and the one behind the last
Range = tuple[int, int]  # first and last moment
Classify = Callable[[np.ndarray, tuple[int, ...]], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""(N, V, F, P, C) embeddings of these cameras -> (N, K) probabilities, (N,) uncertainty, (N, V) weights of the cameras."""


@dataclass(frozen=True)
class AsNeeded:
    """Rule by which cameras are opened. ``order``: from the camera that is most often right. ``limit``: uncertainty of a movement
    above which the next one is opened. ``films``: moments of each camera.
    """

    order: tuple[int, ...]
    limit: float
    films: tuple[Span, ...]

    def leads(self) -> list[tuple[int, int, int]]:
        """Return (camera, first moment, last moment) of what is read in any case: at each time the first camera that films."""
        found = []
        free = [(min(start for start, _ in self.films), max(stop for _, stop in self.films))]
        for k in self.order:
            start, stop = self.films[k]
            common = [(max(start, a), min(stop, b)) for a, b in free]
            found += [(k, a, b - 1) for a, b in common if a < b]
            sides = [side for a, b in free for side in ((a, min(b, start)), (max(a, stop), b))]
            free = [(a, b) for a, b in sides if a < b]
        return found

    def turns(self, spans: Sequence[Span]) -> list[int]:
        """Return the cameras that film one of these spans, in their order."""

        def films(k: int, start: int, stop: int) -> bool:
            return min(stop, self.films[k][1]) - max(start, self.films[k][0]) >= COVERED * (stop - start)

        return [k for k in self.order if any(films(k, *span) for span in spans)]

    def shares(self, read: Sequence[int]) -> tuple[float, ...]:
        """Return the shares of the cameras' moments that these numbers are. What is read twice counts once."""
        return tuple(min(1.0, n / max(1, stop - start)) for n, (start, stop) in zip(read, self.films, strict=True))


@dataclass
class OpenCameras:
    """Cameras of a recording. ``leads``: those that are read all the time, by their numbers. ``further``: what of other cameras was
    read for this block; the process of such a camera is started when it is first wanted.
    """

    n_cameras: int
    needed: AsNeeded | None
    open: Callable[[int, Sequence[Range]], CameraStream]
    embed: Callable[[CameraStream], EmbeddedCamera]
    leads: list[tuple[int, EmbeddedCamera]] = field(default_factory=list)
    further: list[tuple[int, EmbeddedCamera]] = field(default_factory=list)
    _streams: dict[int, CameraStream] = field(default_factory=dict)

    def filming(self, span: Span, cameras: Sequence[int]) -> dict[int, EmbeddedCamera]:
        """Return what is read of those of these cameras that film nearly all of a span."""
        parts = (*self.further, *self.leads)
        return {k: part for k, part in sorted(parts, key=lambda one: one[0]) if k in cameras and part.films(*span)}

    def read(self, wanted: Mapping[int, Sequence[Span]]) -> None:
        """Read these spans of each camera. Spans that overlap are one range, which is cut into stretches."""
        asked: dict[int, list[Range]] = {}
        for k, spans in wanted.items():
            ranges = asked.setdefault(k, [])
            for start, stop in sorted(spans):
                if ranges and start <= ranges[-1][1] + 1:
                    ranges[-1] = ranges[-1][0], max(stop - 1, ranges[-1][1])
                else:
                    ranges.append((start, stop - 1))
            # All cameras decode while the first one is embedded.
            if k in self._streams:
                self._streams[k].ask(ranges)
            else:
                self._streams[k] = self.open(k, ranges)
        for k, ranges in asked.items():
            for _ in ranges:
                part = self.embed(self._streams[k])
                while not part.ended:
                    part.advance()
                self.further.append((k, part))


class Answer(NamedTuple):
    """Mean answer to the readings of a movement. ``span``: the middle one. ``opened_V``: 1 for the cameras that it rests on."""

    span: Span
    probability_K: np.ndarray
    uncertainty: float
    weight_V: np.ndarray
    opened_V: np.ndarray


def answer_movements(
    movements: Sequence[Sequence[Span]], cameras: OpenCameras, n_frames: int, classify: Classify
) -> list[Answer]:
    """Return the answers to the movements of a block that a camera films, each given by its readings."""
    needed = cameras.needed
    turns = [needed.turns(spans) if needed else list(range(cameras.n_cameras)) for spans in movements]
    answers: dict[int, Answer] = {}
    todo, n_open = [n for n, order in enumerate(turns) if order], cameras.n_cameras if needed is None else 1
    while todo:
        missing: dict[int, list[Span]] = {}
        for n in todo if needed else ():
            k, span = turns[n][n_open - 1], (min(movements[n])[0], max(stop for _, stop in movements[n]))
            if not cameras.filming(span, [k]):
                missing.setdefault(k, []).append(span)
        cameras.read(missing)
        asked = [(movements[n], turns[n][:n_open]) for n in todo]
        for n, answer in zip(todo, _classify_movements(asked, cameras, n_frames, classify), strict=True):
            answers |= {n: answer} if answer else {}
        sure = {n for n, answer in answers.items() if needed is None or answer.uncertainty <= needed.limit}
        todo = [n for n in todo if n not in sure and len(turns[n]) > n_open]
        n_open += 1
    return [answers[n] for n in sorted(answers)]


def _classify_movements(
    asked: Sequence[tuple[Sequence[Span], Sequence[int]]], cameras: OpenCameras, n_frames: int, classify: Classify
) -> list[Answer | None]:
    """Return the mean answer to the readings of each movement by those of its cameras that film them; None where none does."""
    spans = [span for readings, _ in asked for span in readings]
    films = [cameras.filming(span, opened) for readings, opened in asked for span in readings]
    p_NK: dict[int, np.ndarray] = {}
    u_N, w_NV, opened_NV = np.zeros(len(spans)), *np.zeros((2, len(spans), cameras.n_cameras))
    for given in sorted({tuple(who) for who in films if who}):
        of_given = [n for n, who in enumerate(films) if tuple(who) == given]
        for k in range(0, len(of_given), TOGETHER):
            some = of_given[k : k + TOGETHER]
            x_NVFPC = np.stack([[films[n][v].window(*spans[n], n_frames) for v in given] for n in some])
            p_MK, u_N[some], w_NV[np.ix_(some, given)] = classify(x_NVFPC, given)
            opened_NV[np.ix_(some, given)] = 1
            p_NK |= zip(some, p_MK.astype(np.float64), strict=True)
    answers: list[Answer | None] = []
    stop = 0
    for readings, _ in asked:
        start, stop = stop, stop + len(readings)
        there = [n for n in range(start, stop) if n in p_NK]
        if not there:
            answers.append(None)
            continue
        # Of equal weight are the logarithms.
        mean_K = np.exp(np.log(np.stack([p_NK[n] for n in there]).clip(LEAST, 1)).mean(0))
        means = float(u_N[there].mean()), w_NV[there].mean(0), opened_NV[there].max(0)
        answers.append(Answer(readings[len(readings) // 2], mean_K / mean_K.sum(), *means))
    return answers
