"""Evaluation of a network: the same metrics for every protocol and dataset.

Letters: B groups of a batch, G groups, V views, T frames, N norms, D width, K classes, X tokens.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dtsf.cache.catalog import view_numbers
from dtsf.cache.reader import CachedDataset
from dtsf.cache.schema import CacheSpec, Clip
from dtsf.errors import CheckpointError, ConfigError
from dtsf.model.config import ModelConfig
from dtsf.model.network import DTSFNet, Output
from dtsf.model.videomamba import record_norms
from dtsf.training.data import Groups, evaluation_batches, load_groups, refuse_not_finite
from dtsf.training.metrics import (
    Metrics,
    Record,
    SetMetrics,
    SurestMetrics,
    UnknownActions,
    compute_metrics,
    open_set_metrics,
)
from dtsf.training.probes import InputProbes, probe_inputs
from dtsf.training.protocols import Protocol, split_clips
from dtsf.training.splits import EXCLUDED, compare_sides, split_by_known_classes

if TYPE_CHECKING:
    from dtsf.training.held_out import HeldOut

MOMENTUM, CONSISTENCY = 0.1, 0.1
RATE = 1e-3  # the paper's 5e-5 is for networks with a hundred times the weights; see docs/results/uncertainty.md


class Evaluation(Record):
    """Metrics, and the data and settings that they belong to. Stored in ``metrics.json``; docs/output.md explains the keys."""

    dataset: str
    protocol: str
    split: str
    task: str
    views: tuple[str, ...]
    view_names: tuple[str, ...]
    n_clips: int = 0
    draws: int = 1
    left_out: dict[str, int]
    groups_left_out: dict[str, int] = {}
    seed: int
    fingerprint: str
    catalog: str = ""
    unknown: UnknownActions | None = None
    adapted: bool = False
    probes: InputProbes | None = None
    sets: tuple[SetMetrics, ...] = ()
    surest: tuple[SurestMetrics, ...] = ()
    notes: tuple[str, ...] = ()
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
    trained: tuple[CachedDataset, Sequence[Clip]] | None = None,
    classes: tuple[str, ...] | None = None,
    unknown: CachedDataset | None = None,
    adapt: bool = False,
    probes: bool = False,
    held_out: HeldOut | None = None,
) -> Evaluation:
    """Evaluate a network on one side of a protocol.

    ``split``: ``test``; or ``train``, to measure the fit. ``views``: ``all``, or numbers or names joined by commas. ``trained_on``:
    name of the dataset of the training. ``trained``: this dataset and the training clips, to compare them with the test; None if
    they are not known. ``classes``: those of the network; other clips are left out. Both are of ``data`` by
    default. ``unknown``: dataset for the detection of unknown actions: its clips of classes that the network does not have, or all
    clips if it has none; if it is ``data`` itself, clips of this side only. ``adapt``: see :class:`OnlineAdapter`.
    ``probes``: also :func:`.probes.probe_inputs`, not with ``adapt``. ``held_out``: answers for the training's held-out groups,
    whose promises are measured.
    Raises ConfigError: an unknown split or view, equal draws, or no group with one of ``views``, of a known or an unknown class.
    """
    if adapt and probes:
        raise ConfigError("--probes and --adapt exclude each other: probe the network as it was trained")
    if split not in ("test", "train"):
        raise ConfigError(f"--split {split!r} must be test or train")
    check_draws(draws, net.config, data.spec)
    name, names, known_names = data.info.name, data.info.view_names, classes or data.info.class_names
    sides = split_clips(data.clips, protocol, data.info.kind, names, needed=(split,))
    bad = {one.clip.id: one.status for one in data.bad}
    with_bad = (*data.clips, *(one.clip for one in data.bad))
    unusable = getattr(split_clips(with_bad, protocol, data.info.kind, names, needed=()), split)
    left_out: dict[str, int] = dict(Counter(bad[clip.id] for clip in unusable if clip.id in bad)) | sides.left_out
    groups_left_out: dict[str, int] = {}
    known, others = split_by_known_classes(getattr(sides, split), data.info.class_names, known_names)
    if not known:
        raise ConfigError(f"{name} has no {split} clip of a class that the network knows")
    if others:
        left_out["of classes that the network does not know"] = len(others)
    groups = load_groups(data, known)
    task = sides.task if split == "test" else "the training clips themselves: no generalisation is measured"
    if trained_on not in (None, name):
        # The description of the protocol compares its two sides; the network was trained on neither.
        part = "every clip" if protocol.name == "all" else f"the {split} clips by {protocol}"
        task = f"{part} of another dataset, {name} (trained on {trained_on})"
    chosen = view_numbers(views, names, f"--views: {name}")
    given = tuple(names[view - 1] for view in chosen)
    if len(given) < len(names):
        before, n_clips = len(groups), int(groups.mask_GV.sum())
        groups = groups.with_views(chosen)
        if not len(groups):
            raise ConfigError(f"--views {views}: no {split} group of {name} has such a view")
        if n_clips > int(groups.mask_GV.sum()):
            left_out["of other views than --views"] = n_clips - int(groups.mask_GV.sum())
        if before > len(groups):
            groups_left_out["without any of --views"] = before - len(groups)
        task += f"; given only view{'s' if len(given) > 1 else ''} {', '.join(given)}"
    notes: tuple[str, ...] = data.notes
    if trained is not None and split == "test":
        tested = [clip for clip in known if clip.view in chosen]
        leak, doubts = compare_sides(*trained, data, tested, known_names, protocol)
        notes = (*([leak] if leak else []), *doubts, *notes)
        task += f"; {leak.partition(':')[0]}" if leak else ""
    adapter = OnlineAdapter(net) if adapt else None
    outputs = predict_groups(net, groups, draws, adapter)
    metrics = _metrics_of(outputs, groups, known_names)
    promises: dict[str, Any] = {}
    if held_out is not None:
        subjects = {clip.group: clip.subject or "" for clip in known}
        promises["sets"] = held_out.measure_sets(outputs[0], groups, [subjects[group] for group in groups.names])
        right_G = outputs[0].argmax(-1) == groups.label_G
        promises["surest"] = held_out.measure_surest(outputs[0].amax(-1), right_G)
    open_set = None
    if unknown is not None:
        if unknown.info.name == name:
            if not others:
                raise ConfigError(
                    f"--unknown {EXCLUDED}: the network knows every class of {name}: train with "
                    "--set train.exclude_classes=CLASSES, or name another dataset"
                )
            excluded = sorted({data.info.class_names[clip.label] for clip in others})
            label, description = EXCLUDED, f"classes excluded from training: {', '.join(excluded)}"
            unknown_groups = load_groups(data, others).with_views(chosen)
        else:
            clips = split_by_known_classes(unknown.clips, unknown.info.class_names, known_names)[1]
            part = "its classes that the network does not know" if clips else "every clip"
            label, description = unknown.info.name, f"{unknown.info.name}, {part}"
            unknown_groups = load_groups(unknown, clips or unknown.clips)
        uncertainty_U = predict_groups(net, unknown_groups, draws, adapter)[1]
        known_G = torch.tensor([one.uncertainty for one in metrics.predictions])
        open_set = open_set_metrics(label, description, known_G, uncertainty_U)
    return Evaluation(
        dataset=name,
        protocol=str(protocol),
        split=split,
        task=task,
        views=given,
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
        probes=probe_inputs(net, groups, known_names, names) if probes else None,
        **promises,
        notes=notes,
        metrics=metrics,
    )


def check_draws(draws: int, config: ModelConfig, spec: CacheSpec) -> None:
    """Raise ConfigError if ``draws`` is below 1, or if all sets of frames would be the same."""
    if draws < 1:
        raise ConfigError(f"--draws {draws}: at least 1")
    if draws > 1 and config.motion_sampling == 0 and config.frames == spec.frames:
        raise ConfigError(
            f"all {draws} draws of frames would be the same: with model.motion_sampling 0 the network takes each of the "
            f"{spec.frames} cached frames. Use --draws 1, fewer model.frames, or preprocess with more --frames"
        )


def evaluate_groups(
    net: DTSFNet, groups: Groups, class_names: tuple[str, ...], draws: int = 1, adapter: OnlineAdapter | None = None
) -> Metrics:
    """Classify all groups without random draws.

    ``draws``: number of sets of frames to average over: set k of n takes the position ``(k + 1/2) / n`` in each of the T equal
    parts of a clip. ``adapter``: predicts in place of ``net``, one group after the other.
    """
    return _metrics_of(predict_groups(net, groups, draws, adapter), groups, class_names)


def _metrics_of(outputs: tuple[Tensor, ...], groups: Groups, class_names: tuple[str, ...]) -> Metrics:
    """Return the metrics of the result of :func:`predict_groups`."""
    probability_GK, uncertainty_G, weights_GV, view_logits_GVK = outputs
    return compute_metrics(probability_GK, uncertainty_G, weights_GV, view_logits_GVK.argmax(-1), groups, class_names)


def batches(
    net: DTSFNet, groups: Groups, size: int = 32, draw: int = 0, draws: int = 1
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield input and mask on the device of the network, and the labels; see :func:`.data.evaluation_batches`."""
    device, config = next(net.parameters()).device, net.config
    for batch in evaluation_batches(groups, size, config.frames, config.motion_sampling, draw, draws):
        yield batch.x_BVTHWC.to(device), batch.mask_BV.to(device), batch.label_B


