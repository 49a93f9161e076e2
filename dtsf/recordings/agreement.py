"""Agreement of two tracks at every shift: their correlation over the time that both cover."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dtsf.recordings.tracks import RATE

MIN_OVERLAP = 10.0  # seconds that two cameras must share
STRONGEST_SECONDS = 1.0  # least part of an agreement that is not counted
SAFE_SECONDS = 20.0  # common time up to which no more than this part is left out


class Curve(NamedTuple):
    """Agreement of two tracks. ``score``: at shifts of the second track from ``first`` values on. 0: they share too little."""

    first: int
    score: np.ndarray
    seconds: np.ndarray
    tracks: tuple[np.ndarray, np.ndarray]

    def at(self, shifts: np.ndarray) -> np.ndarray:
        """Return the score at any shifts, 0 outside."""
        inside = (shifts >= self.first) & (shifts < self.first + len(self.score))
        return np.where(inside, self.score[np.clip(shifts - self.first, 0, len(self.score) - 1)], 0.0)

    def without_strongest(self, shift: int, share: float) -> float:
        """Return the score at a shift without the second that agrees most, or, if this is longer, without ``share`` of the common
        time beyond :data:`SAFE_SECONDS`.
        """
        score = float(self.at(np.array(shift)))
        if score <= 0:
            return score
        a, b = (_standard(part) for part in overlap(*self.tracks, shift))
        agreement = np.cumsum(np.pad((a * b).mean(0), (1, 0)))
        n = max(int(STRONGEST_SECONDS * RATE), int(share * (a.shape[1] - SAFE_SECONDS * RATE)))
        share = 1 - (agreement[n:] - agreement[:-n]).max() / max(float(agreement[-1]), 1e-9)
        root = np.sqrt(self.seconds[shift - self.first])
        return float(np.arctanh(np.tanh(score / root) * np.clip(share, 0, 1)) * root)


def overlap(a: np.ndarray, b: np.ndarray, shift: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the parts of two tracks that are of the same time if the second begins ``shift`` values after the first."""
    a, b = a[:, max(0, shift) :], b[:, max(0, -shift) :]
    n = min(a.shape[1], b.shape[1])
    return a[:, :n], b[:, :n]


def _standard(values: np.ndarray) -> np.ndarray:
    values = values - values.mean(1, keepdims=True)
    return np.asarray(values / np.maximum(values.std(1, keepdims=True), 1e-9))


def compare(a: np.ndarray, b: np.ndarray) -> Curve:
    """Return the agreement of two tracks, (rows, values), at every shift at which they share :data:`MIN_OVERLAP`."""
    n, m = a.shape[1], b.shape[1]
    size = 1 << (n + m - 1).bit_length()
    a, b = _standard(a).astype(np.float64), _standard(b).astype(np.float64)

    def transform(values: np.ndarray) -> np.ndarray:
        return np.fft.rfft(values, size)

    def products(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.fft.irfft(x * y.conj(), size)

    ones_a, ones_b = transform(np.ones(n)), transform(np.ones(m))
    count = np.maximum(np.round(products(ones_a, ones_b)), 1)
    total = np.zeros(size)
    for row_a, row_b in zip(a, b, strict=True):
        fa, fb = transform(row_a), transform(row_b)
        sum_a, sum_b = products(fa, ones_b), products(ones_a, fb)
        # A part in which nothing happens would agree with anything.
        spread_a = np.maximum(products(transform(row_a**2), ones_b) - sum_a**2 / count, 0.05 * count)
        spread_b = np.maximum(products(ones_a, transform(row_b**2)) - sum_b**2 / count, 0.05 * count)
        total += (products(fa, fb) - sum_a * sum_b / count) / np.sqrt(spread_a * spread_b)
    order = np.arange(1 - m, n) % size
    seconds = count[order] / RATE
    score = np.arctanh(np.clip(total[order] / len(a), -0.999, 0.999)) * np.sqrt(seconds)
    score[seconds < MIN_OVERLAP] = 0.0
    return Curve(1 - m, score, seconds, (a, b))


def vertex(score: np.ndarray, k: int) -> float:
    """Return the position of a peak relative to its highest value, by a parabola through three values."""
    if not 0 < k < len(score) - 1:
        return 0.0
    left, top, right = score[k - 1 : k + 2]
    bend = left - 2 * top + right
    return float(np.clip(0.5 * (left - right) / bend, -0.5, 0.5)) if bend < 0 else 0.0
