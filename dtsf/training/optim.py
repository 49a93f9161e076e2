"""How the weights are moved: schedule, weight decay, running average."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dtsf.training.recipe import TrainConfig


def schedule(step: int, n_steps: int, warmup: float) -> float:
    """Share of the peak learning rate at ``step``: linear warm-up, then cosine to 0."""
    rising = max(1, round(warmup * n_steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1.0 + math.cos(math.pi * (step - rising) / max(1, n_steps - rising)))


def decay_groups(net: nn.Module, weight_decay: float, *, states: bool = False) -> list[dict[str, Any]]:
    """Split parameters by whether weight decay applies: to matrices, not to norms, biases, positions, D, cls, and A_log.
    ``states``: apply it to A_log too.
    """
    exempt = ("pos_embed", "temporal_pos_embedding", "cls_token", *(() if states else ("A_log", "A_b_log")))
    decayed: list[Tensor] = []
    kept: list[Tensor] = []
    for name, parameter in net.named_parameters():
        (kept if parameter.ndim < 2 or name.endswith(exempt) else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def adamw(net: nn.Module, train: TrainConfig, device: torch.device) -> torch.optim.AdamW:
    """AdamW as the recipe says, for weights on ``device``. On a card many weights a launch: one by one, VideoMamba-S has
    thousands of launches a step.
    """
    return torch.optim.AdamW(
        decay_groups(net, train.weight_decay, states=train.decay_states),
        lr=train.lr,
        betas=(0.9, train.beta2),
        foreach=device.type == "cuda",
    )


@torch.no_grad()
def update_average(average: dict[str, Tensor], net: nn.Module, decay: float, step: int) -> None:
    """Running average of the weights; its first steps forget faster, so that the start leaves no trace. ``decay``: share of the
    average that stays, after the first steps. ``step``: from 1.
    """
    decay = min(decay, (1 + step) / (10 + step))
    for name, x in net.state_dict().items():
        average[name].lerp_(x, 1.0 - decay)
