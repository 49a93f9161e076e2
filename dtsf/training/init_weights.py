"""Start from published weights: VideoMamba's video and image checkpoints into the encoder.

What is done and why is VideoMamba's own rule (OpenGVLab/VideoMamba, run_class_finetuning; model-facts 1.6): the state may
lie under ``model`` or ``module``; ``module.``, ``backbone.`` and ``encoder.`` in front of names are taken off; an image
checkpoint's 2-D patch kernel gets a time axis of one; positions are interpolated, in space bicubically and in time
linearly; the head stays behind where it is of other classes. Files are read as tensors only, never as code.

Letters: D width, K classes, P patches of a frame, T frames.
"""

from __future__ import annotations

import argparse
import io
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors.torch import load

from dtsf.errors import CheckpointError
from dtsf.files.read import first_line, read_file
from dtsf.settings import explain
from dtsf.training.recipe import resolve_auto

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from dtsf.model.config import ModelConfig
    from dtsf.model.videomamba import VideoMamba
    from dtsf.training.recipe import Recipe

LIMIT = 1 << 36
"""Bytes of the largest checkpoint that is read."""
PREFIXES = ("module.", "backbone.", "branches.0.", "encoder.")
AUTO = 0
"""A width or depth that the recipe leaves open."""


@dataclass
class InitReport:
    """What became of a checkpoint's tensors and of the encoder's."""

    loaded: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)
    """Loaded after a change, and which: a part of ``loaded``."""
    left: dict[str, str] = field(default_factory=dict)
    """In the file and not used, and why."""
    missing: list[str] = field(default_factory=list)
    """In the encoder and not in the file: they keep their random start."""


def read_initial_weights(file: Path, config: ModelConfig) -> dict[str, Tensor]:
    """Read a checkpoint and check that its blocks are of the recipe's size; where that is left open any will do.

    ``file``: ``.pth``/``.pt`` as published, or ``.safetensors`` (also a dtsf run's ``last/model.safetensors``). Returns tensors
    by VideoMamba's names. Raises CheckpointError: the file cannot be read, holds more than tensors, is no VideoMamba, or of
    another size; the message says which ``--set`` would fit.
    """
    if not file.is_file():
        raise CheckpointError(f"--init {file}: no such file")
    data = read_file(file, limit=LIMIT, error=lambda why: CheckpointError(f"--init {why}"), follow=True)
    try:
        if file.suffix == ".safetensors":
            document: Any = load(data)
        else:
            # Training scripts leave their arguments beside the weights; that class is plain data.
            with torch.serialization.safe_globals([argparse.Namespace]):
                document = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  what a forged file makes of their readers has no common base
        raise CheckpointError(f"--init {file} cannot be read as tensors: {first_line(error)}") from error
    weights = _state(document)
    if not any(name.startswith("layers.") for name in weights):
        raise CheckpointError(f"--init {file}: no VideoMamba checkpoint, there is no tensor layers.0...")
    _check_size(file, weights, config)
    bad = [name for name, x in weights.items() if x.is_floating_point() and not x.isfinite().all()]
    if bad:
        raise CheckpointError(f"--init {file}: {bad[0]} holds values that are not finite")
    return weights


def take_sizes(config: ModelConfig, weights: dict[str, Tensor]) -> ModelConfig:
    """The network's settings with the width and depth of these weights where they are left open (``auto``). Raises
    CheckpointError: no network is that large.
    """
    width, depth = _width_and_depth(weights)
    held = {"width": config.width or width, "depth": config.depth or depth}
    try:
        return type(config).model_validate(config.model_dump() | held)
    except ValidationError as error:
        raise CheckpointError(f"--init: the checkpoint's {explain(error)}") from error


def resolve_recipe(file: Path | None, recipe: Recipe, clips: int) -> tuple[Recipe, dict[str, Tensor] | None]:
    """The recipe without ``auto``, and the weights of ``file``, whose sizes it takes; without a file those for so many training
    clips. Raises CheckpointError as :func:`read_initial_weights` and :func:`take_sizes`.
    """
    weights = None
    if file is not None:
        weights = read_initial_weights(file, recipe.model)
        recipe = recipe.model_copy(update={"model": take_sizes(recipe.model, weights)})
    return resolve_auto(recipe, clips), weights


def _width_and_depth(weights: dict[str, Tensor]) -> tuple[int, int]:
    blocks = [int(name.split(".")[1]) for name in weights if name.startswith("layers.")]
    return weights["layers.0.mixer.in_proj.weight"].shape[1], 1 + max(blocks)


def _state(document: Any) -> dict[str, Tensor]:
    for key in ("model", "module", "state_dict"):
        if isinstance(document, dict) and isinstance(document.get(key), dict):
            document = document[key]
    found = document.items() if isinstance(document, dict) else ()
    weights: dict[str, Tensor] = {}
    for name, x in found:
        if not (isinstance(name, str) and isinstance(x, torch.Tensor)):
            continue
        while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), None):
            name = name.removeprefix(prefix)
        weights[name] = x
    return weights


