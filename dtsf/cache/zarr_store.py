"""The Zarr v3 format of a cache: plain named arrays, one uncompressed chunk a shard.

``<cache>/<name>/zarr.json`` holds the spec; ``embeddings``, ``pictures`` and ``frame_index`` are arrays whose first axis
runs over the rows of all shards; ``shards/00012.json`` is the commit record, written last. Any Zarr client opens it, and
a chunk file can be memory-mapped, because it is raw little-endian C order.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
import zarr
from pydantic import ValidationError

from dtsf.cache.commit import flush, write_atomically
from dtsf.cache.spec import SCHEMA_VERSION, CacheSpec, DatasetInfo, FileRecord, ShardRecord, describe_difference
from dtsf.errors import CacheError, FingerprintError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "array_shapes",
    "chunk_file",
    "create_or_open",
    "extend",
    "is_dataset",
    "read_attributes",
    "read_records",
    "write_shard",
]

AXES = {
    "embeddings": ("clip", "frame", "cell", "channel"),
    "pictures": ("clip", "frame", "height", "width", "colour"),
    "frame_index": ("clip", "frame"),
}
UNITS = {
    "embeddings": "encoder activation; cells in raster order",
    "pictures": "8-bit RGB",
    "frame_index": "frame of the source video, from 0; -1 in padding",
}


def array_shapes(spec: CacheSpec) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape of one row and dtype of each array."""
    return {
        "embeddings": ((spec.frames, spec.grid**2, spec.channels), np.dtype(spec.embedding_dtype)),
        "pictures": ((spec.frames, spec.picture_size, spec.picture_size, 3), np.dtype("u1")),
        "frame_index": ((spec.frames,), np.dtype("<i4")),
    }


def _fill(name: str, dtype: np.dtype[Any]) -> Any:
    """What stands in padding: a number that no one takes for a value, where the type has one."""
    if dtype.kind == "f":
        return float("nan")
    return -1 if name == "frame_index" else 0


def chunk_file(array: str, shard: int) -> str:
    """Path of a shard's chunk of ``array``, relative to the data set's folder (Zarr v3's default key encoding)."""
    return "/".join([array, "c", str(shard), *["0"] * (len(AXES[array]) - 1)])


