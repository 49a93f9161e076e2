"""Verify a dataset, and repair it.

Verification compares documents and files with their checksums. Repair rewrites a document from its copy, and marks damaged
shards with a tombstone, so that the next ``preprocess`` makes them again. Intact shards are not touched.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, TypeVar

import xxhash

from dtsf.cache import documents as docs
from dtsf.cache.catalog import newest_records, read_catalog, write_catalog
from dtsf.cache.documents import CATALOG, METADATA, PUBLISHED, DatasetHandle, shard_numbers
from dtsf.cache.schema import DatasetMetadata, FileRecord, ShardRecord
from dtsf.cache.status import Status
from dtsf.cache.store import open_store
from dtsf.cache.writer import extend, sweep
from dtsf.errors import CacheError
from dtsf.files.read import refuse_unless_fits
from dtsf.settings import Frozen

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dtsf.cache.store import Store

T = TypeVar("T")


class Damage(Frozen):
    """Damaged file. ``shard``: None for a file of the whole dataset. ``file``: path relative to the dataset's folder."""

    shard: int | None
    file: str
    reason: str


class Verification(Frozen):
    """Result of :func:`verify`."""

    ok: bool
    damaged: tuple[Damage, ...]
    shards: int = 0
    bytes: int = 0
    """Size of the checked files."""
    deep: bool
    redo: tuple[int, ...] = ()
    """Shards with a tombstone of an earlier repair, not made again yet."""
    notes: tuple[str, ...] = ()


def verify(
    path: str | Path | Store, *, deep: bool = False, on_progress: Callable[[int, int], None] | None = None
) -> Verification:
    """Check documents, names and sizes. ``deep``: also check every byte against its checksum. Raises CacheError: not a dataset."""
    dataset, damaged = _open_damaged(open_store(path))
    if dataset is None:
        return Verification(ok=False, damaged=tuple(damaged), deep=deep)
    damaged += _check_published(dataset)
    numbers, total, records = shard_numbers(dataset), 0, []
    for done, shard in enumerate(numbers, 1):
        record, problems = _read_record(dataset, shard, docs.record_name(shard))
        damaged += problems
        if record is not None:
            records.append(record)
            total += sum(file.bytes for file in record.files.values())
            for name, expected in record.files.items():
                damaged += _check_file(dataset.store, name, [expected], shard=shard, deep=deep)
        if on_progress is not None:
            on_progress(done, len(numbers))
    redo = [shard for shard in shard_numbers(dataset, ".damaged") if shard not in numbers]
    for shard in redo:
        damaged += _read_record(dataset, shard, docs.damaged_name(shard))[1]
    damaged += _check_catalog(dataset, records, complete=not redo and len(records) == len(numbers))
    ok = not damaged
    return Verification(ok=ok, damaged=tuple(damaged), shards=len(numbers), bytes=total, deep=deep, redo=tuple(redo))


def looks_like_dataset(store: Store) -> bool:
    """Return True if there is a dataset, also one whose metadata is damaged or lost."""
    try:
        return docs.is_dataset(store) or any(store.size(name) is not None for name in (METADATA, PUBLISHED))
    except CacheError:
        return True


def repair(path: str | Path | Store, *, deep: bool = True) -> tuple[Verification, list[str]]:
    """Repair a dataset. Return the damage that was found, and the steps. Raises CacheError: the metadata is lost."""
    store, done = open_store(path), []
    with store.write_lock():
        dataset, lost = _open_damaged(store)
        if dataset is None:
            raise CacheError(
                f"{lost[0].reason}; there is no valid copy of the metadata of {store}: preprocess again "
                "(dtsf preprocess --overwrite)"
            )
        if lost:
            store.write(METADATA, docs.dump_with_checksum(dataset.metadata))
            done.append(f"wrote {METADATA} and the files that show the shards to other programs")
        found = verify(store, deep=deep)
        files = {damage.file for damage in found.damaged if damage.shard is None}
        if CATALOG in files:
            store.remove(CATALOG)
            done.append(f"removed {CATALOG}: preprocess writes it again without decoding")
        done += [_remove_shard(dataset, n) for n in sorted({d.shard for d in found.damaged if d.shard is not None})]
        if lost or files - {CATALOG}:
            published = _read(lambda: docs.read_published_files(store), PUBLISHED)[0]
            if published is None:
                store.remove(PUBLISHED)
            extend(dataset, max([published.shards if published else 0, *_after(shard_numbers(dataset, ".damaged"))]))
            if not lost:
                done.append("wrote the files that show the shards to other programs")
        _mark_waiting(dataset)
        sweep(dataset)
    return found.model_copy(update={"damaged": (*lost, *found.damaged), "ok": not done}), done


def _after(shards: list[int]) -> list[int]:
    return [shard + 1 for shard in shards]


