"""Catalog of a dataset (``catalog.json``): clips with their labels, splits and subjects. Each ``preprocess`` replaces it, so
annotations may change without touching a row. A clip names its row by the key of its source (:attr:`.schema.Source.key`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from dtsf.cache.documents import (
    CATALOG,
    DAMAGED,
    DatasetHandle,
    dump_with_checksum,
    leaves_folder,
    read_records,
    read_tombstones,
    read_with_checksum,
    record_name,
)
from dtsf.cache.schema import BadClip, CatalogDocument, ClipRecord, FileVersion, ShardRecord
from dtsf.cache.status import Status
from dtsf.errors import CacheError, ConfigError
from dtsf.names import tidy

Records = dict[str, tuple[int, ClipRecord]]


def read_catalog(dataset: DatasetHandle) -> CatalogDocument | None:
    """Read the catalog; None if no ``preprocess`` has written one. Raises CacheError: damaged or inconsistent."""
    data = dataset.store.read(CATALOG)
    if data is None:
        return None
    source = f"{dataset.store}/{CATALOG}"
    try:
        document = read_with_checksum(data, CatalogDocument, source)
        check_catalog(document, source)
    except CacheError as error:
        raise CacheError(
            f"{error}: run the dtsf preprocess command of this dataset, which writes the catalog again without decoding"
        ) from error
    return document


def write_catalog(dataset: DatasetHandle, document: CatalogDocument) -> None:
    """Replace the catalog. A reader sees the old one or the new one. Raises CacheError: inconsistent, or the store refuses."""
    check_catalog(document, f"the catalog of {dataset.store}")
    data = dump_with_checksum(document)
    if dataset.store.read(CATALOG) != data:
        dataset.store.write(CATALOG, data)


@dataclass(frozen=True)
class Shards:
    """Committed records and tombstones of a dataset, each sorted by shard."""

    records: Sequence[ShardRecord] = ()
    damaged: Sequence[ShardRecord] = ()

    @cached_property
    def by_key(self) -> Records:
        """Record that counts for each key, with its shard: of those with a row the last, otherwise the last.

        All rows of a key are equal, so a row counts whatever the number of its shard. A record without a row does not count if a
        tombstone has a row of this key: the clip can be used, and ``preprocess`` decodes it again.
        """
        lost = {record.key for shard in self.damaged for record in shard.clips if record.row is not None}
        found: Records = {}
        for shard in self.records:
            for record in shard.clips:
                key = record.key
                with_row = key in lost or (key in found and found[key][1].row is not None)
                if record.row is not None or not with_row:
                    found[key] = (shard.shard, record)
        return found


def read_shards(dataset: DatasetHandle) -> Shards:
    """Read all records and tombstones. Raises CacheError: one is unreadable or inconsistent."""
    return Shards(read_records(dataset), read_tombstones(dataset))


def drop_tombstones(dataset: DatasetHandle, document: CatalogDocument) -> None:
    """Remove the tombstones that no clip of the catalog waits for. Their rows are in other shards, or not listed any more."""
    if not (damaged := read_tombstones(dataset)):
        return
    shards = Shards(read_records(dataset), damaged)
    waiting = [entry for entry in document.clips if entry.key not in shards.by_key]
    keys, paths = {entry.key for entry in waiting}, {entry.clip.path for entry in waiting}
    for shard in shards.damaged:
        if not any(record.key in keys or record.source.path in paths for record in shard.clips):
            dataset.store.remove(record_name(shard.shard, DAMAGED))


def match_rows(
    document: CatalogDocument | None, computed: Mapping[str, tuple[int, ClipRecord]]
) -> tuple[Records, tuple[BadClip, ...]]:
    """Return the record and shard of each clip by clip id, and the clips without a row. ``computed``: records by key."""
    matched: Records = {}
    bad = []
    by_version: dict[FileVersion, tuple[int, ClipRecord]] = {}
    entries = document.clips if document else ()
    if any(not entry.key for entry in entries):
        by_version = {record.source.file_version: (shard, record) for shard, record in computed.values()}
    for entry in entries:
        found = computed.get(entry.key) if entry.key else None
        if not entry.key and entry.status in (None, Status.WAITING):
            found = by_version.get(entry.file_version)
        if found is None:
            reason = entry.reason or "not done yet, or its shard is damaged: run dtsf preprocess"
            bad.append(BadClip(clip=entry.clip, status=entry.status or Status.WAITING, reason=reason))
            continue
        matched[entry.clip.id] = found
        if found[1].row is None:
            bad.append(BadClip(clip=entry.clip, status=found[1].status, reason=found[1].reason_for(entry.clip.path)))
    return matched, tuple(bad)


def check_catalog(document: CatalogDocument, source: str) -> None:
    """Raise CacheError: names, clips, labels or views of the catalog contradict each other. ``source``: for the message."""
    for problem in _contradictions(document):
        raise CacheError(f"{source}: {problem}")


def _contradictions(document: CatalogDocument) -> Iterator[str]:
    classes, cameras = document.info.class_names, document.info.view_names
    for what, names in (("class", classes), ("view", cameras)):
        for name, count in Counter(names).items():
            if count > 1:
                yield f"it names the {what} {name!r} twice"
    ids: set[str] = set()
    labels: dict[str, tuple[int, str]] = {}
    views: dict[tuple[str, int], str] = {}
    for clip in (entry.clip for entry in document.clips):
        if clip.id in ids:
            yield f"it has the clip {clip.id} twice"
        ids.add(clip.id)
        if clip.label >= len(classes):
            yield f"clip {clip.id} has label {clip.label}, there are {len(classes)} classes"
        if clip.view > len(cameras):
            yield f"clip {clip.id} has view {clip.view}, there are {len(cameras)}"
        label, first = labels.setdefault(clip.group, (clip.label, clip.id))
        if label != clip.label:
            yield f"group {clip.group} has label {label} in {first} and {clip.label} in {clip.id}"
        other = views.setdefault((clip.group, clip.view), clip.id)
        if other != clip.id:
            yield f"{other} and {clip.id} are both view {clip.view} of group {clip.group}"
        if leaves_folder(clip.path):
            yield f"clip {clip.id} has the path {clip.path!r}, which leaves the data root"


def view_numbers(words: str, view_names: Sequence[str], context: str) -> list[int]:
    """Parse ``all``, or numbers or names of cameras joined by commas, to sorted numbers from 1. ``context``: for ConfigError."""
    if words.strip() == "all":
        return list(range(1, len(view_names) + 1))
    context = f"{context}; all takes every view"
    return sorted({view_number(word.strip(), view_names, context) for word in words.split(",")})


def view_number(word: str, view_names: Sequence[str], context: str) -> int:
    """Parse the number or name of one camera. Arguments and error as for :func:`view_numbers`."""
    word = tidy(word)
    if word in view_names:
        return list(view_names).index(word) + 1
    # If names are numbers, a number is a name: 2 is camera 02, not the second camera 05.
    numbers = {k: int(name) for k, name in enumerate(view_names, 1) if name.isdecimal()}
    if word.isdecimal():
        same = [k for k, number in numbers.items() if number == int(word)]
        if len(same) == 1:
            return same[0]
        if 1 <= int(word) <= len(view_names) and not numbers:
            return int(word)
    known = ", ".join(name if numbers else f"{k} ({name})" for k, name in enumerate(view_names, 1))
    raise ConfigError(f"unknown view {word!r}: there are {known} ({context})")
