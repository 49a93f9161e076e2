"""Probe and decode one clip, with a verdict: decord for the frames, PyAV for what the container declares.

decord reads a file that was cut off as a shorter one and says nothing, so the container's own count is compared with
what came.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dtsf.cache.verdict import Verdict
from dtsf.errors import VideoError
from dtsf.pipeline.video.container import declared_size
from dtsf.pipeline.video.crop import cut_square, size_to_decode
from dtsf.pipeline.video.sampling import segment_centres

if TYPE_CHECKING:
    from pathlib import Path

    from dtsf.pipeline.video.crop import Crop

__all__ = ["DecodedClip", "VideoInfo", "decode_clip", "decoder_name", "probe"]

FRAME_NAME = re.compile(r"^[^_]*_(\d+)_.*rgb\.jpg$|^[^_]*_(\d+).*rgb\.jpg$", re.IGNORECASE)


@dataclass(frozen=True)
class VideoInfo:
    """What the container's header says."""

    width: int
    """As shown: a picture stored lying and shown upright has its sides exchanged."""
    height: int
    declared_frames: int
    """0 where the header does not say."""
    fps: float
    codec: str


@dataclass(frozen=True)
class DecodedClip:
    """Sampled frames of one clip."""

    frames: np.ndarray
    """(F, size, size, 3) uint8 RGB."""
    frame_index: np.ndarray
    """(F,) int32, number of each frame in its file."""
    verdict: Verdict
    """``ok`` or ``short``."""
    reason: str
    declared_frames: int
    decoded_frames: int


def decoder_name() -> str:
    """Decoder and version, for the cache's fingerprint."""
    import importlib.metadata

    return f"decord2 {importlib.metadata.version('decord2')}"


def probe(path: Path) -> VideoInfo:
    """Read a video's header.

    Raises:
        VideoError: Missing, empty, not a video, or without a video stream (verdict ``unreadable``).

    """
    import av

    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            if not container.streams.video:
                raise VideoError(f"{path} has no video stream", Verdict.UNREADABLE)
            stream = container.streams.video[0]
            rate = stream.average_rate or stream.guessed_rate
            turned = _is_turned(container, stream)
            return VideoInfo(
                width=stream.height if turned else stream.width,
                height=stream.width if turned else stream.height,
                declared_frames=stream.frames,
                fps=float(rate) if rate else 0.0,
                codec=stream.codec_context.name,
            )
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path} cannot be opened: {_short(error)}", Verdict.UNREADABLE) from error


def _is_turned(container: Any, stream: Any) -> bool:
    """Whether the picture is shown a quarter turn from how it is stored.

    decord turns a picture before it scales it, so the size asked of it must be that of the turned picture. PyAV tells
    the turn only with a frame; AVI cannot hold one, so that NTU and N-UCLA do not pay for this.
    """
    import av

    if not any(kind in container.format.name for kind in ("mov", "matroska")):
        return False
    try:
        frame = next(container.decode(stream), None)
    except av.FFmpegError:
        return False  # whether the file can be decoded is for decord to say
    return frame is not None and bool(frame.rotation % 180 == 90)


