"""How a network is judged: one record of numbers, the same for every protocol and data set."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict

from dtsf.cache.catalog import view_numbers
from dtsf.errors import CheckpointError, ConfigError
from dtsf.training.adapt import OnlineAdapter
from dtsf.training.data import evaluation_batches, load_groups
from dtsf.training.metrics import GroupPrediction, Metrics, ReliabilityBin, judge
from dtsf.training.open_set import EXCLUDED, UnknownActions, open_set_metrics, split_by_known_classes
from dtsf.training.protocols import split_clips

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from dtsf.cache.reader import CachedDataset
    from dtsf.cache.schema import CacheSpec, Clip
    from dtsf.model.config import ModelConfig
    from dtsf.model.network import DTSFNet
    from dtsf.training.data import Groups
    from dtsf.training.protocols import Protocol

__all__ = [
    "Evaluation",
    "GroupPrediction",
    "Metrics",
    "ReliabilityBin",
    "check_draws",
    "evaluate",
    "evaluate_groups",
]


class Evaluation(BaseModel):
    """A judgement and everything needed to know what it is a judgement of. ``metrics.json`` holds one."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    dataset: str
    protocol: str
    split: str
    task: str
    """What the test measures, in words."""
    views: tuple[str, ...]
    """Names of the views that the network was given."""
    view_names: tuple[str, ...]
    """Names of all views of the data set, in the order of the metrics' ``view_weights`` and ``view_top1``."""
    n_clips: int = 0
    """Clips in the numbers: the views of the groups that the network was given."""
    draws: int = 1
    """Sets of frames that the numbers are averaged over."""
    left_out: dict[str, int]
    """Clips that are not in the numbers, by reason."""
    groups_left_out: dict[str, int] = {}
    """Groups that are not in the numbers, by reason."""
    seed: int
    fingerprint: str
    catalog: str = ""
    """Digest of what is said of the clips."""
    unknown: UnknownActions | None = None
    """How well uncertainty detects unknown actions, if requested."""
    adapted: bool = False
    """Whether the network was aligned to the test stream while it was judged."""
    metrics: Metrics

    def summary(self) -> dict[str, Any]:
        """One flat object for programs: the metrics beside what they are of."""
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
    """Judge a network on one side of a protocol. Raises ConfigError: an unknown split or view, no group that has one of
    ``views``, draws that would all be the same, no clip of a known class, or of ``data`` none of an unknown one.

    Args:
        split: ``test``; or ``train``, to see the fit.
        views: Views the network is given: ``all``, or numbers or names joined by commas.
        classes: Names of those that the network knows; the data set's if left out. Clips of others are not judged.
        unknown: Also measure how well uncertainty detects unknown actions: the clips of this data set whose classes the
            network does not know, or all of them where it knows every class; where it is ``data`` itself, of this side of
            the protocol.
        adapt: Align the network to the test stream, a group at a time: see :mod:`.adapt`.
        trained_on: Name of the data set that the network was trained on; this one if left out.
    """
    if split not in ("test", "train"):
        raise ConfigError(f"--split {split!r} must be test or train")
    check_draws(draws, net.config, data.spec)
    parts = split_clips(data.clips, protocol, data.info.kind, data.info.view_names, needed=(split,))
    classes = classes or data.info.class_names
    known, strange = split_by_known_classes(
        parts.test if split == "test" else parts.train, data.info.class_names, classes
    )
    if not known:
        raise ConfigError(f"{data.info.name} has no {split} clip of a class that the network knows")
    groups = load_groups(data, known)
    task = parts.task if split == "test" else "the training clips themselves: no generalisation is measured"
    if trained_on not in (None, data.info.name):
        # The protocol's own words are about its two sides, of which the network has seen neither.
        part = "every clip" if protocol.name == "all" else f"the {split} clips by {protocol}"
        task = f"{part} of another data set, {data.info.name} (trained on {trained_on})"
    left_out, groups_left_out = _left_out(data, protocol, split) | parts.left_out, {}
    if strange:
        left_out["of classes that the network does not know"] = len(strange)
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
    adapted = OnlineAdapter(net) if adapt else None
    metrics = evaluate_groups(net, groups, classes, draws=draws, adapted=adapted)
    asked = None
    if unknown is not None:
        name, what, others = _unknown_groups(unknown, data, strange, classes, chosen)
        u_G = _mean_of_draws(net, others, 32, draws, adapted)[1]
        asked = open_set_metrics(name, what, torch.tensor([p.uncertainty for p in metrics.predictions]), u_G)
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
        unknown=asked,
        adapted=adapt,
        metrics=metrics,
    )


