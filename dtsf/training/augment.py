"""Augmentation of cached clips: time, place, views. Vectorised; drawn from PyTorch's generator.

Letters: B groups, V views, T frames of the network, H W grid, C channels, N views of all groups, X numbers of a cell in all frames.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field

from dtsf.training.frame_sampling import uniform_times

if TYPE_CHECKING:
    from torch import Tensor


class AugmentConfig(BaseModel):
    """How training clips are varied. Recipes hold it as ``[augment]``; evaluation uses none of it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    crop: float = Field(default=0.0, ge=0, lt=1)
    """Up to this share of a clip is cut off, at either end: other speeds and other beginnings."""
    jitter: float = Field(default=0.5, ge=0, le=1)
    """Each frame moves by up to half this share of the distance between frames. 0 keeps the fixed ones. With
    ``model.motion_sampling`` 0, frames have somewhere to go only where the cache holds more than ``model.frames``."""
    shift: float = Field(default=0.0, ge=0)
    """Each view's grid moves by up to this many cells in each direction, parts of cells by interpolation; the edge is
    repeated. 0.4 where stage 1 cuts around what moves: the cut is off by as much."""
    zoom: float = Field(default=0.0, ge=0)
    """Each view's grid is enlarged or shrunk by up to this share, about its middle. 0.2 for few people."""
    tempo: float = Field(default=0.0, ge=0)
    """Each group's performance is run faster or slower by up to this share, about its middle, after its frames were chosen:
    what runs out of its ends is cut, what is missing there repeats the edge. 0.5 for few people with
    ``model.motion_sampling`` 1, where
    nobody's action fills quite the same share of the motion; 0 for cameras that no one trained with, which see performances
    that the others have seen, at their own tempo (docs/results/network.md, docs/recipes.md)."""
    delay: float = Field(default=0.0, ge=0)
    """Each group's performance begins earlier or later by up to this many of the network's frames. 1 beside ``tempo`` 0.5."""
    flip: float = Field(default=0.0, ge=0, le=1)
    """Probability that all views of a group are mirrored. Not where left and right are different classes."""
    view_drop: float = Field(default=0.0, ge=0, lt=1)
    """Probability that a present view is withheld; one always stays. Teaches the fusion to do without the easy camera."""
    swap_background: float = Field(default=0.0, ge=0, le=1)
    """Share of the clips whose room is exchanged for that of another clip of the batch, afresh each step. See :mod:`.rooms`."""
    occlude: float = Field(default=0.0, ge=0, le=1)
    """Probability that what moves in a view is behind a pillar, narrow or wide; one view always sees. See :mod:`.rooms`."""
    noise: float = Field(default=0.0, ge=0)
    """Standard deviation of Gaussian noise added to normalised embeddings."""

    @property
    def leaves_frames(self) -> bool:
        """True where a clip's frames are the same every time it is read."""
        return not (self.crop or self.jitter or self.noise)

    @property
    def leaves_cells(self) -> bool:
        """True where cells hold the same every time a clip is read: they are at most moved, or whole views withheld."""
        return self.leaves_frames and not (self.swap_background or self.occlude)


def sample_times(shape: tuple[int, int], n_frames: int, config: AugmentConfig) -> Tensor:
    """Training's moments of every view by itself (views are not frame-aligned). (B, V, T), in [0, 1]."""
    cut_BV2 = torch.rand(*shape, 2) * (config.crop / 2)
    begin_BV1 = cut_BV2[..., :1]
    length_BV1 = 1.0 - cut_BV2.sum(-1, keepdim=True)
    jitter_BVT = (torch.rand(*shape, n_frames) * 2 - 1) * config.jitter / 2
    time_BVT = uniform_times(n_frames) + jitter_BVT / n_frames
    return (begin_BV1 + length_BV1 * time_BVT).clamp(0, 1)


def move_grid(x_BVTHWC: Tensor, config: AugmentConfig) -> Tensor:
    """Mirror whole groups; shift, enlarge or shrink each view's grid, the same in all its frames. Same shape."""
    if not (config.flip or config.shift or config.zoom):
        return x_BVTHWC
    B, V, T, H, W, C = x_BVTHWC.shape
    size_BV = torch.exp((torch.rand(B, V) * 2 - 1) * math.log1p(config.zoom))
    mirror_B1 = torch.where(torch.rand(B, 1) < config.flip, -1.0, 1.0)
    # Where each cell of the result is read, in a grid that goes from -1 to 1.
    read_BV23 = torch.zeros(B, V, 2, 3)
    read_BV23[..., 0, 0] = mirror_B1 / size_BV
    read_BV23[..., 1, 1] = 1 / size_BV
    read_BV23[..., 2] = (torch.rand(B, V, 2) * 2 - 1) * config.shift * 2 / torch.tensor([W, H])
    place_NHW2 = F.affine_grid(read_BV23.flatten(0, 1).to(x_BVTHWC.device), [B * V, 1, H, W], align_corners=False)
    x_NXHW = x_BVTHWC.permute(0, 1, 2, 5, 3, 4).reshape(B * V, T * C, H, W)
    moved_NXHW = F.grid_sample(x_NXHW, place_NHW2, padding_mode="border", align_corners=False)
    return moved_NXHW.view(B, V, T, C, H, W).permute(0, 1, 2, 4, 5, 3)


def move_frames(x_BVTHWC: Tensor, config: AugmentConfig) -> Tensor:
    """Run each group's performance faster or slower, earlier or later, all its views alike. Same shape.

    Between two frames is their mixture; before the first and after the last is that frame.
    """
    if not (config.tempo or config.delay):
        return x_BVTHWC
    B, _, T = x_BVTHWC.shape[:3]
    speed_B1 = torch.exp((torch.rand(B, 1) * 2 - 1) * math.log1p(config.tempo))
    delay_B1 = (torch.rand(B, 1) * 2 - 1) * config.delay
    middle = (T - 1) / 2
    read_BT = (middle + (torch.arange(T) - middle) * speed_B1 + delay_B1).clamp(0, T - 1)
    read_BT = read_BT.to(x_BVTHWC.device)
    before_BT = read_BT.long()
    after_BT = (before_BT + 1).clamp(max=T - 1)
    share_BT = read_BT - before_BT
    row_B1 = torch.arange(B, device=x_BVTHWC.device).unsqueeze(1)
    x_BTVHWC = x_BVTHWC.transpose(1, 2)
    share_BT1111 = share_BT.view(B, T, 1, 1, 1, 1)
    return torch.lerp(x_BTVHWC[row_B1, before_BT], x_BTVHWC[row_B1, after_BT], share_BT1111).transpose(1, 2)


def drop_views(mask_BV: Tensor, probability: float) -> Tensor:
    """Withhold present views at random; in each group one present view, drawn at random, always stays."""
    draw_BV = torch.rand(mask_BV.shape).masked_fill(~mask_BV, -1.0)
    stays_BV = torch.zeros_like(mask_BV).scatter(1, draw_BV.argmax(1, keepdim=True), True)
    return mask_BV & ((torch.rand(mask_BV.shape) >= probability) | stays_BV)
