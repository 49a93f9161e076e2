"""The documents of a data set: what it says of itself, its commit records, how far its files reach. Read, checked, refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import xxhash

from dtsf.cache import hdf5_format as hdf5_store
from dtsf.cache import zarr_format as zarr_store
from dtsf.cache.layout import ABOUT, EXTENT, array_shapes, check_record, damaged_name, record_name
from dtsf.cache.seal import read_with_checksum
from dtsf.cache.spec import LAYOUT, SCHEMA_VERSION, DatasetMetadata, FileRecord, Part, PublishedFiles, ShardRecord
from dtsf.cache.store import LocalStore, open_store
from dtsf.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import numpy as np

    from dtsf.cache.remote import RemoteStore

    Where = str | Path | LocalStore | RemoteStore


@dataclass(frozen=True)
class StorageFormat:
    """The small interface behind which the formats are."""

    compressions: tuple[str, ...]
    data_files: Callable[[DatasetMetadata, int], tuple[str, ...]]
    """Shard -> names of its files."""
    encode: Callable[[DatasetMetadata, int, Mapping[str, np.ndarray]], tuple[dict[str, bytes], dict[str, Part]]]
    """Rows of a shard -> bytes of its files, and where each array is in them."""
    decode: Callable[[memoryview, np.ndarray], None]
    """Decompress one array of a shard into an array of the right size."""
    metadata: Callable[[DatasetMetadata, int], dict[str, bytes]]
    """The files that show so many shards to other programs."""


FORMATS = {
    name: StorageFormat(module.COMPRESSIONS, module.data_files, module.encode, module.decode, module.metadata)
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
    """Whether a data set that dtsf made is there; one whose description is damaged is one too, and opening it says so."""
    place = open_store(where)
    try:
        if place.size(ABOUT) is None:
            read_metadata(place, check=False)
    except CacheError:
        return False
    return True


def read_metadata(where: Where, *, check: bool = True) -> DatasetMetadata:
    """What a data set says of itself.

    Raises CacheError: no dtsf cache, damaged, or of a version that this dtsf does not read.
    """
    place = open_store(where)
    data = place.read(ABOUT)
    if data is not None:
        return parse_metadata(data, f"{place}/{ABOUT}", check=check)
    group = place.read("zarr.json")
    if group is None:
        raise CacheError(f"{place} is not a dtsf cache: it has no {ABOUT}")
    try:
        held = json.loads(group)["attributes"]["dtsf"]
        layout = held.get("layout", 1)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CacheError(f"{place} is not a dtsf cache: {type(error).__name__}: {error}") from error
    if layout != 1 and check:
        raise CacheError(f"{place} has lost its {ABOUT}: run dtsf cache repair {place}")
    return parse_metadata(json.dumps(held).encode(), f"{place}/zarr.json", check=check, required=False)


def parse_metadata(data: bytes, where: str, *, check: bool = True, required: bool = True) -> DatasetMetadata:
    """Parse what a data set says of itself; ``check`` refuses what this dtsf cannot read. Raises CacheError: damaged, or
    another version.
    """
    try:
        held = json.loads(data)
        layout, schema = held.get("layout", 1), held["spec"]["schema_version"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CacheError(f"{where} is damaged: {type(error).__name__}: {error}") from error
    if not check:
        return DatasetMetadata.model_construct(**{name: held.get(name) for name in DatasetMetadata.model_fields})
    if schema != SCHEMA_VERSION or layout not in range(1, LAYOUT + 1):
        raise CacheError(
            f"{where} has cache schema version {schema} and layout {layout}, this dtsf reads schema version "
            f"{SCHEMA_VERSION} and layouts 1 to {LAYOUT}: make it again with dtsf preprocess --overwrite"
        )
    about = read_with_checksum(data, DatasetMetadata, where, required=required)
    if about.fingerprint != about.spec.fingerprint():
        raise CacheError(f"{where} is damaged: its fingerprint is not that of its spec")
    storage_format(about.format, about.compress)
    array_shapes(about.spec, about.layout)
    return about


def parse_record(about: DatasetMetadata, data: bytes, shard: int, where: str) -> ShardRecord:
    """Parse and check a commit record. Raises CacheError: damaged, of another place, or untrue."""
    try:
        record = read_with_checksum(data, ShardRecord, f"commit record {where}", required=about.layout > 1)
    except CacheError as error:
        raise CacheError(f"{error}: run dtsf cache repair, then dtsf preprocess") from error
    if record.shard != shard:
        raise CacheError(f"commit record {where} says that it is shard {record.shard}: run dtsf cache repair")
    kind = storage_format(about.format, about.compress)
    if not record.parts:
        # Layout 1: an array is the whole of its file.
        parts = {
            array: Part(file=name, offset=0, bytes=record.files[name].bytes)
            for array, name in zip(array_shapes(about.spec, about.layout), kind.data_files(about, shard), strict=True)
            if name in record.files
        }
        record = record.model_copy(update={"parts": parts})
    check_record(about, record, kind.data_files(about, shard), f"commit record {where}")
    return record


def shard_numbers(where: Where, suffix: str = ".json") -> list[int]:
    """Numbers of the shards that have a commit record (or, with ``.redo``, a mark), whether it can be read or not."""
    stems = [name.removesuffix(suffix) for name in open_store(where).names("shards") if name.endswith(suffix)]
    return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdigit() and stem == f"{int(stem):05d}")


def read_records(where: Where, about: DatasetMetadata | None = None) -> list[ShardRecord]:
    """All commit records, in the order of shards. Raises CacheError: a record cannot be read, belongs to another place or
    cannot be true.
    """
    place = open_store(where)
    about = about or read_metadata(place)
    return _records(place, about, shard_numbers(place), record_name)


def read_marks(where: Where, about: DatasetMetadata) -> list[ShardRecord]:
    """Records of shards that were committed, found damaged and not made again since."""
    place = open_store(where)
    committed = set(shard_numbers(place))
    return _records(place, about, [n for n in shard_numbers(place, ".redo") if n not in committed], damaged_name)


def _records(
    place: LocalStore | RemoteStore, about: DatasetMetadata, numbers: list[int], name_of: Callable[[int], str]
) -> list[ShardRecord]:
    records = []
    for shard in numbers:
        data = place.read(name_of(shard))
        if data is not None:
            records.append(parse_record(about, data, shard, f"{place}/{name_of(shard)}"))
    return records


def read_published_files(where: Where) -> PublishedFiles | None:
    """How far the files for other programs reach; None for layout 1. Raises CacheError: damaged."""
    place = open_store(where)
    data = place.read(EXTENT)
    return None if data is None else read_with_checksum(data, PublishedFiles, f"{place}/{EXTENT}")


def file_record(data: bytes) -> FileRecord:
    """Size and checksum of a file's bytes."""
    return FileRecord(bytes=len(data), xxh3=xxhash.xxh3_64_hexdigest(data))
