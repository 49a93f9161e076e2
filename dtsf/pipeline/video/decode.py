"""Decode a clip's frames in presentation order, from the last key frame before the first one. Entry point of the decoder process.
Frames that differ from the :mod:`~dtsf.pipeline.video.index` correct it. decord's frame number is a position in its list of
packets, and its picture the one at which FFmpeg's seek ends. So its pictures are compared with PyAV's.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import mmap
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from dtsf.cache.status import Status
from dtsf.errors import ConfigError, VideoError
from dtsf.pipeline.video.clip import WHOLE, DecodedClip, Span, check_span, reencode_hint, select_frames, short_message
from dtsf.pipeline.video.container import open_video, read_index
from dtsf.pipeline.video.crop import Crop, Renderer, cut_region, cut_square, ignored_mask
from dtsf.pipeline.video.frames import IndexCorrected, PacketSource, decode_wanted
from dtsf.pipeline.video.image_folder import numbered_images, read_folder
from dtsf.pipeline.video.index import NO_TIME, REORDERED, VideoIndex

CLOCK = ", clock of the file"  # seconds count from the earliest stream; before, they counted from the first shown frame
MAX_CORRECTIONS = 6  # maximum number of index corrections per clip
# decord and PyAV are compared by means of squares of this side, with this tolerance of 256 levels. Rounding: below 10.
BLOCK, TOLERANCE = 8, 24.0


def decoder_name(decoder: str = "pyav") -> str:
    """Return decoder and version for the cache's fingerprint. Raises ConfigError: decord is not installed."""
    if decoder == "decord":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return f"decord2 {version('decord2')}{CLOCK}"
        except PackageNotFoundError as error:
            raise ConfigError(
                "decord is not installed: pip install 'dtsf[decord]' (not available on every platform), or use --decoder pyav"
            ) from error
    import av

    major, minor, _ = av.library_versions["libavcodec"]
    return f"pyav {av.__version__} libavcodec {major}.{minor}{CLOCK}"


def probe(path: Path) -> VideoIndex:
    """Read the index of a video file. Raises VideoError: ``unreadable`` or ``truncated``."""
    with open_video(path) as container:
        return checked_index(path, container)[0]


def extent_of(path: Path, span: Span = WHOLE) -> tuple[float, float]:
    """Return the seconds at which the picture of a file begins and ends; (0, 0) for an image folder without ``span.fps``.
    Raises VideoError as :func:`probe`.
    """
    if path.is_dir():
        return 0.0, len(numbered_images(path)) / span.fps if span.fps else 0.0
    index = probe(path)
    return index.begin, index.begin + index.duration


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
    """Decode ``n_frames`` square frames of ``size`` pixels at equal parts of the time. ``path``: video, or folder of numbered
    images. ``check``: ``full`` decodes every frame once more and refuses damaged ones. ``decoder``: ``pyav``, or ``decord``,
    which is compared with PyAV. Raises VideoError: ``unreadable``, ``truncated``, ``corrupt`` or ``misplaced``.
    """
    if path.is_dir():
        return read_folder(path, n_frames, size, span, crop)
    with open_video(path) as container:
        index, kept = checked_index(path, container)
        begin, duration = index.begin, index.duration  # by the packets, as in extent_of()
        check_span(path, span, begin, begin + duration)
        if span.first is not None and span.first >= index.n_frames:
            raise VideoError(f"{path}: the clip starts at frame {span.first}, the video has {index.n_frames}")
        if check == "full":
            _check_every_frame(path, index)
        source = PacketSource(container, index, kept)
        for _ in range(MAX_CORRECTIONS):
            numbers, n_available = select_frames(index, n_frames, span)
            render = Renderer(path, index.aspect, size, crop, span.region, n_frames)
            whole = decoder == "decord"  # which is compared with whole pictures

            def picture(frame: Any, render: Renderer = render, whole: bool = whole) -> np.ndarray:
                return render(frame) if whole else cut_region(render(frame), render.shown, span.region)

            try:
                pictures = decode_wanted(source, index, np.unique(numbers), picture)
                break
            except IndexCorrected as corrected:
                index = corrected.args[0]
            if not index.n_frames:
                raise VideoError(f"{path} has no frame that can be decoded; {reencode_hint(path)}")
        else:
            raise VideoError(f"{path}: its packets contradict its frames; {reencode_hint(path)}")
    if decoder == "decord":
        read = _read_with_decord(path, index, pictures)
        pictures = {k: cut_region(picture, render.shown, span.region) for k, picture in read.items()}
    damaged = source.take_damaged(index, int(numbers[0]))
    frames_FHWC = np.stack([pictures[int(k)] for k in numbers])
    ignored_HW = ignored_mask(frames_FHWC, render.shown, span.region, span.ignore)
    frames_FHWC, notes = cut_square(frames_FHWC, size, crop, ignored_HW)
    return DecodedClip(
        frames=frames_FHWC,
        crop_notes=notes,
        damaged=(damaged[0], damaged[-1]) if damaged else None,
        frame_index=numbers.astype(np.int32),
        frame_time=index.begin + index.ticks[numbers] * float(index.tick),
        begin=begin,
        available_frames=n_available,
        declared_frames=index.declared_frames,
        decoded_frames=index.n_frames,
        missing_frames=index.missing_frames,
        duration=duration,
    )


_last_index: dict[tuple[Path, int, int], VideoIndex] = {}  # of the last file, which may have many clips


