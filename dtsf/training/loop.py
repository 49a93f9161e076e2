"""The training loop: from groups of views to a checkpoint, resumable to the same numbers.

Every epoch draws its randomness from (seed, epoch) alone, so a run that was killed and resumed goes the same way as
one that was not: bit for bit on a CPU.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from dtsf.files.read import json_text
from dtsf.files.write import write_atomically
from dtsf.model.network import DTSFNet
from dtsf.model.scan.parity import check_parity
from dtsf.training.checkpoint import RunState
from dtsf.training.data import (
    channel_deviation,
    min_motion_share,
    motion_mean,
    principal_directions,
    training_batches,
    training_source,
)
from dtsf.training.debias import make_debiaser
from dtsf.training.distributed import current_world, epoch_plan, launch
from dtsf.training.divergence import refuse_loss, refuse_weights
from dtsf.training.early_stop import held_out_score, should_stop, update_best
from dtsf.training.init_weights import load_initial_weights
from dtsf.training.log import TrainingLog
from dtsf.training.optim import adamw, schedule, update_average
from dtsf.training.prefetch import Prefetcher, to_device_if_fits
from dtsf.training.recipe import resolve_auto
from dtsf.training.train_state import TrainingModule, TrainState, restore, save, versions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import Tensor

    from dtsf.cache.schema import CacheSpec, DatasetInfo
    from dtsf.training.data import Batch, Groups
    from dtsf.training.recipe import Recipe


@dataclass(frozen=True)
class EpochReport:
    """Numbers of one epoch, for progress displays."""

    epoch: int
    epochs: int
    loss: float
    accuracy: float
    """On the augmented training groups themselves."""
    uncertainty: float
    seconds: float
    terms: dict[str, float]
    """Of the loss, by name: ``evidence``, ``kl`` (before annealing), ``cross``, ``views``, and those of debiasing."""
    held_out: tuple[float, float] | None = None
    """Loss and accuracy on the groups held out of training, where there are some."""
    part: str = ""
    """Which part of the run, where it is not the training itself."""


@dataclass(frozen=True)
class FitResult:
    """A trained network, in evaluation mode, and how long it took."""

    net: DTSFNet
    """With the weights to evaluate: the best epoch's, the running average's, or the last, as the recipe says."""
    epochs: int
    """Made; fewer than the recipe's where it stopped early."""
    best_epoch: int | None
    """Best on the held-out groups, counted from 1; None where nothing is held out."""


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
    initial: dict[str, Tensor] | None = None,
    held_out: Groups | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
    fabric: Any = None,
    catalog: str = "",
) -> FitResult:
    """Train a network and leave checkpoints in ``run/last`` and a line a step in ``run/log.jsonl``.

    Raises CheckpointError: with ``resume``, when the checkpoint belongs to another recipe, cache or seed. DivergedError: a
    loss, a gradient or a weight is no finite number any more; the checkpoint before stays.

    Args:
        run: Run folder; exists. Of several processes only the first one writes there.
        initial: Weights that the encoder starts from, as :func:`.initialise.read_initial_weights` reads them; what became
            of each is written to ``run/init.json``.
        held_out: Groups that are judged after each epoch and not trained on; needed where the recipe has patience.
        fabric: A Fabric that is launched already; one is launched if left out.
    """
    recipe = resolve_auto(recipe, int(groups.mask_GV.sum()))
    train = recipe.train
    torch.set_num_threads(train.threads)
    world = current_world()
    fabric = fabric if fabric is not None else launch(device, train.precision)
    if fabric.device.type == "cuda":
        check_parity(fabric.device, recipe.model.state)
    torch.manual_seed(seed)
    net = DTSFNet(
        recipe.model,
        channels=spec.channels,
        side=spec.grid,
        n_classes=len(info.class_names),
        n_views=len(info.view_names),
    )
    if initial is not None and not resume:
        report = load_initial_weights(net.encoders[0], initial)
        if world.first:
            write_atomically(run / "init.json", json_text(asdict(report), indent=1).encode(), parents=False)
    for encoder in net.encoders:
        encoder.gradient_checkpointing = train.checkpointing
        if train.compile and fabric.device.type == "cuda":
            encoder.compile_mixers(fabric.device)
    deviation_C = channel_deviation(groups, dynamic=recipe.model.uses_motion)
    net.inputs.channel_scale_C.copy_(1.0 / deviation_C)
    if net.inputs.principal:
        net.inputs.basis_CR.copy_(principal_directions(groups, net.inputs.channel_scale_C, net.inputs.principal))
    if recipe.model.occlusion_threshold:
        net.min_motion_share_V.copy_(min_motion_share(net, groups))
    source, motion_sampling = training_source(net, groups, recipe.augment, embeddings=recipe.debias.method != "none")
    if "motion" in recipe.model.inputs:
        net.inputs.motion_mean_HWE.copy_(motion_mean(net, source, motion_sampling))
    debiaser = make_debiaser(
        recipe.debias, groups, width=recipe.model.width, n_classes=len(info.class_names), seed=seed
    )
    learner = TrainingModule(net, debiaser, recipe.loss).to(fabric.device)
    optimizer = adamw(learner, train, fabric.device)
    model, optimizer = fabric.setup(learner, optimizer)
    source = to_device_if_fits(source, fabric.device)
    average = {name: x.detach().clone() for name, x in net.state_dict().items()} if train.ema else None
    training = TrainState(net, debiaser, optimizer, average)
    state = RunState(
        epoch=0,
        step=0,
        seed=seed,
        protocol=protocol,
        fingerprint=spec.fingerprint(),
        catalog=catalog,
        spec=spec,
        info=info,
        recipe=recipe,
        versions=versions(),
        processes=world.size,
    )
    if resume:
        state = restore(run / "last", state, training)
    elif world.first:
        # From here on a killed run can be resumed, whatever it started from.
        save(run / "last", state, training)
    with TrainingLog(run if world.first else None, state.step) as record:
        while not should_stop(state):
            begun = time.monotonic()
            epoch, step, lr = state.epoch, state.step, 0.0
            model.train()
            sums: dict[str, float] = {}
            for line, n in _steps(
                source, motion_sampling, recipe, model, training, fabric, deviation_C, epoch, step, seed
            ):
                step, lr = line["step"], line["lr"]
                record.write(line)
                for name, value in line.items():
                    sums[name] = sums.get(name, 0.0) + value * n / len(groups)
            refuse_weights(net, groups, step=step, epoch=epoch, lr=lr)
            state = state.model_copy(update={"epoch": epoch + 1, "step": step})
            score = None
            if held_out is not None:
                # Asked of the first process alone, so that all stop together.
                score = fabric.broadcast(held_out_score(net, training.current, held_out))
                record.write({"step": step, "epoch": epoch, "held_out_loss": score[0], "held_out_accuracy": score[1]})
                state = update_best(state, score[0])
                if train.patience and state.best_epoch == state.epoch:
                    training.best = {name: x.detach().clone() for name, x in training.current.items()}
            if world.first:
                record.flush()
                save(run / "last", state, training)
            if on_epoch is not None:
                means = {name: sums.pop(name) for name in ("loss", "accuracy", "uncertainty")}
                terms = {name: x for name, x in sums.items() if name not in ("step", "epoch", "lr")}
                on_epoch(
                    EpochReport(
                        epoch + 1,
                        train.epochs,
                        means["loss"],
                        means["accuracy"],
                        means["uncertainty"],
                        seconds=time.monotonic() - begun,
                        terms=terms,
                        held_out=score,
                    )
                )
    net.load_state_dict(training.evaluated)
    return FitResult(net.eval(), state.epoch, state.best_epoch)


