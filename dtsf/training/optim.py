"""Optimiser: learning rate schedule, weight decay, running average of the weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from dtsf.training.recipe import TrainConfig


def schedule(step: int, n_steps: int, warmup: float) -> float:
    """Return the share of the peak learning rate at ``step``: linear warm-up, then cosine to 0."""
    rising = max(1, round(warmup * n_steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1.0 + math.cos(math.pi * (step - rising) / max(1, n_steps - rising)))


def decay_groups(net: nn.Module, weight_decay: float, *, states: bool = False) -> list[dict[str, Any]]:
    """Divide parameters into those with weight decay (matrices) and without. ``states``: A_log decays too."""
    exempt = ("pos_embed", "temporal_pos_embedding", "cls_token", *(() if states else ("A_log", "A_b_log")))
    decayed: list[Tensor] = []
    kept: list[Tensor] = []
    for name, parameter in net.named_parameters():
        (kept if parameter.ndim < 2 or name.endswith(exempt) else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def adamw(net: nn.Module, train: TrainConfig, device: torch.device) -> torch.optim.AdamW:
    """Return AdamW with the settings of the recipe. On a GPU it updates many weights in one launch."""
    groups = decay_groups(net, train.weight_decay, states=train.decay_states)
    return torch.optim.AdamW(groups, lr=train.lr, betas=(0.9, train.beta2), foreach=device.type == "cuda")


@torch.no_grad()
def update_average(average: dict[str, Tensor], net: nn.Module, decay: float, step: int) -> None:
    """Update the running average of the weights in place; a share ``decay`` of it stays. ``step``: from 1."""
    decay = min(decay, (1 + step) / (10 + step))  # smaller in the first steps, to forget the start
    for name, x in net.state_dict().items():
        average[name].lerp_(x, 1.0 - decay)
