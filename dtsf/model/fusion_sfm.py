"""Peer of MSF: the Semantic Correction Fusion Module of MS-SC, which lets streams correct each other, then fuses.

Source: "MS-SC" (ICASSP; abstract and poster only, openreview P9bm9tW6W6). Public words: streams interact by
cross-attention, then a 1 x 1 convolution fuses. The equations are not published.

Our reading: ``Z_v' = Z_v + softmax(Q Z_v (K Z_w)^T / sqrt(D)) V Z_w`` over the other present views w, then a 1 x 1
convolution over the stacked views whose weights all views share: ``Z = P mean_v Z_v'``. Sharing makes it indifferent to
order and number of views. A view that is alone has nobody to exchange with and goes to P as it is. MS-SC's streams
are image and video of one camera; here they are the views.
Letters: B groups, V W views, D features, K classes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from dtsf.model.fusion import Fused, fuse_mean, present_features

if TYPE_CHECKING:
    from torch import Tensor


class SemanticCorrection(nn.Module):
    """Cross-attention between views, then one shared map. Args: width D; ``n_views`` is not needed."""

    def __init__(self, width: int, n_views: int) -> None:  # noqa: ARG002
        super().__init__()
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.project = nn.Linear(width, width)

    def forward(self, feature_BVD: Tensor, view_logits_BVK: Tensor, mask_BV: Tensor) -> Fused:
        """Fuse; arguments as for :func:`dtsf.model.fusion.fuse_msf`."""
        feature_BVD = present_features(feature_BVD, mask_BV)
        score_BVW = self.query(feature_BVD) @ self.key(feature_BVD).transpose(1, 2) / math.sqrt(feature_BVD.shape[-1])
        itself_VV = torch.eye(mask_BV.shape[1], dtype=torch.bool, device=mask_BV.device)
        others_BVW = mask_BV.unsqueeze(1) & ~itself_VV
        share_BVW = score_BVW.float().masked_fill(~others_BVW, torch.finfo(torch.float32).min).softmax(-1)
        share_BVW = torch.where(others_BVW, share_BVW, torch.zeros_like(share_BVW)).to(score_BVW.dtype)
        corrected_BVD = feature_BVD + share_BVW @ self.value(feature_BVD)
        fused = fuse_mean(corrected_BVD, view_logits_BVK, mask_BV)
        return Fused(self.project(fused.feature_BD), fused.weights_BV)
