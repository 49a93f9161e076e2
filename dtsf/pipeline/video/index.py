"""What is in a video file, from its packets, without decoding one.

A decoder is told what to do by this and by nothing else: which stream, which packets hold frames that are shown, and when.

**Which stream**: the largest picture that is no cover; of equals the one marked as default, then the first. Probing, decoding
and ``--check full`` ask :func:`choose_stream`.

**Which frames are shown**: those of packets that are not empty, that no edit list hides, from the first key frame on. Where
packets follow that key frame and precede it in time (an open GOP, cut), decoding its head tells which of them come out.

**When**: at the packets' presentation times. AVI has none, raw streams have no times at all: there the order is the decoder's,
and the k-th frame has the k-th decoding time (``by_rank``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dtsf.cache.verdict import Verdict
from dtsf.errors import VideoError
from dtsf.pipeline.video.clip import short, way_out
from dtsf.pipeline.video.container import choose_stream

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["NO_TIME", "Packets", "VideoIndex", "read_index"]

HELD_BYTES = 64 << 20
"""Packets of a file are kept for the decoder up to here; those of a larger file are read again."""
NO_TIME = np.iinfo(np.int64).min
FARTHEST = 1 << 52
"""Times beyond this many ticks are no times."""
TIMED_BY_CONTAINER = frozenset({"asf", "flv", "matroska,webm"})
"""Formats whose header gives the duration of the whole, and of no stream."""
JUMPS_ARE_CUTS = frozenset({"mpeg", "mpegts"})
"""Formats in which a jump of the clock is a splice, not a pause."""
PAUSE_SECONDS = 10.0


@dataclass(frozen=True)
class Packets:
    """The packets of one stream in decoding order, empty ones left out. Times in ticks, :data:`NO_TIME` where there is none."""

    pts: np.ndarray
    dts: np.ndarray
    duration: np.ndarray
    size: np.ndarray
    pos: np.ndarray
    key: np.ndarray
    hidden: np.ndarray
    """Of an edit list, or a picture that only others refer to."""
    moved: np.ndarray
    """Ticks that were added to a packet's times, because the clock had jumped before it."""

    def __len__(self) -> int:
        return len(self.size)


