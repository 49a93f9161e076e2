"""The Zarr v3 format: plain named arrays, one chunk a shard.

``embeddings``, ``pictures``, ``frame_index`` and ``frame_time`` are arrays whose first axis runs over the rows of all shards.
A chunk file is raw little-endian C order (or one zstd frame of that), so that it can be memory-mapped. Their ``zarr.json`` are
written here and not by the zarr package: the bytes are then the same whichever version of it is installed.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from dtsf.cache.layout import AXES, ROWS, UNITS, array_shapes, fill, pad_shard
from dtsf.cache.spec import StoredArray
from dtsf.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dtsf.cache.spec import DatasetMetadata

COMPRESSIONS = ("none", "zstd")
LEVEL = 3


def chunk_file(array: str, shard: int) -> str:
    """Path of a shard's chunk of ``array``, relative to the data set's folder (Zarr v3's default key encoding)."""
    return "/".join([array, "c", str(shard), *["0"] * (len(AXES[array]) - 1)])


def data_files(metadata: DatasetMetadata, shard: int) -> tuple[str, ...]:
    """Files of one shard."""
    return tuple(chunk_file(array, shard) for array in array_shapes(metadata.spec))


def encode(
    metadata: DatasetMetadata, shard: int, rows: Mapping[str, np.ndarray]
) -> tuple[dict[str, bytes], dict[str, StoredArray]]:
    """The shard's files, and where each array is in them."""
    files, parts = {}, {}
    for array, values in rows.items():
        data = pad_shard(values, array, metadata.shard_size).tobytes()
        if metadata.compress == "zstd":
            data = bytes(_zstd().encode(data))
        name = chunk_file(array, shard)
        files[name] = data
        parts[array] = StoredArray(file=name, offset=0, bytes=len(data))
    return files, parts


def decode(data: memoryview, out: np.ndarray) -> None:
    """Decompress one array of one shard into ``out``. Raises CacheError: it is not the frame of exactly so many bytes."""
    flat = out.reshape(-1).view(np.uint8)
    size = _frame_content_size(bytes(data[:18]))
    if size != flat.nbytes:
        raise CacheError(f"a zstd frame of {size} bytes instead of {flat.nbytes}")
    try:
        _zstd().decode(data, flat)
    except (RuntimeError, ValueError) as error:
        raise CacheError(f"not a whole zstd frame: {error}") from error


def published_files(metadata: DatasetMetadata, n_shards: int) -> dict[str, bytes]:
    """The documents that show ``n_shards`` shards to any Zarr client."""
    # The seal is of dtsf.json's bytes and would mean nothing here.
    attributes = metadata.model_dump(mode="json", exclude={"checksum"})
    documents: dict[str, dict[str, Any]] = {
        "zarr.json": {"zarr_format": 3, "node_type": "group", "attributes": {"dtsf": attributes}}
    }
    for array, (shape, dtype) in array_shapes(metadata.spec).items():
        single_byte = dtype.itemsize == 1
        codecs: list[dict[str, Any]] = [
            {"name": "bytes"} if single_byte else {"name": "bytes", "configuration": {"endian": "little"}}
        ]
        if metadata.compress == "zstd":
            codecs.append({"name": "zstd", "configuration": {"level": LEVEL, "checksum": False}})
        value = fill(array, dtype)
        documents[f"{array}/zarr.json"] = {
            "shape": [n_shards * metadata.shard_size, *shape],
            "data_type": dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [metadata.shard_size, *shape]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": "NaN" if math.isnan(value) else value,
            "codecs": codecs,
            "attributes": {"units": UNITS[array], "rows": ROWS},
            "dimension_names": list(AXES[array]),
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }
    return {name: json.dumps(document, indent=1).encode() for name, document in documents.items()}


def _zstd() -> Any:
    from numcodecs.zstd import Zstd  # type: ignore[import-untyped]

    return Zstd(level=LEVEL)


def _frame_content_size(head: bytes) -> int:
    """Size that a zstd frame says it has (RFC 8878, 3.1.1.1), or -1 where it does not say."""
    if len(head) < 6 or head[:4] != b"\x28\xb5\x2f\xfd":
        return -1
    descriptor = head[4]
    flag, single = descriptor >> 6, descriptor >> 5 & 1
    start = 5 + (0 if single else 1) + (0, 1, 2, 4)[descriptor & 3]
    width = (1 if single else 0, 2, 4, 8)[flag]
    field = head[start : start + width]
    if width == 0 or len(field) < width:
        return -1
    return int.from_bytes(field, "little") + (256 if flag == 1 else 0)
