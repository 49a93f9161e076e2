"""MSF, Mamba-based semantic fusion: one feature of all present views, by evidence (figure, lower right).

Coarse branch: one weight a view, from the Dirichlet uncertainty of the view's own classification.
Fine branch: one weight a view and feature, from the evidence that the features themselves carry.
What the figure leaves open and what was decided: docs/paper.md. No parameters beside the shared head.
Letters: B groups, V views, D features, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from dtsf.model.evidence import certainty

if TYPE_CHECKING:
    from torch import Tensor

LEAST_WEIGHT = 1e-30


@dataclass(frozen=True)
class Fused:
    """Result of a fusion."""

    feature_BD: Tensor
    weights_BV: Tensor
    """Share of each view in the fused feature: exactly 0 for absent views, summing to 1 over present ones."""
    logits_BK: Tensor | None = None
    """Of a fusion that joins evidence instead of features; the others leave the feature to the shared head."""


def fuse_msf(feature_BVD: Tensor, view_logits_BVK: Tensor, mask_BV: Tensor) -> Fused:
    """Evidential fusion, coarse and fine, and the mean of both. ``feature_BVD``: encoder output of every view; absent views may
    hold anything finite. ``view_logits_BVK``: the shared head's output for every view.
    """
    feature_BVD = feature_BVD.float() if feature_BVD.dtype != torch.float64 else feature_BVD
    coarse_BV = normalise_over_views(certainty(view_logits_BVK), mask_BV)
    # Features in the place of classes: evidence s, strength S = sum_d (s + 1), u = D / S, and belief s / S,
    # whose sum over the features is 1 - u.
    evidence_BVD = F.softplus(feature_BVD)
    strength_BV1 = (evidence_BVD + 1.0).sum(-1, keepdim=True)
    fine_BVD = normalise_over_views(evidence_BVD / strength_BV1, mask_BV.unsqueeze(-1))
    present_BVD = present_features(feature_BVD, mask_BV)
    coarse_BD = (coarse_BV.unsqueeze(-1) * present_BVD).sum(1)
    fine_BD = (fine_BVD * present_BVD).sum(1)
    return Fused((coarse_BD + fine_BD) / 2, (coarse_BV + fine_BVD.mean(-1)) / 2)


def fuse_mean(feature_BVD: Tensor, view_logits_BVK: Tensor, mask_BV: Tensor) -> Fused:  # noqa: ARG001
    """Plain mean of the features of the present views: the baseline. Arguments as for :func:`fuse_msf`."""
    weights_BV = normalise_over_views(torch.ones_like(mask_BV, dtype=feature_BVD.dtype), mask_BV)
    present_BVD = present_features(feature_BVD, mask_BV)
    return Fused((weights_BV.unsqueeze(-1) * present_BVD).sum(1), weights_BV)


def present_features(feature_BVD: Tensor, mask_BV: Tensor) -> Tensor:
    """The features with zeros in the place of absent views, whatever stood there."""
    return torch.where(mask_BV.unsqueeze(-1), feature_BVD, torch.zeros_like(feature_BVD))


def normalise_over_views(weight_BV_: Tensor, mask_BV_: Tensor) -> Tensor:
    """Weights over the view axis (1): exactly 0 where absent, summing to 1 over the present ones.

    Views that all have no weight at all (softplus of a very negative number is 0) share equally.
    """
    weight_BV_ = torch.where(mask_BV_, weight_BV_.clamp(min=LEAST_WEIGHT), torch.zeros_like(weight_BV_))
    return weight_BV_ / weight_BV_.sum(1, keepdim=True)
