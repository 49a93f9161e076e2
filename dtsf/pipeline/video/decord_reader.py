"""Decode with decord, and compare every frame with PyAV, because decord sometimes seeks to the wrong frame.

decord's frame number is a position in its list of packets. The picture is the one at which FFmpeg's seek ends, and decord does not
compare the two. A clip is accepted only if decord finds the same number of frames, the same times and the same pictures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dtsf.cache.status import Status
from dtsf.errors import VideoError
from dtsf.pipeline.video.clip import short_message

if TYPE_CHECKING:
    from pathlib import Path

    from dtsf.pipeline.video.index import VideoIndex

BLOCK, TOLERANCE = 8, 24.0
"""Pictures are compared by the means of squares of this side, with this tolerance in levels (of 256). Different rounding of scaling
and colour conversion causes differences below 10."""


def read_with_decord(
    path: Path, index: VideoIndex, numbers: np.ndarray, expected: dict[int, np.ndarray]
) -> dict[int, np.ndarray]:
    """Return decord's pictures by frame number.

    ``numbers``: (n,) requested frame numbers. ``expected``: PyAV's pictures of the same frames. Raises VideoError: ``misplaced`` if
    number, time or picture of a frame differs; ``unreadable`` if decord fails.
    """
    import decord

    height, width, _ = expected[int(numbers[0])].shape
    try:
        reader: Any = decord.VideoReader(str(path), num_threads=1, width=_safe_width(width), height=height)
        if len(reader) != index.n_frames:
            raise _misplaced(path, f"{len(reader)} frames instead of {index.n_frames}")
        start = reader.get_frame_timestamp(0)[0]
        times = np.array([reader.get_frame_timestamp(int(k))[0] for k in numbers]) - start
        difference = np.abs(times - index.ticks[numbers] * float(index.tick))
        if difference.max() > 0.5 * index.gap * float(index.tick):
            k = int(difference.argmax())
            raise _misplaced(path, f"frame {numbers[k]} at {times[k]:.3f} s")
        frames = reader.get_batch([int(k) for k in numbers]).asnumpy()[:, :, :width]
    except (decord.DECORDError, RuntimeError, IndexError, OSError) as error:
        raise VideoError(f"{path}: decord cannot decode it: {short_message(error)}; use --decoder pyav") from error
    finally:
        # An idle reader continues to decode in the background and uses more and more memory.
        reader = None
    pictures = dict(zip(numbers.tolist(), frames, strict=True))
    for k, picture in pictures.items():
        if np.abs(_block_means(picture) - _block_means(expected[k])).max() > TOLERANCE:
            raise _misplaced(path, f"another picture as frame {k}")
    return pictures


def _misplaced(path: Path, reason: str) -> VideoError:
    return VideoError(f"{path}: decord returned wrong frames ({reason}); use --decoder pyav", Status.MISPLACED)


def _block_means(picture_HWC: np.ndarray) -> np.ndarray:
    """Return the means of squares of side :data:`BLOCK`, (h, w, C)."""
    H, W, C = picture_HWC.shape
    side = max(1, min(BLOCK, H, W))
    whole = picture_HWC[: H // side * side, : W // side * side].astype(np.float32)
    return np.asarray(whole.reshape(H // side, side, W // side, side, C).mean((1, 3)))


def _safe_width(width: int) -> int:
    """Return the smallest width, at least ``width``, that decord can return on every processor.

    FFmpeg pads rows to a multiple of 16, 32 or 64 pixels, depending on the processor. If the padded row is a multiple of the
    width, decord takes the padding for further channels and fails: 96 pixels padded to 128 look like 4 channels of 96.
    """

    def is_ambiguous(multiple: int) -> bool:
        padded = -(-width // multiple) * multiple
        return padded != width and 3 * padded % width == 0

    while any(map(is_ambiguous, (16, 32, 64))):
        width += 1
    return width