def decode_clip(
    path: Path,
    n_frames: int,
    size: int,
    *,
    start: float | None = None,
    end: float | None = None,
    check: str = "fast",
    crop: Crop = "centre",
) -> DecodedClip:
    """Decode ``n_frames`` frames of a clip, square, ``size`` pixels.

    The reader scales itself, to the target size or, to cut out what moves, to at most twice that: one resampling rule
    for all sources, so that features do not depend on the resolution class of a file, and at 1080p it is also the faster
    way (anchors C.1: 1.3-1.7 times). It decodes with one thread: parallel work is a clip a process. It is closed before
    this returns: an idle decord reader goes on decoding ahead and grows by hundreds of megabytes.

    Args:
        path: A video file, or a folder of N-UCLA frames (``*rgb.jpg``, sorted by frame number).
        n_frames: F.
        size: Side of the square, in pixels.
        start: Seconds at which the clip begins, for untrimmed video.
        end: Seconds at which it ends.
        check: ``full`` also decodes every frame once more with PyAV and refuses a clip in which the codec flags frames
            as damaged. Choose it for files of doubtful origin; it costs a second decoding.
        crop: Which square of the picture: ``centre``, or ``motion``; see :func:`dtsf.pipeline.video.crop.cut_square`.

    Raises:
        VideoError: With verdict ``unreadable``, ``truncated`` or ``corrupt``.

    """
    if start is not None and end is not None and end <= start:
        raise VideoError(f"{path}: the clip ends at {end:g} s, before it starts at {start:g} s", Verdict.UNREADABLE)
    if path.is_dir():
        if start is not None or end is not None:
            raise VideoError(f"{path} is a folder of frames: start and end need a frame rate", Verdict.UNREADABLE)
        return _read_frame_folder(path, n_frames, size, crop)
    info = probe(path)
    _check_size(path)
    if min(info.width, info.height) < 1:
        raise VideoError(f"{path} declares a picture of {info.width} x {info.height}", Verdict.UNREADABLE)
    if check == "full":
        _check_every_frame(path)
    width, height = size_to_decode(info.width, info.height, size, crop)
    reader = _open_decord(path, _safe_width(width), height)
    try:
        total = len(reader)
        _check_length(path, info, total)
        first, last = _range_in_frames(path, info.fps, total, start, end)
        index = first + segment_centres(last - first, n_frames)
        frames = _get_frames(path, reader, index)[:, :, :width]
    finally:
        del reader
    verdict, reason = _short_verdict(last - first, n_frames)
    return DecodedClip(
        cut_square(frames, size, crop), index.astype(np.int32), verdict, reason, info.declared_frames, total
    )


def _open_decord(path: Path, width: int, height: int) -> Any:
    # DECORD_EOF_RETRY_MAX stays at decord's own 10,240. A limit below a clip's number of frames makes healthy H.264 with
    # B-frames unreadable once its last frame is wanted: at 64, 4 of 4 times for 64 of 103 frames; at 1024, 1 of 4 times
    # for all of 1,200. And it saves nothing: 48 cut and flipped files took 1.1 s with 64 as with 10,240.
    import decord

    try:
        return decord.VideoReader(str(path), num_threads=1, width=width, height=height)
    except (decord.DECORDError, RuntimeError, OSError) as error:
        raise VideoError(f"{path} cannot be decoded: {_short(error)}", Verdict.UNREADABLE) from error


