"""Storage formats. A Zarr v3 chunk (``embeddings/c/12/0/0/0``) is raw C order or one zstd frame. An HDF5 shard
(``shards/00012.h5``) has a contiguous dataset or one gzip chunk per array; ``dataset.h5`` is a virtual file over all shards. The
commit record has the offset of each array, so reading needs neither library.
"""

from __future__ import annotations

import json
import math
import re
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dtsf.cache.schema import CacheSpec, DatasetMetadata, StoredArray
from dtsf.errors import CacheError

Encoded = tuple[dict[str, bytes], dict[str, StoredArray]]

ZSTD_LEVEL = 3
GZIP_LEVEL = 4
PAGE = 4096  # alignment in bytes of the arrays in an HDF5 file, for memory mapping
AXES = {
    "embeddings": ("clip", "frame", "cell", "channel"),
    "pictures": ("clip", "frame", "height", "width", "colour"),
    "frame_index": ("clip", "frame"),
    "frame_time": ("clip", "frame"),
}
UNITS = {
    "embeddings": "encoder activation; cells in raster order",
    "pictures": "8-bit RGB",
    "frame_index": "frame of the source video in presentation order, from 0; -1 in padding",
    "frame_time": "seconds of the file, as a player shows them: from the start of its earliest stream; NaN where unknown",
}
ROWS = "see shards/*.json for the source of each row, catalog.json for its clip"
DATA_FILE = re.compile(r"(?:\w+/c/(\d+)(?:/0)+|shards/(\d+)\.h5)")  # path of a data file, with its shard


@dataclass(frozen=True)
class StorageFormat:
    """Functions of a storage format."""

    compressions: tuple[str, ...]
    data_files: Callable[[int], tuple[str, ...]]  # shard -> paths of its files
    # Rows of a shard -> bytes of its files, and the location of each array.
    encode: Callable[[DatasetMetadata, int, Mapping[str, np.ndarray]], Encoded]
    decode: Callable[[memoryview, np.ndarray], None]  # decompresses one array into an array of the right size
    # Number of shards -> files that show them to other programs.
    published_files: Callable[[DatasetMetadata, int], dict[str, bytes]]


def array_shapes(spec: CacheSpec) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return the shape of one row and the dtype of each array. Dtypes never come from a file."""
    embeddings = {"float16": "<f2", "float32": "<f4", "uint8": "|u1"}[spec.embedding_dtype]
    return {
        "embeddings": ((spec.frames, spec.grid**2, spec.channels), np.dtype(embeddings)),
        "pictures": ((spec.frames, spec.picture_size, spec.picture_size, 3), np.dtype("u1")),
        "frame_index": ((spec.frames,), np.dtype("<i4")),
        "frame_time": ((spec.frames,), np.dtype("<f8")),
    }


def array_bytes(metadata: DatasetMetadata, array: str) -> int:
    """Return the uncompressed size of one array of one shard."""
    shape, dtype = array_shapes(metadata.spec)[array]
    return metadata.shard_size * math.prod(shape) * dtype.itemsize


def shard_of_file(name: str) -> int | None:
    """Return the shard of a data file; None for another file. ``name``: path relative to the dataset's folder."""
    match = DATA_FILE.fullmatch(name)
    return int(match[1] or match[2]) if match else None


def _fill_value(array: str, dtype: np.dtype[Any]) -> float | int:
    return -1 if array == "frame_index" else float("nan") if dtype.kind == "f" else 0


def _pad_shard(rows: np.ndarray, array: str, shard_size: int) -> np.ndarray:
    padded = np.full((shard_size, *rows.shape[1:]), _fill_value(array, rows.dtype), rows.dtype.newbyteorder("<"))
    padded[: len(rows)] = rows
    return padded


def _attributes(metadata: DatasetMetadata) -> dict[str, Any]:
    return metadata.model_dump(mode="json", exclude={"checksum"})


