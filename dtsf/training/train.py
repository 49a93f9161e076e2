"""One training run from a cache: checks, run folder, training, calibration, evaluation."""

from __future__ import annotations

import logging
import time
import tomllib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import tomli_w
import torch

from dtsf.cache.reader import CachedDataset, open_dataset
from dtsf.cache.schema import Clip
from dtsf.cache.store import open_store
from dtsf.errors import CheckpointError, ConfigError
from dtsf.files.read import json_text, read_file
from dtsf.files.write import lock, sweep_orphans, write_atomically
from dtsf.names import counted
from dtsf.training.calibrate import calibrate, calibration_folds, observe, set_statistics, train_fold
from dtsf.training.checkpoint import has_checkpoint, load_checkpoint, versions
from dtsf.training.data import Groups, load_groups, share_groups
from dtsf.training.distributed import current_world, launch, shutdown
from dtsf.training.evaluate import Evaluation, check_draws, evaluate
from dtsf.training.held_out import ask_held_out, read_held_out
from dtsf.training.loop import EpochReport, FitResult, fit
from dtsf.training.parallel import side_by_side, usable_workers
from dtsf.training.protocols import Protocol, Split, parse_protocol, split_clips, subjects_of
from dtsf.training.recipe import Recipe, default_recipe, load_recipe, resolve_auto
from dtsf.training.settings import TrainSettings
from dtsf.training.splits import check_split, clip_seconds, exclude_classes, hold_out, limit_training
from dtsf.training.start import check_start, fit_recipe, read_start

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """Result of a training; ``epochs`` and ``best_epoch`` as in :class:`.loop.FitResult`."""

    run: Path
    epochs: int
    seconds: float
    evaluation: Evaluation
    best_epoch: int | None = None


def train(
    cache: Path = Path("cache"),
    chosen: TrainSettings | None = None,
    *,
    on_recipe: Callable[[str, str], None] | None = None,
    on_start: Callable[[Path, CachedDataset, Split, Recipe], None] | None = None,
    on_begin: Callable[[str], None] = lambda _: None,
    on_epoch: Callable[[EpochReport], None] | None = None,
    calibrated: bool = True,
    **changes: Any,
) -> TrainResult:
    """Train a network from the cache and evaluate it on the test clips of the protocol.

    Callbacks run in the first process: ``on_recipe`` with the recipe and the reason for it, after the checks; ``on_start`` before
    the first step; ``on_begin`` with each work that begins before the first epoch. Raises ConfigError, DataError, CacheError or
    CheckpointError: wrong settings, or a run folder in use.
    """
    settings = (chosen or TrainSettings()).changed(**changes)
    seed, start, world = settings.seed, time.monotonic(), current_world()
    data = open_dataset(cache, settings.dataset)
    protocol = parse_protocol(settings.protocol, data.info.kind)
    name, why = default_recipe(data.info, data.spec, protocol.name)
    if settings.recipe:
        name, why = settings.recipe, "chosen by the user"
    recipe = load_recipe(name, settings.changes())
    check_recipe_fits(recipe, data, protocol)
    if on_recipe is not None and world.first:
        on_recipe(name, why)
    split = split_clips(data.clips, protocol, data.info.kind, data.info.view_names)
    split, info = exclude_classes(split, data.info, recipe.train.exclude_classes)
    split = limit_training(split, recipe.train)
    init = _init_of(settings)
    gone = settings.init is None and init is not None and not init.exists()
    initial = read_start(None if gone else init)
    recipe = fit_recipe(initial, recipe, data.spec)
    recipe = resolve_auto(recipe, len(split.train), len({clip.group for clip in split.train}), info.class_names)
    info = info.model_copy(update={"clip_seconds": clip_seconds(data, split.train, len(info.class_names))})
    split = hold_out(split, recipe.train, seed)
    split = check_split(data, split, info.class_names, protocol, allow_leak=settings.allow_leak)
    notes = check_start(initial, split, info, str(protocol), allow_leak=settings.allow_leak)
    if gone:
        notes = (
            f"--init {init} of this run is gone: folds of its calibration that had not started have random initial weights",
        )
    split = split.model_copy(update={"notes": (*split.notes, *notes)})
    check_device(settings.device)
    info = info.model_copy(update={"subjects": tuple(subjects_of([*split.train, *split.held_out]))})
    origin = {"cache": str(open_store(cache).absolute()), "dataset": info.name, "protocol": str(protocol), "seed": seed}
    origin |= {"recipe": name} | ({"init": str(init.absolute())} if init is not None else {})
    config = tomli_w.dumps({"data": origin} | recipe.model_dump(mode="json"))
    with ExitStack() as locks:
        folder, resume = Path(), settings.resume
        if world.first:
            usual = f"{info.name}-{protocol}-seed{seed}"
            folder, resume = _open_run_folder(locks, settings.run, usual, config, resume)
        fabric = launch(settings.device, recipe.train.precision)
        folder, resume = fabric.broadcast((folder, resume))
        if world.first:
            if on_start is not None:
                on_start(folder, data, split, recipe)
            logger.info("cache %s, fingerprint %s, run folder %s", data.store, data.spec.fingerprint(), folder)
            if not (resume and (folder / "config.toml").is_file()):
                # A resumed run keeps its first config.toml, which names its --init; fit() refuses other settings.
                write_atomically(folder / "config.toml", config.encode())
            write_atomically(folder / "environment.json", json_text(versions(), indent=1).encode())
        common: dict[str, Any] = {"info": info, "spec": data.spec, "protocol": str(protocol), "initial": initial}
        fit_again: Callable[..., FitResult] = partial(fit, **common, seed=seed, device=settings.device)
        options: dict[str, Any] = {"run": folder, "resume": resume, "catalog": data.catalog_hash, "fabric": fabric}
        options |= {"workers": settings.workers, "on_epoch": on_epoch if world.first else None}
        options |= {"on_begin": on_begin} if world.first else {}
        load = partial(load_groups, data)
        fitted = fit_calibrated(
            split, recipe, load=load, fit_again=fit_again, protocol=protocol.name, calibrated=calibrated, **options
        )
        logger.info("trained in %.1f s on %s", time.monotonic() - start, fabric.device)
        shutdown()
        # All processes have the same weights, so each evaluates without waiting for the others.
        draws = recipe.train.draws
        options = {"draws": draws, "classes": info.class_names, "trained": (data, split.train)}
        if world.first:
            options["held_out"] = read_held_out(folder, load_checkpoint(folder / "last").state)
        evaluation = evaluate(fitted.net, data, protocol, seed=seed, **options)
        if world.first:
            if not folder.is_dir():
                raise CheckpointError(f"run folder {folder} was deleted during training; start again")
            indent = 1 if evaluation.metrics.confusion else None  # with many classes, lines would double its size
            write_atomically(folder / "metrics.json", json_text(evaluation.summary(), indent=indent).encode())
    return TrainResult(folder, fitted.epochs, time.monotonic() - start, evaluation, fitted.best_epoch)


