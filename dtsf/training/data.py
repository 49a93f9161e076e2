"""From the cache to the network: clips in memory, put together to groups of views with a mask.

Letters: N clips, G groups, B groups of a batch, V views, F cached frames, T frames of the network, H W grid, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from dtsf.model.motion import motion_share
from dtsf.training.augment import drop_views, move_frames, move_grid, occlude_views, sample_times, swap_backgrounds
from dtsf.training.frame_sampling import motion_steps, read_frames, uniform_times

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import Tensor

    from dtsf.cache.reader import CachedDataset
    from dtsf.cache.schema import Clip
    from dtsf.model.network import DTSFNet
    from dtsf.training.augment import AugmentConfig


@dataclass(frozen=True)
class Batch:
    """What the network eats."""

    x_BVTHWC: Tensor
    mask_BV: Tensor
    label_B: Tensor
    row_BV: Tensor
    """Row of each view's clip in the groups' embeddings; meaningless where the mask is False."""

    def to(self, device: torch.device) -> Batch:
        """Move to a device."""
        return Batch(self.x_BVTHWC.to(device), self.mask_BV.to(device), self.label_B.to(device), self.row_BV.to(device))


@dataclass(frozen=True)
class Groups:
    """Groups of views, with the embeddings of their clips in memory."""

    embeddings_NFHWC: Tensor
    """float16; or float32 motion energy, C = E and F = T: see :func:`training_source`."""
    row_GV: Tensor
    """Row of ``embeddings_NFHWC`` for each view of each group; -1 where the view is absent."""
    label_G: Tensor
    names: tuple[str, ...]
    """Of the groups."""
    background_N: Tensor | None = None
    """Number of each clip's background, from 0; None where the data set does not name every clip's."""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def mask_GV(self) -> Tensor:
        """True where a view is present."""
        return self.row_GV >= 0

    @cached_property
    def step_NS(self) -> Tensor:
        """Motion from each cached frame of each clip to the next, on which ``model.motion_sampling`` runs. Computed once."""
        return motion_steps(self.embeddings_NFHWC)

    def with_views(self, views: Iterable[int]) -> Groups:
        """The same groups with only these camera numbers (from 1); groups left without any view are dropped."""
        keep_V = torch.zeros(self.row_GV.shape[1], dtype=torch.bool)
        keep_V[[view - 1 for view in views]] = True
        row_GV = torch.where(keep_V, self.row_GV, torch.full_like(self.row_GV, -1))
        stays_G = (row_GV >= 0).any(1)
        names = tuple(name for name, stays in zip(self.names, stays_G.tolist(), strict=True) if stays)
        return Groups(self.embeddings_NFHWC, row_GV[stays_G], self.label_G[stays_G], names, self.background_N)


def load_groups(dataset: CachedDataset, clips: Sequence[Clip]) -> Groups:
    """Read the embeddings of ``clips`` into memory and put them together to groups, in the order of group names."""
    grid = dataset.spec.grid
    embeddings_NFPC = torch.from_numpy(dataset.embeddings([clip.id for clip in clips]))
    N, F, _, C = embeddings_NFPC.shape
    by_group: dict[str, dict[int, int]] = {}
    labels: dict[str, int] = {}
    for row, clip in enumerate(clips):
        by_group.setdefault(clip.group, {})[clip.view] = row
        labels[clip.group] = clip.label
    names = tuple(sorted(by_group))
    n_views = len(dataset.info.view_names)
    row_GV = torch.full((len(names), n_views), -1, dtype=torch.int64)
    for g, name in enumerate(names):
        for view, row in by_group[name].items():
            row_GV[g, view - 1] = row
    label_G = torch.tensor([labels[name] for name in names], dtype=torch.int64)
    return Groups(embeddings_NFPC.view(N, F, grid, grid, C), row_GV, label_G, names, name_backgrounds(clips))


def name_backgrounds(clips: Sequence[Clip]) -> Tensor | None:
    """Number the backgrounds of clips from 0, in the order of their names: (N,). None if a clip has no background."""
    named = [clip.background for clip in clips if clip.background is not None]
    if not clips or len(named) < len(clips):
        return None
    numbers = {name: k for k, name in enumerate(sorted(set(named)))}
    return torch.tensor([numbers[name] for name in named], dtype=torch.int64)


def channel_deviation(groups: Groups, *, dynamic: bool) -> Tensor:
    """Standard deviation of every channel over the clips that ``groups`` use, for scaling the canvas. (C,), float32.

    Args:
        groups: Training groups.
        dynamic: Of the frames minus their clip's temporal mean; else of the frames minus the overall mean.

    """
    square_C: Tensor = torch.zeros(groups.embeddings_NFHWC.shape[-1], dtype=torch.float64)
    total_C = torch.zeros_like(square_C)
    count = 0
    # A part at a time: a whole data set in float32 would be twice its cache.
    for rows in groups.row_GV[groups.mask_GV].split(256):
        x_NFHWC = groups.embeddings_NFHWC[rows].double()
        if dynamic:
            x_NFHWC = x_NFHWC - x_NFHWC.mean(1, keepdim=True)
        flat_XC = x_NFHWC.flatten(0, -2)
        square_C += flat_XC.square().sum(0)
        total_C += flat_XC.sum(0)
        count += flat_XC.shape[0]
    variance_C = square_C / count - (total_C / count).square()
    return variance_C.clamp(min=1e-12).sqrt().float()


@torch.no_grad()
def motion_mean(net: DTSFNet, groups: Groups, motion_sampling: float) -> Tensor:
    """Return the mean motion of each cell over all frames of the clips in ``groups``: (H, W, E), float32.

    Args:
        net: The network, with its scale of channels set.
        groups: Embeddings or motion, as :func:`training_source` returns them.
        motion_sampling: See :mod:`dtsf.training.frame_sampling`.

    """
    total, count = torch.zeros(()), 0
    for batch in evaluation_batches(groups, 32, net.config.frames, motion_sampling):
        motion_PTHWE = net.inputs.motion(batch.x_BVTHWC[batch.mask_BV])
        total = total + motion_PTHWE.sum((0, 1))
        count += motion_PTHWE.shape[0] * motion_PTHWE.shape[1]
    return total / count


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
def training_source(net: DTSFNet, groups: Groups, augment: AugmentConfig, *, embeddings: bool) -> tuple[Groups, float]:
    """Return the groups that training reads, and their motion sampling.

    Compute principal channels, or motion, of each clip once if every epoch reads the same frames. This saves a third of a step.
    Else return the groups unchanged.

    Args:
        net: The network, with its scale of channels set.
        groups: Training groups.
        augment: Augmentation of the clips.
        embeddings: Keep the embeddings, because the debiaser reads them too.

    """
    config, inputs = net.config, net.inputs
    if embeddings or not augment.leaves_frames:
        return groups, config.motion_sampling
    if inputs.principal:
        return _precompute(net, groups, inputs.project), 0.0
    computed = groups.embeddings_NFHWC.shape[-1] == config.motion_channels
    # A mirrored clip flows the other way, so its flow is computed after the augmentation.
    mirrored = augment.flip > 0 and config.flow > 0
    if config.inputs != {"motion"} or not augment.leaves_cells or mirrored or computed:
        return groups, config.motion_sampling
    return _precompute(net, groups, inputs.motion), 0.0


def _precompute(net: DTSFNet, groups: Groups, function: Callable[[Tensor], Tensor]) -> Groups:
    """Replace the embeddings by ``function`` of the network's T frames. Motion sampling 0 then reads these frames."""
    config, parts = net.config, []
    step_NS = groups.step_NS if config.motion_sampling else None
    for row_M in torch.arange(len(groups.embeddings_NFHWC)).split(32):
        time_MT = uniform_times(config.frames).expand(len(row_M), -1)
        parts.append(function(read_frames(groups.embeddings_NFHWC, row_M, time_MT, config.motion_sampling, step_NS)))
    return replace(groups, embeddings_NFHWC=torch.cat(parts))