def _zarr_files(shard: int) -> tuple[str, ...]:
    return tuple(f"{array}/c/{shard}{'/0' * (len(axes) - 1)}" for array, axes in AXES.items())


def _encode_zarr(metadata: DatasetMetadata, shard: int, rows: Mapping[str, np.ndarray]) -> Encoded:
    from numcodecs.zstd import Zstd  # type: ignore[import-untyped]

    files, arrays = {}, {}
    for name in _zarr_files(shard):
        array = name.partition("/")[0]
        data = _pad_shard(rows[array], array, metadata.shard_size).tobytes()
        files[name] = bytes(Zstd(level=ZSTD_LEVEL).encode(data)) if metadata.compress == "zstd" else data
        arrays[array] = StoredArray(file=name, offset=0, bytes=len(files[name]))
    return files, arrays


def _decode_zstd(data: memoryview, out: np.ndarray) -> None:
    """Decompress a zstd frame. Raises CacheError: it is not one frame of exactly the bytes of ``out``."""
    from numcodecs.zstd import Zstd

    flat = out.reshape(-1).view(np.uint8)
    size = _zstd_content_size(bytes(data[:18]))
    if size != flat.nbytes:
        raise CacheError(f"a zstd frame of {size} bytes instead of {flat.nbytes}")
    try:
        Zstd().decode(data, flat)
    except (RuntimeError, ValueError) as error:
        raise CacheError(f"an incomplete zstd frame: {error}") from error


def _zstd_content_size(head: bytes) -> int:
    """Return the content size in the header of a zstd frame (RFC 8878, 3.1.1.1), or -1 if it has none."""
    # Needed before decoding: numcodecs accepts a smaller frame and leaves the rest of the output unset.
    if len(head) < 6 or head[:4] != b"\x28\xb5\x2f\xfd":
        return -1
    descriptor = head[4]
    flag, single = descriptor >> 6, descriptor >> 5 & 1
    start = 6 - single + (0, 1, 2, 4)[descriptor & 3]
    width = (single, 2, 4, 8)[flag]
    field = head[start : start + width]
    return int.from_bytes(field, "little") + (256 if flag == 1 else 0) if width and len(field) == width else -1


def _publish_zarr(metadata: DatasetMetadata, n_shards: int) -> dict[str, bytes]:
    """Return the ``zarr.json`` of the group and of each array, as the zarr package writes them."""
    import zarr
    from zarr.codecs import ZstdCodec
    from zarr.storage import MemoryStore

    documents: dict[str, Any] = {}
    group = zarr.create_group(MemoryStore(documents), attributes={"dtsf": _attributes(metadata)})
    for array, (shape, dtype) in array_shapes(metadata.spec).items():
        group.create_array(
            array,
            shape=(n_shards * metadata.shard_size, *shape),
            chunks=(metadata.shard_size, *shape),
            dtype=dtype,
            fill_value=_fill_value(array, dtype),
            filters=None,
            compressors=ZstdCodec(level=ZSTD_LEVEL) if metadata.compress == "zstd" else None,
            dimension_names=AXES[array],
            attributes={"units": UNITS[array], "rows": ROWS},
        )
    with warnings.catch_warnings():
        # A list of the arrays in the group: without it, Zarr warns of each file that is no array. It is an extension of Zarr v3.
        warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
        zarr.consolidate_metadata(group.store)
    return {name: document.to_bytes() for name, document in documents.items()}


def _hdf5_files(shard: int) -> tuple[str, ...]:
    return (f"shards/{shard:05d}.h5",)


