"""Losses of DTSFNet: evidence, annealed KL, and cross-entropy weighted by the uncertainty. Figure, lower left; docs/paper.md.

Letters: N samples (groups, or present views), K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from dtsf.model.evidence import certainty, dirichlet, dirichlet_kl_to_uniform, probabilities, uncertainty
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
    euc: float = Field(default=0.0, ge=0)  # weight of the evidential uncertainty calibration of DEAR, a peer
    # Epochs over which it turns from wrong answers to right ones (DEAR: all its 50).
    euc_epochs: float = Field(default=50.0, gt=0)


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


def euc_loss(logits_NK: Tensor, label_N: Tensor, share: float) -> Tensor:
    """Compute EUC: right answers should be certain, and wrong ones uncertain. (N,).

    Bao et al., "Evidential Deep Learning for Open Set Action Recognition" (DEAR, ICCV 2021; numbers from the code,
    Cogito2012/DEAR): with p the largest probability and u the uncertainty, ``-w p ln(1 - u)`` for a right answer and ``-(1 - w)
    (1 - p) ln u`` for a wrong one, where w grows exponentially from 0.01 to 1. ``share``: of the epochs of this growth, 0 to 1.
    """
    alpha_NK = dirichlet(logits_NK)
    p_N, answer_N = probabilities(alpha_NK).max(-1)
    sure_N, unsure_N = certainty(logits_NK).clamp(min=1e-26).log(), uncertainty(alpha_NK).log()
    w = 0.01 ** (1.0 - share)
    return torch.where(answer_N == label_N, -w * p_N * sure_N, -(1.0 - w) * (1.0 - p_N) * unsure_N)


def dtsf_loss(output: Output, label_B: Tensor, config: LossConfig, epoch: float) -> dict[str, Tensor]:
    """Compute ``L = L_ET + lambda_t L_KL + L_cross`` of the fused prediction and of each present view, over all branches.

    ``epoch``: epochs trained, fractions allowed: ``lambda_t = min(1, epoch / kl_epochs)``. Returns scalars ``loss`` (to
    minimise), ``evidence``, ``kl`` (before annealing), ``cross``, ``views``, and ``euc`` if it has a weight.
    """
    kl_weight = min(1.0, epoch / config.kl_epochs) * config.kl

    def terms_and_total(logits_NK: Tensor, label_N: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        alpha_NK = dirichlet(logits_NK)
        with torch.autocast(logits_NK.device.type, enabled=False):
            evidence = evidence_loss(alpha_NK, label_N).mean()
            kl = kl_loss(alpha_NK, label_N, adjusted=config.kl_adjusted).mean()
            cross = uncertain_cross_entropy(logits_NK, label_N, label_smoothing=config.label_smoothing).mean()
        total = config.evidence * evidence + kl_weight * kl + config.cross * cross
        terms = {"evidence": evidence, "kl": kl, "cross": cross}
        if config.euc:
            with torch.autocast(logits_NK.device.type, enabled=False):
                terms["euc"] = euc_loss(logits_NK, label_N, min(1.0, epoch / config.euc_epochs)).mean()
            total = total + config.euc * terms["euc"]
        return terms, total

    # Each branch has its own loss, so that its errors differ from those of the others.
    logits_NBK, view_logits_NBVK = output.branch_logits_NBK, output.branch_view_logits_NBVK
    fused, loss = terms_and_total(logits_NBK.flatten(0, 1), label_B.expand(logits_NBK.shape[:2]).flatten())
    mask_NBV = output.mask_BV.expand(view_logits_NBVK.shape[:3])
    _, views = terms_and_total(view_logits_NBVK[mask_NBV], label_B.unsqueeze(1).expand(mask_NBV.shape)[mask_NBV])
    return {"loss": loss + config.views * views, **fused, "views": views}
