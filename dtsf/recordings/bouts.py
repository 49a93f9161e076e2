"""From windows to bouts: the set of windows without overlap that is most likely as a whole.

A movement from rest to rest is one window. Where windows slide, those of all starts and lengths compete, so a bout gets the
start and the length at which its class is surest. Bouts are decided one block after the other, once later windows cannot change
them.
Letters: N windows, K classes, V cameras.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dtsf.recordings.needed import LEAST
from dtsf.recordings.windows import Grid, WindowBlock
from dtsf.settings import Frozen

HORIZON = 3  # longest windows behind the last start after which a bout is certain


class Bout(Frozen):
    """One event that was found. Times are seconds of the recording's clock."""

    label: str
    start: float
    stop: float
    probability: float
    uncertainty: float
    """Vacuity K / S in (0, 1]; 1 means no evidence."""
    view_weights: tuple[float, ...]
    """Weight of each camera in the fusion; 0 for one that was not read."""
    opened: tuple[str, ...] = ()
    """Cameras that the bout was read from."""


class Curve(Frozen):
    """Means over the windows at each time: probability of the likeliest event, its class, and the uncertainty."""

    times: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()
    probability: tuple[float, ...] = ()
    uncertainty: tuple[float, ...] = ()


class MediaFile(Frozen):
    """One file of a camera. Its seconds 0 and last are ``start`` and ``stop`` of the recording's clock."""

    path: str
    start: float
    stop: float


class Media(Frozen):
    """Camera of a recording. ``offset``: seconds that it began after time zero of the recording."""

    view: str
    offset: float
    files: tuple[MediaFile, ...]


class Timeline(Frozen):
    """Bouts of one recording between ``start`` and ``stop``, the time that at least one camera films."""

    recording: str
    subject: str | None
    views: tuple[str, ...]
    start: float
    stop: float
    bouts: tuple[Bout, ...]
    classes: tuple[str, ...] = ()
    """Classes of the run that can be bouts."""
    notes: tuple[str, ...] = ()
    windows: tuple[float, ...] = ()
    """Lengths of the windows in seconds."""
    media: tuple[Media, ...] = ()
    curve: Curve = Curve()
    decoded: tuple[float, ...] = ()
    """Share of what each camera films that was decoded; empty where all was."""
    trusted: float | None = None
    """Probability above which 95 % of the held-out answers of the run are right; a bout below it needs a look."""