def _safe_width(width: int) -> int:
    """The least width from ``width`` on that decord can return on any processor.

    FFmpeg pads rows to 16, 32 or 64 pixels, by the processor's vector length, and decord takes padding that comes to whole
    columns of channels for channels: 96 pixels padded to 128 are 4 channels of 96, which it refuses. Found by asking for all
    widths to 700 on a processor with AVX-512: it refuses those that this rule names for 64, and no other.
    """

    def taken_for_channels(width: int, multiple: int) -> bool:
        padded = -(-width // multiple) * multiple
        return padded != width and 3 * padded % width == 0

    while any(taken_for_channels(width, multiple) for multiple in (16, 32, 64)):
        width += 1
    return width


def _get_frames(path: Path, reader: Any, index: np.ndarray) -> np.ndarray:
    import decord

    # Each frame once: asking for the last frame again and again makes decord seek every time.
    wanted, inverse = np.unique(index, return_inverse=True)
    try:
        frames = reader.get_batch(wanted).asnumpy()
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        raise VideoError(f"{path}: decoding stopped: {_short(error)}", Verdict.UNREADABLE) from error
    return np.asarray(frames[inverse])


def _check_length(path: Path, info: VideoInfo, total: int) -> None:
    if total < 1:
        raise VideoError(f"{path} has no frame that can be decoded", Verdict.UNREADABLE)
    # One frame is forgiven: muxers of AVI and MP4 are known to count the first or last packet differently.
    if info.declared_frames - total > 1:
        raise VideoError(
            f"{path} declares {info.declared_frames} frames but has {total}: it was cut off", Verdict.TRUNCATED
        )


def _check_size(path: Path) -> None:
    declared, held = declared_size(path), path.stat().st_size
    # A few bytes of padding are forgiven: some writers count them and do not write them.
    if declared is not None and declared - held > 8:
        raise VideoError(f"{path} declares {declared} bytes but has {held}: it was cut off", Verdict.TRUNCATED)


def _check_every_frame(path: Path) -> None:
    """Decode all frames and count those that the codec flags."""
    import av

    flagged = count = 0
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            # Without it H.264 conceals damage and flags nothing.
            container.streams.video[0].codec_context.options = {"err_detect": "explode"}
            for frame in container.decode(video=0):
                count += 1
                flagged += frame.is_corrupt
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path}: decoding stops after {count} frames: {_short(error)}", Verdict.CORRUPT) from error
    if flagged:
        raise VideoError(f"{path}: the codec flags {flagged} of {count} frames as damaged", Verdict.CORRUPT)


def _range_in_frames(path: Path, fps: float, total: int, start: float | None, end: float | None) -> tuple[int, int]:
    if start is None and end is None:
        return 0, total
    if fps <= 0:
        raise VideoError(f"{path} does not say its frame rate, so start and end mean nothing", Verdict.UNREADABLE)
    first = 0 if start is None else int(start * fps)
    last = total if end is None else min(total, max(first + 1, round(end * fps)))
    if first >= total:
        raise VideoError(
            f"{path}: the clip starts at {start:g} s, the video ends at {total / fps:.2f} s", Verdict.UNREADABLE
        )
    return first, last


def _short_verdict(n_available: int, n_frames: int) -> tuple[Verdict, str]:
    if n_available >= n_frames:
        return Verdict.OK, ""
    return Verdict.SHORT, f"{n_available} of {n_frames} frames; the last one is repeated"


def _read_frame_folder(folder: Path, n_frames: int, size: int, crop: Crop) -> DecodedClip:
    """N-UCLA's frame layout: the frame number is the second ``_`` token of the name, sorted as a number."""
    from PIL import Image, UnidentifiedImageError

    numbered = []
    for file in folder.iterdir():
        match = FRAME_NAME.match(file.name)
        if match:
            numbered.append((int(match.group(1) or match.group(2)), file.name, file))
    if not numbered:
        raise VideoError(f"{folder} holds no frame named like frame_12_..._rgb.jpg", Verdict.UNREADABLE)
    numbered.sort()
    index = segment_centres(len(numbered), n_frames)
    pictures: dict[int, np.ndarray] = {}
    for position in np.unique(index):
        file = numbered[position][2]
        try:
            with Image.open(file) as image:
                rgb = image.convert("RGB").resize(size_to_decode(*image.size, size, crop), Image.Resampling.BILINEAR)
        except (OSError, UnidentifiedImageError, ValueError) as error:
            raise VideoError(f"{file} cannot be read: {_short(error)}", Verdict.UNREADABLE) from error
        pictures[int(position)] = np.asarray(rgb)
    verdict, reason = _short_verdict(len(numbered), n_frames)
    if len({picture.shape for picture in pictures.values()}) > 1:
        raise VideoError(f"{folder} holds frames of different sizes", Verdict.UNREADABLE)
    frames = np.stack([pictures[int(position)] for position in index])
    return DecodedClip(cut_square(frames, size, crop), index.astype(np.int32), verdict, reason, 0, len(numbered))


def _short(error: BaseException) -> str:
    """First line of an error: decord's come with a C++ stack."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split("]", 1)[-1].strip()[:200]
