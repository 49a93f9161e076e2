"""Probes of what a network reads: its answers for groups with one changed input (:mod:`.twins`), and the static share of its
features.

Static share: Kowal et al., "A Deeper Dive Into What Deep Spatiotemporal Networks Encode" (CVPR 2022; formula from the code,
YorkUCVIL/Static-Dynamic-Interpretability). For pairs z, z' of a feature with D numbers, ``c = sum_D cov(z, z') / sum_D var``.
Pairs that share the static part are a clip and its twin in random order; pairs that share the dynamics are a clip and its twin
with another background (the authors: a stylised clip). A share is ``exp(c) / sum exp(c)`` over static, dynamic, and a residual
with c = 1. Our reading: variances are those of the pairs, so that each c is a correlation.
Letters: G groups, B groups of a batch, V views, D features.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dtsf.model.network import DTSFNet
from dtsf.training.data import Groups, evaluation_batches
from dtsf.training.metrics import Record
from dtsf.training.twins import BATCH, OTHER_BACKGROUND, SHUFFLED, TWINS, TwinPlan, make_twins, plan_twins, with_twin

FUSED = "all branches, fused"


class Probe(Record):
    """Answers for one changed input. Numbers are None, and ``why_not`` is a reason, if the probe cannot be made."""

    name: str
    changes: Literal["time", "background", "views"]
    n_groups: int = 0
    top1: float | None = None
    top1_unchanged: float | None = None
    """Top-1 of the same groups without the change."""
    changed: float | None = None
    """Share of these groups with another answer than without the change."""
    usual_change: tuple[str, str, int] | None = None
    """Most frequent other answer: the class without the change, the class with it, and the number of groups."""
    uncertainty: float | None = None
    why_not: str = ""


class StaticShare(Record):
    """Static share of one feature; see the head of this file. None without two groups that differ in it."""

    feature: str
    keeps_shuffled: float | None = None
    """Correlation of the feature with that of the twin in random order."""
    keeps_background: float | None = None
    """Correlation of the feature with that of the twin with another background."""
    static: float | None = None
    dynamic: float | None = None
    residual: float | None = None


class InputProbes(Record):
    """All probes of the input of a network, and the static share of each branch and of the fused feature."""

    inputs: tuple[Probe, ...]
    static_shares: tuple[StaticShare, ...]
    why_not: str = ""
    """Reason that there are no static shares."""

    def of(self, *changes: str) -> tuple[Probe, ...]:
        """Return the probes that change one of ``changes``."""
        return tuple(one for one in self.inputs if one.changes in changes)


def probe_inputs(
    net: DTSFNet,
    groups: Groups,
    class_names: tuple[str, ...],
    view_names: tuple[str, ...],
    on_step: Callable[[int, int, str], None] = lambda *_: None,
) -> InputProbes:
    """Probe what a network reads in ``groups``, with one set of frames. The same groups give the same numbers.

    ``on_step`` is called with (done, total, name of the next step).
    """
    plan, present_V = plan_twins(groups), groups.mask_GV.any(0)
    present = [v + 1 for v in present_V.nonzero().flatten().tolist()]
    only = [(f"only view {view_names[view - 1]}", view, {view}) for view in present]
    # With two views, "without 1" is the same as "only 2".
    without = [(f"without view {view_names[view - 1]}", view, set(present) - {view}) for view in present]
    by_view = [*(only if len(present) > 1 else []), *(without if len(present) > 2 else [])]
    total, step = 1 + len(TWINS) + len(by_view), 0

    def next_step(name: str) -> None:
        nonlocal step
        on_step(step, total, name)
        step += 1

    next_step("unchanged")
    before, twins = _answers(net, groups), {}
    found: list[Probe] = []
    for name, changes in TWINS.items():
        next_step(name)
        chosen_G, why_not = with_twin(groups, name, plan)
        if why_not:
            found.append(Probe(name=name, changes=changes, why_not=why_not))
            continue
        twins[name] = _answers(net, groups.choose(chosen_G), name, plan), chosen_G
        found.append(_compare(Probe(name=name, changes=changes), groups, class_names, before, *twins[name]))
    for name, view, kept in by_view:
        next_step(name)
        has_G = groups.mask_GV[:, view - 1] & groups.mask_GV[:, [v - 1 for v in kept]].any(1)
        probe = Probe(
            name=name, changes="views", why_not="" if has_G.any() else "each group with this view has no other"
        )
        if has_G.any():
            chosen_G = has_G.nonzero().flatten()
            answers = _answers(net, groups.choose(chosen_G).with_views(kept))
            probe = _compare(probe, groups, class_names, before, answers, chosen_G)
        found.append(probe)
    on_step(total, total, "")
    missing = next((one for one in found if one.name in (SHUFFLED, OTHER_BACKGROUND) and one.why_not), None)
    if missing is not None:
        return InputProbes(inputs=tuple(found), static_shares=(), why_not=f"{missing.name}: {missing.why_not}")
    shares = []
    for k, feature in enumerate(before.features):
        words = FUSED if k == len(net.config.branch) else f"branch {k}: {net.config.branch[k].words}"
        shares.append(
            _static_share(words, feature, *(_feature(k, *twins[name]) for name in (SHUFFLED, OTHER_BACKGROUND)))
        )
    return InputProbes(inputs=tuple(found), static_shares=tuple(shares))


class _Answers(NamedTuple):
    predicted_G: Tensor
    uncertainty_G: Tensor
    features: tuple[Tensor | None, ...]  # (G, D) of each branch that runs for these views, then the fused one


@torch.inference_mode()
def _answers(net: DTSFNet, groups: Groups, twin: str = "", plan: TwinPlan | None = None) -> _Answers:
    """Answer for groups, or for their twins: of one batch at a time, to save memory."""
    kept: dict[int, list[Tensor]] = {}

    def keep(k: int) -> Callable[..., None]:
        return lambda module, given, output: kept.setdefault(k, []).append(output.feature_BD.double().cpu())

    config, device, n = net.eval().config, next(net.parameters()).device, len(net.config.branch)
    hooks: list[Any] = [net.branches[str(k)].register_forward_hook(keep(k)) for k in range(n)]
    chosen = [] if plan is None else torch.arange(len(groups)).split(BATCH)
    parts, outputs = (
        [groups] if plan is None else (make_twins(groups.choose(part_B), twin, plan) for part_B in chosen),
        [],
    )
    try:
        for part in parts:
            for batch in evaluation_batches(part, BATCH, config.frames, config.motion_sampling):
                output = net(batch.x_BVTHWC.to(device), batch.mask_BV.to(device))
                kept.setdefault(n, []).append(output.feature_BD.double().cpu())
                outputs.append((output.probabilities_BK.argmax(-1).cpu(), output.uncertainty_B.float().cpu()))
    finally:
        for hook in hooks:
            hook.remove()
    predicted_G, uncertainty_G = (torch.cat(part) for part in zip(*outputs, strict=True))
    return _Answers(predicted_G, uncertainty_G, tuple(torch.cat(kept[k]) if k in kept else None for k in range(n + 1)))


def _compare(
    probe: Probe, groups: Groups, class_names: tuple[str, ...], before: _Answers, after: _Answers, chosen_B: Tensor
) -> Probe:
    """Fill a probe with the answers ``after`` a change of the groups ``chosen_B``."""
    label_B, before_B, after_B = groups.label_G[chosen_B], before.predicted_G[chosen_B], after.predicted_G
    pairs = Counter((a, b) for a, b in zip(before_B.tolist(), after_B.tolist(), strict=True) if a != b)
    usual = max(pairs.items(), key=lambda item: item[1], default=None)
    numbers = {
        "n_groups": len(chosen_B),
        "top1": (after_B == label_B).double().mean().item(),
        "top1_unchanged": (before_B == label_B).double().mean().item(),
        "changed": (after_B != before_B).double().mean().item(),
        "usual_change": None if usual is None else (class_names[usual[0][0]], class_names[usual[0][1]], usual[1]),
        "uncertainty": after.uncertainty_G.mean().item(),
    }
    return probe.model_copy(update=numbers)


def _feature(k: int, answers: _Answers, chosen_B: Tensor) -> tuple[Tensor | None, Tensor]:
    return answers.features[k], chosen_B


def _static_share(words: str, feature_GD: Tensor | None, *twins: tuple[Tensor | None, Tensor]) -> StaticShare:
    """Return the static share of a feature. ``twins``: the feature in random order and with another background; of which groups."""
    found = []
    for twin_BD, chosen_B in twins:
        c = None if feature_GD is None or twin_BD is None else correlation(feature_GD[chosen_B], twin_BD)
        if c is None:
            return StaticShare(feature=words)
        found.append(c)
    weight = [math.exp(c) for c in (*found, 1.0)]
    static, dynamic, residual = (x / sum(weight) for x in weight)
    keeps = {"keeps_shuffled": found[0], "keeps_background": found[1]}
    return StaticShare(feature=words, **keeps, static=static, dynamic=dynamic, residual=residual)


def correlation(x_BD: Tensor, y_BD: Tensor) -> float | None:
    """Return the correlation of pairs, ``sum_D cov / sum_D var``, from -1 to 1; None if nothing differs between the pairs."""
    mean_D = (x_BD.mean(0) + y_BD.mean(0)) / 2
    x_BD, y_BD = x_BD - mean_D, y_BD - mean_D
    variance = ((x_BD.square() + y_BD.square()) / 2).mean(0).sum()
    return (x_BD * y_BD).mean(0).sum().div(variance).item() if variance > 1e-12 else None
