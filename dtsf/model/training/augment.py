"""Augmentation of cached clips: time, place, views. Vectorised; drawn from PyTorch's generator.

Letters: B groups, V views, T frames of the network, H W grid, C channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict, Field

from dtsf.model.training.pace import evenly_spaced

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["AugmentConfig", "choose_moments", "drop_views", "move_grid"]


class AugmentConfig(BaseModel):
    """How training clips are varied. Recipes hold it as ``[augment]``; evaluation uses none of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    crop: float = Field(default=0.0, ge=0, lt=1)
    """Up to this share of a clip is cut off, at either end: other speeds and other beginnings."""
    jitter: float = Field(default=0.5, ge=0, le=1)
    """Each frame moves by up to half this share of the distance between frames. 0 keeps the fixed ones. With
    ``model.pace`` 0, frames have somewhere to go only where the cache holds more than ``model.frames``."""
    shift: int = Field(default=0, ge=0)
    """The grid moves by up to this many cells in each direction; the edge is repeated."""
    flip: float = Field(default=0.0, ge=0, le=1)
    """Probability that all views of a group are mirrored. Not where left and right are different classes."""
    view_drop: float = Field(default=0.0, ge=0, lt=1)
    """Probability that a present view is withheld; one always stays. Teaches the fusion to do without the easy camera."""
    noise: float = Field(default=0.0, ge=0)
    """Standard deviation of Gaussian noise added to normalised embeddings."""

    @property
    def leaves_clips(self) -> bool:
        """True where a clip looks the same every time it is read: at most whole views are withheld."""
        return not (self.crop or self.jitter or self.shift or self.flip or self.noise)


def choose_moments(shape: tuple[int, int], n_frames: int, config: AugmentConfig) -> Tensor:
    """Training's moments of every view by itself (views are not frame-aligned). (B, V, T), in [0, 1]."""
    cut_BV2 = torch.rand(*shape, 2) * (config.crop / 2)
    begin_BV1 = cut_BV2[..., :1]
    length_BV1 = 1.0 - cut_BV2.sum(-1, keepdim=True)
    jitter_BVT = (torch.rand(*shape, n_frames) * 2 - 1) * config.jitter / 2
    moment_BVT = evenly_spaced(n_frames) + jitter_BVT / n_frames
    return (begin_BV1 + length_BV1 * moment_BVT).clamp(0, 1)


def move_grid(x_BVTHWC: Tensor, config: AugmentConfig) -> Tensor:
    """Mirror whole groups and shift each view's grid. Same shape."""
    B, V, T, H, W, _ = x_BVTHWC.shape
    if not (config.flip or config.shift):
        return x_BVTHWC
    reach = config.shift
    rows_BVH = _shifted((B, V), H, reach)
    columns_BVW = _shifted((B, V), W, reach)
    mirror_B11 = torch.rand(B, 1, 1) < config.flip
    columns_BVW = torch.where(mirror_B11, W - 1 - columns_BVW, columns_BVW)
    b = torch.arange(B).view(B, 1, 1, 1, 1)
    v = torch.arange(V).view(1, V, 1, 1, 1)
    t = torch.arange(T).view(1, 1, T, 1, 1)
    return x_BVTHWC[b, v, t, rows_BVH[:, :, None, :, None], columns_BVW[:, :, None, None, :]]


def _shifted(shape: tuple[int, int], size: int, reach: int) -> Tensor:
    offset_BV1 = torch.randint(-reach, reach + 1, (*shape, 1))
    return (torch.arange(size) + offset_BV1).clamp(0, size - 1)


def drop_views(mask_BV: Tensor, probability: float) -> Tensor:
    """Withhold present views at random; in each group one present view, drawn at random, always stays."""
    draw_BV = torch.rand(mask_BV.shape).masked_fill(~mask_BV, -1.0)
    stays_BV = torch.zeros_like(mask_BV).scatter(1, draw_BV.argmax(1, keepdim=True), True)
    return mask_BV & ((torch.rand(mask_BV.shape) >= probability) | stays_BV)
