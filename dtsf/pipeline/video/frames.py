"""Iterate decoded frames in presentation order, and compare them with the index.

Frames are numbered in one of two ways: by the presentation times in the index, or by counting them as they leave the decoder.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dtsf.cache.status import Status
from dtsf.errors import VideoError
from dtsf.pipeline.video.clip import reencode_hint
from dtsf.pipeline.video.index import NO_TIME, REORDERED, VideoIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dtsf.pipeline.video.packets import PacketSource

SKIPPING = frozenset({"h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4"})
"""Codecs that can skip a frame to which no other frame refers."""


class IndexCorrected(Exception):  # noqa: N818 - a signal, not an error
    """The decoded frames differ from the index; ``index`` is the corrected one."""

    def __init__(self, index: VideoIndex) -> None:
        super().__init__()
        self.index = index


class BadStartFrame(Exception):  # noqa: N818 - a signal, not an error
    """The start packet is not a usable key frame; decoding must start at an earlier one."""


def decode_wanted(
    source: PacketSource, index: VideoIndex, wanted: np.ndarray, render: Callable[[Any], np.ndarray]
) -> dict[int, np.ndarray]:
    """Decode the frames ``wanted`` (sorted frame numbers) and return their pictures by frame number.

    ``render`` makes a picture of a decoded frame. Raises IndexCorrected: frames are missing or come in another order. Raises
    VideoError: ``corrupt`` or ``unreadable``.
    """
    numbered = _numbered_by_decoder if index.order_from_decoder else _numbered_by_time
    numbers, last = set(wanted.tolist()), int(wanted[-1])
    start = _start_packet(index, int(wanted[0]))
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
            _check_damage(source, index, lost)
            raise IndexCorrected(index.without(lost))
        return pictures


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


def _check_damage(source: PacketSource, index: VideoIndex, lost: set[int]) -> None:
    """Raise VideoError if the codec cannot read the lost frames. One lost frame at the end of the file is accepted."""
    n_packets = len(index.packets)
    inside = [number for number in lost if number < n_packets - 2]
    at_end = set(range(n_packets - len(lost), n_packets)) == lost
    if inside and (source.errors or (at_end and len(lost) > REORDERED)):
        message = next(iter(source.errors.values()), "the decoder returns no frame")
        raise VideoError(
            f"{index.path}: {len(lost)} of {index.n_frames} frames cannot be decoded: {message}; {reencode_hint(index.path)}",
            Status.CORRUPT if len(lost) < index.n_frames else Status.UNREADABLE,
        )


def _start_packet(index: VideoIndex, frame_number: int) -> int:
    """Return the packet at which decoding must start to return a frame."""
    if index.order_from_decoder:
        # A key frame's number is known only after the frames before it. So start two key frames earlier.
        safe = np.flatnonzero(index.shown)[max(0, frame_number - REORDERED)]
        return _last_key(index, _last_key(index, int(safe)) - 1)
    pts = index.packets.pts
    keys = index.keys[pts[index.keys] <= pts[index.order[frame_number]]]
    return int(keys[-1]) if len(keys) else index.first_key


def _last_key(index: VideoIndex, number: int) -> int:
    """Return the last key frame at or before a packet."""
    keys = index.keys[index.keys <= number]
    return int(keys[-1]) if len(keys) else index.first_key


def _numbered_by_time(
    source: PacketSource, index: VideoIndex, start: int, came: np.ndarray, needed: set[int] | None
) -> Iterator[tuple[int, Any]]:
    """Yield (frame number, frame) by presentation time, and set ``came``, (packets,) bool, for each frame."""
    pts, started, previous = index.packets.pts, start == index.first_key, NO_TIME
    for packet, frame in source.frames(start, needed):
        number = index.frame_number[packet]
        if number < 0:
            continue
        if not started:
            if pts[packet] < pts[start]:
                continue
            if packet != start or frame.is_corrupt:
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
