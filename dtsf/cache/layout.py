"""What is stored under which name, whatever the format: arrays, documents, and the rules that a record must keep."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from dtsf.cache.spec import LAYOUT
from dtsf.errors import CacheError

if TYPE_CHECKING:
    from dtsf.cache.spec import CacheSpec, DatasetMetadata, ShardRecord

ABOUT = "dtsf.json"
CATALOG = "catalog.json"
EXTENT = "extent.json"

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


def array_shapes(spec: CacheSpec, layout: int = LAYOUT) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape of one row and dtype of each array; before layout 3 there was no ``frame_time``."""
    if spec.embedding_dtype not in DTYPES:
        raise CacheError(f"embedding dtype {spec.embedding_dtype!r} is unknown: there are {', '.join(DTYPES)}")
    arrays: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
        "embeddings": ((spec.frames, spec.grid**2, spec.channels), np.dtype(DTYPES[spec.embedding_dtype])),
        "pictures": ((spec.frames, spec.picture_size, spec.picture_size, 3), np.dtype("u1")),
        "frame_index": ((spec.frames,), np.dtype("<i4")),
        "frame_time": ((spec.frames,), np.dtype("<f8")),
    }
    if layout < 3:
        del arrays["frame_time"]
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


def part_bytes(about: DatasetMetadata, array: str) -> int:
    """Bytes of one array of one shard, uncompressed."""
    shape, dtype = array_shapes(about.spec, about.layout)[array]
    return about.shard_size * math.prod(shape) * dtype.itemsize


def record_name(shard: int) -> str:
    """Commit record of a shard."""
    return f"shards/{shard:05d}.json"


def damaged_name(shard: int) -> str:
    """Mark of a shard that was committed, found damaged and must be made again: its old record under this name."""
    return f"shards/{shard:05d}.redo"


def check_record(about: DatasetMetadata, record: ShardRecord, files: tuple[str, ...], where: str) -> None:
    """Refuse a record that cannot be true. ``files`` are the names that the format gives the shard's files.

    Raises CacheError: another fingerprint, a row outside the shard or given twice, a file or a path that leaves its folder,
    sizes that do not agree.
    """
    hint = "run dtsf cache repair, then dtsf preprocess"
    if record.fingerprint != about.spec.fingerprint():
        raise CacheError(f"{where} has fingerprint {record.fingerprint}, the cache {about.spec.fingerprint()}: {hint}")
    if record.rows > about.shard_size:
        raise CacheError(f"{where} has {record.rows} rows, a shard {about.shard_size}: {hint}")
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
        if held.verdict.usable != (held.row is not None):
            raise CacheError(f"{where}: {held.source.path} is {held.verdict.value} and has row {held.row}: {hint}")
    if set(record.files) != set(files):
        raise CacheError(f"{where} names the files {sorted(record.files)}, not {sorted(files)}: {hint}")
    arrays = array_shapes(about.spec, about.layout)
    if about.layout > 1 and set(record.parts) != set(arrays):
        raise CacheError(f"{where} names the arrays {sorted(record.parts)}, not {sorted(arrays)}: {hint}")
    for array, part in record.parts.items():
        if part.file not in record.files or part.offset + part.bytes > record.files[part.file].bytes:
            raise CacheError(f"{where}: {array} is not inside {part.file}: {hint}")
        if about.compress == "none" and part.bytes != part_bytes(about, array):
            raise CacheError(f"{where}: {array} has {part.bytes} bytes instead of {part_bytes(about, array)}: {hint}")


def leaves_folder(path: str) -> bool:
    """Whether a relative path of a record points outside the folder it is relative to."""
    return path.startswith("/") or ".." in path.split("/") or "\0" in path
