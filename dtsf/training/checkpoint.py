"""Run folders and checkpoints: whole or not there at all, and nothing in them is code.

A checkpoint is a folder of ``model.safetensors``, ``optimizer.pt`` (loaded with ``weights_only``) and ``state.json``.
It is written beside its place, flushed to disk, and moved there; a process killed in between leaves the old one.
"""

from __future__ import annotations

import io
import os
import shutil
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load, save

from dtsf.cache.schema import CacheSpec, DatasetInfo
from dtsf.errors import CheckpointError
from dtsf.files.read import first_line, parse_model, read_file
from dtsf.files.write import fresh_file, fresh_folder, move, refusal
from dtsf.model.network import DTSFNet
from dtsf.training.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

LIMITS = {"state.json": 1 << 24, "model.safetensors": 1 << 34, "optimizer.pt": 1 << 36}
"""Bytes that the files of a checkpoint can have."""
RUN_VERSION = 2
"""Version of the run folder's format: names of recipe keys and of weights."""
LOWER = (
    "Try a tenth of the learning rate (--set train.lr), a longer --set train.warmup or a smaller --set train.clip_norm"
)


def has_checkpoint(run: Path) -> bool:
    """Whether a run's folder holds a checkpoint to go on from: the newest, or the one before it, kept while it is replaced."""
    return any((run / name).is_dir() for name in ("last", "last.old"))


def resume_or_clear(run: Path) -> bool:
    """Prepare a run's folder. True where it has a checkpoint to go on from; what has none is removed."""
    if has_checkpoint(run):
        return True
    shutil.rmtree(run, ignore_errors=True)
    return False


class Calibration(BaseModel):
    """How much of the evidence is believed, and what that was learnt from: see :mod:`.calibration`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

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
    inverse_temperature: float
    bias: float
    weights: dict[str, float]
    """Weights by the names of :data:`dtsf.model.calibrator.FEATURES`."""


class _Version(BaseModel):
    """Version alone, of a document whose other keys may be of another version."""

    version: int = 1


class RunState(BaseModel):
    """What a checkpoint knows of itself beside the tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    version: int = RUN_VERSION
    """Version of the run folder's format."""
    epoch: int = Field(ge=0, le=10**9)
    """Epochs finished."""
    step: int = Field(ge=0, le=10**12)
    """Optimiser steps made."""
    seed: int = Field(ge=-(2**63), lt=2**64)
    protocol: str
    fingerprint: str
    """Of the cache it was trained from."""
    spec: CacheSpec
    """How its input is made: ``predict`` decodes and embeds by it."""
    info: DatasetInfo
    """Classes and views."""
    recipe: Recipe
    versions: dict[str, str]
    catalog: str = ""
    """Digest of what was said of which clips (:meth:`dtsf.cache.catalog.CatalogDocument.digest`); empty in runs from before."""
    processes: int = Field(default=1, ge=1, le=2**20)
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
    """Write a checkpoint so that ``folder`` always holds a whole one, the old or the new. Raises CheckpointError: the disk is
    full or refuses; the old one is untouched.
    """
    if not folder.parent.is_dir():
        raise CheckpointError(f"the run folder {folder.parent} is gone: the training in it is lost; begin it anew")
    try:
        _write(folder, state, weights, optimizer)
    except OSError as error:
        raise CheckpointError(
            f"cannot write the checkpoint {folder}: {refusal(error)}. The one before it is safe; make room and --resume"
        ) from error


