"""Dirichlet evidence: alpha, probabilities and uncertainty from logits (Sensoy et al. 2018), and its calibration.
All functions compute in float32 also under autocast, because digamma and lgamma of bfloat16 are too coarse.
Letters: B groups, V views, T frames, H W grid, C channels, D features, K classes, N branches, P clips, S = 3 + C statistics.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dtsf.model.motion import in_chunks

FEATURES = ("evidence", "agreement", "closeness")  # in the order of the weights w of EvidenceCalibrator.observe
NEUTRAL_WEIGHTS = (1.0, 0.0, 0.0)  # for w: with b = -log K and t = 1 they leave the evidence unchanged
REFERENCE_QUANTILE = 0.95  # share of the training clips within the reference distance
MOTION = 3  # statistics of a clip's motion, the first ones; the others describe its appearance
LEAST_UNCERTAINTY, MOST_UNCERTAINTY = 1e-3, 0.99  # so that float32 separates the classes
TOLERANCE = 1.25  # ratio r up to which nothing is discounted: new clips of the same kind lie slightly farther out
LEAST_DISTANCE = 1e-3  # of 1 minus a cosine
LEAST_MOTION = 1e-4  # of a clip's motion, as a share of its length


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
    """Return logits whose alpha is the weighted geometric mean of the branches' alpha. Drops the first axis; the shares sum to 1.
    The probabilities are the logarithmic pool (Genest and Zidek 1986). Disagreement lowers the evidence (Hoelder's inequality).
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
    """Return ``KL[Dir(alpha) || Dir(1)]`` in nats, at least 0. Drops the last axis.
    Computes in float64: at an evidence of 1e6 the terms are 1e7 and the result is 25, so float32 errs by percents.
    """
    dtype = torch.promote_types(alpha_K.dtype, torch.float32)
    alpha_K = alpha_K.double()
    total_1 = alpha_K.sum(-1, keepdim=True)
    log_normaliser = torch.lgamma(total_1.squeeze(-1)) - torch.lgamma(alpha_K.new_tensor(float(alpha_K.shape[-1])))
    log_normaliser = log_normaliser - torch.lgamma(alpha_K).sum(-1)
    excess = ((alpha_K - 1.0) * (torch.digamma(alpha_K) - torch.digamma(total_1))).sum(-1)
    return (log_normaliser + excess).to(dtype)


def clip_statistics(x_PTHWC: Tensor, scale_C: Tensor) -> Tensor:
    """Return statistics of clips, (P, 3 + C): amount, abruptness and evenness of motion, and channel means, all after ``*
    scale_C``.
    Amount: log of the quadratic mean distance of a cell from its temporal mean. Abruptness: log of the change from frame to frame
    over the amount; large for noise and cuts. Evenness: log of the mean distance over the amount; large for moving cameras.
    """
    return in_chunks(lambda part_PTHWC: _statistics(part_PTHWC.float() * scale_C), x_PTHWC)


def _statistics(x_PTHWC: Tensor) -> Tensor:
    moving_PTHWC = x_PTHWC - x_PTHWC.mean(1, keepdim=True)
    size_P = x_PTHWC.square().sum(-1).mean((1, 2, 3)).sqrt()
    least_P = LEAST_MOTION * size_P + torch.finfo(torch.float32).tiny
    length_PTHW = moving_PTHWC.square().sum(-1).sqrt()
    length_P = length_PTHW.square().mean((1, 2, 3)).sqrt().maximum(least_P)
    even_P = (length_PTHW.mean((1, 2, 3)).maximum(least_P) / length_P).log()
    abrupt_P = torch.zeros_like(length_P)
    if x_PTHWC.shape[1] > 1:
        change_PTHWC = x_PTHWC[:, 1:] - x_PTHWC[:, :-1]
        abrupt_P = (change_PTHWC.square().sum(-1).mean((1, 2, 3)).sqrt().maximum(least_P) / length_P).log()
    return torch.cat([torch.stack([length_P.log(), abrupt_P, even_P], -1), x_PTHWC.mean((1, 2, 3))], -1)


def discount(score_BK: Tensor, logit_B: Tensor, known_B: Tensor) -> Tensor:
    """Return Dirichlet parameters with class shares ``softmax(score)`` and certainty ``known * sigmoid(logit)``: (B, K)."""
    share_BK = score_BK.softmax(-1)
    u_B1 = (1.0 - known_B * logit_B.sigmoid()).clamp(LEAST_UNCERTAINTY, MOST_UNCERTAINTY).unsqueeze(-1)
    return 1.0 + score_BK.shape[-1] * share_BK * (1.0 - u_B1) / u_B1


class Fitted(NamedTuple):
    """Parameters of a calibration: t, s, b and w of :class:`EvidenceCalibrator`."""

    inverse_temperature: Tensor
    nearness: Tensor
    bias: Tensor
    weight_3: Tensor


class Observed(NamedTuple):
    """Inputs of the calibration for a batch: evidence, cosines with the class means, features, and the in-distribution score c."""

    evidence_BK: Tensor
    near_BK: Tensor
    features_B3: Tensor
    known_B: Tensor

    def calibrated(self, fitted: Fitted) -> Tensor:
        """Return calibrated Dirichlet parameters, (B, K)."""
        score_BK = fitted.inverse_temperature * self.evidence_BK.log() + fitted.nearness * self.near_BK
        return discount(score_BK, fitted.bias + self.features_B3 @ fitted.weight_3, self.known_B)


class EvidenceCalibrator(nn.Module):
    """Calibration of the evidence after training, and the reference statistics of the training groups. No parameters.

    A trained network is overconfident on new data. So in evaluation its evidence ``e`` is replaced by ``e'``:

        q_k = e_k ** t exp(s a_k) / sum_j ...             share of each class; t is the inverse temperature
        1 - u = c sigmoid(b + w . features)               certainty
        e'_k = K q_k (1 - u) / u

    ``a_k`` is the cosine of the clip's feature and the mean training feature of class k: with few people, the class of the nearest
    mean is right where the trained head is not (prototypes: Snell et al. 2017). The weight s is 0 where it is of no use on held-out
    groups. The rest is Shafer's discounting: probabilities are ``(1 - u) q + u / K``, and ``u = K / (K + sum e')``. Features are
    small where there is little evidence, where it is for several classes, and far from the training features of every class. The
    in-distribution score c is ``(1.25 / r)^2``, at most 1, for a clip that moves or looks r times as far from the training clips'
    mean as 95 % of them do. :mod:`dtsf.training.calibrate` fits ``t``, ``s``, ``b`` and ``w``.
    """

    inverse_temperature: Tensor
    nearness: Tensor  # s
    bias: Tensor
    weight_3: Tensor
    centre_D: Tensor
    direction_KD: Tensor  # from the centre, mean of the training features of each class
    clip_mean_S: Tensor
    clip_deviation_S: Tensor
    reference_distance_2: Tensor  # 95 % of the training clips lie within it, in motion and in appearance
    is_fitted: Tensor

    def __init__(self, width: int, n_classes: int, channels: int) -> None:
        super().__init__()
        S = MOTION + channels
        shapes: dict[str, tuple[int, ...]] = {"inverse_temperature": (), "nearness": (), "bias": ()}
        shapes |= {
            "weight_3": (len(FEATURES),),
            "centre_D": (width,),
            "direction_KD": (n_classes, width),
            "clip_mean_S": (S,),
            "clip_deviation_S": (S,),
        }
        shapes |= {"reference_distance_2": (2,), "is_fitted": ()}
        ones = ("inverse_temperature", "clip_deviation_S", "reference_distance_2")
        for name, shape in shapes.items():
            self.register_buffer(name, torch.full(shape, float(name in ones)))
        self.fitted = False  # True if the network uses the calibrator; plain, because an exporter cannot read is_fitted

    def set_reference(self, statistics: dict[str, Tensor]) -> None:
        """Copy statistics of the training groups into the buffers of these names."""
        for name, x in statistics.items():
            getattr(self, name).copy_(x)

    def set_parameters(self, fitted: Fitted) -> None:
        """Copy fitted parameters. From now on the network uses the calibrator."""
        self.set_reference(fitted._asdict())
        self.is_fitted.fill_(1.0)
        self.fitted = True

    def forward(self, logits_BK: Tensor, feature_BD: Tensor, statistics_BVS: Tensor, weights_BV: Tensor) -> Tensor:
        """Return calibrated Dirichlet parameters (B, K). Arguments as for :meth:`observe`."""
        observed = self.observe(logits_BK, feature_BD, statistics_BVS, weights_BV)
        return observed.calibrated(Fitted(self.inverse_temperature, self.nearness, self.bias, self.weight_3))

    def observe(self, logits_BK: Tensor, feature_BD: Tensor, statistics_BVS: Tensor, weights_BV: Tensor) -> Observed:
        """Return what the calibration reads. Statistics of absent views may be anything.
        Features: log of the evidence; logit of the largest expected probability; -log(1 - cosine) of feature and nearest class.
        """
        # At least the evidence of a logit of -60, because its logarithm is taken.
        evidence_BK = F.softplus(logits_BK.float()).clamp(min=1e-26)
        total_B = evidence_BK.sum(-1)
        most_B = (evidence_BK.amax(-1) + 1.0) / (total_B + evidence_BK.shape[-1])
        near_BK = F.normalize(feature_BD.float() - self.centre_D, dim=-1) @ self.direction_KD.t()
        near_BK = near_BK.masked_fill((self.direction_KD == 0).all(-1), -1.0)  # a class without training groups
        closeness_B = -(1.0 - near_BK.amax(-1)).clamp(min=LEAST_DISTANCE).log()
        features_B3 = torch.stack([total_B.log(), most_B.logit(eps=1e-6), closeness_B], -1)
        # c in (0, 1], from the distance of the views averaged by their weights.
        weight_BV1 = weights_BV.unsqueeze(-1)
        distance_B2 = torch.where(weight_BV1 > 0, weight_BV1 * self.distance(statistics_BVS), 0.0).sum(1)
        ratio_B2 = TOLERANCE * self.reference_distance_2 / distance_B2.clamp(min=1e-6)
        return Observed(evidence_BK, near_BK, features_B3, ratio_B2.clamp(max=1.0).prod(-1).square())

    def distance(self, statistics_xS: Tensor) -> Tensor:
        """Return the distance of clips from the training clips' mean, in their deviations: motion and appearance, (..., 2)."""
        square_xS = ((statistics_xS - self.clip_mean_S) / self.clip_deviation_S).square()
        parts = square_xS[..., :MOTION], square_xS[..., MOTION:]
        return torch.stack([part.mean(-1).sqrt() for part in parts], -1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        state_dict.setdefault(f"{prefix}nearness", torch.zeros(()))  # runs from before it
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        self.fitted = bool(self.is_fitted)