@dataclass(frozen=True)
class BoutOptions:
    """Rules by which windows become bouts. ``threshold``: probability of a bout. ``shortest``: seconds of a bout, below which it is
    dropped. ``gap``: seconds between two of one class, below which they are joined. ``no_event``: classes that are no bouts.
    """

    threshold: float
    shortest: float
    gap: float
    no_event: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Windows:
    """Windows that are not decided yet, sorted by their starts."""

    spans_N2: np.ndarray
    probabilities_NK: np.ndarray
    uncertainty_N: np.ndarray
    weights_NV: np.ndarray
    opened_NV: np.ndarray

    def choose(self, wanted_N: np.ndarray) -> _Windows:
        return _Windows(*(array[wanted_N] for array in vars(self).values()))

    def joined(self, other: _Windows) -> _Windows:
        return _Windows(*(np.concatenate(pair) for pair in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass
class BoutFinder:
    """Finds bouts in the windows of one recording as they come. ``names``: of the K classes. ``views``: of the cameras."""

    names: Sequence[str]
    views: Sequence[str]
    grid: Grid
    options: BoutOptions
    _windows: _Windows | None = field(default=None, init=False)
    _begin: int = field(default=0, init=False)  # first moment of which nothing is decided
    _last: Bout | None = field(default=None, init=False)  # it may still be joined with the next one

    def add(self, block: WindowBlock) -> list[Bout]:
        """Take the next block. Return the bouts that are certain now, in order."""
        more = _Windows(block.spans_N2, block.probabilities_NK, block.uncertainty_N, block.weights_NV, block.opened_NV)
        if len(block.spans_N2):
            more = more.choose(np.lexsort(more.spans_N2.T[::-1]))
            self._windows = more if self._windows is None else self._windows.joined(more)
        return self._decide(block.end if block.rest else block.end - HORIZON * max(self.grid.lengths))

    def finish(self) -> list[Bout]:
        """Return the other bouts: there is no further block."""
        bouts = self._decide(None)
        return [*bouts, *self._take(None)]

    def _decide(self, certain: int | None) -> list[Bout]:
        windows = self._windows
        if windows is None:
            return []
        events_K = np.array([name not in self.options.no_event for name in self.names])
        near = _Neighbours(windows.spans_N2, self.grid.hop)
        label_N, odds_N = near.log_odds(windows.probabilities_NK, events_K)
        gain_N = odds_N - np.log(self.options.threshold / (1 - self.options.threshold))
        bouts: list[Bout] = []
        begin = self._begin if certain is None else max(self._begin, certain)
        for n in _best_windows(gain_N, windows.spans_N2, self._begin):
            start, stop = windows.spans_N2[n].tolist()
            if certain is not None and stop > certain:
                begin = min(begin, start)
                break
            shift = near.shift(n, (gain_N > 0) & (label_N == label_N[n]))
            bouts += self._take(
                Bout(
                    label=self.names[label_N[n]],
                    start=(start + shift) / self.grid.rate,
                    stop=(stop + shift) / self.grid.rate,
                    probability=float(windows.probabilities_NK[n, label_N[n]]),
                    uncertainty=float(windows.uncertainty_N[n]),
                    view_weights=tuple(windows.weights_NV[n].tolist()),
                    opened=tuple(np.compress(windows.opened_NV[n] > 0, self.views).tolist()),
                )
            )
        self._begin = begin
        # Two starts before the first that counts, for the average over neighbours.
        self._windows = windows.choose(windows.spans_N2[:, 0] >= begin - 2 * self.grid.hop)
        return bouts

    def _take(self, bout: Bout | None) -> list[Bout]:
        """Join a bout with the one before it, or return that one: nothing can be joined with it any more."""
        last, options = self._last, self.options
        if last is not None and bout is not None and bout.start < last.stop:
            middle = (bout.start + last.stop) / 2
            last, bout = last.model_copy(update={"stop": middle}), bout.model_copy(update={"start": middle})
        if last is not None and bout is not None and bout.label == last.label and bout.start - last.stop < options.gap:
            self._last = _joined(last, bout)
            return []
        self._last = bout
        return [last] if last is not None and last.stop - last.start >= options.shortest else []


class _Neighbours:
    """Windows of the same length that start a little before and after. A movement has none."""

    def __init__(self, spans_N2: np.ndarray, hop: int) -> None:
        self._spans, self._hop = [(start, stop) for start, stop in spans_N2.tolist()], hop
        self._number = {span: n for n, span in enumerate(self._spans)}

    def at(self, n: int, hops: int) -> int | None:
        """Return the number of the window ``hops`` behind number ``n``, if there is one."""
        return self._number.get((self._spans[n][0] + hops * self._hop, self._spans[n][1] + hops * self._hop))

    def log_odds(self, p_NK: np.ndarray, events_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the likeliest event of each window, (N,), and its log odds.

        Logarithms of probabilities are averaged over a window and its neighbours. The geometric mean is not divided by its sum:
        where neighbours disagree, no class is likely.
        """
        log_NK = np.log(p_NK.clip(LEAST, 1))
        near = [[k for hops in (-1, 0, 1) if (k := self.at(n, hops)) is not None] for n in range(len(p_NK))]
        mean_NK = np.array([log_NK[some].mean(0) for some in near]).reshape(p_NK.shape)
        label_N = np.flatnonzero(events_K)[mean_NK[:, events_K].argmax(1)]
        event_N = np.exp(mean_NK[np.arange(len(p_NK)), label_N]).clip(LEAST, 1 - LEAST)
        return label_N, np.log(event_N / (1 - event_N))

    def shift(self, n: int, alike_N: np.ndarray) -> float:
        """Return the moments from window ``n`` to the middle of those around it of the same class, at most half of it away.

        A network knows an event also by a part of it, so the surest window is not always in the middle of the event.
        """
        reach = (self._spans[n][1] - self._spans[n][0]) / 2
        ends = []
        for side in (-1, 1):
            hops = 0
            while (k := self.at(n, hops + side)) is not None and alike_N[k] and abs(hops + side) * self._hop <= reach:
                hops += side
            ends.append(hops)
        return sum(ends) * self._hop / 2


def _best_windows(gain_N: np.ndarray, spans_N2: np.ndarray, begin: int) -> list[int]:
    """Return the numbers of the windows without overlap from ``begin`` on that have the largest sum of gains, in order."""
    usable = np.flatnonzero((gain_N > 0) & (spans_N2[:, 0] >= begin))
    usable = usable[np.argsort(spans_N2[usable, 1], kind="stable")]
    stops = spans_N2[usable, 1]
    # Of the first k windows by their stops: the best sum, and whether the last of them is in it.
    total, taken = np.zeros(len(usable) + 1), np.zeros(len(usable) + 1, bool)
    before = np.searchsorted(stops, spans_N2[usable, 0], "right")
    for k, n in enumerate(usable, 1):
        with_it = total[min(before[k - 1], k - 1)] + gain_N[n]
        taken[k] = with_it > total[k - 1]
        total[k] = max(with_it, total[k - 1])
    chosen, k = [], len(usable)
    while k:
        if taken[k]:
            chosen.append(int(usable[k - 1]))
            k = min(int(before[k - 1]), k - 1)
        else:
            k -= 1
    return chosen[::-1]


def _joined(a: Bout, b: Bout) -> Bout:
    share = (b.stop - b.start) / (a.stop - a.start + b.stop - b.start)
    mean = {name: (1 - share) * getattr(a, name) + share * getattr(b, name) for name in ("probability", "uncertainty")}
    weights = tuple((1 - share) * x + share * y for x, y in zip(a.view_weights, b.view_weights, strict=True))
    opened = tuple(dict.fromkeys((*a.opened, *b.opened)))
    return a.model_copy(update={"stop": b.stop, "view_weights": weights, "opened": opened, **mean})
