"""Checks after each step and epoch: the score on held-out groups, early stopping, and divergence."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from dtsf.errors import DivergedError
from dtsf.training.checkpoint import first_not_finite
from dtsf.training.data import Groups, evaluation_batches

if TYPE_CHECKING:
    from torch import Tensor

    from dtsf.model.network import DTSFNet
    from dtsf.training.checkpoint import RunState

ADVICE = (
    "Try a tenth of the learning rate (--set train.lr), a longer --set train.warmup or a smaller --set train.clip_norm"
)
LARGE = 1e3
"""Size of a weight above which predictions are checked. Normal trainings stay far below."""
N_CHECKED = 8
"""Number of groups whose predictions are checked."""


@torch.no_grad()
def held_out_score(
    net: DTSFNet, weights: dict[str, Tensor], groups: Groups, batch_size: int = 32
) -> tuple[float, float]:
    """Return the mean ``-log p`` of the true class, and the accuracy, of ``weights`` in a copy of ``net``. Draws nothing."""
    net = copy.deepcopy(net)
    net.load_state_dict(weights)
    net.eval()
    device = next(net.parameters()).device
    loss, right = 0.0, 0
    for batch in evaluation_batches(groups, batch_size, net.config.frames, net.config.motion_sampling):
        probability_BK = net(batch.x_BVTHWC.to(device), batch.mask_BV.to(device)).probabilities_BK.double().cpu()
        loss += F.nll_loss(probability_BK.log(), batch.label_B, reduction="sum").item()
        right += int((probability_BK.argmax(-1) == batch.label_B).sum())
    return loss / len(groups), right / len(groups)


def update_best(state: RunState, loss: float) -> RunState:
    """Return the state with this epoch as the best one if its held-out loss is finite and below all before it."""
    if not math.isfinite(loss) or (state.best_loss is not None and not loss < state.best_loss):
        return state
    return state.model_copy(update={"best_epoch": state.epoch, "best_loss": loss})


def should_stop(state: RunState) -> bool:
    """Return True after the last epoch, or when the patience is over."""
    train = state.recipe.train
    waited = state.epoch - state.best_epoch if state.best_epoch is not None else 0
    return state.epoch >= train.epochs or bool(train.patience and waited >= train.patience)


def refuse_loss(loss: float, norm: float, *, step: int, epoch: int, lr: float) -> None:
    """Raise DivergedError if the loss or the norm of the gradient is not finite."""
    for name, number in (("loss", loss), ("norm of the gradient", norm)):
        if not math.isfinite(number):
            raise _diverged(f"the {name} is {number}", f"at step {step}", epoch, lr)


def refuse_weights(net: DTSFNet, groups: Groups, *, step: int, epoch: int, lr: float) -> None:
    """Raise DivergedError if weights are not finite, or if large weights give predictions for ``groups`` that are not finite."""
    weights = net.state_dict()
    if (bad := first_not_finite(weights)) is not None:
        raise _diverged(f"{bad} has values that are not finite", f"by step {step}", epoch, lr)
    largest = max(float(x.detach().abs().max()) for x in net.parameters())
    if largest <= LARGE:
        return
    # A few groups with their own clips: motion sampling reads all clips of its groups.
    row_GV = groups.row_GV[:N_CHECKED]
    used_N, new_GV = torch.unique(row_GV.clamp(min=0), return_inverse=True)
    row_GV = torch.where(row_GV >= 0, new_GV, row_GV)
    few = Groups(groups.embeddings_NFHWC[used_N], row_GV, groups.label_G[:N_CHECKED], groups.names[:N_CHECKED])
    if not math.isfinite(held_out_score(net, weights, few)[0]):
        why = f"weights have grown to {largest:.2g}, and the predictions are not finite"
        raise _diverged(why, f"by step {step}", epoch, lr)


def _diverged(why: str, when: str, epoch: int, lr: float) -> DivergedError:
    return DivergedError(
        f"the training diverged {when}, in epoch {epoch + 1}, at learning rate {lr:g}: {why}. {ADVICE}. The checkpoint of "
        f"epoch {epoch} is kept"
    )
