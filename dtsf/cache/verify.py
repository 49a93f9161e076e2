"""Whether a data set of a cache is what it was when it was committed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import xxhash
from pydantic import Field

from dtsf.cache.catalog import newest_records, read_catalog
from dtsf.cache.documents import (
    file_record,
    is_dataset,
    parse_metadata,
    parse_record,
    read_metadata,
    read_published_files,
    shard_numbers,
)
from dtsf.cache.layout import CATALOG, METADATA, PUBLISHED, damaged_name, record_name
from dtsf.cache.records import Frozen
from dtsf.cache.seal import dump_with_checksum
from dtsf.cache.spec import DatasetMetadata
from dtsf.cache.store import LocalStore, open_store
from dtsf.errors import CacheError
from dtsf.files.memory import refuse_unless_fits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dtsf.cache.remote import RemoteStore
    from dtsf.cache.spec import FileRecord, ShardRecord

    Place = LocalStore | RemoteStore


class Damage(Frozen):
    """One file that is not what it was."""

    shard: int | None
    """None for a file of the whole data set."""
    file: str
    """Relative to the data set's folder."""
    reason: str


class Verification(Frozen):
    """What a data set was found to be."""

    ok: bool
    damaged: tuple[Damage, ...]
    shards: int
    bytes: int = Field(ge=0)
    """Of the files that were looked at."""
    deep: bool
    redo: tuple[int, ...]
    """Shards marked by an earlier repair, which preprocess has not made again yet."""
    notes: tuple[str, ...]


def verify(
    where: Path | str | Place, *, deep: bool = False, on_progress: Callable[[int, int], None] | None = None
) -> Verification:
    """Check documents, names and sizes; with ``deep`` every byte of every file against its checksum. Raises CacheError: there
    is no data set, or one of a version that this dtsf does not read.
    """
    place = open_store(where)
    metadata, damaged = verify_metadata(place)
    if metadata is None:
        return Verification(ok=False, damaged=tuple(damaged), shards=0, bytes=0, deep=deep, redo=(), notes=())
    damaged += _verify_extent(place, metadata)
    numbers = shard_numbers(place)
    records = []
    total = 0
    for done, shard in enumerate(numbers, 1):
        record, found = verify_record(place, metadata, shard, record_name(shard))
        damaged += found
        if record is not None:
            records.append(record)
            for name, expected in record.files.items():
                total += expected.bytes
                reason = _verify_file(place, name, expected, deep=deep)
                if reason:
                    damaged.append(Damage(shard=shard, file=name, reason=reason))
        if on_progress is not None:
            on_progress(done, len(numbers))
    marks = [shard for shard in shard_numbers(place, ".damaged") if shard not in numbers]
    for shard in marks:
        damaged += verify_record(place, metadata, shard, damaged_name(shard))[1]
    damaged += _verify_catalog(place, metadata, records, complete=not marks and len(records) == len(numbers))
    return Verification(
        ok=not damaged,
        damaged=tuple(damaged),
        shards=len(numbers),
        bytes=total,
        deep=deep,
        redo=tuple(marks),
        notes=(),
    )


def verify_metadata(place: Place) -> tuple[DatasetMetadata | None, list[Damage]]:
    """What a data set says of itself, from the other copy where the first is damaged; and that damage."""
    try:
        data = place.read(METADATA)
        if data is not None:
            return parse_metadata(data, f"{place}/{METADATA}"), []
        if place.read("zarr.json") is None and place.read("dataset.h5") is None:
            raise CacheError(f"{place} is not a dtsf cache: it has no {METADATA}")
        metadata = read_metadata(place)
    except CacheError as error:
        if not looks_like_dataset(place):
            raise
        return _about_elsewhere(place), [Damage(shard=None, file=METADATA, reason=str(error))]
    return metadata, []


def looks_like_dataset(place: Place) -> bool:
    """Whether a data set is, or once was, there: also one whose own description is damaged."""
    try:
        return is_dataset(place) or any(place.size(name) is not None for name in (METADATA, PUBLISHED))
    except CacheError:
        return True


def _about_elsewhere(place: Place) -> DatasetMetadata | None:
    """What the data set says of itself, from the copy in Zarr's group document; trusted if that is as it was written."""
    import json

    try:
        group = place.read("zarr.json")
        extent = read_published_files(place)
        if group is None or extent is None:
            return None
        known = [files.get("zarr.json") for files in (extent.files, extent.previous)]
        if file_record(group) not in known:
            return None
        metadata = DatasetMetadata.model_validate(json.loads(group)["attributes"]["dtsf"])
    except (CacheError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return parse_metadata(dump_with_checksum(metadata), f"{place}/zarr.json")


def _verify_extent(place: Place, metadata: DatasetMetadata) -> list[Damage]:
    try:
        extent = read_published_files(place)
    except CacheError as error:
        return [Damage(shard=None, file=PUBLISHED, reason=str(error))]
    if extent is None:
        return [Damage(shard=None, file=PUBLISHED, reason="is missing")]
    damaged = []
    beyond = [shard for shard in shard_numbers(place) if shard >= extent.shards]
    if beyond:
        reason = f"shows {extent.shards} shards to other programs, {beyond[-1] + 1} are there"
        damaged.append(Damage(shard=None, file=PUBLISHED, reason=reason))
    for name, expected in extent.files.items():
        reasons = [_verify_file(place, name, expected, deep=True)]
        if name in extent.previous:
            reasons.append(_verify_file(place, name, extent.previous[name], deep=True))
        if all(reasons):
            damaged.append(Damage(shard=None, file=name, reason=str(reasons[0])))
    return damaged


def verify_record(
    place: Place, metadata: DatasetMetadata, shard: int, name: str
) -> tuple[ShardRecord | None, list[Damage]]:
    """A commit record or a mark, or what is wrong with it."""
    try:
        data = place.read(name)
        if data is None:
            raise CacheError("it is gone since its folder was listed")
        return parse_record(metadata, data, shard, f"{place}/{name}"), []
    except CacheError as error:
        return None, [Damage(shard=shard, file=name, reason=str(error))]


def _verify_catalog(
    place: Place, metadata: DatasetMetadata, records: list[ShardRecord], *, complete: bool
) -> list[Damage]:
    """The catalog against itself and, where all ``records`` are there, against them."""
    try:
        document = read_catalog(place)
    except CacheError as error:
        return [Damage(shard=None, file=CATALOG, reason=str(error))]
    if document is None:
        return [Damage(shard=None, file=CATALOG, reason="is missing")] if records else []
    computed = newest_records(records)
    for entry in document.clips if complete else ():
        if entry.status is None and entry.key not in computed:
            reason = f"says that clip {entry.clip.id} has the row {entry.key or '(none)'}, which no record has"
            return [Damage(shard=None, file=CATALOG, reason=reason)]
    return []


def _verify_file(place: Place, name: str, expected: FileRecord, *, deep: bool) -> str:
    """Why a file is not what its record says; empty if it is."""
    try:
        held = place.size(name)
        if held is None:
            return "is missing"
        if held != expected.bytes:
            return f"has {held} bytes instead of {expected.bytes}"
        if not deep:
            return ""
        refuse_unless_fits(held, f"checking {place}/{name}")
        found = xxhash.xxh3_64_hexdigest(place.read(name, held) or b"")
    except CacheError as error:
        return str(error)
    return "" if found == expected.xxh3 else f"has checksum {found} instead of {expected.xxh3} over its {held} bytes"