def _write(folder: Path, state: RunState, weights: Mapping[str, Tensor], optimizer: dict[str, Any]) -> None:
    fresh, old = fresh_folder(folder), folder.with_name(folder.name + ".old")
    try:
        with fresh_file(fresh / "model.safetensors") as file:
            file.write(save({name: x.detach().contiguous().clone() for name, x in weights.items()}))
        with fresh_file(fresh / "optimizer.pt") as file:
            # In memory first: torch.save has an error of its own for a full disk, which does not speak of the disk.
            buffer = io.BytesIO()
            torch.save(optimizer, buffer)
            file.write(buffer.getbuffer())
        with fresh_file(fresh / "state.json") as file:
            file.write(state.model_dump_json(indent=1).encode())
        if os.path.lexists(folder):
            _remove(old)
            folder.rename(old)
        move(fresh, folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    _remove(old)


def _remove(old: Path) -> None:
    """Take away a checkpoint that is no longer needed; of a link only the link."""
    if old.is_symlink():
        old.unlink()
    else:
        shutil.rmtree(old, ignore_errors=True)


def amend_checkpoint(folder: Path, weights: Mapping[str, Tensor], calibration: Calibration | None) -> None:
    """Write a checkpoint again with what was learnt after training; ``weights`` take the place of those of the same names."""
    held = load_checkpoint(folder, resume=True)
    state = held.state.model_copy(update={"calibration": calibration})
    save_checkpoint(folder, state, held.weights | dict(weights), held.optimizer)


def load_checkpoint(folder: Path, *, resume: bool = False) -> Checkpoint:
    """Read a checkpoint; with ``resume`` also the optimiser's state. Raises CheckpointError: it is missing or damaged; the
    message says which file.
    """
    if not folder.is_dir() and (old := folder.with_name(folder.name + ".old")).is_dir():
        folder = old  # killed between the two renames of save_checkpoint
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoint at {folder}: train first (dtsf train), or name another run folder")
    document, tensors, kept = (
        read_file(folder / name, limit=limit, error=CheckpointError) if resume or name != "optimizer.pt" else b""
        for name, limit in LIMITS.items()
    )
    version = parse_model(_Version, document, str(folder / "state.json"), error=CheckpointError).version
    if version != RUN_VERSION:
        raise CheckpointError(
            f"{folder / 'state.json'} has version {version}, and this dtsf reads version {RUN_VERSION}: train again"
        )
    state = parse_model(RunState, document, str(folder / "state.json"), error=CheckpointError)
    try:
        weights = load(tensors)
        optimizer = torch.load(io.BytesIO(kept), map_location="cpu", weights_only=True) if resume else {}
    except Exception as error:  # noqa: BLE001  what a forged file makes of their readers has no common base
        raise CheckpointError(f"checkpoint {folder} is damaged: {first_line(error)}") from error
    bad = first_not_finite(weights)
    if bad is not None:
        raise CheckpointError(
            f"checkpoint {folder}: {bad} holds values that are not finite: nothing can be asked of it"
        )
    return Checkpoint(state=state, weights=weights, optimizer=optimizer)


def first_not_finite(weights: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor with a NaN or an infinity, or None."""
    bad = (name for name, x in weights.items() if x.is_floating_point() and not x.isfinite().all())
    return next(bad, None)


def load_network(checkpoint: Checkpoint) -> DTSFNet:
    """The network of a checkpoint, in evaluation mode, on the CPU. Raises CheckpointError: the weights do not fit the recipe
    and classes that the checkpoint names.
    """
    state = checkpoint.state
    n_classes = len(state.info.class_names)
    saved = checkpoint.weights.get("branches.0.encoder.head.weight")
    if saved is None or saved.ndim != 2 or saved.shape[0] != n_classes:
        held = "no head" if saved is None or saved.ndim != 2 else f"{saved.shape[0]} classes"
        raise CheckpointError(f"the checkpoint's weights hold {held}, its state.json names {n_classes} classes")
    # Without memory first: a state.json may name any size, the weights that are there bound it.
    with torch.device("meta"):
        wanted = _network(state).state_dict()
    for name in wanted.keys() | checkpoint.weights.keys():
        ours, theirs = wanted.get(name), checkpoint.weights.get(name)
        if ours is None or theirs is None or ours.shape != theirs.shape or ours.is_complex() != theirs.is_complex():
            shapes = [
                f"{'x'.join(map(str, x.shape)) or 'one number'}" if x is not None else "none" for x in (theirs, ours)
            ]
            raise CheckpointError(
                f"the checkpoint's weights do not fit its recipe: {name} is {shapes[0]}, not {shapes[1]}"
            )
    net = _network(state)
    net.load_state_dict(checkpoint.weights)
    return net.eval()


def _network(state: RunState) -> DTSFNet:
    try:
        return DTSFNet(
            state.recipe.model,
            channels=state.spec.channels,
            side=state.spec.grid,
            n_classes=len(state.info.class_names),
            n_views=len(state.info.view_names),
        )
    except (ValueError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"the recipe of the checkpoint makes no network: {error}") from error
