"""Read the packets of a video file into its index, without decoding one."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from dtsf.cache.status import Status
from dtsf.errors import VideoError
from dtsf.pipeline.video.clip import reencode_hint, short
from dtsf.pipeline.video.container import choose_stream
from dtsf.pipeline.video.index import NO_TIME, Packets, VideoIndex

if TYPE_CHECKING:
    from pathlib import Path

HELD_BYTES = 64 << 20
"""Packets of a file are kept for the decoder up to here; those of a larger file are read again."""
FARTHEST = 1 << 52
"""Times beyond this many ticks are no times."""
TIMED_BY_CONTAINER = frozenset({"asf", "flv", "matroska,webm"})
"""Formats whose header gives the duration of the whole, and of no stream."""
JUMPS_ARE_CUTS = frozenset({"mpeg", "mpegts"})
"""Formats in which a jump of the clock is a splice, not a pause."""
NO_TIMESTAMPS = 0x80
"""FFmpeg's mark of formats without times: raw streams."""
HEADED = frozenset({".3gp", ".asf", ".avi", ".flv", ".mkv", ".mov", ".mp4", ".webm", ".wmv"})
"""Endings of containers: what FFmpeg takes for a raw stream there is a damaged one."""
PAUSE_SECONDS = 10.0


def read_index(container: Any, path: Path, keep: bool = False) -> tuple[VideoIndex, list[Any] | None]:
    """Read the packets of a file that was just opened. ``container``: of :func:`open_video`, at its beginning. ``keep``: also
    return the packets, up to :data:`HELD_BYTES`. Raises VideoError: ``unreadable``.
    """
    import av

    untimed = bool(container.format.flags & NO_TIMESTAMPS)
    if untimed and path.suffix.lower() in HEADED:
        raise VideoError(
            f"{path} has lost its header: only a raw stream is found in it; {reencode_hint(path)}", Status.UNREADABLE
        )
    stream = choose_stream(container, path)
    declared_packets = len(stream.index_entries)
    kept: list[Any] | None = [] if keep else None
    rows: list[tuple[int, int, int, int, int, bool, bool]] = []
    held = 0
    others: dict[int, int] = {}
    is_unseen = {"vp8": _is_unseen_vp8}.get(stream.codec_context.name)
    number = stream.index
    try:
        for packet in container.demux():
            size = packet.size
            if not size:
                continue
            pts, dts, duration = packet.pts, packet.dts, packet.duration or 0
            at = pts if pts is not None else dts
            if packet.stream_index != number:
                if at is not None:
                    k = packet.stream_index
                    others[k] = max(others.get(k, 0), at + duration)
                continue
            hidden = packet.is_discard or (is_unseen is not None and is_unseen(packet))
            rows.append((_time(pts), _time(dts), duration, size, packet.pos or -1, packet.is_keyframe, hidden))
            if kept is not None:
                held += size
                if held <= HELD_BYTES:
                    kept.append(packet)
                else:
                    kept = None
    except (av.FFmpegError, OSError) as error:
        raise VideoError(
            f"{path}: reading stops after {len(rows)} packets: {short(error)}; {reencode_hint(path)}", Status.UNREADABLE
        ) from error
    columns = np.array(rows, np.int64).reshape(-1, 7).T
    pts, dts, lengths, sizes, positions, key, hidden = columns
    unmoved = np.zeros(len(rows), np.int64)
    packets = Packets(pts, dts, lengths, sizes, positions, key.astype(bool), hidden.astype(bool), unmoved)
    kind = container.format.name
    tick = Fraction(stream.time_base)
    packets = _spliced(packets, tick, kind)
    promised, read_end = _ends(container, stream, packets, others)
    context = stream.codec_context
    aspect = Fraction(stream.sample_aspect_ratio or 1)
    index = VideoIndex(
        path=path,
        stream=number,
        codec=context.name,
        container=kind,
        width=context.width,
        height=context.height,
        aspect=aspect if Fraction(1, 8) <= aspect <= 8 else Fraction(1),
        tick=tick,
        rate=Fraction(stream.guessed_rate or stream.average_rate or 0),
        declared_frames=max(0, stream.frames),
        promised_end=promised,
        read_end=read_end,
        declared_packets=declared_packets,
        packets=packets,
        unordered=kind == "avi",
        untimed=untimed,
    )
    return index, kept


def _ends(container: Any, stream: Any, packets: Packets, others: dict[int, int]) -> tuple[Fraction | None, Fraction]:
    """Seconds at which the header says that the last packet ends, and at which the last one that was read does."""
    kind = container.format.name
    first, second = (packets.dts, packets.pts) if kind == "avi" else (packets.pts, packets.dts)
    times = np.where(first != NO_TIME, first, second)
    last = (times + packets.duration)[times != NO_TIME]
    end = Fraction(int(last.max())) * stream.time_base if len(last) else Fraction(0)
    if kind in TIMED_BY_CONTAINER and container.duration:
        end = max([end, *(last * container.streams[k].time_base for k, last in others.items())])
        return Fraction(container.duration, 1_000_000), end
    if stream.duration and kind not in JUMPS_ARE_CUTS:
        return stream.duration * stream.time_base, end - (stream.start_time or 0) * stream.time_base
    return None, end


def _time(ticks: int | None) -> int:
    return NO_TIME if ticks is None or abs(ticks) > FARTHEST else ticks


def _is_unseen_vp8(packet: Any) -> bool:
    """Whether a VP8 frame is one that only others refer to: bit 4 of its first byte (RFC 6386, 9.1) is 0."""
    return not memoryview(packet)[0] & 0x10


def _spliced(packets: Packets, tick: Fraction, kind: str) -> Packets:
    """Where the clock goes back, or jumps where a jump is a splice, what follows is moved behind what was."""
    times = np.where(packets.dts != NO_TIME, packets.dts, packets.pts)
    known = np.flatnonzero(times != NO_TIME)
    if len(known) < 2:
        return packets
    steps = np.diff(times[known])
    usual = int(np.median(steps))
    second = float(1 / tick)
    cut = steps < -second
    if kind in JUMPS_ARE_CUTS:
        cut |= steps > PAUSE_SECONDS * second
    if not cut.any():
        return packets
    moved = np.zeros(len(packets), np.int64)
    for at in np.flatnonzero(cut):
        moved[known[at + 1] :] += usual - steps[at]
    return replace(
        packets,
        pts=np.where(packets.pts != NO_TIME, packets.pts + moved, NO_TIME),
        dts=np.where(packets.dts != NO_TIME, packets.dts + moved, NO_TIME),
        moved=moved,
    )
