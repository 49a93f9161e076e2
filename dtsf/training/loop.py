"""Training loop: from groups of views to a checkpoint.

The random draws of an epoch depend only on (seed, epoch). So a resumed run gives the same numbers, bit for bit on a CPU.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dtsf.cache.schema import CacheSpec, DatasetInfo
from dtsf.errors import DivergedError
from dtsf.files.read import json_text
from dtsf.files.write import write_atomically
from dtsf.model.network import DTSFNet
from dtsf.model.scan.parity import check_parity
from dtsf.training.checkpoint import RunState, TrainState, build_network, first_not_finite, restore, save, versions
from dtsf.training.data import Batch, Groups, Prefetcher, refuse_not_finite, to_device_if_fits, training_batches
from dtsf.training.debias import make_debiaser
from dtsf.training.distributed import current_world, epoch_plan, launch
from dtsf.training.evaluate import batches
from dtsf.training.log import TrainingLog
from dtsf.training.losses import LossConfig, dtsf_loss
from dtsf.training.prepare import adamw, prepare_network, schedule, update_average
from dtsf.training.recipe import Recipe, resolve_auto
from dtsf.training.start import Start, keep_inputs

CHECKPOINT_EVERY = 5.0  # seconds; a small network would spend a sixth of its time on a checkpoint after every epoch


@dataclass(frozen=True)
class EpochReport:
    """Numbers of one epoch, for progress displays. The accuracy is on the augmented training groups."""

    epoch: int
    epochs: int
    loss: float
    accuracy: float
    uncertainty: float
    seconds: float
    terms: dict[str, float]
    """Terms of the loss: ``evidence``, ``kl`` (before annealing), ``cross``, ``views``, and those of the debiaser."""
    held_out: tuple[float, float] | None = None
    """Loss and accuracy on the held-out groups, if there are any."""
    part: str = ""
    """Part of the run; empty for the training itself."""
    done: int = 0
    """Epochs done in all trainings of the run, of ``total``."""
    total: int = 0


@dataclass(frozen=True)
class FitResult:
    """Trained network in evaluation mode."""

    net: DTSFNet
    """Network with the weights to evaluate: of the best epoch, of the running average, or the last, as the recipe sets."""
    epochs: int
    """Fewer than in the recipe if the training stopped early."""
    best_epoch: int | None
    """Best epoch on the held-out groups, from 1; None without held-out groups."""


class TrainingModule(nn.Module):
    """Network, debiaser and losses as one module, which DistributedDataParallel synchronises."""

    def __init__(self, net: DTSFNet, debiaser: Any, config: LossConfig) -> None:
        super().__init__()
        self.net, self.debiaser, self.config = net, debiaser, config

    def forward(
        self, x_BVTHWC: Tensor, mask_BV: Tensor, label_B: Tensor, row_BV: Tensor, epoch: int
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return the loss; the loss and its terms by name, without gradients; correctness and uncertainty of each group (2, B)."""
        batch = self.debiaser.prepare(Batch(x_BVTHWC, mask_BV, label_B, row_BV))
        output = self.net(batch.x_BVTHWC, batch.mask_BV)
        losses = dtsf_loss(output, batch.label_B, self.config, epoch)
        extra = self.debiaser.losses(batch, output, self.net)
        losses |= extra | {"loss": losses["loss"] + sum(extra.values())}
        right_B = output.logits_BK.argmax(-1) == batch.label_B
        seen_2B = torch.stack([right_B.float(), output.uncertainty_B.detach().float()])
        return losses["loss"], {name: x.detach() for name, x in losses.items()}, seen_2B


