"""Peer of MSF: the features of all views side by side, and one linear map.

Source: the usual baseline of multi-view work (early fusion). ``Z = W [Z_1; ...; Z_V] + b``, W of (D, V D).

Our reading, where a view may be absent: its block is zero and the others are scaled by V / present, as dropout does, so
that the sum keeps its size. The number of views is fixed when the network is made; fewer may be given, more may not.
Letters: B groups, V views, D features, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.nn.functional import pad

from dtsf.errors import ConfigError
from dtsf.model.fusion import Fused, fuse_mean, present_features

if TYPE_CHECKING:
    from torch import Tensor


class ConcatFusion(nn.Module):
    """Concatenate and project. Args: width D, and the number of views V."""

    def __init__(self, width: int, n_views: int) -> None:
        super().__init__()
        self.n_views = n_views
        self.project = nn.Linear(n_views * width, width)

    def forward(self, feature_BVD: Tensor, view_logits_BVK: Tensor, mask_BV: Tensor) -> Fused:
        """Fuse; arguments as for :func:`dtsf.model.fusion.fuse_msf`. Raises ConfigError: more views than the network
        was made for.
        """
        given = mask_BV.shape[1]
        if given > self.n_views:
            raise ConfigError(
                f"{given} views given to a network with model.fusion = concat that was trained for {self.n_views}: "
                "give at most as many, or train with --set model.fusion=msf"
            )
        weights_BV = fuse_mean(feature_BVD, view_logits_BVK, mask_BV).weights_BV
        scaled_BVD = present_features(feature_BVD, mask_BV) * weights_BV.amax(1)[:, None, None] * self.n_views
        return Fused(self.project(pad(scaled_BVD, (0, 0, 0, self.n_views - given)).flatten(1)), weights_BV)