def _unknown_groups(
    unknown: CachedDataset, data: CachedDataset, strange: Sequence[Clip], classes: tuple[str, ...], views: Sequence[int]
) -> tuple[str, str, Groups]:
    """Name, words and groups of unknown actions; arguments as in :func:`evaluate`."""
    if unknown.info.name == data.info.name:
        if not strange:
            raise ConfigError(
                f"--unknown {EXCLUDED}: the network knows every class of {data.info.name}: train with "
                "--set train.exclude_classes=CLASSES, or name another data set"
            )
        left = sorted({data.info.class_names[clip.label] for clip in strange})
        return (
            EXCLUDED,
            f"classes left out of training: {', '.join(left)}",
            load_groups(data, strange).with_views(views),
        )
    others = split_by_known_classes(unknown.clips, unknown.info.class_names, classes)[1]
    what = f"{unknown.info.name}, " + ("its classes that the network does not know" if others else "every clip")
    return unknown.info.name, what, load_groups(unknown, others or unknown.clips)


def check_draws(draws: int, config: ModelConfig, spec: CacheSpec) -> None:
    """Refuse to average over draws that are all the same. Raises ConfigError: the network takes every cached frame as it is, or
    ``draws`` is below 1.
    """
    if draws < 1:
        raise ConfigError(f"--draws {draws}: at least 1")
    if draws > 1 and config.motion_sampling == 0 and config.frames == spec.frames:
        raise ConfigError(
            f"{draws} draws of frames would all be the same: with model.motion_sampling 0 the network takes each of the cache's "
            f"{spec.frames} frames. --draws 1, or fewer model.frames, or preprocess with more --frames"
        )


def _left_out(data: CachedDataset, protocol: Protocol, split: str) -> dict[str, int]:
    """Clips of this side of the protocol that cannot be used, by status. The other side's are in its own judgement."""
    bad = {one.clip.id: one.status for one in data.bad}
    clips = (*data.clips, *(one.clip for one in data.bad))
    parts = split_clips(clips, protocol, data.info.kind, data.info.view_names, needed=())
    return dict(Counter(bad[clip.id] for clip in (parts.test if split == "test" else parts.train) if clip.id in bad))


def evaluate_groups(
    net: DTSFNet,
    groups: Groups,
    class_names: tuple[str, ...],
    batch_size: int = 32,
    draws: int = 1,
    adapted: OnlineAdapter | None = None,
) -> Metrics:
    """Classify all groups with fixed frames and fixed snapshots: the same numbers every time.

    ``draws``: sets of frames: set k of n takes the place ``(k + 1/2) / n`` of each of the T equal shares of a clip.
    Probabilities, uncertainties and weights are means over them. ``adapted``: answers in the place of ``net``, a group at a
    time.
    """
    probability_GK, uncertainty_G, weights_GV, view_logits_GVK = _mean_of_draws(net, groups, batch_size, draws, adapted)
    if not (probability_GK.isfinite().all() and uncertainty_G.isfinite().all()):
        raise CheckpointError("the network's answers are not finite numbers: the training that made it diverged")
    return judge(probability_GK, uncertainty_G, weights_GV, view_logits_GVK.argmax(-1), groups, class_names)


@torch.inference_mode()
def _mean_of_draws(
    net: DTSFNet, groups: Groups, batch_size: int, draws: int, adapted: OnlineAdapter | None
) -> tuple[Tensor, ...]:
    """Probabilities (G, K), uncertainties (G,), weights (G, V), and logits of each view (G, V, K), on the CPU."""
    was_training = net.training
    net.eval()
    asked = [_ask(net, groups, batch_size, draw, draws, adapted) for draw in range(draws)]
    net.train(was_training)
    return tuple(torch.stack(parts).mean(0) if draws > 1 else parts[0] for parts in zip(*asked, strict=True))


def _ask(
    net: DTSFNet, groups: Groups, batch_size: int, draw: int, draws: int, adapted: OnlineAdapter | None
) -> tuple[Tensor, ...]:
    """The same of one set of frames."""
    device, config = next(net.parameters()).device, net.config

    def batches(draw: int, draws: int) -> Iterator[tuple[Tensor, Tensor]]:
        size = 1 if adapted is not None else batch_size
        for batch in evaluation_batches(groups, size, config.frames, config.motion_sampling, draw, draws):
            yield batch.x_BVTHWC.to(device), batch.mask_BV.to(device)

    if adapted is None:
        outputs = [net(*batch) for batch in batches(draw, draws)]
    else:
        # Two more samples of the frames, as far from each other as they can be.
        several = zip(batches(draw, draws), batches(0, 2), batches(1, 2), strict=True)
        outputs = [adapted(list(samples)) for samples in several]
    return (
        torch.cat([output.probabilities_BK for output in outputs]).cpu(),
        torch.cat([output.uncertainty_B for output in outputs]).cpu(),
        torch.cat([output.view_weights_BV for output in outputs]).cpu(),
        torch.cat([output.view_logits_BVK for output in outputs]).cpu(),
    )
