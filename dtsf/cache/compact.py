"""Give back the room of rows that nothing lists any more. Killed at any moment, every listed row is there still.

Shards that hold such rows are written again without them, under numbers that are free; the old ones go afterwards, their
record first. Until then a listed row is there twice, with the same bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dtsf.cache.catalog import join, newest_records, read_catalog
from dtsf.cache.convert import rows_of_shard
from dtsf.cache.documents import read_marks, read_metadata, read_records, storage_format
from dtsf.cache.layout import array_shapes, damaged_name, record_name
from dtsf.cache.lock import write_lock
from dtsf.cache.reader import CachedDataset
from dtsf.cache.records import Frozen
from dtsf.cache.spec import ShardRecord
from dtsf.cache.store import open_store
from dtsf.cache.writer import extend, sweep, write_shard
from dtsf.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dtsf.cache.documents import Where
    from dtsf.cache.records import ClipRecord
    from dtsf.cache.remote import RemoteStore
    from dtsf.cache.store import LocalStore


class Compaction(Frozen):
    """What was given back."""

    rows: int
    """That nothing listed."""
    bytes: int
    shards_before: int
    shards_after: int


def compact(where: Where, *, on_progress: Callable[[int, int], None] | None = None) -> Compaction:
    """Remove rows and verdicts that the catalog does not name, and keep every other byte of every row. Raises CacheError: there
    is no catalog, or a shard that must be read is damaged.
    """
    place = open_store(where)
    with write_lock(place):
        sweep(place)
        metadata = read_metadata(place)
        records = read_records(place, metadata)
        catalog = read_catalog(place)
        if catalog is None:
            raise CacheError(
                f"{place} has no catalog, so that nothing says which rows are used: run dtsf preprocess first"
            )
        marks = read_marks(place, metadata)
        listed, _ = join(catalog, newest_records(records, marks))
        used = {(shard, record.key) for shard, record in listed.values()}
        spare = [shard for shard in records if any((shard.shard, held.key) not in used for held in shard.clips)]
        data = CachedDataset(place, metadata, {shard.shard: shard for shard in records}, None, {})
        taken = {shard.shard for shard in [*records, *marks]}
        free = (number for number in range(len(taken) + len(records) + 1) if number not in taken)
        for written, (held, rows) in enumerate(_packed(data, spare, used), 1):
            number = next(free)
            extend(place, number + 1)
            shard = ShardRecord(
                shard=number,
                fingerprint=metadata.spec.fingerprint(),
                rows=sum(record.row is not None for record in held),
                clips=tuple(held),
                files={},
            )
            write_shard(place, shard, rows)
            if on_progress is not None:
                on_progress(written, len(spare))
        # In rising order: of an older and a newer status on the same bytes, the newer stays to the last.
        for shard in spare:
            _remove(place, shard)
        for mark in marks:
            if not any(record.key in {entry.key for entry in catalog.clips} for record in mark.clips):
                place.remove(damaged_name(mark.shard))
    before, after = _size(records), _size(read_records(place, metadata))
    return Compaction(
        rows=sum(shard.rows for shard in records) - sum(shard.rows for shard in read_records(place, metadata)),
        bytes=before - after,
        shards_before=len(records),
        shards_after=len(read_records(place, metadata)),
    )


def _packed(
    data: CachedDataset, shards: list[ShardRecord], used: set[tuple[int, str]]
) -> Iterator[tuple[list[ClipRecord], dict[str, np.ndarray]]]:
    """Full shards of the rows and verdicts that stay, in their order."""
    arrays = array_shapes(data.spec)
    held: list[ClipRecord] = []
    parts: dict[str, list[np.ndarray]] = {array: [] for array in arrays}

    def whole() -> tuple[list[ClipRecord], dict[str, np.ndarray]]:
        empty = {array: np.empty((0, *shape), dtype) for array, (shape, dtype) in arrays.items()}
        return held, {array: np.stack(rows) if rows else empty[array] for array, rows in parts.items()}

    for shard in shards:
        staying = [record for record in shard.clips if (shard.shard, record.key) in used]
        if not staying:
            continue
        rows = rows_of_shard(data, shard)
        for record in staying:
            if len(held) == data.shard_size:
                yield whole()
                held, parts = [], {array: [] for array in arrays}
            row = record.row
            if row is not None:
                for array in arrays:
                    parts[array].append(rows[array][row])
                row = len(parts["embeddings"]) - 1
            held.append(record.model_copy(update={"row": row}))
    if held:
        yield whole()


def _remove(place: LocalStore | RemoteStore, shard: ShardRecord) -> None:
    kind = storage_format((metadata := read_metadata(place)).format, metadata.compress)
    with place.claim(record_name(shard.shard)):
        place.remove(record_name(shard.shard))
        for name in kind.data_files(metadata, shard.shard):
            place.remove(name)


def _size(records: list[ShardRecord]) -> int:
    return sum(file.bytes for shard in records for file in shard.files.values())
