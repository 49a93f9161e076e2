"""Verify a dataset, and repair it.

Verification compares documents and files with their checksums. Repair rewrites a document from its copy, and marks damaged
shards with a tombstone, so that the next ``preprocess`` makes them again. Intact shards are not touched.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import xxhash
from pydantic import Field

from dtsf.cache.catalog import newest_records, read_catalog, write_catalog
from dtsf.cache.documents import (
    CATALOG,
    METADATA,
    PUBLISHED,
    DatasetHandle,
    damaged_name,
    dump_with_checksum,
    file_record,
    is_dataset,
    open_handle,
    parse_metadata,
    parse_record,
    read_published_files,
    record_name,
    shard_numbers,
)
from dtsf.cache.schema import DatasetMetadata
from dtsf.cache.status import Status
from dtsf.cache.store import open_store
from dtsf.cache.writer import extend, sweep
from dtsf.errors import CacheError
from dtsf.files.read import refuse_unless_fits
from dtsf.settings import Frozen

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dtsf.cache.schema import FileRecord, ShardRecord
    from dtsf.cache.store import Store


class Damage(Frozen):
    """Damaged file."""

    shard: int | None
    """None for a file of the whole dataset."""
    file: str
    """Path relative to the dataset's folder."""
    reason: str


class Verification(Frozen):
    """Result of :func:`verify`."""

    ok: bool
    damaged: tuple[Damage, ...]
    shards: int
    bytes: int = Field(ge=0)
    """Size of the checked files."""
    deep: bool
    redo: tuple[int, ...]
    """Shards with a tombstone of an earlier repair, not made again yet."""
    notes: tuple[str, ...] = ()


def verify(
    path: str | Path | Store, *, deep: bool = False, on_progress: Callable[[int, int], None] | None = None
) -> Verification:
    """Check documents, names and sizes. ``deep``: also check every byte against its checksum. Raises CacheError: not a dataset."""
    store = open_store(path)
    dataset, damaged = _open_damaged(store)
    if dataset is None:
        return Verification(ok=False, damaged=tuple(damaged), shards=0, bytes=0, deep=deep, redo=())
    damaged += _check_published(dataset)
    numbers = shard_numbers(dataset)
    records = []
    total = 0
    for done, shard in enumerate(numbers, 1):
        record, problems = _check_record(dataset, shard, record_name(shard))
        damaged += problems
        if record is not None:
            records.append(record)
            for name, expected in record.files.items():
                total += expected.bytes
                if reason := _check_file(store, name, expected, deep=deep):
                    damaged.append(Damage(shard=shard, file=name, reason=reason))
        if on_progress is not None:
            on_progress(done, len(numbers))
    redo = [shard for shard in shard_numbers(dataset, ".damaged") if shard not in numbers]
    for shard in redo:
        damaged += _check_record(dataset, shard, damaged_name(shard))[1]
    damaged += _check_catalog(dataset, records, complete=not redo and len(records) == len(numbers))
    return Verification(
        ok=not damaged, damaged=tuple(damaged), shards=len(numbers), bytes=total, deep=deep, redo=tuple(redo)
    )


def looks_like_dataset(store: Store) -> bool:
    """Return True if there is a dataset, also one whose metadata is damaged or lost."""
    try:
        return is_dataset(store) or any(store.size(name) is not None for name in (METADATA, PUBLISHED))
    except CacheError:
        return True


def repair(path: str | Path | Store, *, deep: bool = True) -> tuple[Verification, list[str]]:
    """Repair a dataset.

    Returns the damage that was found, and a description of each step. Raises CacheError: the metadata is lost.
    """
    store = open_store(path)
    with store.write_lock():
        return _repair(store, deep=deep)


def _repair(store: Store, *, deep: bool) -> tuple[Verification, list[str]]:
    done = []
    dataset, lost = _open_damaged(store)
    if dataset is None:
        raise CacheError(
            f"{lost[0].reason}; there is no valid copy of the metadata of {store}: preprocess again (dtsf preprocess --overwrite)"
        )
    if lost:
        store.write(METADATA, dump_with_checksum(dataset.metadata))
        done.append(f"wrote {METADATA} and the files that show the shards to other programs")
    found = verify(store, deep=deep)
    if any(damage.file == CATALOG for damage in found.damaged):
        store.remove(CATALOG)
        done.append(f"removed {CATALOG}: preprocess writes it again without decoding")
    for shard in sorted({damage.shard for damage in found.damaged if damage.shard is not None}):
        record, _ = _check_record(dataset, shard, record_name(shard))
        with store.claim(record_name(shard)):
            if record is not None:
                # Before the removal: a crash between the two leaves a record, and a record overrides a tombstone.
                store.write(damaged_name(shard), dump_with_checksum(record))
                done.append(f"shard {shard}: {len(record.clips)} clips are marked for preprocess")
            else:
                store.remove(damaged_name(shard))
                done.append(f"shard {shard}: its record is lost; preprocess finds the missing clips")
            store.remove(record_name(shard))
            for name in dataset.format.data_files(shard):
                _discard(store, name)
    if lost or any(damage.shard is None and damage.file != CATALOG for damage in found.damaged):
        _publish_again(dataset)
        if not lost:
            done.append("wrote the files that show the shards to other programs")
    _mark_waiting(dataset)
    sweep(dataset)
    damaged = (*lost, *(damage for damage in found.damaged if damage not in lost))
    return found.model_copy(update={"damaged": damaged, "ok": not done}), done


