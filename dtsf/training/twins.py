"""Twins: groups with one change in their clips, for the probes of what a network reads.

Twins have their frames in random order, backwards, one frame, another background, or an empty background. With s the temporal mean
of each cell of a clip and w the weight of its foreground, the twin before the background of clip b is ``x + (1 - w) (s_b - s)``:
the movement stays, and where nothing moves the background is exchanged completely. That is so for at least half of the cells and
frames of a clip, unlike in :func:`.augment.swap_backgrounds`, which networks know from their training. An empty background is
the same in every cell: the mean of all clips.
Letters: N clips, G groups, M clips of a batch, V views, F cached frames, H W grid, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from dtsf.training.data import Groups

SHUFFLED, OTHER_BACKGROUND = "random order", "other background"
TWINS: dict[str, Literal["time", "background"]] = {
    SHUFFLED: "time",
    "backwards": "time",
    "one frame": "time",
    OTHER_BACKGROUND: "background",
    "empty background": "background",
}
"""Twins by name, with what they change."""
BATCH = 32


@dataclass(frozen=True)
class TwinPlan:
    """Draws of the twins of all clips."""

    order_NF: Tensor  # frames in random order, the same for all views of a group
    behind_N: Tensor  # row of the clip whose background each clip gets, -1 for none
    empty_C: Tensor


def plan_twins(groups: Groups, seed: int = 0) -> TwinPlan:
    """Draw the twins of all clips. A background is that of a clip of another class, and of another name if backgrounds have
    names; of the same view if there is one.
    """
    generator = torch.Generator().manual_seed(seed)
    x_NFHWC, mask_GV = groups.embeddings_NFHWC, groups.mask_GV
    N, F = x_NFHWC.shape[:2]
    used_N = groups.row_GV[mask_GV]
    order_GF = torch.stack([torch.randperm(F, generator=generator) for _ in range(len(groups))])
    # With few frames, the drawn order may be that of the clip.
    same_G1 = (order_GF == torch.arange(F)).all(1, keepdim=True)
    order_GF = torch.where(same_G1, order_GF.roll(1, 1), order_GF)
    group_N, view_N = mask_GV.nonzero().unbind(1)
    order_NF = torch.arange(F).repeat(N, 1)
    order_NF[used_N] = order_GF[group_N]
    label_N, behind_N = groups.label_G[group_N], torch.full((N,), -1)
    background_N = None if groups.background_N is None else groups.background_N[used_N]
    for k, row in enumerate(used_N.tolist()):
        fits_N = label_N != label_N[k]
        if background_N is not None:
            fits_N &= background_N != background_N[k]
        same_view_N = fits_N & (view_N == view_N[k])
        pool = (same_view_N if same_view_N.any() else fits_N).nonzero().flatten()
        if len(pool):
            behind_N[row] = used_N[pool[torch.randint(len(pool), (1,), generator=generator)]]
    total_C = torch.zeros(x_NFHWC.shape[-1], dtype=torch.float64)
    for rows in used_N.split(BATCH):
        total_C += x_NFHWC[rows].double().mean((1, 2, 3)).sum(0)
    return TwinPlan(order_NF, behind_N, (total_C / len(used_N)).float())


def make_twins(groups: Groups, name: str, plan: TwinPlan) -> Groups:
    """Return groups with the twins of their clips, one of :data:`TWINS`. Clips without another background are unchanged."""
    mask_GV = groups.mask_GV
    row_M = groups.row_GV[mask_GV]
    x_MFHWC = groups.embeddings_NFHWC[row_M].float()
    F = x_MFHWC.shape[1]
    if name == SHUFFLED:
        x_MFHWC = x_MFHWC[torch.arange(len(row_M)).unsqueeze(1), plan.order_NF[row_M]]
    elif name == "backwards":
        x_MFHWC = x_MFHWC.flip(1)
    elif name == "one frame":
        x_MFHWC = x_MFHWC[:, F // 2].unsqueeze(1).expand(-1, F, -1, -1, -1).contiguous()
    else:
        static_M1HWC = plan.empty_C.expand(x_MFHWC[:, :1].shape)
        if name == OTHER_BACKGROUND:
            behind_M = plan.behind_N[row_M]
            static_M1HWC = (
                groups.embeddings_NFHWC[torch.where(behind_M < 0, row_M, behind_M)].float().mean(1, keepdim=True)
            )
        own_M1HWC = x_MFHWC.mean(1, keepdim=True)
        x_MFHWC = x_MFHWC + (1 - foreground(x_MFHWC)) * (static_M1HWC - own_M1HWC)
    row_GV = torch.full_like(groups.row_GV, -1)
    row_GV[mask_GV] = torch.arange(len(row_M))
    return replace(groups, embeddings_NFHWC=x_MFHWC, row_GV=row_GV, background_N=None)


def foreground(x_MFHWC: Tensor) -> Tensor:
    """Return the weight of the foreground: the root of each cell's distance from its temporal mean, above the median distance of
    the clip, as a share of the largest. (M, F, H, W, 1), from 0 to 1.
    """
    distance_MFHW1 = torch.linalg.vector_norm(x_MFHWC - x_MFHWC.mean(1, keepdim=True), dim=-1, keepdim=True)
    median_M1111 = distance_MFHW1.flatten(1).median(1).values.view(-1, 1, 1, 1, 1)
    range_M1111 = distance_MFHW1.amax((1, 2, 3), keepdim=True) - median_M1111
    share_MFHW1: Tensor = (distance_MFHW1 - median_M1111).clamp(min=0) / range_M1111.clamp(
        min=torch.finfo(torch.float32).tiny
    )
    return share_MFHW1.sqrt()


def with_twin(groups: Groups, name: str, plan: TwinPlan) -> tuple[Tensor, str]:
    """Return the indices of the groups whose twin can be made; if there are none, the reason."""
    all_G = torch.arange(len(groups))
    if name != OTHER_BACKGROUND:
        few = groups.embeddings_NFHWC.shape[1] == 1 and TWINS[name] == "time"
        return all_G, "the cache has one frame of each clip: dtsf preprocess ... --frames 16" if few else ""
    behind_GV = torch.where(groups.mask_GV, plan.behind_N[groups.row_GV.clamp(min=0)], 0)
    chosen_G = (behind_GV >= 0).all(1).nonzero().flatten()
    if len(chosen_G):
        return chosen_G, ""
    if len(groups.label_G.unique()) == 1:
        return (
            chosen_G,
            "all groups are of one class, and another background is that of another class: evaluate more classes",
        )
    return chosen_G, "no clip of another class has another background: evaluate groups in more than one place"