@torch.inference_mode()
def predict_groups(
    net: DTSFNet, groups: Groups, draws: int, adapter: OnlineAdapter | None = None
) -> tuple[Tensor, ...]:
    """Return probabilities (G, K), uncertainties (G,), view weights (G, V) and view logits (G, V, K), on the CPU."""
    parts = []
    for draw in range(draws):
        if adapter is None:
            outputs = [net.eval()(x_BVTHWC, mask_BV) for x_BVTHWC, mask_BV, _ in batches(net, groups, 32, draw, draws)]
        else:
            # Two more samples of the frames, as far from each other as possible.
            samples = zip(*(batches(net, groups, 1, *which) for which in ((draw, draws), (0, 2), (1, 2))), strict=True)
            outputs = [adapter([batch[:2] for batch in sample]) for sample in samples]
        names = ("probabilities_BK", "uncertainty_B", "view_weights_BV", "view_logits_BVK")
        parts.append([torch.cat([getattr(output, name) for output in outputs]).cpu() for name in names])
    found = tuple(torch.stack(part).mean(0) for part in zip(*parts, strict=True))
    if not (found[0].isfinite().all() and found[1].isfinite().all()):
        refuse_not_finite(groups)
        raise CheckpointError("the predictions of the network are not finite: its training diverged; train again")
    return found


