"""Stage 1: plan shards, have them run, resume what is missing, say what could not be used."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dtsf.cache.catalog import join, newest_records, write_catalog
from dtsf.cache.documents import is_dataset, read_records
from dtsf.cache.lock import write_lock
from dtsf.cache.records import BadClip, Frozen
from dtsf.cache.spec import CacheSpec, DatasetInfo
from dtsf.cache.store import LocalStore, open_store
from dtsf.cache.writer import create_or_open, extend, sweep
from dtsf.errors import BadClipsError, CacheError
from dtsf.pipeline.align import align_groups
from dtsf.pipeline.changes import Changes
from dtsf.pipeline.encoders.choose import encoder_identity, prepare_encoder
from dtsf.pipeline.gpu import count_cards, usual_workers
from dtsf.pipeline.plan import Plan, plan, settle
from dtsf.pipeline.scheduler import run_tasks
from dtsf.pipeline.video.decode import decoder_name
from dtsf.pipeline.worker import ShardTask

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from dtsf.cache.records import ClipRecord
    from dtsf.cache.remote import RemoteStore
    from dtsf.cache.spec import ShardRecord
    from dtsf.pipeline.catalog import Catalog
    from dtsf.pipeline.settings import PreprocessSettings
    from dtsf.pipeline.video.crop import Crop


@dataclass(frozen=True)
class Progress:
    """How far stage 1 is."""

    done: int
    total: int
    bad: int


class PreprocessResult(Frozen):
    """Result of stage 1. ``clips`` counts all of the catalog, done now or before."""

    dataset: str
    clips: int
    groups: int
    verdicts: dict[str, int]
    seconds: float
    clips_per_s: float
    already_done: int
    cache: str
    changes: Changes
    """Against the last run."""
    notes: tuple[str, ...]
    """What a person should know of the source."""
    bad: tuple[BadClip, ...]
    dry_run: bool = False
    """A dry run: nothing was done."""


def make_spec(settings: PreprocessSettings) -> CacheSpec:
    """The identity of a cache made with these settings on this machine. Raises ConfigError: an encoder that there is none of,
    or a size and grid that do not fit it.
    """
    identity = encoder_identity(settings.encoder, settings.size, settings.grid, settings.encoder_weights)
    # Of pixels the network itself has to learn where people stand.
    usual: Crop = "centre" if identity.name == "pixels" else "motion"
    return CacheSpec(
        decoder=decoder_name(settings.decoder),
        frames=settings.frames,
        size=settings.size,
        crop=settings.crop or usual,
        align=settings.align,
        grid=identity.grid,
        encoder=identity.name,
        weights_hash=identity.weights_hash,
        channels=identity.channels,
        embedding_dtype=identity.dtype,
    )


def preprocess(
    catalog: Catalog,
    cache: Path | str,
    settings: PreprocessSettings,
    *,
    on_progress: Callable[[Progress], None] | None = None,
) -> PreprocessResult:
    """Bring every clip of a catalog into the cache, once.

    A clip is done if there is a record of its bytes, whatever its annotations and wherever they lie; done clips are never
    touched again, bad ones included until their file changes or ``retry_bad`` is asked for. The clips' annotations
    (``catalog.json``) is replaced at the beginning, and again when all are done.

    ``on_progress``: called after each clip; with several processes, for those of a second together. Raises BadClipsError: more
    clips than ``max_bad`` are unusable; everything else is in the cache. CacheError, FingerprintError: The cache cannot take
    these clips.
    """
    name = settings.name or catalog.dataset
    spec = make_spec(settings)
    place = open_store(cache).absolute()
    folder = place.below(name)
    begun = time.monotonic()
    info = DatasetInfo(
        dataset=catalog.dataset, name=name, class_names=catalog.class_names, view_names=catalog.view_names
    )
    n_workers = settings.workers or usual_workers(settings.encoder)
    if settings.align == "group":
        held = read_records(folder) if is_dataset(folder) else []
        catalog = align_groups(catalog, [record for shard in held for record in shard.clips], settings.deadline)
    if settings.dry_run:
        return _foreseen(catalog, info, folder, spec, settings, n_workers)
    with write_lock(folder):
        if settings.overwrite and not folder.is_empty():
            if not is_dataset(folder):
                raise CacheError(f"{folder} is not a dtsf cache; --overwrite does not remove it")
            folder.clear()
        about = create_or_open(
            folder, spec, info, settings.shard_size, format=settings.format, compress=settings.compress
        )
        sweep(folder)
        planned = plan(catalog, info, folder, about.shard_size, n_workers, retry_bad=settings.retry_bad)
        write_catalog(folder, planned.document)
        parts = planned.parts
        tasks = [
            ShardTask(str(folder), str(catalog.root.absolute()), shard, clips, spec, settings)
            for shard, clips in parts.items()
        ]
        if parts:
            extend(folder, max(parts) + 1)
            if settings.scheduler is None:
                prepare_encoder(settings.encoder, spec.size, spec.grid, settings.encoder_weights)
        state = {"done": planned.done, "bad": planned.bad}

        def on_clips(done: int, bad: int) -> None:
            state["done"] += done
            state["bad"] += bad
            if on_progress is not None:
                on_progress(Progress(state["done"], len(catalog.clips), state["bad"]))

        run_tasks(tasks, n_workers, settings.scheduler, on_clips, cards=count_cards(settings.encoder))
        if parts and settings.scheduler is None and isinstance(place, LocalStore):
            # A worker that was killed while it wrote left a temporary file, and another one did its shard. A cluster's may
            # be taken for lost and still write: theirs wait for the next run.
            sweep(folder)
        computed = newest_records(read_records(folder))
        document = settle(planned.document, catalog.root, computed)
        write_catalog(folder, document)
        result = _result(catalog, folder, planned, *join(document, computed), begun, dry_run=False)
    if len(result.bad) > settings.max_bad * result.clips:
        raise _too_many_bad(result, folder, settings.max_bad)
    return result


def _too_many_bad(result: PreprocessResult, folder: LocalStore | RemoteStore, max_bad: float) -> BadClipsError:
    listed = [f"{one.clip.path}: {one.verdict}: {one.reason}" for one in result.bad[:20]]
    more = [f"... and {len(result.bad) - 20} more"] if len(result.bad) > 20 else []
    return BadClipsError(
        f"{len(result.bad)} of {result.clips} clips cannot be used, more than --max-bad {max_bad:.0%} allows; the "
        f"other {result.clips - len(result.bad)} are in {folder}",
        result,
        [*listed, *more],
    )


def _foreseen(
    catalog: Catalog,
    info: DatasetInfo,
    folder: LocalStore | RemoteStore,
    spec: CacheSpec,
    settings: PreprocessSettings,
    n_workers: int,
) -> PreprocessResult:
    """What a run would find and do; nothing is written."""
    begun = time.monotonic()
    records: list[ShardRecord] = []
    size = settings.shard_size
    if is_dataset(folder) and not settings.overwrite:
        # It refuses other settings, as the run would.
        size = create_or_open(folder, spec, info, size, format=settings.format, compress=settings.compress).shard_size
        records = read_records(folder)
    planned = plan(catalog, info, folder, size, n_workers, retry_bad=settings.retry_bad, anew=settings.overwrite)
    joined, bad = join(planned.document, newest_records(records))
    bad = tuple(one for one in bad if one.verdict != "waiting")
    return _result(catalog, folder, planned, joined, bad, begun, dry_run=True)


def _result(
    catalog: Catalog,
    folder: LocalStore | RemoteStore,
    planned: Plan,
    joined: Mapping[str, tuple[int, ClipRecord]],
    bad: tuple[BadClip, ...],
    begun: float,
    *,
    dry_run: bool,
) -> PreprocessResult:
    verdicts = [record.verdict.value for _, record in joined.values() if record.row is not None]
    seconds = time.monotonic() - begun
    return PreprocessResult(
        dataset=folder.name,
        clips=len(catalog.clips),
        groups=len(catalog.groups),
        verdicts=dict(sorted(Counter([*verdicts, *(one.verdict for one in bad)]).items())),
        seconds=seconds,
        clips_per_s=0.0 if dry_run else (len(catalog.clips) - planned.done) / seconds,
        already_done=planned.done,
        cache=str(folder).removesuffix(f"/{folder.name}"),
        changes=planned.changes if dry_run else planned.changes.model_copy(update={"unusable": len(bad)}),
        notes=catalog.notes,
        bad=bad,
        dry_run=dry_run,
    )