def _check_size(file: Path, weights: dict[str, Tensor], config: ModelConfig) -> None:
    """Compare the sizes that all blocks share; shapes of stem, positions and head may differ and are adapted or left."""
    first = "layers.0.mixer."
    try:
        width, depth = _width_and_depth(weights)
        in_proj, A_log = weights[first + "in_proj.weight"], weights[first + "A_log"]
        held = {
            "width": width,
            "depth": depth,
            "state": A_log.shape[1],
            "expand": in_proj.shape[0] // (2 * width),
            "conv": weights[first + "conv1d.weight"].shape[-1],
        }
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"--init {file}: no VideoMamba checkpoint: {error} is not as expected") from error
    if first + "A_b_log" not in weights:
        raise CheckpointError(f"--init {file}: its blocks scan in one direction only; VideoMamba's have A_b_log too")
    wrong = {key: value for key, value in held.items() if getattr(config, key) not in (value, AUTO)}
    if wrong:
        ours = ", ".join(f"{key} {getattr(config, key)}" for key in wrong)
        change = " ".join(f"--set model.{key}={value}" for key, value in wrong.items())
        raise CheckpointError(f"--init {file} does not fit the recipe's {ours}: {change}")


def load_initial_weights(encoder: VideoMamba, weights: dict[str, Tensor]) -> InitReport:
    """Copy a checkpoint's tensors into an encoder, adapted where that makes sense, and say what was done."""
    report = InitReport()
    own = encoder.state_dict()
    chosen: dict[str, Tensor] = {}
    for name, x in weights.items():
        if name not in own:
            report.left[name] = "the network has no such tensor"
            continue
        fitted, how = _fit(name, x.float(), own[name], int("cls_token" in weights), int("cls_token" in own))
        if fitted.shape != own[name].shape:
            report.left[name] = f"{_shape(x)} in the file, {_shape(own[name])} here"
            continue
        chosen[name] = fitted
        report.loaded.append(name)
        if how:
            report.adapted[name] = how
    # Half a layer is none.
    for layer in ("head", "patch_embed.proj"):
        pair = [f"{layer}.weight", f"{layer}.bias"]
        fitting = [name for name in pair if name in chosen]
        if len(fitting) == 1:
            del chosen[fitting[0]]
            report.loaded.remove(fitting[0])
            report.adapted.pop(fitting[0], None)
            report.left[fitting[0]] = "the other half of the layer does not fit"
    encoder.load_state_dict(own | chosen)
    report.missing = [name for name in own if name not in chosen]
    return report


def _fit(name: str, x: Tensor, own: Tensor, slots: int, own_slots: int) -> tuple[Tensor, str]:
    """A tensor in the encoder's shape where there is a way, and that way in words."""
    if name == "pos_embed" and x.ndim == 3 and x.shape[-1] == own.shape[-1]:
        return _fit_positions(x, own, slots, own_slots)
    if x.shape == own.shape:
        return x, ""
    if name == "patch_embed.proj.weight" and x.ndim == 4:
        return x.unsqueeze(2), "2-D patch kernel given a time axis"
    if name == "temporal_pos_embedding" and x.ndim == 3 and x.shape[-1] == own.shape[-1]:
        return (
            F.interpolate(x.transpose(1, 2), size=own.shape[1], mode="linear", align_corners=False).transpose(1, 2),
            f"interpolated from {x.shape[1]} to {own.shape[1]} frames",
        )
    return x, ""


def _fit_positions(x_1PD: Tensor, own_1PD: Tensor, slots: int, own_slots: int) -> tuple[Tensor, str]:
    """Interpolate the grid of positions; the class token's slot 0 is kept as it is, or has no place."""
    side, own_side = math.isqrt(x_1PD.shape[1] - slots), math.isqrt(own_1PD.shape[1] - own_slots)
    if side**2 != x_1PD.shape[1] - slots or side == 0:
        return x_1PD, ""
    words = []
    grid_1DHW = x_1PD[:, slots:].transpose(1, 2).unflatten(2, (side, side))
    if side != own_side:
        grid_1DHW = F.interpolate(grid_1DHW, size=(own_side, own_side), mode="bicubic", align_corners=False)
        words.append(f"interpolated from {side} x {side} to {own_side} x {own_side} places")
    if slots > own_slots:
        words.append("the class token's place left out")
    first_1PD = (x_1PD if slots else own_1PD)[:, :own_slots]
    return torch.cat([first_1PD, grid_1DHW.flatten(2).transpose(1, 2)], 1), ", ".join(words)


def _shape(x: Tensor) -> str:
    return " x ".join(map(str, x.shape))
