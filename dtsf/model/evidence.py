"""Dirichlet evidence: alpha, probabilities and uncertainty from logits (Sensoy et al. 2018).

All functions compute in float32 also under autocast, because digamma and lgamma of bfloat16 are too coarse.
Letters: K classes, N branches; leading axes are free.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def dirichlet(logits_K: Tensor) -> Tensor:
    """Return Dirichlet parameters ``alpha = softplus(logits) + 1`` (in the figure, f1 is softplus). Same shape, all > 1."""
    return F.softplus(_wide(logits_K)) + 1.0


def logits_of_evidence(evidence_K: Tensor) -> Tensor:
    """Return logits for which :func:`dirichlet` gives ``evidence + 1``: the inverse of softplus, finite at evidence 0."""
    evidence_K = _wide(evidence_K)
    evidence_K = evidence_K.clamp(min=torch.finfo(evidence_K.dtype).eps ** 2)
    return evidence_K + torch.log(-torch.expm1(-evidence_K))


def average_branches(logits_N__K: Tensor, share_N: Tensor) -> Tensor:
    """Return logits whose alpha is the weighted geometric mean of the branches' alpha. Drops the first axis.

    Its probabilities are the logarithmic pool of the branches' probabilities (Genest and Zidek 1986). Where branches disagree, the
    sum of alpha is below theirs (Hoelder's inequality), so the average is less certain. ``share_N``: weights with sum 1.
    """
    log_alpha_N__K = dirichlet(logits_N__K).log()
    share_N__1 = share_N.to(log_alpha_N__K.dtype).view(-1, *[1] * (logits_N__K.ndim - 1))
    return logits_of_evidence((share_N__1 * log_alpha_N__K).sum(0).expm1())


def uncertainty(alpha_K: Tensor) -> Tensor:
    """Return the vacuity ``u = K / S`` with ``S = sum_k alpha_k``, in (0, 1]: 1 without evidence. Drops the last axis."""
    return alpha_K.shape[-1] / alpha_K.sum(-1)


def certainty(logits_K: Tensor) -> Tensor:
    """Return ``1 - u`` of the head's logits without cancellation, so that little evidence is more than none."""
    total = F.softplus(_wide(logits_K)).sum(-1)
    return total / (total + logits_K.shape[-1])


def probabilities(alpha_K: Tensor) -> Tensor:
    """Return expected class probabilities ``alpha / S``."""
    return alpha_K / alpha_K.sum(-1, keepdim=True)


def dirichlet_kl_to_uniform(alpha_K: Tensor) -> Tensor:
    """Return ``KL[Dir(alpha) || Dir(1)]`` in nats, at least 0, in float32 or wider. Drops the last axis.

    Computes in float64: at an evidence of 1e6 the terms are 1e7 and the result is 25, so float32 errs by percents.
    """
    dtype = torch.promote_types(alpha_K.dtype, torch.float32)
    alpha_K = alpha_K.double()
    total_1 = alpha_K.sum(-1, keepdim=True)
    log_normaliser = torch.lgamma(total_1.squeeze(-1)) - torch.lgamma(alpha_K.new_tensor(float(alpha_K.shape[-1])))
    log_normaliser = log_normaliser - torch.lgamma(alpha_K).sum(-1)
    excess = ((alpha_K - 1.0) * (torch.digamma(alpha_K) - torch.digamma(total_1))).sum(-1)
    return (log_normaliser + excess).to(dtype)
