"""Walk through decoded frames in the order in which they are shown, and hold what comes against the index."""

from __future__ import annotations

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
"""Codecs that leave a frame out undecoded when no other frame refers to it."""


class Learnt(Exception):  # noqa: N818 - no error
    """The frames differ from the index, which has been corrected."""

    def __init__(self, index: VideoIndex) -> None:
        super().__init__()
        self.index = index


class _Unsound(Exception):  # noqa: N818 - no error
    """The key frame where decoding began is none, or needs what precedes it."""


def decode_wanted(
    source: PacketSource, index: VideoIndex, wanted: np.ndarray, show: Callable[[Any], np.ndarray]
) -> dict[int, np.ndarray]:
    """Pictures by rank. Raises Learnt: frames are not there that the index lists, or come in another order."""
    walk = _walk_by_rank if index.by_rank else _walk_by_time
    begin = _begin(index, int(wanted[0]))
    needed = set(index.order[wanted].tolist()) if index.codec in SKIPPING and not index.by_rank else None
    while True:
        came = np.zeros(len(index.packets), bool)
        try:
            shown, ended = _pick(wanted, show, walk(source, index, begin, came, needed))
        except _Unsound:
            begin, needed = _key_until(index, begin // 2), None
            continue
        lost = set(np.flatnonzero(_due(index, begin, came, None if ended else int(wanted[-1])) & ~came).tolist())
        if needed is not None:
            if needed & lost:
                needed = None  # what was left out may have been needed
                continue
            return shown
        if lost:
            _check_damage(source, index, lost)
            raise Learnt(index.without(lost))
        return shown


def _pick(
    wanted: np.ndarray, show: Callable[[Any], np.ndarray], frames: Iterator[tuple[int, Any]]
) -> tuple[dict[int, np.ndarray], bool]:
    """Pictures by rank, and whether the file ended before the last was reached."""
    places, last = set(wanted.tolist()), int(wanted[-1])
    shown: dict[int, np.ndarray] = {}
    for rank, frame in frames:
        if rank in places:
            shown[rank] = show(frame)
        if rank >= last:
            return shown, False
    return shown, True


def _due(index: VideoIndex, begin: int, came: np.ndarray, last: int | None) -> np.ndarray:
    """Which packets' frames must have come, (packets,) bool, of those from ``begin`` to rank ``last`` or, None, to the end."""
    numbers = np.arange(len(index.packets))
    due = index.shown & (numbers >= begin)
    if index.by_rank:
        if begin != index.first_key:
            due &= numbers >= _next_key(index, begin)
        furthest = int(numbers[came].max(initial=0))
        return due if last is None else due & (numbers < furthest - REORDERED)
    if begin != index.first_key:
        due &= index.packets.pts >= index.packets.pts[begin]
    return due if last is None else due & (index.rank <= last)


def _check_damage(source: PacketSource, index: VideoIndex, lost: set[int]) -> None:
    """Refuse a file of which frames are lost because the codec cannot read them. A last frame that was cut in two is no matter."""
    n_packets = len(index.packets)
    behind = [number for number in lost if number < n_packets - 2]
    at_end = set(range(n_packets - len(lost), n_packets)) == lost
    if behind and (source.errors or (at_end and len(lost) > REORDERED)):
        message = next(iter(source.errors.values()), "no frame comes")
        raise VideoError(
            f"{source.path}: {len(lost)} of {index.n_frames} frames cannot be decoded: {message}; {reencode_hint(source.path)}",
            Status.CORRUPT if len(lost) < index.n_frames else Status.UNREADABLE,
        )


def _begin(index: VideoIndex, rank: int) -> int:
    """The packet at which decoding must begin so that frame ``rank`` comes out."""
    if index.by_rank:
        # The key frame's own rank is known when those have come that precede it: two key frames back.
        sure = np.flatnonzero(index.shown)[max(0, rank - REORDERED)]
        return _key_until(index, _key_until(index, int(sure)) - 1)
    pts = index.packets.pts
    keys = np.flatnonzero(index.packets.key & index.shown & (pts <= pts[index.order[rank]]))
    return int(keys[-1]) if len(keys) else index.first_key


def _key_until(index: VideoIndex, number: int) -> int:
    """The last key frame up to a packet."""
    keys = np.flatnonzero(index.packets.key & index.shown)
    keys = keys[keys <= number]
    return int(keys[-1]) if len(keys) else index.first_key


def _next_key(index: VideoIndex, number: int) -> int:
    keys = np.flatnonzero(index.packets.key & index.shown)
    return int(keys[keys > number][0])


def _walk_by_time(
    source: PacketSource, index: VideoIndex, begin: int, came: np.ndarray, needed: set[int] | None
) -> Iterator[tuple[int, Any]]:
    """Frames as (rank, frame) where packets have times of presentation; marks those that ``came``, (packets,) bool."""
    pts, sound, before = index.packets.pts, begin == index.first_key, NO_TIME
    for number, frame in source.frames(begin, needed):
        rank = index.rank[number]
        if rank < 0:
            continue
        if not sound:
            if pts[number] < pts[begin]:
                continue
            if number != begin or frame.is_corrupt:
                raise _Unsound
            sound = True
        if pts[number] < before:
            raise Learnt(index.ranked())
        before = pts[number]
        came[number] = True
        yield int(rank), frame
    if not sound:
        raise _Unsound


def _walk_by_rank(
    source: PacketSource, index: VideoIndex, begin: int, came: np.ndarray, needed: set[int] | None
) -> Iterator[tuple[int, Any]]:
    """Frames as (rank, frame) where they have to be counted; marks those that ``came``."""
    whole = begin == index.first_key
    rank, anchor = (0, begin) if whole else (-1, _next_key(index, begin))
    n_after = 0
    for number, frame in source.frames(begin, needed):
        if not index.shown[number]:
            continue
        came[number] = True
        if rank < 0:
            if number != anchor:
                n_after += number > anchor
                continue
            if frame.is_corrupt:
                raise _Unsound
            rank = int(index.shown[:anchor].sum()) + n_after
        yield rank, frame
        rank += 1
    if rank < 0:
        raise _Unsound
