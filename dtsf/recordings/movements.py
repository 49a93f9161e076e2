"""Movements of a recording, from rest to rest: where training finds clips of nothing, and a timeline finds events.

Letters: T moments, V cameras, F frames, P cells, C channels.
"""

from __future__ import annotations

import numpy as np

# Shares of a usual event: time over which movement is averaged, the shortest rest, and the shortest movement.
SMOOTHED, REST, SHORTEST = 0.2, 0.33, 0.25
JOINED = 0.67  # longest rest inside an event, such as between sitting down and standing up
LONGEST = 1.25  # longest movement that can be one event, over the longest event of the training
TWO = 0.68  # share of the variance between two levels: 0.64 for one hump, 0.75 for even values; below it, nobody rests
CALM = 0.25  # quantile of a camera that is its 0


def change(x_FPC: np.ndarray) -> np.ndarray:
    """Return how much moves at each frame of a stretch, (F,): the logarithm of the change of the embeddings.

    What is before a stretch may be cut to another square: its first frame counts as the second one.
    """
    step_FPC = np.diff(x_FPC.astype(np.float32), axis=0)
    change_F = np.log(np.sqrt(np.square(step_FPC).sum(-1).mean(-1)) + 1e-3)
    return np.asarray(np.concatenate([change_F[:1], change_F]).round(6) if len(x_FPC) > 1 else np.full(1, np.log(1e-3)))


def strength(moved_VT: np.ndarray) -> np.ndarray:
    """Return how much moves, (T,): the mean over the cameras that film, each above its calm.

    ``moved_VT``: logarithms of how much moves; NaN where a camera does not film.
    """
    total_T, count_T = np.zeros(moved_VT.shape[1]), np.zeros(moved_VT.shape[1])
    for row_T in moved_VT:
        films_T = np.isfinite(row_T)
        if films_T.any():
            total_T[films_T] += row_T[films_T] - np.quantile(row_T[films_T], CALM)
            count_T += films_T
    return np.asarray(total_T / np.maximum(count_T, 1))


def smoothed(strength_T: np.ndarray, usual: float) -> np.ndarray:
    """Return the running mean of how much moves. ``usual``: moments of a usual event."""
    around = np.hanning((max(1, round(SMOOTHED * usual)) | 1) + 2)[1:-1]
    padded = np.pad(strength_T, len(around) // 2, mode="edge")
    return np.asarray(np.convolve(padded, around / around.sum(), "valid"))


def two_levels(values: np.ndarray) -> tuple[float, float]:
    """Return the value that best divides values into a low and a high level (Otsu, 1979), and the share of their variance that
    lies between these.
    """
    ordered = np.sort(values)
    n_low, n = np.arange(1, len(ordered)), len(ordered)
    total = np.cumsum(ordered)
    between = n_low * (n - n_low) / n**2 * ((total[-1] - total[:-1]) / (n - n_low) - total[:-1] / n_low) ** 2
    best = int(np.argmax(between))
    return float(ordered[best]), float(between[best] / max(ordered.var(), 1e-12))


def rest_level(strength_T: np.ndarray, usual: float) -> float | None:
    """Return how much moves at most in a rest; None: nobody rests, or all do."""
    if len(strength_T) < 2 * usual:
        return None
    level, share = two_levels(smoothed(strength_T, usual))
    return level if share > TWO else None


def find_movements(strength_T: np.ndarray, level: float, usual: float) -> list[tuple[int, int]]:
    """Return the first moment of each movement, and the one behind its last, in order."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], smoothed(strength_T, usual) > level, [0]])))
    found: list[tuple[int, int]] = []
    for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if found and start - found[-1][1] < REST * usual:
            found[-1] = found[-1][0], stop
        else:
            found.append((start, stop))
    return [(start, stop) for start, stop in found if stop - start >= SHORTEST * usual]
