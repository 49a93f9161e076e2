"""Catalog of a dataset (``catalog.json``): its clips and their current labels, splits and subjects.

Each ``preprocess`` replaces the whole catalog, so annotations may change without touching a row. Each clip names its row by the
key of its source (:attr:`.schema.Source.key`).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from dtsf.cache.documents import CATALOG, dump_with_checksum, leaves_folder, read_with_checksum
from dtsf.cache.schema import BadClip, CatalogDocument
from dtsf.cache.status import Status
from dtsf.errors import CacheError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from dtsf.cache.documents import DatasetHandle
    from dtsf.cache.schema import ClipRecord, ShardRecord

    ByKey = Mapping[str, tuple[int, ClipRecord]]


def read_catalog(dataset: DatasetHandle) -> CatalogDocument | None:
    """Read the catalog; None if no ``preprocess`` has written one. Raises CacheError: damaged or inconsistent."""
    source = f"{dataset.store}/{CATALOG}"
    data = dataset.store.read(CATALOG)
    if data is None:
        return None
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


def newest_records(
    shards: Iterable[ShardRecord], damaged: Iterable[ShardRecord] = ()
) -> dict[str, tuple[int, ClipRecord]]:
    """Return the newest record of each key, with its shard.

    ``damaged``: records of damaged shards. Their rows are lost, and an older row of the same key is not used either.
    """
    damaged = list(damaged)
    lost = {shard.shard for shard in damaged}
    newest: dict[str, tuple[int, ClipRecord]] = {}
    for shard in sorted([*shards, *damaged], key=lambda record: record.shard):
        for record in shard.clips:
            if shard.shard in lost:
                newest.pop(record.key, None)
            else:
                newest[record.key] = (shard.shard, record)
    return newest


def match_rows(
    document: CatalogDocument | None, computed: ByKey
) -> tuple[dict[str, tuple[int, ClipRecord]], tuple[BadClip, ...]]:
    """Return the record and shard of each clip by clip id, and the clips without a row. ``computed``: records by key."""
    matched: dict[str, tuple[int, ClipRecord]] = {}
    bad = []
    by_version: dict[tuple[str, str, int, int, str], tuple[int, ClipRecord]] | None = None
    for entry in document.clips if document else ():
        found = computed.get(entry.key) if entry.key else None
        if not entry.key and entry.status in (None, Status.WAITING):
            if by_version is None:
                by_version = {record.source.file_version: (shard, record) for shard, record in computed.values()}
            found = by_version.get(entry.file_version)
        if found is not None:
            matched[entry.clip.id] = found
            if found[1].row is None:
                bad.append(BadClip(clip=entry.clip, status=found[1].status, reason=found[1].reason))
        else:
            reason = entry.reason or "not done yet, or its shard is damaged: run dtsf preprocess"
            bad.append(BadClip(clip=entry.clip, status=entry.status or Status.WAITING, reason=reason))
    return matched, tuple(bad)


def check_catalog(document: CatalogDocument, source: str) -> None:
    """Check the rules that stage 2 relies on. Raises CacheError: a repeated name or id, a label or view out of range, or
    contradictory clips of a group.
    """
    info = document.info
    for what, names in (("class", info.class_names), ("view", info.view_names)):
        repeated = [name for name, count in Counter(names).items() if count > 1]
        if repeated:
            raise CacheError(f"{source} names the {what} {repeated[0]!r} twice")
    ids: set[str] = set()
    labels: dict[str, tuple[int, str]] = {}
    views: dict[tuple[str, int], str] = {}
    for entry in document.clips:
        clip = entry.clip
        if clip.id in ids:
            raise CacheError(f"{source} has the clip {clip.id} twice")
        ids.add(clip.id)
        if clip.label >= len(info.class_names):
            raise CacheError(
                f"{source}: clip {clip.id} has label {clip.label}, there are {len(info.class_names)} classes"
            )
        if clip.view > len(info.view_names):
            raise CacheError(f"{source}: clip {clip.id} has view {clip.view}, there are {len(info.view_names)}")
        label, first = labels.setdefault(clip.group, (clip.label, clip.id))
        if label != clip.label:
            raise CacheError(f"{source}: group {clip.group} has label {label} in {first} and {clip.label} in {clip.id}")
        other = views.setdefault((clip.group, clip.view), clip.id)
        if other != clip.id:
            raise CacheError(f"{source}: {other} and {clip.id} are both view {clip.view} of group {clip.group}")
        if leaves_folder(clip.path):
            raise CacheError(f"{source}: clip {clip.id} has the path {clip.path!r}, which leaves the data root")


def view_numbers(words: str, view_names: Sequence[str], context: str) -> list[int]:
    """Parse camera numbers from ``all``, or from numbers or names separated by commas.

    ``view_names``: names of the dataset's views in order. ``context``: option and dataset, for the message. Returns numbers
    from 1, sorted and unique. Raises ConfigError: an unknown view.
    """
    if words.strip() == "all":
        return list(range(1, len(view_names) + 1))
    return sorted(
        {view_number(word.strip(), view_names, f"{context}; all takes every view") for word in words.split(",")}
    )


def view_number(word: str, view_names: Sequence[str], context: str) -> int:
    """Parse the number or name of one camera. Arguments and error as for :func:`view_numbers`."""
    if word in view_names:
        return list(view_names).index(word) + 1
    if word.isdecimal():
        # If names are numbers, a number is a name: 2 is camera 02, not the second camera 05.
        same = [k for k, name in enumerate(view_names, 1) if name.isdecimal() and int(name) == int(word)]
        if len(same) == 1:
            return same[0]
        if 1 <= int(word) <= len(view_names) and not any(name.isdecimal() for name in view_names):
            return int(word)
    known = ", ".join(
        name if name.isdecimal() or any(other.isdecimal() for other in view_names) else f"{k} ({name})"
        for k, name in enumerate(view_names, 1)
    )
    raise ConfigError(f"unknown view {word!r}: there are {known} ({context})")
