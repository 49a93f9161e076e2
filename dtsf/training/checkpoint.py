"""Checkpoints of a run: written completely or not at all, and without code.

A checkpoint is a folder with ``model.safetensors``, ``optimizer.safetensors`` and ``state.json``. It is written under a temporary
name, synchronised to the disk, and renamed. A process that is killed leaves the old checkpoint. No file of it takes more memory
than its own size: there is no pickle and no compression.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field
from safetensors.torch import load
from torch import Tensor, nn

from dtsf.cache.schema import CacheSpec, DatasetInfo
from dtsf.errors import CheckpointError
from dtsf.files.read import first_line, parse_model, read_file
from dtsf.files.write import fresh_file, fresh_folder, move, refusal, remedy
from dtsf.model.config import ModelConfig
from dtsf.model.network import DTSFNet
from dtsf.settings import Frozen, describe_changes
from dtsf.training.recipe import Recipe
from dtsf.training.tensor_files import load_state, save_state, save_tensors

LIMITS = {"state.json": 1 << 24, "model.safetensors": 1 << 34, "optimizer.safetensors": 1 << 36}
"""Maximum size of each file in bytes."""
RUN_VERSION = 3
"""Version of the format: names of recipe keys and of weights."""


class Calibration(Frozen):
    """Fitted calibration of the evidence, and its effect on the held-out groups; see :mod:`.calibrate`."""

    held_out: str
    folds: int
    n_groups: int
    accuracy: float
    nll: tuple[float, float]
    """Mean -log p of the true class, before and after calibration; so is ``ece``."""
    ece: tuple[float, float]
    inverse_temperature: float
    nearness: float = 0.0
    """Weight of the class means of the training features."""
    bias: float
    weights: dict[str, float]
    """Weights by the names of :data:`dtsf.model.evidence.FEATURES`."""


class _Version(BaseModel):
    version: int = 1


class RunState(Frozen):
    """State of a run beside its tensors: ``state.json``. ``epoch`` and ``step`` are finished."""

    version: int = RUN_VERSION
    epoch: int = Field(ge=0, le=10**9)
    step: int = Field(ge=0, le=10**12)
    seed: int = Field(ge=-(2**63), lt=2**64)
    protocol: str
    fingerprint: str
    spec: CacheSpec
    """Settings of the cache (with its ``fingerprint``), with which ``predict`` decodes and embeds."""
    info: DatasetInfo
    recipe: Recipe
    versions: dict[str, str]
    catalog: str = ""
    processes: int = Field(default=1, ge=1, le=2**20)
    """Number of processes: a step has that many times ``train.batch_size`` groups."""
    best_epoch: int | None = None
    """Number of finished epochs at the best held-out loss; None without held-out groups."""
    best_loss: float | None = None
    calibration: Calibration | None = None

    @property
    def finished(self) -> bool:
        """True after the last epoch, or when the patience is over."""
        train = self.recipe.train
        waited = self.epoch - self.best_epoch if self.best_epoch is not None else 0
        return self.epoch >= train.epochs or bool(train.patience and waited >= train.patience)

    def unfinished(self, run: Path) -> tuple[str, ...]:
        """Return a note if the training stopped before its last epoch."""
        if self.finished:
            return ()
        epochs = self.recipe.train.epochs
        return (
            f"{run} stopped after {self.epoch} of {epochs} epochs: dtsf train ... --out {run} --resume finishes it",
        )


@dataclass(frozen=True)
class Checkpoint:
    """Checkpoint in memory, with the weights to evaluate (see :class:`.loop.FitResult`)."""

    state: RunState
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    """Optimiser state, and ``raw`` and ``average`` weights if others are evaluated. Empty unless requested."""


def has_checkpoint(run: Path) -> bool:
    """Return True if a run folder has a checkpoint: ``last``, or ``last.old`` after a kill in the middle of a replacement."""
    return any((run / name).is_dir() for name in ("last", "last.old"))


def resume_or_clear(run: Path) -> bool:
    """Return True if ``run`` has a checkpoint to resume. Otherwise DELETE the whole folder and return False."""
    if not (found := has_checkpoint(run)):
        shutil.rmtree(run, ignore_errors=True)
    return found


def save_checkpoint(folder: Path, state: RunState, weights: Mapping[str, Tensor], optimizer: dict[str, Any]) -> None:
    """Write a checkpoint. ``folder`` always contains a complete one: if the disk is full (CheckpointError), the old one stays."""
    if not folder.parent.is_dir():
        raise CheckpointError(f"run folder {folder.parent} was deleted during training; start again")
    old = folder.with_name(folder.name + ".old")
    content = {
        "model.safetensors": save_tensors(weights),
        "optimizer.safetensors": save_state(optimizer),
        "state.json": state.model_dump_json(indent=1).encode(),
    }
    try:
        fresh = fresh_folder(folder)
        try:
            for name, data in content.items():
                with fresh_file(fresh / name) as file:
                    file.write(data)
            if os.path.lexists(folder):
                _remove(old)
                folder.rename(old)
            move(fresh, folder)
        finally:
            # Only a folder that was not moved is still there.
            shutil.rmtree(fresh, ignore_errors=True)
        _remove(old)
    except OSError as error:
        raise CheckpointError(
            f"cannot write the checkpoint {folder}: {refusal(error)}. The previous one is kept; {remedy(error)} and run the "
            "same command again (dtsf train with --resume)"
        ) from error


def _remove(old: Path) -> None:
    shutil.rmtree(old, ignore_errors=True)
    if old.is_symlink():
        old.unlink()  # rmtree does not follow a link, nor remove it


def load_checkpoint(folder: Path, *, resume: bool = False) -> Checkpoint:
    """Read a checkpoint; with ``resume`` also the optimiser state. Raises CheckpointError if it is missing or damaged."""
    if not folder.is_dir() and (old := folder.with_name(folder.name + ".old")).is_dir():
        folder = old  # killed between the two renames of save_checkpoint
    if not folder.is_dir() and (runs := folder.parent / "trainings").is_dir():
        page = f", and its page is {folder.parent / 'report.html'}" if (folder.parent / "report.html").is_file() else ""
        raise CheckpointError(f"{folder.parent} is no run but the result of several: they are in {runs}{page}")
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoint at {folder}: train first (dtsf train), or name another run folder")
    document, tensors, kept = (
        read_file(folder / name, limit=limit, error=CheckpointError)
        if resume or name != "optimizer.safetensors"
        else b""
        for name, limit in LIMITS.items()
    )
    file = folder / "state.json"
    version = parse_model(_Version, document, str(file), error=CheckpointError).version
    if version != RUN_VERSION:
        raise CheckpointError(f"{file} has version {version}, and this dtsf reads version {RUN_VERSION}: train again")
    state = parse_model(RunState, document, str(file), error=CheckpointError)
    try:
        weights = load(tensors)
        optimizer = load_state(kept) if resume else {}
        if not isinstance(optimizer, dict):
            raise TypeError("the state of the optimiser is not a dictionary")
    except Exception as error:  # noqa: BLE001  errors of these readers for a forged file have no common base
        raise CheckpointError(f"checkpoint {folder} is damaged: {first_line(error)}: train again") from error
    if (bad := first_not_finite(weights)) is not None:
        raise CheckpointError(f"checkpoint {folder}: {bad} has values that are not finite: train again")
    return Checkpoint(state, weights, optimizer)


def first_not_finite(weights: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor with a NaN or an infinity, or None."""
    return next((name for name, x in weights.items() if x.is_floating_point() and not x.isfinite().all()), None)


