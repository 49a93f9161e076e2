"""Square around the people of a clip: around most people-like movement, for cameras that stand still.

Changes of light are removed first. Movement is then divided into movers. Small things, lines of text at the edge, screens and
lamps count little or not (docs/decisions.md has the measurements).
Letters in shapes: F frames, H W picture, h w reduced picture, K coefficients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

REDUCED_SIDE = 96  # approximate short side of the reduced pictures: averaging suppresses noise
SHARE, NOISE, LEAST = 0.1, 4.0, 1.5
"""A pixel moves if its standard deviation exceeds three limits: a share of the largest deviation, a multiple of the median
deviation (camera noise or camera motion), and an absolute value in grey levels (of 256)."""
OUTSIDE = 0.01  # share of the moving pixels that may lie beyond each edge, so that single pixels have no influence
MARGIN = 1.1  # side of the square over the longer side of the moving region
SMALLEST, LARGEST = 0.5, 1.25  # limits of the square's side over the short side of the picture
SHAKEN = 4.0  # median deviation in grey levels above which the camera moves
FULL, EMPTY = 0.9, 0.002  # limits of the moving region's share of the picture; outside them the crop is the centre
FAINT = 0.005  # share of the picture below which movers are not separated: a person in noise has several small parts
LIGHT = 1.5  # median change in grey levels of a picture; above it the light changed
CELL = 4  # reduced pixels: moving pixels in neighbouring cells belong together
NEAR = 0.25  # distance over the short side of the picture at which parts belong to one mover
MINOR, UNLIKELY = 0.1, 0.1  # share of the largest mover below which another one is ignored; weight of what is no person
SUDDEN = 0.6  # share of a part's change between two frames: people 0.1 to 0.3, a lamp 1
HELD = 3  # frames for which a lamp is off before, and on after
CEASELESS = 0.6  # share of the frames in which a part's pixels change: people 0.1 to 0.5, a screen 0.7
LINE, EDGE = 0.08, 0.12  # height over the short side, and strip at the top and bottom, of burnt-in text
# Window over the short side; share of the time a person acts in it; least share of change.
PLACE, PRESENT, PASSING = 0.25, 0.8, 0.15


class Square(NamedTuple):
    """Square of a picture, in pixels. It may extend beyond the edges."""

    top: int
    left: int
    side: int


class Found(NamedTuple):
    """Result of the search: no square if nothing moves, or everything. ``notes``: what a user should know."""

    square: Square | None
    notes: tuple[str, ...]


@dataclass
class _Part:
    mask_hw: np.ndarray
    weight: float
    unlikely: bool = False  # text, a screen, a lamp: it belongs to no person, however near

    @property
    def bounds(self) -> np.ndarray:
        return _bounds(self.mask_hw)


def motion_square(frames_FHWC: np.ndarray, ignored_HW: np.ndarray | None = None) -> Found:
    """Return the square around most people-like movement of a clip. ``ignored_HW``: True where nothing is searched."""
    F, height, width, _ = frames_FHWC.shape
    short = min(height, width)
    factor = max(1, round(short / REDUCED_SIDE))
    h, w = height // factor, width // factor
    grey_Fhw = _reduced_grey(np.ascontiguousarray(frames_FHWC[:, : h * factor, : w * factor]), factor)
    searched_hw: np.ndarray = np.ones((h, w), bool)
    if ignored_HW is not None:
        blocks_hw = ignored_HW[: h * factor, : w * factor].reshape(h, factor, w, factor)
        searched_hw = np.asarray(~blocks_hw.any((1, 3)))
    grey_Fhw = np.where(searched_hw, _without_light(grey_Fhw, searched_hw), 0)

    std_hw = grey_Fhw.std(0)
    padded_hw = np.pad(std_hw, 1, mode="edge")
    deviation_hw = sum(padded_hw[i : i + h, j : j + w] for i in range(3) for j in range(3)) / 9
    threshold = max(SHARE * np.quantile(deviation_hw, 0.995), NOISE * np.median(deviation_hw), LEAST)
    moving_hw = np.asarray(deviation_hw > threshold) & searched_hw
    if moving_hw.mean() <= EMPTY:
        return Found(None, ("everywhere" if np.median(deviation_hw) > SHAKEN else "still",))
    step_Fhw = np.abs(np.diff(grey_Fhw, axis=0))
    active_Fhw = step_Fhw > np.maximum(4 * np.median(step_Fhw) + 3, 0.5 * std_hw)
    movers = _movers([_weigh(mask_hw, step_Fhw, active_Fhw) for mask_hw in _connected(moving_hw)])
    if movers[0].mask_hw.mean() < FAINT:
        movers = [_Part(moving_hw, 1.0)]
    kept_hw, kept, notes = movers[0].mask_hw, movers[0].weight, set()

    def side_of(bounds: np.ndarray) -> float:
        return float(MARGIN * factor * max(bounds[1] - bounds[0], bounds[3] - bounds[2]))

    for mover in movers[1:]:
        if mover.weight < MINOR * movers[0].weight or mover.unlikely > movers[0].unlikely:
            notes.add("small")
        elif side_of(_bounds(kept_hw | mover.mask_hw)) <= LARGEST * short:
            kept_hw, kept = kept_hw | mover.mask_hw, kept + mover.weight
        else:
            notes.add("second")
    bounds = _bounds(kept_hw)
    scattered = kept < 0.7 * sum(mover.weight for mover in movers) and _area(_bounds(moving_hw)) >= FULL * h * w
    if scattered or _area(bounds) >= FULL * h * w:
        return Found(None, ("everywhere",))
    if side_of(bounds) > LARGEST * short:
        place = _place(kept_hw, step_Fhw, active_Fhw)
        if place is not None and side_of(place) <= LARGEST * short:
            bounds = place
            notes.add("second")
        else:
            notes.add("wide")
    # Movement that does not fit: the whole picture.
    side = round(np.clip(side_of(bounds), SMALLEST * short, max(LARGEST * short, height, width)))
    top, bottom, left, right = (factor * int(value) for value in bounds)
    square = Square((top + bottom - side) // 2, (left + right - side) // 2, side)
    if any(side <= n and not 0 < begin < n - side for begin, n in ((square.top, height), (square.left, width))):
        notes.add("border")
    return Found(square, tuple(sorted(notes)))


def _reduced_grey(frames_FHWC: np.ndarray, factor: int) -> np.ndarray:
    """Return grey pictures reduced by a factor, (F, h, w) float32. Without Pillow, numpy computes the same numbers, more slowly:
    so a copy of this file needs numpy alone (docs/export.md).
    """
    F, height, width, _ = frames_FHWC.shape
    h, w = height // factor, width // factor
    try:
        from PIL import Image
    except ImportError:
        # Pillow's integers. The sums are exact in float32.
        luma_FHW = (frames_FHWC @ np.array([19595, 38470, 7471], np.float32)).astype(np.int64) + 32768 >> 16
        sum_Fhw = luma_FHW.reshape(F, h, factor, w, factor).sum((2, 4)) + factor**2 // 2
        return np.asarray(sum_Fhw * (2**24 // factor**2) >> 24, np.float32)
    # All frames as one tall picture need two calls, instead of two for each frame.
    tall = Image.fromarray(frames_FHWC.reshape(F * height, width, 3)).convert("L").reduce(factor)
    return np.asarray(tall, np.float32).reshape(F, h, w)


def _without_light(grey_Fhw: np.ndarray, searched_hw: np.ndarray) -> np.ndarray:
    """Subtract changes of light from pictures: per frame, a smooth function of place and brightness that most pixels follow."""
    still_hw = np.median(grey_Fhw, 0)
    change_Fhw = grey_Fhw - still_hw
    if not searched_hw.any() or np.median(np.abs(change_Fhw[:, searched_hw]), 1).max() <= LIGHT:
        return grey_Fhw
    y_hw, x_hw = np.meshgrid(*(np.linspace(-1, 1, n) for n in still_hw.shape), indexing="ij")
    bright_hw = still_hw / 128 - 1
    terms_hwK = np.stack([np.ones_like(x_hw), bright_hw, x_hw, y_hw, bright_hw * x_hw, bright_hw * y_hw], -1)
    known_NK = terms_hwK[searched_hw]
    result_Fhw = np.empty_like(grey_Fhw)
    for k, change_hw in enumerate(change_Fhw):
        wanted_N = change_hw[searched_hw]
        weights_N = np.ones_like(wanted_N)
        for _ in range(8):  # reweighted least squares: people are outliers
            weighted_NK = known_NK * weights_N[:, None]
            fit_K = np.linalg.solve(
                weighted_NK.T @ known_NK + 1e-6 * np.eye(known_NK.shape[1]), weighted_NK.T @ wanted_N
            )
            weights_N = np.maximum(np.abs(wanted_N - known_NK @ fit_K), 1) ** -1.5
        result_Fhw[k] = grey_Fhw[k] - terms_hwK @ fit_K
    return result_Fhw


def _connected(moving_hw: np.ndarray) -> list[np.ndarray]:
    """Return the connected parts of a mask. Pixels in neighbouring cells are connected."""
    h, w = moving_hw.shape
    rows, columns = -(-h // CELL), -(-w // CELL)
    padded_hw = np.pad(moving_hw, ((0, rows * CELL - h), (0, columns * CELL - w)))
    cells = padded_hw.reshape(rows, CELL, columns, CELL).any((1, 3))
    left = {(int(y), int(x)) for y, x in np.argwhere(cells)}
    parts = []
    for first in sorted(left):
        if first not in left:
            continue
        left.remove(first)
        open_, part = [first], np.zeros_like(cells)
        while open_:
            y, x = open_.pop()
            part[y, x] = True
            found = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= found
            open_ += found
        parts.append(part.repeat(CELL, 0).repeat(CELL, 1)[:h, :w] & moving_hw)
    return parts


def _weigh(mask_hw: np.ndarray, step_Fhw: np.ndarray, active_Fhw: np.ndarray) -> _Part:
    """Return a part of the movement with its weight: its pixels, and less if it is unlikely to be a person."""
    h, w = mask_hw.shape
    top, bottom, _, _ = _bounds(mask_hw)
    change_F = step_Fhw[:, mask_hw].sum(1)
    stays = HELD <= int(change_F.argmax()) < len(change_F) - HELD  # who walks in at the end is no lamp
    sudden = stays and bool(change_F.max() > SUDDEN * change_F.sum())
    text = bottom - top <= LINE * min(h, w) and (bottom <= EDGE * h or top >= (1 - EDGE) * h)
    text = bool(text or active_Fhw[:, mask_hw].mean() > CEASELESS)
    unlikely = sudden or text
    return _Part(mask_hw, float(mask_hw.sum()) * (UNLIKELY if unlikely else 1.0), unlikely)


def _movers(parts: list[_Part]) -> list[_Part]:
    """Join parts that are near each other to movers, the largest first."""
    left = sorted(parts, key=lambda part: -part.weight)
    movers = []
    while left:
        mover = left.pop(0)
        near = NEAR * min(mover.mask_hw.shape)
        while joined := [p for p in left if p.unlikely == mover.unlikely and _gap(mover.bounds, p.bounds) <= near]:
            mask_hw = np.logical_or.reduce([mover.mask_hw, *(part.mask_hw for part in joined)])
            mover = _Part(mask_hw, mover.weight + sum(part.weight for part in joined), mover.unlikely)
            left = [part for part in left if all(part is not one for one in joined)]
        movers.append(mover)
    return sorted(movers, key=lambda mover: -mover.weight)


def _place(kept_hw: np.ndarray, step_Fhw: np.ndarray, active_Fhw: np.ndarray) -> np.ndarray | None:
    """Return the bounds of the place where something moves most of the time, while something else passes by. Or None."""
    h, w = kept_hw.shape
    half = max(1, round(PLACE * min(h, w) / 2))
    total_Fhw = np.pad((active_Fhw & kept_hw).cumsum(1).cumsum(2), ((0, 0), (1, 0), (1, 0)))
    (y0, y1), (x0, x1) = ((np.clip(np.arange(n) - half, 0, n), np.clip(np.arange(n) + half + 1, 0, n)) for n in (h, w))
    rows_Fhw = total_Fhw[:, y1] - total_Fhw[:, y0]
    inside_Fhw = rows_Fhw[:, :, x1] - rows_Fhw[:, :, x0]
    core_hw = kept_hw & ((inside_Fhw > 0.02 * (2 * half + 1) ** 2).mean(0) >= PRESENT)
    change_hw = step_Fhw.sum(0)
    largest_hw = max(_connected(core_hw), key=lambda mask: float(change_hw[mask].sum()), default=None)
    if largest_hw is None or change_hw[largest_hw].sum() < PASSING * change_hw[kept_hw].sum():
        return None
    return _bounds(largest_hw)


def _bounds(mask_hw: np.ndarray) -> np.ndarray:
    """Return top, bottom, left and right of a mask, without single pixels far out."""
    edges = []
    for count in (mask_hw.sum(1), mask_hw.sum(0)):
        begin, end = np.searchsorted(count.cumsum() / count.sum(), [OUTSIDE, 1 - OUTSIDE])
        edges += [int(begin), int(end) + 1]
    return np.array(edges)


def _gap(a: np.ndarray, b: np.ndarray) -> int:
    return int(max(a[0] - b[1], b[0] - a[1], a[2] - b[3], b[2] - a[3], 0))


def _area(bounds: np.ndarray) -> int:
    return int((bounds[1] - bounds[0]) * (bounds[3] - bounds[2]))
