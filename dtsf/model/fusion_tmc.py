"""Peer of MSF: trusted multi-view classification, which fuses opinions instead of features.

Source: Han, Zhang, Fu, Zhou, "Trusted Multi-View Classification" (ICLR 2021), reduced Dempster rule, definition 4:
two opinions (b1, u1), (b2, u2) become ``b_k = (b1_k b2_k + b1_k u2 + b2_k u1) / (1 - C)``, ``u = u1 u2 / (1 - C)``
with the conflict ``C = sum_{i != j} b1_i b2_j``; more views are folded in one after the other.

Closed form, ours, tested against the fold: in evidence ``e = K b / u`` the rule is a product,
``1 + e_k / K = prod_v (1 + e_vk / K)``. No order, no division by ``1 - C``, any number of views.

Our reading: the loss is DTSFNet's on the fused evidence and on each view's, as everywhere in dtsf (TMC takes expected
cross-entropy, and no L_cross: ``loss.cross = 0`` comes nearest).
Letters: B groups, V views, D features, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dtsf.model.evidence import certainty, dirichlet, logits_of_evidence
from dtsf.model.fusion import Fused, fuse_mean, normalise_over_views

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_EXPONENT = 60.0
"""Of e: some seven views with evidence of 1e4 K each reach it. Keeps fused evidence and its square finite in float32."""


def combine_evidence(evidence_BVK: Tensor, mask_BV: Tensor) -> Tensor:
    """Evidence of all present views together, (B, K): at least that of each view alone."""
    n_classes = evidence_BVK.shape[-1]
    log_BVK = torch.log1p(evidence_BVK / n_classes)
    log_BVK = torch.where(mask_BV.unsqueeze(-1), log_BVK, torch.zeros_like(log_BVK))
    return n_classes * torch.expm1(log_BVK.sum(1).clamp(max=LARGEST_EXPONENT))


def fuse_tmc(feature_BVD: Tensor, view_logits_BVK: Tensor, mask_BV: Tensor) -> Fused:
    """Fuse by the reduced Dempster rule. Arguments as for :func:`dtsf.model.fusion.fuse_msf`.

    Returns logits whose evidence is the fused evidence. The weight of a view is its certainty ``1 - u_v``, normalised; the
    feature is the plain mean, for whoever asks for one.
    """
    alpha_BVK = dirichlet(view_logits_BVK)
    evidence_BK = combine_evidence(alpha_BVK - 1.0, mask_BV)
    weights_BV = normalise_over_views(certainty(view_logits_BVK), mask_BV)
    feature_BD = fuse_mean(feature_BVD, view_logits_BVK, mask_BV).feature_BD
    return Fused(feature_BD, weights_BV, logits_of_evidence(evidence_BK))
