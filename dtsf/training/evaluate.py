"""Evaluation of a network: the same metrics for every protocol and dataset.

Letters: B groups of a batch, G groups, V views, K classes.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict

from dtsf.cache.catalog import view_numbers
from dtsf.errors import CheckpointError, ConfigError
from dtsf.training.adapt import OnlineAdapter
from dtsf.training.data import evaluation_batches, load_groups
from dtsf.training.metrics import Metrics, UnknownActions, compute_metrics, open_set_metrics
from dtsf.training.protocols import split_clips
from dtsf.training.splits import EXCLUDED, split_by_known_classes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from dtsf.cache.reader import CachedDataset
    from dtsf.cache.schema import CacheSpec, Clip
    from dtsf.model.config import ModelConfig
    from dtsf.model.network import DTSFNet
    from dtsf.training.data import Groups
    from dtsf.training.protocols import Protocol


class Evaluation(BaseModel):
    """Metrics, and the data and settings that they belong to. Stored in ``metrics.json``."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    dataset: str
    protocol: str
    split: str
    task: str
    """Description of what the test measures."""
    views: tuple[str, ...]
    """Names of the views that the network got."""
    view_names: tuple[str, ...]
    """Names of all views of the dataset, in the order of ``view_weights`` and ``view_top1`` of the metrics."""
    n_clips: int = 0
    """Number of evaluated clips: the views of the groups that the network got."""
    draws: int = 1
    """Number of sets of frames over which the numbers are averaged."""
    left_out: dict[str, int]
    """Number of clips that are not evaluated, by reason."""
    groups_left_out: dict[str, int] = {}
    """Number of groups that are not evaluated, by reason."""
    seed: int
    fingerprint: str
    catalog: str = ""
    """Hash of the clips and their annotations."""
    unknown: UnknownActions | None = None
    """Detection of unknown actions, if requested."""
    adapted: bool = False
    """True if the network was adapted to the test clips during the evaluation."""
    metrics: Metrics

    def summary(self) -> dict[str, Any]:
        """Return one flat JSON object: the metrics and their description."""
        document = self.model_dump(mode="json")
        metrics: dict[str, Any] = document.pop("metrics")
        return document | metrics


def evaluate(
    net: DTSFNet,
    data: CachedDataset,
    protocol: Protocol,
    *,
    seed: int,
    split: str = "test",
    views: str = "all",
    draws: int = 1,
    trained_on: str | None = None,
    classes: tuple[str, ...] | None = None,
    unknown: CachedDataset | None = None,
    adapt: bool = False,
) -> Evaluation:
    """Evaluate a network on one side of a protocol.

    Args:
        split: ``test``; or ``train``, to measure the fit.
        views: Views that the network gets: ``all``, or numbers or names joined by commas.
        classes: Names of the classes of the network; those of the dataset by default. Clips of other classes are left out.
        unknown: Dataset for the detection of unknown actions: its clips of classes that the network does not have, or all its
            clips if it has none. If it is ``data`` itself, only clips of the same side of the protocol.
        adapt: Adapt the network to the test clips, one group after the other; see :mod:`.adapt`.
        trained_on: Name of the dataset of the training; this one by default.

    Raises:
        ConfigError: Unknown split or view, no group with one of ``views``, equal draws, no clip of a known class, or no clip of an
            unknown class in ``data``.
    """
    if split not in ("test", "train"):
        raise ConfigError(f"--split {split!r} must be test or train")
    check_draws(draws, net.config, data.spec)
    sides = split_clips(data.clips, protocol, data.info.kind, data.info.view_names, needed=(split,))
    classes = classes or data.info.class_names
    known, others = split_by_known_classes(
        sides.test if split == "test" else sides.train, data.info.class_names, classes
    )
    if not known:
        raise ConfigError(f"{data.info.name} has no {split} clip of a class that the network knows")
    groups = load_groups(data, known)
    task = sides.task if split == "test" else "the training clips themselves: no generalisation is measured"
    if trained_on not in (None, data.info.name):
        # The description of the protocol compares its two sides; the network was trained on neither.
        part = "every clip" if protocol.name == "all" else f"the {split} clips by {protocol}"
        task = f"{part} of another dataset, {data.info.name} (trained on {trained_on})"
    left_out, groups_left_out = _unusable(data, protocol, split) | sides.left_out, {}
    if others:
        left_out["of classes that the network does not know"] = len(others)
    names = data.info.view_names
    chosen = view_numbers(views, names, f"--views: {data.info.name}")
    if len(chosen) < len(names):
        before, clips = len(groups), int(groups.mask_GV.sum())
        groups = groups.with_views(chosen)
        if not len(groups):
            raise ConfigError(f"--views {views}: no {split} group of {data.info.name} has such a view")
        if clips > int(groups.mask_GV.sum()):
            left_out["of other views than --views"] = clips - int(groups.mask_GV.sum())
        if before > len(groups):
            groups_left_out["without any of --views"] = before - len(groups)
        task += f"; given only view{'s' if len(chosen) > 1 else ''} {', '.join(names[view - 1] for view in chosen)}"
    adapter = OnlineAdapter(net) if adapt else None
    metrics = evaluate_groups(net, groups, classes, draws=draws, adapter=adapter)
    open_set = None
    if unknown is not None:
        name, description, unknown_groups = _unknown_groups(unknown, data, others, classes, chosen)
        uncertainty_U = _predict(net, unknown_groups, 32, draws, adapter)[1]
        known_G = torch.tensor([one.uncertainty for one in metrics.predictions])
        open_set = open_set_metrics(name, description, known_G, uncertainty_U)
    return Evaluation(
        dataset=data.info.name,
        protocol=str(protocol),
        split=split,
        task=task,
        views=tuple(names[view - 1] for view in chosen),
        view_names=names,
        n_clips=int(groups.mask_GV.sum()),
        draws=draws,
        left_out=left_out,
        groups_left_out=groups_left_out,
        seed=seed,
        fingerprint=data.spec.fingerprint(),
        catalog=data.catalog_hash,
        unknown=open_set,
        adapted=adapt,
        metrics=metrics,
    )


