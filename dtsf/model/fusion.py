"""Fusions: one feature of a group from the features of its present views. MSF is the paper's; the others are its peers.
Letters: B groups, V W views, D features, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dtsf.errors import ConfigError
from dtsf.model.evidence import certainty, dirichlet, logits_of_evidence

LEAST_WEIGHT = 1e-30
LARGEST_EXPONENT = 60.0  # bound of a logarithm, so that fused evidence and its square are finite in float32


class Fused(NamedTuple):
    """Result of a fusion."""

    feature_BD: Tensor
    weights_BV: Tensor  # share of each view in the fused feature: 0 for absent views, sum 1
    logits_BK: Tensor | None = None  # logits of a fusion of evidence; None if the head reads the fused feature


Fusion = Callable[[Tensor, Tensor, Tensor], Fused]
"""Function of features (B, V, D), the head's logits (B, V, K) and the mask of present views (B, V). Absent views are finite."""


def fuse_msf(feature_BVD: Tensor, view_logits_BVK: Tensor, mask_BV: Tensor) -> Fused:
    """Fuse by MSF, Mamba-based semantic fusion (figure, lower right; docs/paper.md): the mean of a coarse and a fine fusion.
    Coarse: one weight a view, its certainty ``1 - u``. Fine: one weight a view and feature, from the evidence of the features.
    """
    feature_BVD = feature_BVD.to(torch.promote_types(feature_BVD.dtype, torch.float32))
    coarse_BV = _normalise_over_views(certainty(view_logits_BVK), mask_BV)
    # Features take the place of classes: evidence s, strength S = sum_d (s + 1), u = D / S. The sum of s / S is 1 - u.
    evidence_BVD = F.softplus(feature_BVD)
    strength_BV1 = (evidence_BVD + 1.0).sum(-1, keepdim=True)
    fine_BVD = _normalise_over_views(evidence_BVD / strength_BV1, mask_BV.unsqueeze(-1))
    present_BVD = _present_features(feature_BVD, mask_BV)
    feature_BD = (coarse_BV.unsqueeze(-1) * present_BVD).sum(1) + (fine_BVD * present_BVD).sum(1)
    return Fused(feature_BD / 2, (coarse_BV + fine_BVD.mean(-1)) / 2)


def fuse_mean(feature_BVD: Tensor, view_logits_BVK: Tensor, mask_BV: Tensor) -> Fused:  # noqa: ARG001
    """Fuse by the mean of the features: the baseline."""
    weights_BV = _normalise_over_views(torch.ones_like(mask_BV, dtype=feature_BVD.dtype), mask_BV)
    return Fused((weights_BV.unsqueeze(-1) * _present_features(feature_BVD, mask_BV)).sum(1), weights_BV)


def fuse_tmc(feature_BVD: Tensor, view_logits_BVK: Tensor, mask_BV: Tensor) -> Fused:
    """Fuse evidence by the reduced rule of Dempster: trusted multi-view classification (Han et al., ICLR 2021, definition 4).
    The weight of a view is its certainty, and the feature is the mean. ``loss.cross = 0`` is closest to TMC's own loss, which has
    expected cross-entropy and no L_cross.
    """
    evidence_BK = combine_evidence(dirichlet(view_logits_BVK) - 1.0, mask_BV)
    weights_BV = _normalise_over_views(certainty(view_logits_BVK), mask_BV)
    feature_BD = fuse_mean(feature_BVD, view_logits_BVK, mask_BV).feature_BD
    return Fused(feature_BD, weights_BV, logits_of_evidence(evidence_BK))


def combine_evidence(evidence_BVK: Tensor, mask_BV: Tensor) -> Tensor:
    """Combine the evidence of all present views by Dempster's reduced rule: (B, K), at least that of each view.
    The rule is ``b_k = (b1_k b2_k + b1_k u2 + b2_k u1) / (1 - C)`` and ``u = u1 u2 / (1 - C)`` with ``C = sum_{i != j} b1_i
    b2_j``. In evidence ``e = K b / u`` it is ``1 + e_k / K = prod_v (1 + e_vk / K)``: no order, no division by ``1 - C``.
    """
    n_classes = evidence_BVK.shape[-1]
    log_BVK = _present_features(torch.log1p(evidence_BVK / n_classes), mask_BV)
    return n_classes * torch.expm1(log_BVK.sum(1).clamp(max=LARGEST_EXPONENT))


class ConcatFusion(nn.Module):
    """Concatenated features of all views and one linear map, the usual early fusion: ``Z = W [Z_1; ...; Z_V] + b``.
    The block of an absent view is zero, and the others are scaled by V / present, as in dropout. V is at most that of training.
    """

    def __init__(self, width: int, n_views: int) -> None:
        super().__init__()
        self.n_views = n_views
        self.project = nn.Linear(n_views * width, width)

    def forward(self, feature_BVD: Tensor, view_logits_BVK: Tensor, mask_BV: Tensor) -> Fused:
        """Fuse. Raises ConfigError: more views than in training."""
        given = mask_BV.shape[1]
        if given > self.n_views:
            raise ConfigError(
                f"{given} views given to a network with model.fusion = concat that was trained for {self.n_views}: "
                f"give at most {self.n_views}, or train with --set model.fusion=msf"
            )
        weights_BV = fuse_mean(feature_BVD, view_logits_BVK, mask_BV).weights_BV
        scaled_BVD = _present_features(feature_BVD, mask_BV) * weights_BV.amax(1)[:, None, None] * self.n_views
        return Fused(self.project(F.pad(scaled_BVD, (0, 0, 0, self.n_views - given)).flatten(1)), weights_BV)


