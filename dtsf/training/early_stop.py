"""Groups held out of training: how they are judged after each epoch, and when that ends the run."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from dtsf.training.data import evaluation_batches

if TYPE_CHECKING:
    from torch import Tensor

    from dtsf.model.network import DTSFNet
    from dtsf.training.checkpoint import RunState
    from dtsf.training.data import Groups


@torch.no_grad()
def held_out_score(
    net: DTSFNet, weights: dict[str, Tensor], groups: Groups, batch_size: int = 32
) -> tuple[float, float]:
    """Mean ``-log p`` of the true class, and the share of right answers; draws nothing at random. ``net``: A network of the
    weights' shape; it is left as it is.
    """
    judge = copy.deepcopy(net)
    judge.load_state_dict(weights)
    judge.eval()
    device = next(judge.parameters()).device
    loss, right = 0.0, 0
    for batch in evaluation_batches(groups, batch_size, net.config.frames, net.config.motion_sampling):
        probability_BK = judge(batch.x_BVTHWC.to(device), batch.mask_BV.to(device)).probabilities_BK.double().cpu()
        loss += F.nll_loss(probability_BK.log(), batch.label_B, reduction="sum").item()
        right += int((probability_BK.argmax(-1) == batch.label_B).sum())
    return loss / len(groups), right / len(groups)


def update_best(state: RunState, loss: float) -> RunState:
    """The state with this epoch as the best one, where its loss is below all before it."""
    # Of a network that diverged nothing can be kept.
    if not math.isfinite(loss) or (state.best_loss is not None and not loss < state.best_loss):
        return state
    return state.model_copy(update={"best_epoch": state.epoch, "best_loss": loss})


def should_stop(state: RunState) -> bool:
    """Whether training ends here: the last epoch is done, or patience has run out."""
    train = state.recipe.train
    tired = bool(train.patience and state.best_epoch is not None and state.epoch - state.best_epoch >= train.patience)
    return tired or state.epoch >= train.epochs
