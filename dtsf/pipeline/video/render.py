"""From a decoded frame to the picture a player shows, at the size that is wanted: stretched, turned, scaled once."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from dtsf.cache.status import Status
from dtsf.errors import VideoError
from dtsf.pipeline.video.crop import size_to_decode

if TYPE_CHECKING:
    from fractions import Fraction
    from pathlib import Path

    import numpy as np

    from dtsf.pipeline.video.crop import Crop

LARGEST_CLIP = 1 << 30
"""Bytes of a clip's scaled pictures: a picture of 65535 x 16 made 192 high would be 786,420 wide."""


class Screen:
    """Shows the frames of one clip, all at the size that the first one asks for.

    Args:
        aspect: Width of a stored pixel over its height.
        size: Side of the square that is wanted of it.
        crop: As for :func:`~dtsf.pipeline.video.crop.size_to_decode`.
    """

    def __init__(self, path: Path, aspect: Fraction, size: int, crop: Crop, n_frames: int) -> None:
        self._path, self._aspect, self._size, self._crop, self._n_frames = path, aspect, size, crop, n_frames
        from av.video.reformatter import VideoReformatter

        self._converter = VideoReformatter()
        self._target: tuple[int, int] | None = None
        self._turn = (False, False, False)

    def show(self, frame: Any) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        if self._target is None:
            self._turn = _turn_of(frame)
            width, height = displayed_size(frame.width, frame.height, self._aspect)
            self._target = size_to_decode(width, height, self._size, self._crop)
            check_clip_size(self._path, self._target, self._n_frames)
            # Turning comes last: of a small picture it costs nothing.
        width, height = self._target
        # One converter for all frames; area averages are the fastest of the ways that do not leave pixels out.
        scaled = self._converter.reformat(frame, width, height, "rgb24", interpolation="AREA", threads=1)
        picture: np.ndarray = scaled.to_ndarray()
        across, down, over = self._turn
        picture = picture[::-1] if down else picture
        picture = picture[:, ::-1] if across else picture
        return picture.transpose(1, 0, 2) if over else picture


def displayed_size(width: int, height: int, aspect: Fraction) -> tuple[int, int]:
    """Width and height of a stored picture with square pixels: the stretched side is made longer, none shorter."""
    if aspect >= 1:
        return max(1, round(width * aspect)), height
    return width, max(1, round(height / aspect))


def check_clip_size(path: Path, target: tuple[int, int], n_frames: int) -> None:
    """Refuse a clip whose pictures would not fit in memory."""
    if 3 * target[0] * target[1] * n_frames > LARGEST_CLIP:
        raise VideoError(
            f"{path}: {n_frames} pictures of {target[0]} x {target[1]} are too large; its sides are too unlike",
            Status.UNREADABLE,
        )


def _turn_of(frame: Any) -> tuple[bool, bool, bool]:
    """How a stored picture is turned to be shown: mirrored left to right, top to bottom, and sides exchanged, in this order."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, False, False
    a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
    # x' = a x + c y, y' = b x + d y (ISO 14496-12); only quarter turns and mirrors are shown by players.
    if abs(a) >= abs(b):
        return a < 0, d < 0, False
    # x' = c y, y' = b x: sides exchanged; x mirrored where b is negative, y where c is.
    return b < 0, c < 0, True
