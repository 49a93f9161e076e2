"""Losses of DTSFNet: evidence, annealed KL, and cross-entropy weighted by the uncertainty. Figure, lower left; docs/paper.md.

Letters: N samples (groups, or present views), K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from dtsf.model.evidence import dirichlet, dirichlet_kl_to_uniform, uncertainty
from dtsf.model.network import Output
from dtsf.settings import Frozen


class LossConfig(Frozen):
    """Weights of the terms. Section ``[loss]`` of a recipe. The paper gives no weights."""

    evidence: float = Field(default=1.0, ge=0)  # weight of L_ET
    kl: float = Field(default=1.0, ge=0)  # weight of L_KL after annealing
    kl_epochs: float = Field(
        default=10.0, gt=0
    )  # epochs over which the KL term grows from 0 to its weight (Sensoy: 10)
    # Remove the evidence of the true class before the KL, as is usual. False is the formula of the figure.
    kl_adjusted: bool = True
    cross: float = Field(default=1.0, ge=0)  # weight of L_cross
    views: float = Field(default=1.0, ge=0)  # weight of the mean loss of the views; the fused prediction has weight 1
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)  # of L_cross


def evidence_loss(alpha_NK: Tensor, label_N: Tensor) -> Tensor:
    """Compute L_ET, type II maximum likelihood: ``sum_k y_k (ln S - ln alpha_k)``. (N,)."""
    true_N = alpha_NK.gather(-1, label_N.unsqueeze(-1)).squeeze(-1)
    return alpha_NK.sum(-1).log() - true_N.log()


def kl_loss(alpha_NK: Tensor, label_N: Tensor, *, adjusted: bool = True) -> Tensor:
    """Compute L_KL, ``KL[Dir(alpha~) || Dir(1)]`` with ``alpha~ = y + (1 - y) alpha``: the evidence for wrong classes. (N,)."""
    if adjusted:
        y_NK = F.one_hot(label_N, alpha_NK.shape[-1]).to(alpha_NK.dtype)
        alpha_NK = y_NK + (1 - y_NK) * alpha_NK
    return dirichlet_kl_to_uniform(alpha_NK)


def uncertain_cross_entropy(logits_NK: Tensor, label_N: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Compute L_cross: cross-entropy times ``1 + u``, so that uncertain samples count more. (N,)."""
    u_N = uncertainty(dirichlet(logits_NK)).detach()  # otherwise a smaller uncertainty would lower the loss
    return (1 + u_N) * F.cross_entropy(logits_NK.float(), label_N, reduction="none", label_smoothing=label_smoothing)


def dtsf_loss(output: Output, label_B: Tensor, config: LossConfig, epoch: float) -> dict[str, Tensor]:
    """Compute ``L = L_ET + lambda_t L_KL + L_cross`` of the fused prediction and of each present view, over all branches.

    ``epoch``: epochs trained, fractions allowed: ``lambda_t = min(1, epoch / kl_epochs)``. Returns scalars ``loss`` (to
    minimise), ``evidence``, ``kl`` (before annealing), ``cross``, ``views``.
    """
    kl_weight = min(1.0, epoch / config.kl_epochs) * config.kl

    def terms_and_total(logits_NK: Tensor, label_N: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        alpha_NK = dirichlet(logits_NK)
        with torch.autocast(logits_NK.device.type, enabled=False):
            evidence = evidence_loss(alpha_NK, label_N).mean()
            kl = kl_loss(alpha_NK, label_N, adjusted=config.kl_adjusted).mean()
            cross = uncertain_cross_entropy(logits_NK, label_N, label_smoothing=config.label_smoothing).mean()
        total = config.evidence * evidence + kl_weight * kl + config.cross * cross
        return {"evidence": evidence, "kl": kl, "cross": cross}, total

    # Each branch has its own loss, so that its errors differ from those of the others.
    logits_NBK, view_logits_NBVK = output.branch_logits_NBK, output.branch_view_logits_NBVK
    fused, loss = terms_and_total(logits_NBK.flatten(0, 1), label_B.expand(logits_NBK.shape[:2]).flatten())
    mask_NBV = output.mask_BV.expand(view_logits_NBVK.shape[:3])
    _, views = terms_and_total(view_logits_NBVK[mask_NBV], label_B.unsqueeze(1).expand(mask_NBV.shape)[mask_NBV])
    return {"loss": loss + config.views * views, **fused, "views": views}