def principal_directions(groups: Groups, scale_C: Tensor, n: int) -> Tensor:
    """Return the ``n`` principal directions of the clips' dynamic part, each channel times its scale: (C, R)."""
    C = groups.embeddings_NFHWC.shape[-1]
    product_CC = torch.zeros(C, C, dtype=torch.float64)
    for rows in groups.row_GV[groups.mask_GV].split(64):
        x_NFHWC = groups.embeddings_NFHWC[rows].float() * scale_C
        flat_XC = (x_NFHWC - x_NFHWC.mean(1, keepdim=True)).flatten(0, -2)
        product_CC += (flat_XC.T @ flat_XC).double()
    vector_CC: Tensor = torch.linalg.eigh(product_CC).eigenvectors
    return vector_CC.flip(1)[:, :n].float()


def training_batches(
    groups: Groups,
    batch_size: int,
    n_frames: int,
    motion_sampling: float,
    augment: AugmentConfig,
    scale_C: Tensor,
    order: Iterable[Tensor] | None = None,
) -> Iterator[Batch]:
    """One epoch in random order, augmented; all draws come from PyTorch's global generator.

    Args:
        groups: Training groups.
        batch_size: Groups a batch; the last one may be smaller.
        n_frames: T.
        motion_sampling: See :mod:`dtsf.training.frame_sampling`.
        augment: How clips are varied.
        scale_C: What noise is measured in: the deviation of each channel.
        order: Rows of the groups for each batch, (B,) each; drawn here if left out.

    """
    for chosen_B in torch.randperm(len(groups)).split(batch_size) if order is None else order:
        row_BV = groups.row_GV[chosen_B]
        mask_BV = row_BV >= 0
        time_BVT = sample_times((len(chosen_B), row_BV.shape[1]), n_frames, augment)
        x_BVTHWC = _read_views(groups, row_BV, time_BVT, motion_sampling)
        if augment.swap_background:
            x_BVTHWC = swap_backgrounds(x_BVTHWC, mask_BV, augment.swap_background)
        if augment.occlude:
            x_BVTHWC = occlude_views(x_BVTHWC, mask_BV, augment.occlude)
        x_BVTHWC = move_grid(move_frames(x_BVTHWC, augment), augment)
        if augment.noise:
            drawn_BVTHWC = torch.randn_like(x_BVTHWC, device="cpu")
            x_BVTHWC = x_BVTHWC + augment.noise * (scale_C * drawn_BVTHWC).to(x_BVTHWC.device)
        if augment.view_drop:
            mask_BV = drop_views(mask_BV, augment.view_drop)
        yield Batch(x_BVTHWC, mask_BV, groups.label_G[chosen_B], row_BV)


