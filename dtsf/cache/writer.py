"""Write a dataset: its metadata once, then shards. The commit record of a shard is written last."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dtsf.cache.documents import (
    METADATA,
    PUBLISHED,
    DatasetHandle,
    check_record,
    damaged_name,
    dump_with_checksum,
    file_record,
    is_dataset,
    open_handle,
    parse_record,
    read_published_files,
    record_name,
    shard_numbers,
)
from dtsf.cache.formats import array_shapes, shard_of_file, storage_format
from dtsf.cache.schema import LAYOUT, DatasetMetadata, DatasetName, PublishedFiles, describe_difference
from dtsf.cache.store import open_store
from dtsf.errors import CacheError, FingerprintError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np

    from dtsf.cache.schema import CacheSpec, ShardRecord
    from dtsf.cache.store import Store


def create_or_open(
    path: str | Path | Store,
    spec: CacheSpec,
    info: DatasetName,
    shard_size: int,
    *,
    format: str | None = None,  # noqa: A002
    compress: str | None = None,
) -> DatasetHandle:
    """Make a dataset, or open an existing one, which keeps its ``shard_size``.

    ``format``: ``zarr`` (default) or ``hdf5``. ``compress``: ``none`` (default), ``zstd`` (Zarr) or ``gzip`` (HDF5). Both must
    match an existing dataset. Raises FingerprintError: it was made with another spec. CacheError: not a dataset, another kind,
    or another format.
    """
    store = open_store(path)
    if store.is_empty():
        metadata = DatasetMetadata(
            layout=LAYOUT,
            format=format or "zarr",
            compress=compress or "none",
            fingerprint=spec.fingerprint(),
            shard_size=shard_size,
            info=DatasetName(kind=info.kind, name=info.name),
            spec=spec,
        )
        files = storage_format(metadata.format, metadata.compress).published_files(metadata, 0)
        published = PublishedFiles(shards=0, files={name: file_record(data) for name, data in files.items()})
        documents = {PUBLISHED: dump_with_checksum(published), METADATA: dump_with_checksum(metadata)}
        store.create_all(files | documents, last=METADATA)
    if not is_dataset(store):
        raise CacheError(f"{store} exists and is not a dtsf cache: choose another --cache or --name")
    dataset = open_handle(store)
    cached = dataset.metadata
    if cached.fingerprint != spec.fingerprint():
        raise FingerprintError(
            f"{store} has fingerprint {cached.fingerprint}, this run {spec.fingerprint()} "
            f"({describe_difference(cached.spec, spec)}). Use the same settings, another --name or --cache, "
            "or --overwrite to replace it"
        )
    if cached.info.kind != info.kind:
        raise CacheError(
            f"{store} has the kind {cached.info.kind}, not {info.kind}: choose another --name, or --overwrite"
        )
    for option, value, requested in (("format", cached.format, format), ("compress", cached.compress, compress)):
        if requested is not None and requested != value:
            raise CacheError(
                f"{store} has --{option} {value}, not {requested}: omit --{option}, choose another --name, or change it with "
                "dtsf cache convert"
            )
    return dataset


def extend(dataset: DatasetHandle, n_shards: int) -> None:
    """Show ``n_shards`` shards to other programs, but never fewer than before."""
    store = dataset.store
    with store.claim(PUBLISHED):
        published = read_published_files(store) or PublishedFiles(shards=0, files={})
        n_shards = max([n_shards, published.shards, *(shard + 1 for shard in shard_numbers(dataset))])
        files = dataset.format.published_files(dataset.metadata, n_shards)
        records = {name: file_record(data) for name, data in files.items()}
        if published.shards != n_shards or set(published.files) != set(records):
            # Before the files: after a crash, each file matches `files` or `previous`.
            published = PublishedFiles(shards=n_shards, files=records, previous=published.files)
            store.write(PUBLISHED, dump_with_checksum(published))
        for name, data in files.items():
            current = store.read(name)
            if current is None or file_record(current) != published.files[name]:
                store.write(name, data)
        if any(published.files[name] != records[name] for name in records):
            # Another version of the library writes the same file with other bytes.
            published = PublishedFiles(shards=n_shards, files=records, previous=published.files)
            store.write(PUBLISHED, dump_with_checksum(published))


def write_shard(dataset: DatasetHandle, record: ShardRecord, rows: Mapping[str, np.ndarray]) -> ShardRecord:
    """Write a shard's files, then its commit record. If another writer has committed the shard, its record stays.

    ``rows``: each array of the dataset with ``record.rows`` rows. Returns the committed record, of this writer or the other.
    """
    store, shard, name = dataset.store, record.shard, record_name(record.shard)
    ordered = {array: rows[array] for array in array_shapes(dataset.spec)}
    files, arrays = dataset.format.encode(dataset.metadata, shard, ordered)
    records = {file: file_record(data) for file, data in files.items()}
    record = record.model_copy(update={"files": records, "arrays": arrays})
    check_record(dataset, record, f"the record of shard {shard}")
    document = dump_with_checksum(record)
    with store.claim(name):
        # A record guarantees the bytes of its files: replace files only without a record.
        committed = store.read(name)
        if committed is None:
            for file, data in files.items():
                store.write(file, data)
            if not store.create(name, document):
                committed = store.read(name)
        store.remove(damaged_name(shard))
    return parse_record(dataset, document if committed is None else committed, shard, name)


def sweep(dataset: DatasetHandle) -> int:
    """Remove temporary files of killed writers, and files of shards without a record. Return their number.

    On an object store nothing is removed: another machine may be writing them.
    """
    store = dataset.store
    if not store.exclusive:
        return 0
    with store.claim(PUBLISHED):
        committed = set(shard_numbers(dataset))
        return store.sweep(lambda name: shard_of_file(name) not in {None, *committed})
