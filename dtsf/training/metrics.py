"""Metrics of an evaluation, computed from predictions.

Letters: G groups, V views, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from torch import Tensor

    from dtsf.training.data import Groups

BINS = 15
"""Of the calibration error and the reliability table."""


class GroupPrediction(BaseModel):
    """The prediction for one group."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    group: str
    label: int
    predicted: int
    probability: float
    """Of the predicted class."""
    uncertainty: float
    view_weights: tuple[float, ...]


class ReliabilityBin(BaseModel):
    """The groups whose predicted class got a probability in ``(low, high]``."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    low: float
    high: float
    n_groups: int
    probability: float | None
    """Mean; None in an empty bin."""
    accuracy: float | None
    """Share that was right."""


class Metrics(BaseModel):
    """A judgement. Fractions, not percents; None where a number is not defined (no errors, no such class)."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    top1: float
    top5: float
    n_groups: int
    ece: float
    """Expected calibration error, 15 bins: the mean of ``|accuracy - probability|`` over ``reliability``, by groups."""
    auroc_uncertainty: float | None
    """How well the uncertainty tells errors from right answers; 0.5 is chance."""
    uncertainty: float
    """Mean over groups."""
    view_weights: tuple[float, ...]
    """Mean share of each view in the fused feature, over the groups in which the view is present."""
    view_top1: tuple[float | None, ...]
    """Accuracy of the shared head on each view's own feature. Where the recipe encodes views together, that feature has
    seen the other views too; what a camera reaches alone is a judgement of its own (``evaluate --views N``)."""
    per_class: dict[str, float | None]
    confusion: tuple[tuple[int, ...], ...]
    """Rows are true classes, columns predicted ones."""
    reliability: tuple[ReliabilityBin, ...] = ()
    """Fifteen equal bins, from 0 to 1."""
    predictions: tuple[GroupPrediction, ...] = ()


def judge(
    probability_GK: Tensor,
    uncertainty_G: Tensor,
    weights_GV: Tensor,
    view_predicted_GV: Tensor,
    groups: Groups,
    class_names: tuple[str, ...],
) -> Metrics:
    """Compute the metrics of all predictions.

    Args:
        uncertainty_G: In (0, 1].
        weights_GV: Share of each view; 0 where it is absent.
        view_predicted_GV: Class predicted from each view's own feature; anything where it is absent.
    """
    # torchmetrics takes seconds to import; whatever is refused is refused before.
    from torchmetrics.functional.classification import binary_auroc

    label_G, mask_GV = groups.label_G, groups.mask_GV
    predicted_G = probability_GK.argmax(-1)
    right_G = predicted_G == label_G
    K = len(class_names)
    confusion_KK = torch.zeros(K, K, dtype=torch.int64)
    confusion_KK.index_put_((label_G, predicted_G), torch.ones_like(label_G), accumulate=True)
    top5_G = (probability_GK.topk(min(5, K)).indices == label_G.unsqueeze(1)).any(1)
    mixed = bool(right_G.any()) and not bool(right_G.all())
    present_V = mask_GV.sum(0)
    reliability = _reliability(probability_GK.amax(-1), right_G)
    return Metrics(
        top1=int(right_G.sum()) / len(right_G),
        top5=int(top5_G.sum()) / len(top5_G),
        n_groups=len(groups),
        ece=_error_of(reliability),
        reliability=reliability,
        auroc_uncertainty=binary_auroc(uncertainty_G, (~right_G).long()).item() if mixed else None,
        uncertainty=uncertainty_G.mean().item(),
        view_weights=tuple((weights_GV.sum(0) / present_V.clamp(min=1)).tolist()),
        view_top1=tuple(
            int((view_predicted_GV[mask, v] == label_G[mask]).sum()) / int(mask.sum()) if mask.any() else None
            for v, mask in enumerate(mask_GV.unbind(1))
        ),
        per_class={
            name: int(confusion_KK[k, k]) / total if (total := int(confusion_KK[k].sum())) else None
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


def _reliability(probability_G: Tensor, right_G: Tensor) -> tuple[ReliabilityBin, ...]:
    """Fifteen equal bins; a probability on an edge belongs to the bin below, also where float32 misses the edge by a hair."""
    probability_G = probability_G.double()
    edge_E = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)
    bin_G = torch.bucketize(probability_G.round(decimals=6), edge_E[1:-1].round(decimals=6))
    bins = []
    for k in range(BINS):
        inside_G = bin_G == k
        n = int(inside_G.sum())
        bins.append(
            ReliabilityBin(
                low=k / BINS,
                high=(k + 1) / BINS,
                n_groups=n,
                probability=probability_G[inside_G].mean().item() if n else None,
                accuracy=right_G[inside_G].double().mean().item() if n else None,
            )
        )
    return tuple(bins)


def calibration_error(probability_GK: Tensor, label_G: Tensor) -> float:
    """Expected calibration error of probabilities, as :attr:`Metrics.ece`."""
    return _error_of(_reliability(probability_GK.amax(-1), probability_GK.argmax(-1) == label_G))


def _error_of(reliability: tuple[ReliabilityBin, ...]) -> float:
    """The mean over groups of how far the accuracy of their bin is from its probability."""
    groups = sum(row.n_groups for row in reliability)
    apart = [
        row.n_groups * abs(row.accuracy - row.probability)
        for row in reliability
        if row.accuracy is not None and row.probability is not None
    ]
    return sum(apart) / groups
