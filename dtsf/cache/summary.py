"""Summary of a dataset, from its documents only; no array is read."""

from __future__ import annotations

import datetime
from collections import Counter
from typing import TYPE_CHECKING

from dtsf.cache.documents import record_name
from dtsf.cache.formats import array_shapes
from dtsf.cache.reader import open_cached
from dtsf.cache.schema import BadClip, CacheSpec
from dtsf.settings import Frozen

if TYPE_CHECKING:
    from pathlib import Path

    from dtsf.cache.reader import CachedDataset
    from dtsf.cache.store import Store


class ViewLengths(Frozen):
    """Difference in length between the views of a group, 1 - shortest / longest, over groups with known lengths."""

    groups: int
    median: float
    largest: float


class DatasetSummary(Frozen):
    """Output of ``dtsf cache info``. The fields are the keys of ``--json``."""

    place: str
    """Folder or URL."""
    dataset: str
    """Kind: ``nucla``, ``ntu``, ``casia`` or ``manifest``."""
    name: str
    class_names: tuple[str, ...]
    view_names: tuple[str, ...]
    clips: int
    groups: int
    groups_by_views: dict[int, int]
    """Number of groups by number of usable views."""
    views_differ_by: ViewLengths | None
    clips_by_class: dict[str, int]
    clips_by_view: dict[str, int]
    verdicts: dict[str, int]
    """Number of clips by status."""
    format: str
    compress: str
    layout: int
    shards: int
    shard_size: int
    bytes: int
    not_listed: int
    """Rows that the catalog does not name. ``dtsf cache compact`` removes them."""
    not_listed_bytes: int
    last_written: str | None
    """Date of the newest commit record. None on an object store."""
    redo: tuple[int, ...]
    """Damaged shards that the next ``preprocess`` makes again."""
    fingerprint: str
    catalog: str
    """Content hash of the catalog, which a run stores."""
    notes: tuple[str, ...]
    spec: CacheSpec
    bad: tuple[BadClip, ...]


def summarise(path: str | Path | Store) -> DatasetSummary:
    """Return the summary of a dataset. Raises CacheError: not a dataset, or damaged documents."""
    data = open_cached(path)
    info, shards = data.info, data.shards.values()
    views = Counter(clip.group for clip in data.clips)
    by_class, by_view = Counter(clip.label for clip in data.clips), Counter(clip.view for clip in data.clips)
    used = {(shard, record.row) for shard, record in data.records.values() if record.row is not None}
    unused = sum(shard.rows for shard in shards) - len(used)
    newest = max((data.store.modified(record_name(shard)) or 0.0 for shard in data.shards), default=0.0)
    return DatasetSummary(
        place=str(data.store),
        dataset=info.kind,
        **info.model_dump(exclude={"kind"}),
        **data.metadata.model_dump(include={"format", "compress", "layout", "shard_size", "fingerprint"}),
        clips=len(data.clips),
        groups=len(views),
        groups_by_views=dict(sorted(Counter(views.values()).items(), reverse=True)),
        views_differ_by=_view_lengths(data),
        clips_by_class={name: by_class[k] for k, name in enumerate(info.class_names)},
        clips_by_view={name: by_view[k] for k, name in enumerate(info.view_names, 1)},
        verdicts=data.verdicts,
        shards=len(shards),
        bytes=sum(file.bytes for shard in shards for file in shard.files.values()),
        not_listed=unused,
        not_listed_bytes=unused * sum(data.row_bytes(array) for array in array_shapes(data.spec)),
        last_written=datetime.datetime.fromtimestamp(newest).astimezone().isoformat(" ", "minutes") if newest else None,
        redo=data.damaged,
        catalog=data.catalog_hash,
        notes=data.catalog.notes if data.catalog else (),
        spec=data.spec,
        bad=data.bad,
    )


def _view_lengths(data: CachedDataset) -> ViewLengths | None:
    seconds: dict[str, list[float]] = {}
    for clip in data.clips:
        duration = data.records[clip.id][1].duration
        if duration:
            length = min(clip.end or duration, duration) - (clip.start or 0.0)
            seconds.setdefault(clip.group, []).append(length)
    known = [lengths for lengths in seconds.values() if len(lengths) > 1 and max(lengths) > 0]
    shares = sorted(1 - min(lengths) / max(lengths) for lengths in known)
    if not shares:
        return None
    return ViewLengths(groups=len(shares), median=shares[len(shares) // 2], largest=shares[-1])
