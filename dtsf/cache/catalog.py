"""What is true of a data set now: ``catalog.json``. The shards' records say what was computed; stage 2 joins the two.

The catalog is replaced whole by every ``preprocess``: labels, splits, subjects, classes and cameras may change at any time, and
no row is touched for it. Each clip names its row by the key of the bytes it was computed from (:attr:`.records.Source.key`).
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Literal

import xxhash
from pydantic import Field

from dtsf.cache.layout import CATALOG, leaves_folder
from dtsf.cache.records import BadClip, Clip, ClipRecord, Frozen, part_of
from dtsf.cache.seal import dump_with_checksum, read_with_checksum
from dtsf.cache.spec import DatasetInfo
from dtsf.cache.status import Status
from dtsf.cache.store import open_store
from dtsf.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dtsf.cache.documents import Where
    from dtsf.cache.spec import ShardRecord

    Computed = Mapping[str, tuple[int, ClipRecord]]

Absent = Literal[Status.MISSING, Status.UNREACHABLE, Status.WAITING]


class CatalogEntry(Frozen):
    """One clip as the last ``preprocess`` found it, and by which key its row is known."""

    clip: Clip
    key: str = ""
    """Empty while its bytes are not known: then the row is that of the file's place, size and time, if there is one."""
    bytes: int = Field(default=0, ge=0)
    mtime_ns: int = 0
    listing: str = ""
    """As in :class:`.records.Source`, now; the record has them as they were when the row was computed."""
    status: Absent | None = None
    """Status of a clip without a row or record when the catalog was written. A ``waiting`` clip has a row once a shard has."""
    reason: str = ""
    """The same in words."""

    @property
    def file_version(self) -> tuple[str, str, int, int, str]:
        """As :attr:`.records.Source.file_version`."""
        return self.clip.path, part_of(self.clip), self.bytes, self.mtime_ns, self.listing


class CatalogDocument(Frozen):
    """``catalog.json``."""

    info: DatasetInfo
    clips: tuple[CatalogEntry, ...]
    """In the order of their ids."""
    notes: tuple[str, ...] = ()
    """What a person should know of the source: files and folders that could not be read, groups that lack a camera."""
    checksum: str = ""

    def digest(self) -> str:
        """Digest of the annotations and of the bytes they are of: another label, split or row changes it; a moved file does not."""
        annotated = [
            entry.clip.model_dump(mode="json", exclude={"path"}) | {"key": entry.key or entry.clip.path}
            for entry in self.clips
        ]
        text = json.dumps(
            [self.info.class_names, self.info.view_names, annotated], sort_keys=True, separators=(",", ":")
        )
        return xxhash.xxh3_64_hexdigest(text.encode("utf-8", "surrogatepass"))


def read_catalog(where: Where) -> CatalogDocument | None:
    """Read the catalog; None if no ``preprocess`` has written one. Raises CacheError: damaged, or at odds with itself."""
    place = open_store(where)
    data = place.read(CATALOG)
    if data is None:
        return None
    try:
        document = read_with_checksum(data, CatalogDocument, f"{place}/{CATALOG}")
        check_catalog(document, f"{place}/{CATALOG}")
    except CacheError as error:
        raise CacheError(
            f"{error}: run the dtsf preprocess that made it, which writes it anew and decodes nothing again"
        ) from error
    return document


def write_catalog(where: Where, document: CatalogDocument) -> None:
    """Replace the catalog, whole: a reader sees the old one or the new one. The same one is not written again. Raises
    CacheError: it is at odds with itself, or the place refuses.
    """
    place = open_store(where)
    check_catalog(document, f"the catalog of {place}")
    data = dump_with_checksum(document)
    if place.read(CATALOG) != data:
        place.write(CATALOG, data)


def newest_records(
    shards: Iterable[ShardRecord], marks: Iterable[ShardRecord] = ()
) -> dict[str, tuple[int, ClipRecord]]:
    """By key: the newest record and its shard. ``shards``: committed ones. ``marks``: damaged ones that wait to be made again:
    their rows are not there, and neither is an older one of the same key.
    """
    marks = list(marks)
    lost = {mark.shard for mark in marks}
    newest: dict[str, tuple[int, ClipRecord]] = {}
    for shard in sorted([*shards, *marks], key=lambda record: record.shard):
        for record in shard.clips:
            if shard.shard in lost:
                newest.pop(record.key, None)
            else:
                newest[record.key] = (shard.shard, record)
    return newest


def join(
    document: CatalogDocument | None, computed: Computed
) -> tuple[dict[str, tuple[int, ClipRecord]], tuple[BadClip, ...]]:
    """Each listed clip's record and shard, by clip id; and the clips that have no row, with the reason."""
    joined: dict[str, tuple[int, ClipRecord]] = {}
    bad = []
    by_version: dict[tuple[str, str, int, int, str], tuple[int, ClipRecord]] | None = None
    for entry in document.clips if document else ():
        found = computed.get(entry.key) if entry.key else None
        if not entry.key and entry.status in (None, Status.WAITING):
            if by_version is None:
                by_version = {record.source.file_version: (shard, record) for shard, record in computed.values()}
            found = by_version.get(entry.file_version)
        if found is not None:
            joined[entry.clip.id] = found
            if found[1].row is None:
                bad.append(BadClip(clip=entry.clip, status=found[1].status, reason=found[1].reason))
        else:
            reason = entry.reason or "not done yet, or found damaged: run dtsf preprocess"
            bad.append(BadClip(clip=entry.clip, status=entry.status or Status.WAITING, reason=reason))
    return joined, tuple(bad)


def check_catalog(document: CatalogDocument, where: str) -> None:
    """Refuse a catalog that cannot be true: stage 2 counts on every rule that is checked here. Raises CacheError: names what
    contradicts what.
    """
    info = document.info
    for what, names in (("class", info.class_names), ("view", info.view_names)):
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise CacheError(f"{where} names the {what} {twice[0]!r} twice")
    ids: set[str] = set()
    labels: dict[str, tuple[int, str]] = {}
    views: dict[tuple[str, int], str] = {}
    for entry in document.clips:
        clip = entry.clip
        if clip.id in ids:
            raise CacheError(f"{where} has the clip {clip.id} twice")
        ids.add(clip.id)
        if clip.label >= len(info.class_names):
            raise CacheError(
                f"{where}: clip {clip.id} has label {clip.label}, there are {len(info.class_names)} classes"
            )
        if clip.view > len(info.view_names):
            raise CacheError(f"{where}: clip {clip.id} has view {clip.view}, there are {len(info.view_names)}")
        label, first = labels.setdefault(clip.group, (clip.label, clip.id))
        if label != clip.label:
            raise CacheError(f"{where}: group {clip.group} has label {label} by {first} and {clip.label} by {clip.id}")
        other = views.setdefault((clip.group, clip.view), clip.id)
        if other != clip.id:
            raise CacheError(f"{where}: {other} and {clip.id} are both view {clip.view} of group {clip.group}")
        if leaves_folder(clip.path):
            raise CacheError(f"{where}: clip {clip.id} has the path {clip.path!r}, which leaves the data root")
