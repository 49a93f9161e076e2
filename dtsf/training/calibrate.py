"""How much of a network's evidence is to be believed, learnt on groups held out of training; see :mod:`.network.belief`.

The training side is divided into parts as the protocol divides it into training and test: by people, or by cameras or setups where
these are what is new in the test. For each part a network like the final one is trained on the others, as long as that, and
tested on the part. The predictions for all parts together decide how much to believe of the final network, which has learnt from
everybody. Two parts cost as much as the training itself. Groups that are held out anyway (``train.held_out``) serve
without further training.
Letters: B groups, V views, D features, K classes, P clips, S statistics of a clip.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from dtsf.model.calibrator import FEATURES, MOTION, NEUTRAL_WEIGHTS, REFERENCE_QUANTILE, discount
from dtsf.model.evidence import probabilities
from dtsf.training.adapt import feature_statistics
from dtsf.training.checkpoint import Calibration, amend_checkpoint, resume_or_clear
from dtsf.training.data import evaluation_batches, load_groups
from dtsf.training.distributed import current_world
from dtsf.training.metrics import calibration_error
from dtsf.training.splits import Fold, drop_unknown_classes, make_folds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import Any

    from torch import Tensor

    from dtsf.cache.reader import CachedDataset
    from dtsf.model.network import DTSFNet
    from dtsf.training.data import Groups
    from dtsf.training.loop import EpochReport, FitResult
    from dtsf.training.protocols import Protocol, Split
    from dtsf.training.recipe import Recipe

LEAST_MOTION_3 = (0.2, 0.1, 0.05)
"""Deviations of the statistics of motion, in logarithms: training clips that are all the same say little of what else there is."""
LEAST_LOOKS = 0.1
"""Of those of looks, in what the channel moves by in training clips."""
FEWEST = 12
"""Groups held out and of a class that trained, below which nothing is learnt."""
PULL = 1.0
"""Weight of what is assumed without data (evidence as it is) against the groups."""


@dataclass(frozen=True)
class Observed:
    """Outputs of a network for groups, and the signs of right answers."""

    evidence_BK: Tensor
    features_B3: Tensor
    score_B: Tensor
    label_B: Tensor

    @staticmethod
    def together(parts: Sequence[Observed]) -> Observed:
        """All groups of all parts."""
        fields = ("evidence_BK", "features_B3", "score_B", "label_B")
        return Observed(*(torch.cat([getattr(part, name) for part in parts]) for name in fields))


def calibrate(
    net: DTSFNet,
    data: CachedDataset,
    rule: Protocol,
    split: Split,
    recipe: Recipe,
    *,
    run: Path,
    again: Callable[..., FitResult],
    on_epoch: Callable[[EpochReport], None] | None = None,
    fabric: Any = None,
) -> Calibration | None:
    """Learn how much of ``net`` to believe, where the recipe asks for it, and what its training clips are like; keep both in
    the checkpoint ``run/last``. None where evidence is left as it is, also since too little is held out.

    A run that is killed meanwhile is as good as one without calibration, and goes on here when it is resumed.

    Args:
        split: Who trained, who was held out, who is tested; the last are not looked at.
        again: Trains a network like ``net``: :func:`.loop.fit` with all that is the same for every part.
    """
    groups = load_groups(data, split.train)
    net.feature_stats.mean_var_N2D.copy_(feature_statistics(net, groups))
    observed, what, parts = None, "", 0
    if recipe.train.calibrate:
        observed, what, parts = _ask_about_held_out(net, data, rule, split, recipe, run, again, on_epoch, fabric)
    calibration = None if observed is None else learn_belief(net, groups, observed, what, parts)
    if current_world().first:
        state = net.state_dict()
        later = {name: x for name, x in state.items() if name.startswith(("calibrator.", "feature_stats."))}
        amend_checkpoint(run / "last", later, calibration)
        shutil.rmtree(run / "calibration", ignore_errors=True)
    return calibration


def _ask_about_held_out(
    net: DTSFNet,
    data: CachedDataset,
    rule: Protocol,
    split: Split,
    recipe: Recipe,
    run: Path,
    again: Callable[..., FitResult],
    on_epoch: Callable[[EpochReport], None] | None,
    fabric: Any,
) -> tuple[Observed | None, str, int]:
    """What networks say of groups they have not seen, what was held out, and in how many parts; arguments as above."""
    watched = bool(split.held_out)
    parts, what = (
        ([Fold(train=split.train, held_out=split.held_out)], "groups held out of training")
        if watched
        else make_folds(split.train, rule.name, recipe.train.calibrate)
    )
    parts = [part for part in map(drop_unknown_classes, parts) if part.train and part.held_out]
    if sum(len({clip.group for clip in part.held_out}) for part in parts) < FEWEST:
        return None, what, 0
    plain = recipe.train.model_copy(update={"held_out": 0.0, "held_out_subjects": (), "patience": 0})
    found = []
    for k, part in enumerate(parts):
        train = load_groups(data, part.train)
        asked = net
        if not watched:
            folder = run / "calibration" / str(k)
            resume = resume_or_clear(folder) if current_world().first else False
            resume = fabric.broadcast(resume) if fabric is not None else resume
            folder.mkdir(parents=True, exist_ok=True)
            told = _told(on_epoch, f"calibration, part {k + 1} of {len(parts)}")
            asked = again(
                train, recipe.model_copy(update={"train": plain}), run=folder, resume=resume, on_epoch=told
            ).net
        asked.calibrator.set_reference(training_statistics(asked, train))
        found.append(observe(asked, load_groups(data, part.held_out)))
    return Observed.together(found), what, len(parts)


def _told(on_epoch: Callable[[EpochReport], None] | None, part: str) -> Callable[[EpochReport], None] | None:
    return None if on_epoch is None else lambda report: on_epoch(replace(report, part=part))


@torch.inference_mode()
def observe(net: DTSFNet, groups: Groups) -> Observed:
    """Ask a network that knows its training statistics about groups."""
    device = next(net.parameters()).device
    found = []
    for batch in evaluation_batches(groups, 32, net.config.frames, net.config.motion_sampling):
        x_BVTHWC, mask_BV = batch.x_BVTHWC.to(device), batch.mask_BV.to(device)
        output = net(x_BVTHWC, mask_BV)
        observed = net.calibrator.observe(
            output.logits_BK, output.feature_BD, net.statistics(x_BVTHWC), output.view_weights_BV
        )
        evidence_BK, features_B3, score_B = (x.double().cpu() for x in observed)
        found.append(Observed(evidence_BK, features_B3, score_B, batch.label_B))
    return Observed.together(found)


@torch.inference_mode()
def training_statistics(net: DTSFNet, groups: Groups) -> dict[str, Tensor]:
    """What the training groups look like to the network: where each class's features lie, and how clips move."""
    device = next(net.parameters()).device
    features, statistics = [], []
    for batch in evaluation_batches(groups, 32, net.config.frames, net.config.motion_sampling):
        x_BVTHWC, mask_BV = batch.x_BVTHWC.to(device), batch.mask_BV.to(device)
        features.append(net(x_BVTHWC, mask_BV).feature_BD.double().cpu())
        statistics.append(net.statistics(x_BVTHWC)[mask_BV].double().cpu())
    feature_GD, clip_PS = torch.cat(features), torch.cat(statistics)
    centre_D = feature_GD.mean(0)
    # A class that no group is of has no direction, and nothing is close to it.
    direction_KD = torch.zeros(net.calibrator.direction_KD.shape, dtype=torch.float64)
    direction_KD.index_add_(0, groups.label_G, feature_GD - centre_D)
    least_S = torch.full_like(clip_PS[0], LEAST_LOOKS)
    least_S[:MOTION] = clip_PS.new_tensor(LEAST_MOTION_3)
    known = {
        "centre_D": centre_D,
        "direction_KD": F.normalize(direction_KD, dim=-1),
        "clip_mean_S": clip_PS.mean(0),
        "clip_deviation_S": clip_PS.std(0, correction=0).maximum(least_S),
    }
    net.calibrator.set_reference(known)
    distance_P2 = net.calibrator.distance(clip_PS.to(device)).double().cpu()
    return known | {"reference_distance_2": distance_P2.quantile(REFERENCE_QUANTILE, 0).clamp(min=1e-3)}


