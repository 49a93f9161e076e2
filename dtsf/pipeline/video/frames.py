"""Decode frames and compare them with the index. They are numbered by presentation time, or counted as they leave the decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import numpy as np

from dtsf.cache.status import Status
from dtsf.errors import VideoError
from dtsf.pipeline.video.clip import reencode_hint, short_message
from dtsf.pipeline.video.container import open_video
from dtsf.pipeline.video.index import NO_TIME, REORDERED, VideoIndex

SEARCHED = 3000  # maximum number of packets between the position of a seek and the key frame
WITHOUT_KEY_TABLE, EARLY = frozenset({"mpeg", "mpegts"}), 2  # there a seek aims two seconds before the key frame
SKIPPING = frozenset({"h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4"})  # can skip an unreferenced frame


class IndexCorrected(Exception):
    """Signal that the decoded frames differ from the index. Its argument is the corrected index."""


class BadStartFrame(Exception):
    """Signal that the start packet is not a usable key frame; decoding must start at an earlier one."""


class PacketSource:
    """Packets of one file for its decoder. ``kept``: those in memory, if any. ``strict``: report damage, do not conceal it."""

    def __init__(self, container: Any, index: VideoIndex, kept: list[Any] | None, *, strict: bool = False) -> None:
        self._container, self._index, self._kept, self._strict = container, index, kept, strict
        self.errors: dict[int, str] = {}  # messages of the codec by packet number, since the last call of frames()
        self._damaged: set[int] = set()  # packets with such a message, or with a frame that the codec flags

    def take_damaged(self, index: VideoIndex, first: int) -> list[float]:
        """Return the seconds of the frames from ``first`` on that the codec refused or flagged since the last call of this or of
        :meth:`frames`. A whole file has none: decoded from a key frame, only what is before it in time may lack a reference.
        """
        if not self._damaged:
            return []
        found = sorted(number for number in index.frame_number[[*self._damaged]].tolist() if number >= first)
        self._damaged.clear()
        return [index.begin + tick * float(index.tick) for tick in index.ticks[found].tolist()]

    def frames(self, first: int, needed: set[int] | None = None) -> Iterator[tuple[int, Any]]:
        """Yield (packet number, frame) in presentation order, from packet ``first`` on. ``needed``: others may be skipped."""
        import av

        context = self._container.streams[self._index.stream].codec_context
        if context.is_open:
            context.flush_buffers()
        else:
            context.thread_count = 1
            if self._strict:
                context.options = {"err_detect": "explode"}
        context.skip_frame = "DEFAULT"
        self.errors, self._damaged = {}, set()
        last, n_packets = first - 1, len(self._index.packets)
        packets = self._read(first) if self._kept is None else self._kept[first:]
        end = [(n_packets, None)]  # flushes the decoder
        for number, packet in chain(zip(range(first, n_packets), packets, strict=False), end):
            if packet is not None:
                # A decoder copies the PTS of a packet to its frame. So the packet number travels as the PTS.
                packet.pts, packet.dts = number, None
                if needed is not None:
                    context.skip_frame = "DEFAULT" if number in needed else "NONREF"
            try:
                frames = context.decode(packet)
            except av.FFmpegError as error:
                self.errors[number] = short_message(error)
                self._damaged.add(number)
                continue
            for frame in frames:
                last = last + 1 if frame.pts is None else frame.pts
                if frame.is_corrupt:
                    self._damaged.add(last)
                yield last, frame

    def _read(self, first: int) -> Iterator[Any]:
        """Read packets from ``first`` on: by a seek if it finds the packet, else from the beginning of the file."""
        import av

        index, stream = self._index, self._container.streams[self._index.stream]
        expected, is_avi, found = index.packets[first], index.container == "avi", False
        times = (expected.dts, expected.pts) if is_avi else (expected.pts, expected.dts)
        time = next((int(time) for time in times if time != NO_TIME), None)
        if first > index.first_key and time is not None:
            # Without a table of key frames, a seek ends at a packet of about that time.
            early = int(EARLY / stream.time_base) if index.container in WITHOUT_KEY_TABLE else 0
            with suppress(av.FFmpegError, OSError):
                self._container.seek(time - int(expected.shift) - early, stream=stream)
                packets = (packet for packet in self._container.demux(stream) if packet.size)
                for packet in islice(packets, SEARCHED):
                    found = packet.size == expected.n_bytes and (packet.pos or -1) == expected.pos
                    # AVI's presentation times are guesses and change after a seek.
                    found = found and (is_avi or packet.pts == expected.pts - expected.shift)
                    if found:
                        yield from chain([packet], packets)
                        break
        if not found:
            with open_video(index.path) as container:
                packets = container.demux(container.streams[index.stream])
                yield from islice((packet for packet in packets if packet.size), first, None)


def decode_wanted(
    source: PacketSource, index: VideoIndex, wanted: np.ndarray, render: Callable[[Any], np.ndarray]
) -> dict[int, np.ndarray]:
    """Decode the frames ``wanted`` (sorted numbers) and return the pictures that ``render`` makes of them, by number. Raises
    IndexCorrected: frames are missing or come in another order. VideoError: ``corrupt`` or ``unreadable``.
    """
    numbered = _numbered_by_decoder if index.order_from_decoder else _numbered_by_time
    numbers, last = set(wanted.tolist()), int(wanted[-1])
    start = start_packet(index, int(wanted[0]))
    can_skip = index.codec in SKIPPING and not index.order_from_decoder
    needed = set(index.order[wanted].tolist()) if can_skip else None
    while True:
        came = np.zeros(len(index.packets), bool)
        pictures: dict[int, np.ndarray] = {}
        number = -1
        try:
            for number, frame in numbered(source, index, start, came, needed):
                if number in numbers:
                    pictures[number] = render(frame)
                if number >= last:
                    break
        except BadStartFrame:
            start, needed = _last_key(index, start // 2), None
            continue
        due = _due(index, start, came, last if number >= last else None)
        lost = set(np.flatnonzero(due & ~came).tolist())
        if needed is not None and needed & lost:
            needed = None  # a skipped frame may have been a reference
            continue
        if needed is None and lost:
            # One lost frame at the end of the file is accepted.
            n_packets = len(index.packets)
            at_end = lost == set(range(n_packets - len(lost), n_packets))
            if min(lost) < n_packets - 2 and (source.errors or (at_end and len(lost) > REORDERED)):
                message = next(iter(source.errors.values()), "the decoder returns no frame")
                damage = f"{len(lost)} of {index.n_frames} frames cannot be decoded: {message}"
                status = Status.CORRUPT if len(lost) < index.n_frames else Status.UNREADABLE
                raise VideoError(f"{index.path}: {damage}; {reencode_hint(index.path)}", status)
            raise IndexCorrected(index.without(lost))
        return pictures


def frames_from(
    source: PacketSource, index: VideoIndex, first: int, needed: set[int] | None = None
) -> Iterator[tuple[int, Any]]:
    """Yield (number, frame) in presentation order from frame ``first`` on: for long files, nothing is kept.

    ``needed``: numbers of the frames that the caller uses; others may be left out. Damaged frames are left out. Raises
    IndexCorrected: the frames come in another order.
    """
    numbered = _numbered_by_decoder if index.order_from_decoder else _numbered_by_time
    start = start_packet(index, first)
    can_skip = needed is not None and index.codec in SKIPPING and not index.order_from_decoder
    packets = set(index.order[sorted(needed)].tolist()) if needed and can_skip else None
    came = np.zeros(len(index.packets), bool)
    last = first - 1
    while True:
        try:
            for number, frame in numbered(source, index, start, came, packets):
                if number > last:
                    last = number
                    yield number, frame
            return
        except BadStartFrame:
            if start == index.first_key:
                return
            start, packets = _last_key(index, start // 2), None


def _due(index: VideoIndex, start: int, came: np.ndarray, last: int | None) -> np.ndarray:
    """Return (packets,) bool: packets that must have given a frame, from packet ``start`` to frame ``last`` or the end (None)."""
    numbers = np.arange(len(index.packets))
    due = index.shown & (numbers >= start)
    if index.order_from_decoder:
        if start != index.first_key:
            due &= numbers >= index.keys[index.keys > start][0]
        furthest = int(numbers[came].max(initial=0))
        return due if last is None else due & (numbers < furthest - REORDERED)
    if start != index.first_key:
        due &= index.packets.pts >= index.packets.pts[start]
    return due if last is None else due & (index.frame_number <= last)


def start_packet(index: VideoIndex, frame_number: int) -> int:
    """Return the packet at which decoding must start to return a frame."""
    if index.order_from_decoder:
        # A key frame's number is known only after the frames before it. So start two key frames earlier.
        safe = np.flatnonzero(index.shown)[max(0, frame_number - REORDERED)]
        return _last_key(index, _last_key(index, int(safe)) - 1)
    pts = index.packets.pts
    keys = index.keys[pts[index.keys] <= pts[index.order[frame_number]]]
    return int(keys.max(initial=index.first_key))


def _last_key(index: VideoIndex, number: int) -> int:
    """Return the last key frame at or before a packet."""
    return int(index.keys[index.keys <= number].max(initial=index.first_key))


def _numbered_by_time(
    source: PacketSource, index: VideoIndex, start: int, came: np.ndarray, needed: set[int] | None
) -> Iterator[tuple[int, Any]]:
    """Yield (frame number, frame) by presentation time, and set ``came``, (packets,) bool, for each frame."""
    pts, started, previous = index.packets.pts, start == index.first_key, NO_TIME
    for packet, frame in source.frames(start, needed):
        number = index.frame_number[packet]
        if number < 0 or (not started and pts[packet] < pts[start]):
            continue
        if not started and (packet != start or frame.is_corrupt):
            raise BadStartFrame
        started = True
        if pts[packet] < previous:
            raise IndexCorrected(replace(index, unreliable_pts=True))
        previous = pts[packet]
        came[packet] = True
        yield int(number), frame
    if not started:
        raise BadStartFrame


def _numbered_by_decoder(
    source: PacketSource, index: VideoIndex, start: int, came: np.ndarray, needed: set[int] | None
) -> Iterator[tuple[int, Any]]:
    """Yield (frame number, frame) by counting decoded frames, and set ``came`` for each frame."""
    from_first = start == index.first_key
    number, anchor = (0, start) if from_first else (-1, int(index.keys[index.keys > start][0]))
    n_after = 0
    for packet, frame in source.frames(start, needed):
        if not index.shown[packet]:
            continue
        came[packet] = True
        if number < 0:
            if packet != anchor:
                n_after += packet > anchor
                continue
            if frame.is_corrupt:
                raise BadStartFrame
            number = int(index.shown[:anchor].sum()) + n_after
        yield number, frame
        number += 1
    if number < 0:
        raise BadStartFrame