def evaluation_batches(
    groups: Groups, batch_size: int, n_frames: int, motion_sampling: float, draw: int = 0, draws: int = 1
) -> Iterator[Batch]:
    """All groups in their order, nothing augmented; the frames are fixed by which of how many ``draws`` this is."""
    for chosen_B in torch.arange(len(groups)).split(batch_size):
        row_BV = groups.row_GV[chosen_B]
        time_BVT = uniform_times(n_frames, (draw + 0.5) / draws).expand(*row_BV.shape, n_frames)
        yield Batch(
            _read_views(groups, row_BV, time_BVT, motion_sampling), row_BV >= 0, groups.label_G[chosen_B], row_BV
        )


def _read_views(groups: Groups, row_BV: Tensor, time_BVT: Tensor, motion_sampling: float) -> Tensor:
    # In the place of an absent view (row -1) stands some other clip; the mask keeps it from ever being used.
    device = groups.embeddings_NFHWC.device
    row_M, time_MT = row_BV.flatten().clamp(min=0).to(device), time_BVT.flatten(0, 1).to(device)
    step_NS = groups.step_NS if motion_sampling else None
    x_MTHWC = read_frames(groups.embeddings_NFHWC, row_M, time_MT, motion_sampling, step_NS)
    return x_MTHWC.reshape(*row_BV.shape, *x_MTHWC.shape[1:])