def build_network(config: ModelConfig, spec: CacheSpec, info: DatasetInfo) -> DTSFNet:
    """Build the network of a recipe for the embeddings, classes and views of a dataset."""
    n_classes, n_views = len(info.class_names), len(info.view_names)
    return DTSFNet(config, channels=spec.channels, side=spec.grid, n_classes=n_classes, n_views=n_views)


def load_network(checkpoint: Checkpoint) -> DTSFNet:
    """Return the network of a checkpoint, in evaluation mode, on the CPU. Raises CheckpointError if the weights do not fit."""
    state = checkpoint.state
    weights = {"calibrator.nearness": torch.zeros(())} | checkpoint.weights  # runs from before it have none
    n_classes, head = len(state.info.class_names), weights.get("branches.0.encoder.head.weight")
    found = "no head" if head is None or head.ndim != 2 else f"{head.shape[0]} classes"
    if found != f"{n_classes} classes":
        raise CheckpointError(f"the weights of the checkpoint have {found}, its state.json names {n_classes} classes")
    try:
        # Shapes first, without memory: a forged state.json may name any size.
        with torch.device("meta"):
            shapes = build_network(state.recipe.model, state.spec, state.info).state_dict()
        for name in shapes.keys() | weights.keys():
            ours, theirs = shapes.get(name), weights.get(name)
            if ours is None or theirs is None or ours.shape != theirs.shape or ours.is_complex() != theirs.is_complex():
                sizes = ["none" if x is None else "x".join(map(str, x.shape)) or "one number" for x in (theirs, ours)]
                raise CheckpointError(
                    f"the weights of the checkpoint do not fit its recipe: {name} is {sizes[0]}, not {sizes[1]}"
                )
        net = build_network(state.recipe.model, state.spec, state.info)
    except (ValueError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"the recipe of the checkpoint makes no network: {error}") from error
    net.load_state_dict(weights)
    return net.eval()


