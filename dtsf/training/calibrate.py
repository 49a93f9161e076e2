"""Calibration of the evidence by cross-validation on the training groups; see :class:`dtsf.model.evidence.EvidenceCalibrator`.

For each fold (:func:`.splits.make_folds`), a network like the final one is trained on the other folds, and predicts the fold. The
predictions of all folds fit the calibration of the final network, which is trained on all groups. Groups that are held out by
``train.held_out`` need no further training. Why: docs/decisions.md.
Letters: B groups, G all groups, V views, D features or width, K classes, P clips, S statistics of a clip, N norms, X tokens.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dtsf.cache.schema import Clip
from dtsf.errors import CheckpointError
from dtsf.model.evidence import (
    FEATURES,
    MOTION,
    NEUTRAL_WEIGHTS,
    REFERENCE_QUANTILE,
    Fitted,
    Observed,
    probabilities,
)
from dtsf.model.network import DTSFNet
from dtsf.model.videomamba import record_norms
from dtsf.training.answers import Answers, write_answers
from dtsf.training.checkpoint import Calibration, RunState, load_checkpoint, resume_or_clear, save_checkpoint
from dtsf.training.data import Groups
from dtsf.training.distributed import current_world
from dtsf.training.evaluate import batches
from dtsf.training.held_out import FILE
from dtsf.training.loop import EpochReport, FitResult
from dtsf.training.metrics import calibration_error
from dtsf.training.prepare import without_compiler
from dtsf.training.protocols import Split, subjects_of
from dtsf.training.recipe import Recipe
from dtsf.training.splits import Fold, drop_unknown_classes, make_folds

LEAST_MOTION_3 = (0.2, 0.1, 0.05)
"""Lower bounds of the deviations of the motion statistics (logarithms), for training clips that are very similar."""
LEAST_APPEARANCE = 0.1
"""Lower bound of the deviations of the appearance statistics, in units of the motion of each channel."""
NEAR = 5.0
"""Unit of the weight of the nearest class mean in its prior: then the classes at cosines 0.2 apart differ by a factor e."""
MIN_GROUPS = 12
"""Minimum number of held-out groups for a calibration."""


class ObservedFold(NamedTuple):
    """Network of a fold, its outputs for the groups that it was not trained on (float64 on the CPU), and their labels."""

    net: DTSFNet
    outputs: Observed
    label_B: Tensor


def calibration_folds(split: Split, recipe: Recipe, protocol: str) -> tuple[list[Fold], str]:
    """Return the folds whose held-out groups calibrate a network, none if these are too few; and the unit of division.

    Groups that are held out of the training itself are the only fold, which needs no further training.
    """
    if split.held_out:
        people, others = (set(subjects_of(clips)) for clips in (split.held_out, split.train))
        named = all(clip.subject for clip in (*split.held_out, *split.train))
        what = "people" if named and not people & others else "groups"
        folds, unit = [Fold(train=split.train, held_out=split.held_out)], f"{what} held out of training"
    else:
        folds, unit = make_folds(split.train, protocol, recipe.train.calibrate)
    folds = [fold for fold in map(drop_unknown_classes, folds) if fold.train and fold.held_out]
    n_groups = sum(len({clip.group for clip in fold.held_out}) for fold in folds)
    return (folds if recipe.train.calibrate and n_groups >= MIN_GROUPS else []), unit


def train_fold(
    report: Callable[[EpochReport], None],
    *,
    fold: Fold,
    k: int,
    n: int,
    load: Callable[[Sequence[Clip]], Groups],
    fit_again: Callable[..., FitResult],
    recipe: Recipe,
    run: Path,
    fabric: Any,
) -> ObservedFold:
    """Train a network like the final one without the held-out groups of fold ``k`` of ``n``, and observe it on them.

    Checkpoints are in ``run/calibration``. Other arguments: as for :func:`.train.fit_calibrated`.
    """
    folder = run / "calibration" / str(k)
    resume = resume_or_clear(folder) if current_world().first else False
    resume = fabric.broadcast(resume) if fabric is not None else resume
    if not run.is_dir():
        raise CheckpointError(f"run folder {run} was deleted during training; start again")
    folder.mkdir(parents=True, exist_ok=True)
    plain = recipe.train.model_copy(update={"held_out": 0.0, "held_out_subjects": (), "patience": 0})
    groups, recipe = load(fold.train), recipe.model_copy(update={"train": plain})
    part = f"calibration, fold {k + 1} of {n}"
    options: dict[str, Any] = {"run": folder, "resume": resume, "fabric": fabric}
    net = fit_again(groups, recipe, **options, on_epoch=lambda epoch: report(replace(epoch, part=part))).net
    set_statistics(net, groups)
    return observe(net, load(fold.held_out))


@torch.inference_mode()
def observe(net: DTSFNet, groups: Groups) -> ObservedFold:
    """Return a network with its outputs for the held-out groups, which fit a calibration."""
    parts = []
    for x_BVTHWC, mask_BV, label_B in batches(net, groups):
        output, statistics = net(x_BVTHWC, mask_BV), net.statistics(x_BVTHWC)
        given = (output.logits_BK, output.feature_BD, statistics, output.view_weights_BV)
        parts.append((*(x.double().cpu() for x in net.calibrator.observe(*given)), label_B))
    *outputs, label_B = map(torch.cat, zip(*parts, strict=True))
    return ObservedFold(net, Observed(*outputs), label_B)


def calibrate(
    net: DTSFNet,
    run: Path,
    observed: Sequence[ObservedFold],
    held_out: str,
    ask: Callable[[Sequence[DTSFNet], RunState], Answers],
) -> Calibration | None:
    """Calibrate ``net`` by the outputs of all folds. Store the calibration and the statistics of ``net`` in ``run/last``, and the
    calibrated answers of the folds' networks in ``run``.

    Without ``observed`` the evidence stays unchanged, and the result is None. ``held_out``: unit of division. ``ask``: asks the
    networks of the folds about their held-out groups.
    """
    calibration = None
    if observed:
        outputs = Observed(*map(torch.cat, zip(*(fold.outputs for fold in observed), strict=True)))
        label_B = torch.cat([fold.label_B for fold in observed])
        fitted = fit_calibrator(outputs, label_B)
        for one in (net, *(fold.net for fold in observed)):
            one.calibrator.set_parameters(fitted)
        both = (probabilities(outputs.evidence_BK + 1.0), probabilities(outputs.calibrated(fitted)))
        calibration = Calibration(
            held_out=held_out,
            folds=len(observed),
            n_groups=len(label_B),
            accuracy=(both[1].argmax(-1) == label_B).double().mean().item(),
            nll=tuple(F.nll_loss(p_BK.log(), label_B).item() for p_BK in both),
            ece=tuple(calibration_error(p_BK, label_B) for p_BK in both),
            inverse_temperature=fitted.inverse_temperature.item(),
            nearness=fitted.nearness.item(),
            bias=fitted.bias.item(),
            weights=dict(zip(FEATURES, fitted.weight_3.tolist(), strict=True)),
        )
    if current_world().first:
        checkpoint, prefixes = load_checkpoint(run / "last", resume=True), ("calibrator.", "feature_stats.")
        state = checkpoint.state.model_copy(update={"calibration": calibration})
        if observed:
            write_answers(run / FILE, ask([fold.net for fold in observed], state))
        changed = {name: x for name, x in net.state_dict().items() if name.startswith(prefixes)}
        save_checkpoint(run / "last", state, checkpoint.weights | changed, checkpoint.optimizer)
        shutil.rmtree(run / "calibration", ignore_errors=True)
    return calibration


@torch.inference_mode()
def set_statistics(net: DTSFNet, groups: Groups) -> None:
    """Set the statistics of the training groups in ``net``: those of its calibrator, and mean and variance of each channel behind
    each norm, over the tokens of all clips.
    """
    features, statistics = [], []
    total_N2D, count_N = torch.zeros(()), torch.zeros(())
    for x_BVTHWC, mask_BV, _ in batches(net, groups):
        with record_norms(net) as recorded:
            features.append(net(x_BVTHWC, mask_BV).feature_BD.double().cpu())
        statistics.append(net.statistics(x_BVTHWC)[mask_BV].double().cpu())
        tokens = [torch.cat(parts).double().cpu() for parts in recorded]
        total_N2D = total_N2D + torch.stack([torch.stack([x_XD.sum(0), x_XD.square().sum(0)]) for x_XD in tokens])
        count_N = count_N + torch.tensor([len(x_XD) for x_XD in tokens])
    mean_ND, square_ND = (total_N2D / count_N.view(-1, 1, 1)).unbind(1)
    net.feature_stats.mean_var_N2D.copy_(torch.stack([mean_ND, (square_ND - mean_ND.square()).clamp(min=1e-12)], 1))
    feature_GD, clip_PS = torch.cat(features), torch.cat(statistics)
    calibrator, centre_D = net.calibrator, feature_GD.mean(0)
    # A class without groups has direction 0, and nothing is close to it.
    direction_KD = torch.zeros(calibrator.direction_KD.shape, dtype=torch.float64)
    direction_KD.index_add_(0, groups.label_G, feature_GD - centre_D)
    least_S = torch.full_like(clip_PS[0], LEAST_APPEARANCE)
    least_S[:MOTION] = clip_PS.new_tensor(LEAST_MOTION_3)
    calibrator.set_reference({"centre_D": centre_D, "direction_KD": F.normalize(direction_KD, dim=-1)})
    deviation_S = clip_PS.std(0, correction=0).maximum(least_S)
    calibrator.set_reference({"clip_mean_S": clip_PS.mean(0), "clip_deviation_S": deviation_S})
    distance_P2 = calibrator.distance(clip_PS.to(calibrator.centre_D.device)).double().cpu()
    limit_2 = distance_P2.quantile(REFERENCE_QUANTILE, 0).clamp(min=1e-3)
    calibrator.set_reference({"reference_distance_2": limit_2})


def fit_calibrator(outputs: Observed, label_B: Tensor) -> Fitted:
    """Fit the parameters by the mean ``-log p`` of the true class: float64; all but the bias are at least 0.

    Features are scaled by their deviations over the groups. A prior pulls all parameters to unchanged evidence. The in-distribution
    score is not fitted: held-out groups of the same recording are all similar, so the fit would ignore it.
    """
    neutral_3 = outputs.features_B3.new_tensor(NEUTRAL_WEIGHTS)
    mean_3, deviation_3 = outputs.features_B3.mean(0), outputs.features_B3.std(0, correction=0).clamp(min=0.1)
    prior_3 = neutral_3 * deviation_3
    bias = mean_3 @ neutral_3 - math.log(outputs.evidence_BK.shape[1])
    scaled = outputs._replace(features_B3=(outputs.features_B3 - mean_3) / deviation_3)
    # Softplus keeps the weights positive; its inverse gives their start.
    start_4 = torch.cat([prior_3, torch.ones_like(prior_3[:1])]).clamp(min=0.01).expm1().log()
    free_6 = torch.cat([torch.zeros(2, dtype=torch.float64), start_4]).requires_grad_()
    optimizer = without_compiler(torch.optim.LBFGS)([free_6], lr=0.5, max_iter=300, line_search_fn="strong_wolfe")

    def fitted() -> Fitted:
        weight_4 = F.softplus(free_6[2:])
        return Fitted(free_6[0].exp(), NEAR * weight_4[3], bias + free_6[1], weight_4[:3])

    def loss() -> Any:
        free_6.grad = None
        now = fitted()
        pull = free_6[0].square() + 0.1 * free_6[1].square() + (now.weight_3 - prior_3).square().sum()
        pull = pull + 0.3 * (now.nearness / NEAR).square()
        mean = F.nll_loss(probabilities(scaled.calibrated(now)).log(), label_B) + pull / len(label_B)
        mean.backward()
        return mean

    optimizer.step(loss)
    with torch.no_grad():
        found = fitted()
    weight_3 = found.weight_3 / deviation_3
    return found._replace(bias=found.bias - mean_3 @ weight_3, weight_3=weight_3)
