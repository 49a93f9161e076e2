"""Detection of a diverged training, and the message about it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from dtsf.errors import DivergedError
from dtsf.training.checkpoint import first_not_finite
from dtsf.training.data import Groups
from dtsf.training.early_stop import held_out_score

if TYPE_CHECKING:
    from dtsf.model.network import DTSFNet

LOWER = (
    "Try a tenth of the learning rate (--set train.lr), a longer --set train.warmup or a smaller --set train.clip_norm"
)
LARGE = 1e3
"""A parameter beyond this is looked at more closely: no training that goes well has one."""
ASKED = 8
"""Groups that weights with large parameters are tried on."""


def refuse_loss(value: float, norm: float, *, step: int, epoch: int, lr: float) -> None:
    """Refuse to go on from a step whose loss, or whose gradient's length, is not finite. ``norm``: length of the gradient.
    Raises DivergedError: one of them is not finite.
    """
    for what, number in (("loss", value), ("length of the gradient", norm)):
        if not math.isfinite(number):
            raise DivergedError(
                f"the training diverged at step {step}, in epoch {epoch + 1}, at learning rate {lr:g}: the {what} is "
                f"{number}. {LOWER}. The checkpoint of epoch {epoch} is kept"
            )


def refuse_weights(net: DTSFNet, groups: Groups, *, step: int, epoch: int, lr: float) -> None:
    """Refuse to keep weights that are not finite, or that give no finite answer. ``groups``: training groups, a few of which
    are asked about where a parameter is suspiciously large. Raises DivergedError: they are no weights to keep.
    """
    weights = net.state_dict()
    bad = first_not_finite(weights)
    why = f"{bad} holds values that are not finite" if bad is not None else ""
    if not why:
        largest = max(float(x.detach().abs().max()) for x in net.parameters())
        if largest > LARGE and not math.isfinite(held_out_score(net, weights, _few(groups))[0]):
            why = f"weights have grown to {largest:.2g}, and the network's answers are not finite"
    if why:
        raise DivergedError(
            f"the training diverged by step {step}, in epoch {epoch + 1}, at learning rate {lr:g}: {why}. {LOWER}. The "
            f"checkpoint of epoch {epoch} is kept"
        )


def _few(groups: Groups) -> Groups:
    row_GV = groups.row_GV[:ASKED]
    used_N, place_GV = torch.unique(row_GV.clamp(min=0), return_inverse=True)
    place_GV = torch.where(row_GV >= 0, place_GV, row_GV)
    return Groups(groups.embeddings_NFHWC[used_N], place_GV, groups.label_G[:ASKED], groups.names[:ASKED])
