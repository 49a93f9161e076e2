"""Decode the frames of a clip that are wanted, in the order in which they are shown, and say what the file is worth.

Decoding begins at the last key frame that helps and stops behind the last frame that is wanted. What comes out is held
against :mod:`~dtsf.pipeline.video.index`; where the two differ the index learns, and the frames are picked again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dtsf.cache.status import Status
from dtsf.errors import VideoError
from dtsf.pipeline.video.clip import WHOLE, DecodedClip, Span, reencode_hint, short_status
from dtsf.pipeline.video.container import declared_size, open_video
from dtsf.pipeline.video.crop import cut_square
from dtsf.pipeline.video.demux import read_index
from dtsf.pipeline.video.frames import Learnt, decode_wanted
from dtsf.pipeline.video.index import NO_TIME, REORDERED, VideoIndex
from dtsf.pipeline.video.packets import PacketSource
from dtsf.pipeline.video.render import Screen
from dtsf.pipeline.video.sampling import pick_frames

if TYPE_CHECKING:
    from pathlib import Path

    from dtsf.pipeline.video.crop import Crop

__all__ = ["DecodedClip", "decode_clip", "decoder_name", "duration_of", "probe"]

ROUNDS = 6
"""How often the index may learn of one clip."""


def decoder_name(decoder: str = "pyav") -> str:
    """Decoder and version, for the cache's fingerprint."""
    if decoder == "decord":
        from dtsf.pipeline.video.decord_reader import decord_name

        return decord_name()
    import av

    major, minor, _ = av.library_versions["libavcodec"]
    return f"pyav {av.__version__} libavcodec {major}.{minor}"


def probe(path: Path) -> VideoIndex:
    """What a video file holds. Raises VideoError: ``unreadable`` or ``truncated``."""
    with open_video(path) as container:
        return _index_of(path, container)[0]


def duration_of(path: Path, span: Span = WHOLE) -> float:
    """Seconds that a video shows, or a folder of pictures at the frame rate of ``span`` (0 without one). Raises VideoError:
    ``unreadable`` or ``truncated``.
    """
    if path.is_dir():
        from dtsf.pipeline.video.image_folder import numbered_pictures

        return len(numbered_pictures(path)) / span.fps if span.fps else 0.0
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
    """Decode ``n_frames`` frames of a clip, square, ``size`` pixels.

    Frames are scaled as they are decoded: to the target size or, to cut out what moves, to at most twice that. One thread
    decodes: parallel work is a clip a process.

    Raises VideoError: with verdict ``unreadable``, ``truncated``, ``corrupt`` or ``misplaced``.

    Args:
        check: ``full`` also decodes every frame and refuses a clip in which the codec flags frames as damaged. Choose it
            for files of doubtful origin; it costs a second decoding.
        decoder: ``pyav``, or ``decord`` (checked against it, so that it costs both).
        crop: Which square of the picture: ``centre``, or ``motion``; see :func:`dtsf.pipeline.video.crop.cut_square`.
    """
    start, end = span.start, span.end
    if start is not None and end is not None and end <= start:
        raise VideoError(f"{path}: the clip ends at {end:g} s, before it starts at {start:g} s", Status.UNREADABLE)
    if path.is_dir():
        from dtsf.pipeline.video.image_folder import read_folder

        return read_folder(path, n_frames, size, span, crop)
    with open_video(path) as container:
        index, kept = _index_of(path, container)
        _check_span(path, index, span)
        if check == "full":
            _check_every_frame(path, index)
        source = PacketSource(container, index, kept)
        for _ in range(ROUNDS):
            rank, n_held = pick_frames(index, n_frames, span)
            screen = Screen(path, index.aspect, size, crop, n_frames)
            try:
                shown = decode_wanted(source, index, np.unique(rank), screen.show)
                break
            except Learnt as learnt:
                index = learnt.index
            if not index.n_frames:
                raise VideoError(f"{path} has no frame that can be decoded; {reencode_hint(path)}", Status.UNREADABLE)
        else:
            raise VideoError(
                f"{path}: what it holds is not what it decodes to; {reencode_hint(path)}", Status.UNREADABLE
            )
        if decoder == "decord":
            from dtsf.pipeline.video.decord_reader import read_with_decord

            shown = read_with_decord(path, index, np.unique(rank), shown)
    verdict, reason = short_status(n_held, n_frames)
    return DecodedClip(
        frames=cut_square(np.stack([shown[int(r)] for r in rank]), size, crop),
        frame_index=rank.astype(np.int32),
        frame_time=index.ticks[rank] * float(index.tick),
        verdict=verdict,
        reason=reason,
        declared_frames=index.declared_frames,
        decoded_frames=index.n_frames,
        missing_frames=index.missing_frames,
        duration=index.duration,
    )