def is_dataset(folder: Path) -> bool:
    """Whether ``folder`` is a data set that dtsf made."""
    try:
        return "dtsf" in json.loads((folder / "zarr.json").read_text("utf-8"))["attributes"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_attributes(folder: Path) -> tuple[CacheSpec, DatasetInfo, int]:
    """Spec, data set info and rows a shard.

    Raises:
        CacheError: No dtsf cache, or one written by another schema version.

    """
    try:
        held = json.loads((folder / "zarr.json").read_text("utf-8"))["attributes"]["dtsf"]
        version = held["spec"]["schema_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CacheError(f"{folder} is not a dtsf cache: {type(error).__name__}: {error}") from error
    if version != SCHEMA_VERSION:
        raise CacheError(
            f"{folder} has cache schema version {version}, this dtsf reads {SCHEMA_VERSION}: "
            "make it again with dtsf preprocess --overwrite"
        )
    try:
        spec, info = CacheSpec.model_validate(held["spec"]), DatasetInfo.model_validate(held["info"])
        shard_size = int(held["shard_size"])
    except (ValidationError, KeyError, TypeError, ValueError) as error:
        raise CacheError(f"{folder / 'zarr.json'} is damaged: {error}") from error
    if shard_size < 1 or held.get("fingerprint") != spec.fingerprint():
        raise CacheError(f"{folder / 'zarr.json'} is damaged: its fingerprint is not that of its spec")
    return spec, info, shard_size


def create_or_open(folder: Path, spec: CacheSpec, info: DatasetInfo, shard_size: int) -> int:
    """Make a data set, or open the one that is there. Returns its rows a shard (the existing one's, if any).

    Raises:
        FingerprintError: It was made with other settings.
        CacheError: The folder holds something else, or the same name stands for other classes.

    """
    if not folder.exists() or not any(folder.iterdir()):
        _create(folder, spec, info, shard_size)
        return shard_size
    if not is_dataset(folder):
        raise CacheError(f"{folder} exists and is not a dtsf cache: choose another --cache or --name")
    held_spec, held_info, held_size = read_attributes(folder)
    if held_spec.fingerprint() != spec.fingerprint():
        raise FingerprintError(
            f"{folder} has fingerprint {held_spec.fingerprint()}, this run {spec.fingerprint()} "
            f"({describe_difference(held_spec, spec)}). Use the same settings, another --name or --cache, "
            "or --overwrite to make it anew"
        )
    if held_info != info:
        raise CacheError(
            f"{folder} holds {held_info.dataset} with {len(held_info.class_names)} classes "
            f"({', '.join(held_info.class_names[:3])} ...) and views {', '.join(held_info.view_names)}; this is {info.dataset} "
            f"with {len(info.class_names)} classes ({', '.join(info.class_names[:3])} ...) and views "
            f"{', '.join(info.view_names)}. Choose another --name, or --overwrite"
        )
    return held_size


def _create(folder: Path, spec: CacheSpec, info: DatasetInfo, shard_size: int) -> None:
    """Make the data set beside its place and rename it there: killed half-way, nothing blocks the next run."""
    building = folder.with_name(f".{folder.name}.creating")
    try:
        if building.exists():
            shutil.rmtree(building)
        _build(building, spec, info, shard_size)
        building.replace(folder)
        flush(folder.parent)
    except OSError as error:
        raise CacheError(
            f"cannot make {folder}: {error.strerror or error}. Make room or choose another --cache, and run the same "
            "command again"
        ) from error


def _build(folder: Path, spec: CacheSpec, info: DatasetInfo, shard_size: int) -> None:
    attributes = {
        "spec": spec.model_dump(mode="json"),
        "info": info.model_dump(mode="json"),
        "fingerprint": spec.fingerprint(),
        "shard_size": shard_size,
    }
    folder.mkdir(parents=True)
    for name, (shape, dtype) in array_shapes(spec).items():
        zarr.create_array(
            store=str(folder / name),
            shape=(0, *shape),
            chunks=(shard_size, *shape),
            dtype=dtype,
            compressors=None,
            fill_value=_fill(name, dtype),
            dimension_names=AXES[name],
            attributes={"units": UNITS[name], "rows": "see shards/*.json for which clip each row is"},
            config={"write_empty_chunks": True},
        )
    document = {"zarr_format": 3, "node_type": "group", "attributes": {"dtsf": attributes}}
    write_atomically(folder / "zarr.json", json.dumps(document, indent=1).encode())


def extend(folder: Path, n_shards: int) -> None:
    """Grow the arrays so that they have ``n_shards`` chunks; never shrinks."""
    for name in AXES:
        path = folder / name / "zarr.json"
        document = json.loads(path.read_text("utf-8"))
        rows = n_shards * document["chunk_grid"]["configuration"]["chunk_shape"][0]
        if rows > document["shape"][0]:
            document["shape"][0] = rows
            write_atomically(path, json.dumps(document, indent=1).encode())


def write_shard(folder: Path, record: ShardRecord, rows: Mapping[str, np.ndarray], shard_size: int) -> ShardRecord:
    """Write a shard's chunk files, then its commit record.

    Args:
        folder: The data set's folder.
        record: Without its files.
        rows: The arrays of :func:`array_shapes`, each with ``record.rows`` rows.
        shard_size: Rows of a whole chunk; the rest is filled.

    Returns:
        The record as it was committed.

    """
    files = {}
    for name, array in rows.items():
        chunk = np.full((shard_size, *array.shape[1:]), _fill(name, array.dtype), dtype=array.dtype.newbyteorder("<"))
        chunk[: len(array)] = array
        data = chunk.tobytes()
        relative = chunk_file(name, record.shard)
        write_atomically(folder / relative, data)
        files[relative] = FileRecord(bytes=len(data), xxh3=xxhash.xxh3_64_hexdigest(data))
    record = record.model_copy(update={"files": files})
    write_atomically(_record_file(folder, record.shard), record.model_dump_json(indent=1).encode())
    return record


def read_records(folder: Path) -> list[ShardRecord]:
    """All commit records, in the order of shards.

    Raises:
        CacheError: A record cannot be read or belongs to another place.

    """
    records = []
    for path in sorted((folder / "shards").glob("[0-9]*.json")):
        try:
            record = ShardRecord.model_validate_json(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise CacheError(
                f"commit record {path} is damaged ({error}): delete it and run dtsf preprocess again"
            ) from error
        if _record_file(folder, record.shard) != path:
            raise CacheError(
                f"commit record {path} says that it is shard {record.shard}: delete it and run dtsf preprocess again"
            )
        records.append(record)
    return sorted(records, key=lambda record: record.shard)


def _record_file(folder: Path, shard: int) -> Path:
    return Path(folder) / "shards" / f"{shard:05d}.json"
