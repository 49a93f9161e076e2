"""Stretches of a long recording: frames of one camera that are cut to one square.

Every frame is embedded once, however many windows it is in. So the square of ``--crop motion`` is decided for a stretch of a few
seconds. A stretch ends where least moves, so an event lies within one as a rule, as a clip of the training does.
Letters: F frames, H W picture, S square, h w reduced picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dtsf.pipeline.video.crop import Crop, cut_square

if TYPE_CHECKING:
    from PIL.Image import Image

SHORTEST, LONGEST = 2.0, 5.0  # seconds of a stretch
SEARCHED = 16  # frames in which the square is searched, as in a clip of the training
REDUCED_SIDE, CHANGED = 96, 6.0  # short side of the pictures that are compared; grey levels above which a pixel moves
SMOOTHED = 0.5  # seconds over which movement is averaged


@dataclass(frozen=True)
class Stretch:
    """Frames at successive moments of the grid, cut to one square. ``first``: number of the first moment."""

    first: int
    frames_FSSC: np.ndarray  # uint8 RGB


def cut_stretches(
    pictures: Iterable[tuple[int, np.ndarray]],
    rate: float,
    size: int,
    crop: Crop,
    ignored_HW: np.ndarray | None = None,
) -> Iterator[Stretch]:
    """Divide the pictures of a camera into stretches and cut each to its square. At most :data:`LONGEST` seconds are in memory.

    ``pictures``: numbers of successive moments with their scaled pictures, (H, W, 3) uint8. ``rate``: moments a second.
    ``ignored_HW``: as for :func:`dtsf.pipeline.video.crop.cut_square`. What a stretch is does not depend on what is before it.
    """
    shortest, longest = max(1, round(SHORTEST * rate)), max(2, round(LONGEST * rate))
    kept: list[np.ndarray] = []
    movement: list[float] = []
    before: np.ndarray | None = None
    first = 0

    def cut(n: int) -> Stretch:
        frames_FHWC = np.stack(kept[:n])
        searched = np.unique(np.linspace(0, n - 1, min(n, SEARCHED)).round().astype(int))
        frames_FSSC, _ = cut_square(frames_FHWC, size, crop, ignored_HW, searched)
        del kept[:n], movement[:n]
        return Stretch(first, frames_FSSC)

    for number, picture_HWC in pictures:
        first = first if kept else number
        now = _reduced(picture_HWC)
        # A frame of which nothing changed since the last one may be the same frame: it counts as half still.
        movement.append(0.0 if before is None else float((np.abs(now - before) > CHANGED).mean()))
        before = now
        kept.append(picture_HWC)
        if len(kept) == longest:
            stretch = cut(_quietest(movement, shortest, rate))
            yield stretch
            first = stretch.first + len(stretch.frames_FSSC)
    if kept:
        yield cut(len(kept))


def _reduced(picture_HWC: np.ndarray) -> np.ndarray:
    """Return a small grey picture, float32."""
    from PIL import Image as images

    grey: Image = images.fromarray(picture_HWC).convert("L")
    return np.asarray(grey.reduce(max(1, round(min(grey.size) / REDUCED_SIDE))), np.float32)


def _quietest(movement: list[float], begin: int, rate: float) -> int:
    """Return the number of the frame, from ``begin`` on, around which least moves."""
    around = np.ones(max(1, round(SMOOTHED * rate) | 1))
    smooth = np.convolve(movement, around / len(around), "same")
    end = len(movement) - len(around) // 2  # behind it, not all that is around is known
    return begin + int(np.argmin(smooth[begin : max(end, begin + 1)]))
