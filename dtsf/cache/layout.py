"""What is stored under which name, whatever the format: arrays, documents, and the rules that a record must keep."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from dtsf.errors import CacheError

if TYPE_CHECKING:
    from dtsf.cache.spec import CacheSpec, DatasetMetadata, ShardRecord

METADATA = "dtsf.json"
CATALOG = "catalog.json"
PUBLISHED = "published.json"

AXES = {
    "embeddings": ("clip", "frame", "cell", "channel"),
    "pictures": ("clip", "frame", "height", "width", "colour"),
    "frame_index": ("clip", "frame"),
    "frame_time": ("clip", "frame"),
}
UNITS = {
    "embeddings": "encoder activation; cells in raster order",
    "pictures": "8-bit RGB",
    "frame_index": "frame of the source video in the order of presentation, from 0; -1 in padding",
    "frame_time": "seconds of presentation from the first shown frame; NaN where unknown",
}
ROWS = "see shards/*.json for the source of each row, catalog.json for which clip it is"
DTYPES = {"float16": "<f2", "float32": "<f4", "uint8": "|u1"}
"""Of embeddings. Nothing else is read from a cache: no dtype of a file is ever handed to NumPy."""


def array_shapes(spec: CacheSpec) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape of one row and dtype of each array."""
    if spec.embedding_dtype not in DTYPES:
        raise CacheError(f"embedding dtype {spec.embedding_dtype!r} is unknown: there are {', '.join(DTYPES)}")
    arrays: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
        "embeddings": ((spec.frames, spec.grid**2, spec.channels), np.dtype(DTYPES[spec.embedding_dtype])),
        "pictures": ((spec.frames, spec.picture_size, spec.picture_size, 3), np.dtype("u1")),
        "frame_index": ((spec.frames,), np.dtype("<i4")),
        "frame_time": ((spec.frames,), np.dtype("<f8")),
    }
    return arrays


def fill(array: str, dtype: np.dtype[Any]) -> float | int:
    """Value of padding rows: one that no clip has."""
    if array == "frame_index":
        return -1
    return float("nan") if dtype.kind == "f" else 0


def pad_shard(rows: np.ndarray, array: str, shard_size: int) -> np.ndarray:
    """Rows of a whole shard, little-endian, filled up behind ``rows``."""
    whole = np.full((shard_size, *rows.shape[1:]), fill(array, rows.dtype), rows.dtype.newbyteorder("<"))
    whole[: len(rows)] = rows
    return whole


def part_bytes(metadata: DatasetMetadata, array: str) -> int:
    """Bytes of one array of one shard, uncompressed."""
    shape, dtype = array_shapes(metadata.spec)[array]
    return metadata.shard_size * math.prod(shape) * dtype.itemsize


def record_name(shard: int) -> str:
    """Commit record of a shard."""
    return f"shards/{shard:05d}.json"


def damaged_name(shard: int) -> str:
    """Mark of a shard that was committed, found damaged and must be made again: its old record under this name."""
    return f"shards/{shard:05d}.damaged"


def check_record(metadata: DatasetMetadata, record: ShardRecord, files: tuple[str, ...], where: str) -> None:
    """Refuse a record that cannot be true. ``files`` are the names that the format gives the shard's files.

    Raises CacheError: another fingerprint, a row outside the shard or given twice, a file or a path that leaves its folder,
    sizes that do not agree.
    """
    hint = "run dtsf cache repair, then dtsf preprocess"
    if record.fingerprint != metadata.spec.fingerprint():
        raise CacheError(
            f"{where} has fingerprint {record.fingerprint}, the cache {metadata.spec.fingerprint()}: {hint}"
        )
    if record.rows > metadata.shard_size:
        raise CacheError(f"{where} has {record.rows} rows, a shard {metadata.shard_size}: {hint}")
    used: set[int] = set()
    for held in record.clips:
        if held.row is not None:
            if not 0 <= held.row < record.rows:
                raise CacheError(f"{where}: {held.source.path} has row {held.row}, the shard {record.rows}: {hint}")
            if held.row in used:
                raise CacheError(f"{where}: row {held.row} belongs to two clips, one is {held.source.path}: {hint}")
            used.add(held.row)
        if leaves_folder(held.source.path):
            raise CacheError(f"{where}: the path {held.source.path!r} leaves the data root")
        if held.status.usable != (held.row is not None):
            raise CacheError(f"{where}: {held.source.path} is {held.status.value} and has row {held.row}: {hint}")
    if set(record.files) != set(files):
        raise CacheError(f"{where} names the files {sorted(record.files)}, not {sorted(files)}: {hint}")
    arrays = array_shapes(metadata.spec)
    if set(record.arrays) != set(arrays):
        raise CacheError(f"{where} names the arrays {sorted(record.arrays)}, not {sorted(arrays)}: {hint}")
    for array, part in record.arrays.items():
        if part.file not in record.files or part.offset + part.bytes > record.files[part.file].bytes:
            raise CacheError(f"{where}: {array} is not inside {part.file}: {hint}")
        if metadata.compress == "none" and part.bytes != part_bytes(metadata, array):
            raise CacheError(
                f"{where}: {array} has {part.bytes} bytes instead of {part_bytes(metadata, array)}: {hint}"
            )


def leaves_folder(path: str) -> bool:
    """Whether a relative path of a record points outside the folder it is relative to."""
    return path.startswith("/") or ".." in path.split("/") or "\0" in path