class OnlineAdapter:
    """Copy of a network that adapts to each group before it predicts. Raises ConfigError without statistics of the training.

    Source: Lin et al., "Video Test-Time Adaptation for Action Recognition" (ViTTA, CVPR 2023; numbers from the code,
    wlin-at/ViTTA). One gradient step aligns the running mean and variance of the features to those of the training clips (L1), and
    the predictions for two temporal samples of a video to each other. Our reading: the features are the tokens behind each RMSNorm;
    the running statistics start as those of the training clips; plain gradient descent on the encoders, without the heads.
    """

    def __init__(self, net: DTSFNet, rate: float = RATE) -> None:
        if not net.feature_stats.recorded:
            raise ConfigError("--adapt: the run has no statistics of its training clips: train again")
        self.net, self.rate = copy.deepcopy(net).eval(), rate
        self.running_N2D = self.net.feature_stats.mean_var_N2D.clone()
        named = (item for encoder in self.net.encoders for item in encoder.named_parameters())
        self.weights = [x for name, x in named if not name.startswith("head.")]

    def __call__(self, samples: list[tuple[Tensor, Tensor]]) -> Output:
        """Adapt to a group, then predict. ``samples``: input and mask of the group; other samples of its frames follow."""
        training_N2D = self.net.feature_stats.mean_var_N2D
        with torch.inference_mode(False), torch.enable_grad():
            probabilities, statistics = [], []
            for x_BVTHWC, mask_BV in samples:
                with record_norms(self.net) as recorded:
                    output = self.net(x_BVTHWC.clone(), mask_BV.clone())
                probabilities.append(output.probabilities_BK)
                # An encoder that was not used keeps the statistics of the training.
                parts = [_mean_var(tokens) if tokens else training_N2D[n] for n, tokens in enumerate(recorded)]
                statistics.append(torch.stack(parts))
            running_N2D: Tensor = (1 - MOMENTUM) * self.running_N2D + MOMENTUM * torch.stack(statistics).mean(0)
            alignment = (running_N2D - training_N2D).abs().mean(-1).sum()
            probability_XBK = torch.stack(probabilities)
            difference = (probability_XBK - probability_XBK.mean(0)).abs().sum()
            # Weights that these samples do not use have no gradient.
            gradients = torch.autograd.grad(alignment + CONSISTENCY * difference, self.weights, allow_unused=True)
        with torch.no_grad():
            for weight, gradient in zip(self.weights, gradients, strict=True):
                if gradient is not None:
                    weight.sub_(self.rate * gradient)
            self.running_N2D = running_N2D.detach()
            prediction: Output = self.net(*samples[0])
        return prediction


def _mean_var(tokens: list[Tensor]) -> Tensor:
    x_XD = torch.cat(tokens)
    return torch.stack([x_XD.mean(0), x_XD.var(0, correction=0)])
