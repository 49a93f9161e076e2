"""Run folders and checkpoints: whole or not there at all, and nothing in them is code.

A checkpoint is a folder of ``model.safetensors``, ``optimizer.pt`` (loaded with ``weights_only``) and ``state.json``.
It is written beside its place, flushed to disk, and moved there; a process killed in between leaves the old one.
"""

from __future__ import annotations

import shutil
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dtsf.cache.commit import flush
from dtsf.cache.spec import CacheSpec, DatasetInfo
from dtsf.errors import CheckpointError
from dtsf.model.network.dtsfnet import DTSFNet
from dtsf.model.training.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

__all__ = [
    "Calibration",
    "Checkpoint",
    "RunState",
    "amend_checkpoint",
    "has_checkpoint",
    "load_checkpoint",
    "load_network",
    "make_room",
    "save_checkpoint",
]


def has_checkpoint(run: Path) -> bool:
    """Whether a run's folder holds a checkpoint to go on from: the newest, or the one before it, kept while it is replaced."""
    return any((run / name).is_dir() for name in ("last", "last.old"))


def make_room(run: Path) -> bool:
    """Prepare a run's folder. True where it has a checkpoint to go on from; what has none is removed."""
    if has_checkpoint(run):
        return True
    shutil.rmtree(run, ignore_errors=True)
    return False


class Calibration(BaseModel):
    """How much of the evidence is believed, and what that was learnt from: see :mod:`.calibration`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: str
    """What was held out, in words."""
    parts: int
    """Networks that were asked about what they had not seen."""
    n_groups: int
    """Groups they were asked about."""
    accuracy: float
    """Of their answers."""
    nll: tuple[float, float]
    """Mean -log p of the true class, with evidence as it is and as it is believed."""
    ece: tuple[float, float]
    """Calibration error, likewise."""
    sharpness: float
    bias: float
    weights: dict[str, float]
    """By the names of :data:`dtsf.model.network.belief.SIGNS`."""


class RunState(BaseModel):
    """What a checkpoint knows of itself beside the tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int
    """Epochs finished."""
    step: int
    """Optimiser steps made."""
    seed: int
    protocol: str
    fingerprint: str
    """Of the cache it was trained from."""
    spec: CacheSpec
    """How its input is made: ``predict`` decodes and embeds by it."""
    info: DatasetInfo
    """Classes and views."""
    recipe: Recipe
    versions: dict[str, str]
    processes: int = 1
    """Processes that trained together: a step has that many times ``train.batch_size`` groups."""
    best_epoch: int | None = None
    """Epochs finished when the held-out groups were judged best; None where nothing is held out."""
    best_loss: float | None = None
    """Their loss then."""
    calibration: Calibration | None = None
    """None where evidence is taken as it is."""


class Checkpoint(BaseModel):
    """A checkpoint read back."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    state: RunState
    weights: dict[str, torch.Tensor]
    """What is evaluated: the best on held-out groups where the recipe stops early, else the running average where it asks
    for one, else the last."""
    optimizer: dict[str, Any]
    """Optimiser state; where others are evaluated also ``raw``, the weights that training goes on from, and ``average``.
    Empty where it was not asked for."""


def save_checkpoint(folder: Path, state: RunState, weights: Mapping[str, Tensor], optimizer: dict[str, Any]) -> None:
    """Write a checkpoint so that ``folder`` always holds a whole one, the old or the new.

    Raises:
        CheckpointError: The disk is full or refuses; the old one is untouched.

    """
    try:
        _write(folder, state, weights, optimizer)
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch and safetensors have errors of their own for a full disk.
        raise CheckpointError(
            f"cannot write the checkpoint {folder}: {error}. The one before it is safe; make room and --resume"
        ) from error


def _write(folder: Path, state: RunState, weights: Mapping[str, Tensor], optimizer: dict[str, Any]) -> None:
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_file({name: x.detach().contiguous().clone() for name, x in weights.items()}, fresh / "model.safetensors")
    torch.save(optimizer, fresh / "optimizer.pt")
    (fresh / "state.json").write_text(state.model_dump_json(indent=1), encoding="utf-8")
    for file in fresh.iterdir():
        flush(file)
    flush(fresh)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    fresh.rename(folder)
    flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def amend_checkpoint(folder: Path, weights: Mapping[str, Tensor], calibration: Calibration) -> None:
    """Write a checkpoint again with what was learnt after training; ``weights`` take the place of those of the same names."""
    held = load_checkpoint(folder, resume=True)
    state = held.state.model_copy(update={"calibration": calibration})
    save_checkpoint(folder, state, held.weights | dict(weights), held.optimizer)


def load_checkpoint(folder: Path, *, resume: bool = False) -> Checkpoint:
    """Read a checkpoint; with ``resume`` also the optimiser's state.

    Raises:
        CheckpointError: It is missing or damaged; the message says which file.

    """
    if not folder.is_dir() and (old := folder.with_name(folder.name + ".old")).is_dir():
        folder = old  # killed between the two renames of save_checkpoint
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoint at {folder}: train first (dtsf train), or name another run folder")
    try:
        state = RunState.model_validate_json((folder / "state.json").read_text("utf-8"))
        weights = _as_named_now(load_file(folder / "model.safetensors"))
        optimizer = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True) if resume else {}
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise CheckpointError(f"{folder / 'state.json'}: {where}: {first['msg']}") from error
    except (OSError, SafetensorError, UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"checkpoint {folder} is damaged: {error}") from error
    for name in optimizer.keys() & {"raw", "average"}:
        optimizer[name] = _as_named_now(optimizer[name])
    return Checkpoint(state=state, weights=weights, optimizer=optimizer)


def _as_named_now(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Until 2026-11-25 motion energy was one number a cell, and its mean was named after that."""
    return {"energy_mean_HWE" if name == "energy_mean_HW1" else name: x for name, x in weights.items()}


def load_network(checkpoint: Checkpoint) -> DTSFNet:
    """The network of a checkpoint, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: The weights do not fit the recipe and classes that the checkpoint names.

    """
    state = checkpoint.state
    n_classes = len(state.info.class_names)
    saved = checkpoint.weights.get("encoder.head.weight")
    if saved is None or saved.shape[0] != n_classes:
        held = "no head" if saved is None else f"{saved.shape[0]} classes"
        raise CheckpointError(f"the checkpoint's weights hold {held}, its state.json names {n_classes} classes")
    net = DTSFNet(
        state.recipe.model,
        channels=state.spec.channels,
        canvas=state.spec.grid,
        n_classes=n_classes,
        n_views=len(state.info.view_names),
    )
    try:
        net.load_state_dict(checkpoint.weights)
    except RuntimeError as error:
        raise CheckpointError(f"the checkpoint's weights do not fit its recipe: {error}") from error
    return net.eval()