def _check_span(path: Path, index: VideoIndex, span: Span) -> None:
    if span.start is not None and span.start >= index.duration:
        raise VideoError(
            f"{path}: the clip starts at {span.start:g} s, the video ends at {index.duration:.2f} s", Status.UNREADABLE
        )
    if span.first is not None and span.first >= index.n_frames:
        raise VideoError(
            f"{path}: the clip starts at frame {span.first}, the video has {index.n_frames}", Status.UNREADABLE
        )


def _index_of(path: Path, container: Any) -> tuple[VideoIndex, list[Any] | None]:
    """The index of a file, kept for its next clip; and its packets, where it was read now and is small."""
    stat = path.stat()
    key = (path, stat.st_size, stat.st_mtime_ns)
    if key in _kept:
        return _kept[key], None
    index, packets = read_index(container, path, keep=True)
    _check_whole(path, index)
    index = _settle_head(PacketSource(container, index, packets), index)
    _kept.clear()
    _kept[key] = index
    return index, packets


_kept: dict[tuple[Path, int, int], VideoIndex] = {}
"""Of the last file: an hour with fifty clips is read through once."""


def _check_whole(path: Path, index: VideoIndex) -> None:
    """Refuse a file that is shorter than it says: in bytes, in packets of its own table, or in time."""
    declared, held = declared_size(path), path.stat().st_size
    cut = f"it was cut off; copy it again, or use what is there: ffmpeg -i {path.name} -c copy {path.stem}_short{path.suffix}"
    # A few bytes of padding are forgiven: some writers count them and do not write them.
    if declared is not None and declared - held > 8:
        raise VideoError(f"{path} declares {declared} bytes but has {held}: {cut}", Status.TRUNCATED)
    n_packets = len(index.packets)
    if not n_packets:
        raise VideoError(f"{path} has no frame; {reencode_hint(path)}", Status.UNREADABLE)
    if index.declared_packets - n_packets > 1:
        raise VideoError(f"{path} lists {index.declared_packets} frames but has {n_packets}: {cut}", Status.TRUNCATED)
    if index.promised_end is not None:
        lacking = float(index.promised_end - index.read_end)
        frame = index.gap * float(index.tick)
        if lacking > 0.1 + 3 * frame:
            raise VideoError(
                f"{path} declares {float(index.promised_end):.2f} s but ends at {float(index.read_end):.2f} s: {cut}",
                Status.TRUNCATED,
            )


def _settle_head(source: PacketSource, index: VideoIndex) -> VideoIndex:
    """Drop frames that precede the first key frame in time and do not come out whole: their other half was cut away."""
    unsure = set(index.head.tolist())
    if not unsure:
        return index
    # Those with an earlier time come before the key frame or never; of those without a time nothing is known.
    timed = bool((index.packets.pts[index.head] != NO_TIME).all())
    last = index.first_key if timed else max(unsure) + REORDERED
    for number, frame in source.frames(index.first_key):
        if not frame.is_corrupt:
            unsure.discard(number)
        if not unsure or number >= last:
            break
    return index.without(unsure)


def _check_every_frame(path: Path, index: VideoIndex) -> None:
    """Decode all frames and count those that the codec flags."""
    with open_video(path) as container:
        source = PacketSource(container, index, None, strict=True)
        flagged = count = 0
        for number, frame in source.frames(index.first_key):
            if index.shown[number]:
                count += 1
                flagged += frame.is_corrupt
    damaged = {number: message for number, message in source.errors.items() if number not in index.absent | index.cut}
    if damaged or flagged:
        message = f": {next(iter(damaged.values()))}" if damaged else ""
        raise VideoError(
            f"{path}: the codec flags {max(flagged, len(damaged))} of {index.n_frames} frames as damaged{message}",
            Status.CORRUPT,
        )
