"""From windows to bouts: the set of windows without overlap that is most likely as a whole.

A window is an event if its class is more likely than all else. Windows of all lengths compete, so a bout gets the
start and the length at which its class is surest. Bouts are decided one block after the other, once later windows cannot change
them.
Letters: S starts, L lengths, K classes, V cameras.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dtsf.recordings.windows import BLOCK, Grid, WindowBlock
from dtsf.settings import Frozen

LEAST = 1e-9  # smallest probability, before its logarithm
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
    """Weight of each camera in the fusion."""


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
    """Bouts of one recording between ``start`` and ``stop``, the time that all cameras share."""

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


@dataclass
class BoutFinder:
    """Finds bouts in the windows of one recording as they come. ``names``: of the K classes."""

    names: Sequence[str]
    grid: Grid
    options: BoutOptions
    _blocks: list[WindowBlock] = field(default_factory=list, init=False)
    _begin: int = field(default=0, init=False)  # first moment of which nothing is decided
    _last: Bout | None = field(default=None, init=False)  # it may still be joined with the next one

    def add(self, block: WindowBlock) -> list[Bout]:
        """Take the next block. Return the bouts that are certain now, in order."""
        self._blocks.append(block)
        certain = self.grid.starts(block.number)[-1] - HORIZON * max(self.grid.lengths)
        return self._decide(certain)

    def finish(self) -> list[Bout]:
        """Return the other bouts: there is no further block."""
        bouts = self._decide(None)
        return [*bouts, *self._take(None)]

    def _decide(self, certain: int | None) -> list[Bout]:
        blocks, lengths = self._blocks, self.grid.lengths
        if not blocks:
            return []
        starts = [start for block in blocks for start in self.grid.starts(block.number)]
        events_K = np.array([name not in self.options.no_event for name in self.names])
        label_SL, odds_SL = _log_odds(np.concatenate([block.probabilities_SLK for block in blocks]), events_K)
        gain_SL = odds_SL - np.log(self.options.threshold / (1 - self.options.threshold))
        bouts: list[Bout] = []
        begin = self._begin if certain is None else max(self._begin, certain)
        for s, n in _best_windows(gain_SL, starts, lengths, self._begin):
            if certain is not None and starts[s] + lengths[n] > certain:
                begin = min(begin, starts[s])
                break
            block, k = blocks[s // BLOCK], s % BLOCK
            start = _centre(starts, (gain_SL[:, n] > 0) & (label_SL[:, n] == label_SL[s, n]), s, lengths[n] / 2)
            bouts += self._take(
                Bout(
                    label=self.names[label_SL[s, n]],
                    start=start / self.grid.rate,
                    stop=(start + lengths[n]) / self.grid.rate,
                    probability=float(block.probabilities_SLK[k, n, label_SL[s, n]]),
                    uncertainty=float(block.uncertainty_SL[k, n]),
                    view_weights=tuple(block.weights_SLV[k, n].tolist()),
                )
            )
        self._begin = begin
        # Two starts before the first that counts, for the average over neighbours.
        while blocks and self.grid.starts(blocks[0].number)[-1] < begin - 2 * self.grid.hop:
            del blocks[0]
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


def _log_odds(probability_SLK: np.ndarray, events_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the likeliest event of each window, (S, L), and its log odds; -inf for windows that do not exist.

    Logarithms of probabilities are averaged over a start and its neighbours.
    """
    log_SLK = np.log(probability_SLK.clip(LEAST, 1))
    padded_SLK = np.pad(log_SLK, ((1, 1), (0, 0), (0, 0)), constant_values=np.nan)
    near = np.stack([padded_SLK[:-2], log_SLK, padded_SLK[2:]])
    mean_SLK = np.nansum(near, 0) / np.maximum(1, np.isfinite(near).sum(0))
    # The geometric mean is not divided by its sum: where neighbours disagree, no class is likely.
    label_SL = np.flatnonzero(events_K)[mean_SLK[..., events_K].argmax(-1)]
    event_SL = np.exp(np.take_along_axis(mean_SLK, label_SL[..., None], -1)[..., 0]).clip(LEAST, 1 - LEAST)
    return label_SL, np.where(np.isfinite(log_SLK[..., 0]), np.log(event_SL / (1 - event_SL)), -np.inf)


def _best_windows(
    gain_SL: np.ndarray, starts: Sequence[int], lengths: Sequence[int], begin: int
) -> list[tuple[int, int]]:
    """Return the windows without overlap that have the largest sum of gains, in order: numbers of start and length."""
    number = {start: s for s, start in enumerate(starts) if start >= begin}
    if not number:
        return []
    first = min(number)
    total = np.zeros(starts[-1] + max(lengths) - first + 1)
    chosen: list[tuple[int, int] | None] = [None] * len(total)
    for t in range(1, len(total)):
        total[t] = total[t - 1]
        for n, length in enumerate(lengths):
            s = number.get(first + t - length)
            if s is not None and gain_SL[s, n] > 0 and total[t - length] + gain_SL[s, n] > total[t]:
                total[t] = total[t - length] + gain_SL[s, n]
                chosen[t] = (s, n)
    windows = []
    t = len(total) - 1
    while t > 0:
        window = chosen[t]
        if window is None:
            t -= 1
        else:
            windows.append(window)
            t -= lengths[window[1]]
    return windows[::-1]


def _centre(starts: Sequence[int], alike_S: np.ndarray, s: int, reach: float) -> float:
    """Return the middle of the starts around number ``s``, at most ``reach`` moments away, whose windows have the same class.

    A network knows an event also by a part of it, so the surest window is not always in the middle of the event.
    """
    first = last = s
    while first > 0 and alike_S[first - 1] and starts[s] - starts[first - 1] <= reach:
        first -= 1
    while last + 1 < len(starts) and alike_S[last + 1] and starts[last + 1] - starts[s] <= reach:
        last += 1
    return (starts[first] + starts[last]) / 2


def _joined(a: Bout, b: Bout) -> Bout:
    share = (b.stop - b.start) / (a.stop - a.start + b.stop - b.start)
    mean = {name: (1 - share) * getattr(a, name) + share * getattr(b, name) for name in ("probability", "uncertainty")}
    weights = tuple((1 - share) * x + share * y for x, y in zip(a.view_weights, b.view_weights, strict=True))
    return a.model_copy(update={"stop": b.stop, "view_weights": weights, **mean})
