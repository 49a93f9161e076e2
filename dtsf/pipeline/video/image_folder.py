"""A folder of numbered images as a clip: ``img_00001.jpg``, ``frame_12_tc_5_rgb.jpg``, ``7.png``."""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dtsf.errors import VideoError
from dtsf.pipeline.video.clip import DecodedClip, Span, check_span, segment_centres, short_message
from dtsf.pipeline.video.container import MAX_PIXELS
from dtsf.pipeline.video.crop import Crop, cut_region, cut_square, ignored_mask, size_to_decode

if TYPE_CHECKING:  # pydantic is slow to import
    from dtsf.cache.schema import Box

ENDINGS = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})
NUMBER = re.compile(r"\d+")


def read_folder(folder: Path, n_frames: int, size: int, span: Span, crop: Crop) -> DecodedClip:
    """Read images at equal parts of a clip. ``span``: ``first``, ``last`` are numbers in names; ``start``, ``end`` need ``fps``."""
    images = numbered_images(folder)
    numbers = np.array([number for number, _ in images])
    if (span.start is not None or span.end is not None) and not span.fps:
        raise VideoError(f"{folder} is an image folder: start and end need its frame rate (column fps)")
    if span.fps:
        check_span(folder, span, 0.0, len(images) / span.fps)
    inside = numbers >= (-np.inf if span.first is None else span.first)
    inside &= numbers <= (np.inf if span.last is None else span.last)
    if span.fps and not span.common:
        seconds = np.arange(len(numbers)) / span.fps
        inside &= seconds >= (span.start or 0.0) - 1e-6
        inside &= seconds < (np.inf if span.end is None else span.end) - 1e-6
    if not inside.any():
        raise VideoError(f"{folder} contains images {numbers.min()} to {numbers.max()}: none is in the clip")
    first, stop = int(inside.argmax()), len(inside) - int(inside[::-1].argmax())
    if span.common and span.fps:
        index = np.floor(span.moments(n_frames, stop / span.fps) * span.fps + 1e-6).astype(np.int64)
        index, n_available = np.clip(index, 0, len(images) - 1), n_frames
    else:
        index, n_available = first + segment_centres(stop - first, n_frames), stop - first
    read = {int(k): _read(images[k][1], size, crop, span.region, n_frames) for k in np.unique(index)}
    frames = {k: picture for k, (picture, _) in read.items()}
    if len({frame.shape for frame in frames.values()}) > 1:
        raise VideoError(f"{folder} contains images of different sizes")
    frames_FHWC = np.stack([frames[int(k)] for k in index])
    shown = next(iter(read.values()))[1]
    ignored_HW = ignored_mask(frames_FHWC, shown, span.region, span.ignore)
    frames_FHWC, notes = cut_square(frames_FHWC, size, crop, ignored_HW)
    return DecodedClip(
        frames=frames_FHWC,
        crop_notes=notes,
        frame_index=index.astype(np.int32),
        frame_time=index / span.fps if span.fps else np.full(n_frames, np.nan),
        available_frames=n_available,
        decoded_frames=len(images),
        duration=len(images) / span.fps if span.fps else 0.0,
    )


def numbered_images(folder: Path) -> list[tuple[int, Path]]:
    """Return (number, path) in natural order. The number is the first that differs between names. Name patterns with ``rgb`` are
    preferred, then the most frequent one. Raises VideoError: no image, or two patterns that are equally frequent.
    """
    by_pattern: dict[str, list[Path]] = defaultdict(list)
    for file in folder.iterdir():
        if file.suffix.lower() in ENDINGS and not file.name.startswith(".") and NUMBER.search(file.stem):
            by_pattern[NUMBER.sub("#", file.stem.lower()) + file.suffix.lower()].append(file)
    candidates = {pattern: files for pattern, files in by_pattern.items() if "rgb" in pattern} or by_pattern
    if not candidates:
        raise VideoError(f"{folder} contains no image with a number in its name, such as img_00001.jpg")
    most = max(len(files) for files in candidates.values())
    patterns = sorted(pattern for pattern, files in candidates.items() if len(files) == most)
    if len(patterns) > 1:
        raise VideoError(f"{folder} contains {most} images each of {' and '.join(patterns)}: keep one of them")
    files = sorted((tuple(map(int, NUMBER.findall(file.stem))), file.name, file) for file in candidates[patterns[0]])
    columns = zip(*(numbers for numbers, _, _ in files), strict=True)
    varying = next((k for k, column in enumerate(columns) if len(set(column)) > 1), -1)
    return [(numbers[varying], file) for numbers, _, file in files]


def _read(file: Path, size: int, crop: Crop, region: Box | None, n_frames: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the region of a scaled picture, and the size of the picture before scaling."""
    from PIL import Image, ImageOps

    try:
        with (
            warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning),
            Image.open(file) as image,
        ):
            if image.width * image.height > MAX_PIXELS:
                raise VideoError(f"{file} is {image.width} x {image.height}: too large")
            upright = ImageOps.exif_transpose(image)
            target = size_to_decode(*upright.size, size, crop, region, path=file, n_frames=n_frames)
            picture = np.asarray(upright.convert("RGB").resize(target, Image.Resampling.BILINEAR))
            return cut_region(picture, upright.size, region), upright.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise VideoError(f"{file} cannot be read: {short_message(error)}") from error
