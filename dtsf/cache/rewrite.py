"""Rewrite a dataset: convert it to another format or store, or compact it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xxhash

from dtsf.cache.catalog import match_rows, newest_records, read_catalog, write_catalog
from dtsf.cache.documents import damaged_name, open_handle, read_damaged, read_records, record_name
from dtsf.cache.formats import FORMATS, array_shapes
from dtsf.cache.reader import CachedDataset
from dtsf.cache.schema import ShardRecord
from dtsf.cache.store import open_store
from dtsf.cache.writer import create_or_open, extend, sweep, write_shard
from dtsf.errors import CacheError
from dtsf.files.read import refuse_unless_fits
from dtsf.settings import Frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from dtsf.cache.documents import DatasetHandle
    from dtsf.cache.schema import ClipRecord
    from dtsf.cache.store import Store

    Progress = Callable[[int, int], None] | None


class Compaction(Frozen):
    """Result of :func:`compact`: removed rows and bytes."""

    rows: int
    bytes: int
    shards_before: int
    shards_after: int


def convert(
    source: str | Path | Store,
    target: str | Path | Store,
    *,
    format: str | None = None,  # noqa: A002
    compress: str | None = None,
    dtype: str | None = None,
    on_progress: Progress = None,
) -> int:
    """Copy a dataset shard by shard, with a checksum test of each. Shards that the target has are skipped.

    ``format``, ``compress`` and ``dtype`` (of the embeddings) default to those of the source, ``compress`` to ``none`` if the
    new format lacks it. Another dtype changes the fingerprint. Returns the number of written shards. Raises CacheError: the
    source is damaged, a value is out of range for float16, or the target is another dataset.
    """
    dataset, theirs = open_handle(source), open_store(target)
    spec, metadata, shards = dataset.spec, dataset.metadata, read_records(dataset)
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
        existing = {record.shard: record for record in read_records(copy)}
        for done, shard in enumerate(shards, 1):
            if shard.shard not in existing:
                rows = _checked_rows(dataset, shard)
                rows["embeddings"] = _cast(rows["embeddings"], spec.embedding_dtype, f"shard {shard.shard} of {source}")
                write_shard(copy, shard.model_copy(update={"fingerprint": spec.fingerprint()}), rows)
                written += 1
            elif _keys(existing[shard.shard]) != _keys(shard):
                raise CacheError(f"{theirs} has other clips in shard {shard.shard} than {source}: name another folder")
            if on_progress is not None:
                on_progress(done, len(shards))
        catalog = read_catalog(dataset)
        if catalog is not None:
            # Last: until then readers of the target see its old catalog, or none.
            write_catalog(copy, catalog)
    return written


def compact(path: str | Path | Store, *, on_progress: Progress = None) -> Compaction:
    """Remove the rows that the catalog does not name. After a kill at any moment, every row of the catalog still exists.

    Shards with unused rows are written again without them, under free numbers. Then the old shards are removed, each with its
    record first. Raises CacheError: there is no catalog, or a shard is damaged.
    """
    store = open_store(path)
    with store.write_lock():
        dataset = open_handle(store)
        sweep(dataset)
        records, damaged, catalog = read_records(dataset), read_damaged(dataset), read_catalog(dataset)
        if catalog is None:
            raise CacheError(f"{store} has no catalog, so its used rows are unknown: run dtsf preprocess first")
        matched, _ = match_rows(catalog, newest_records(records, damaged))
        used = {(shard, record.key) for shard, record in matched.values()}
        old = [shard for shard in records if any((shard.shard, clip.key) not in used for clip in shard.clips)]
        taken = {shard.shard for shard in [*records, *damaged]}
        free = (number for number in range(2 * len(taken) + 1) if number not in taken)
        for written, (clips, rows) in enumerate(_packed(dataset, old, used), 1):
            number, n_rows = next(free), sum(record.row is not None for record in clips)
            extend(dataset, number + 1)
            fingerprint = dataset.metadata.fingerprint
            record = ShardRecord(shard=number, fingerprint=fingerprint, rows=n_rows, clips=tuple(clips), files={})
            write_shard(dataset, record, rows)
            if on_progress is not None:
                on_progress(written, len(old))
        # In rising order: of two records of the same source, the newer one stays longer.
        for shard in old:
            with store.claim(record_name(shard.shard)):
                store.remove(record_name(shard.shard))
                for name in dataset.format.data_files(shard.shard):
                    store.remove(name)
        keys = {entry.key for entry in catalog.clips}
        for shard in damaged:
            if not any(record.key in keys for record in shard.clips):
                store.remove(damaged_name(shard.shard))
        after = read_records(dataset)
    return Compaction(
        rows=sum(shard.rows for shard in records) - sum(shard.rows for shard in after),
        bytes=_size(records) - _size(after),
        shards_before=len(records),
        shards_after=len(after),
    )


def _packed(
    dataset: DatasetHandle, shards: list[ShardRecord], used: set[tuple[int, str]]
) -> Iterator[tuple[list[ClipRecord], dict[str, np.ndarray]]]:
    """Yield full shards of the used clips in order: records, and rows by array."""
    arrays = array_shapes(dataset.spec)
    clips: list[ClipRecord] = []
    kept: dict[str, list[np.ndarray]] = {array: [] for array in arrays}

    def packed() -> tuple[list[ClipRecord], dict[str, np.ndarray]]:
        empty = {array: np.empty((0, *shape), dtype) for array, (shape, dtype) in arrays.items()}
        return clips, {array: np.stack(rows) if rows else empty[array] for array, rows in kept.items()}

    for shard in shards:
        staying = [record for record in shard.clips if (shard.shard, record.key) in used]
        rows = _checked_rows(dataset, shard) if staying else {}
        for record in staying:
            if len(clips) == dataset.shard_size:
                yield packed()
                clips, kept = [], {array: [] for array in arrays}
            row = record.row
            if row is not None:
                for array in arrays:
                    kept[array].append(rows[array][row])
                row = len(kept["embeddings"]) - 1
            clips.append(record.model_copy(update={"row": row}))
    if clips:
        yield packed()


def _checked_rows(dataset: DatasetHandle, shard: ShardRecord) -> dict[str, np.ndarray]:
    """Return the rows of one shard by array, in stored order. Raises CacheError: a file does not match its checksum."""
    store = dataset.store
    for name, expected in shard.files.items():
        refuse_unless_fits(expected.bytes, f"reading {store}/{name}")
        data = store.read(name, expected.bytes)
        if data is None or xxhash.xxh3_64_hexdigest(data) != expected.xxh3:
            raise CacheError(f"{store}/{name} does not match its checksum: run dtsf cache repair {store}")
    reader = CachedDataset(store, dataset.metadata, {shard.shard: shard})
    return {array: np.array(reader.rows(array, shard.shard)) for array in array_shapes(dataset.spec)}


def _keys(shard: ShardRecord) -> list[tuple[str, int | None]]:
    return [(record.key, record.row) for record in shard.clips]


def _cast(rows: np.ndarray, dtype: str, source: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        cast = rows.astype(np.dtype(dtype).newbyteorder("<"), copy=False)
    if cast.dtype.kind == "f" and (np.isinf(cast) & ~np.isinf(rows)).any():
        raise CacheError(f"{source} has values beyond float16 (65504): keep float32")
    return cast


def _size(records: list[ShardRecord]) -> int:
    return sum(file.bytes for shard in records for file in shard.files.values())
