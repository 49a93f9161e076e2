"""Which clips are to be done, and in which shards."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dtsf.cache.documents import read_about, read_marks, read_records
from dtsf.cache.reader import newest_records
from dtsf.pipeline.worker import source_stat

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dtsf.cache.documents import Where
    from dtsf.cache.records import Clip, ClipRecord
    from dtsf.pipeline.catalog import Catalog

__all__ = ["plan"]


def plan(
    catalog: Catalog, folder: Where, shard_size: int, n_workers: int, *, retry_bad: bool = False
) -> tuple[dict[int, tuple[Clip, ...]], int, int]:
    """Shards for the clips that are not done, how many clips are, and how many of those are bad.

    A shard's number and clips follow from the catalog, the shard size and the number of workers, not from what is missing:
    a run that was killed and run again by the same command leaves the same bytes as one that was not. Clips that are
    missing from a shard that is committed (their file changed, or the catalog grew) go to new shards behind all others.
    A shard that was found damaged is made again as it was, under its number.

    Args:
        catalog: All clips.
        folder: The data set in the cache.
        shard_size: Clips of a shard, at most.
        n_workers: Processes that share the shards.
        retry_bad: Count clips that could not be used as missing.

    Returns:
        Clips by shard, the number of clips that are done, and how many of those are bad.

    """
    about = read_about(folder)
    records, marks = read_records(folder, about), read_marks(folder, about)
    held = newest_records(records, marks)
    missing: set[str] = set()
    bad = 0
    for clip in catalog.clips:
        record = held[clip.id][1] if clip.id in held else None
        again = record is None or (retry_bad and not record.verdict.usable)
        if record is not None and not again and _is_current(record, clip, catalog.root):
            bad += not record.verdict.usable
        else:
            missing.add(clip.id)
    done = len(catalog.clips) - len(missing)
    committed = {record.shard for record in records}
    parts: dict[int, tuple[Clip, ...]] = {}
    known = {clip.id: clip for clip in catalog.clips}
    for mark in marks:
        ids = [record.clip.id for record in mark.clips]
        if missing.issuperset(ids):
            parts[mark.shard] = tuple(known[key] for key in ids)
            missing.difference_update(ids)
    committed |= {mark.shard for mark in marks}
    late: list[Clip] = []
    homes = _cut(catalog.clips, shard_size, n_workers)
    for shard, clips in enumerate(homes):
        wanted = tuple(clip for clip in clips if clip.id in missing)
        if shard in committed:
            late.extend(wanted)
        elif wanted:
            parts[shard] = wanted
    first = max(len(homes), max(committed, default=-1) + 1)
    parts |= dict(enumerate(_cut(late, shard_size, n_workers), first))
    return parts, done, bad


def _cut(clips: Sequence[Clip], shard_size: int, n_workers: int) -> list[tuple[Clip, ...]]:
    """Even shards, as many for each worker: of three shards and two workers, one would wait while the other does its second."""
    n = min(math.ceil(math.ceil(len(clips) / shard_size) / n_workers) * n_workers, len(clips))
    return [tuple(clips[k * len(clips) // n : (k + 1) * len(clips) // n]) for k in range(n)]


def _is_current(record: ClipRecord, clip: Clip, root: Path) -> bool:
    return record.clip == clip and (record.source_bytes, record.source_mtime_ns) == source_stat(root / clip.path)
