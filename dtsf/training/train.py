"""One training run from a cache: checks, run folder, training, judgement."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w
import torch

from dtsf.cache.reader import open_dataset
from dtsf.errors import CheckpointError, ConfigError
from dtsf.files.read import json_text, read_file
from dtsf.files.write import lock, sweep_orphans, write_atomically
from dtsf.training.calibrate import calibrate
from dtsf.training.checkpoint import has_checkpoint
from dtsf.training.data import load_groups
from dtsf.training.distributed import current_world, launch, shutdown
from dtsf.training.evaluate import Evaluation, check_draws, evaluate
from dtsf.training.init_weights import resolve_recipe
from dtsf.training.loop import fit
from dtsf.training.protocols import parse_protocol, split_clips
from dtsf.training.recipe import default_recipe, load_recipe
from dtsf.training.settings import TrainSettings
from dtsf.training.splits import exclude_classes, hold_out
from dtsf.training.train_state import versions

if TYPE_CHECKING:
    from collections.abc import Callable

    from dtsf.cache.reader import CachedDataset
    from dtsf.training.loop import EpochReport
    from dtsf.training.protocols import Protocol, Split
    from dtsf.training.recipe import Recipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """Result of a training."""

    run: Path
    epochs: int
    """Made; fewer than the recipe's where it stopped early."""
    seconds: float
    evaluation: Evaluation
    best_epoch: int | None = None
    """Best on the groups held out of training, counted from 1; None where nothing is held out."""


def train(
    cache: Path = Path("cache"),
    chosen: TrainSettings | None = None,
    *,
    on_recipe: Callable[[str, str], None] | None = None,
    on_start: Callable[[Path, CachedDataset, Split, Recipe], None] | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
    calibrated: bool = True,
    **changes: Any,
) -> TrainResult:
    """Stage 2: train a network from the cache and judge it on the protocol's test clips.

    Raises ConfigError, DataError, CacheError, CheckpointError: something does not go together, or another process trains in the
    run folder.

    Args:
        on_recipe: Called with the name of the recipe and why it was taken, once it is known to fit; of several processes,
            in the first.
        on_start: Called once everything is checked and before the first step, likewise.
        calibrated: False leaves out :func:`.calibration.calibrate`: where only answers count.
    """
    with ExitStack() as held:
        return _train(
            held, cache, (chosen or TrainSettings()).changed(**changes), on_recipe, on_start, on_epoch, calibrated
        )


def _train(
    held: ExitStack,
    cache: Path,
    chosen: TrainSettings,
    on_recipe: Callable[[str, str], None] | None,
    on_start: Callable[[Path, CachedDataset, Split, Recipe], None] | None,
    on_epoch: Callable[[EpochReport], None] | None,
    calibrated: bool,  # noqa: FBT001
) -> TrainResult:
    run, seed, device, resume, init = chosen.run, chosen.seed, chosen.device, chosen.resume, chosen.init
    data = open_dataset(cache, chosen.dataset)
    rule = parse_protocol(chosen.protocol, data.info.kind)
    recipe, why = (chosen.recipe, "asked for") if chosen.recipe else default_recipe(data.info, data.spec, rule.name)
    settings = load_recipe(recipe, chosen.changes())
    check_recipe_fits(settings, data, rule)
    world = current_world()
    if on_recipe is not None and world.first:
        on_recipe(recipe, why)
    split, info = exclude_classes(
        split_clips(data.clips, rule, data.info.kind, data.info.view_names),
        data.info,
        settings.train.exclude_classes,
    )
    settings, initial = resolve_recipe(init, settings, len(split.train))
    split = hold_out(split, settings.train, seed)
    check_device(device)
    document = {
        "data": {
            "cache": str(cache.absolute()),
            "dataset": data.info.name,
            "protocol": str(rule),
            "seed": seed,
            "recipe": recipe,
        }
        | ({"init": str(init.absolute())} if init is not None else {})
    }
    config = tomli_w.dumps(document | settings.model_dump(mode="json"))
    begun = time.monotonic()
    folder, resume = (
        _run_folder(held, run, f"{data.info.name}-{rule}-seed{seed}", config, resume)
        if world.first
        else (Path(), resume)
    )
    fabric = launch(device, settings.train.precision)
    folder, resume = fabric.broadcast((folder, resume))
    if world.first:
        if on_start is not None:
            on_start(folder, data, split, settings)
        logger.info("cache %s, fingerprint %s, run folder %s", data.store, data.spec.fingerprint(), folder)
        if not (resume and (folder / "config.toml").is_file()):
            # What a run was begun with, --init among it, stays; a command that is no resumption of it is refused below.
            write_atomically(folder / "config.toml", config.encode())
        write_atomically(folder / "environment.json", json_text(versions(), indent=1).encode())
    told = on_epoch if world.first else None
    fit_one = partial(
        fit, info=info, spec=data.spec, protocol=str(rule), seed=seed, device=device, initial=initial, fabric=fabric
    )
    fitted = fit_one(
        load_groups(data, split.train),
        settings,
        run=folder,
        resume=resume,
        held_out=load_groups(data, split.held_out) if split.held_out else None,
        on_epoch=told,
        catalog=data.catalog_hash,
    )
    logger.info("trained in %.1f s on %s", time.monotonic() - begun, fabric.device)
    if calibrated and not fitted.net.feature_stats.recorded:
        learnt = calibrate(
            fitted.net, data, rule, split, settings, run=folder, again=fit_one, on_epoch=told, fabric=fabric
        )
        logger.info("calibrated in %.1f s: %s", time.monotonic() - begun, learnt)
    shutdown()
    # Each process judges for itself: they hold the same weights, and none need wait for another.
    evaluation = evaluate(fitted.net, data, rule, seed=seed, draws=settings.train.draws, classes=info.class_names)
    if world.first:
        if not folder.is_dir():
            raise CheckpointError(f"the run folder {folder} is gone: the training in it is lost; begin it anew")
        write_atomically(folder / "metrics.json", json_text(evaluation.summary(), indent=1).encode())
    return TrainResult(folder, fitted.epochs, time.monotonic() - begun, evaluation, fitted.best_epoch)


