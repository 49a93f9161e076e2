"""Stage 1: plan shards, run them here or on dask, resume what is missing, say what could not be used."""

from __future__ import annotations

import fcntl
import math
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dtsf.cache.documents import is_dataset, read_about, read_marks, read_records
from dtsf.cache.place import LocalFolder, as_place
from dtsf.cache.reader import newest_records, open_place
from dtsf.cache.records import Clip, ClipRecord, Frozen
from dtsf.cache.spec import CacheSpec, DatasetInfo
from dtsf.cache.store import create_or_open, extend, sweep
from dtsf.errors import BadClipsError, CacheError, ConfigError, DataError
from dtsf.pipeline.encoders import encoder_identity, load_encoder
from dtsf.pipeline.video import decoder_name
from dtsf.pipeline.worker import ShardTask, run_shard, source_stat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from dtsf.cache.documents import Where
    from dtsf.cache.remote import RemoteFolder
    from dtsf.pipeline.catalog import Catalog

__all__ = ["PreprocessResult", "Progress", "make_spec", "plan", "preprocess"]

TOPIC = "dtsf-clip"


@dataclass(frozen=True)
class Progress:
    """How far stage 1 is."""

    done: int
    total: int
    bad: int


class PreprocessResult(Frozen):
    """What stage 1 came to. ``clips`` counts all of the catalog, done now or before."""

    dataset: str
    clips: int
    groups: int
    verdicts: dict[str, int]
    seconds: float
    clips_per_s: float
    already_done: int
    cache: str
    bad: tuple[ClipRecord, ...]


def make_spec(*, encoder: str, frames: int, size: int, grid: int) -> CacheSpec:
    """The identity of a cache made with these settings on this machine."""
    if not 1 <= frames <= 1024:
        raise ConfigError(f"--frames {frames} must be from 1 to 1024")
    identity = encoder_identity(encoder, size, grid)
    return CacheSpec(
        decoder=decoder_name(),
        frames=frames,
        size=size,
        grid=identity.grid,
        encoder=identity.name,
        weights_hash=identity.weights_hash,
        channels=identity.channels,
        embedding_dtype=identity.dtype,
    )


def preprocess(
    catalog: Catalog,
    cache: Path | str,
    spec: CacheSpec,
    *,
    name: str | None = None,
    format: str | None = None,  # noqa: A002
    compress: str | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    shard_size: int = 64,
    max_bad: float = 0.05,
    overwrite: bool = False,
    deadline: float = 60.0,
    check: str = "fast",
    on_progress: Callable[[Progress], None] | None = None,
) -> PreprocessResult:
    """Bring every clip of a catalog into the cache, once.

    A clip is done if its newest record describes the same clip and the source file has the size and time it had; done
    clips are never touched again, bad ones included until their file changes.

    Args:
        catalog: Clips to do.
        cache: Folder of the cache, or its URL on an object store.
        spec: From :func:`make_spec`.
        name: Name in the cache; the catalog's data set if left out. Choose one to keep several collections side by side.
        format: ``zarr`` or ``hdf5``; left out, the one that the data set has, or Zarr.
        compress: ``none``, ``zstd`` (Zarr) or ``gzip`` (HDF5); left out, as the data set is, or none.
        workers: Processes; one a core if left out. 1 works in this process.
        scheduler: ``tcp://host:port`` of a running dask scheduler whose workers see the same paths.
        shard_size: Clips of a shard: what is lost at most when a process dies.
        max_bad: Share of clips that may be unusable.
        overwrite: Remove what the cache holds under this name first.
        deadline: Seconds that decoding one clip may take before it is given up.
        check: ``fast``, or ``full`` to decode every frame and refuse clips that the codec flags as damaged.
        on_progress: Called after each clip.

    Raises:
        BadClipsError: More clips than ``max_bad`` are unusable; everything else is in the cache.
        CacheError, FingerprintError: The cache cannot take these clips.

    """
    name = name or catalog.dataset
    if name.startswith(".") or "/" in name or "\\" in name or not name.strip():
        raise ConfigError(f"--name {name!r} must be a plain folder name")
    if shard_size < 1:
        raise ConfigError(f"--shard-size {shard_size} must be at least 1")
    place = as_place(cache).absolute()
    folder = place.below(name)
    begun = time.monotonic()
    with _lock(place, name):
        if overwrite and not folder.is_empty():
            if not is_dataset(folder):
                raise CacheError(f"{folder} is not a dtsf cache; --overwrite does not remove it")
            folder.clear()
        info = DatasetInfo(
            dataset=catalog.dataset, name=name, class_names=catalog.class_names, view_names=catalog.view_names
        )
        shard_size = create_or_open(folder, spec, info, shard_size, format=format, compress=compress).shard_size
        sweep(folder)
        n_workers = workers or os.cpu_count() or 1
        parts, already_done, already_bad = plan(catalog, folder, shard_size, n_workers)
        tasks = [
            ShardTask(str(folder), str(catalog.root.absolute()), shard, clips, spec, deadline, check)
            for shard, clips in parts.items()
        ]
        if parts:
            extend(folder, max(parts) + 1)
            if scheduler is None:
                # Exports the network where that is due, once, before workers would each do it.
                load_encoder(spec.encoder, spec.size, spec.grid)
        state = {"done": already_done, "bad": already_bad}

        def on_clip(usable: bool) -> None:
            state["done"] += 1
            state["bad"] += not usable
            if on_progress is not None:
                on_progress(Progress(state["done"], len(catalog.clips), state["bad"]))

        _run(tasks, n_workers, scheduler, on_clip)
        result = _result(catalog, folder, already_done, time.monotonic() - begun, place)
    if len(result.bad) > max_bad * result.clips:
        listed = "\n".join(
            f"  {record.clip.path}: {record.verdict.value}: {record.reason}" for record in result.bad[:20]
        )
        more = f"\n  ... and {len(result.bad) - 20} more" if len(result.bad) > 20 else ""
        raise BadClipsError(
            f"{len(result.bad)} of {result.clips} clips cannot be used, more than --max-bad {max_bad:.0%} allows; the "
            f"other {result.clips - len(result.bad)} are in {folder}\n{listed}{more}",
            result,
        )
    return result


