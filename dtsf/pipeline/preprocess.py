"""Stage 1: decode and embed the clips of a dataset into the cache. Skips clips that are done, and lists unusable ones."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dtsf.cache.catalog import Shards, check_catalog, drop_tombstones, match_rows, read_shards, write_catalog
from dtsf.cache.compare import about_ends, late_end, remarks
from dtsf.cache.documents import DatasetHandle, is_dataset, open_handle, read_records, shard_numbers
from dtsf.cache.schema import BadClip, CacheSpec, ClipRecord, DatasetInfo
from dtsf.cache.store import Store, open_store
from dtsf.cache.writer import create_or_open, extend, sweep
from dtsf.errors import BadClipsError, CacheError, DtsfError
from dtsf.names import counted
from dtsf.pipeline.datasets.catalog import SourceCatalog, set_regions, view_offsets, view_regions
from dtsf.pipeline.encoders.choose import encoder_identity, prepare_encoder
from dtsf.pipeline.plan import Changes, Plan, finish_catalog, make_plan
from dtsf.pipeline.rows import Extent, align_spans, can_align, read_extents
from dtsf.pipeline.scheduler import check_scheduler, run_tasks, start_early
from dtsf.pipeline.settings import PreprocessSettings
from dtsf.pipeline.source import FileStat, file_stat
from dtsf.pipeline.video.clip import Span
from dtsf.pipeline.video.crop import Crop
from dtsf.pipeline.video.decode import decoder_name
from dtsf.pipeline.video.decoder_process import Decoder, DecodeRequest, DecodeSettings
from dtsf.pipeline.worker import ShardTask, visible_gpus
from dtsf.settings import Frozen


@dataclass(frozen=True)
class Progress:
    """Numbers of clips while stage 1 runs."""

    done: int
    total: int
    bad: int


class PreprocessResult(Frozen):
    """Result of stage 1. ``dataset``: its name in the cache. ``clips``: all clips of the source, also those of earlier runs.
    ``notes``: about the source, for example skipped files, copies and names that look the same. ``bad``: clips without a row.
    """

    dataset: str
    clips: int
    groups: int
    verdicts: dict[str, int]
    seconds: float
    clips_per_s: float
    already_done: int
    cache: str
    changes: Changes
    notes: tuple[str, ...]
    bad: tuple[BadClip, ...]
    dry_run: bool = False


def make_spec(settings: PreprocessSettings) -> CacheSpec:
    """Return the specification of a cache made with these settings on this machine. Raises ConfigError: an unknown encoder, or
    a size and grid that do not fit it.
    """
    identity = encoder_identity(settings.encoder, settings.size, settings.grid, settings.encoder_weights)
    # With pixels as input, the network itself learns the position of people.
    default_crop: Crop = "centre" if identity.name == "pixels" else "motion"
    return CacheSpec(
        decoder=decoder_name(settings.decoder),
        crop=settings.crop or default_crop,
        **settings.model_dump(include={"frames", "size", "align"}),
        **{name: getattr(identity, name) for name in ("grid", "weights_hash", "channels")},
        encoder=identity.name,
        embedding_dtype=identity.dtype,
    )


def preprocess(
    catalog: SourceCatalog,
    cache: Path | str,
    settings: PreprocessSettings,
    *,
    on_progress: Callable[[Progress], None] | None = None,
) -> PreprocessResult:
    """Add every clip of a catalog to the cache, once: a clip is done if the cache has a record of its bytes. The catalog in the
    cache is replaced before the first shard, and again after the last.

    ``on_progress``: called after each clip; with several processes, about once a second. Raises BadClipsError: more clips than
    ``max_bad`` are unusable; all others are in the cache. CacheError, FingerprintError: the cache does not accept these clips.
    """
    spec = make_spec(settings)
    name = settings.name or catalog.kind
    folder = open_store(cache).absolute().below(name)
    started = time.monotonic()
    catalog = set_regions(catalog, settings.region, settings.ignore, spec.crop)
    names = {"class_names": catalog.class_names, "view_names": catalog.view_names}
    of_views = {"view_regions": view_regions(catalog), "view_offsets": view_offsets(catalog)}
    info = DatasetInfo(kind=catalog.kind, name=name, **of_views, **names)
    gpus = visible_gpus(settings.encoder)
    n_workers = settings.workers or len(gpus) or os.cpu_count() or 1
    if settings.align == "group":
        shards = read_records(open_handle(folder)) if is_dataset(folder) else []
        catalog = align_groups(catalog, [record for shard in shards for record in shard.clips], settings.deadline)

    elif n_shifted := sum(clip.offset != 0 for clip in catalog.clips):
        note = (
            f"{counted(n_shifted, 'clip has', 'clips have')} a column offset, which has no effect without --align group"
        )
        catalog = catalog.model_copy(update={"notes": (*catalog.notes, note)})

    def open_dataset() -> DatasetHandle:
        return create_or_open(
            folder, spec, info, settings.shard_size, format=settings.format, compress=settings.compress
        )

    def make_result(plan: Plan, computed: Mapping[str, tuple[int, ClipRecord]]) -> PreprocessResult:
        matched, bad = match_rows(plan.document, computed)
        if settings.dry_run:
            bad = tuple(one for one in bad if one.status != "waiting")
        statuses = [record.status.value for _, record in matched.values() if record.row is not None]
        seconds = time.monotonic() - started
        return PreprocessResult(
            dataset=name,
            clips=len(catalog.clips),
            groups=len(catalog.groups),
            verdicts=dict(sorted(Counter([*statuses, *(one.status for one in bad)]).items())),
            seconds=seconds,
            clips_per_s=0.0 if settings.dry_run else plan.changes.to_decode / seconds,
            already_done=plan.done,
            cache=str(folder).removesuffix(f"/{name}"),
            changes=plan.changes if settings.dry_run else plan.changes.model_copy(update={"unusable": len(bad)}),
            notes=(*catalog.notes, *remarks(plan.document, matched)),
            bad=bad,
            dry_run=settings.dry_run,
        )

    if settings.dry_run:
        # Other settings raise the same error as in a run.
        dataset = open_dataset() if is_dataset(folder) and not settings.overwrite else None
        shard_size = dataset.shard_size if dataset else settings.shard_size
        plan = make_plan(catalog, info, dataset, shard_size, n_workers, retry_bad=settings.retry_bad)
        return make_result(plan, (read_shards(dataset) if dataset else Shards()).by_key)
    with folder.write_lock(), _removed_if_empty(folder):
        exists = not folder.is_empty()
        if exists and settings.overwrite and not is_dataset(folder):
            raise CacheError(f"{folder} is not a dtsf cache; --overwrite does not remove it")
        # The source is read, compared and checked before anything is written or removed.
        before = open_dataset() if exists and not settings.overwrite else None
        shard_size = before.shard_size if before else settings.shard_size
        plan = make_plan(catalog, info, before, shard_size, n_workers, retry_bad=settings.retry_bad)
        check_catalog(plan.document, f"{catalog.kind} at {catalog.root}")
        if plan.shards:
            if settings.scheduler is None:
                start_early([len(clips) for clips in plan.shards.values()], n_workers)
                prepare_encoder(settings.encoder, spec.size, spec.grid, settings.encoder_weights)
            else:
                check_scheduler(settings.scheduler)
        if exists and settings.overwrite:
            folder.clear()
        dataset = open_dataset()
        sweep(dataset)
        write_catalog(dataset, plan.document)
        root = str(catalog.root.absolute())
        tasks = [ShardTask(dataset, root, shard, clips, settings) for shard, clips in plan.shards.items()]
        if tasks:
            extend(dataset, max(plan.shards) + 1)
        done, bad_count = len(catalog.clips) - plan.changes.to_decode, plan.bad

        def on_clips(more_done: int, more_bad: int) -> None:
            nonlocal done, bad_count
            done, bad_count = done + more_done, bad_count + more_bad
            if on_progress is not None:
                on_progress(Progress(done, len(catalog.clips), bad_count))

        run_tasks(tasks, n_workers, settings.scheduler, on_clips, gpus=gpus)
        if tasks and settings.scheduler is None and folder.exclusive:
            # A worker that was killed during a write leaves a temporary file. On a cluster such a worker may still be
            # alive and writing, so its files wait for the next run.
            sweep(dataset)
        computed = read_shards(dataset).by_key
        plan = replace(plan, document=finish_catalog(plan.document, catalog.root, computed))
        write_catalog(dataset, plan.document)
        drop_tombstones(dataset, plan.document)
        result = make_result(plan, computed)
    if len(result.bad) > settings.max_bad * result.clips:
        lines = [f"{one.clip.place}: {one.status}: {one.reason}" for one in result.bad[:20]]
        lines += [f"... and {len(result.bad) - 20} more"] if len(result.bad) > 20 else []
        message = (
            f"{len(result.bad)} of {result.clips} clips cannot be used, more than --max-bad {settings.max_bad:.0%} allows; "
            f"{counted(result.clips - len(result.bad), 'clip is', 'clips are')} in {folder}"
        )
        raise BadClipsError(message, result, lines)
    return result


@contextlib.contextmanager
def _removed_if_empty(folder: Store) -> Iterator[None]:
    """Remove the dataset that an unsuccessful run made, if it has no shard: ``train`` would find an empty dataset."""
    exists = not folder.is_empty()
    try:
        yield
    except DtsfError:
        # Without a lock (object store) another run may be writing its first shard.
        if not exists and folder.exclusive and is_dataset(folder) and not shard_numbers(open_handle(folder)):
            folder.clear()
        raise


def align_groups(catalog: SourceCatalog, records: Iterable[ClipRecord], deadline: float) -> SourceCatalog:
    """Return the catalog with the time common to all views of a group as ``start`` and ``end`` of its clips.

    Clips in unreadable files and clips given in frames do not change, and do not limit the other views. Views without a common time
    start at the end of their file, so that they are listed as unreadable.
    ``records``: results of earlier runs; unchanged files in them are not opened. ``deadline``: seconds to read one file.
    """
    groups = [clips for clips in catalog.groups.values() if len(clips) > 1]
    known = {
        (s.path, s.fps, FileStat(s.bytes, s.mtime_ns, s.listing)): (record.begin, record.begin + record.duration)
        for record in records
        if record.duration and (s := record.source)
    }
    # By path and frame rate, which decides the length of a folder.
    extents: dict[tuple[str, float | None], Extent] = {}
    unknown: dict[tuple[str, float | None], DecodeRequest] = {}
    for file, path in {(c.path, c.fps): catalog.root / c.path for clips in groups for c in clips}.items():
        with contextlib.suppress(OSError):
            extent = known.get((*file, file_stat(path)))
            if extent:
                extents[file] = extent
            else:
                unknown[file] = DecodeRequest(path, Span(fps=file[1]))
    if unknown:
        with Decoder(DecodeSettings(1, 32, deadline=deadline)) as decoder:
            read = zip(unknown, read_extents(decoder, list(unknown.values())), strict=True)
            extents |= {file: item for file, item in read if isinstance(item, tuple)}
    parts: dict[str, dict[str, float | None]] = {}
    n_apart = n_alone = 0
    late: list[str] = []
    for clips in groups:
        spans = [Span(c.start, c.end, c.first, c.last) for c in clips]
        aligned = align_spans(spans, [c.offset for c in clips], [extents.get((c.path, c.fps)) for c in clips])
        n_apart += aligned is None
        n_alone += sum(
            not can_align(span) or (c.path, c.fps) not in extents for c, span in zip(clips, spans, strict=True)
        )
        for c, span in zip(clips, aligned or spans, strict=True):
            if extent := extents.get((c.path, c.fps)):
                late.append(late_end(c, extent[1]))
            if aligned is not None:
                parts[c.id] = {"start": span.start, "end": span.end}
            elif can_align(span) and (c.path, c.fps) in extents:
                stop = extents[c.path, c.fps][1]
                parts[c.id] = {"start": stop, "end": stop + 1.0}
    notes = [*catalog.notes, *about_ends([text for text in late if text])]
    if n_apart:
        notes.append(
            f"{counted(n_apart, 'performance has', 'performances have')} views without a common time: not used with --align group"
        )
    if n_alone:
        notes.append(
            f"{n_alone} clips are not aligned by --align group: they are given in frames, are frame folders without a column fps, "
            "or cannot be read"
        )
    return catalog.model_copy(
        update={
            "clips": tuple(clip.model_copy(update=parts.get(clip.id, {})) for clip in catalog.clips),
            "notes": tuple(notes),
        }
    )
