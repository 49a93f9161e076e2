"""Preparation of a training: statistics of the training groups, the data that training reads, and the optimiser.

Letters: N clips, G groups, V views, F cached frames, T frames of the network, H W grid, C R channels, E channels of motion.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn

from dtsf.model.motion import motion_share
from dtsf.model.network import DTSFNet
from dtsf.training.augment import AugmentConfig
from dtsf.training.data import Groups, evaluation_batches
from dtsf.training.frame_sampling import read_frames, uniform_times
from dtsf.training.recipe import Recipe, TrainConfig


def prepare_network(
    net: DTSFNet, groups: Groups, recipe: Recipe, *, keep_inputs: bool = False
) -> tuple[Groups, float, Tensor]:
    """Set the statistics of the training groups in ``net``. Return :func:`training_source` and :func:`channel_deviation`.

    ``keep_inputs``: those of the input are there already, from the run that the training continues or starts from.
    """
    inputs, model = net.inputs, recipe.model
    deviation_C = channel_deviation(groups, dynamic=model.uses_motion)
    if not keep_inputs:
        inputs.channel_scale_C.copy_(1.0 / deviation_C)
    if inputs.principal and not keep_inputs:
        inputs.basis_CR.copy_(principal_directions(groups, inputs.channel_scale_C, inputs.principal))
    if model.occlusion_threshold:
        net.min_motion_share_V.copy_(min_motion_share(net, groups))
    source, motion_sampling = training_source(net, groups, recipe.augment, embeddings=recipe.debias.method != "none")
    if "motion" in model.inputs and not keep_inputs:
        inputs.motion_mean_HWE.copy_(motion_mean(net, source, motion_sampling))
    return source, motion_sampling, deviation_C


def channel_deviation(groups: Groups, *, dynamic: bool) -> Tensor:
    """Return the standard deviation of each channel: (C,), float32. ``dynamic``: of frames minus the temporal mean of the clip."""
    square_C: Tensor = torch.zeros(groups.embeddings_NFHWC.shape[-1], dtype=torch.float64)
    total_C = torch.zeros_like(square_C)
    count = 0
    # A few clips at a time, so that the system need not find new memory for every result.
    for rows in groups.row_GV[groups.mask_GV].split(8):
        x_NFHWC = groups.embeddings_NFHWC[rows].double()
        if dynamic:
            x_NFHWC = x_NFHWC - x_NFHWC.mean(1, keepdim=True)
        flat_XC = x_NFHWC.flatten(0, -2)
        square_C += flat_XC.square().sum(0)
        total_C += flat_XC.sum(0)
        count += flat_XC.shape[0]
    variance_C = square_C / count - (total_C / count).square()
    return variance_C.clamp(min=1e-12).sqrt().float()


def principal_directions(groups: Groups, scale_C: Tensor, n: int) -> Tensor:
    """Return the ``n`` principal directions of the dynamic part of the clips, each channel times its scale: (C, R)."""
    C = groups.embeddings_NFHWC.shape[-1]
    product_CC = torch.zeros(C, C, dtype=torch.float64)
    for rows in groups.row_GV[groups.mask_GV].split(64):
        x_NFHWC = groups.embeddings_NFHWC[rows].float() * scale_C
        flat_XC = (x_NFHWC - x_NFHWC.mean(1, keepdim=True)).flatten(0, -2)
        product_CC += (flat_XC.T @ flat_XC).double()
    vector_CC: Tensor = torch.linalg.eigh(product_CC).eigenvectors
    return vector_CC.flip(1)[:, :n].float()


@torch.no_grad()
def min_motion_share(net: DTSFNet, groups: Groups) -> Tensor:
    """Return the smallest motion share of each view in ``groups``: (V,). 0 for a view that is always alone in its group."""
    least_V = torch.full((groups.row_GV.shape[1],), torch.inf)
    for batch in evaluation_batches(groups, 32, net.config.frames, net.config.motion_sampling):
        share_BV = motion_share(batch.x_BVTHWC, batch.mask_BV, net.inputs.channel_scale_C)
        several_BV = batch.mask_BV & (batch.mask_BV.sum(1, keepdim=True) > 1)
        least_V = torch.minimum(least_V, torch.where(several_BV, share_BV, torch.inf).amin(0))
    return torch.where(least_V.isinf(), 0.0, least_V)


@torch.no_grad()
def motion_mean(net: DTSFNet, groups: Groups, motion_sampling: float) -> Tensor:
    """Return the mean motion of each cell over all frames of ``groups``, a result of :func:`training_source`: (H, W, E)."""
    total, count = torch.zeros(()), 0
    for batch in evaluation_batches(groups, 32, net.config.frames, motion_sampling):
        motion_PTHWE = net.inputs.motion(batch.x_BVTHWC[batch.mask_BV])
        total = total + motion_PTHWE.sum((0, 1))
        count += motion_PTHWE.shape[0] * motion_PTHWE.shape[1]
    return total / count


@torch.no_grad()
def training_source(net: DTSFNet, groups: Groups, augment: AugmentConfig, *, embeddings: bool) -> tuple[Groups, float]:
    """Return the groups that training reads, and their motion sampling.

    If every epoch reads the same frames, principal channels or motion are computed once, which saves a third of a step. Otherwise
    the groups are unchanged. ``embeddings``: keep them, because the debiaser reads them too.
    """
    config, inputs, x_NFHWC = net.config, net.inputs, groups.embeddings_NFHWC
    frames_vary = augment.crop or augment.jitter or augment.noise
    # A mirrored clip has another flow, so the flow is computed after the augmentation.
    cells_vary = augment.swap_background or augment.occlude or (augment.flip and config.flow)
    if embeddings or frames_vary:
        return groups, config.motion_sampling
    if inputs.principal:
        compute = inputs.project
    elif config.inputs == {"motion"} and not cells_vary and x_NFHWC.shape[-1] != config.motion_channels:
        compute = inputs.motion
    else:
        return groups, config.motion_sampling
    step_NS = groups.step_NS if config.motion_sampling else None
    used_N = groups.row_GV[groups.mask_GV].unique()
    computed = torch.empty(())
    for number_M, row_M in zip(torch.arange(len(used_N)).split(32), used_N.split(32), strict=True):
        time_MT = uniform_times(config.frames).expand(len(row_M), -1)
        part = compute(read_frames(x_NFHWC, row_M, time_MT, config.motion_sampling, step_NS))
        if not computed.ndim:
            computed = part.new_empty(len(used_N), *part.shape[1:])
        computed[number_M] = part
    row_GV = torch.where(groups.mask_GV, torch.searchsorted(used_N, groups.row_GV), -1)
    numbers = (None if x_N is None else x_N[used_N] for x_N in (groups.background_N, groups.subject_N))
    # Motion sampling 0 reads the computed frames.
    return Groups(computed, row_GV, groups.label_G, groups.names, *numbers), 0.0


def schedule(step: int, n_steps: int, warmup: float) -> float:
    """Return the share of the peak learning rate at ``step``: linear warm-up, then cosine to 0."""
    rising = max(1, round(warmup * n_steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1.0 + math.cos(math.pi * (step - rising) / max(1, n_steps - rising)))


def decay_groups(net: nn.Module, weight_decay: float, *, states: bool = False) -> list[dict[str, Any]]:
    """Divide parameters into those with weight decay (matrices) and without. ``states``: A_log decays too."""
    exempt = ("pos_embed", "temporal_pos_embedding", "cls_token", *(() if states else ("A_log", "A_b_log")))
    decayed: list[Tensor] = []
    kept: list[Tensor] = []
    for name, parameter in net.named_parameters():
        (kept if parameter.ndim < 2 or name.endswith(exempt) else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def adamw(net: nn.Module, train: TrainConfig, fabric: Any) -> Any:
    """Return AdamW with the settings of the recipe. On a CPU one operator updates all weights, on a GPU many in one launch."""
    groups = decay_groups(net, train.weight_decay, states=train.decay_states)
    on = {"cpu": "fused", "cuda": "foreach"}.get(fabric.device.type)
    options = {name: name == on for name in ("fused", "foreach")}
    return without_compiler(torch.optim.AdamW)(groups, lr=train.lr, betas=(0.9, train.beta2), **options)


def without_compiler(optimizer: type[torch.optim.Optimizer]) -> Any:
    """Return an optimiser of PyTorch without the decorators that import its compiler, which takes 1.3 seconds."""
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    methods: dict[str, Any] = {name: inspect.unwrap(getattr(optimizer, name)) for name in names}
    methods["step"] = torch.no_grad()(inspect.unwrap(optimizer.step))
    return type(optimizer.__name__, (optimizer,), methods)


@torch.no_grad()
def update_average(average: dict[str, Tensor], net: nn.Module, decay: float, step: int) -> None:
    """Update the running average of the weights in place; a share ``decay`` of it stays. ``step``: from 1."""
    decay = min(decay, (1 + step) / (10 + step))  # smaller in the first steps, to forget the start
    for name, x in net.state_dict().items():
        average[name].lerp_(x, 1.0 - decay)
