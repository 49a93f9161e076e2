"""Write, convert and compact a dataset. Its metadata is written once, and the commit record of a shard last."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import xxhash

from dtsf.cache import documents as docs
from dtsf.cache.catalog import drop_tombstones, match_rows, read_catalog, read_shards, write_catalog
from dtsf.cache.documents import METADATA, PUBLISHED, DatasetHandle, dump_with_checksum, file_record
from dtsf.cache.formats import FORMATS, array_shapes, shard_of_file, storage_format
from dtsf.cache.reader import CachedDataset
from dtsf.cache.schema import (
    LAYOUT,
    CacheSpec,
    DatasetMetadata,
    DatasetName,
    PublishedFiles,
    ShardRecord,
    describe_difference,
)
from dtsf.cache.store import Location, Progress, open_store
from dtsf.errors import CacheError, FingerprintError
from dtsf.files.read import refuse_unless_fits
from dtsf.settings import Frozen


def create_or_open(
    path: Location,
    spec: CacheSpec,
    info: DatasetName,
    shard_size: int,
    *,
    format: str | None = None,  # noqa: A002
    compress: str | None = None,
) -> DatasetHandle:
    """Make a dataset, or open an existing one, which keeps its ``shard_size``. ``format`` (default ``zarr``) and ``compress``
    (default ``none``) must match it. Raises FingerprintError: another spec. CacheError: not a dataset, another kind or format.
    """
    store, fingerprint = open_store(path), spec.fingerprint()
    if store.is_empty():
        metadata = DatasetMetadata(
            layout=LAYOUT,
            format=format or "zarr",
            compress=compress or "none",
            fingerprint=fingerprint,
            shard_size=shard_size,
            info=DatasetName(kind=info.kind, name=info.name),
            spec=spec,
        )
        files = storage_format(metadata.format, metadata.compress).published_files(metadata, 0)
        published = PublishedFiles(shards=0, files={name: file_record(data) for name, data in files.items()})
        documents = {PUBLISHED: dump_with_checksum(published), METADATA: dump_with_checksum(metadata)}
        store.create_all(files | documents, first=METADATA)
    if not docs.is_dataset(store):
        raise CacheError(f"{store} exists and is not a dtsf cache: choose another --cache or --name")
    dataset = docs.open_handle(store)
    if store.size(PUBLISHED) is None:
        extend(dataset, 0)
    cached = dataset.metadata
    if cached.fingerprint != fingerprint:
        raise FingerprintError(
            f"{store} has fingerprint {cached.fingerprint}, this run {fingerprint} ({describe_difference(cached.spec, spec)}). "
            "Use the same settings, another --name or --cache, or --overwrite to replace it"
        )
    if cached.info.kind != info.kind:
        hint = "choose another --name, or --overwrite"
        raise CacheError(f"{store} has the kind {cached.info.kind}, not {info.kind}: {hint}")
    for option, value, requested in (("format", cached.format, format), ("compress", cached.compress, compress)):
        if requested not in (None, value):
            hint = f"omit --{option}, choose another --name, or change it with dtsf cache convert"
            raise CacheError(f"{store} has --{option} {value}, not {requested}: {hint}")
    return dataset


def extend(dataset: DatasetHandle, n_shards: int) -> None:
    """Show ``n_shards`` shards to other programs, but never fewer than before."""
    store = dataset.store
    with store.claim(PUBLISHED):
        published = docs.read_published_files(store) or PublishedFiles(shards=0, files={})
        n_shards = max([n_shards, published.shards, *(shard + 1 for shard in docs.shard_numbers(dataset))])
        files = dataset.format.published_files(dataset.metadata, n_shards)
        records = {name: file_record(data) for name, data in files.items()}
        if (published.shards, published.files) != (n_shards, records):
            # Before the files: after a crash, each file matches `files` or `previous`.
            published = PublishedFiles(shards=n_shards, files=records, previous=published.files)
            store.write(PUBLISHED, dump_with_checksum(published))
        for name, data in files.items():
            if store.read(name) != data:
                store.write(name, data)


def write_shard(dataset: DatasetHandle, record: ShardRecord, rows: Mapping[str, np.ndarray]) -> ShardRecord:
    """Write a shard's files, then its commit record. Return the committed record, which may be that of another writer."""
    store, shard, name = dataset.store, record.shard, docs.record_name(record.shard)
    ordered = {array: rows[array] for array in array_shapes(dataset.spec)}
    files, arrays = dataset.format.encode(dataset.metadata, shard, ordered)
    records = {file: file_record(data) for file, data in files.items()}
    document = dump_with_checksum(record.model_copy(update={"files": records, "arrays": arrays}))
    record = docs.parse_record(dataset, document, shard)
    with store.claim(name):
        # A record guarantees the bytes of its files: replace files only without a record.
        committed = store.read(name)
        if committed is None:
            for file, data in files.items():
                store.write(file, data)
            if not store.create(name, document):
                committed = store.read(name)
        store.remove(docs.record_name(shard, docs.DAMAGED))
    return record if committed is None else docs.parse_record(dataset, committed, shard)


