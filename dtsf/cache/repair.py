"""Put right what verify finds damaged: what another copy says is written anew, the rest is marked to be done again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dtsf.cache.catalog import newest_records, read_catalog, write_catalog
from dtsf.cache.documents import read_marks, read_published_files, shard_numbers, storage_format
from dtsf.cache.layout import CATALOG, METADATA, PUBLISHED, damaged_name, record_name
from dtsf.cache.lock import write_lock
from dtsf.cache.seal import dump_with_checksum, read_with_checksum
from dtsf.cache.spec import PublishedFiles
from dtsf.cache.status import Status
from dtsf.cache.store import LocalStore, open_store
from dtsf.cache.verify import Verification, verify, verify_metadata, verify_record
from dtsf.cache.writer import extend, sweep
from dtsf.errors import CacheError

if TYPE_CHECKING:
    from pathlib import Path

    from dtsf.cache.remote import RemoteStore
    from dtsf.cache.spec import DatasetMetadata, ShardRecord

    Place = LocalStore | RemoteStore


def repair(where: Path | str | Place, *, deep: bool = True) -> tuple[Verification, list[str]]:
    """Put right what can be, and mark the rest so that ``preprocess`` makes it again. Whole shards are not touched.

    Returns what was found damaged, and what was done metadata it, in words. Raises CacheError: what the data set says of itself is
    lost: nothing can be concluded from the rest.
    """
    place = open_store(where)
    with write_lock(place):
        return _repair(place, deep=deep)


def _repair(place: Place, *, deep: bool) -> tuple[Verification, list[str]]:
    done = []
    metadata, lost = verify_metadata(place)
    if metadata is None:
        raise CacheError(
            f"{lost[0].reason}; nothing else says what {place} holds: make it again with dtsf preprocess --overwrite"
        )
    if lost:
        # One of the two copies is whole: the other is made from it.
        place.write(METADATA, dump_with_checksum(metadata))
        done.append(f"wrote {METADATA} and the files that show the shards to other programs")
    found = verify(place, deep=deep)
    if any(damage.file == CATALOG for damage in found.damaged):
        place.remove(CATALOG)
        done.append(f"removed {CATALOG}: preprocess writes it anew and decodes nothing for it")
    kind = storage_format(metadata.format, metadata.compress)
    for shard in sorted({damage.shard for damage in found.damaged if damage.shard is not None}):
        record, _ = verify_record(place, metadata, shard, record_name(shard))
        with place.claim(record_name(shard)):
            if record is not None:
                # Marked before it is gone: a crash between the two leaves a record, which wins over a mark.
                place.write(damaged_name(shard), dump_with_checksum(record))
                done.append(f"shard {shard}: {len(record.clips)} clips are marked to be done again")
            else:
                place.remove(damaged_name(shard))
                done.append(f"shard {shard}: its record is lost; preprocess finds out which clips are missing")
            place.remove(record_name(shard))
            for name in kind.data_files(metadata, shard):
                _discard(place, name)
    if any(damage.shard is None and damage.file != CATALOG for damage in found.damaged) or lost:
        _rebuild_extent(place, metadata)
        if not lost:
            done.append("wrote the files that show the shards to other programs")
    _let_wait(place, metadata)
    sweep(place)
    return found.model_copy(
        update={"damaged": (*lost, *(d for d in found.damaged if d not in lost)), "ok": not done}
    ), done


def _let_wait(place: Place, metadata: DatasetMetadata) -> None:
    """Say in the catalog which clips have lost their rows, so that it agrees with the records again."""
    records = _readable(place, metadata)
    document = read_catalog(place) if place.size(CATALOG) is not None else None
    if document is None:
        return
    computed, marks = (
        newest_records(records),
        {"status": Status.WAITING, "reason": "found damaged: run dtsf preprocess"},
    )
    clips = (e if e.status or e.key in computed else e.model_copy(update=marks) for e in document.clips)
    write_catalog(place, document.model_copy(update={"clips": tuple(clips)}))


def _readable(place: Place, metadata: DatasetMetadata) -> list[ShardRecord]:
    found = (verify_record(place, metadata, shard, record_name(shard))[0] for shard in shard_numbers(place))
    return [record for record in found if record is not None]


def _discard(place: Place, name: str) -> None:
    try:
        place.remove(name)
    except CacheError:
        # A link or a folder where a file should be: that is a person's to remove, and the next write will say so.
        return


def _rebuild_extent(place: Place, metadata: DatasetMetadata) -> None:
    try:
        held = read_published_files(place)
        shards = held.shards if held else 0
    except CacheError:
        shards = 0
    shards = max([shards, *(n + 1 for n in shard_numbers(place)), *(m.shard + 1 for m in read_marks(place, metadata))])
    data = place.read(PUBLISHED)
    if data is not None:
        try:
            read_with_checksum(data, PublishedFiles, PUBLISHED)
        except CacheError:
            place.remove(PUBLISHED)
    extend(place, shards)
