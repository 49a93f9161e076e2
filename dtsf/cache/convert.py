"""A data set written again: in the other format, compressed or raw, in another precision, on another machine's store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xxhash

from dtsf.cache.catalog import read_catalog, write_catalog
from dtsf.cache.documents import FORMATS, read_metadata, read_records
from dtsf.cache.layout import array_shapes
from dtsf.cache.lock import write_lock
from dtsf.cache.reader import CachedDataset
from dtsf.cache.store import LocalStore, open_store
from dtsf.cache.writer import create_or_open, extend, sweep, write_shard
from dtsf.errors import CacheError
from dtsf.files.memory import refuse_unless_fits

if TYPE_CHECKING:
    from collections.abc import Callable

    from dtsf.cache.documents import Where
    from dtsf.cache.remote import RemoteStore
    from dtsf.cache.spec import ShardRecord


def convert(
    source: Where,
    target: Where,
    *,
    format: str | None = None,  # noqa: A002
    compress: str | None = None,
    dtype: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> int:
    """Copy a data set, shard by shard, each checked against its checksum first. What the target has is not copied again.

    Returns how many shards were written. Raises CacheError: the source is damaged, a value does not fit float16, or the target
    holds something else.

    Args:
        format: ``zarr`` or ``hdf5``; the source's if left out.
        compress: ``none``, or ``zstd`` (Zarr) or ``gzip`` (HDF5). The source's if left out, ``none`` where the new format
            lacks it.
        dtype: ``float16`` or ``float32`` of the embeddings; the source's if left out. Another one is another fingerprint.
    """
    ours, theirs = open_store(source), open_store(target)
    if str(ours.absolute()) == str(theirs.absolute()) or (
        isinstance(ours, LocalStore) and isinstance(theirs, LocalStore) and ours.path.resolve() == theirs.path.resolve()
    ):
        raise CacheError(f"{ours} cannot be converted onto itself: name another folder")
    with write_lock(theirs):
        return _convert(ours, theirs, format, compress, dtype, on_progress)


def _convert(
    ours: LocalStore | RemoteStore,
    theirs: LocalStore | RemoteStore,
    format: str | None,  # noqa: A002
    compress: str | None,
    dtype: str | None,
    on_progress: Callable[[int, int], None] | None,
) -> int:
    metadata = read_metadata(ours)
    shards = read_records(ours, metadata)
    chosen = format or metadata.format
    if chosen in FORMATS and compress is None:
        compress = metadata.compress if metadata.compress in FORMATS[chosen].compressions else "none"
    if dtype not in (None, metadata.spec.embedding_dtype, "float16", "float32") or (
        dtype not in (None, metadata.spec.embedding_dtype) and metadata.spec.embedding_dtype == "uint8"
    ):
        raise CacheError(
            f"embeddings of {metadata.spec.embedding_dtype} cannot be made {dtype}: float16 and float32 can"
        )
    spec = metadata.spec.model_copy(update={"embedding_dtype": dtype or metadata.spec.embedding_dtype})
    create_or_open(theirs, spec, metadata.info, metadata.shard_size, format=chosen, compress=compress)
    sweep(theirs)
    if shards:
        extend(theirs, shards[-1].shard + 1)
    there = {record.shard: record for record in read_records(theirs)}
    written = 0
    for done, shard in enumerate(shards, 1):
        if shard.shard not in there:
            rows = rows_of_shard(CachedDataset(ours, metadata, {shard.shard: shard}, None, {}), shard)
            rows["embeddings"] = _cast(rows["embeddings"], spec.embedding_dtype, f"shard {shard.shard} of {ours}")
            record = shard.model_copy(update={"fingerprint": spec.fingerprint(), "files": {}, "arrays": {}})
            write_shard(theirs, record, rows)
            written += 1
        elif _rows_of(there[shard.shard]) != _rows_of(shard):
            raise CacheError(f"{theirs} has other clips in shard {shard.shard} than {ours}: name another folder")
        if on_progress is not None:
            on_progress(done, len(shards))
    catalog = read_catalog(ours)
    if catalog is not None:
        # Last: until then the target shows nothing, or what it showed.
        write_catalog(theirs, catalog)
    return written


def _rows_of(shard: ShardRecord) -> list[tuple[str, int | None]]:
    return [(record.key, record.row) for record in shard.clips]


def rows_of_shard(data: CachedDataset, shard: ShardRecord) -> dict[str, np.ndarray]:
    """Rows of one shard in their order, from files that match their checksums. Raises CacheError: one does not."""
    for name, expected in shard.files.items():
        refuse_unless_fits(expected.bytes, f"reading {data.place}/{name}")
        held = data.place.read(name, expected.bytes)
        if held is None or xxhash.xxh3_64_hexdigest(held) != expected.xxh3:
            raise CacheError(f"{data.place}/{name} does not match its checksum: run dtsf cache repair {data.place}")
    rows = {}
    for array in array_shapes(data.spec):
        # Not by clip: rows that a later shard replaced are copied too, so that records stay the same.
        rows[array] = np.array(data.rows(array, shard.shard))
    return rows


def _cast(rows: np.ndarray, dtype: str, where: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        cast = rows.astype(np.dtype(dtype).newbyteorder("<"), copy=False)
    if cast.dtype.kind == "f" and (np.isinf(cast) & ~np.isinf(rows)).any():
        raise CacheError(f"{where} has values beyond float16 (65504): keep float32")
    return cast
