"""Verify a dataset: compare documents and files with their checksums. Repair it: write a document again from its copy, and mark
damaged shards with a tombstone, so that the next ``preprocess`` makes them again. Intact shards are not touched.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import TypeVar

import xxhash

from dtsf.cache import documents as docs
from dtsf.cache.catalog import Shards, read_catalog, read_shards, write_catalog
from dtsf.cache.documents import CATALOG, DAMAGED, METADATA, PUBLISHED, DatasetHandle, record_name, shard_numbers
from dtsf.cache.schema import DatasetMetadata, FileRecord, ShardRecord
from dtsf.cache.status import Status
from dtsf.cache.store import Location, Progress, Store, open_store
from dtsf.cache.writer import extend, sweep
from dtsf.errors import CacheError
from dtsf.files.read import refuse_unless_fits
from dtsf.names import counted
from dtsf.settings import Frozen

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
    bytes: int = 0  # of the checked files
    deep: bool
    redo: tuple[int, ...] = ()  # shards with a tombstone of an earlier repair, not made again yet
    notes: tuple[str, ...] = ()


def verify(path: Location, *, deep: bool = False, on_progress: Progress = lambda *_: None) -> Verification:
    """Check documents, names and sizes. ``deep``: also check every byte against its checksum. Raises CacheError: not a dataset."""
    dataset, damaged = _open_damaged(open_store(path))
    if dataset is None:
        return Verification(ok=False, damaged=tuple(damaged), deep=deep)
    store, numbers, records = dataset.store, shard_numbers(dataset), []
    published = _try(lambda: docs.read_published_files(store), damaged, PUBLISHED, "is missing")
    if published is not None:
        if numbers and numbers[-1] >= published.shards:
            reason = f"shows {published.shards} shards to other programs, the dataset has {numbers[-1] + 1}"
            damaged.append(Damage(shard=None, file=PUBLISHED, reason=reason))
        for name, expected in published.files.items():
            previous = [published.previous[name]] if name in published.previous else []
            damaged += _check_file(store, name, [expected, *previous], None, deep=True)
    for done, shard in enumerate(numbers, 1):
        record = _read_record(dataset, shard, damaged)
        if record is not None:
            records.append(record)
            for name, expected in record.files.items():
                damaged += _check_file(store, name, [expected], shard, deep=deep)
        on_progress(done, len(numbers))
    redo = [shard for shard in shard_numbers(dataset, DAMAGED) if shard not in numbers]
    tombstones = [record for shard in redo if (record := _read_record(dataset, shard, damaged, DAMAGED))]
    catalog = _try(lambda: read_catalog(dataset), damaged, CATALOG, "is missing" if records else "")
    if catalog and len(records) == len(numbers):
        # With all records, each row of the catalog must have one that readers see.
        computed = Shards(records, tombstones).by_key
        lost = [entry for entry in catalog.clips if entry.status is None and entry.key not in computed]
        if lost:
            first = f"no record has {lost[0].key or 'an empty key'} of clip {lost[0].clip.id}"
            reason = f"names {counted(len(lost), 'clip')} without a row: {first}"
            damaged.append(Damage(shard=None, file=CATALOG, reason=reason))
    return Verification(
        ok=not damaged,
        damaged=tuple(damaged),
        shards=len(numbers),
        bytes=sum(file.bytes for record in records for file in record.files.values()),
        deep=deep,
        redo=tuple(redo),
    )


def repair(path: Location, *, deep: bool = True) -> tuple[Verification, list[str]]:
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
        if CATALOG in files and _try(lambda: read_catalog(dataset), [], CATALOG) is None:
            store.remove(CATALOG)
            done.append(f"removed {CATALOG}: preprocess writes it again without decoding")
        done += [_remove_shard(dataset, n) for n in sorted({d.shard for d in found.damaged if d.shard is not None})]
        if lost or files - {CATALOG}:
            if _try(lambda: docs.read_published_files(store), [], PUBLISHED) is None:
                store.remove(PUBLISHED)
            extend(dataset, max((shard + 1 for shard in shard_numbers(dataset, DAMAGED)), default=0))
            if not lost:
                done.append("wrote the files that show the shards to other programs")
        document = read_catalog(dataset)
        if document is not None:
            # The catalog must match the records: clips that lost their rows are waiting.
            computed = read_shards(dataset).by_key
            waiting = {"status": Status.WAITING, "reason": "its shard is damaged: run dtsf preprocess"}
            lost_ids = {e.clip.id for e in document.clips if not e.status and e.key not in computed}
            clips = (e.model_copy(update=waiting) if e.clip.id in lost_ids else e for e in document.clips)
            write_catalog(dataset, document.model_copy(update={"clips": tuple(clips)}))
            if CATALOG in files:
                done.append(
                    f"{CATALOG}: {counted(len(lost_ids), 'clip without a row is', 'clips without a row are')} marked for preprocess"
                )
        sweep(dataset)
    return found.model_copy(update={"damaged": (*lost, *found.damaged), "ok": not done}), done


def _remove_shard(dataset: DatasetHandle, shard: int) -> str:
    """Remove a damaged shard, and keep its record as a tombstone if possible. Return a description."""
    store, name, tombstone = dataset.store, record_name(shard), record_name(shard, DAMAGED)
    record = _read_record(dataset, shard, [])
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
    return f"shard {shard}: {counted(len(record.clips), 'clip is', 'clips are')} marked for preprocess"


def _open_damaged(store: Store) -> tuple[DatasetHandle | None, list[Damage]]:
    """Open a dataset by ``dtsf.json``, or else by the copy in ``zarr.json``. Return the handle and the damage."""
    damaged: list[Damage] = []
    dataset = _try(lambda: docs.open_handle(store), damaged, METADATA)
    if dataset is not None:
        return dataset, []
    if not docs.is_dataset(store, damaged=True):
        raise CacheError(damaged[0].reason)
    with contextlib.suppress(CacheError, *docs.JSON_ERRORS):
        group, published = store.read("zarr.json"), docs.read_published_files(store)
        if group is None or published is None:
            return None, damaged
        # The copy has no checksum of its own: the whole file must match.
        if docs.file_record(group) in (published.files.get("zarr.json"), published.previous.get("zarr.json")):
            metadata = DatasetMetadata.model_validate(json.loads(group)["attributes"]["dtsf"])
            dataset = DatasetHandle(store, docs.parse_metadata(docs.dump_with_checksum(metadata), f"{store}/zarr.json"))
    return dataset, damaged


def _read_record(
    dataset: DatasetHandle, shard: int, damaged: list[Damage], suffix: str = ".json"
) -> ShardRecord | None:
    name, removed = record_name(shard, suffix), "was removed during the check"
    return _try(lambda: docs.read_record(dataset, shard, suffix), damaged, name, removed, shard)


def _try(
    action: Callable[[], T | None], damaged: list[Damage], file: str, missing: str = "", shard: int | None = None
) -> T | None:
    """Return the result of ``action``. Append its error to ``damaged``, or ``missing`` if the result is None."""
    try:
        result, reason = action(), missing
    except CacheError as error:
        result, reason = None, str(error)
    if result is None and reason:
        damaged.append(Damage(shard=shard, file=file, reason=reason))
    return result


def _check_file(store: Store, name: str, versions: list[FileRecord], shard: int | None, deep: bool) -> list[Damage]:
    """Compare a file with its record, or with one of its valid versions."""
    try:
        size, expected = store.size(name), versions[0]
        if size is None:
            reason = "is missing"
        elif size not in [version.bytes for version in versions]:
            reason = f"has {size} bytes instead of {expected.bytes}"
        elif not deep:
            return []
        else:
            refuse_unless_fits(size, f"checking {store}/{name}")
            checksum = xxhash.xxh3_64_hexdigest(store.read(name, size) or b"")
            if (size, checksum) in [(version.bytes, version.xxh3) for version in versions]:
                return []
            reason = f"has checksum {checksum} instead of {expected.xxh3} over its {size} bytes"
    except CacheError as error:
        reason = str(error)
    return [Damage(shard=shard, file=name, reason=reason)]