def plan(
    catalog: Catalog, folder: Where, shard_size: int, n_workers: int
) -> tuple[dict[int, tuple[Clip, ...]], int, int]:
    """Shards for the clips that are not done, how many clips are, and how many of those are bad.

    A shard's number and clips follow from the catalog, the shard size and the number of workers, not from what is missing:
    a run that was killed and run again by the same command leaves the same bytes as one that was not. Clips that are
    missing from a shard that is committed (their file changed, or the catalog grew) go to new shards behind all others.
    A shard that was found damaged is made again as it was, under its number.
    """
    about = read_about(folder)
    records, marks = read_records(folder, about), read_marks(folder, about)
    held = newest_records(records, marks)
    missing: set[str] = set()
    bad = 0
    for clip in catalog.clips:
        record = held[clip.id][1] if clip.id in held else None
        if record is not None and _is_current(record, clip, catalog.root):
            bad += not record.verdict.usable
        else:
            missing.add(clip.id)
    done = len(catalog.clips) - len(missing)
    committed = {record.shard for record in records}
    parts: dict[int, tuple[Clip, ...]] = {}
    known = {clip.id: clip for clip in catalog.clips}
    for mark in marks:
        ids = [record.clip.id for record in mark.clips]
        if missing.issuperset(ids):
            parts[mark.shard] = tuple(known[key] for key in ids)
            missing.difference_update(ids)
    committed |= {mark.shard for mark in marks}
    late: list[Clip] = []
    homes = _cut(catalog.clips, shard_size, n_workers)
    for shard, clips in enumerate(homes):
        wanted = tuple(clip for clip in clips if clip.id in missing)
        if shard in committed:
            late.extend(wanted)
        elif wanted:
            parts[shard] = wanted
    first = max(len(homes), max(committed, default=-1) + 1)
    parts |= dict(enumerate(_cut(late, shard_size, n_workers), first))
    return parts, done, bad


