"""Read the packets of a video's stream without decoding, and check that the file is whole. FFmpeg reads a cut file without an
error, so the header's size is compared: RIFF (4 bytes), ISO 14496-12 (chain of sized boxes), EBML (RFC 8794).
"""

from __future__ import annotations

import os
import struct
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np

from dtsf.cache.status import Status
from dtsf.errors import VideoError
from dtsf.pipeline.video.clip import reencode_hint, short_message
from dtsf.pipeline.video.index import NO_TIME, PACKET, VideoIndex

MAX_PIXELS = 1 << 26  # largest frame that is decoded, 8192 x 8192 pixels: a decoder buffers about twenty frames
KEPT_BYTES = 64 << 20  # packets of a file up to this size stay in memory for the decoder; others are read again
MAX_TICKS = 1 << 52  # times beyond this number of ticks are invalid
PAUSE_SECONDS = 10.0
NO_TIMESTAMPS = 0x80  # FFmpeg's flag of formats without times: raw streams
PLAYLISTS = frozenset({"concat", "concatf", "dash", "hls", "image2", "image2pipe", "imf", "lavfi"})  # name other files
DURATION_OF_FILE = frozenset({"asf", "flv", "matroska,webm"})  # the header has the file's duration, not a stream's
JUMPS_ARE_CUTS = frozenset({"mpeg", "mpegts"})  # formats in which a jump of the clock is a splice and not a pause
WITH_HEADER = frozenset({".3gp", ".asf", ".avi", ".flv", ".mkv", ".mov", ".mp4", ".webm", ".wmv"})  # never raw streams


def open_video(path: Path) -> Any:
    """Open one file with PyAV. Raises VideoError: ``unreadable``."""
    import av

    try:
        # A file of /proc has no size, and a read of it may wait for ever.
        if path.is_file() and not path.stat().st_size:
            raise VideoError(f"{path} has 0 bytes: it is empty, or a file of the system")
        # "file:" because a name may contain a colon; the white list because a playlist may name a network address.
        container = av.open(f"file:{path}", metadata_errors="ignore", options={"protocol_whitelist": "file"})
    except (av.FFmpegError, OSError, ValueError) as error:
        hint = "; copy it again if it was cut off, or leave it out" if isinstance(error, av.InvalidDataError) else ""
        raise VideoError(f"{path} cannot be opened: {short_message(error)}{hint}") from error
    if PLAYLISTS & set(container.format.name.split(",")):
        container.close()
        raise VideoError(f"{path} is a list of other files ({container.format.name}), not a video")
    return container


def read_index(container: Any, path: Path) -> tuple[VideoIndex, list[Any] | None]:
    """Return a new container's index, and packets up to :data:`KEPT_BYTES`. Raises VideoError: ``unreadable``, ``truncated``."""
    import av

    form, no_pts = container.format.name, bool(container.format.flags & NO_TIMESTAMPS)
    if no_pts and path.suffix.lower() in WITH_HEADER:
        raise VideoError(f"{path} has lost its header; {reencode_hint(path)}")
    stream = select_stream(container, path)
    context, number, tick = stream.codec_context, stream.index, Fraction(stream.time_base)
    # Counted first, because FFmpeg adds entries while it reads.
    declared_packets = len(stream.index_entries)
    kept: list[Any] | None = []
    kept_bytes = 0
    rows: list[tuple[Any, ...]] = []  # PACKET
    other_ends: dict[int, int] = {}  # end of the last packet of other streams, in their ticks
    try:
        for packet in container.demux():
            size, pts, dts, duration = packet.size, packet.pts, packet.dts, packet.duration or 0
            if not size:
                continue
            if packet.stream_index != number:
                time = pts if pts is not None else dts
                if time is not None:
                    k = packet.stream_index
                    other_ends[k] = max(other_ends.get(k, 0), time + duration)
                continue
            # A VP8 frame is only referred to if bit 4 of its first byte is 0 (RFC 6386, 9.1).
            hidden = packet.is_discard or (context.name == "vp8" and not memoryview(packet)[0] & 0x10)
            times = (NO_TIME if time is None or abs(time) > MAX_TICKS else time for time in (pts, dts))
            rows.append((*times, duration, size, packet.pos or -1, 0, packet.is_keyframe, hidden))
            kept_bytes += size
            if kept is not None:
                kept.append(packet)
            if kept_bytes > KEPT_BYTES:
                kept = None
    except (av.FFmpegError, OSError) as error:
        raise VideoError(
            f"{path}: reading stops after {len(rows)} packets: {short_message(error)}; {reencode_hint(path)}"
        ) from error
    packets = np.array(rows, PACKET).view(np.recarray)
    _join_clocks(packets, tick, form)
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
        zero=Fraction(container.start_time or 0, 1_000_000),
        unreliable_pts=form == "avi",
        no_pts=no_pts,
    )
    _check_whole(index, container, declared_packets, other_ends)
    return index, kept


