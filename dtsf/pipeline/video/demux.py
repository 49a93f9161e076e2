"""Read the packets of a video file into its index, without decoding, and check that the file is whole."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from dtsf.cache.status import Status
from dtsf.errors import VideoError
from dtsf.pipeline.video.clip import reencode_hint, short_message
from dtsf.pipeline.video.container import declared_size, select_stream
from dtsf.pipeline.video.index import NO_TIME, PACKET, VideoIndex

if TYPE_CHECKING:
    from pathlib import Path

KEPT_BYTES = 64 << 20
"""Packets of a file up to this size stay in memory for the decoder. Packets of a larger file are read again."""
MAX_TICKS = 1 << 52
"""Times beyond this number of ticks are invalid."""
DURATION_OF_FILE = frozenset({"asf", "flv", "matroska,webm"})
"""Formats whose header declares the duration of the file and not of each stream."""
JUMPS_ARE_CUTS = frozenset({"mpeg", "mpegts"})
"""Formats in which a jump of the clock is a splice and not a pause."""
NO_TIMESTAMPS = 0x80
"""FFmpeg's flag of formats without times: raw streams."""
WITH_HEADER = frozenset({".3gp", ".asf", ".avi", ".flv", ".mkv", ".mov", ".mp4", ".webm", ".wmv"})
"""File name endings of containers. If FFmpeg detects a raw stream there, the header is damaged."""
PAUSE_SECONDS = 10.0


def read_index(container: Any, path: Path) -> tuple[VideoIndex, list[Any] | None]:
    """Read all packets of a container that was just opened.

    Returns the index, and the packets of the video stream, or None if they exceed :data:`KEPT_BYTES`. Raises VideoError:
    ``unreadable`` or ``truncated``.
    """
    import av

    no_pts = bool(container.format.flags & NO_TIMESTAMPS)
    if no_pts and path.suffix.lower() in WITH_HEADER:
        raise VideoError(f"{path} has lost its header; {reencode_hint(path)}")
    stream = select_stream(container, path)
    # Counted first, because FFmpeg adds entries while it reads.
    declared_packets = len(stream.index_entries)
    kept: list[Any] | None = []
    kept_bytes = 0
    rows: list[tuple[int, int, int, int, int, bool, bool, int]] = []
    other_ends: dict[int, int] = {}
    is_vp8, number = stream.codec_context.name == "vp8", stream.index
    try:
        for packet in container.demux():
            size = packet.size
            if not size:
                continue
            pts, dts, duration = packet.pts, packet.dts, packet.duration or 0
            if packet.stream_index != number:
                time = pts if pts is not None else dts
                if time is not None:
                    k = packet.stream_index
                    other_ends[k] = max(other_ends.get(k, 0), time + duration)
                continue
            # A VP8 frame is only referred to if bit 4 of its first byte is 0 (RFC 6386, 9.1).
            hidden = packet.is_discard or (is_vp8 and not memoryview(packet)[0] & 0x10)
            rows.append((_ticks(pts), _ticks(dts), duration, size, packet.pos or -1, packet.is_keyframe, hidden, 0))
            if kept is not None:
                kept_bytes += size
                kept.append(packet)
                if kept_bytes > KEPT_BYTES:
                    kept = None
    except (av.FFmpegError, OSError) as error:
        raise VideoError(
            f"{path}: reading stops after {len(rows)} packets: {short_message(error)}; {reencode_hint(path)}"
        ) from error
    tick, form, context = Fraction(stream.time_base), container.format.name, stream.codec_context
    packets = np.array(rows, PACKET).view(np.recarray)
    _join(packets, tick, form)
    aspect = Fraction(stream.sample_aspect_ratio or 1)
    index = VideoIndex(
        path=path,
        stream=number,
        codec=context.name,
        container=form,
        aspect=aspect if Fraction(1, 8) <= aspect <= 8 else Fraction(1),
        tick=tick,
        rate=Fraction(stream.guessed_rate or stream.average_rate or 0),
        declared_frames=max(0, stream.frames),
        packets=packets,
        unreliable_pts=form == "avi",
        no_pts=no_pts,
    )
    _check_whole(index, declared_packets, *_ends(container, stream, packets, other_ends))
    return index, kept


def _check_whole(index: VideoIndex, declared_packets: int, declared_end: Fraction | None, end: Fraction) -> None:
    """Raise VideoError if a file has fewer bytes, packets or seconds than it declares."""
    path, n_packets = index.path, len(index.packets)
    declared_bytes, n_bytes = declared_size(path), path.stat().st_size
    hint = (
        "it was cut off; copy it again, or keep the readable part: "
        f"ffmpeg -i {path.name} -c copy {path.stem}_short{path.suffix}"
    )
    # Some writers count a few bytes of padding without writing them.
    if declared_bytes is not None and declared_bytes - n_bytes > 8:
        raise VideoError(f"{path} declares {declared_bytes} bytes but has {n_bytes}: {hint}", Status.TRUNCATED)
    if not n_packets:
        raise VideoError(f"{path} has no frame; {reencode_hint(path)}")
    if declared_packets - n_packets > 1:
        raise VideoError(f"{path} lists {declared_packets} frames but has {n_packets}: {hint}", Status.TRUNCATED)
    if declared_end is not None and float(declared_end - end) > 0.1 + 3 * index.gap * float(index.tick):
        raise VideoError(
            f"{path} declares {float(declared_end):.2f} s but ends at {float(end):.2f} s: {hint}", Status.TRUNCATED
        )


def _ends(
    container: Any, stream: Any, packets: np.recarray[Any, Any], other_ends: dict[int, int]
) -> tuple[Fraction | None, Fraction]:
    """Return the end of the last packet in seconds: by the header (None if it has none), and as read.

    ``other_ends``: the same as read for other streams, in their ticks.
    """
    form = container.format.name
    first, second = (packets.dts, packets.pts) if form == "avi" else (packets.pts, packets.dts)
    times = np.where(first != NO_TIME, first, second)
    last = (times + packets.duration)[times != NO_TIME]
    end = Fraction(int(last.max())) * stream.time_base if len(last) else Fraction(0)
    if form in DURATION_OF_FILE and container.duration:
        end = max([end, *(last * container.streams[k].time_base for k, last in other_ends.items())])
        return Fraction(container.duration, 1_000_000), end
    if stream.duration and form not in JUMPS_ARE_CUTS:
        return stream.duration * stream.time_base, end - (stream.start_time or 0) * stream.time_base
    return None, end


def _ticks(time: int | None) -> int:
    return NO_TIME if time is None or abs(time) > MAX_TICKS else time


def _join(packets: np.recarray[Any, Any], tick: Fraction, form: str) -> None:
    """Shift the packets behind each clock jump, so that they follow the packets before it."""
    times = np.where(packets.dts != NO_TIME, packets.dts, packets.pts)
    known = np.flatnonzero(times != NO_TIME)
    if len(known) < 2:
        return
    steps = np.diff(times[known])
    usual = int(np.median(steps))
    second = float(1 / tick)
    jumps = steps < -second
    if form in JUMPS_ARE_CUTS:
        jumps |= steps > PAUSE_SECONDS * second
    for k in np.flatnonzero(jumps):
        packets.shift[known[k + 1] :] += usual - steps[k]
    for times in (packets.pts, packets.dts):
        times[times != NO_TIME] += packets.shift[times != NO_TIME]