def check_recipe_fits(recipe: Recipe, data: CachedDataset, rule: Protocol) -> None:
    """Check the recipe against what the cache holds, and against the cameras that will be tested. Raises ConfigError: they do
    not go together; the message says what would.
    """
    if "pixels" in recipe.model.inputs and data.spec.encoder != "pixels":
        raise ConfigError(
            f'a branch has input "pixels", and {data.store} has embeddings of {data.spec.encoder}: '
            "dtsf preprocess ... --encoder pixels --size 224, or choose a recipe for embeddings"
        )
    same = [k for k, branch in enumerate(recipe.model.branch) if branch.views == "all"]
    if same and rule.name == "cross-view":
        raise ConfigError(
            f'model.branch.{same[0]}.views "all" needs the same views in training and test, but {rule} tests an unseen one: '
            "--recipe unseen-cameras"
        )
    if recipe.model.frames > data.spec.frames:
        raise ConfigError(
            f"model.frames ({recipe.model.frames}) is more than the {data.spec.frames} frames that the cache "
            f"{data.store} holds: --set model.frames={data.spec.frames}, or preprocess with --frames {recipe.model.frames}"
        )
    if data.spec.grid % recipe.model.patch:
        raise ConfigError(
            f"model.patch ({recipe.model.patch}) does not divide the cache's grid ({data.spec.grid}): "
            f"for example --set model.patch={data.spec.grid}"
        )
    check_draws(recipe.train.draws, recipe.model, data.spec)


def check_device(device: str) -> None:
    """Refuse a device that there is no such thing as, or that is not here."""
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device {device!r} must be auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch sees no CUDA device here; use --device cpu or auto")


def _run_folder(held: ExitStack, run: Path | None, name: str, config: str, resume: bool) -> tuple[Path, bool]:
    """Choose or check the run folder, make it and lock it. Returns also whether there is a checkpoint to go on from."""
    if run is None:
        plain = "".join(c if c.isalnum() or c in "-_.," else "-" for c in name)
        existing = [p for n in range(1, 1000) if (p := Path("runs") / (plain if n == 1 else f"{plain}-{n}")).exists()]
        run = (
            existing[-1]
            if resume and existing
            else Path("runs") / (plain if not existing else f"{plain}-{len(existing) + 1}")
        )
    busy = ConfigError(f"another dtsf process trains in {run}: wait for it, or choose another --out")
    held.enter_context(
        lock(
            run.absolute().parent / f".{run.name}.lock",
            unwritable=lambda why: ConfigError(f"cannot make the run folder {run}: {why}"),
            busy=busy,
        )
    )
    if resume and not has_checkpoint(run):
        _check_begun(run, config)
        return run, False
    if not resume and run.exists() and any(run.iterdir()):
        raise ConfigError(f"the run folder {run} is not empty: go on with it (--resume), or choose another --out")
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the run folder {run}: {error.strerror}") from error
    return run, resume


def _check_begun(run: Path, config: str) -> None:
    """A run killed before its first checkpoint may begin again, if it is the same run."""
    if not run.is_dir():
        raise CheckpointError(f"nothing to resume: {run} has no checkpoint")
    sweep_orphans(run)
    file = run / "config.toml"
    if any(run.iterdir()) and (not file.exists() or _text(file) != config):
        raise CheckpointError(
            f"nothing to resume: {run} has no checkpoint"
            + (", and its config.toml is of another command" if file.exists() else "")
            + ": choose another --out, without --resume"
        )


def _text(file: Path) -> str:
    return read_file(file, limit=1 << 20, error=CheckpointError).decode("utf-8", "replace")