def _encode_hdf5(metadata: DatasetMetadata, shard: int, rows: Mapping[str, np.ndarray]) -> Encoded:
    (name,) = _hdf5_files(shard)
    arrays, gzip = {}, metadata.compress == "gzip"
    with _memory_file() as file:
        for array, values in rows.items():
            padded = _pad_shard(values, array, metadata.shard_size)
            # One chunk is the whole array.
            options = {"chunks": padded.shape, "compression": "gzip", "compression_opts": GZIP_LEVEL} if gzip else {}
            _describe(file.create_dataset(array, data=padded, **options), array)
        file.attrs["dtsf"] = f"shard {shard} of {metadata.info.name}; rows: see shards/{shard:05d}.json"
        file.flush()
        for array in rows:
            dataset = file[array].id
            offset, size = dataset.get_offset(), dataset.get_storage_size()
            if gzip:
                offset = dataset.get_chunk_info(0).byte_offset
            arrays[array] = StoredArray(file=name, offset=offset, bytes=size)
        return {name: bytes(file.id.get_file_image())}, arrays


def _decode_gzip(data: memoryview, out: np.ndarray) -> None:
    """Decompress a zlib stream. Raises CacheError: it has not exactly the bytes of ``out``."""
    flat = out.reshape(-1).view(np.uint8)
    stream = zlib.decompressobj()
    try:
        # Bounded: a stream may claim to decompress to any size.
        values = stream.decompress(data, flat.nbytes + 1)
    except zlib.error as error:
        raise CacheError(f"an incomplete gzip chunk: {error}") from error
    if len(values) != flat.nbytes or not stream.eof:
        raise CacheError(f"a gzip chunk of {len(values)} bytes or more instead of {flat.nbytes}")
    flat[:] = np.frombuffer(values, np.uint8)


def _publish_hdf5(metadata: DatasetMetadata, n_shards: int) -> dict[str, bytes]:
    """Return the virtual file. A missing shard reads as fill value."""
    import h5py  # type: ignore[import-untyped]

    with _memory_file() as file:
        for array, (shape, dtype) in array_shapes(metadata.spec).items():
            whole = h5py.h5s.create_simple((n_shards * metadata.shard_size, *shape))
            source = h5py.h5s.create_simple((metadata.shard_size, *shape))
            options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            # h5py's high-level virtual layout stores the time of day.
            options.set_obj_track_times(False)
            options.set_fill_value(np.array([_fill_value(array, dtype)], dtype))
            for shard in range(n_shards):
                start = (shard * metadata.shard_size, *(0 for _ in shape))
                whole.select_hyperslab(start, (metadata.shard_size, *shape))
                options.set_virtual(whole, _hdf5_files(shard)[0].encode(), array.encode(), source)
            whole.select_all()
            h5py.h5d.create(file.id, array.encode(), h5py.h5t.py_create(dtype), whole, options)
            _describe(file[array], array)
        file.attrs["dtsf"] = json.dumps(_attributes(metadata))
        file.flush()
        return {"dataset.h5": bytes(file.id.get_file_image())}


def _memory_file() -> Any:
    """Return an HDF5 file in memory. It stores no times, so the same rows give the same bytes."""
    import h5py

    pages = {"alignment_threshold": PAGE, "alignment_interval": PAGE}
    return h5py.File("memory", "w", driver="core", backing_store=False, **pages)


def _describe(dataset: Any, array: str) -> None:
    dataset.attrs.update({"units": UNITS[array], "rows": ROWS, "axes": json.dumps(AXES[array])})


FORMATS = {
    "zarr": StorageFormat(("none", "zstd"), _zarr_files, _encode_zarr, _decode_zstd, _publish_zarr),
    "hdf5": StorageFormat(("none", "gzip"), _hdf5_files, _encode_hdf5, _decode_gzip, _publish_hdf5),
}


def storage_format(name: str, compress: str) -> StorageFormat:
    """Return a format by name. Raises CacheError: an unknown format, or a compression that it lacks."""
    if name not in FORMATS:
        raise CacheError(f"unknown format {name!r}: there are {', '.join(FORMATS)}")
    if compress not in FORMATS[name].compressions:
        raise CacheError(f"{name} has no compression {compress!r}: there are {', '.join(FORMATS[name].compressions)}")
    return FORMATS[name]