def sweep(dataset: DatasetHandle) -> int:
    """Remove temporary files of killed writers, and files of shards without a record. Return their number."""

    def orphans(names: list[str]) -> list[str]:
        committed = {None, *docs.shard_numbers(dataset)}
        return [name for name in names if shard_of_file(name) not in committed]

    return dataset.store.sweep(orphans)


class Compaction(Frozen):
    """Result of :func:`compact`: removed rows and bytes."""

    rows: int
    bytes: int
    shards_before: int
    shards_after: int


def convert(
    source: Location,
    target: Location,
    *,
    format: str | None = None,  # noqa: A002
    compress: str | None = None,
    dtype: str | None = None,
    on_progress: Progress = lambda *_: None,
) -> int:
    """Copy a dataset shard by shard, with a checksum test of each, and return the number of written ones. Shards that the target
    has are skipped. Options default to those of the source. Another ``dtype`` of the embeddings changes the fingerprint. Raises
    CacheError: the source is damaged, a value is out of range for float16, or the target is another dataset.
    """
    dataset, theirs = docs.open_handle(source), open_store(target)
    spec, metadata, shards = dataset.spec, dataset.metadata, docs.read_records(dataset)
    if dataset.store.absolute() == theirs.absolute():
        raise CacheError(f"{dataset.store} cannot be converted onto itself: name another folder")
    format = format or metadata.format  # noqa: A001
    if format in FORMATS and compress is None:
        compress = metadata.compress if metadata.compress in FORMATS[format].compressions else "none"
    if dtype not in (None, spec.embedding_dtype):
        if dtype not in ("float16", "float32") or spec.embedding_dtype == "uint8":
            raise CacheError(f"embeddings of {spec.embedding_dtype} cannot become {dtype}: choose float16 or float32")
        spec = spec.model_copy(update={"embedding_dtype": dtype})
    written = 0
    with theirs.write_lock():
        copy = create_or_open(theirs, spec, metadata.info, dataset.shard_size, format=format, compress=compress)
        sweep(copy)
        extend(copy, shards[-1].shard + 1 if shards else 0)
        existing = {record.shard: _keys(record) for record in docs.read_records(copy)}
        for done, shard in enumerate(shards, 1):
            if existing.get(shard.shard, _keys(shard)) != _keys(shard):
                raise CacheError(f"{theirs} has other clips in shard {shard.shard} than {source}: name another folder")
            if shard.shard not in existing:
                rows = _checked_rows(dataset, shard)
                with np.errstate(over="ignore"):
                    cast = rows["embeddings"].astype(array_shapes(spec)["embeddings"][1], copy=False)
                if (np.isinf(cast) & ~np.isinf(rows["embeddings"])).any():
                    raise CacheError(f"shard {shard.shard} of {source} has values beyond float16 (65504): keep float32")
                record = shard.model_copy(update={"fingerprint": spec.fingerprint()})
                write_shard(copy, record, rows | {"embeddings": cast})
                written += 1
            on_progress(done, len(shards))
        catalog = read_catalog(dataset)
        if catalog is not None:
            # Last: until then readers of the target see its old catalog, or none.
            write_catalog(copy, catalog)
            drop_tombstones(copy, catalog)
    return written