@dataclass(frozen=True)
class VideoIndex:
    """What a file holds and promises."""

    path: Path
    stream: int
    codec: str
    container: str
    width: int
    """As stored; turned and stretched only when shown."""
    height: int
    aspect: Fraction
    """Width of a pixel over its height."""
    tick: Fraction
    """Seconds."""
    rate: Fraction
    """Frames a second as the file states it, 0 where it does not."""
    declared_frames: int
    """0 where the header does not say."""
    promised_end: Fraction | None
    """Seconds at which the last packet should end, where the header says."""
    read_end: Fraction
    """Seconds at which the last packet that was read ends, of all streams where the promise is for all."""
    declared_packets: int
    """As many as the container's own table has, 0 where it has none."""
    packets: Packets
    by_rank: bool
    """Packets have no times of presentation: the order is the decoder's."""
    absent: frozenset[int] = frozenset()
    """Packets from which no frame comes, as decoding told."""

    @cached_property
    def first_key(self) -> int:
        """Where decoding begins: the first key frame; where none is marked, the first packet."""
        return int(np.argmax(self.packets.key)) if self.packets.key.any() else 0

    @cached_property
    def shown(self) -> np.ndarray:
        """(packets,) bool: whether a packet holds a frame that is shown."""
        shown = ~self.packets.hidden
        shown[: self.first_key] = False
        shown[list(self.absent)] = False
        return shown

    @cached_property
    def order(self) -> np.ndarray:
        """Packets of the frames that are shown, as they are shown; ``by_rank`` as they are decoded."""
        packet = np.flatnonzero(self.shown)
        return packet if self.by_rank else packet[np.argsort(self.packets.pts[packet], kind="stable")]

    @cached_property
    def ticks(self) -> np.ndarray:
        """Times at which frames are shown, in order, from 0."""
        times = self._clock[np.flatnonzero(self.shown)] if self.by_rank else self.packets.pts[self.order]
        times = np.sort(times)
        return times - times[0] if len(times) else times

    @cached_property
    def _clock(self) -> np.ndarray:
        """Times for frames whose packets have none of presentation: of decoding, or by the frame rate."""
        dts = self.packets.dts
        if (dts != NO_TIME).all():
            return dts
        step = float(1 / ((self.rate or 25) * self.tick))
        return np.round(np.arange(len(dts)) * step).astype(np.int64)

    @cached_property
    def n_frames(self) -> int:
        """Frames that are shown."""
        return int(self.shown.sum())

    @cached_property
    def gap(self) -> float:
        """Usual ticks from one frame to the next."""
        if self.n_frames > 1:
            return float(max(np.median(np.diff(self.ticks)), 1e-9))
        return float(1 / ((self.rate or 25) * self.tick))

    @cached_property
    def end_tick(self) -> float:
        """When the last frame's time is over."""
        if self.n_frames < 2:
            return self.gap * self.n_frames
        if self.is_steady:
            return self.step * self.n_frames
        before, stated = self.packets.duration[self.order[-2:]]
        usual = int(self.ticks[-1] - self.ticks[-2])
        # Where the length stated of the frame before is not what it was, that of the last one is no better.
        return float(self.ticks[-1]) + float(stated if stated > 0 and abs(before - usual) <= 1 else usual or self.gap)

    @cached_property
    def is_steady(self) -> bool:
        """Whether frames follow each other at one rate, as exactly as the clock can tell."""
        if self.n_frames < 2:
            return True
        return bool((np.abs(self.ticks - self.step * np.arange(self.n_frames)) <= 1).all() and self.ticks[-1] > 0)

    @cached_property
    def step(self) -> float:
        """Ticks from one frame to the next on average; as the stated rate has it, where that is the same."""
        mean = float(self.ticks[-1]) / (self.n_frames - 1)
        stated = float(1 / (self.rate * self.tick)) if self.rate else mean
        return stated if abs(stated - mean) * (self.n_frames - 1) <= 1 else mean

    @property
    def duration(self) -> float:
        """Seconds from the first frame's beginning to the last one's end."""
        return self.end_tick * float(self.tick)

    @property
    def fps(self) -> float:
        """Frames shown a second, on average."""
        return self.n_frames / self.duration if self.duration > 0 else 0.0

    @property
    def missing_frames(self) -> int:
        """Frames that the header counts and nobody wrote, or that do not come out."""
        not_shown = int((~self.shown).sum()) - len(self.absent)
        return max(0, self.declared_frames - not_shown - self.n_frames) if self.declared_frames else len(self.absent)

    @cached_property
    def rank(self) -> np.ndarray:
        """(packets,) int64: the how manyth frame a packet shows, -1 for none. Not for ``by_rank``."""
        rank = np.full(len(self.packets), -1)
        rank[self.order] = np.arange(self.n_frames)
        return rank

    def without(self, packets: set[int]) -> VideoIndex:
        """The same where these packets give no frame."""
        return replace(self, absent=self.absent | packets)

    def ranked(self) -> VideoIndex:
        """The same where times of presentation are not to be believed."""
        return replace(self, by_rank=True)


def read_index(container: Any, path: Path, keep: bool = False) -> tuple[VideoIndex, list[Any] | None]:
    """Read the packets of a file that was just opened.

    Args:
        container: Of :func:`open_video`, at its beginning.
        path: Its file.
        keep: Also return the packets, up to :data:`HELD_BYTES`.

    Raises:
        VideoError: ``unreadable``.

    """
    import av

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
            f"{path}: reading stops after {len(rows)} packets: {short(error)}; {way_out(path)}", Verdict.UNREADABLE
        ) from error
    columns = np.array(rows, np.int64).reshape(-1, 7).T
    pts, dts, lengths, sizes, positions, key, hidden = columns
    unmoved = np.zeros(len(rows), np.int64)
    packets = Packets(pts, dts, lengths, sizes, positions, key.astype(bool), hidden.astype(bool), unmoved)
    kind = container.format.name
    tick = Fraction(stream.time_base)
    packets = _spliced(packets, tick, kind)
    timed = ~packets.hidden & (np.arange(len(packets)) >= (np.argmax(packets.key) if len(packets) else 0))
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
        by_rank=kind == "avi" or bool((packets.pts[timed] == NO_TIME).any()),
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
        return Fraction(container.duration, 1_000_000), end - Fraction(container.start_time or 0, 1_000_000)
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
