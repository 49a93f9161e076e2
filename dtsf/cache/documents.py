"""JSON documents of a dataset. Their last field, ``checksum``, is the xxh3-64 of the file with sixteen zeros in that field."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import xxhash

from dtsf.cache.formats import StorageFormat, array_bytes, array_shapes, storage_format
from dtsf.cache.schema import (
    LAYOUT,
    SCHEMA_VERSION,
    CacheSpec,
    DatasetMetadata,
    FileRecord,
    PublishedFiles,
    ShardRecord,
)
from dtsf.cache.store import Location, Store, open_store
from dtsf.errors import CacheError
from dtsf.files.read import parse_model
from dtsf.settings import Frozen

METADATA = "dtsf.json"
CATALOG = "catalog.json"
PUBLISHED = "published.json"
DAMAGED = ".damaged"  # suffix of a damaged shard's tombstone: its old record, until preprocess makes the shard again
NO_CHECKSUM = "0" * 16
CHECKSUM = re.compile(rb'(?<="checksum": ")[0-9a-f]{16}(?="\s*\}\s*\Z)')  # at the end of a document
JSON_ERRORS = (ValueError, KeyError, TypeError, AttributeError, RecursionError)

T = TypeVar("T", bound=Frozen)


@dataclass(frozen=True)
class DatasetHandle:
    """Dataset of a cache: its store, and its metadata, which is read once."""

    store: Store
    metadata: DatasetMetadata

    @property
    def spec(self) -> CacheSpec:
        """Settings that the rows were computed with."""
        return self.metadata.spec

    @property
    def shard_size(self) -> int:
        """Rows of a full shard."""
        return self.metadata.shard_size

    @property
    def format(self) -> StorageFormat:
        """Storage format."""
        return storage_format(self.metadata.format, self.metadata.compress)


def open_handle(path: Location) -> DatasetHandle:
    """Open a dataset. Raises CacheError: not a dtsf cache, damaged, or of another layout."""
    store = open_store(path)
    data = store.read(METADATA)
    if data is not None:
        return DatasetHandle(store, parse_metadata(data, f"{store}/{METADATA}"))
    published = _published_metadata(store)
    if published is None:
        raise CacheError(f"{store} is not a dtsf cache: it has no {METADATA}")
    _refuse_other_layout(str(store), published.get("layout", 1), SCHEMA_VERSION)
    raise CacheError(f"{store} has lost its {METADATA}: run dtsf cache repair {store}")


def is_dataset(store: Store, *, damaged: bool = False) -> bool:
    """Return True if dtsf made a dataset there, in any layout. ``damaged``: also if its metadata is lost or cannot be read."""
    names = (METADATA, PUBLISHED) if damaged else (METADATA,)
    try:
        return any(store.size(name) is not None for name in names) or _published_metadata(store) is not None
    except CacheError:
        return damaged


def parse_metadata(data: bytes, source: str) -> DatasetMetadata:
    """Parse and check ``dtsf.json``. Raises CacheError: damaged, or of another layout."""
    try:
        document = json.loads(data)
        layout, schema = document.get("layout", 1), document["spec"]["schema_version"]
    except JSON_ERRORS as error:
        raise CacheError(f"{source} is damaged: {type(error).__name__}: {error}") from error
    _refuse_other_layout(source, layout, schema)
    metadata = read_with_checksum(data, DatasetMetadata, source)
    if metadata.fingerprint != metadata.spec.fingerprint():
        raise CacheError(f"{source} is damaged: its fingerprint does not match its spec")
    storage_format(metadata.format, metadata.compress)
    return metadata


def parse_record(dataset: DatasetHandle, data: bytes, shard: int, suffix: str = ".json") -> ShardRecord:
    """Parse and check a commit record or tombstone. Raises CacheError: damaged, of another shard, or inconsistent."""
    source = f"commit record {dataset.store}/{record_name(shard, suffix)}"
    try:
        record = read_with_checksum(data, ShardRecord, source)
    except CacheError as error:
        raise CacheError(f"{error}: run dtsf cache repair, then dtsf preprocess") from error
    if record.shard != shard:
        raise CacheError(f"{source} has the number of shard {record.shard}: run dtsf cache repair")
    for problem in _contradictions(dataset, record):
        raise CacheError(f"{source}: {problem}: run dtsf cache repair, then dtsf preprocess")
    return record


def _contradictions(dataset: DatasetHandle, record: ShardRecord) -> Iterator[str]:
    metadata, used = dataset.metadata, set()
    if record.fingerprint != metadata.fingerprint:
        yield f"it has fingerprint {record.fingerprint}, the cache {metadata.fingerprint}"
    if record.rows > metadata.shard_size:
        yield f"it has {record.rows} rows, a shard {metadata.shard_size}"
    for clip in record.clips:
        path = clip.source.path
        if clip.row is not None and not 0 <= clip.row < record.rows:
            yield f"{path} has row {clip.row}, the shard {record.rows}"
        if clip.row is not None and clip.row in used:
            yield f"row {clip.row} belongs to two clips, one is {path}"
        used.add(clip.row)
        if leaves_folder(path):
            yield f"the path {path!r} leaves the data root"
        if clip.status.usable != (clip.row is not None):
            yield f"{path} is {clip.status.value} and has row {clip.row}"
    files, arrays = dataset.format.data_files(record.shard), array_shapes(metadata.spec)
    if set(record.files) != set(files):
        yield f"it names the files {sorted(record.files)}, not {sorted(files)}"
    if set(record.arrays) != set(arrays):
        yield f"it names the arrays {sorted(record.arrays)}, not {sorted(arrays)}"
    for array, stored in record.arrays.items():
        if stored.file not in record.files or stored.offset + stored.bytes > record.files[stored.file].bytes:
            yield f"{array} is not inside {stored.file}"
        expected = array_bytes(metadata, array)
        if metadata.compress == "none" and stored.bytes != expected:
            yield f"{array} has {stored.bytes} bytes instead of {expected}"


def leaves_folder(path: str) -> bool:
    """Return True if a relative path leads outside its folder."""
    return path.startswith("/") or ".." in path.split("/") or "\0" in path


def record_name(shard: int, suffix: str = ".json") -> str:
    """Return the name of a shard's commit record, or with :data:`DAMAGED` of its tombstone."""
    return f"shards/{shard:05d}{suffix}"