def checked_index(path: Path, container: Any) -> tuple[VideoIndex, list[Any] | None]:
    """Return the index of a file that is not cut off, and its packets if they were read now and fit in memory. Frames at the
    start are dropped if they may refer to a frame before the cut and do not decode.
    """
    stat = path.stat()
    key = (path, stat.st_size, stat.st_mtime_ns)
    if key in _last_index:
        return _last_index[key], None
    index, packets = read_index(container, path)
    pts, near = index.packets.pts, slice(index.first_key + 1, index.first_key + 1 + REORDERED)
    uncertain = set((near.start + np.flatnonzero(index.shown[near] & (pts[near] < pts[index.first_key]))).tolist())
    if uncertain:
        # A frame with an earlier time leaves the decoder before the key frame, or never. Without times the order is unknown.
        timed = all(pts[number] != NO_TIME for number in uncertain)
        last = index.first_key if timed else max(uncertain) + REORDERED
        for number, frame in PacketSource(container, index, packets).frames(index.first_key):
            if not frame.is_corrupt:
                uncertain.discard(number)
            if not uncertain or number >= last:
                break
        index = index.without(uncertain)
    _last_index.clear()
    _last_index[key] = index
    return index, packets


def _check_every_frame(path: Path, index: VideoIndex) -> None:
    """Decode all frames and raise VideoError if the codec flags some as damaged."""
    with open_video(path) as container:
        source = PacketSource(container, index, None, strict=True)
        flagged = sum(frame.is_corrupt for number, frame in source.frames(index.first_key) if index.shown[number])
    damaged = [message for number, message in source.errors.items() if number not in index.absent | index.cut]
    if damaged or flagged:
        reason = ": ".join([f"{max(flagged, len(damaged))} of {index.n_frames} frames as damaged", *damaged[:1]])
        raise VideoError(f"{path}: the codec flags {reason}", Status.CORRUPT)


def _read_with_decord(path: Path, index: VideoIndex, expected: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Return decord's pictures by frame number. Raises VideoError: number, time or picture differ from PyAV's ``expected``."""
    import decord

    numbers = sorted(expected)
    height, width, _ = expected[numbers[0]].shape
    try:
        reader: Any = decord.VideoReader(str(path), num_threads=1, width=_safe_width(width), height=height)
        if len(reader) != index.n_frames:
            raise _misplaced(path, f"{len(reader)} frames instead of {index.n_frames}")
        times = np.array([reader.get_frame_timestamp(k)[0] for k in numbers]) - reader.get_frame_timestamp(0)[0]
        difference = np.abs(times - index.ticks[numbers] * float(index.tick))
        if difference.max() > 0.5 * index.gap * float(index.tick):
            k = int(difference.argmax())
            raise _misplaced(path, f"frame {numbers[k]} at {times[k]:.3f} s")
        frames = reader.get_batch(numbers).asnumpy()[:, :, :width]
    except (decord.DECORDError, RuntimeError, IndexError, OSError) as error:
        raise VideoError(f"{path}: decord cannot decode it: {short_message(error)}; use --decoder pyav") from error
    finally:
        # An idle reader continues to decode in the background and uses more and more memory.
        reader = None
    side = max(1, min(BLOCK, height, width))
    h, w = height // side, width // side
    for k, picture in zip(numbers, frames, strict=True):
        # uint8 pictures would wrap around: subtract in float32.
        difference = picture[: h * side, : w * side].astype(np.float32) - expected[k][: h * side, : w * side]
        if np.abs(difference.reshape(h, side, w, side, 3).mean((1, 3))).max() > TOLERANCE:
            raise _misplaced(path, f"another picture as frame {k}")
    return dict(zip(numbers, frames, strict=True))


def _misplaced(path: Path, reason: str) -> VideoError:
    return VideoError(f"{path}: decord returned wrong frames ({reason}); use --decoder pyav", Status.MISPLACED)


def _safe_width(width: int) -> int:
    """Return the smallest width from ``width`` on that decord can return. FFmpeg pads rows to 16, 32 or 64 pixels. decord takes a
    padded row that is a multiple of the width for more channels, and fails: 96 pixels padded to 128 look like 4 channels of 96.
    """
    while any(width % row and 3 * math.ceil(width / row) * row % width == 0 for row in (16, 32, 64)):
        width += 1
    return width


def end_with_parent() -> None:
    """Let the kernel end this process with its parent, even if it hangs."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG


def serve(settings: dict[str, Any]) -> None:
    """Read one request per line from stdin and write one answer per line to stdout, until stdin ends."""
    end_with_parent()
    if os.getppid() != settings["parent"]:  # the parent ended before the call
        sys.exit()
    # Answers get their own descriptor, because a library may write to stdout.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    shared = np.frombuffer(mmap.mmap(settings["fd"], 0), np.uint8).reshape(settings["shape"])
    for line in sys.stdin:
        request = json.loads(line)
        path, span = Path(request["path"]), Span(**request["span"])
        try:
            if request["extent_only"]:
                answer: dict[str, Any] = {"extent": extent_of(path, span)}
            else:
                clip = decode_clip(path, span=span, **settings["decode"])
                shared[request["slot"]] = clip.frames
                answer = clip.facts()
        except VideoError as error:
            answer = {"error": str(error), "status": str(error.status)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        serve(json.loads(sys.argv[1]))
