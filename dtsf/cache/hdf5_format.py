"""The HDF5 format: ``shards/00012.h5`` with one contiguous dataset an array, and ``dataset.h5``, a virtual file over all.

The commit record says at which byte each dataset begins: reading needs no HDF5 library, and a file from elsewhere is never
given to one. Compressed, a dataset is one gzip chunk: the only filter that every HDF5 library has.
"""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from dtsf.cache.layout import AXES, ROWS, UNITS, array_shapes, fill, pad_shard
from dtsf.cache.spec import StoredArray
from dtsf.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dtsf.cache.spec import DatasetMetadata

COMPRESSIONS = ("none", "gzip")
LEVEL = 4
VIRTUAL = "dataset.h5"
# Values begin at a page, as memory maps like it.
PAGE = 4096


def data_files(metadata: DatasetMetadata, shard: int) -> tuple[str, ...]:  # noqa: ARG001 - the other format needs it
    """Files of one shard."""
    return (f"shards/{shard:05d}.h5",)


def encode(
    metadata: DatasetMetadata, shard: int, rows: Mapping[str, np.ndarray]
) -> tuple[dict[str, bytes], dict[str, StoredArray]]:
    """The shard's files, and where each array is in them."""
    (name,) = data_files(metadata, shard)
    parts = {}
    compressed: dict[str, Any] = {"compression": "gzip", "compression_opts": LEVEL}
    with _in_memory() as file:
        for array, values in rows.items():
            whole = pad_shard(values, array, metadata.shard_size)
            # The chunk must be the whole array; an empty axis has no chunks.
            made = file.create_dataset(
                array, data=whole, **({"chunks": whole.shape, **compressed} if metadata.compress == "gzip" else {})
            )
            _describe(made, array)
        file.attrs["dtsf"] = f"shard {shard} of {metadata.info.name}; rows: {record_hint(shard)}"
        file.flush()
        for array in rows:
            identity = file[array].id
            if metadata.compress == "gzip":
                chunk = identity.get_chunk_info(0)
                parts[array] = StoredArray(file=name, offset=chunk.byte_offset, bytes=chunk.size)
            else:
                parts[array] = StoredArray(file=name, offset=identity.get_offset(), bytes=identity.get_storage_size())
        image = bytes(file.id.get_file_image())
    return {name: image}, parts


def record_hint(shard: int) -> str:
    """Where another program finds which clip a row is."""
    return f"see shards/{shard:05d}.json"


def decode(data: memoryview, out: np.ndarray) -> None:
    """Decompress one array of one shard into ``out``. Raises CacheError: it is not a stream of exactly so many bytes."""
    flat = out.reshape(-1).view(np.uint8)
    stream = zlib.decompressobj()
    try:
        # Never more than what must come out, whatever the stream holds.
        values = stream.decompress(data, flat.nbytes + 1)
    except zlib.error as error:
        raise CacheError(f"not a whole gzip chunk: {error}") from error
    if len(values) != flat.nbytes or not stream.eof:
        raise CacheError(f"a gzip chunk of {len(values)} bytes or more instead of {flat.nbytes}")
    flat[:] = np.frombuffer(values, np.uint8)


def published_files(metadata: DatasetMetadata, n_shards: int) -> dict[str, bytes]:
    """The virtual file that shows ``n_shards`` shards as one array of each name; a shard that is not there reads as fill."""
    import h5py  # type: ignore[import-untyped]

    with _in_memory() as file:
        for array, (shape, dtype) in array_shapes(metadata.spec).items():
            whole = h5py.h5s.create_simple((n_shards * metadata.shard_size, *shape))
            source = h5py.h5s.create_simple((metadata.shard_size, *shape))
            options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            # h5py's own virtual layout leaves the time of day in the file.
            options.set_obj_track_times(False)
            options.set_fill_value(np.array([fill(array, dtype)], dtype))
            for shard in range(n_shards):
                whole.select_hyperslab(
                    (shard * metadata.shard_size, *(0 for _ in shape)), (metadata.shard_size, *shape)
                )
                options.set_virtual(whole, data_files(metadata, shard)[0].encode(), array.encode(), source)
            whole.select_all()
            kind = h5py.h5t.py_create(dtype)
            h5py.h5d.create(file.id, array.encode(), kind, whole, options)
            _describe(file[array], array)
        file.attrs["dtsf"] = json.dumps(metadata.model_dump(mode="json", exclude={"checksum"}))
        file.flush()
        return {VIRTUAL: bytes(file.id.get_file_image())}


def _in_memory() -> Any:
    """A file that never touches the disk: its bytes go through the same commit as all others."""
    import h5py

    # No times in it, and the oldest version of each structure: the same rows give the same bytes.
    return h5py.File(
        "memory", "w", driver="core", backing_store=False, alignment_threshold=PAGE, alignment_interval=PAGE
    )


def _describe(dataset: Any, array: str) -> None:
    dataset.attrs["units"] = UNITS[array]
    dataset.attrs["rows"] = ROWS
    dataset.attrs["axes"] = json.dumps(AXES[array])