def fit(
    groups: Groups,
    recipe: Recipe,
    *,
    info: DatasetInfo,
    spec: CacheSpec,
    protocol: str,
    run: Path,
    seed: int = 0,
    device: str = "auto",
    resume: bool = False,
    initial: Start | None = None,
    held_out: Groups | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
    fabric: Any = None,
    catalog: str = "",
) -> FitResult:
    """Train a network. The first process writes checkpoints to the existing folder ``run`` and one line a step to its log.

    ``initial``: start from a run or checkpoint, see :func:`.start.read_start`; ``init.json`` reports its use. ``held_out``:
    groups that are evaluated after each epoch, required for a patience. ``catalog``: hash of the clips and their annotations.
    Raises CheckpointError: the checkpoint to resume has another recipe, cache or seed. Raises DivergedError: a loss, gradient or
    weight is not finite; the last checkpoint is kept.
    """
    recipe = resolve_auto(recipe, int(groups.mask_GV.sum()), len(groups), info.class_names)
    train, world = recipe.train, current_world()
    torch.set_num_threads(train.usable_threads)
    fabric = fabric if fabric is not None else launch(device, train.precision)
    if fabric.device.type == "cuda":
        check_parity(fabric.device, recipe.model.state)
    torch.manual_seed(seed)
    net = build_network(recipe.model, spec, info)
    if initial is not None and not resume:
        report = initial.load_into(net, info)
        if world.first:
            write_atomically(run / "init.json", json_text(asdict(report), indent=1).encode(), parents=False)
    if resume:
        keep_inputs(net, run)
    started = resume or (initial is not None and initial.run is not None)
    for encoder in net.encoders:
        encoder.gradient_checkpointing = train.checkpointing
        if train.compile and fabric.device.type == "cuda":
            encoder.compile_mixers(fabric.device)
    source, motion_sampling, deviation_C = prepare_network(net, groups, recipe, keep_inputs=started)
    n_classes = len(info.class_names)
    debiaser = make_debiaser(recipe.debias, groups, width=recipe.model.width, n_classes=n_classes, seed=seed)
    module = TrainingModule(net, debiaser, recipe.loss).to(fabric.device)
    model, optimizer = fabric.setup(module, adamw(module, train, fabric))
    prepared = (to_device_if_fits(source, fabric.device), motion_sampling, deviation_C)
    training = TrainState(net, debiaser, optimizer, copy.deepcopy(net.state_dict()) if train.ema else None)
    origin: dict[str, Any] = {"protocol": protocol, "catalog": catalog, "seed": seed, "info": info, "recipe": recipe}
    cache = {"spec": spec, "fingerprint": spec.fingerprint()}
    state = RunState(epoch=0, step=0, versions=versions(), processes=world.size, **origin, **cache)
    if resume:
        state = restore(run / "last", state, training)
    elif world.first:
        # A run that is killed in its first epoch can be resumed too.
        save(run / "last", state, training)
    saved = time.monotonic()
    with TrainingLog(run if world.first else None, state.step) as log:
        while not state.finished:
            start, epoch, step, lr = time.monotonic(), state.epoch, state.step, 0.0
            model.train()
            means: dict[str, float] = {}
            for line, n in _steps(prepared, model, training, fabric, state):
                step, lr = line.pop("step"), line["lr"]
                log.write({"step": step, "epoch": epoch, **line})
                means = {name: means.get(name, 0.0) + x * n / len(groups) for name, x in line.items()}
            if why := _not_finite(net, groups):
                raise _diverged(why, f"by step {step}", epoch, lr, groups)
            state = state.model_copy(update={"epoch": epoch + 1, "step": step})
            score = None
            if held_out is not None:
                # The score of the first process, so that all processes stop together.
                score = fabric.broadcast(held_out_score(net, training.current, held_out))
                log.write({"step": step, "epoch": epoch, "held_out_loss": score[0], "held_out_accuracy": score[1]})
                state = update_best(state, score[0])
                if train.patience and state.best_epoch == state.epoch:
                    training.best = copy.deepcopy(training.current)
            if world.first and (state.finished or time.monotonic() - saved >= CHECKPOINT_EVERY):
                log.flush()
                save(run / "last", state, training)
                saved = time.monotonic()
            if on_epoch is not None:
                del means["lr"]
                loss, accuracy, uncertainty = (means.pop(name) for name in ("loss", "accuracy", "uncertainty"))
                seconds = time.monotonic() - start
                on_epoch(EpochReport(epoch + 1, train.epochs, loss, accuracy, uncertainty, seconds, means, score))
    net.load_state_dict(training.evaluated)
    return FitResult(net.eval(), state.epoch, state.best_epoch)


