"""What a person wants to know of a data set of a cache, from its records alone: no value is read."""

from __future__ import annotations

import datetime
from collections import Counter
from typing import TYPE_CHECKING

from dtsf.cache.documents import read_marks
from dtsf.cache.layout import array_shapes, record_name
from dtsf.cache.reader import open_place
from dtsf.cache.records import BadClip, Frozen
from dtsf.cache.spec import CacheSpec
from dtsf.cache.store import LocalStore

if TYPE_CHECKING:
    from dtsf.cache.reader import CachedDataset
    from dtsf.cache.remote import RemoteStore


class ViewLengths(Frozen):
    """By how much the views of a group differ in length: 1 - shortest / longest."""

    groups: int
    """With two views or more whose length is known."""
    median: float
    largest: float


class DatasetPage(Frozen):
    """A data set, for a person and for ``--json``."""

    place: str
    dataset: str
    name: str
    class_names: tuple[str, ...]
    view_names: tuple[str, ...]
    clips: int
    groups: int
    groups_by_views: dict[int, int]
    """Number of usable views -> groups that have so many."""
    views_differ_by: ViewLengths | None
    """None where no group has two views whose length is known."""
    clips_by_class: dict[str, int]
    clips_by_view: dict[str, int]
    verdicts: dict[str, int]
    format: str
    compress: str
    layout: int
    shards: int
    shard_size: int
    bytes: int
    not_listed: int
    """Rows that the catalog no longer names, nor any training uses; ``dtsf cache compact`` gives their room back."""
    not_listed_bytes: int
    last_written: str | None
    """Date of the newest commit record; None on an object store."""
    redo: tuple[int, ...]
    """Shards that were found damaged and wait to be made again."""
    fingerprint: str
    catalog: str
    """Digest of the catalog's annotations, as a run keeps it."""
    notes: tuple[str, ...]
    spec: CacheSpec
    bad: tuple[BadClip, ...]


def _view_lengths(data: CachedDataset) -> ViewLengths | None:
    seconds: dict[str, list[float]] = {}
    for clip in data.clips:
        duration = data.records[clip.id][1].duration
        if duration:
            whole = clip.start is None and clip.end is None
            seconds.setdefault(clip.group, []).append(
                duration if whole else min(clip.end or duration, duration) - (clip.start or 0.0)
            )
    shares = sorted(1 - min(held) / max(held) for held in seconds.values() if len(held) > 1 and max(held) > 0)
    if not shares:
        return None
    return ViewLengths(groups=len(shares), median=shares[len(shares) // 2], largest=shares[-1])


def describe(place: LocalStore | RemoteStore) -> DatasetPage:
    """Put the page of a data set together. Raises CacheError: there is none, or its records are damaged."""
    data = open_place(place)
    info = data.info
    views: dict[str, set[int]] = {}
    for clip in data.clips:
        views.setdefault(clip.group, set()).add(clip.view)
    classes, cameras = Counter(clip.label for clip in data.clips), Counter(clip.view for clip in data.clips)
    used = {(shard, record.row) for shard, record in data.records.values() if record.row is not None}
    spare = sum(shard.rows for shard in data.shards.values()) - len(used)
    last = None
    if isinstance(place, LocalStore) and data.shards:
        newest = max((place.path / record_name(shard)).stat().st_mtime for shard in data.shards)
        last = datetime.datetime.fromtimestamp(newest).astimezone().isoformat(" ", "minutes")
    return DatasetPage(
        place=str(place),
        dataset=info.kind,
        name=info.name,
        class_names=info.class_names,
        view_names=info.view_names,
        clips=len(data.clips),
        groups=len(views),
        groups_by_views=dict(sorted(Counter(len(held) for held in views.values()).items(), reverse=True)),
        views_differ_by=_view_lengths(data),
        clips_by_class={name: classes[k] for k, name in enumerate(info.class_names)},
        clips_by_view={name: cameras[k] for k, name in enumerate(info.view_names, 1)},
        verdicts=data.verdicts,
        format=data.metadata.format,
        compress=data.metadata.compress,
        layout=data.metadata.layout,
        shards=len(data.shards),
        shard_size=data.shard_size,
        bytes=sum(file.bytes for shard in data.shards.values() for file in shard.files.values()),
        not_listed=spare,
        not_listed_bytes=spare * sum(data.row_bytes(array) for array in array_shapes(data.spec)),
        last_written=last,
        redo=tuple(mark.shard for mark in read_marks(place, data.metadata)),
        fingerprint=data.spec.fingerprint(),
        catalog=data.catalog_hash,
        notes=data.catalog.notes if data.catalog else (),
        spec=data.spec,
        bad=data.bad,
    )
