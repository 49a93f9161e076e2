"""Inputs of the branches: motion, the dynamic part, frames, or pixels.
Letters: B groups, V views, P present views of all groups, T frames, H W grid, C channels, R of an input, E of motion.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from dtsf.model.config import BranchConfig, ModelConfig
from dtsf.model.motion import flow, motion_magnitude, sense_motion, split_static_dynamic
from dtsf.model.tsm import paste_thumbnails

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # red, green, blue, from 0 to 1
LEAST_DEVIATION = 0.05  # of the training clips' deviation, added to a clip's; it keeps constant channels small


class Inputs(nn.Module):
    """Compute the input of each branch from embeddings (C channels, H = W = ``side``) or pixels (3 channels)."""

    channel_scale_C: Tensor  # 1 / standard deviation of each channel in the training clips
    motion_mean_HWE: Tensor  # mean motion of each cell in the training clips
    basis_CR: Tensor  # principal directions of the training clips' motion

    def __init__(self, config: ModelConfig, channels: int, side: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("channel_scale_C", torch.ones(channels))
        motion_mean_HWE = torch.zeros(side, side, config.motion_channels)
        self.register_buffer("motion_mean_HWE", motion_mean_HWE, persistent="motion" in config.inputs)
        self.principal = min(config.principal, channels - 1)
        if self.principal:
            self.register_buffer("basis_CR", torch.zeros(channels, self.principal).fill_diagonal_(1.0))
        self.kept = self.principal or channels
        reduces = config.reduce and any(x.input != "motion" and not x.channels for x in config.branch)
        self.reduce = nn.Linear(self.kept, config.reduce) if reduces else nn.Identity()

    def channels(self, branch: BranchConfig) -> int:
        """Return R, the channels of a branch's input."""
        if branch.input == "motion":
            return self.config.motion_channels
        return min(branch.channels, self.principal) if branch.channels else self.config.reduce or self.kept

    def project(self, x_PTHWC: Tensor) -> Tensor:
        """Project embeddings to the principal channels: (..., C) -> (..., R), float32. Return projected ones unchanged."""
        if not self.principal or x_PTHWC.shape[-1] == self.principal:
            return x_PTHWC
        return x_PTHWC.float() @ (self.channel_scale_C.unsqueeze(1) * self.basis_CR)

    def motion(self, x_PTHWC: Tensor) -> Tensor:
        """Compute motion magnitude and flow: (P, T, H, W, C) -> (P, T, H, W, E). Return an array with E channels unchanged."""
        config = self.config
        if x_PTHWC.shape[-1] == config.motion_channels != self.kept:
            return x_PTHWC
        scale_C = None if self.principal else self.channel_scale_C
        x_PTHWC = self.project(x_PTHWC).float()
        magnitude_PTHWE = motion_magnitude(x_PTHWC, scale_C, config.lags, config.exponent)
        if not config.flow:
            return magnitude_PTHWE
        return torch.cat([magnitude_PTHWE, config.flow * flow(x_PTHWC, scale_C, config.exponent)], -1)

    def forward(self, branch: BranchConfig, x_BVTHWC: Tensor, mask_BV: Tensor, *, complete: bool) -> Tensor:
        """Compute a branch's input: (B, V, T, H, W, C) -> (B, V, T, H, W, R), zeros for absent views.
        ``x_BVTHWC``: projected embeddings, motion, or pixels; absent views are not read. ``complete``: no view is absent.
        """
        x_PTHWC = x_BVTHWC.flatten(0, 1)
        if branch.channels:  # principal channels of the dynamic part, divided by their mean length in the clip
            x_PTHWC = split_static_dynamic(x_PTHWC[..., : branch.channels])[1]
            length_P1111 = x_PTHWC.square().mean((-4, -3, -2, -1), keepdim=True).sqrt()
            x_PTHWC = x_PTHWC / length_P1111.clamp(min=torch.finfo(x_PTHWC.dtype).tiny)
        if not complete:
            # Indexing rows by number is many times faster than by a mask.
            x_PTHWC = x_PTHWC.index_select(0, mask_BV.flatten().nonzero().flatten())
        x_PTHWC = x_PTHWC.float()
        if branch.input == "motion":
            x_PTHWC = self.motion(x_PTHWC) - self.motion_mean_HWE
        if branch.input != "motion" and not branch.channels:
            y_PTHWR = self._all_channels(branch, x_PTHWC)
        else:
            y_PTHWR = sense_motion(x_PTHWC) if branch.msm else x_PTHWC
        y_BVTHWR: Tensor = y_PTHWR.unflatten(0, mask_BV.shape) if complete else scatter_views(y_PTHWR, mask_BV)
        if branch.paste == "thumbnails":
            return paste_thumbnails(y_BVTHWR, mask_BV, training=self.training)
        return y_BVTHWR

    def _all_channels(self, branch: BranchConfig, x_PTHWC: Tensor) -> Tensor:
        """Normalise frames, pixels or the dynamic part, and reduce the channels.
        Both are linear in each cell, as a thumbnail's average. So pasting may follow them, which costs a quarter.
        """
        pixels = branch.input == "pixels"
        if pixels:
            x_PTHWC = (x_PTHWC / 255.0 - x_PTHWC.new_tensor(IMAGENET_MEAN)) / x_PTHWC.new_tensor(IMAGENET_DEVIATION)
        scaled = not (pixels or self.principal)
        scale_C = self.channel_scale_C if scaled else torch.ones_like(self.channel_scale_C[: self.kept])
        factor_PTHWC = scale_C.view(1, 1, 1, 1, -1)
        clip = self.config.normalise == "clip" and not pixels
        dynamic_PTHWC = split_static_dynamic(x_PTHWC)[1] if clip or branch.input == "dynamic" else x_PTHWC
        y_PTHWC = dynamic_PTHWC if branch.input == "dynamic" else x_PTHWC
        if clip:
            # The dynamic part has mean zero: its deviation is its length.
            length_P111C = torch.linalg.vector_norm(dynamic_PTHWC, dim=(1, 2, 3), keepdim=True)
            deviation_P111C = length_P111C * factor_PTHWC / math.sqrt(math.prod(x_PTHWC.shape[1:4]))
            factor_PTHWC = factor_PTHWC / (deviation_P111C + LEAST_DEVIATION)
        if branch.msm:
            return cast("Tensor", self.reduce(sense_motion(y_PTHWC * factor_PTHWC)))
        if not isinstance(self.reduce, nn.Linear):
            return y_PTHWC * factor_PTHWC
        # The factors of each clip scale the small matrix instead of the large input.
        weight_PRC = self.reduce.weight * factor_PTHWC.flatten(-4, -2).expand(x_PTHWC.shape[0], 1, -1)
        y_PXR: Tensor = torch.bmm(y_PTHWC.flatten(1, 3), weight_PRC.transpose(1, 2)) + self.reduce.bias
        return cast("Tensor", y_PXR.unflatten(1, x_PTHWC.shape[1:4]))


def scatter_views(x_P_: Tensor, mask_BV: Tensor) -> Tensor:
    """Put the rows of the present views at their places: (P, ...) -> (B, V, ...), zeros for absent views."""
    return x_P_.new_zeros(*mask_BV.shape, *x_P_.shape[1:]).index_put((mask_BV,), x_P_)