@dataclass
class TrainState:
    """State that changes from step to step. A checkpoint contains all of it."""

    net: DTSFNet
    debiaser: nn.Module
    optimizer: Any
    average: dict[str, Tensor] | None
    """Running average of the weights, if the recipe has one."""
    best: dict[str, Tensor] | None = None
    """Weights of the best epoch on the held-out groups, if the recipe has a patience."""

    @property
    def current(self) -> dict[str, Tensor]:
        """Weights after this epoch: the running average, or the last weights."""
        return self.average if self.average is not None else self.net.state_dict()

    @property
    def evaluated(self) -> dict[str, Tensor]:
        """Weights to evaluate."""
        return self.best if self.best is not None else self.current


def versions() -> dict[str, str]:
    """Return the versions of Python, the platform, and the packages on which the numbers depend."""
    names = ("dtsf", "torch", "numpy", "zarr", "av", "lightning-fabric")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), "platform": platform.platform(), **found}


def save(folder: Path, state: RunState, training: TrainState) -> None:
    """Write a checkpoint from which the training resumes with the same numbers."""
    kept = {"optimizer": training.optimizer.state_dict(), "debiaser": training.debiaser.state_dict()}
    if training.average is not None or training.best is not None:
        kept["raw"] = training.net.state_dict()
    if training.average is not None and training.best is not None:
        kept["average"] = training.average
    save_checkpoint(folder, state, training.evaluated, kept)


def restore(folder: Path, fresh: RunState, training: TrainState) -> RunState:
    """Read a checkpoint into ``training``, and return its state. Raises CheckpointError: it is of other settings than ``fresh``."""
    checkpoint = load_checkpoint(folder, resume=True)
    state, kept = checkpoint.state, checkpoint.optimizer
    for field in ("recipe", "fingerprint", "seed", "protocol", "info", "processes"):
        if (was := getattr(state, field)) != (now := getattr(fresh, field)):
            changes = describe_changes(field, was, now)
            raise CheckpointError(f"{folder} was trained with {changes}: resume with the same, or choose another --out")
    if state.catalog and fresh.catalog and state.catalog != fresh.catalog:
        raise CheckpointError(
            f"{folder} was trained on other clips or labels than the cache names now (catalog {state.catalog}, now "
            f"{fresh.catalog}): start a new run with another --out"
        )
    try:
        if training.average is not None:
            for name, x in kept.get("average", checkpoint.weights).items():
                training.average[name].copy_(x)
        if state.best_epoch is not None and state.recipe.train.patience:
            device = next(training.net.parameters()).device
            training.best = {name: x.to(device) for name, x in checkpoint.weights.items()}
        training.net.load_state_dict(kept.get("raw", checkpoint.weights))
        training.debiaser.load_state_dict(kept.get("debiaser", {}))
        training.optimizer.load_state_dict(kept["optimizer"])
    except Exception as error:  # noqa: BLE001  errors of a forged optimiser state have no common base
        raise CheckpointError(
            f"{folder / 'optimizer.safetensors'} does not fit its run: {first_line(error)}"
        ) from error
    return state
