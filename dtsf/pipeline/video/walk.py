"""Walk through decoded frames in the order in which they are shown, and hold what comes against the index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dtsf.cache.verdict import Verdict
from dtsf.errors import VideoError
from dtsf.pipeline.video.clip import way_out
from dtsf.pipeline.video.index import NO_TIME, VideoIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dtsf.pipeline.video.packets import PacketSource

__all__ = ["REORDERED", "Learnt", "decode_wanted"]

REORDERED = 32
"""Most frames that a decoder holds back, and more."""


class Learnt(Exception):  # noqa: N818 - no error
    """What comes out is not what the index said. It says so now."""

    def __init__(self, index: VideoIndex) -> None:
        super().__init__()
        self.index = index


class _Unsound(Exception):  # noqa: N818 - no error
    """The key frame where decoding began is none, or needs what precedes it."""


def decode_wanted(
    source: PacketSource, index: VideoIndex, wanted: np.ndarray, show: Callable[[Any], np.ndarray]
) -> dict[int, np.ndarray]:
    """Pictures by rank.

    Raises:
        Learnt: Frames are not there that the index told of, or come in another order.

    """
    walk = _walk_by_rank if index.by_rank else _walk_by_time
    begin = _begin(index, int(wanted[0]))
    while True:
        try:
            return _pick(source, index, wanted, show, walk(source, index, begin), begin)
        except _Unsound:
            begin = _key_until(index, begin // 2)


def _pick(
    source: PacketSource,
    index: VideoIndex,
    wanted: np.ndarray,
    show: Callable[[Any], np.ndarray],
    walk: Iterator[tuple[int, int, Any]],
    begin: int,
) -> dict[int, np.ndarray]:
    places = set(wanted.tolist())
    last = int(wanted[-1])
    shown: dict[int, np.ndarray] = {}
    came = np.zeros(len(index.packets), bool)
    ended, furthest, first = True, -1, None
    for rank, number, frame in walk:
        came[number] = True
        furthest = max(furthest, number)
        first = rank if first is None else first
        if rank in places:
            shown[rank] = show(frame)
        if rank >= last:
            ended = False
            break
    due = _due(index, begin, last if not ended else None, furthest)
    lost = set(np.flatnonzero(due & ~came).tolist())
    if lost:
        _check_damage(source, index, lost)
        raise Learnt(index.without(lost))
    return shown


def _due(index: VideoIndex, begin: int, last: int | None, furthest: int) -> np.ndarray:
    """Which packets' frames must have come, (packets,) bool, of those from ``begin`` to rank ``last`` or, None, to the end."""
    numbers = np.arange(len(index.packets))
    due = index.shown & (numbers >= begin)
    if index.by_rank:
        if begin != index.first_key:
            due &= numbers >= _next_key(index, begin)
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
        said = next(iter(source.errors.values()), "no frame comes")
        raise VideoError(
            f"{source.path}: {len(lost)} of {index.n_frames} frames cannot be decoded: {said}; {way_out(source.path)}",
            Verdict.CORRUPT,
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


def _walk_by_time(source: PacketSource, index: VideoIndex, begin: int) -> Iterator[tuple[int, int, Any]]:
    """Frames as (rank, packet, frame) where packets have times of presentation."""
    pts, sound, before = index.packets.pts, begin == index.first_key, NO_TIME
    for number, frame in source.frames(begin):
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
        yield int(rank), number, frame
    if not sound:
        raise _Unsound


def _walk_by_rank(source: PacketSource, index: VideoIndex, begin: int) -> Iterator[tuple[int, int, Any]]:
    """Frames as (rank, packet, frame) where they have to be counted."""
    whole = begin == index.first_key
    rank, anchor = (0, begin) if whole else (-1, _next_key(index, begin))
    n_after = 0
    for number, frame in source.frames(begin):
        if not index.shown[number]:
            continue
        if rank < 0:
            if number != anchor:
                n_after += number > anchor
                continue
            if frame.is_corrupt:
                raise _Unsound
            rank = int(index.shown[:anchor].sum()) + n_after
        yield rank, number, frame
        rank += 1
    if rank < 0:
        raise _Unsound