def _open_damaged(store: Store) -> tuple[DatasetHandle | None, list[Damage]]:
    """Open a dataset by ``dtsf.json``, or else by the copy in ``zarr.json``. Return the handle and the damage."""
    try:
        return open_handle(store), []
    except CacheError as error:
        if not looks_like_dataset(store):
            raise
        metadata = _metadata_copy(store)
        dataset = None if metadata is None else DatasetHandle(store, metadata)
        return dataset, [Damage(shard=None, file=METADATA, reason=str(error))]


def _metadata_copy(store: Store) -> DatasetMetadata | None:
    """Return the metadata in ``zarr.json`` if that file has the checksum in ``published.json``."""
    try:
        group, published = store.read("zarr.json"), read_published_files(store)
        if group is None or published is None:
            return None
        if file_record(group) not in (published.files.get("zarr.json"), published.previous.get("zarr.json")):
            return None
        metadata = DatasetMetadata.model_validate(json.loads(group)["attributes"]["dtsf"])
        return parse_metadata(dump_with_checksum(metadata), f"{store}/zarr.json")
    except (CacheError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _check_published(dataset: DatasetHandle) -> list[Damage]:
    store = dataset.store
    try:
        published = read_published_files(store)
    except CacheError as error:
        return [Damage(shard=None, file=PUBLISHED, reason=str(error))]
    if published is None:
        return [Damage(shard=None, file=PUBLISHED, reason="is missing")]
    damaged = []
    beyond = [shard for shard in shard_numbers(dataset) if shard >= published.shards]
    if beyond:
        reason = f"shows {published.shards} shards to other programs, the dataset has {beyond[-1] + 1}"
        damaged.append(Damage(shard=None, file=PUBLISHED, reason=reason))
    for name, expected in published.files.items():
        versions = [expected, *([published.previous[name]] if name in published.previous else [])]
        reasons = [_check_file(store, name, version, deep=True) for version in versions]
        if all(reasons):
            damaged.append(Damage(shard=None, file=name, reason=reasons[0]))
    return damaged


def _check_record(dataset: DatasetHandle, shard: int, name: str) -> tuple[ShardRecord | None, list[Damage]]:
    """Return a commit record or tombstone, or its damage."""
    try:
        data = dataset.store.read(name)
        if data is None:
            raise CacheError("was removed during the check")
        return parse_record(dataset, data, shard, name), []
    except CacheError as error:
        return None, [Damage(shard=shard, file=name, reason=str(error))]


def _check_catalog(dataset: DatasetHandle, records: list[ShardRecord], *, complete: bool) -> list[Damage]:
    """Check the catalog. ``complete``: ``records`` are all records, so each row of the catalog must have one."""
    try:
        document = read_catalog(dataset)
    except CacheError as error:
        return [Damage(shard=None, file=CATALOG, reason=str(error))]
    if document is None:
        return [Damage(shard=None, file=CATALOG, reason="is missing")] if records else []
    computed = newest_records(records)
    for entry in document.clips if complete else ():
        if entry.status is None and entry.key not in computed:
            reason = f"names the row {entry.key or '(none)'} for clip {entry.clip.id}, which no record has"
            return [Damage(shard=None, file=CATALOG, reason=reason)]
    return []


def _check_file(store: Store, name: str, expected: FileRecord, *, deep: bool) -> str:
    """Return the difference between a file and its record; empty if there is none."""
    try:
        size = store.size(name)
        if size is None:
            return "is missing"
        if size != expected.bytes:
            return f"has {size} bytes instead of {expected.bytes}"
        if not deep:
            return ""
        refuse_unless_fits(size, f"checking {store}/{name}")
        found = xxhash.xxh3_64_hexdigest(store.read(name, size) or b"")
    except CacheError as error:
        return str(error)
    return "" if found == expected.xxh3 else f"has checksum {found} instead of {expected.xxh3} over its {size} bytes"


def _mark_waiting(dataset: DatasetHandle) -> None:
    """Give clips that lost their rows the status ``waiting``, so that the catalog matches the records."""
    if dataset.store.size(CATALOG) is None or (document := read_catalog(dataset)) is None:
        return
    found = (_check_record(dataset, shard, record_name(shard))[0] for shard in shard_numbers(dataset))
    computed = newest_records(record for record in found if record is not None)
    waiting = {"status": Status.WAITING, "reason": "its shard is damaged: run dtsf preprocess"}
    clips = (e if e.status or e.key in computed else e.model_copy(update=waiting) for e in document.clips)
    write_catalog(dataset, document.model_copy(update={"clips": tuple(clips)}))


def _discard(store: Store, name: str) -> None:
    """Remove a file. A link or a folder in its place is left to the user; the next write reports it."""
    try:
        store.remove(name)
    except CacheError:
        return


def _publish_again(dataset: DatasetHandle) -> None:
    try:
        published = read_published_files(dataset.store)
        shards = published.shards if published else 0
    except CacheError:
        dataset.store.remove(PUBLISHED)
        shards = 0
    extend(dataset, max([shards, *(n + 1 for n in shard_numbers(dataset, ".damaged"))]))
