"""From decoded frames to square pictures: scale, rotate, and crop to the centre or to the motion.

The motion crop makes people of different size and distance comparable (docs/results/network.md). It is not part of the paper.
Letters in shapes: F frames, H W picture, S square, C channels.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dtsf.errors import VideoError
from dtsf.pipeline.video.motion import motion_square

if TYPE_CHECKING:  # pydantic is slow to import
    from dtsf.cache.schema import Box

Crop = Literal["motion", "centre"]
CROPS: tuple[Crop, ...] = ("motion", "centre")

WHOLE_PICTURE = (0.0, 0.0, 1.0, 1.0)
MAX_CLIP_BYTES = 1 << 30  # limit for a clip's scaled frames: 65535 x 16 at a height of 192 would be 786,420 wide


class Renderer:
    """Function from a frame to the picture that a player shows: (H, W, 3) uint8 RGB. The first frame of a clip decides its size.

    ``path`` is for error messages. ``aspect``: width of a stored pixel over its height. ``size``, ``crop`` and ``region``: as for
    :func:`size_to_decode`. ``shown``: width and height of the picture before scaling, after the first frame.
    """

    def __init__(self, path: Path, aspect: Fraction, size: int, crop: Crop, region: Box | None, n_frames: int) -> None:
        from av.video.reformatter import VideoReformatter

        self.shown = (0, 0)
        self._size_to_decode = partial(
            size_to_decode, path=path, size=size, crop=crop, region=region, n_frames=n_frames
        )
        self._aspect, self._reformatter = aspect, VideoReformatter()
        self._target = (0, 0)
        self._flips = (False, False, False)  # left-right, top-bottom, then transpose

    def __call__(self, frame: Any) -> np.ndarray:
        """Return the scaled picture."""
        if not self.shown[0]:
            self._set_size(frame)
        # AREA is the fastest interpolation that uses every pixel. One reformatter for all frames saves its setup.
        scaled = self._reformatter.reformat(frame, *self._target, "rgb24", interpolation="AREA", threads=1)
        picture: np.ndarray = scaled.to_ndarray()
        across, down, transposed = self._flips
        picture = picture[::-1] if down else picture
        picture = picture[:, ::-1] if across else picture
        return picture.transpose(1, 0, 2) if transposed else picture

    def _set_size(self, frame: Any) -> None:
        matrix = frame.side_data.get("DISPLAYMATRIX")
        if matrix is not None:
            a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
            # x' = a x + c y, y' = b x + d y (ISO 14496-12). Players apply only quarter turns and flips. A quarter turn,
            # x' = c y and y' = b x, is a transposition, with flips where b or c is negative.
            self._flips = (a < 0, d < 0, False) if abs(a) >= abs(b) else (b < 0, c < 0, True)
        # Square pixels: one side is enlarged, none is reduced.
        width, height = round(frame.width * max(self._aspect, 1)), round(frame.height / min(self._aspect, 1))
        self.shown = (height, width) if self._flips[2] else (width, height)
        across, down = self._size_to_decode(*self.shown)
        self._target = (down, across) if self._flips[2] else (across, down)


def size_to_decode(
    width: int,
    height: int,
    size: int,
    crop: Crop,
    region: Box | None = None,
    *,
    path: Path | str = "",
    n_frames: int = 1,
) -> tuple[int, int]:
    """Return width and height of the scaled frames, with the aspect ratio of the source.

    ``centre``: the short side is ``size``. ``motion``: up to twice that, so that the smallest square is not enlarged. With a
    ``region``, this is its short side, but the whole frame is not enlarged. Raises VideoError: the region is not in the picture,
    or the scaled frames of the clip exceed :data:`MAX_CLIP_BYTES`.
    """
    left, top, right, bottom = in_pixels(region or WHOLE_PICTURE, width, height)
    if region and (right > width + 1 or bottom > height + 1 or min(right - left, bottom - top) < 2):
        shown = " ".join(f"{value:g}" for value in region)
        raise VideoError(f"{path}: region ({shown}) is not in its picture of {width} x {height} pixels, or too small")
    short = min(right - left, bottom - top)
    side = size if crop == "centre" else round(min(max(size, short), 2 * size))
    scale = side / short if region is None else min(1.0, side / short)
    least = side if region is None else 1
    target = max(least, round(width * scale)), max(least, round(height * scale))
    if 3 * (right - left) * (bottom - top) * scale**2 * n_frames > MAX_CLIP_BYTES:
        raise VideoError(f"{path}: {n_frames} frames of {target[0]} x {target[1]} are too large (extreme aspect ratio)")
    return target


def in_pixels(box: Box, width: int, height: int) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of a box in pixels of a picture."""
    across, down = (width, height) if max(box) <= 1 else (1, 1)
    left, top, wide, high = box
    return left * across, top * down, (left + wide) * across, (top + high) * down


