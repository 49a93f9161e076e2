"""Initial weights of the encoder from VideoMamba checkpoints of videos or images.

The rules are those of VideoMamba's ``run_class_finetuning.py``; see docs/paper.md. Files are read as tensors only, never as code.
Letters: D width, P patches of a frame.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor

from dtsf.errors import CheckpointError
from dtsf.files.read import first_line, read_file
from dtsf.model.config import ModelConfig
from dtsf.model.videomamba import VideoMamba
from dtsf.training.checkpoint import first_not_finite
from dtsf.training.tensor_files import first_unfit, load_foreign

PREFIX = re.compile(r"(?:module\.|backbone\.|branches\.0\.|encoder\.)*")


@dataclass
class InitReport:
    """Use of the tensors of a checkpoint. Written to ``init.json``."""

    loaded: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)
    """Loaded tensors that were changed, with the change."""
    left: dict[str, str] = field(default_factory=dict)
    """Unused tensors of the file, with the reason. Tensors of the encoder that the file lacks (``missing``) keep random values."""
    missing: list[str] = field(default_factory=list)
    seen: list[dict[str, Any]] = field(default_factory=list)
    """Dataset, protocol and people of the run, and of those that it started from."""
    summary: str = ""


def read_initial_weights(file: Path) -> dict[str, Tensor]:
    """Read a checkpoint (``.pth``, ``.pt`` or ``.safetensors``): tensors by VideoMamba's names. Raises CheckpointError: no readable
    VideoMamba checkpoint of tensors only.
    """
    data = read_file(file, limit=1 << 36, error=lambda why: CheckpointError(f"--init {why}"), follow=True)
    try:
        if file.suffix == ".safetensors":
            document: Any = load(data)
        else:
            document = load_foreign(data)
    except Exception as error:  # noqa: BLE001  errors of these readers for a forged file have no common base
        raise CheckpointError(f"--init {file} cannot be read as tensors: {first_line(error)}") from error
    for key in ("model", "module", "state_dict"):
        if isinstance(document, dict) and isinstance(document.get(key), dict):
            document = document[key]
    items = document.items() if isinstance(document, dict) else ()
    weights: dict[str, Tensor] = {
        PREFIX.sub("", name, count=1): x for name, x in items if isinstance(name, str) and isinstance(x, torch.Tensor)
    }
    if not any(name.startswith("layers.") for name in weights):
        raise CheckpointError(f"--init {file}: not a VideoMamba checkpoint: it has no tensor layers.0...")
    if (unfit := first_unfit(weights, len(data))) is not None:
        raise CheckpointError(f"--init {file}: {unfit} is not a dense tensor, or is larger than the file")
    if (bad := first_not_finite(weights)) is not None:
        raise CheckpointError(f"--init {file}: {bad} has values that are not finite")
    return weights


def check_blocks(file: Path, weights: dict[str, Tensor], config: ModelConfig) -> None:
    """Raise CheckpointError if the blocks of a checkpoint have other sizes than the recipe. The message names the ``--set`` that
    fits. Stem, positions and head may differ: they are adapted or dropped.
    """
    first = "layers.0.mixer."
    try:
        width, depth = width_and_depth(weights)
        found = {
            "width": width,
            "depth": depth,
            "state": weights[first + "A_log"].shape[1],
            "expand": weights[first + "in_proj.weight"].shape[0] // (2 * width),
            "conv": weights[first + "conv1d.weight"].shape[-1],
        }
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"--init {file}: not a VideoMamba checkpoint: {error} is not as expected") from error
    if first + "A_b_log" not in weights:
        raise CheckpointError(f"--init {file}: its blocks scan in one direction only; VideoMamba's have A_b_log too")
    # A width or depth of 0 is ``auto``.
    wrong = {key: value for key, value in found.items() if getattr(config, key) not in (value, 0)}
    if wrong:
        ours = ", ".join(f"{key} {getattr(config, key)}" for key in wrong)
        change = " ".join(f"--set model.{key}={value}" for key, value in wrong.items())
        raise CheckpointError(f"--init {file} does not fit the recipe's {ours}: {change}")


def width_and_depth(weights: dict[str, Tensor]) -> tuple[int, int]:
    """Return the width and the number of blocks of an encoder."""
    blocks = [int(name.split(".")[1]) for name in weights if name.startswith("layers.")]
    return weights["layers.0.mixer.in_proj.weight"].shape[1], 1 + max(blocks)


def load_initial_weights(encoder: VideoMamba, weights: dict[str, Tensor]) -> InitReport:
    """Copy the tensors of a checkpoint into an encoder, adapted to its shapes where possible."""
    report, own = InitReport(), encoder.state_dict()
    chosen: dict[str, Tensor] = {}
    for name, x in weights.items():
        if name not in own:
            report.left[name] = "the network has no such tensor"
            continue
        fitted, change = _fit(name, x.float(), own[name], int("cls_token" in weights), int("cls_token" in own))
        if fitted.shape == own[name].shape:
            chosen[name] = fitted
            report.adapted |= {name: change} if change else {}
        else:
            shapes = [" x ".join(map(str, y.shape)) for y in (x, own[name])]
            report.left[name] = f"{shapes[0]} in the file, {shapes[1]} here"
    # Weight and bias of a layer are loaded together or not at all.
    for layer in ("head", "patch_embed.proj"):
        fitting = [name for name in (f"{layer}.weight", f"{layer}.bias") if name in chosen]
        if len(fitting) == 1:
            del chosen[fitting[0]]
            report.adapted.pop(fitting[0], None)
            report.left[fitting[0]] = "the other half of the layer does not fit"
    encoder.load_state_dict(own | chosen)
    report.loaded, report.missing = list(chosen), [name for name in own if name not in chosen]
    words = [f"{len(report.loaded)} tensors loaded", *(f"{name} {how}" for name, how in report.adapted.items())]
    words += [f"left: {name} ({why})" for name, why in report.left.items()]
    report.summary = "; ".join([*words, *(f"random: {name}" for name in report.missing)])
    return report


def _fit(name: str, x: Tensor, own: Tensor, slots: int, own_slots: int) -> tuple[Tensor, str]:
    """Return a tensor in the shape of the encoder if possible, and the change. ``slots``: class tokens in the positions.

    The grid of positions is interpolated. The slot of the class token is kept, or dropped if the encoder has none.
    """
    same_width = x.ndim == 3 and x.shape[-1] == own.shape[-1]
    if name == "pos_embed" and same_width:
        side, own_side = math.isqrt(max(0, x.shape[1] - slots)), math.isqrt(own.shape[1] - own_slots)
        if side**2 != x.shape[1] - slots or side == 0:
            return x, ""
        changes, grid_1DHW = [], x[:, slots:].transpose(1, 2).unflatten(2, (side, side))
        if side != own_side:
            grid_1DHW = F.interpolate(grid_1DHW, size=(own_side, own_side), mode="bicubic", align_corners=False)
            changes.append(f"interpolated from {side} x {side} to {own_side} x {own_side} positions")
        if slots > own_slots:
            changes.append("position of the class token dropped")
        first_1PD = (x if slots else own)[:, :own_slots]
        return torch.cat([first_1PD, grid_1DHW.flatten(2).transpose(1, 2)], 1), ", ".join(changes)
    if x.shape == own.shape:
        return x, ""
    if name == "patch_embed.proj.weight" and x.ndim == 4:
        return x.unsqueeze(2), "2-D patch kernel given a time axis"
    if name == "temporal_pos_embedding" and same_width:
        y = F.interpolate(x.transpose(1, 2), size=own.shape[1], mode="linear", align_corners=False).transpose(1, 2)
        return y, f"interpolated from {x.shape[1]} to {own.shape[1]} frames"
    return x, ""
