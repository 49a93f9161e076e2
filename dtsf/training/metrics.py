"""Metrics of an evaluation, computed from predictions.

Letters: G groups, U unknown groups, V views, K classes.
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from dtsf.training.data import Groups

BINS = 15
"""Bins of the calibration error and of the reliability table."""
MAX_MATRIX = 400
"""Maximum number of classes with a matrix in ``metrics.json``: it grows with their square."""
TPR = 0.95
"""Share of the known groups that are accepted, for ``fpr95``."""


class Record(BaseModel):
    """Immutable part of ``metrics.json``. The metrics and their description share one object, so other fields are ignored."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class GroupPrediction(Record):
    """Prediction for one group; the probability is that of the predicted class."""

    group: str
    label: int
    predicted: int
    probability: float
    uncertainty: float
    view_weights: tuple[float, ...]


class ReliabilityBin(Record):
    """Groups whose predicted class has a probability in ``(low, high]``: their mean probability and accuracy, None for no group."""

    low: float
    high: float
    n_groups: int
    probability: float | None
    accuracy: float | None


class Metrics(Record):
    """Metrics as fractions, not percents; docs/output.md explains them. None if a number is not defined (no group of a class)."""

    top1: float
    top5: float
    n_groups: int
    ece: float
    auroc_uncertainty: float | None
    uncertainty: float
    view_weights: tuple[float, ...]
    view_top1: tuple[float | None, ...]
    per_class: dict[str, float | None]
    confusion: tuple[tuple[int, ...], ...] = ()
    """Rows are true classes, columns predicted classes. Empty with more than :data:`MAX_MATRIX` classes."""
    confusion_cells: tuple[tuple[int, int, int], ...] = ()
    """The same as true class, predicted class and number of groups, without zeros."""
    reliability: tuple[ReliabilityBin, ...] = ()
    predictions: tuple[GroupPrediction, ...] = ()


class UnknownActions(Record):
    """Detection of ``n_groups`` groups of unknown actions by the uncertainty. The known groups are those of the evaluation."""

    name: str
    """``excluded``, or the name of a dataset."""
    description: str
    n_groups: int
    auroc: float
    """Share of pairs of an unknown and a known group in which the unknown one is more uncertain; 0.5 is chance."""
    fpr95: float
    """Share of the unknown groups that are accepted where 95 % of the known groups are."""
    uncertainty: float


class SetMetrics(Record):
    """Sets of one level on evaluated groups, and the held-out people and performances that their promise rests on."""

    level: float
    by: str
    """``people``: the promise is for new people; ``groups``: for performances like the held-out ones."""
    n_people: int
    n_held_out: int
    coverage: float
    """Share of the evaluated groups whose set has the true class."""
    mean_size: float
    worst_subject: str | None = None
    """Subject with the lowest coverage."""
    worst_coverage: float | None = None


class SurestMetrics(Record):
    """Accuracy of the surest share of the held-out answers, and of the evaluated ones."""

    share: float
    held_out: float
    evaluated: float


def auroc(score_G: Tensor, positive_G: Tensor) -> float:
    """Return the area under the ROC curve (Mann-Whitney on ranks); ties count half. There must be positives and negatives."""
    _, inverse_G, count_X = score_G.double().unique(return_inverse=True, return_counts=True)
    rank_X = count_X.cumsum(0) - (count_X - 1) / 2
    n = int(positive_G.sum())
    above = float(rank_X[inverse_G][positive_G.bool()].sum()) - n * (n + 1) / 2
    return above / (n * (len(score_G) - n))