def _cut(clips: Sequence[Clip], shard_size: int, n_workers: int) -> list[tuple[Clip, ...]]:
    """Even shards, as many for each worker: of three shards and two workers, one would wait while the other does its second."""
    n = min(math.ceil(math.ceil(len(clips) / shard_size) / n_workers) * n_workers, len(clips))
    return [tuple(clips[k * len(clips) // n : (k + 1) * len(clips) // n]) for k in range(n)]


def _is_current(record: ClipRecord, clip: Clip, root: Path) -> bool:
    return record.clip == clip and (record.source_bytes, record.source_mtime_ns) == source_stat(root / clip.path)


def _run(tasks: list[ShardTask], n_workers: int, scheduler: str | None, on_clip: Callable[[bool], None]) -> None:
    if not tasks:
        return
    if scheduler is None and (n_workers == 1 or len(tasks) == 1):
        for task in tasks:
            run_shard(task, lambda record: on_clip(record.verdict.usable))
        return
    with _client(min(n_workers, len(tasks)), scheduler) as client:
        client.subscribe_topic(TOPIC, lambda event: on_clip(event[1]))
        futures = client.map(_run_on_dask, tasks, pure=False, retries=1)
        for future in futures:
            future.result()


def _run_on_dask(task: ShardTask) -> int:
    """Run a shard on a dask worker. Nothing large goes through the scheduler: an event a clip, a number a shard."""
    from distributed import get_worker

    worker = get_worker()
    run_shard(task, lambda record: worker.log_event(TOPIC, record.verdict.usable))
    return task.shard


@contextmanager
def _client(n_workers: int, scheduler: str | None) -> Iterator[Any]:
    import logging

    import dask
    from distributed import Client

    if scheduler is not None:
        try:
            client = Client(scheduler, timeout="10s", set_as_default=False)
        except (OSError, ValueError) as error:
            raise ConfigError(f"no dask scheduler answers at {scheduler}: {error}") from error
        with client:
            yield client
        return
    settings = {
        # A worker that is killed takes its shard along, not the shard's fault: the next one does it.
        "distributed.scheduler.allowed-failures": 100,
        # Dask tells workers to give memory back after every layer of the encoder; keeping it halves their time (measured:
        # 90 clips on two workers, 56 s in the kernel of 94 s before).
        "distributed.nanny.pre-spawn-environ": {
            "MALLOC_TRIM_THRESHOLD_": 1 << 30,
            "MALLOC_MMAP_THRESHOLD_": 1 << 30,
            "OMP_NUM_THREADS": 1,
            "MKL_NUM_THREADS": 1,
            "OPENBLAS_NUM_THREADS": 1,
        },
    }
    with (
        dask.config.set(settings),
        _start_cluster(
            n_workers=n_workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
            memory_limit=0,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def _start_cluster(**settings: Any) -> Any:
    from distributed import LocalCluster

    for attempt in range(3):
        try:
            return LocalCluster(**settings)
        except RuntimeError as error:  # a worker was killed while it started
            if attempt == 2:
                raise DataError(f"dask's workers cannot be started: {error}. Try fewer --workers") from error
    raise AssertionError("unreachable")


@contextmanager
def _lock(place: LocalFolder | RemoteFolder, name: str) -> Iterator[None]:
    """One preprocess a data set: a second one of the same name is told so at once. An object store claims shard by shard."""
    if not isinstance(place, LocalFolder):
        yield
        return
    cache = place.path
    try:
        cache.mkdir(parents=True, exist_ok=True)
        file = (cache / f".{name}.lock").open("w")
    except OSError as error:
        raise CacheError(f"cannot write to the cache {cache}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CacheError(
                f"another dtsf preprocess is writing {cache / name}: wait for it, or use another --name"
            ) from error
        yield


def _result(
    catalog: Catalog,
    folder: LocalFolder | RemoteFolder,
    already_done: int,
    seconds: float,
    cache: LocalFolder | RemoteFolder,
) -> PreprocessResult:
    held = open_place(folder).records
    lost = [clip.id for clip in catalog.clips if clip.id not in held]
    if lost:
        raise CacheError(
            f"another writer was first to commit shards of {folder}, so that {len(lost)} clips are not in it yet "
            f"({lost[0]} ...): run the same command again to go on"
        )
    records = [held[clip.id][1] for clip in catalog.clips]
    verdicts: dict[str, int] = {}
    for record in records:
        verdicts[record.verdict.value] = verdicts.get(record.verdict.value, 0) + 1
    return PreprocessResult(
        dataset=folder.name,
        clips=len(records),
        groups=len({clip.group for clip in catalog.clips}),
        verdicts=dict(sorted(verdicts.items())),
        seconds=seconds,
        clips_per_s=(len(records) - already_done) / seconds,
        already_done=already_done,
        cache=str(cache),
        bad=tuple(record for record in records if not record.verdict.usable),
    )