def shard_numbers(dataset: DatasetHandle, suffix: str = ".json") -> list[int]:
    """Return the numbers of the shards with a commit record, or with a tombstone. The file may be unreadable."""
    stems = [name.removesuffix(suffix) for name in dataset.store.files("shards") if name.endswith(suffix)]
    return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdigit() and stem == f"{int(stem):05d}")


def read_record(dataset: DatasetHandle, shard: int, suffix: str = ".json") -> ShardRecord | None:
    """Read a commit record or tombstone; None if it does not exist. Raises CacheError: see :func:`parse_record`."""
    data = dataset.store.read(record_name(shard, suffix))
    return None if data is None else parse_record(dataset, data, shard, suffix)


def read_records(dataset: DatasetHandle) -> list[ShardRecord]:
    """Read all commit records, sorted by shard. Raises CacheError: a record is unreadable or inconsistent."""
    for _ in range(10):
        found = [read_record(dataset, n) for n in shard_numbers(dataset)]
        if None not in found:
            break
        # `compact` removed a shard after it was listed. Its rows are in a shard that the next list has.
    return [record for record in found if record]


def refuse_replaced(dataset: DatasetHandle, record: ShardRecord) -> None:
    """Raise CacheError: a shard was removed or written again after its record was read.

    Call it after reading a file of the shard. Writers remove the record before the files, so the same record means the same rows.
    """
    data = dataset.store.read(record_name(record.shard))
    match = None if data is None else _find_checksum(data)
    if data is None or (match and match.group().decode() != record.checksum):
        raise CacheError(
            f"shard {record.shard} of {dataset.store} was removed or written again after this command had opened the cache "
            "(dtsf cache compact, cache repair or preprocess did it): run the same command again"
        )


def read_tombstones(dataset: DatasetHandle) -> list[ShardRecord]:
    """Read the tombstones of damaged shards that were not made again."""
    numbers = set(shard_numbers(dataset, DAMAGED)) - set(shard_numbers(dataset))
    return [record for n in sorted(numbers) if (record := read_record(dataset, n, DAMAGED))]


def read_published_files(store: Store) -> PublishedFiles | None:
    """Read ``published.json``; None if it does not exist. Raises CacheError: damaged."""
    data = store.read(PUBLISHED)
    return None if data is None else read_with_checksum(data, PublishedFiles, f"{store}/{PUBLISHED}")


def file_record(data: bytes) -> FileRecord:
    """Return size and checksum of a file's bytes."""
    return FileRecord(bytes=len(data), xxh3=xxhash.xxh3_64_hexdigest(data))


def dump_with_checksum(document: Frozen) -> bytes:
    """Return a document as JSON with its checksum. The last field of its model must be ``checksum``."""
    data = document.model_copy(update={"checksum": NO_CHECKSUM}).model_dump_json(indent=1).encode()
    return _with_checksum(data, xxhash.xxh3_64_hexdigest(data))


def read_with_checksum(data: bytes, model: type[T], source: str) -> T:
    """Parse and check a document. Raises CacheError: another model, or a changed byte."""
    match = _find_checksum(data)
    if match is None:
        raise CacheError(f"{source} is damaged: it does not end in a checksum")
    if xxhash.xxh3_64_hexdigest(_with_checksum(data, NO_CHECKSUM)).encode() != match.group():
        raise CacheError(f"{source} is damaged: its bytes do not match its checksum")
    return parse_model(model, data, source, error=lambda why: CacheError(f"{why}: it is damaged"))


def _find_checksum(data: bytes) -> re.Match[bytes] | None:
    # A search of a whole catalog of megabytes takes longer than parsing it.
    return CHECKSUM.search(data, max(0, data.rfind(b'"checksum": "')))


def _with_checksum(data: bytes, checksum: str) -> bytes:
    match = _find_checksum(data)
    return data if match is None else data[: match.start()] + checksum.encode() + data[match.end() :]


def _published_metadata(store: Store) -> dict[str, Any] | None:
    """Return the copy of the metadata in the attributes of ``zarr.json``, unchecked; None if there is none."""
    group = store.read("zarr.json")
    try:
        copy = None if group is None else json.loads(group)["attributes"]["dtsf"]
    except JSON_ERRORS:
        return None
    return copy if isinstance(copy, dict) else None


def _refuse_other_layout(source: str, layout: object, schema: object) -> None:
    if (layout, schema) != (LAYOUT, SCHEMA_VERSION):
        raise CacheError(
            f"{source} has cache layout {layout} and schema version {schema}, this dtsf reads layout {LAYOUT} and schema "
            f"version {SCHEMA_VERSION}: preprocess again (dtsf preprocess --overwrite)"
        )