def open_set_metrics(name: str, description: str, known_G: Tensor, unknown_U: Tensor) -> UnknownActions:
    """Compute the metrics of unknown actions from the uncertainties of known and of unknown groups."""
    is_unknown = torch.cat([torch.zeros(len(known_G)), torch.ones(len(unknown_U))])
    # The smallest threshold that accepts this share of the known groups.
    threshold = known_G.double().sort().values[max(0, -int(-TPR * len(known_G) // 1) - 1)]
    return UnknownActions(
        name=name,
        description=description,
        n_groups=len(unknown_U),
        auroc=auroc(torch.cat([known_G, unknown_U]), is_unknown),
        fpr95=(unknown_U.double() <= threshold).double().mean().item(),
        uncertainty=unknown_U.double().mean().item(),
    )


def compute_metrics(
    probability_GK: Tensor,
    uncertainty_G: Tensor,
    weights_GV: Tensor,
    view_predicted_GV: Tensor,
    groups: Groups,
    class_names: tuple[str, ...],
) -> Metrics:
    """Compute the metrics of all groups. ``weights_GV`` are 0 for absent views; ``view_predicted_GV`` is not read there."""
    label_G, mask_GV, K = groups.label_G, groups.mask_GV, len(class_names)
    predicted_G = probability_GK.argmax(-1)
    right_G = predicted_G == label_G
    pair_X, count_X = (label_G * K + predicted_G).unique(return_counts=True)
    cells = [(p // K, p % K, n) for p, n in zip(pair_X.tolist(), count_X.tolist(), strict=True)]
    total_K, right_K = (x.bincount(minlength=K).tolist() for x in (label_G, label_G[right_G]))
    matrix = [[0] * K for _ in range(K)] if K <= MAX_MATRIX else []
    for true, predicted, n in cells if matrix else ():
        matrix[true][predicted] = n
    top5_G = (probability_GK.topk(min(5, K)).indices == label_G.unsqueeze(1)).any(1)
    mixed = bool(right_G.any()) and not bool(right_G.all())
    reliability = _reliability(probability_GK, label_G)
    lists = (x.tolist() for x in (label_G, predicted_G, probability_GK.amax(-1), uncertainty_G, weights_GV))
    return Metrics(
        top1=int(right_G.sum()) / len(right_G),
        top5=int(top5_G.sum()) / len(top5_G),
        n_groups=len(groups),
        ece=_error_of(reliability),
        reliability=reliability,
        auroc_uncertainty=auroc(uncertainty_G, ~right_G) if mixed else None,
        uncertainty=uncertainty_G.mean().item(),
        view_weights=tuple((weights_GV.sum(0) / mask_GV.sum(0).clamp(min=1)).tolist()),
        view_top1=tuple(
            int((view_predicted_GV[mask, v] == label_G[mask]).sum()) / int(mask.sum()) if mask.any() else None
            for v, mask in enumerate(mask_GV.unbind(1))
        ),
        per_class={name: right_K[k] / total_K[k] if total_K[k] else None for k, name in enumerate(class_names)},
        confusion=tuple(map(tuple, matrix)),
        confusion_cells=tuple(cells),
        predictions=tuple(
            GroupPrediction(group=name, label=y, predicted=k, probability=p, uncertainty=u, view_weights=tuple(weights))
            for name, y, k, p, u, weights in zip(groups.names, *lists, strict=True)
        ),
    )


def calibration_error(probability_GK: Tensor, label_G: Tensor) -> float:
    """Return the expected calibration error, 15 bins: the mean of ``|accuracy - probability|`` over groups."""
    return _error_of(_reliability(probability_GK, label_G))


def bin_of(probability_G: Tensor) -> Tensor:
    """Return the bin of each probability. An edge belongs to the bin below it, also within the rounding error of float32."""
    edge_E = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)
    return torch.bucketize(probability_G.double().round(decimals=6), edge_E[1:-1].round(decimals=6))


def _reliability(probability_GK: Tensor, label_G: Tensor) -> tuple[ReliabilityBin, ...]:
    """Bin predictions by probability."""
    probability_G, right_G = probability_GK.amax(-1).double(), (probability_GK.argmax(-1) == label_G).double()
    bin_G = bin_of(probability_G)
    bins = []
    for k in range(BINS):
        inside_G = bin_G == k
        n = int(inside_G.sum())
        probability, accuracy = (x[inside_G].mean().item() if n else None for x in (probability_G, right_G))
        bins.append(
            ReliabilityBin(low=k / BINS, high=(k + 1) / BINS, n_groups=n, probability=probability, accuracy=accuracy)
        )
    return tuple(bins)


def _error_of(reliability: tuple[ReliabilityBin, ...]) -> float:
    filled = [(row.n_groups, row.accuracy or 0.0, row.probability or 0.0) for row in reliability if row.n_groups]
    return sum(n * abs(accuracy - probability) for n, accuracy, probability in filled) / sum(n for n, *_ in filled)