def cut_region(picture_HWC: np.ndarray, shown: tuple[int, int], region: Box | None) -> np.ndarray:
    """Return the region of a scaled picture. ``shown``: width and height of the picture before scaling."""
    if region is None:
        return picture_HWC
    height, width, _ = picture_HWC.shape
    left, top, right, bottom = in_pixels(region, *shown)
    x, y = (min(round(a * n / s), n - 1) for a, n, s in ((left, width, shown[0]), (top, height, shown[1])))
    x1, y1 = round(right * width / shown[0]), round(bottom * height / shown[1])
    return picture_HWC[y : max(y1, y + 1), x : max(x1, x + 1)].copy()  # a copy: the rest of the picture is freed


def ignored_mask(
    frames_FHWC: np.ndarray, shown: tuple[int, int], region: Box | None, ignore: Sequence[Box]
) -> np.ndarray | None:
    """Return which pixels of a scaled region are in one of the boxes: (H, W) bool. None without a box."""
    if not ignore:
        return None
    _, height, width, _ = frames_FHWC.shape
    left, top, right, bottom = in_pixels(region or WHOLE_PICTURE, *shown)
    mask_HW = np.zeros((height, width), bool)
    for box in ignore:
        x0, y0, x1, y1 = in_pixels(box, *shown)
        columns = np.array([x0 - left, x1 - left]) * width / (right - left)
        rows = np.array([y0 - top, y1 - top]) * height / (bottom - top)
        (a, b), (c, d) = (np.clip([np.floor(v[0]), np.ceil(v[1])], 0, None).astype(int) for v in (rows, columns))
        mask_HW[a:b, c:d] = True
    return mask_HW


def cut_square(
    frames_FHWC: np.ndarray,
    size: int,
    crop: Crop,
    ignored_HW: np.ndarray | None = None,
    searched: np.ndarray | None = None,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Crop all frames of a clip to the same square; beyond the picture its edge pixels are repeated.

    ``frames_FHWC``: uint8, scaled to :func:`size_to_decode`. ``crop``: ``centre``; or ``motion``, the square around most movement
    of the clip, for static cameras, with what a user should know about it. ``searched``: numbers of the frames in which movement is
    searched; default: all. Returns (F, size, size, 3) uint8 and these notes.
    """
    _, height, width, _ = frames_FHWC.shape
    seen_FHWC = frames_FHWC if searched is None else frames_FHWC[searched]
    square, notes = motion_square(seen_FHWC, ignored_HW) if crop == "motion" else (None, ())
    short = min(height, width)
    top, left, side = square or ((height - short) // 2, (width - short) // 2, short)
    inside_FHWC = frames_FHWC[:, max(0, top) : top + side, max(0, left) : left + side]
    rows = (max(0, -top), max(0, top + side - height))
    columns = (max(0, -left), max(0, left + side - width))
    cropped_FSSC = np.pad(inside_FHWC, ((0, 0), rows, columns, (0, 0)), mode="edge")
    if side == size:
        return cropped_FSSC, notes
    from PIL import Image

    resized = [Image.fromarray(frame).resize((size, size), Image.Resampling.BILINEAR) for frame in cropped_FSSC]
    return np.stack([np.asarray(picture) for picture in resized]), notes
