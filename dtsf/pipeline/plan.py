"""Plan a run of stage 1: find the clips to decode, and assign them to shards.

Clips are matched with the rows of the cache by the content of their files, not by their annotations.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dtsf.cache.catalog import Shards, read_catalog, read_shards
from dtsf.cache.documents import DatasetHandle
from dtsf.cache.schema import CatalogDocument, CatalogEntry, Clip, ClipRecord, DatasetInfo, ShardRecord
from dtsf.cache.status import Status
from dtsf.errors import CacheError, SourceError
from dtsf.pipeline.datasets.catalog import SourceCatalog
from dtsf.pipeline.source import FileStat, classify_error, content_hash, file_stat
from dtsf.settings import Frozen


class Changes(Frozen):
    """Number of clips by change since the last run. Each clip of the source counts once in the first five. Changed clips have
    other content at the same path. Of several clips to decode with the same content, one counts.
    """

    new: int = 0
    changed: int = 0
    relabelled: int = 0
    moved: int = 0
    unchanged: int = 0
    gone: int = 0
    unusable: int = 0
    to_decode: int = 0


@dataclass(frozen=True)
class Plan:
    """Clips to decode by shard number, and the new catalog (files that are not hashed have no key). ``done``: clips with a result
    of an earlier run. ``bad``: clips known to be unusable; their files are missing, or an earlier run could not use them.
    """

    shards: dict[int, tuple[Clip, ...]]
    document: CatalogDocument
    changes: Changes
    done: int
    bad: int


def make_plan(
    catalog: SourceCatalog,
    info: DatasetInfo,
    dataset: DatasetHandle | None,
    shard_size: int,
    n_workers: int,
    *,
    retry_bad: bool = False,
) -> Plan:
    """Compare the source with the cache (None: an empty one) and plan the missing work. ``retry_bad``: also unusable clips.

    The clips of a shard follow from the catalog, the shard size and the number of workers, not from the missing clips. So a killed
    run that is repeated leaves the same bytes as an undisturbed run. Missing clips of a committed shard go to new shards behind
    all others. A damaged shard is made again under its own number. Raises SourceError: the source does not respond.
    """
    cached = read_shards(dataset) if dataset else Shards()
    computed, both = cached.by_key, (*cached.records, *cached.damaged)
    before: CatalogDocument | None = None
    # A damaged catalog is replaced by this run, and no row depends on it.
    with contextlib.suppress(CacheError):
        before = read_catalog(dataset) if dataset else None
    entries = _identify_clips(catalog, both, before)
    missing: dict[str, Clip] = {}
    by_key: dict[str, Clip] = {}
    planned: set[object] = set()
    done = bad = 0
    for entry in entries:
        found = computed.get(entry.key) if entry.key else None
        if entry.status:
            bad += 1
        elif found is not None and (found[1].status.usable or not retry_bad):
            done, bad = done + 1, bad + (found[1].row is None)
        elif (entry.key or entry.file_version) not in planned:
            planned.add(entry.key or entry.file_version)
            missing[entry.clip.id] = by_key[entry.key] = entry.clip
    waiting = {"status": Status.WAITING, "reason": "not done yet: run the same dtsf preprocess again"}
    clips = (e if e.status or e.key in computed else e.model_copy(update=waiting) for e in entries)
    document = CatalogDocument(info=info, clips=tuple(clips), notes=catalog.notes)
    changes = compare_catalogs(before, document).model_copy(update={"unusable": bad, "to_decode": len(missing)})
    shards: dict[int, tuple[Clip, ...]] = {}
    for shard in cached.damaged:
        # Made again only if all of its clips are missing ones of the source.
        members = tuple(by_key[record.key] for record in shard.clips if record.key in by_key)
        if members and len(members) == len(shard.clips) and all(clip.id in missing for clip in members):
            shards[shard.shard] = members
            for clip in members:
                missing.pop(clip.id, None)
    taken = {shard.shard for shard in both}
    late: list[Clip] = []
    usual = _divide(catalog.clips, shard_size, n_workers)
    for number, members in enumerate(usual):
        wanted = tuple(clip for clip in members if clip.id in missing)
        if number in taken:
            late.extend(wanted)
        elif wanted:
            shards[number] = wanted
    behind = max(len(usual), max(taken, default=-1) + 1)
    shards |= dict(enumerate(_divide(late, shard_size, n_workers), behind))
    return Plan(shards, document, changes, done, bad)


def finish_catalog(
    document: CatalogDocument, root: Path, computed: Mapping[str, tuple[int, ClipRecord]]
) -> CatalogDocument:
    """Return the catalog after the run: waiting clips get the key of their row, or the reason why they have no row."""
    clips, by_version = list(document.clips), {}
    if any(entry.status is Status.WAITING for entry in clips):
        by_version = {record.source.file_version: record for _, record in computed.values()}
    for k, entry in enumerate(clips):
        if entry.status is Status.WAITING:
            record = computed[entry.key][1] if entry.key in computed else by_version.get(entry.file_version)
            found = {"key": record.key, "status": None, "reason": ""} if record else _why_not_done(entry, root)
            clips[k] = entry.model_copy(update=found)
    return document.model_copy(update={"clips": tuple(clips)})


def compare_catalogs(before: CatalogDocument | None, now: CatalogDocument) -> Changes:
    """Count the clips of each kind of change: by path first, then by content. Classes and views are compared by name."""

    def annotations(entry: CatalogEntry, info: DatasetInfo) -> tuple[object, ...]:
        c = entry.clip
        label, view = info.class_names[c.label], info.view_names[c.view - 1]
        return label, c.raw_label, c.group, view, c.subject, c.setup, c.split, c.background, c.offset

    counts = dict.fromkeys(("new", "changed", "relabelled", "moved", "unchanged"), 0)
    # By path and part of the file.
    unmatched: dict[tuple[str, str], list[tuple[CatalogEntry, tuple[object, ...]]]] = {}
    for pair in [(entry, annotations(entry, before.info)) for entry in before.clips] if before else []:
        unmatched.setdefault(pair[0].file_version[:2], []).append(pair)
    rest = list(now.clips)
    # Several entries may have the same path: first match those with the same annotations.
    for exact in (True, False):
        entries, rest = rest, []
        for entry in entries:
            version = entry.file_version
            candidates = unmatched.get(version[:2], [])
            wanted = annotations(entry, now.info)
            same = [old for old in candidates if old[1] == wanted]
            if not candidates or (exact and not same):
                rest.append(entry)
                continue
            match = (same or candidates)[0]
            candidates.remove(match)
            old = match[0]
            same_content = old.file_version == version or (old.key != "" and old.key == entry.key)
            counts["changed" if not same_content else "unchanged" if same else "relabelled"] += 1
    left = Counter(old.key for olds in unmatched.values() for old, _ in olds)
    gone = left.total()
    for entry in rest:
        moved = bool(entry.key) and left[entry.key] > 0
        left[entry.key] -= moved
        gone -= moved
        counts["moved" if moved else "new"] += 1
    return Changes(**counts, gone=gone)


def _identify_clips(
    catalog: SourceCatalog, shards: Sequence[ShardRecord], before: CatalogDocument | None
) -> list[CatalogEntry]:
    """Return an entry for each clip of the source. Only files with the size of another one are hashed: they may be equal."""
    sources = [record.source for shard in shards for record in shard.clips]
    known = {(s.path, FileStat(s.bytes, s.mtime_ns, s.listing)): s.content_hash for s in sources}
    sizes = Counter(source.bytes for source in sources)
    for entry in before.clips if before else ():
        if entry.key:
            content = entry.key.removesuffix(entry.clip.part)
            known[entry.clip.path, FileStat(entry.bytes, entry.mtime_ns, entry.listing)] = content
    stats: dict[str, FileStat] = {}
    failures: dict[str, tuple[Status, str]] = {}
    for path in dict.fromkeys(clip.path for clip in catalog.clips):
        try:
            # Text: Path objects cost seconds for ten thousand files.
            stats[path] = file_stat(f"{catalog.root}/{path}")
        except OSError as error:
            failures[path] = classify_error(catalog.root / path, error)
    if failures and not stats:
        first, (_, reason) = next(iter(failures.items()))
        raise SourceError(
            f"none of the {len(failures)} {catalog.kind} files under {catalog.root} can be read ({first}: {reason}): "
            "check the disk or share"
        )
    hashes = {path: known[path, stat] for path, stat in stats.items() if (path, stat) in known}
    unknown = {path: stat for path, stat in stats.items() if path not in hashes}
    sizes.update(stat.bytes for stat in unknown.values())
    for path, stat in unknown.items():
        if sizes[stat.bytes] > 1:
            try:
                hashes[path] = content_hash(catalog.root / path, stat)
            except OSError as error:
                failures[path] = classify_error(catalog.root / path, error)
    entries = []
    for clip in catalog.clips:
        if clip.path in failures:
            status, reason = failures[clip.path]
            entries.append(CatalogEntry.model_validate({"clip": clip, "status": status, "reason": reason}))
        else:
            key = hashes[clip.path] + clip.part if clip.path in hashes else ""
            entries.append(CatalogEntry(clip=clip, key=key, **vars(stats[clip.path])))
    return entries


def _why_not_done(entry: CatalogEntry, root: Path) -> dict[str, object]:
    path = root / entry.clip.path
    try:
        stat = file_stat(path)
        if not stat.listing:
            with path.open("rb"):
                pass
    except OSError as error:
        try:
            status, reason = classify_error(path, error)
        except SourceError as lost:
            status, reason = Status.UNREACHABLE, str(lost)
        return {"status": status, "reason": reason}
    changed = stat != FileStat(entry.bytes, entry.mtime_ns, entry.listing)
    why = "it changed during the run" if changed else "it could not be read during the run"
    return {"status": Status.WAITING, "reason": f"{why}: run the same command again"}


def _divide(clips: Sequence[Clip], shard_size: int, n_workers: int) -> list[tuple[Clip, ...]]:
    """Divide clips into even shards, the same number for each worker, so that no worker waits for another one."""
    n = min(math.ceil(math.ceil(len(clips) / shard_size) / n_workers) * n_workers, len(clips))
    return [tuple(clips[k * len(clips) // n : (k + 1) * len(clips) // n]) for k in range(n)]
