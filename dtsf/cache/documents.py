"""JSON documents of a dataset: metadata, commit records and published files. They are read, checked and refused here.

Each document has its own checksum, so that a changed byte is found. Its last field is ``checksum``: the xxh3-64 of the file
with sixteen zeros in that field.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import xxhash

from dtsf.cache.formats import StorageFormat, array_bytes, array_shapes, storage_format
from dtsf.cache.schema import LAYOUT, SCHEMA_VERSION, DatasetMetadata, FileRecord, PublishedFiles, ShardRecord
from dtsf.cache.store import open_store
from dtsf.errors import CacheError
from dtsf.files.read import parse_model
from dtsf.settings import Frozen

if TYPE_CHECKING:
    from pathlib import Path

    from dtsf.cache.schema import CacheSpec
    from dtsf.cache.store import Store

METADATA = "dtsf.json"
CATALOG = "catalog.json"
PUBLISHED = "published.json"
NO_CHECKSUM = "0" * 16
CHECKSUM = re.compile(rb'"checksum": ?"([0-9a-f]{16})"\s*\}\s*\Z')
"""End of a document."""

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


def open_handle(path: str | Path | Store) -> DatasetHandle:
    """Open a dataset. Raises CacheError: not a dtsf cache, damaged, or of another layout."""
    store = open_store(path)
    data = store.read(METADATA)
    if data is not None:
        return DatasetHandle(store, parse_metadata(data, f"{store}/{METADATA}"))
    published = _published_metadata(store)
    if published is None:
        raise CacheError(f"{store} is not a dtsf cache: it has no {METADATA}")
    if published.get("layout", 1) == 1:
        raise CacheError(_other_layout(str(store), 1, SCHEMA_VERSION))
    raise CacheError(f"{store} has lost its {METADATA}: run dtsf cache repair {store}")


def is_dataset(store: Store) -> bool:
    """Return True if dtsf made a dataset there, also one of another layout or with damaged metadata."""
    try:
        return store.size(METADATA) is not None or _published_metadata(store) is not None
    except CacheError:
        return False


def parse_metadata(data: bytes, source: str) -> DatasetMetadata:
    """Parse and check ``dtsf.json``. Raises CacheError: damaged, or of another layout."""
    try:
        document = json.loads(data)
        layout, schema = document.get("layout", 1), document["spec"]["schema_version"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CacheError(f"{source} is damaged: {type(error).__name__}: {error}") from error
    if schema != SCHEMA_VERSION or layout != LAYOUT:
        raise CacheError(_other_layout(source, layout, schema))
    metadata = read_with_checksum(data, DatasetMetadata, source)
    if metadata.fingerprint != metadata.spec.fingerprint():
        raise CacheError(f"{source} is damaged: its fingerprint does not match its spec")
    storage_format(metadata.format, metadata.compress)
    return metadata


def parse_record(dataset: DatasetHandle, data: bytes, shard: int, name: str) -> ShardRecord:
    """Parse and check a commit record. ``name``: its path. Raises CacheError: damaged, of another shard, or inconsistent."""
    source = f"commit record {dataset.store}/{name}"
    try:
        record = read_with_checksum(data, ShardRecord, source)
    except CacheError as error:
        raise CacheError(f"{error}: run dtsf cache repair, then dtsf preprocess") from error
    if record.shard != shard:
        raise CacheError(f"{source} has the number of shard {record.shard}: run dtsf cache repair")
    check_record(dataset, record, source)
    return record


def check_record(dataset: DatasetHandle, record: ShardRecord, source: str) -> None:
    """Check a record against the metadata. Raises CacheError: another fingerprint, a row out of range or used twice, a file or
    path outside its folder, or wrong sizes.
    """
    hint = "run dtsf cache repair, then dtsf preprocess"
    metadata = dataset.metadata
    if record.fingerprint != metadata.fingerprint:
        raise CacheError(f"{source} has fingerprint {record.fingerprint}, the cache {metadata.fingerprint}: {hint}")
    if record.rows > metadata.shard_size:
        raise CacheError(f"{source} has {record.rows} rows, a shard {metadata.shard_size}: {hint}")
    used: set[int] = set()
    for clip in record.clips:
        path = clip.source.path
        if clip.row is not None:
            if not 0 <= clip.row < record.rows:
                raise CacheError(f"{source}: {path} has row {clip.row}, the shard {record.rows}: {hint}")
            if clip.row in used:
                raise CacheError(f"{source}: row {clip.row} belongs to two clips, one is {path}: {hint}")
            used.add(clip.row)
        if leaves_folder(path):
            raise CacheError(f"{source}: the path {path!r} leaves the data root")
        if clip.status.usable != (clip.row is not None):
            raise CacheError(f"{source}: {path} is {clip.status.value} and has row {clip.row}: {hint}")
    files = dataset.format.data_files(record.shard)
    if set(record.files) != set(files):
        raise CacheError(f"{source} names the files {sorted(record.files)}, not {sorted(files)}: {hint}")
    arrays = array_shapes(metadata.spec)
    if set(record.arrays) != set(arrays):
        raise CacheError(f"{source} names the arrays {sorted(record.arrays)}, not {sorted(arrays)}: {hint}")
    for array, stored in record.arrays.items():
        if stored.file not in record.files or stored.offset + stored.bytes > record.files[stored.file].bytes:
            raise CacheError(f"{source}: {array} is not inside {stored.file}: {hint}")
        expected = array_bytes(metadata, array)
        if metadata.compress == "none" and stored.bytes != expected:
            raise CacheError(f"{source}: {array} has {stored.bytes} bytes instead of {expected}: {hint}")


def leaves_folder(path: str) -> bool:
    """Return True if a relative path leads outside its folder."""
    return path.startswith("/") or ".." in path.split("/") or "\0" in path


def record_name(shard: int) -> str:
    """Return the name of a shard's commit record."""
    return f"shards/{shard:05d}.json"