def learn_belief(net: DTSFNet, train: Groups, observed: Observed, what: str, parts: int) -> Calibration:
    """Fit how much to believe to what was observed on held-out groups, and teach it to the network. ``observed``: of networks
    like it.
    """
    net.calibrator.set_reference(training_statistics(net, train))
    inverse_temperature, bias, weight_3 = fit_calibrator(observed)
    net.calibrator.set_parameters(inverse_temperature, bias, weight_3)
    label_B = observed.label_B
    before_BK = probabilities(observed.evidence_BK + 1.0)
    after_BK = probabilities(_believed(observed, inverse_temperature, bias, weight_3))
    return Calibration(
        what=what,
        parts=parts,
        n_groups=len(label_B),
        accuracy=(before_BK.argmax(-1) == label_B).double().mean().item(),
        nll=tuple(F.nll_loss(p_BK.log(), label_B).item() for p_BK in (before_BK, after_BK)),
        ece=tuple(calibration_error(p_BK, label_B) for p_BK in (before_BK, after_BK)),
        inverse_temperature=inverse_temperature.item(),
        bias=bias.item(),
        weights=dict(zip(FEATURES, weight_3.tolist(), strict=True)),
    )


def _believed(observed: Observed, inverse_temperature: Tensor, bias: Tensor, weight_3: Tensor) -> Tensor:
    return discount(observed.evidence_BK, bias + observed.features_B3 @ weight_3, inverse_temperature, observed.score_B)


