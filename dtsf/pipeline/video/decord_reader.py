"""decord as the decoder, held against the index and against the pictures that are right: its seeking lands elsewhere at times.

decord's frame number is a place in its list of packets, its time that of the packet; the picture is wherever FFmpeg's seeking
landed, and decord does not compare. So a clip is taken from it only where it counts the same frames, at the same times, and where
its pictures are those that decoding in order gives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dtsf.cache.status import Status
from dtsf.errors import ConfigError, VideoError
from dtsf.pipeline.video.clip import short

if TYPE_CHECKING:
    from pathlib import Path

    from dtsf.pipeline.video.index import VideoIndex

BLOCK, ALIKE = 8, 24.0
"""Pictures are compared by the means of squares of this side; these may differ by as many of 256 levels. The two scale and turn
YUV to RGB with other rounding, which comes to less than 10."""


def decord_name() -> str:
    """Decoder and version. Raises ConfigError: it is not installed."""
    import importlib.metadata

    try:
        return f"decord2 {importlib.metadata.version('decord2')}"
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(
            "decord is not installed (pip install decord2), and has no wheel for every platform"
        ) from error


def read_with_decord(
    path: Path, index: VideoIndex, rank: np.ndarray, right: dict[int, np.ndarray]
) -> dict[int, np.ndarray]:
    """Decord's pictures of the frames ``rank``.

    ``rank``: (n,) frames that are wanted. ``right``: the same pictures as decoding in order gives them. Raises VideoError:
    ``misplaced`` where decord counts, times or shows other frames, ``unreadable`` where it fails.
    """
    import decord

    height, width, _ = right[int(rank[0])].shape
    try:
        reader: Any = decord.VideoReader(str(path), num_threads=1, width=_safe_width(width), height=height)
        total = len(reader)
        if total != index.n_frames:
            raise _misplaced(path, f"it counts {total} frames where {index.n_frames} are shown")
        begin = reader.get_frame_timestamp(0)[0]
        times = np.array([reader.get_frame_timestamp(int(k))[0] for k in rank]) - begin
        apart = np.abs(times - index.ticks[rank] * float(index.tick))
        if apart.max() > 0.5 * index.gap * float(index.tick):
            k = int(apart.argmax())
            raise _misplaced(path, f"it has frame {rank[k]} at {times[k]:.3f} s")
        frames = reader.get_batch([int(k) for k in rank]).asnumpy()[:, :, :width]
    except (decord.DECORDError, RuntimeError, IndexError, OSError) as error:
        raise VideoError(
            f"{path}: decord cannot decode it: {short(error)}; use --decoder pyav", Status.UNREADABLE
        ) from error
    finally:
        # A reader that is idle goes on decoding ahead, and grows.
        reader = None
    for k, frame in zip(rank.tolist(), frames, strict=True):
        if np.abs(_blocks(frame) - _blocks(right[k])).max() > ALIKE:
            raise _misplaced(path, f"it shows another picture as frame {k}")
    return dict(zip(rank.tolist(), frames, strict=True))


def _misplaced(path: Path, why: str) -> VideoError:
    return VideoError(
        f"{path}: decord is not at the frames that were asked for: {why}; use --decoder pyav", Status.MISPLACED
    )


def _blocks(picture_HWC: np.ndarray) -> np.ndarray:
    """Means of squares, (h, w, C)."""
    H, W, C = picture_HWC.shape
    side = max(1, min(BLOCK, H, W))
    whole = picture_HWC[: H // side * side, : W // side * side].astype(np.float32)
    return np.asarray(whole.reshape(H // side, side, W // side, side, C).mean((1, 3)))


def _safe_width(width: int) -> int:
    """The least width from ``width`` on that decord can return on any processor.

    FFmpeg pads rows to 16, 32 or 64 pixels, by the processor's vector length, and decord takes padding that comes to whole
    columns of channels for channels: 96 pixels padded to 128 are 4 channels of 96, which it refuses.
    """

    def taken_for_channels(width: int, multiple: int) -> bool:
        padded = -(-width // multiple) * multiple
        return padded != width and 3 * padded % width == 0

    while any(taken_for_channels(width, multiple) for multiple in (16, 32, 64)):
        width += 1
    return width
