"""A folder of numbered pictures as a clip: ``img_00001.jpg``, ``frame_12_tc_5_rgb.jpg``, ``7.png``."""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from dtsf.cache.status import Status
from dtsf.errors import VideoError
from dtsf.pipeline.video.clip import DecodedClip, short, short_status
from dtsf.pipeline.video.container import LARGEST
from dtsf.pipeline.video.crop import cut_square, size_to_decode
from dtsf.pipeline.video.render import check_clip_size
from dtsf.pipeline.video.sampling import segment_centres

if TYPE_CHECKING:
    from pathlib import Path

    from dtsf.pipeline.video.clip import Span
    from dtsf.pipeline.video.crop import Crop

ENDINGS = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})
NUMBER = re.compile(r"\d+")


def read_folder(folder: Path, n_frames: int, size: int, span: Span, crop: Crop) -> DecodedClip:
    """Read ``n_frames`` pictures at the centres of equal shares of those that the clip has.

    ``span``: ``first`` and ``last`` are numbers in the pictures' names; ``start`` and ``end`` need ``fps``. ``crop``: as for
    :func:`dtsf.pipeline.video.decode.decode_clip`. Raises VideoError: ``unreadable``.
    """
    numbered = numbered_pictures(folder)
    first, behind = _range(folder, np.array([number for number, _ in numbered]), span)
    if span.common and span.fps:
        places = np.floor(span.moments(n_frames, behind / span.fps) * span.fps + 1e-6).astype(np.int64)
        rank, n_held = np.clip(places, 0, len(numbered) - 1), n_frames
    else:
        rank, n_held = first + segment_centres(behind - first, n_frames), behind - first
    pictures = {int(k): _read(numbered[k][1], size, crop, n_frames) for k in np.unique(rank)}
    if len({picture.shape for picture in pictures.values()}) > 1:
        raise VideoError(f"{folder} holds frames of different sizes", Status.UNREADABLE)
    verdict, reason = short_status(n_held, n_frames)
    return DecodedClip(
        frames=cut_square(np.stack([pictures[int(k)] for k in rank]), size, crop),
        frame_index=rank.astype(np.int32),
        frame_time=rank / span.fps if span.fps else np.full(n_frames, np.nan),
        verdict=verdict,
        reason=reason,
        declared_frames=0,
        decoded_frames=len(numbered),
        missing_frames=0,
        duration=len(numbered) / span.fps if span.fps else 0.0,
    )


def numbered_pictures(folder: Path) -> list[tuple[int, Path]]:
    """The pictures of a folder in natural order, each with its number: the first in its name that is not the same in all.

    Where names are of several kinds (``frame_#_rgb.jpg``, ``frame_#_depth.png``), those with ``rgb`` are taken, else those of which
    there are most.

    Raises VideoError: ``unreadable``: there is none, or two kinds of which there are as many.
    """
    kinds: dict[str, list[Path]] = defaultdict(list)
    for file in folder.iterdir():
        if file.suffix.lower() in ENDINGS and not file.name.startswith(".") and NUMBER.search(file.stem):
            kinds[NUMBER.sub("#", file.stem.lower()) + file.suffix.lower()].append(file)
    coloured = {kind: files for kind, files in kinds.items() if "rgb" in kind} or kinds
    if not coloured:
        raise VideoError(
            f"{folder} holds no picture with a number in its name, such as img_00001.jpg", Status.UNREADABLE
        )
    most = max(len(files) for files in coloured.values())
    chosen = sorted(kind for kind, files in coloured.items() if len(files) == most)
    if len(chosen) > 1:
        raise VideoError(
            f"{folder} holds {most} pictures each of {' and '.join(chosen)}: leave one kind", Status.UNREADABLE
        )
    files = sorted((tuple(map(int, NUMBER.findall(file.stem))), file.name, file) for file in coloured[chosen[0]])
    columns = zip(*(numbers for numbers, _, _ in files), strict=True)
    varying = next((k for k, column in enumerate(columns) if len(set(column)) > 1), -1)
    return [(numbers[varying], file) for numbers, _, file in files]


def _range(folder: Path, numbers: np.ndarray, span: Span) -> tuple[int, int]:
    """Places of the first picture of a clip and of the one behind its last."""
    if (span.start is not None or span.end is not None) and not span.fps:
        raise VideoError(f"{folder} is a folder of pictures: start and end need its frame rate, fps", Status.UNREADABLE)
    inside = np.ones(len(numbers), bool)
    if span.first is not None:
        inside &= numbers >= span.first
    if span.last is not None:
        inside &= numbers <= span.last
    if span.fps and not span.common:
        seconds = np.arange(len(numbers)) / span.fps
        inside &= seconds >= (span.start or 0.0) - 1e-6
        inside &= seconds < (np.inf if span.end is None else span.end) - 1e-6
    if not inside.any():
        raise VideoError(
            f"{folder} has the pictures {numbers.min()} to {numbers.max()}: none lies in the clip", Status.UNREADABLE
        )
    places = np.flatnonzero(inside)
    return int(places[0]), int(places[-1]) + 1


def _read(file: Path, size: int, crop: Crop, n_frames: int) -> np.ndarray:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file)
        with image:
            if image.width * image.height > LARGEST:
                raise VideoError(f"{file} is {image.width} x {image.height}: too large", Status.UNREADABLE)
            upright = ImageOps.exif_transpose(image)
            target = size_to_decode(*upright.size, size, crop)
            check_clip_size(file, target, n_frames)
            return np.asarray(upright.convert("RGB").resize(target, Image.Resampling.BILINEAR))
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise VideoError(f"{file} cannot be read: {short(error)}", Status.UNREADABLE) from error
