"""The documents of a data set: what it says of itself, its commit records, how far its files reach. Read, checked, refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import xxhash

from dtsf.cache import hdf5_format as hdf5_store
from dtsf.cache import zarr_format as zarr_store
from dtsf.cache.layout import METADATA, PUBLISHED, array_shapes, check_record, damaged_name, record_name
from dtsf.cache.seal import read_with_checksum
from dtsf.cache.spec import (
    LAYOUT,
    SCHEMA_VERSION,
    DatasetMetadata,
    FileRecord,
    PublishedFiles,
    ShardRecord,
    StoredArray,
)
from dtsf.cache.store import LocalStore, open_store
from dtsf.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import numpy as np

    from dtsf.cache.remote import RemoteStore

    Where = str | Path | LocalStore | RemoteStore


PREPROCESS_AGAIN = "preprocess again (dtsf preprocess --overwrite)"


@dataclass(frozen=True)
class StorageFormat:
    """The small interface behind which the formats are."""

    compressions: tuple[str, ...]
    data_files: Callable[[DatasetMetadata, int], tuple[str, ...]]
    """Shard -> names of its files."""
    encode: Callable[[DatasetMetadata, int, Mapping[str, np.ndarray]], tuple[dict[str, bytes], dict[str, StoredArray]]]
    """Rows of a shard -> bytes of its files, and where each array is in them."""
    decode: Callable[[memoryview, np.ndarray], None]
    """Decompress one array of a shard into an array of the right size."""
    published_files: Callable[[DatasetMetadata, int], dict[str, bytes]]
    """The files that show so many shards to other programs."""


FORMATS = {
    name: StorageFormat(module.COMPRESSIONS, module.data_files, module.encode, module.decode, module.published_files)
    for name, module in (("zarr", zarr_store), ("hdf5", hdf5_store))
}


def storage_format(name: str, compress: str) -> StorageFormat:
    """The format of a name that can compress so. Raises CacheError: an unknown name."""
    if name not in FORMATS:
        raise CacheError(f"unknown format {name!r}: there are {', '.join(FORMATS)}")
    if compress not in FORMATS[name].compressions:
        raise CacheError(f"{name} has no compression {compress!r}: there are {', '.join(FORMATS[name].compressions)}")
    return FORMATS[name]


def is_dataset(where: Where) -> bool:
    """Return True if dtsf made a dataset there, also one of an older layout or with damaged metadata."""
    place = open_store(where)
    try:
        return place.size(METADATA) is not None or _published_metadata(place) is not None
    except CacheError:
        return False


def read_metadata(where: Where) -> DatasetMetadata:
    """Read ``dtsf.json``. Raises CacheError: not a dtsf cache, damaged, or of another layout."""
    place = open_store(where)
    data = place.read(METADATA)
    if data is not None:
        return parse_metadata(data, f"{place}/{METADATA}")
    published = _published_metadata(place)
    if published is None:
        raise CacheError(f"{place} is not a dtsf cache: it has no {METADATA}")
    if published.get("layout", 1) == 1:
        raise CacheError(f"{place} has cache layout 1, this dtsf reads layout {LAYOUT}: {PREPROCESS_AGAIN}")
    raise CacheError(f"{place} has lost its {METADATA}: run dtsf cache repair {place}")


def parse_metadata(data: bytes, where: str) -> DatasetMetadata:
    """Parse and check ``dtsf.json``. Raises CacheError: damaged, or of another layout."""
    try:
        held = json.loads(data)
        layout, schema = held.get("layout", 1), held["spec"]["schema_version"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CacheError(f"{where} is damaged: {type(error).__name__}: {error}") from error
    if schema != SCHEMA_VERSION or layout != LAYOUT:
        raise CacheError(
            f"{where} has cache layout {layout} and schema version {schema}, this dtsf reads layout {LAYOUT} and schema "
            f"version {SCHEMA_VERSION}: {PREPROCESS_AGAIN}"
        )
    metadata = read_with_checksum(data, DatasetMetadata, where)
    if metadata.fingerprint != metadata.spec.fingerprint():
        raise CacheError(f"{where} is damaged: its fingerprint is not that of its spec")
    storage_format(metadata.format, metadata.compress)
    array_shapes(metadata.spec)
    return metadata


def _published_metadata(place: LocalStore | RemoteStore) -> dict[str, Any] | None:
    """Return the copy of the metadata in the attributes of ``zarr.json``, unchecked."""
    group = place.read("zarr.json")
    if group is None:
        return None
    try:
        held = json.loads(group)["attributes"]["dtsf"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return held if isinstance(held, dict) else None


def parse_record(metadata: DatasetMetadata, data: bytes, shard: int, where: str) -> ShardRecord:
    """Parse and check a commit record. Raises CacheError: damaged, of another place, or untrue."""
    try:
        record = read_with_checksum(data, ShardRecord, f"commit record {where}")
    except CacheError as error:
        raise CacheError(f"{error}: run dtsf cache repair, then dtsf preprocess") from error
    if record.shard != shard:
        raise CacheError(f"commit record {where} says that it is shard {record.shard}: run dtsf cache repair")
    kind = storage_format(metadata.format, metadata.compress)
    check_record(metadata, record, kind.data_files(metadata, shard), f"commit record {where}")
    return record


def shard_numbers(where: Where, suffix: str = ".json") -> list[int]:
    """Numbers of the shards that have a commit record (or, with ``.damaged``, a mark), whether it can be read or not."""
    stems = [name.removesuffix(suffix) for name in open_store(where).names("shards") if name.endswith(suffix)]
    return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdigit() and stem == f"{int(stem):05d}")


def read_records(where: Where, metadata: DatasetMetadata | None = None) -> list[ShardRecord]:
    """All commit records, in the order of shards. Raises CacheError: a record cannot be read, belongs to another place or
    cannot be true.
    """
    place = open_store(where)
    metadata = metadata or read_metadata(place)
    return _records(place, metadata, shard_numbers(place), record_name)


def read_marks(where: Where, metadata: DatasetMetadata) -> list[ShardRecord]:
    """Records of shards that were committed, found damaged and not made again since."""
    place = open_store(where)
    committed = set(shard_numbers(place))
    return _records(place, metadata, [n for n in shard_numbers(place, ".damaged") if n not in committed], damaged_name)


def _records(
    place: LocalStore | RemoteStore, metadata: DatasetMetadata, numbers: list[int], name_of: Callable[[int], str]
) -> list[ShardRecord]:
    records = []
    for shard in numbers:
        data = place.read(name_of(shard))
        if data is not None:
            records.append(parse_record(metadata, data, shard, f"{place}/{name_of(shard)}"))
    return records


def read_published_files(where: Where) -> PublishedFiles | None:
    """How far the files for other programs reach; None if there are none. Raises CacheError: damaged."""
    place = open_store(where)
    data = place.read(PUBLISHED)
    return None if data is None else read_with_checksum(data, PublishedFiles, f"{place}/{PUBLISHED}")


def file_record(data: bytes) -> FileRecord:
    """Size and checksum of a file's bytes."""
    return FileRecord(bytes=len(data), xxh3=xxhash.xxh3_64_hexdigest(data))