def fit_calibrated(
    split: Split,
    recipe: Recipe,
    *,
    load: Callable[[Sequence[Clip]], Groups],
    fit_again: Callable[..., FitResult],
    run: Path,
    protocol: str,
    resume: bool = False,
    calibrated: bool = True,
    workers: int | None = None,
    catalog: str = "",
    fabric: Any = None,
    on_begin: Callable[[str], None] = lambda _: None,
    on_epoch: Callable[[EpochReport], None] | None = None,
) -> FitResult:
    """Train the network and those of the folds of its calibration, side by side; then calibrate it.

    ``load`` reads the groups of clips. ``fit_again``: :func:`.loop.fit` with the settings common to all trainings. ``protocol``: a
    name. ``workers``: see :func:`.parallel.usable_workers`. Raises the errors of :func:`.loop.fit`.
    """
    calibrated = calibrated and not (resume and _is_calibrated(run))
    folds, unit = calibration_folds(split, recipe, protocol) if calibrated else ([], "")
    shared = [*split.train, *split.held_out]
    on_begin(f"reading {counted(len(shared), 'clip')} of the cache")
    load = share_groups(load, shared)

    def train(report: Callable[[EpochReport], None]) -> FitResult:
        groups, held_out = load(split.train), load(split.held_out) if split.held_out else None
        options: dict[str, Any] = {"run": run, "resume": resume, "catalog": catalog, "fabric": fabric}
        fitted = fit_again(groups, recipe, held_out=held_out, on_epoch=report, **options)
        if calibrated:
            set_statistics(fitted.net, groups)
        return fitted

    jobs: list[Callable[[Callable[[EpochReport], None]], Any]] = [train]
    if not split.held_out:
        common: dict[str, Any] = {"load": load, "fit_again": fit_again, "recipe": recipe, "run": run}
        common["fabric"] = fabric
        jobs += [partial(train_fold, fold=fold, k=k, n=len(folds), **common) for k, fold in enumerate(folds)]
    epochs, done = recipe.train.epochs, [0] * len(jobs)

    def pass_on(k: int, report: EpochReport) -> None:
        done[k] = report.epoch
        if on_epoch is not None:
            on_epoch(replace(report, done=sum(done), total=epochs * len(jobs)))

    results: dict[int, Any] = {}
    n_workers = usable_workers(len(jobs), wanted=workers, threads=recipe.train.usable_threads)
    several = f" of {len(jobs)} trainings" if len(jobs) > 1 else ""
    on_begin(f"{'next' if resume else 'first'} epoch{several}, may compile the scan")
    for k, result in side_by_side(jobs, workers=n_workers, on_report=pass_on):
        results[k], done[k] = result, epochs
    fitted: FitResult = results.pop(0)
    if calibrated:
        observed = [results[k] for k in sorted(results)]
        if split.held_out and folds:
            observed = [observe(fitted.net, load(folds[0].held_out))]
        ask = partial(ask_held_out, folds=folds, load=load, workers=n_workers)
        calibration = calibrate(fitted.net, run, observed, unit, ask)
        logger.info("calibration: %s", calibration)
    return fitted


