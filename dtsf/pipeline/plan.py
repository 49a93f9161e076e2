"""Which clips are to be done, and in which shards: planned by the content of their files, not by their annotations."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dtsf.cache.catalog import CatalogDocument, CatalogEntry, newest_records, read_catalog
from dtsf.cache.documents import is_dataset, read_marks, read_metadata, read_records
from dtsf.cache.records import part_of
from dtsf.errors import CacheError, SourceError
from dtsf.pipeline.changes import Changes, compare
from dtsf.pipeline.source import Stat, content_hash, file_stat, partial_hash, trouble

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from dtsf.cache.documents import Where
    from dtsf.cache.records import Clip, ClipRecord
    from dtsf.cache.spec import DatasetInfo, ShardRecord
    from dtsf.pipeline.catalog import Catalog

Place = tuple[str, int, int, str]
"""Path, size, time and listing of a file."""


@dataclass(frozen=True)
class Plan:
    """What is true of the source now, what that changes, and what is left to compute."""

    parts: dict[int, tuple[Clip, ...]]
    """By shard, clips that no row is there for; of several with the same bytes, one."""
    document: CatalogDocument
    """The catalog as far as it is known: a file that nobody has read has no key yet."""
    changes: Changes
    done: int
    """Clips of the source that need no decoding."""
    bad: int
    """How many of those cannot be used."""


def plan(
    catalog: Catalog,
    info: DatasetInfo,
    folder: Where,
    shard_size: int,
    n_workers: int,
    *,
    retry_bad: bool = False,
    anew: bool = False,
) -> Plan:
    """Compare the source with what the cache holds.

    A shard's number and clips follow from the catalog, the shard size and the number of workers, not from what is missing:
    a run that was killed and run again by the same command leaves the same bytes as one that was not. Clips that are
    missing from a shard that is committed (their file changed, or the catalog grew) go to new shards behind all others.
    A shard that was found damaged is made again as it was, under its number.

    ``retry_bad``: count clips that could not be used as missing. ``anew``: as if the cache held nothing. Raises SourceError:
    the source does not answer, or none of its files is there.
    """
    records, marks, before = ([], [], None) if anew else _held(folder)
    computed = newest_records(records, marks)
    listed = _look(catalog, [*records, *marks], before)
    missing: dict[str, Clip] = {}
    by_key: dict[str, Clip] = {}
    asked: set[object] = set()
    done = bad = 0
    for entry in listed:
        found = computed.get(entry.key) if entry.key else None
        if entry.state:
            done, bad = done + 1, bad + 1
        elif found is not None and (found[1].verdict.usable or not retry_bad):
            done, bad = done + 1, bad + (found[1].row is None)
        elif (entry.key or entry.place) in asked:
            done += 1
        else:
            asked.add(entry.key or entry.place)
            missing[entry.clip.id] = by_key[entry.key] = entry.clip
    to_do = {"state": "waiting", "reason": "not done yet: run the same dtsf preprocess again"}
    clips = (e if e.state or e.key in computed else e.model_copy(update=to_do) for e in listed)
    document = CatalogDocument(info=info, clips=tuple(clips), notes=catalog.notes)
    changes = compare(before, document, unusable=bad, to_decode=len(missing))
    parts = _share_out(catalog.clips, missing, by_key, records, marks, shard_size, n_workers)
    return Plan(parts, document, changes, done, bad)


def settle(document: CatalogDocument, root: Path, computed: Mapping[str, tuple[int, ClipRecord]]) -> CatalogDocument:
    """The catalog with the key of every row that was computed since it was planned; for what was not, why."""
    by_place = {record.source.place: record for _, record in computed.values()}
    clips = []
    for entry in document.clips:
        settled = entry
        if entry.state == "waiting":
            record = computed[entry.key][1] if entry.key in computed else by_place.get(entry.place)
            found = {"key": record.key, "state": "", "reason": ""} if record else _why_not(entry, root)
            settled = entry.model_copy(update=found)
        clips.append(settled)
    return document.model_copy(update={"clips": tuple(clips)})


def _held(folder: Where) -> tuple[list[ShardRecord], list[ShardRecord], CatalogDocument | None]:
    if not is_dataset(folder):
        return [], [], None
    about = read_metadata(folder)
    records, marks = read_records(folder, about), read_marks(folder, about)
    try:
        before = read_catalog(folder, about, records)
    except CacheError:
        # Damaged: it is about to be written anew, and no row depends on it.
        before = None
    return records, marks, before


def _look(catalog: Catalog, shards: Sequence[ShardRecord], before: CatalogDocument | None) -> list[CatalogEntry]:
    """Every clip of the source with what its file is known by. Files are hashed only where that can spare their decoding."""
    known: dict[Place, str] = {}
    sizes: set[int] = set()
    for shard in shards:
        for record in shard.clips:
            source = record.source
            known[source.path, source.bytes, source.mtime_ns, source.listing] = source.whole
            if source.content:
                sizes.add(source.bytes)
    for entry in before.clips if before else ():
        if entry.key:
            known[entry.clip.path, entry.bytes, entry.mtime_ns, entry.listing] = entry.key.removesuffix(
                part_of(entry.clip)
            )
    files: dict[str, Stat | tuple[str, str]] = {}
    whole: dict[str, str] = {}
    for clip in catalog.clips:
        if clip.path in files:
            continue
        path = f"{catalog.root}/{clip.path}"
        try:
            stat = files[clip.path] = file_stat(path)
            found = known.get((clip.path, stat.bytes, stat.mtime_ns, stat.listing))
            if found is None and stat.listing:
                # Layouts 1 and 2 knew a folder of pictures by its own entry.
                entry_of_folder = os.stat(path)
                found = known.get((clip.path, entry_of_folder.st_size, entry_of_folder.st_mtime_ns, ""))
            if found is not None:
                whole[clip.path] = found
        except OSError as error:
            files[clip.path] = trouble(catalog.root / clip.path, error)
    if files and all(isinstance(held, tuple) for held in files.values()):
        first, why = next(iter(files.items()))
        raise SourceError(
            f"none of the {len(files)} files that {catalog.dataset} names can be read under {catalog.root} ({first}: "
            f"{why[1] if isinstance(why, tuple) else ''}): is the disk or share that holds them there?"
        )
    unknown = {path: held for path, held in files.items() if isinstance(held, Stat) and path not in whole}
    for name in _worth_hashing(catalog.root, unknown, sizes):
        try:
            whole[name] = content_hash(catalog.root / name, unknown[name])
        except OSError as error:
            files[name] = trouble(catalog.root / name, error)
    return [_listed(clip, files[clip.path], whole.get(clip.path, "")) for clip in catalog.clips]


def _worth_hashing(root: Path, unknown: Mapping[str, Stat], sizes: set[int]) -> list[str]:
    """Files that may hold bytes which are known, or which another of them holds too."""
    alike: dict[object, list[str]] = {}
    for path, stat in unknown.items():
        alike.setdefault(stat.bytes, []).append(path)
    found = []
    for size, paths in alike.items():
        if size in sizes:
            found += paths
        elif len(paths) > 1:
            by_sample: dict[str, list[str]] = {}
            for path in paths:
                try:
                    by_sample.setdefault(partial_hash(root / path, unknown[path]), []).append(path)
                except OSError:
                    found.append(path)  # reading it whole says why
            found += [path for same in by_sample.values() if len(same) > 1 for path in same]
    return found


def _listed(clip: Clip, held: Stat | tuple[str, str], whole: str) -> CatalogEntry:
    if isinstance(held, tuple):
        return CatalogEntry.model_validate({"clip": clip, "state": held[0], "reason": held[1]})
    key = whole + part_of(clip) if whole else ""
    return CatalogEntry(clip=clip, key=key, bytes=held.bytes, mtime_ns=held.mtime_ns, listing=held.listing)


def _why_not(entry: CatalogEntry, root: Path) -> dict[str, str]:
    path = root / entry.clip.path
    try:
        stat = file_stat(path)
        if not stat.listing:
            with path.open("rb"):
                pass
    except OSError as error:
        try:
            state, reason = trouble(path, error)
        except SourceError as lost:
            state, reason = "unreachable", str(lost)
        return {"state": state, "reason": reason}
    changed = (stat.bytes, stat.mtime_ns, stat.listing) != (entry.bytes, entry.mtime_ns, entry.listing)
    why = "it changed while the run went on" if changed else "it could not be read while the run went on"
    return {"state": "waiting", "reason": f"{why}: run the same command again"}


def _share_out(
    clips: Sequence[Clip],
    missing: Mapping[str, Clip],
    by_key: Mapping[str, Clip],
    records: Sequence[ShardRecord],
    marks: Sequence[ShardRecord],
    shard_size: int,
    n_workers: int,
) -> dict[int, tuple[Clip, ...]]:
    committed = {record.shard for record in records}
    rest = dict(missing)
    parts: dict[int, tuple[Clip, ...]] = {}
    for mark in marks:
        again = [by_key.get(record.key) for record in mark.clips]
        whole = [clip for clip in again if clip is not None and clip.id in rest]
        if whole and len(whole) == len(mark.clips):
            parts[mark.shard] = tuple(whole)
            for clip in whole:
                del rest[clip.id]
    committed |= {mark.shard for mark in marks}
    late: list[Clip] = []
    homes = _cut(clips, shard_size, n_workers)
    for shard, members in enumerate(homes):
        wanted = tuple(clip for clip in members if clip.id in rest)
        if shard in committed:
            late.extend(wanted)
        elif wanted:
            parts[shard] = wanted
    first = max(len(homes), max(committed, default=-1) + 1)
    return parts | dict(enumerate(_cut(late, shard_size, n_workers), first))


def _cut(clips: Sequence[Clip], shard_size: int, n_workers: int) -> list[tuple[Clip, ...]]:
    """Even shards, as many for each worker: of three shards and two workers, one would wait while the other does its second."""
    n = min(math.ceil(math.ceil(len(clips) / shard_size) / n_workers) * n_workers, len(clips))
    return [tuple(clips[k * len(clips) // n : (k + 1) * len(clips) // n]) for k in range(n)]
