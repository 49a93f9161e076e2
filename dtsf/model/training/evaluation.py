"""How a network is judged: one record of numbers, the same for every protocol and data set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict
from torchmetrics.functional.classification import binary_auroc, multiclass_calibration_error

from dtsf.model.training.data import evaluation_batches

if TYPE_CHECKING:
    from torch import Tensor

    from dtsf.model.network.dtsfnet import DTSFNet
    from dtsf.model.training.data import Groups

__all__ = ["GroupPrediction", "Metrics", "evaluate_groups"]


class GroupPrediction(BaseModel):
    """What the network said of one group."""

    model_config = ConfigDict(frozen=True)

    group: str
    label: int
    predicted: int
    probability: float
    """Of the predicted class."""
    uncertainty: float
    view_weights: tuple[float, ...]


class Metrics(BaseModel):
    """A judgement. Fractions, not percents; None where a number is not defined (no errors, no such class)."""

    model_config = ConfigDict(frozen=True)

    top1: float
    top5: float
    n_groups: int
    ece: float
    """Expected calibration error, 15 bins."""
    auroc_uncertainty: float | None
    """How well the uncertainty tells errors from right answers; 0.5 is chance."""
    uncertainty: float
    """Mean over groups."""
    view_weights: tuple[float, ...]
    """Mean share of each view in the fused feature, over the groups in which the view is present."""
    view_top1: tuple[float | None, ...]
    """Accuracy of each view alone, by the shared head."""
    per_class: dict[str, float | None]
    confusion: tuple[tuple[int, ...], ...]
    """Rows are true classes, columns predicted ones."""
    predictions: tuple[GroupPrediction, ...] = ()


@torch.inference_mode()
def evaluate_groups(net: DTSFNet, groups: Groups, class_names: tuple[str, ...], batch_size: int = 32) -> Metrics:
    """Classify all groups with fixed frames and fixed snapshots: the same numbers every time."""
    device = next(net.parameters()).device
    was_training = net.training
    net.eval()
    outputs = [
        net(*(batch.x_BVTHWC.to(device), batch.mask_BV.to(device)))
        for batch in evaluation_batches(groups, batch_size, net.config.frames)
    ]
    net.train(was_training)
    probability_GK = torch.cat([output.probabilities_BK for output in outputs]).cpu()
    uncertainty_G = torch.cat([output.uncertainty_B for output in outputs]).cpu()
    weights_GV = torch.cat([output.view_weights_BV for output in outputs]).cpu()
    view_predicted_GV = torch.cat([output.view_logits_BVK.argmax(-1) for output in outputs]).cpu()
    return _judge(probability_GK, uncertainty_G, weights_GV, view_predicted_GV, groups, class_names)


def _judge(
    probability_GK: Tensor,
    uncertainty_G: Tensor,
    weights_GV: Tensor,
    view_predicted_GV: Tensor,
    groups: Groups,
    class_names: tuple[str, ...],
) -> Metrics:
    label_G, mask_GV = groups.label_G, groups.mask_GV
    predicted_G = probability_GK.argmax(-1)
    right_G = predicted_G == label_G
    K = len(class_names)
    confusion_KK = torch.zeros(K, K, dtype=torch.int64)
    confusion_KK.index_put_((label_G, predicted_G), torch.ones_like(label_G), accumulate=True)
    top5_G = (probability_GK.topk(min(5, K)).indices == label_G.unsqueeze(1)).any(1)
    mixed = bool(right_G.any()) and not bool(right_G.all())
    present_V = mask_GV.sum(0)
    return Metrics(
        top1=right_G.float().mean().item(),
        top5=top5_G.float().mean().item(),
        n_groups=len(groups),
        ece=multiclass_calibration_error(probability_GK, label_G, num_classes=K).item(),
        auroc_uncertainty=binary_auroc(uncertainty_G, (~right_G).long()).item() if mixed else None,
        uncertainty=uncertainty_G.mean().item(),
        view_weights=tuple((weights_GV.sum(0) / present_V.clamp(min=1)).tolist()),
        view_top1=tuple(
            (view_predicted_GV[mask, v] == label_G[mask]).float().mean().item() if mask.any() else None
            for v, mask in enumerate(mask_GV.unbind(1))
        ),
        per_class={
            name: (confusion_KK[k, k] / total).item() if (total := confusion_KK[k].sum()) else None
            for k, name in enumerate(class_names)
        },
        confusion=tuple(tuple(row) for row in confusion_KK.tolist()),
        predictions=tuple(
            GroupPrediction(
                group=name,
                label=int(label_G[g]),
                predicted=int(predicted_G[g]),
                probability=float(probability_GK[g, predicted_G[g]]),
                uncertainty=float(uncertainty_G[g]),
                view_weights=tuple(weights_GV[g].tolist()),
            )
            for g, name in enumerate(groups.names)
        ),
    )