def fit_calibrator(observed: Observed) -> tuple[Tensor, Tensor, Tensor]:
    """Sharpness, bias and the three weights, none below 0, of least mean ``-log p`` of the true class. In float64.

    Signs are fitted in their deviations over the groups, and everything is pulled towards evidence as it is: what the groups
    do not tell stays so. How likeness counts is not fitted: held-out groups of the same recording are all alike, and would
    say that it does not matter.
    """
    as_it_is_3 = observed.features_B3.new_tensor(NEUTRAL_WEIGHTS)
    mean_3, deviation_3 = observed.features_B3.mean(0), observed.features_B3.std(0, correction=0).clamp(min=0.1)
    usual_3 = as_it_is_3 * deviation_3
    bias = mean_3 @ as_it_is_3 - math.log(observed.evidence_BK.shape[1])
    scaled = replace(observed, features_B3=(observed.features_B3 - mean_3) / deviation_3)
    # Softplus keeps weights above 0; its inverse is where they begin.
    begin_3 = usual_3.clamp(min=0.01).expm1().log()
    free_5 = torch.cat([torch.zeros(2, dtype=torch.float64), begin_3]).requires_grad_()
    optimizer = torch.optim.LBFGS([free_5], lr=0.5, max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> Any:
        optimizer.zero_grad()
        weight_3 = F.softplus(free_5[2:])
        alpha_BK = _believed(scaled, free_5[0].exp(), bias + free_5[1], weight_3)
        pull = free_5[0].square() + 0.1 * free_5[1].square() + (weight_3 - usual_3).square().sum()
        mean = F.nll_loss(probabilities(alpha_BK).log(), observed.label_B) + PULL * pull / len(observed.label_B)
        mean.backward()
        return mean

    optimizer.step(loss)
    free_5 = free_5.detach()
    weight_3 = F.softplus(free_5[2:]) / deviation_3
    return free_5[0].exp(), bias + free_5[1] - mean_3 @ weight_3, weight_3