def _unknown_groups(
    unknown: CachedDataset, data: CachedDataset, others: Sequence[Clip], classes: tuple[str, ...], views: Sequence[int]
) -> tuple[str, str, Groups]:
    """Return name, description and groups of the unknown actions. ``others``: clips of ``data`` of unknown classes."""
    if unknown.info.name == data.info.name:
        if not others:
            raise ConfigError(
                f"--unknown {EXCLUDED}: the network knows every class of {data.info.name}: train with "
                "--set train.exclude_classes=CLASSES, or name another dataset"
            )
        excluded = sorted({data.info.class_names[clip.label] for clip in others})
        description = f"classes excluded from training: {', '.join(excluded)}"
        return EXCLUDED, description, load_groups(data, others).with_views(views)
    clips = split_by_known_classes(unknown.clips, unknown.info.class_names, classes)[1]
    part = "its classes that the network does not know" if clips else "every clip"
    return unknown.info.name, f"{unknown.info.name}, {part}", load_groups(unknown, clips or unknown.clips)


def check_draws(draws: int, config: ModelConfig, spec: CacheSpec) -> None:
    """Raise ConfigError if ``draws`` is below 1, or if all sets of frames would be the same."""
    if draws < 1:
        raise ConfigError(f"--draws {draws}: at least 1")
    if draws > 1 and config.motion_sampling == 0 and config.frames == spec.frames:
        raise ConfigError(
            f"all {draws} draws of frames would be the same: with model.motion_sampling 0 the network takes each of the "
            f"{spec.frames} cached frames. Use --draws 1, fewer model.frames, or preprocess with more --frames"
        )


def _unusable(data: CachedDataset, protocol: Protocol, split: str) -> dict[str, int]:
    """Count the unusable clips of one side of the protocol by status."""
    bad = {one.clip.id: one.status for one in data.bad}
    clips = (*data.clips, *(one.clip for one in data.bad))
    sides = split_clips(clips, protocol, data.info.kind, data.info.view_names, needed=())
    return dict(Counter(bad[clip.id] for clip in (sides.test if split == "test" else sides.train) if clip.id in bad))


def evaluate_groups(
    net: DTSFNet,
    groups: Groups,
    class_names: tuple[str, ...],
    batch_size: int = 32,
    draws: int = 1,
    adapter: OnlineAdapter | None = None,
) -> Metrics:
    """Classify all groups without random draws.

    ``draws``: number of sets of frames to average over: set k of n takes the position ``(k + 1/2) / n`` in each of the T equal
    parts of a clip. ``adapter``: predicts in place of ``net``, one group after the other.
    """
    probability_GK, uncertainty_G, weights_GV, view_logits_GVK = _predict(net, groups, batch_size, draws, adapter)
    if not (probability_GK.isfinite().all() and uncertainty_G.isfinite().all()):
        raise CheckpointError("the predictions of the network are not finite: its training diverged; train again")
    return compute_metrics(probability_GK, uncertainty_G, weights_GV, view_logits_GVK.argmax(-1), groups, class_names)


@torch.inference_mode()
def _predict(
    net: DTSFNet, groups: Groups, batch_size: int, draws: int, adapter: OnlineAdapter | None
) -> tuple[Tensor, ...]:
    """Return probabilities (G, K), uncertainties (G,), view weights (G, V) and view logits (G, V, K), on the CPU."""
    was_training = net.training
    net.eval()
    parts = [_predict_draw(net, groups, batch_size, draw, draws, adapter) for draw in range(draws)]
    net.train(was_training)
    return tuple(torch.stack(part).mean(0) if draws > 1 else part[0] for part in zip(*parts, strict=True))


def _predict_draw(
    net: DTSFNet, groups: Groups, batch_size: int, draw: int, draws: int, adapter: OnlineAdapter | None
) -> tuple[Tensor, ...]:
    device, config = next(net.parameters()).device, net.config

    def batches(draw: int, draws: int) -> Iterator[tuple[Tensor, Tensor]]:
        size = 1 if adapter is not None else batch_size
        for batch in evaluation_batches(groups, size, config.frames, config.motion_sampling, draw, draws):
            yield batch.x_BVTHWC.to(device), batch.mask_BV.to(device)

    if adapter is None:
        outputs = [net(*batch) for batch in batches(draw, draws)]
    else:
        # Two more samples of the frames, as far from each other as possible.
        samples = zip(batches(draw, draws), batches(0, 2), batches(1, 2), strict=True)
        outputs = [adapter(list(sample)) for sample in samples]
    return (
        torch.cat([output.probabilities_BK for output in outputs]).cpu(),
        torch.cat([output.uncertainty_B for output in outputs]).cpu(),
        torch.cat([output.view_weights_BV for output in outputs]).cpu(),
        torch.cat([output.view_logits_BVK for output in outputs]).cpu(),
    )