def _is_calibrated(run: Path) -> bool:
    """Return True if the last step of a training is done: its statistics are recorded, also where no calibration is fitted."""
    statistics_N2D = load_checkpoint(run / "last").weights.get("feature_stats.mean_var_N2D")
    return statistics_N2D is not None and bool((statistics_N2D[:, 1] > 0).any())


def _init_of(settings: TrainSettings) -> Path | None:
    """Return the start of the training; of a resumed run, that of its config.toml, because a fold may have no file yet."""
    if settings.init is not None or not settings.resume or settings.run is None:
        return settings.init
    try:
        config = read_file(settings.run / "config.toml", limit=1 << 20, error=CheckpointError).decode()
        return Path(tomllib.loads(config)["data"]["init"])
    except (CheckpointError, ValueError, KeyError, TypeError):
        return None


def check_recipe_fits(recipe: Recipe, data: CachedDataset, protocol: Protocol) -> None:
    """Raise ConfigError if the recipe does not fit the embeddings of the cache or the views of the protocol."""
    spec, model = data.spec, recipe.model
    if "pixels" in model.inputs and spec.encoder != "pixels":
        raise ConfigError(
            f'a branch has input "pixels", and {data.store} has embeddings of {spec.encoder}: '
            "dtsf preprocess ... --encoder pixels --size 224, or choose a recipe for embeddings"
        )
    same = [k for k, branch in enumerate(model.branch) if branch.views == "all"]
    if same and protocol.name == "cross-view":
        raise ConfigError(
            f'model.branch.{same[0]}.views "all" needs the same views in training and test, but {protocol} tests an unseen one: '
            "--recipe unseen-cameras"
        )
    if model.frames > spec.frames:
        raise ConfigError(
            f"model.frames ({model.frames}) is more than the {spec.frames} frames of the cache {data.store}: "
            f"--set model.frames={spec.frames}, or preprocess with --frames {model.frames}"
        )
    if spec.grid % model.patch:
        raise ConfigError(
            f"model.patch ({model.patch}) does not divide the grid of the cache ({spec.grid}): "
            f"for example --set model.patch={spec.grid}"
        )
    check_draws(recipe.train.draws, model, spec)


def check_device(device: str) -> None:
    """Raise ConfigError if the device is ``cuda`` and PyTorch finds none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch finds no CUDA device; use --device cpu or auto")


def _open_run_folder(locks: ExitStack, run: Path | None, name: str, config: str, resume: bool) -> tuple[Path, bool]:
    """Choose, create and lock the run folder. Return it, and True if it has a checkpoint to resume."""
    if run is None:
        plain = "".join(c if c.isalnum() or c in "-_.," else "-" for c in name)
        runs = [Path("runs") / plain, *(Path("runs") / f"{plain}-{n}" for n in range(2, 1000))]
        existing = [path for path in runs if path.exists()]
        run = existing[-1] if resume and existing else runs[len(existing)]
    locks.enter_context(
        lock(
            run.absolute().parent / f".{run.name}.lock",
            unwritable=lambda why: ConfigError(f"cannot make the run folder {run}: {why}"),
            busy=ConfigError(f"another dtsf process trains in {run}: wait for it, or choose another --out"),
        )
    )
    if resume and not has_checkpoint(run):
        # A run that was killed before its first checkpoint starts again, with the same configuration only.
        if not run.is_dir():
            raise CheckpointError(f"nothing to resume: {run} has no checkpoint")
        sweep_orphans(run)
        file = run / "config.toml"
        before = read_file(file, limit=1 << 20, error=CheckpointError) if file.exists() else None
        if any(run.iterdir()) and before != config.encode():
            other = ", and its config.toml is of another command" if before is not None else ""
            raise CheckpointError(
                f"nothing to resume: {run} has no checkpoint{other}: choose another --out, without --resume"
            )
        return run, False
    if not resume and run.exists() and any(run.iterdir()):
        raise ConfigError(f"the run folder {run} is not empty: continue it with --resume, or choose another --out")
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the run folder {run}: {error.strerror}") from error
    return run, resume