def compact(path: Location, *, on_progress: Progress = lambda *_: None) -> Compaction:
    """Remove the rows that the catalog does not name. Their shards are written again without them, under free numbers, then the
    old ones are removed, record first: a kill loses no row of the catalog. Raises CacheError: no catalog, or a damaged shard.
    """
    store = open_store(path)
    with store.write_lock():
        dataset = docs.open_handle(store)
        sweep(dataset)
        shards, catalog = read_shards(dataset), read_catalog(dataset)
        if catalog is None:
            raise CacheError(f"{store} has no catalog, so its used rows are unknown: run dtsf preprocess first")
        matched, _ = match_rows(catalog, shards.by_key)
        used = {(shard, record.key) for shard, record in matched.values()}
        old = [shard for shard in shards.records if any((shard.shard, clip.key) not in used for clip in shard.clips)]
        taken = {shard.shard for shard in [*shards.records, *shards.damaged]}
        free = (number for number in itertools.count() if number not in taken)
        staying = [(shard, clip) for shard in old for clip in shard.clips if (shard.shard, clip.key) in used]
        opened: tuple[int, dict[str, np.ndarray]] = (-1, {})
        for written, start in enumerate(range(0, len(staying), dataset.shard_size), 1):
            clips = []
            values: dict[str, list[np.ndarray]] = {array: [] for array in array_shapes(dataset.spec)}
            for shard, clip in staying[start : start + dataset.shard_size]:
                if opened[0] != shard.shard:
                    opened = shard.shard, _checked_rows(dataset, shard)
                row = None
                if clip.row is not None:
                    row = len(values["embeddings"])
                    for array, rows in opened[1].items():
                        values[array].append(rows[clip.row])
                clips.append(clip.model_copy(update={"row": row}))
            number, n_rows = next(free), len(values["embeddings"])
            extend(dataset, number + 1)
            fingerprint = dataset.metadata.fingerprint
            record = ShardRecord(shard=number, fingerprint=fingerprint, rows=n_rows, clips=tuple(clips), files={})
            shapes = array_shapes(dataset.spec).items()
            write_shard(dataset, record, {a: np.array(values[a], t).reshape(n_rows, *s) for a, (s, t) in shapes})
            on_progress(written, len(old))
        for shard in old:
            with store.claim(docs.record_name(shard.shard)):
                for name in (docs.record_name(shard.shard), *dataset.format.data_files(shard.shard)):
                    store.remove(name)
        drop_tombstones(dataset, catalog)
        after = docs.read_records(dataset)
    return Compaction(
        rows=sum(shard.rows for shard in shards.records) - sum(shard.rows for shard in after),
        bytes=_size(shards.records) - _size(after),
        shards_before=len(shards.records),
        shards_after=len(after),
    )


def _checked_rows(dataset: DatasetHandle, shard: ShardRecord) -> dict[str, np.ndarray]:
    """Return the rows of one shard by array, in stored order. Raises CacheError: a file does not match its checksum."""
    store = dataset.store
    for name, expected in shard.files.items():
        refuse_unless_fits(expected.bytes, f"reading {store}/{name}")
        data = store.read(name, expected.bytes)
        if data is None or xxhash.xxh3_64_hexdigest(data) != expected.xxh3:
            docs.refuse_replaced(dataset, shard)
            raise CacheError(f"{store}/{name} does not match its checksum: run dtsf cache repair {store}")
    reader = CachedDataset(store, dataset.metadata, {shard.shard: shard})
    return {a: np.array(reader.shard_rows(a, shard.shard)[: shard.rows]) for a in array_shapes(dataset.spec)}


def _keys(shard: ShardRecord) -> list[tuple[str, int | None]]:
    return [(record.key, record.row) for record in shard.clips]


def _size(records: Sequence[ShardRecord]) -> int:
    return sum(file.bytes for shard in records for file in shard.files.values())
