"""Whether a data set of a cache is what it was when it was committed; and what to do where it is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import xxhash
from pydantic import Field

from dtsf.cache.catalog import newest_records, read_catalog, write_catalog
from dtsf.cache.documents import (
    file_record,
    is_dataset,
    parse_about,
    parse_record,
    read_about,
    read_extent,
    read_marks,
    shard_numbers,
    storage_format,
)
from dtsf.cache.layout import ABOUT, CATALOG, EXTENT, record_name, redo_name
from dtsf.cache.memory import refuse_unless_fits
from dtsf.cache.place import LocalFolder, as_place
from dtsf.cache.records import Frozen
from dtsf.cache.seal import read_sealed, sealed
from dtsf.cache.spec import About, Extent
from dtsf.cache.store import extend, sweep
from dtsf.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dtsf.cache.remote import RemoteFolder
    from dtsf.cache.spec import FileRecord, ShardRecord

    Place = LocalFolder | RemoteFolder

__all__ = ["Damage", "Verification", "looks_like_dataset", "repair", "verify"]


class Damage(Frozen):
    """One file that is not what it was."""

    shard: int | None
    """None for a file of the whole data set."""
    file: str
    """Relative to the data set's folder."""
    reason: str


class Verification(Frozen):
    """What a data set was found to be."""

    ok: bool
    damaged: tuple[Damage, ...]
    shards: int
    bytes: int = Field(ge=0)
    """Of the files that were looked at."""
    deep: bool
    redo: tuple[int, ...]
    """Shards marked by an earlier repair, which preprocess has not made again yet."""
    notes: tuple[str, ...]


def verify(
    where: Path | str | Place, *, deep: bool = False, on_progress: Callable[[int, int], None] | None = None
) -> Verification:
    """Check documents, names and sizes; with ``deep`` every byte of every file against its checksum.

    Args:
        where: The data set's folder or URL.
        deep: Read everything.
        on_progress: Called with shards done and all.

    Raises:
        CacheError: There is no data set, or one of a version that this dtsf does not read.

    """
    place = as_place(where)
    about, damaged = _verify_about(place)
    if about is None:
        return Verification(ok=False, damaged=tuple(damaged), shards=0, bytes=0, deep=deep, redo=(), notes=())
    notes = []
    if about.layout == 1:
        notes.append(
            f"layout {about.layout}: its records carry no seal, so that a changed one that still makes sense is not found; "
            "dtsf cache convert writes the present layout"
        )
    damaged += _verify_extent(place, about)
    numbers = shard_numbers(place)
    records = []
    total = 0
    for done, shard in enumerate(numbers, 1):
        record, found = _verify_record(place, about, shard, record_name(shard))
        damaged += found
        if record is not None:
            records.append(record)
            for name, expected in record.files.items():
                total += expected.bytes
                reason = _verify_file(place, name, expected, deep=deep)
                if reason:
                    damaged.append(Damage(shard=shard, file=name, reason=reason))
        if on_progress is not None:
            on_progress(done, len(numbers))
    marks = [shard for shard in shard_numbers(place, ".redo") if shard not in numbers]
    for shard in marks:
        damaged += _verify_record(place, about, shard, redo_name(shard))[1]
    damaged += _verify_catalog(place, about, records, complete=not marks and len(records) == len(numbers))
    return Verification(
        ok=not damaged,
        damaged=tuple(damaged),
        shards=len(numbers),
        bytes=total,
        deep=deep,
        redo=tuple(marks),
        notes=tuple(notes),
    )


def repair(where: Path | str | Place, *, deep: bool = True) -> tuple[Verification, list[str]]:
    """Put right what can be, and mark the rest so that ``preprocess`` makes it again. Whole shards are not touched.

    Returns:
        What was found damaged, and what was done about it, in words.

    Raises:
        CacheError: What the data set says of itself is lost: nothing can be concluded from the rest.

    """
    place = as_place(where)
    done = []
    about, lost = _verify_about(place)
    if about is None:
        raise CacheError(
            f"{lost[0].reason}; nothing else says what {place} holds: make it again with dtsf preprocess --overwrite"
        )
    if lost and about.layout > 1:
        # One of the two copies is whole: the other is made from it.
        place.write(ABOUT, sealed(about))
        done.append(f"wrote {ABOUT} and the files that show the shards to other programs")
    found = verify(place, deep=deep)
    if any(damage.file == CATALOG for damage in found.damaged):
        place.remove(CATALOG)
        done.append(f"removed {CATALOG}: preprocess writes it anew and decodes nothing for it")
    elif about.layout < 3 and place.size(CATALOG) is None:
        # These records say themselves what the clips are; those that are made again will not.
        document = read_catalog(place, about, _readable(place, about))
        if document is not None:
            place.write(CATALOG, sealed(document))
    kind = storage_format(about.format, about.compress)
    for shard in sorted({damage.shard for damage in found.damaged if damage.shard is not None}):
        record, _ = _verify_record(place, about, shard, record_name(shard))
        with place.claim(record_name(shard)):
            if record is not None:
                # Marked before it is gone: a crash between the two leaves a record, which wins over a mark.
                place.write(redo_name(shard), sealed(record))
                done.append(f"shard {shard}: {len(record.clips)} clips are marked to be done again")
            else:
                place.remove(redo_name(shard))
                done.append(f"shard {shard}: its record is lost; preprocess finds out which clips are missing")
            place.remove(record_name(shard))
            for name in kind.data_files(about, shard):
                _discard(place, name)
    if any(damage.shard is None and damage.file != CATALOG for damage in found.damaged) or lost:
        _rebuild_extent(place, about)
        if not lost:
            done.append("wrote the files that show the shards to other programs")
    _let_wait(place, about)
    sweep(place)
    return found.model_copy(
        update={"damaged": (*lost, *(d for d in found.damaged if d not in lost)), "ok": not done}
    ), done


