"""Which square of a clip is embedded: the middle of the picture, or around everything that moves in it.

People are filmed from near and far, and are of different size; the cells of an embedding are not. A network that has
learnt what an arm does in one cell does not find it in the next: on the folds of ``motion/iid``, held-out people drawn 15 %
smaller than they are were named right in 0.65, and in 0.83 as they are. Around what moves it is 0.83 and 0.86
(benchmarks/scale.py, docs/results/network.md). Ours, not the paper's.

Letters: F frames, H W picture, h w the same made smaller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Crop = Literal["motion", "centre"]
CROPS: tuple[Crop, ...] = ("motion", "centre")

LOOKED_AT = 96
"""Short side, about, of the pictures in which motion is looked for: enough to place a person, and noise is averaged away."""
SHARE, NOISE, LEAST = 0.1, 4.0, 1.5
"""A place moves if its grey value deviates by more than this share of what the liveliest places do, by more than this
many times what the median place does (noise of the camera, or a camera that moves), and by this many of 256 levels."""
OUTSIDE = 0.01
"""Share of the moving places that may lie beyond each edge: specks do not decide."""
MARGIN = 1.1
"""Side of the square over the longer side of what moves."""
SMALLEST, LARGEST = 0.5, 1.25
"""Side of the square over the short side of the picture. Who moves a hand alone is not cut down to the hand."""
FULL, EMPTY = 0.9, 0.002
"""Where what moves fills this share of the picture, or less than that, there is nothing to go by: the middle is taken."""


@dataclass(frozen=True)
class Square:
    """A square of a picture, in its pixels; it may reach beyond the edges."""

    top: int
    left: int
    side: int


def size_to_decode(width: int, height: int, size: int, crop: Crop) -> tuple[int, int]:
    """Width and height at which to decode, aspect kept.

    ``centre``: the short side is ``size``. ``motion``: twice that where the source has as much, so that the smallest
    square still has a pixel for each one that is asked for.
    """
    short = min(width, height)
    side = size if crop == "centre" else min(max(size, short), 2 * size)
    scale = side / short
    return max(side, round(width * scale)), max(side, round(height * scale))


def cut_square(frames_FHWC: np.ndarray, size: int, crop: Crop) -> np.ndarray:
    """Cut a clip's frames to one square, the same in all of them.

    ``frames_FHWC``: (F, H, W, 3) uint8, decoded at :func:`size_to_decode`. ``crop``: ``centre``; or ``motion``, around what
    moves: choose it where cameras stand still. Returns (F, size, size, 3) uint8.
    """
    _, height, width, _ = frames_FHWC.shape
    square = motion_square(frames_FHWC) if crop == "motion" else None
    if square is None:
        side = min(height, width)
        square = Square((height - side) // 2, (width - side) // 2, side)
    cut_FSSC = _cut(frames_FHWC, square)
    return cut_FSSC if square.side == size else _resized(cut_FSSC, size)


def motion_square(frames_FHWC: np.ndarray) -> Square | None:
    """The square around everything that moves in a clip; None where nothing does, or everything (the camera moves)."""
    _, height, width, _ = frames_FHWC.shape
    factor = max(1, round(min(height, width) / LOOKED_AT))
    moves_hw = _moves(_grey(frames_FHWC, factor))
    if moves_hw.mean() <= EMPTY:
        return None
    top, bottom = (edge * factor for edge in _extent(moves_hw.sum(1)))
    left, right = (edge * factor for edge in _extent(moves_hw.sum(0)))
    if (bottom - top) * (right - left) >= FULL * height * width:
        return None
    short = min(height, width)
    side = round(np.clip(MARGIN * max(bottom - top, right - left), SMALLEST * short, LARGEST * short))
    return Square((top + bottom - side) // 2, (left + right - side) // 2, side)


def _grey(frames_FHWC: np.ndarray, factor: int) -> np.ndarray:
    """Grey values, each the mean of ``factor`` x ``factor`` pixels: (F, h, w) float32."""
    from PIL import Image

    F, height, width, _ = frames_FHWC.shape
    h, w = height // factor, width // factor
    whole = np.ascontiguousarray(frames_FHWC[:, : h * factor, : w * factor])
    # All frames as one tall picture: two calls instead of two a frame.
    tall = Image.fromarray(whole.reshape(F * h * factor, w * factor, 3)).convert("L").reduce(factor)
    return np.asarray(tall, np.float32).reshape(F, h, w)


def _moves(grey_Fhw: np.ndarray) -> np.ndarray:
    """Places whose grey value changes in the clip, (h, w) bool."""
    h, w = grey_Fhw.shape[1:]
    padded_hw = np.pad(grey_Fhw.std(0), 1, mode="edge")
    deviation_hw = sum(padded_hw[i : i + h, j : j + w] for i in range(3) for j in range(3)) / 9
    threshold = max(SHARE * np.quantile(deviation_hw, 0.995), NOISE * np.median(deviation_hw), LEAST)
    return np.asarray(deviation_hw > threshold)


def _extent(count_X: np.ndarray) -> tuple[int, int]:
    """Where the moving places of all rows (or columns) begin and end."""
    share_X = count_X.cumsum() / count_X.sum()
    begin, end = np.searchsorted(share_X, [OUTSIDE, 1 - OUTSIDE])
    return int(begin), int(end) + 1


def _cut(frames_FHWC: np.ndarray, square: Square) -> np.ndarray:
    """Cut out; beyond the picture its edge is repeated."""
    _, height, width, _ = frames_FHWC.shape
    bottom, right = square.top + square.side, square.left + square.side
    inside_FHWC = frames_FHWC[:, max(0, square.top) : bottom, max(0, square.left) : right]
    rows = (max(0, -square.top), max(0, bottom - height))
    columns = (max(0, -square.left), max(0, right - width))
    return np.pad(inside_FHWC, ((0, 0), rows, columns, (0, 0)), mode="edge")


def _resized(frames_FSSC: np.ndarray, size: int) -> np.ndarray:
    from PIL import Image

    small = [Image.fromarray(frame).resize((size, size), Image.Resampling.BILINEAR) for frame in frames_FSSC]
    return np.stack([np.asarray(picture) for picture in small])
