"""Dirichlet evidence: from logits to belief and uncertainty (Sensoy et al. 2018; model-facts 4.1).

Everything here runs in float32 even under autocast: digamma and lgamma of bfloat16 are useless.
Letters: K classes; leading axes are free.
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
    """Dirichlet parameters ``alpha = softplus(logits) + 1`` (figure: f1 is softplus here). Same shape, all > 1."""
    return F.softplus(_wide(logits_K)) + 1.0


def logits_of_evidence(evidence_K: Tensor) -> Tensor:
    """The logits for which :func:`dirichlet` gives ``evidence + 1``: the inverse of softplus, finite at evidence 0."""
    evidence_K = _wide(evidence_K)
    evidence_K = evidence_K.clamp(min=torch.finfo(evidence_K.dtype).eps ** 2)
    return evidence_K + torch.log(-torch.expm1(-evidence_K))


def average_branches(logits_S__K: Tensor, share_S: Tensor) -> Tensor:
    """The logits of several opinions as one, whose alpha are the geometric means of theirs. Drops the first axis.

    Its probabilities are the logarithmic pool of theirs (Genest and Zidek 1986). What one opinion rules out the other cannot carry
    alone; and where they disagree the sum of the alpha falls below their own (Hoelder), so that the pool is less certain.

    ``logits_S__K``: of each opinion. ``share_S``: adds up to 1.
    """
    log_alpha_S__K = dirichlet(logits_S__K).log()
    share_S__1 = share_S.to(log_alpha_S__K.dtype).view(-1, *[1] * (logits_S__K.ndim - 1))
    return logits_of_evidence((share_S__1 * log_alpha_S__K).sum(0).expm1())


def uncertainty(alpha_K: Tensor) -> Tensor:
    """Vacuity ``u = K / S`` with ``S = sum_k alpha_k``, in (0, 1]: 1 is no evidence at all. Drops the last axis."""
    return alpha_K.shape[-1] / alpha_K.sum(-1)


def certainty(logits_K: Tensor) -> Tensor:
    """``1 - u`` of the head's logits, without the cancellation: next to no evidence is still more than none."""
    total = F.softplus(_wide(logits_K)).sum(-1)
    return total / (total + logits_K.shape[-1])


def probabilities(alpha_K: Tensor) -> Tensor:
    """Expected class probabilities ``alpha / S``."""
    return alpha_K / alpha_K.sum(-1, keepdim=True)


def dirichlet_kl_to_uniform(alpha_K: Tensor) -> Tensor:
    """``KL[Dir(alpha) || Dir(1)]`` in nats, at least 0. Drops the last axis; float32 for anything narrower.

    In float64 inside: at an evidence of 1e6 the terms are 1e7 and the result 25, which float32 gets wrong by percents.
    """
    dtype = torch.promote_types(alpha_K.dtype, torch.float32)
    alpha_K = alpha_K.double()
    total_1 = alpha_K.sum(-1, keepdim=True)
    n_classes = torch.tensor(float(alpha_K.shape[-1]), device=alpha_K.device, dtype=alpha_K.dtype)
    log_normaliser = torch.lgamma(total_1.squeeze(-1)) - torch.lgamma(n_classes) - torch.lgamma(alpha_K).sum(-1)
    excess = ((alpha_K - 1.0) * (torch.digamma(alpha_K) - torch.digamma(total_1))).sum(-1)
    return (log_normaliser + excess).to(dtype)