class SemanticCorrection(nn.Module):
    """Cross-attention between views, then one shared map: the Semantic Correction Fusion Module of MS-SC.
    MS-SC (ICASSP; openreview P9bm9tW6W6, abstract and poster only) publishes no equations. Our reading: ``Z_v' = Z_v + softmax(Q
    Z_v (K Z_w)^T / sqrt(D)) V Z_w`` over the other present views w (none: ``Z_v' = Z_v``), and ``Z = P mean_v Z_v'``. Its streams
    are image and video of one camera; here they are views.
    """

    def __init__(self, width: int, n_views: int) -> None:  # noqa: ARG002
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.project = nn.Linear(width, width)

    def forward(self, feature_BVD: Tensor, view_logits_BVK: Tensor, mask_BV: Tensor) -> Fused:
        """Fuse."""
        feature_BVD = _present_features(feature_BVD, mask_BV)
        score_BVW = self.query(feature_BVD) @ self.key(feature_BVD).transpose(1, 2) / math.sqrt(feature_BVD.shape[-1])
        others_BVW = mask_BV.unsqueeze(1) & ~torch.eye(mask_BV.shape[1], dtype=torch.bool, device=mask_BV.device)
        share_BVW = score_BVW.float().masked_fill(~others_BVW, torch.finfo(torch.float32).min).softmax(-1)
        share_BVW = torch.where(others_BVW, share_BVW, 0.0).to(score_BVW.dtype)
        fused = fuse_mean(feature_BVD + share_BVW @ self.value(feature_BVD), view_logits_BVK, mask_BV)
        return Fused(self.project(fused.feature_BD), fused.weights_BV)


class Mixer(nn.Module):
    """A gated recurrent unit that mixes the feature of each view with the content of the others, then one map: M-Mixer.
    Lee et al., "Modality Mixer for Multi-modal Action Recognition" (WACV 2023; abstract only): a recurrent unit encodes the
    sequence of one modality together with the content feature of the others. Our reading: modalities are views. Their sequences are
    encoded before the fusion, so the unit makes one step, from ``Z_v`` as its state. The content is the mean of the other present
    views (none: ``Z_v' = Z_v``). With ``m = M [Z_v; content]`` and ``r, z = sigmoid(G [m; Z_v])``, it is ``Z_v' = (1 - z) Z_v + z
    tanh(C [m; r Z_v])`` and ``Z = P mean_v Z_v'``.
    """

    def __init__(self, width: int, n_views: int) -> None:  # noqa: ARG002
        super().__init__()
        self.mix, self.candidate = nn.Linear(2 * width, width), nn.Linear(2 * width, width)
        self.gates, self.project = nn.Linear(2 * width, 2 * width), nn.Linear(width, width)

    def forward(self, feature_BVD: Tensor, view_logits_BVK: Tensor, mask_BV: Tensor) -> Fused:
        """Fuse."""
        feature_BVD = _present_features(feature_BVD, mask_BV)
        others_B11 = (mask_BV.sum(1) - 1).view(-1, 1, 1)
        content_BVD = (feature_BVD.sum(1, keepdim=True) - feature_BVD) / others_B11.clamp(min=1)
        mixed_BVD = self.mix(torch.cat([feature_BVD, content_BVD], -1))
        reset_BVD, update_BVD = self.gates(torch.cat([mixed_BVD, feature_BVD], -1)).sigmoid().chunk(2, -1)
        new_BVD = self.candidate(torch.cat([mixed_BVD, reset_BVD * feature_BVD], -1)).tanh()
        new_BVD = torch.where(others_B11 > 0, torch.lerp(feature_BVD, new_BVD, update_BVD), feature_BVD)
        fused = fuse_mean(new_BVD, view_logits_BVK, mask_BV)
        return Fused(self.project(fused.feature_BD), fused.weights_BV)


FUSIONS: dict[str, Fusion | type[ConcatFusion | SemanticCorrection | Mixer]] = {  # by the name in model.fusion
    "msf": fuse_msf,
    "mean": fuse_mean,
    "tmc": fuse_tmc,
    "concat": ConcatFusion,
    "sfm": SemanticCorrection,
    "mixer": Mixer,
}


def make_fusion(name: str, width: int, n_views: int) -> Fusion:
    """Return the fusion of this name: a function, or a new module of width D for ``n_views`` views."""
    fusion = FUSIONS[name]
    return fusion(width, n_views) if isinstance(fusion, type) else fusion


def _present_features(feature_BV_: Tensor, mask_BV: Tensor) -> Tensor:
    """Return the features with zeros for absent views."""
    return torch.where(mask_BV.unsqueeze(-1), feature_BV_, torch.zeros_like(feature_BV_))


def _normalise_over_views(weight_BV_: Tensor, mask_BV_: Tensor) -> Tensor:
    """Return weights over axis 1 with sum 1; 0 for absent views. Present views share equally if all have weight 0."""
    weight_BV_ = torch.where(mask_BV_, weight_BV_.clamp(min=LEAST_WEIGHT), torch.zeros_like(weight_BV_))
    return weight_BV_ / weight_BV_.sum(1, keepdim=True)