def _remove_shard(dataset: DatasetHandle, shard: int) -> str:
    """Remove a damaged shard, and keep its record as a tombstone if possible. Return a description."""
    store, name, tombstone = dataset.store, docs.record_name(shard), docs.damaged_name(shard)
    record, _ = _read_record(dataset, shard, name)
    with store.claim(name):
        if record is None:
            store.remove(tombstone)
        else:
            # Before the removal: a crash between the two leaves a record, and a record overrides a tombstone.
            store.write(tombstone, docs.dump_with_checksum(record))
        store.remove(name)
        for file in dataset.format.data_files(shard):
            # A link or a folder in place of the file is left to the user; the next write reports it.
            with contextlib.suppress(CacheError):
                store.remove(file)
    if record is None:
        return f"shard {shard}: its record is lost; preprocess finds the missing clips"
    return f"shard {shard}: {len(record.clips)} clips are marked for preprocess"


def _mark_waiting(dataset: DatasetHandle) -> None:
    """Give clips that lost their rows the status ``waiting``, so that the catalog matches the records."""
    document = read_catalog(dataset)
    if document is None:
        return
    computed = newest_records(docs.read_records(dataset))
    waiting = {"status": Status.WAITING, "reason": "its shard is damaged: run dtsf preprocess"}
    clips = (e if e.status or e.key in computed else e.model_copy(update=waiting) for e in document.clips)
    write_catalog(dataset, document.model_copy(update={"clips": tuple(clips)}))


def _open_damaged(store: Store) -> tuple[DatasetHandle | None, list[Damage]]:
    """Open a dataset by ``dtsf.json``, or else by the copy in ``zarr.json``. Return the handle and the damage."""
    dataset, damaged = _read(lambda: docs.open_handle(store), METADATA)
    if dataset is not None:
        return dataset, []
    if not looks_like_dataset(store):
        raise CacheError(damaged[0].reason)
    with contextlib.suppress(CacheError, ValueError, KeyError, TypeError, RecursionError):
        group, published = store.read("zarr.json"), docs.read_published_files(store)
        # The copy has no checksum of its own: the whole file must match.
        if (
            group
            and published
            and docs.file_record(group) in _versions(published.files, published.previous, "zarr.json")
        ):
            metadata = DatasetMetadata.model_validate(json.loads(group)["attributes"]["dtsf"])
            dataset = DatasetHandle(store, docs.parse_metadata(docs.dump_with_checksum(metadata), f"{store}/zarr.json"))
    return dataset, damaged


def _check_published(dataset: DatasetHandle) -> list[Damage]:
    published, damaged = _read(lambda: docs.read_published_files(dataset.store), PUBLISHED)
    if published is None:
        return damaged or [Damage(shard=None, file=PUBLISHED, reason="is missing")]
    beyond = [shard for shard in shard_numbers(dataset) if shard >= published.shards]
    if beyond:
        reason = f"shows {published.shards} shards to other programs, the dataset has {beyond[-1] + 1}"
        damaged.append(Damage(shard=None, file=PUBLISHED, reason=reason))
    for name in published.files:
        damaged += _check_file(dataset.store, name, _versions(published.files, published.previous, name))
    return damaged


def _check_catalog(dataset: DatasetHandle, records: list[ShardRecord], *, complete: bool) -> list[Damage]:
    """Check the catalog. ``complete``: ``records`` are all records, so each row of the catalog must have one."""
    document, damaged = _read(lambda: read_catalog(dataset), CATALOG)
    if document is None and not damaged and records:
        return [Damage(shard=None, file=CATALOG, reason="is missing")]
    computed = newest_records(records)
    for entry in document.clips if document and complete else ():
        if entry.status is None and entry.key not in computed:
            reason = f"names the row {entry.key or '(none)'} for clip {entry.clip.id}, which no record has"
            return [Damage(shard=None, file=CATALOG, reason=reason)]
    return damaged


def _read_record(dataset: DatasetHandle, shard: int, name: str) -> tuple[ShardRecord | None, list[Damage]]:
    record, damaged = _read(lambda: docs.read_record(dataset, shard, name), name, shard)
    missing = [Damage(shard=shard, file=name, reason="was removed during the check")]
    return record, damaged or ([] if record else missing)


def _read(action: Callable[[], T], file: str, shard: int | None = None) -> tuple[T | None, list[Damage]]:
    """Return the result of ``action``, or its error as the damage of a file."""
    try:
        return action(), []
    except CacheError as error:
        return None, [Damage(shard=shard, file=file, reason=str(error))]


def _versions(files: dict[str, FileRecord], previous: dict[str, FileRecord], name: str) -> list[FileRecord]:
    """Return the valid versions of a published file."""
    return [versions[name] for versions in (files, previous) if name in versions]


def _check_file(
    store: Store, name: str, versions: list[FileRecord], *, shard: int | None = None, deep: bool = True
) -> list[Damage]:
    """Compare a file with its record, or with each of its valid versions."""
    try:
        size, expected = store.size(name), versions[0]
        same_size = [version for version in versions if version.bytes == size]
        if size is None:
            reason = "is missing"
        elif not same_size:
            reason = f"has {size} bytes instead of {expected.bytes}"
        elif not deep:
            return []
        else:
            refuse_unless_fits(size, f"checking {store}/{name}")
            checksum = xxhash.xxh3_64_hexdigest(store.read(name, size) or b"")
            if checksum in [version.xxh3 for version in same_size]:
                return []
            reason = f"has checksum {checksum} instead of {expected.xxh3} over its {size} bytes"
    except CacheError as error:
        reason = str(error)
    return [Damage(shard=shard, file=name, reason=reason)]
