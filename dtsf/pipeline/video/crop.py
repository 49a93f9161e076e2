"""From decoded frames to square pictures: scale, rotate, and crop to the centre or to the motion.

The motion crop makes people of different size and distance comparable (docs/results/network.md). It is not part of the paper.
Letters in shapes: F frames, H W picture, h w reduced picture, S square, C channels.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dtsf.errors import VideoError

Crop = Literal["motion", "centre"]
CROPS: tuple[Crop, ...] = ("motion", "centre")

MAX_CLIP_BYTES = 1 << 30  # limit for a clip's scaled frames: 65535 x 16 at a height of 192 would be 786,420 wide
REDUCED_SIDE = 96  # approximate short side of the reduced pictures for motion detection: averaging suppresses noise
SHARE, NOISE, LEAST = 0.1, 4.0, 1.5
"""A pixel moves if its standard deviation exceeds three limits: a share of the largest deviation, a multiple of the median
deviation (camera noise or camera motion), and an absolute value in grey levels (of 256)."""
OUTSIDE = 0.01  # share of the moving pixels that may lie beyond each edge, so that single pixels have no influence
MARGIN = 1.1  # side of the square over the longer side of the moving region
SMALLEST, LARGEST = 0.5, 1.25  # limits of the square's side over the short side of the picture
FULL, EMPTY = 0.9, 0.002  # limits of the moving region's share of the picture; outside them the crop is the centre


def frame_renderer(path: Path, aspect: Fraction, size: int, crop: Crop, n_frames: int) -> Callable[[Any], np.ndarray]:
    """Return a function from a frame to the picture that a player shows: (H, W, 3) uint8 RGB.

    All frames of the clip get the size that follows from the first one. ``path`` is for error messages. ``aspect``: width of a
    stored pixel over its height. ``size`` and ``crop``: as for :func:`size_to_decode`.
    """
    from av.video.reformatter import VideoReformatter

    reformatter = VideoReformatter()
    target: tuple[int, int] | None = None
    flips = (False, False, False)  # left-right, top-bottom, then transpose

    def render(frame: Any) -> np.ndarray:
        nonlocal target, flips
        if target is None:
            matrix = frame.side_data.get("DISPLAYMATRIX")
            if matrix is not None:
                a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
                # x' = a x + c y, y' = b x + d y (ISO 14496-12). Players apply only quarter turns and flips. A quarter turn,
                # x' = c y and y' = b x, is a transposition, with flips where b or c is negative.
                flips = (a < 0, d < 0, False) if abs(a) >= abs(b) else (b < 0, c < 0, True)
            # Square pixels: one side is enlarged, none is reduced.
            width, height = round(frame.width * max(aspect, 1)), round(frame.height / min(aspect, 1))
            target = size_to_decode(width, height, size, crop)
            check_clip_size(path, target, n_frames)
        # AREA is the fastest interpolation that uses every pixel. One reformatter for all frames saves its setup.
        scaled = reformatter.reformat(frame, *target, "rgb24", interpolation="AREA", threads=1)
        picture: np.ndarray = scaled.to_ndarray()
        across, down, transposed = flips
        picture = picture[::-1] if down else picture
        picture = picture[:, ::-1] if across else picture
        return picture.transpose(1, 0, 2) if transposed else picture

    return render


def check_clip_size(path: Path, target: tuple[int, int], n_frames: int) -> None:
    """Raise VideoError if the scaled frames of a clip exceed :data:`MAX_CLIP_BYTES`."""
    if 3 * target[0] * target[1] * n_frames > MAX_CLIP_BYTES:
        raise VideoError(f"{path}: {n_frames} frames of {target[0]} x {target[1]} are too large (extreme aspect ratio)")


def size_to_decode(width: int, height: int, size: int, crop: Crop) -> tuple[int, int]:
    """Return width and height of the scaled frames, with the aspect ratio of the source.

    ``centre``: the short side is ``size``. ``motion``: up to twice that, so that the smallest square is not enlarged.
    """
    short = min(width, height)
    side = size if crop == "centre" else min(max(size, short), 2 * size)
    scale = side / short
    return max(side, round(width * scale)), max(side, round(height * scale))


def cut_square(frames_FHWC: np.ndarray, size: int, crop: Crop) -> np.ndarray:
    """Crop all frames of a clip to the same square; beyond the picture its edge pixels are repeated.

    ``frames_FHWC``: uint8, scaled to :func:`size_to_decode`. ``crop``: ``centre``; or ``motion``, the square around all motion in
    the clip, for static cameras. Returns (F, size, size, 3) uint8.
    """
    _, height, width, _ = frames_FHWC.shape
    square = motion_square(frames_FHWC) if crop == "motion" else None
    short = min(height, width)
    top, left, side = square or ((height - short) // 2, (width - short) // 2, short)
    inside_FHWC = frames_FHWC[:, max(0, top) : top + side, max(0, left) : left + side]
    rows = (max(0, -top), max(0, top + side - height))
    columns = (max(0, -left), max(0, left + side - width))
    cropped_FSSC = np.pad(inside_FHWC, ((0, 0), rows, columns, (0, 0)), mode="edge")
    if side == size:
        return cropped_FSSC
    from PIL import Image

    resized = [Image.fromarray(frame).resize((size, size), Image.Resampling.BILINEAR) for frame in cropped_FSSC]
    return np.stack([np.asarray(picture) for picture in resized])


def motion_square(frames_FHWC: np.ndarray) -> tuple[int, int, int] | None:
    """Return top, left and side of the square around all motion in a clip, in pixels. It may extend beyond the edges.

    None if nothing moves, or everything (a moving camera).
    """
    from PIL import Image

    F, height, width, _ = frames_FHWC.shape
    short = min(height, width)
    factor = max(1, round(short / REDUCED_SIDE))
    h, w = height // factor, width // factor
    whole = np.ascontiguousarray(frames_FHWC[:, : h * factor, : w * factor])
    # All frames as one tall picture need two calls, instead of two for each frame.
    tall = Image.fromarray(whole.reshape(F * h * factor, w * factor, 3)).convert("L").reduce(factor)
    grey_Fhw = np.asarray(tall, np.float32).reshape(F, h, w)

    padded_hw = np.pad(grey_Fhw.std(0), 1, mode="edge")
    deviation_hw = sum(padded_hw[i : i + h, j : j + w] for i in range(3) for j in range(3)) / 9
    threshold = max(SHARE * np.quantile(deviation_hw, 0.995), NOISE * np.median(deviation_hw), LEAST)
    moving_hw = np.asarray(deviation_hw > threshold)
    if moving_hw.mean() <= EMPTY:
        return None
    edges = []
    for count in (moving_hw.sum(1), moving_hw.sum(0)):
        begin, end = np.searchsorted(count.cumsum() / count.sum(), [OUTSIDE, 1 - OUTSIDE])
        edges += [int(begin) * factor, (int(end) + 1) * factor]
    top, bottom, left, right = edges
    if (bottom - top) * (right - left) >= FULL * height * width:
        return None
    side = round(np.clip(MARGIN * max(bottom - top, right - left), SMALLEST * short, LARGEST * short))
    return (top + bottom - side) // 2, (left + right - side) // 2, side