def _steps(
    prepared: tuple[Groups, float, Tensor], model: Any, training: TrainState, fabric: Any, state: RunState
) -> Iterator[tuple[dict[str, Any], int]]:
    """Make the optimiser steps of one epoch. Yield the numbers of each step and its number of groups.

    ``prepared``: result of :func:`.prepare.prepare_network`.
    """
    groups, motion_sampling, deviation_C = prepared
    recipe, epoch, optimizer, world = state.recipe, state.epoch, training.optimizer, current_world()
    train, n_frames = recipe.train, recipe.model.frames
    torch.manual_seed(state.seed * 1_000_003 + epoch)
    share_G = groups.label_G.bincount()[groups.label_G] ** -train.balance if train.balance else None
    plan = epoch_plan(len(groups), train.batch_size, train.accumulate, world, share_G)
    n_steps = train.epochs * len(plan)
    if not world.first:
        # The order is the same in all processes; the augmentation of their groups is not.
        torch.manual_seed((state.seed * 1_000_003 + epoch) * 65_537 + world.rank)
    order = (share.chosen_B for step in plan for share in step.shares)
    made = training_batches(groups, train.batch_size, n_frames, motion_sampling, recipe.augment, deviation_C, order)
    prefetcher = Prefetcher(made, fabric.device)
    for number, step in enumerate(plan, state.step):
        lr = train.lr * schedule(number, n_steps, train.warmup)
        for parameters in optimizer.param_groups:
            parameters["lr"] = lr
        optimizer.zero_grad()
        sums: dict[str, Tensor] = {}
        for k, share in enumerate(step.shares, 1):
            batch = prefetcher.next()
            with fabric.no_backward_sync(model, enabled=k < len(step.shares)):
                loss, terms, seen_2B = model(batch.x_BVTHWC, batch.mask_BV, batch.label_B, batch.row_BV, epoch)
                fabric.backward(loss * share.weight)
            accuracy, uncertainty = seen_2B.double().mean(1) * share.weight
            part = {"accuracy": accuracy, "uncertainty": uncertainty}
            part |= {name: x.double() * share.weight for name, x in terms.items()}
            prefetcher.prepare()
            sums = {name: sums[name] + x if sums else x for name, x in part.items()}
        # A norm that is not finite is reported below, with the loss.
        norm = fabric.clip_gradients(training.net, optimizer, max_norm=train.clip_norm, error_if_nonfinite=False)
        optimizer.step()
        if training.average is not None:
            update_average(training.average, training.net, train.ema, number + 1)
        numbers_X = torch.stack(list(sums.values()))
        if world.size > 1:
            numbers_X = fabric.all_reduce(numbers_X, reduce_op="mean")
        numbers = dict(zip(sums, numbers_X.tolist(), strict=True))
        for name, x in (("loss", numbers["loss"]), ("norm of the gradient", float(norm))):
            if not math.isfinite(x):
                raise _diverged(f"the {name} is {x}", f"at step {number + 1}", epoch, lr, groups)
        yield {"step": number + 1, "lr": lr, **numbers}, step.n_groups


@torch.no_grad()
def held_out_score(net: DTSFNet, weights: dict[str, Tensor], groups: Groups) -> tuple[float, float]:
    """Return the mean ``-log p`` of the true class, and the accuracy, of ``weights`` in a copy of ``net``. Draws nothing."""
    net = copy.deepcopy(net)
    net.load_state_dict(weights)
    net.eval()
    loss, right = 0.0, 0
    for x_BVTHWC, mask_BV, label_B in batches(net, groups):
        probability_BK = net(x_BVTHWC, mask_BV).probabilities_BK.double().cpu()
        loss += F.nll_loss(probability_BK.log(), label_B, reduction="sum").item()
        right += int((probability_BK.argmax(-1) == label_B).sum())
    return loss / len(groups), right / len(groups)


def update_best(state: RunState, loss: float) -> RunState:
    """Return the state with this epoch as the best one if its held-out loss is finite and below all before it."""
    if not math.isfinite(loss) or (state.best_loss is not None and not loss < state.best_loss):
        return state
    return state.model_copy(update={"best_epoch": state.epoch, "best_loss": loss})


def _not_finite(net: DTSFNet, groups: Groups) -> str | None:
    """Describe weights that are not finite, or large weights with predictions that are not finite; None for a sound network."""
    weights = net.state_dict()
    # One vector: a call for each of a hundred weights takes five times as long. A NaN is the largest.
    largest = float(torch.cat([x.detach().flatten() for x in net.parameters()]).abs().max())
    if not math.isfinite(largest):
        return f"{first_not_finite(weights)} has values that are not finite"
    # The weights of normal trainings stay far below 1000.
    few = replace(groups, row_GV=groups.row_GV[:8], label_G=groups.label_G[:8], names=groups.names[:8])
    if largest <= 1e3 or math.isfinite(held_out_score(net, weights, few)[0]):
        return None
    return f"weights have grown to {largest:.2g}, and the predictions are not finite"


def _diverged(why: str, when: str, epoch: int, lr: float, groups: Groups) -> DivergedError:
    """Return the error of a training. Raises CacheError: the embeddings are to blame."""
    refuse_not_finite(groups)
    return DivergedError(
        f"the training diverged {when}, in epoch {epoch + 1}, at learning rate {lr:g}: {why}. Try a tenth of the learning rate "
        "(--set train.lr), a longer --set train.warmup or a smaller --set train.clip_norm. The "
        "last checkpoint is kept"
    )