def _steps(
    groups: Groups,
    motion_sampling: float,
    recipe: Recipe,
    model: Any,
    training: TrainState,
    fabric: Any,
    deviation_C: Tensor,
    epoch: int,
    done: int,
    seed: int,
) -> Iterator[tuple[dict[str, Any], int]]:
    """Make the optimiser steps of one epoch, ``done`` before it. Yields each one's line of the log, and its number of groups."""
    train, world = recipe.train, current_world()
    torch.manual_seed(seed * 1_000_003 + epoch)
    plan = epoch_plan(len(groups), train.batch_size, train.accumulate, world)
    n_steps = train.epochs * len(plan)
    if not world.first:
        # The order is common to all; what is drawn for the groups of each process is its own.
        torch.manual_seed((seed * 1_000_003 + epoch) * 65_537 + world.rank)
    order = (share.chosen_B for step in plan for share in step.shares)
    made_here = training_batches(
        groups, train.batch_size, recipe.model.frames, motion_sampling, recipe.augment, deviation_C, order
    )
    batches = Prefetcher(made_here, fabric.device)
    optimizer = training.optimizer
    for made, step in enumerate(plan, done):
        lr = train.lr * schedule(made, n_steps, train.warmup)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        found: dict[str, Tensor] = {}
        for k, share in enumerate(step.shares, 1):
            with fabric.no_backward_sync(model, enabled=k < len(step.shares)):
                part = _backward(model, fabric, batches.next(), share.weight, epoch)
            batches.prepare()
            found = {name: found[name] + x if found else x for name, x in part.items()}
        # A norm that is not finite is reported below, with the loss.
        norm = fabric.clip_gradients(training.net, optimizer, max_norm=train.clip_norm, error_if_nonfinite=False)
        optimizer.step()
        if training.average is not None:
            update_average(training.average, training.net, train.ema, made + 1)
        numbers_X = torch.stack(list(found.values()))
        if world.size > 1:
            numbers_X = fabric.all_reduce(numbers_X, reduce_op="mean")
        numbers = dict(zip(found, numbers_X.tolist(), strict=True))
        refuse_loss(numbers["loss"], float(norm), step=made + 1, epoch=epoch, lr=lr)
        yield {"step": made + 1, "epoch": epoch, "lr": lr, **numbers}, step.n_groups


def _backward(model: Any, fabric: Any, batch: Batch, weight: float, epoch: int) -> dict[str, Tensor]:
    """Add a batch's gradients. Returns its numbers by name, times ``weight``, without gradients."""
    loss, terms, seen_2B = model(batch.x_BVTHWC, batch.mask_BV, batch.label_B, batch.row_BV, epoch)
    fabric.backward(loss * weight)
    accuracy, uncertain = seen_2B.double().mean(1) * weight
    return {"accuracy": accuracy, "uncertainty": uncertain} | {name: x.double() * weight for name, x in terms.items()}
