"""Writing a data set of a cache, whichever format it has and wherever it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dtsf.cache.documents import (
    file_record,
    is_dataset,
    parse_record,
    read_metadata,
    read_published_files,
    shard_numbers,
    storage_format,
)
from dtsf.cache.layout import METADATA, PUBLISHED, array_shapes, check_record, damaged_name, record_name
from dtsf.cache.remote import RemoteStore
from dtsf.cache.seal import dump_with_checksum
from dtsf.cache.spec import (
    LAYOUT,
    CacheSpec,
    DatasetMetadata,
    DatasetName,
    PublishedFiles,
    ShardRecord,
    describe_difference,
)
from dtsf.cache.store import LocalStore, open_store
from dtsf.errors import CacheError, FingerprintError
from dtsf.files.write import move, write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np

    Where = str | Path | LocalStore | RemoteStore


def create_or_open(
    where: Where,
    spec: CacheSpec,
    info: DatasetName,
    shard_size: int,
    *,
    format: str | None = None,  # noqa: A002
    compress: str | None = None,
) -> DatasetMetadata:
    """Make a data set, or open the one that is there. Returns what it says of itself. Raises FingerprintError: it was made with
    other settings. CacheError: the place holds something else, or another format was asked for.

    Args:
        shard_size: Rows of a shard; an existing data set keeps its own.
        format: ``zarr`` or ``hdf5``; left out, what is there, or Zarr.
        compress: ``none``, ``zstd`` (Zarr) or ``gzip`` (HDF5); left out, what is there, or none.
    """
    place = open_store(where)
    metadata = DatasetMetadata(
        layout=LAYOUT,
        format=format or "zarr",
        compress=compress or "none",
        fingerprint=spec.fingerprint(),
        shard_size=shard_size,
        info=DatasetName(kind=info.kind, name=info.name),
        spec=spec,
    )
    storage_format(metadata.format, metadata.compress)
    array_shapes(spec)
    if place.is_empty():
        _create(place, metadata)
    if not is_dataset(place):
        raise CacheError(f"{place} exists and is not a dtsf cache: choose another --cache or --name")
    held = read_metadata(place)
    if held.spec.fingerprint() != spec.fingerprint():
        raise FingerprintError(
            f"{place} has fingerprint {held.spec.fingerprint()}, this run {spec.fingerprint()} "
            f"({describe_difference(held.spec, spec)}). Use the same settings, another --name or --cache, "
            "or --overwrite to make it anew"
        )
    if held.info.kind != info.kind:
        raise CacheError(f"{place} holds {held.info.kind}, this is {info.kind}: choose another --name, or --overwrite")
    for what, ours, asked in (("format", held.format, format), ("compression", held.compress, compress)):
        if asked is not None and asked != ours:
            raise CacheError(
                f"{place} has the {what} {ours}, {asked} was asked for: leave that out, choose another --name, or "
                f"change it with dtsf cache convert"
            )
    return held


def _create(place: LocalStore | RemoteStore, metadata: DatasetMetadata) -> None:
    """Make the data set beside its place and rename it there: killed half-way, nothing blocks the next run."""
    files = storage_format(metadata.format, metadata.compress).published_files(metadata, 0)
    files[PUBLISHED] = dump_with_checksum(
        PublishedFiles(shards=0, files={name: file_record(data) for name, data in files.items()})
    )
    if isinstance(place, RemoteStore):
        # What it says of itself comes last and makes it one; of two writers the first one's counts.
        for name, data in files.items():
            place.write(name, data)
        place.create(METADATA, dump_with_checksum(metadata))
        return
    files[METADATA] = dump_with_checksum(metadata)
    building = LocalStore(place.path.with_name(f".{place.name}.creating"))
    try:
        if building.path.exists():
            building.clear()
        for name, data in files.items():
            write_atomically(building.path / name, data)
        (building.path / "shards").mkdir(exist_ok=True)
        move(building.path, place.path)
    except OSError as error:
        raise CacheError(
            f"cannot make {place}: {error.strerror or error}. Make room or choose another --cache, and run the same "
            "command again"
        ) from error


def extend(where: Where, n_shards: int) -> None:
    """Let other programs see ``n_shards`` shards; never fewer than before."""
    place = open_store(where)
    metadata = read_metadata(place)
    with place.claim(PUBLISHED):
        held = read_published_files(place) or PublishedFiles(shards=0, files={})
        n_shards = max([n_shards, held.shards, *(shard + 1 for shard in shard_numbers(place))])
        files = storage_format(metadata.format, metadata.compress).published_files(metadata, n_shards)
        records = {name: file_record(data) for name, data in files.items()}
        if held.shards != n_shards or set(held.files) != set(records):
            # Before the files: whichever of them a crash leaves as it was is right by `previous`.
            held = PublishedFiles(shards=n_shards, files=records, previous=held.files)
            place.write(PUBLISHED, dump_with_checksum(held))
        for name, data in files.items():
            now = place.read(name)
            if now is None or file_record(now) != held.files[name]:
                place.write(name, data)
        if any(held.files[name] != records[name] for name in records):
            # Another version of the HDF5 library writes the same file in other bytes.
            place.write(
                PUBLISHED, dump_with_checksum(PublishedFiles(shards=n_shards, files=records, previous=held.files))
            )


def write_shard(where: Where, record: ShardRecord, rows: Mapping[str, np.ndarray]) -> ShardRecord:
    """Write a shard's files, then its commit record; unless another writer has: then that one's stays.

    ``rows``: the arrays of :func:`array_shapes`, each with ``record.rows`` rows. One that an older layout lacks is left out.
    Returns the record as it is committed: this writer's, or the other one's.
    """
    place = open_store(where)
    metadata = read_metadata(place)
    kind = storage_format(metadata.format, metadata.compress)
    rows = {array: rows[array] for array in array_shapes(metadata.spec)}
    files, parts = kind.encode(metadata, record.shard, rows)
    record = record.model_copy(
        update={"files": {name: file_record(data) for name, data in files.items()}, "arrays": parts}
    )
    name = record_name(record.shard)
    check_record(metadata, record, kind.data_files(metadata, record.shard), f"the record of shard {record.shard}")
    document = dump_with_checksum(record)
    with place.claim(name):
        # The files may only be replaced while there is no record: it is a promise of their bytes.
        held = place.read(name)
        if held is None:
            for file, data in files.items():
                place.write(file, data)
            if not place.create(name, document):
                held = place.read(name)
        place.remove(damaged_name(record.shard))
    return parse_record(metadata, document if held is None else held, record.shard, f"{place}/{name}")


def sweep(where: Where) -> int:
    """Remove what killed writers left: temporary files, files of shards without a record. Returns how many."""
    place = open_store(where)
    if isinstance(place, RemoteStore):
        return place.sweep()
    metadata = read_metadata(place)
    kind = storage_format(metadata.format, metadata.compress)
    with place.claim(PUBLISHED):
        count = place.sweep()
        committed = set(shard_numbers(place))
        for shard in _shards_with_files(place, metadata):
            if shard not in committed:
                for name in kind.data_files(metadata, shard):
                    if place.size(name) is not None:
                        place.remove(name)
                        count += 1
    return count


def _shards_with_files(place: LocalStore, metadata: DatasetMetadata) -> set[int]:
    if metadata.format == "hdf5":
        names = [name.removesuffix(".h5") for name in place.names("shards") if name.endswith(".h5")]
    else:
        names = [name for array in array_shapes(metadata.spec) for name in place.below(f"{array}/c").folders()]
    return {int(name) for name in names if name.isascii() and name.isdigit()}