def damaged_name(shard: int) -> str:
    """Return the name of a damaged shard's tombstone: its old record. The next ``preprocess`` makes the shard again."""
    return f"shards/{shard:05d}.damaged"


def shard_numbers(dataset: DatasetHandle, suffix: str = ".json") -> list[int]:
    """Return the numbers of the shards with a commit record, also unreadable ones. ``.damaged``: with a tombstone."""
    stems = [name.removesuffix(suffix) for name in dataset.store.files("shards") if name.endswith(suffix)]
    return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdigit() and stem == f"{int(stem):05d}")


def read_record(dataset: DatasetHandle, shard: int, name: str) -> ShardRecord | None:
    """Read a commit record or tombstone; None if it does not exist. Raises CacheError: see :func:`parse_record`."""
    data = dataset.store.read(name)
    return None if data is None else parse_record(dataset, data, shard, name)


def read_records(dataset: DatasetHandle) -> list[ShardRecord]:
    """Read all commit records, sorted by shard. Raises CacheError: a record is unreadable or inconsistent."""
    return [record for n in shard_numbers(dataset) if (record := read_record(dataset, n, record_name(n)))]


def read_damaged(dataset: DatasetHandle) -> list[ShardRecord]:
    """Read the tombstones of damaged shards that were not made again."""
    committed = set(shard_numbers(dataset))
    numbers = [n for n in shard_numbers(dataset, ".damaged") if n not in committed]
    return [record for n in numbers if (record := read_record(dataset, n, damaged_name(n)))]


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
    match = CHECKSUM.search(data)
    if match is None:
        raise ValueError(f"the last field of {type(document).__name__} is not checksum")
    return _replace_checksum(data, match, xxhash.xxh3_64_hexdigest(data))


def read_with_checksum(data: bytes, model: type[T], source: str) -> T:
    """Parse and check a document. Raises CacheError: another model, or a changed byte."""
    match = CHECKSUM.search(data)
    if match is None:
        raise CacheError(f"{source} is damaged: it does not end in a checksum")
    if xxhash.xxh3_64_hexdigest(_replace_checksum(data, match, NO_CHECKSUM)).encode() != match.group(1):
        raise CacheError(f"{source} is damaged: its bytes do not match its checksum")
    return parse_model(model, data, source, error=lambda why: CacheError(f"{why}: it is damaged"))


def _replace_checksum(data: bytes, match: re.Match[bytes], checksum: str) -> bytes:
    return data[: match.start(1)] + checksum.encode() + data[match.end(1) :]


def _published_metadata(store: Store) -> dict[str, Any] | None:
    """Return the copy of the metadata in the attributes of ``zarr.json``, unchecked; None if there is none."""
    group = store.read("zarr.json")
    try:
        copy = None if group is None else json.loads(group)["attributes"]["dtsf"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return copy if isinstance(copy, dict) else None


def _other_layout(source: str, layout: object, schema: object) -> str:
    return (
        f"{source} has cache layout {layout} and schema version {schema}, this dtsf reads layout {LAYOUT} and schema version "
        f"{SCHEMA_VERSION}: preprocess again (dtsf preprocess --overwrite)"
    )
