"""Decode the requested frames of a clip in presentation order, and check the file for damage.

Decoding starts at the last key frame before the first requested frame and stops after the last one. Decoded frames are compared
with the :mod:`~dtsf.pipeline.video.index`. If they differ, the index is corrected and the frames are sampled again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dtsf.cache.status import Status
from dtsf.errors import ConfigError, VideoError
from dtsf.pipeline.video.clip import WHOLE, DecodedClip, Span, reencode_hint, select_frames
from dtsf.pipeline.video.container import open_video
from dtsf.pipeline.video.crop import FrameScaler, cut_square
from dtsf.pipeline.video.demux import read_index
from dtsf.pipeline.video.frames import IndexCorrected, decode_wanted
from dtsf.pipeline.video.index import NO_TIME, REORDERED, VideoIndex
from dtsf.pipeline.video.packets import PacketSource

if TYPE_CHECKING:
    from pathlib import Path

    from dtsf.pipeline.video.crop import Crop

MAX_CORRECTIONS = 6
"""Maximum number of index corrections per clip."""


def decoder_name(decoder: str = "pyav") -> str:
    """Return decoder and version for the cache's fingerprint. Raises ConfigError: decord is not installed."""
    if decoder == "decord":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return f"decord2 {version('decord2')}"
        except PackageNotFoundError as error:
            raise ConfigError(
                "decord is not installed: pip install 'dtsf[decord]' (not available on every platform), or use --decoder pyav"
            ) from error
    import av

    major, minor, _ = av.library_versions["libavcodec"]
    return f"pyav {av.__version__} libavcodec {major}.{minor}"


def probe(path: Path) -> VideoIndex:
    """Read the index of a video file. Raises VideoError: ``unreadable`` or ``truncated``."""
    with open_video(path) as container:
        return _checked_index(path, container)[0]


def duration_of(path: Path, span: Span = WHOLE) -> float:
    """Return the duration in seconds of a video, or of an image folder at ``span.fps`` (0 without a frame rate).

    Raises VideoError: ``unreadable`` or ``truncated``.
    """
    if path.is_dir():
        from dtsf.pipeline.video.image_folder import numbered_images

        return len(numbered_images(path)) / span.fps if span.fps else 0.0
    return probe(path).duration


def decode_clip(
    path: Path,
    n_frames: int,
    size: int,
    *,
    span: Span = WHOLE,
    check: str = "fast",
    crop: Crop = "centre",
    decoder: str = "pyav",
) -> DecodedClip:
    """Decode ``n_frames`` square frames of ``size`` pixels, sampled at equal parts of the clip's time.

    ``path``: video file, or a folder of numbered images. ``check``: ``fast``; or ``full``, which decodes every frame once more and
    refuses a clip with damaged frames. ``crop``: see :func:`~dtsf.pipeline.video.crop.cut_square`. ``decoder``: ``pyav``; or
    ``decord``, which is checked against PyAV. Raises VideoError: ``unreadable``, ``truncated``, ``corrupt`` or ``misplaced``.
    """
    if span.start is not None and span.end is not None and span.end <= span.start:
        raise VideoError(f"{path}: the clip ends at {span.end:g} s, before it starts at {span.start:g} s")
    if path.is_dir():
        from dtsf.pipeline.video.image_folder import read_folder

        return read_folder(path, n_frames, size, span, crop)
    with open_video(path) as container:
        index, kept = _checked_index(path, container)
        if span.start is not None and span.start >= index.duration:
            raise VideoError(f"{path}: the clip starts at {span.start:g} s, the video ends at {index.duration:.2f} s")
        if span.first is not None and span.first >= index.n_frames:
            raise VideoError(f"{path}: the clip starts at frame {span.first}, the video has {index.n_frames}")
        if check == "full":
            _check_every_frame(path, index)
        source = PacketSource(container, index, kept)
        for _ in range(MAX_CORRECTIONS):
            numbers, n_available = select_frames(index, n_frames, span)
            scaler = FrameScaler(path, index.aspect, size, crop, n_frames)
            try:
                pictures = decode_wanted(source, index, np.unique(numbers), scaler.render)
                break
            except IndexCorrected as corrected:
                index = corrected.index
            if not index.n_frames:
                raise VideoError(f"{path} has no frame that can be decoded; {reencode_hint(path)}")
        else:
            raise VideoError(f"{path}: its packets contradict its frames; {reencode_hint(path)}")
    if decoder == "decord":
        from dtsf.pipeline.video.decord_reader import read_with_decord

        pictures = read_with_decord(path, index, np.unique(numbers), pictures)
    return DecodedClip(
        frames=cut_square(np.stack([pictures[int(k)] for k in numbers]), size, crop),
        frame_index=numbers.astype(np.int32),
        frame_time=index.ticks[numbers] * float(index.tick),
        available_frames=n_available,
        declared_frames=index.declared_frames,
        decoded_frames=index.n_frames,
        missing_frames=index.missing_frames,
        duration=index.duration,
    )


def _checked_index(path: Path, container: Any) -> tuple[VideoIndex, list[Any] | None]:
    """Return the index of a file that is not cut off, and its packets if they were read now and fit in memory."""
    stat = path.stat()
    key = (path, stat.st_size, stat.st_mtime_ns)
    if key in _last_index:
        return _last_index[key], None
    index, packets = read_index(container, path)
    index = _drop_cut_frames(PacketSource(container, index, packets), index)
    _last_index.clear()
    _last_index[key] = index
    return index, packets


_last_index: dict[tuple[Path, int, int], VideoIndex] = {}
"""Index of the last file, so that a file with many clips is indexed once."""


def _drop_cut_frames(source: PacketSource, index: VideoIndex) -> VideoIndex:
    """Decode the start of the file, and drop uncertain frames that refer to a frame before the cut."""
    uncertain = set(index.uncertain.tolist())
    if not uncertain:
        return index
    # A frame with an earlier time leaves the decoder before the key frame, or never. Without times the order is unknown.
    timed = bool((index.packets.pts[index.uncertain] != NO_TIME).all())
    last = index.first_key if timed else max(uncertain) + REORDERED
    for number, frame in source.frames(index.first_key):
        if not frame.is_corrupt:
            uncertain.discard(number)
        if not uncertain or number >= last:
            break
    return index.without(uncertain)


def _check_every_frame(path: Path, index: VideoIndex) -> None:
    """Decode all frames and raise VideoError if the codec flags some as damaged."""
    with open_video(path) as container:
        source = PacketSource(container, index, None, strict=True)
        flagged = sum(frame.is_corrupt for number, frame in source.frames(index.first_key) if index.shown[number])
    damaged = {number: message for number, message in source.errors.items() if number not in index.absent | index.cut}
    if damaged or flagged:
        message = f": {next(iter(damaged.values()))}" if damaged else ""
        raise VideoError(
            f"{path}: the codec flags {max(flagged, len(damaged))} of {index.n_frames} frames as damaged{message}",
            Status.CORRUPT,
        )