def select_stream(container: Any, path: Path) -> Any:
    """Return the largest video stream that is no attached picture. Raises VideoError: ``unreadable``."""
    from av.stream import Disposition

    covers = Disposition.attached_pic | Disposition.still_image | Disposition.timed_thumbnails
    streams = [stream for stream in container.streams if stream.type == "video" and not stream.disposition & covers]
    if not streams:
        raise VideoError(f"{path} has no video stream")

    def preference(stream: Any) -> tuple[int, bool, int]:
        context = stream.codec_context
        area = context.width * context.height if context is not None else 0
        return area, bool(stream.disposition & Disposition.default), -stream.index

    stream = max(streams, key=preference)
    if stream.codec_context is None:
        raise VideoError(f"{path} has a codec that PyAV cannot decode; {reencode_hint(path)}")
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > MAX_PIXELS:
        raise VideoError(f"{path} declares frames of {width} x {height}: too large")
    return stream


def _join_clocks(packets: np.recarray[Any, Any], tick: Fraction, form: str) -> None:
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


def _check_whole(index: VideoIndex, container: Any, declared_packets: int, other_ends: dict[int, int]) -> None:
    """Raise VideoError if a file has fewer bytes, packets or seconds than it declares."""
    path, packets, stream = index.path, index.packets, container.streams[index.stream]
    declared_bytes, n_bytes = declared_size(path), path.stat().st_size
    shorten = f"ffmpeg -i {path.name} -c copy {path.stem}_short{path.suffix}"
    hint = f"it was cut off; copy it again, or keep the readable part: {shorten}"
    # Some writers count a few bytes of padding without writing them.
    if declared_bytes is not None and declared_bytes - n_bytes > 8:
        raise VideoError(f"{path} declares {declared_bytes} bytes but has {n_bytes}: {hint}", Status.TRUNCATED)
    if not len(packets):
        raise VideoError(f"{path} has no frame; {reencode_hint(path)}")
    if declared_packets - len(packets) > 1:
        raise VideoError(f"{path} lists {declared_packets} frames but has {len(packets)}: {hint}", Status.TRUNCATED)
    first, second = (packets.dts, packets.pts) if index.container == "avi" else (packets.pts, packets.dts)
    times = np.where(first != NO_TIME, first, second)
    last = (times + packets.duration)[times != NO_TIME]
    end = int(last.max()) * index.tick if len(last) else Fraction(0)
    if index.container in DURATION_OF_FILE and container.duration:
        declared_end = Fraction(container.duration, 1_000_000)
        if index.container == "asf":  # FFmpeg adds the length of the file to the start of its last stream
            declared_end -= (
                max((s.start_time or 0) * s.time_base for s in container.streams if s.time_base) - index.zero
            )
        end = max([end, *(last * container.streams[k].time_base for k, last in other_ends.items())])
    elif stream.duration and index.container not in JUMPS_ARE_CUTS:
        declared_end = stream.duration * index.tick
        end -= (stream.start_time or 0) * index.tick
    else:
        return
    if float(declared_end - end) > 0.1 + 3 * index.gap * float(index.tick):
        raise VideoError(
            f"{path} declares {float(declared_end):.2f} s but ends at {float(end):.2f} s: {hint}", Status.TRUNCATED
        )


def declared_size(path: Path) -> int | None:
    """Return the minimum file size in bytes by the header, or None if the format or the writer declares none."""
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] == b"RIFF" and len(head) >= 8:
            size: int = struct.unpack("<I", head[4:8])[0]
            # A writer that cannot seek back leaves 0 or the largest number.
            return None if size in (0, 0xFFFFFFFF) else 8 + size
        if head[:4] == b"\x1a\x45\xdf\xa3":  # EBML: a header, then a segment
            file.seek(4)
            header = _ebml_number(file)
            if header is None or header > 4096:  # usual headers have about forty bytes
                return None
            file.seek(header, os.SEEK_CUR)
            segment = _ebml_number(file) if file.read(4) == b"\x18\x53\x80\x67" else None
            return None if segment is None else file.tell() + segment
        if head[4:8] not in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip"):
            return None
        # Follow the chain of boxes up to the end of the last one, which may lie behind the end of the file.
        position, n_bytes = 0, file.seek(0, os.SEEK_END)
        while position + 8 <= n_bytes:
            file.seek(position)
            head = file.read(16)
            size = struct.unpack(">I", head[:4])[0]
            if size == 1 and len(head) == 16:
                size = struct.unpack(">Q", head[8:])[0]
            if size < 8:  # 0: to the end of the file; less: not a box
                return None
            position += size
        return position


def _ebml_number(file: IO[bytes]) -> int | None:
    """Read a number of variable length: the leading zero bits of the first byte count the bytes that follow; all ones is None."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    n_more = 8 - first[0].bit_length()
    rest = file.read(n_more)
    bits = 7 * (n_more + 1)
    value = int.from_bytes(first + rest, "big") & ((1 << bits) - 1)
    return None if len(rest) < n_more or value == (1 << bits) - 1 else value
