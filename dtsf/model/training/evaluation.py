"""How a network is judged: one record of numbers, the same for every protocol and data set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict

from dtsf.cache.records import view_numbers
from dtsf.errors import ConfigError
from dtsf.model.training.data import evaluation_batches, load_groups
from dtsf.model.training.protocols import split_clips

if TYPE_CHECKING:
    from torch import Tensor

    from dtsf.cache.reader import CachedDataset
    from dtsf.model.network.dtsfnet import DTSFNet
    from dtsf.model.training.data import Groups
    from dtsf.model.training.protocols import Protocol, Split

__all__ = ["Evaluation", "GroupPrediction", "Metrics", "evaluate", "evaluate_groups"]


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
    """Accuracy of the shared head on each view's own feature. Where the recipe encodes views together, that feature has
    seen the other views too; what a camera reaches alone is a judgement of its own (``evaluate --views N``)."""
    per_class: dict[str, float | None]
    confusion: tuple[tuple[int, ...], ...]
    """Rows are true classes, columns predicted ones."""
    predictions: tuple[GroupPrediction, ...] = ()


class Evaluation(BaseModel):
    """A judgement and everything needed to know what it is a judgement of. ``metrics.json`` holds one."""

    model_config = ConfigDict(frozen=True)

    dataset: str
    protocol: str
    split: str
    task: str
    """What the test measures, in words."""
    views: tuple[str, ...]
    """Names of the views that the network was given."""
    view_names: tuple[str, ...]
    """Names of all views of the data set, in the order of the metrics' ``view_weights`` and ``view_top1``."""
    left_out: dict[str, int]
    """Clips that are not in the numbers, by reason."""
    seed: int
    fingerprint: str
    metrics: Metrics

    def summary(self) -> dict[str, Any]:
        """One flat object for programs: the metrics beside what they are of."""
        document = self.model_dump(mode="json")
        metrics: dict[str, Any] = document.pop("metrics")
        return document | metrics


def evaluate(
    net: DTSFNet, data: CachedDataset, protocol: Protocol, *, seed: int, split: str = "test", views: str = "all"
) -> Evaluation:
    """Judge a network on one side of a protocol.

    Args:
        net: The network; its classes are the data set's.
        data: An open data set of a cache.
        protocol: Which clips train and which are tested.
        seed: The run's, for the record.
        split: ``test``; or ``train``, to see the fit.
        views: Views the network is given: ``all``, or numbers or names joined by commas.

    Raises:
        ConfigError: An unknown split or view, or no group that has one of ``views``.

    """
    if split not in ("test", "train"):
        raise ConfigError(f"--split {split!r} must be test or train")
    parts = split_clips(data.clips, protocol, data.info.dataset, data.info.view_names)
    groups = load_groups(data, parts.test if split == "test" else parts.train)
    left_out = _left_out(data, parts)
    chosen = view_numbers(views, data.info.view_names, f"--views: {data.info.name}")
    if len(chosen) < len(data.info.view_names):
        before = len(groups)
        groups = groups.with_views(chosen)
        if before > len(groups):
            left_out["groups without the chosen views"] = before - len(groups)
        if not len(groups):
            raise ConfigError(f"--views {views}: no {split} group of {data.info.name} has such a view")
    return Evaluation(
        dataset=data.info.name,
        protocol=str(protocol),
        split=split,
        task=parts.task if split == "test" else "the training clips themselves",
        views=tuple(data.info.view_names[view - 1] for view in chosen),
        view_names=data.info.view_names,
        left_out=left_out,
        seed=seed,
        fingerprint=data.spec.fingerprint(),
        metrics=evaluate_groups(net, groups, data.info.class_names),
    )


def _left_out(data: CachedDataset, split: Split) -> dict[str, int]:
    """Clips that are in no number: bad ones by verdict, and those that the protocol has no place for."""
    bad: dict[str, int] = {}
    for record in data.bad:
        bad[record.verdict.value] = bad.get(record.verdict.value, 0) + 1
    return bad | split.left_out


@torch.inference_mode()
def evaluate_groups(net: DTSFNet, groups: Groups, class_names: tuple[str, ...], batch_size: int = 32) -> Metrics:
    """Classify all groups with fixed frames and fixed snapshots: the same numbers every time."""
    device = next(net.parameters()).device
    was_training = net.training
    net.eval()
    outputs = [
        net(*(batch.x_BVTHWC.to(device), batch.mask_BV.to(device)))
        for batch in evaluation_batches(groups, batch_size, net.config.frames, net.config.pace)
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
    # torchmetrics takes seconds to import; whatever is refused is refused before.
    from torchmetrics.functional.classification import binary_auroc, multiclass_calibration_error

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