def _verify_about(place: Place) -> tuple[About | None, list[Damage]]:
    try:
        data = place.read(ABOUT)
        if data is not None:
            return parse_about(data, f"{place}/{ABOUT}"), []
        if place.read("zarr.json") is None and place.read("dataset.h5") is None:
            raise CacheError(f"{place} is not a dtsf cache: it has no {ABOUT}")
        about = read_about(place)
    except CacheError as error:
        if not looks_like_dataset(place):
            raise
        return _about_elsewhere(place), [Damage(shard=None, file=ABOUT, reason=str(error))]
    return about, []


def looks_like_dataset(place: Place) -> bool:
    """Whether a data set is, or once was, there: also one whose own description is damaged."""
    try:
        return is_dataset(place) or any(place.size(name) is not None for name in (ABOUT, EXTENT))
    except CacheError:
        return True


def _about_elsewhere(place: Place) -> About | None:
    """What the data set says of itself, from the copy in Zarr's group document; trusted if that is as it was written."""
    import json

    try:
        group = place.read("zarr.json")
        extent = read_extent(place)
        if group is None or extent is None:
            return None
        known = [files.get("zarr.json") for files in (extent.files, extent.before)]
        if file_record(group) not in known:
            return None
        about = About.model_validate(json.loads(group)["attributes"]["dtsf"])
    except (CacheError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return parse_about(sealed(about), f"{place}/zarr.json")


def _verify_extent(place: Place, about: About) -> list[Damage]:
    try:
        extent = read_extent(place)
    except CacheError as error:
        return [Damage(shard=None, file=EXTENT, reason=str(error))]
    if extent is None:
        return [] if about.layout == 1 else [Damage(shard=None, file=EXTENT, reason="is missing")]
    damaged = []
    beyond = [shard for shard in shard_numbers(place) if shard >= extent.shards]
    if beyond:
        reason = f"shows {extent.shards} shards to other programs, {beyond[-1] + 1} are there"
        damaged.append(Damage(shard=None, file=EXTENT, reason=reason))
    for name, expected in extent.files.items():
        reasons = [_verify_file(place, name, expected, deep=True)]
        if name in extent.before:
            reasons.append(_verify_file(place, name, extent.before[name], deep=True))
        if all(reasons):
            damaged.append(Damage(shard=None, file=name, reason=str(reasons[0])))
    return damaged


def _verify_record(place: Place, about: About, shard: int, name: str) -> tuple[ShardRecord | None, list[Damage]]:
    try:
        data = place.read(name)
        if data is None:
            raise CacheError("it is gone since its folder was listed")
        return parse_record(about, data, shard, f"{place}/{name}"), []
    except CacheError as error:
        return None, [Damage(shard=shard, file=name, reason=str(error))]


def _verify_catalog(place: Place, about: About, records: list[ShardRecord], *, complete: bool) -> list[Damage]:
    """The catalog against itself and, where all ``records`` are there, against them."""
    try:
        document = read_catalog(place, about, records)
    except CacheError as error:
        return [Damage(shard=None, file=CATALOG, reason=str(error))]
    if document is None:
        return [Damage(shard=None, file=CATALOG, reason="is missing")] if records else []
    computed = newest_records(records)
    for entry in document.clips if complete else ():
        if not entry.state and entry.key not in computed:
            reason = f"says that clip {entry.clip.id} has the row {entry.key or '(none)'}, which no record has"
            return [Damage(shard=None, file=CATALOG, reason=reason)]
    return []


def _let_wait(place: Place, about: About) -> None:
    """Say in the catalog which clips have lost their rows, so that it agrees with the records again."""
    records = _readable(place, about)
    document = read_catalog(place, about, records) if place.size(CATALOG) is not None else None
    if document is None:
        return
    computed, marks = newest_records(records), {"state": "waiting", "reason": "found damaged: run dtsf preprocess"}
    clips = (e if e.state or e.key in computed else e.model_copy(update=marks) for e in document.clips)
    write_catalog(place, document.model_copy(update={"clips": tuple(clips)}))


def _readable(place: Place, about: About) -> list[ShardRecord]:
    found = (_verify_record(place, about, shard, record_name(shard))[0] for shard in shard_numbers(place))
    return [record for record in found if record is not None]


def _verify_file(place: Place, name: str, expected: FileRecord, *, deep: bool) -> str:
    """Why a file is not what its record says; empty if it is."""
    try:
        held = place.size(name)
        if held is None:
            return "is missing"
        if held != expected.bytes:
            return f"has {held} bytes instead of {expected.bytes}"
        if not deep:
            return ""
        refuse_unless_fits(held, f"checking {place}/{name}")
        found = xxhash.xxh3_64_hexdigest(place.read(name, held) or b"")
    except CacheError as error:
        return str(error)
    return "" if found == expected.xxh3 else f"has checksum {found} instead of {expected.xxh3} over its {held} bytes"


def _discard(place: Place, name: str) -> None:
    try:
        place.remove(name)
    except CacheError:
        # A link or a folder where a file should be: that is a person's to remove, and the next write will say so.
        return


def _rebuild_extent(place: Place, about: About) -> None:
    try:
        held = read_extent(place)
        shards = held.shards if held else 0
    except CacheError:
        shards = 0
    shards = max([shards, *(n + 1 for n in shard_numbers(place)), *(m.shard + 1 for m in read_marks(place, about))])
    data = place.read(EXTENT)
    if data is not None:
        try:
            read_sealed(data, Extent, EXTENT)
        except CacheError:
            place.remove(EXTENT)
    extend(place, shards)
