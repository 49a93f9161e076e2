"""Stage 1: plan shards, have them run, resume what is missing, say what could not be used."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dtsf.cache.commit import alone
from dtsf.cache.documents import is_dataset
from dtsf.cache.place import LocalFolder, as_place
from dtsf.cache.reader import open_place
from dtsf.cache.records import ClipRecord, Frozen
from dtsf.cache.spec import CacheSpec, DatasetInfo
from dtsf.cache.store import create_or_open, extend, sweep
from dtsf.errors import BadClipsError, CacheError, ConfigError
from dtsf.pipeline.encoders.choose import encoder_identity, prepare_encoder
from dtsf.pipeline.engine import run_tasks
from dtsf.pipeline.planning import plan
from dtsf.pipeline.video.crop import CROPS
from dtsf.pipeline.video.decode import decoder_name
from dtsf.pipeline.worker import ShardTask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from dtsf.cache.remote import RemoteFolder
    from dtsf.pipeline.catalog import Catalog
    from dtsf.pipeline.crew import Crew
    from dtsf.pipeline.video.crop import Crop

__all__ = ["PreprocessResult", "Progress", "make_spec", "preprocess"]


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


def make_spec(*, encoder: str, frames: int, size: int, grid: int, crop: str | None = None) -> CacheSpec:
    """The identity of a cache made with these settings on this machine.

    Args:
        encoder: As :func:`dtsf.pipeline.encoders.choose.encoder_identity`.
        frames: F, frames of a clip.
        size: Side of the square picture that is embedded, in pixels.
        grid: Cells along each side of an embedding.
        crop: ``motion`` or ``centre``, see :mod:`dtsf.pipeline.video.crop`; left out, ``motion``, and ``centre`` for ``pixels``,
            of which the network itself has to learn where people stand.

    Raises:
        ConfigError: A value that there is no such thing as, or that does not fit the others.

    """
    if not 1 <= frames <= 1024:
        raise ConfigError(f"--frames {frames} must be from 1 to 1024")
    identity = encoder_identity(encoder, size, grid)
    return CacheSpec(
        decoder=decoder_name(),
        frames=frames,
        size=size,
        crop=_crop(crop, identity.name),
        grid=identity.grid,
        encoder=identity.name,
        weights_hash=identity.weights_hash,
        channels=identity.channels,
        embedding_dtype=identity.dtype,
    )


def _crop(asked: str | None, encoder: str) -> Crop:
    if asked is None:
        return "centre" if encoder == "pixels" else "motion"
    for crop in CROPS:
        if asked == crop:
            return crop
    raise ConfigError(f"--crop {asked!r} must be {' or '.join(CROPS)}")


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
    retry_bad: bool = False,
    deadline: float = 60.0,
    check: str = "fast",
    on_progress: Callable[[Progress], None] | None = None,
    crew: Crew | None = None,
    encoder_weights: str | None = None,
) -> PreprocessResult:
    """Bring every clip of a catalog into the cache, once.

    A clip is done if its newest record describes the same clip and the source file has the size and time it had; done
    clips are never touched again, bad ones included until their file changes or ``retry_bad`` is asked for.

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
        retry_bad: Try again what could not be used before: a deadline, a crash or a file that could not be read may have been
            the machine's fault and not the clip's.
        deadline: Seconds that decoding one clip may take before it is given up.
        check: ``fast``, or ``full`` to decode every frame and refuse clips that the codec flags as damaged.
        on_progress: Called after each clip; with several processes, for those of a second together.
        crew: Worker processes that were started before, to be used if there is work for them.
        encoder_weights: File of the encoder's weights, where the person gave one.

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
        parts, already_done, already_bad = plan(catalog, folder, shard_size, n_workers, retry_bad=retry_bad)
        tasks = [
            ShardTask(str(folder), str(catalog.root.absolute()), shard, clips, spec, deadline, check, encoder_weights)
            for shard, clips in parts.items()
        ]
        if parts:
            extend(folder, max(parts) + 1)
            if scheduler is None:
                prepare_encoder(spec.encoder, spec.size, spec.grid, encoder_weights)
        state = {"done": already_done, "bad": already_bad}

        def on_clips(done: int, bad: int) -> None:
            state["done"] += done
            state["bad"] += bad
            if on_progress is not None:
                on_progress(Progress(state["done"], len(catalog.clips), state["bad"]))

        run_tasks(tasks, n_workers, scheduler, on_clips, crew)
        if parts and scheduler is None and isinstance(place, LocalFolder):
            # A worker that was killed while it wrote left a temporary file, and another one did its shard. A cluster's may
            # be taken for lost and still write: theirs wait for the next run.
            sweep(folder)
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


@contextmanager
def _lock(place: LocalFolder | RemoteFolder, name: str) -> Iterator[None]:
    """One preprocess a data set: a second one of the same name is told so at once. An object store claims shard by shard."""
    if not isinstance(place, LocalFolder):
        yield
        return
    cache = place.path
    busy = CacheError(f"another dtsf preprocess is writing {cache / name}: wait for it, or use another --name")
    with alone(
        cache / f".{name}.lock",
        unwritable=lambda why: CacheError(f"cannot write to the cache {cache}: {why}"),
        busy=busy,
    ):
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
