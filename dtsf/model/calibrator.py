"""Calibrator: how much of the network's evidence is to be believed, learnt on groups that it was not trained on.

A trained network is sure of what it has learnt by heart and about as sure of what it never saw. So its evidence ``e`` is
judged once, after training, and from then on replaced by ``e'`` wherever the network answers:

    q_k = e_k ** t / sum_j e_j ** t                            what the evidence is for, sharper or flatter
    1 - u = c sigmoid(b + w . signs)                           how much of it is to be believed
    e'_k = K q_k (1 - u) / u

that is Shafer's discounting of an opinion: probabilities are ``(1 - u) q + u / K`` and ``u = K / (K + sum e')``, as ever. The
signs are :data:`SIGNS`: less is believed where there is little evidence, where it is for several classes, and where the
fused feature points to no class's training features. And where a clip moves or looks like none of the training clips,
r times as far from their mean as nearly all of them are, no more than a share c = (1.25 / r)^2 is. The order of the
classes never changes. ``t``, ``b`` and ``w`` are fitted by :mod:`dtsf.training.calibrate`.
Letters: B groups, V views, T frames, H W canvas, C channels, D features, K classes, P clips, S = 3 + C statistics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

SIGNS = ("evidence", "agreement", "closeness")
"""Signs of a right answer, in the order of the weights w: the logarithm of the evidence; the logit of the greatest expected
probability; minus the logarithm of one minus the cosine between the feature and the nearest class's."""
AS_IT_IS = (1.0, 0.0, 0.0)
"""Weights w with which, and with b = -log K, evidence is left as it is."""
REACH = 0.95
"""Share of the training clips within whose distance a clip is like them."""
MOTION = 3
"""Statistics of a clip that are of its motion; the others are of its looks."""
LEAST_DOUBT, MOST_DOUBT = 1e-3, 0.99
"""Bounds of u, so that float32 still tells the classes apart."""
LEEWAY = 1.25
"""r up to which nothing is taken from belief: new clips of the same kind are a little farther out than those of training, and
what that took from them would say more of chance than of their answers."""
LEAST_DISTANCE = 1e-3
"""Of one minus a cosine."""
LEAST_MOTION = 1e-4
"""Share of a canvas's length below which nothing moves."""


def clip_statistics(x_PTHWC: Tensor, scale_C: Tensor) -> Tensor:
    """How much a clip moves, how abruptly, how evenly, and what it looks like: (P, 3 + C).

    The first is the logarithm of the (quadratic) mean length of a cell's difference from its clip mean; the second that of
    its change from frame to frame, over the first; the third that of the plain mean, over the first; then the mean of each
    channel. A still picture has next to nothing of the first; noise, cuts and frames out of order have much of the second;
    noise and moving cameras move everywhere, people somewhere. Channels are in units of ``scale_C``.
    """
    x_PTHWC = x_PTHWC.float() * scale_C
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


def discount(evidence_BK: Tensor, logit_B: Tensor, sharpness: Tensor, likeness_B: Tensor) -> Tensor:
    """Dirichlet parameters for the same classes in the same order, of which ``likeness * sigmoid(logit)`` is believed."""
    share_BK = (sharpness * evidence_BK.log()).softmax(-1)
    doubt_B1 = (1.0 - likeness_B * logit_B.sigmoid()).clamp(LEAST_DOUBT, MOST_DOUBT).unsqueeze(-1)
    return 1.0 + evidence_BK.shape[-1] * share_BK * (1.0 - doubt_B1) / doubt_B1


class EvidenceCalibrator(nn.Module):
    """What is learnt of how much to believe; before it is learnt, evidence is taken as it is."""

    sharpness: Tensor
    bias: Tensor
    weight_3: Tensor
    centre_D: Tensor
    direction_KD: Tensor
    clip_mean_S: Tensor
    clip_deviation_S: Tensor
    reach_2: Tensor
    is_fitted: Tensor

    def __init__(self, width: int, n_classes: int, channels: int) -> None:
        super().__init__()
        empty = {"sharpness": torch.ones(()), "bias": torch.zeros(()), "weight_3": torch.zeros(len(SIGNS))}
        empty |= {"centre_D": torch.zeros(width), "direction_KD": torch.zeros(n_classes, width)}
        empty |= {"clip_mean_S": torch.zeros(MOTION + channels), "clip_deviation_S": torch.ones(MOTION + channels)}
        empty |= {"reach_2": torch.ones(2), "is_fitted": torch.zeros(())}
        for name, x in empty.items():
            self.register_buffer(name, x)
        self.learnt = False

    def know(self, statistics: dict[str, Tensor]) -> None:
        """Take over what the training groups are like, by the names of the buffers."""
        for name, x in statistics.items():
            getattr(self, name).copy_(x)

    def learn(self, sharpness: Tensor, bias: Tensor, weight_3: Tensor) -> None:
        """Take over what was fitted; from now on it counts."""
        self.know({"sharpness": sharpness, "bias": bias, "weight_3": weight_3})
        self.is_fitted.fill_(1.0)
        self.learnt = True

    def forward(self, logits_BK: Tensor, feature_BD: Tensor, statistics_BVS: Tensor, weights_BV: Tensor) -> Tensor:
        """Dirichlet parameters (B, K) that are to be believed. Arguments as for :meth:`observe`."""
        evidence_BK, signs_B3, likeness_B = self.observe(logits_BK, feature_BD, statistics_BVS, weights_BV)
        return discount(evidence_BK, self.bias + signs_B3 @ self.weight_3, self.sharpness, likeness_B)

    def observe(
        self, logits_BK: Tensor, feature_BD: Tensor, statistics_BVS: Tensor, weights_BV: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The evidence (B, K), what speaks for it, (B, 3): see :data:`SIGNS`, and the share c that can be believed, (B,).
        ``statistics_BVS``: :func:`clip_statistics` of each view; those of absent views may be anything.
        """
        # Not below what a logit of -60 gives: its logarithm is taken.
        evidence_BK = F.softplus(logits_BK.float()).clamp(min=1e-26)
        total_B = evidence_BK.sum(-1)
        most_B = (evidence_BK.amax(-1) + 1.0) / (total_B + evidence_BK.shape[-1])
        near_B = (F.normalize(feature_BD.float() - self.centre_D, dim=-1) @ self.direction_KD.t()).amax(-1)
        closeness_B = -(1.0 - near_B).clamp(min=LEAST_DISTANCE).log()
        distance_BV2 = self.distance(statistics_BVS)
        seen_BV1 = weights_BV.unsqueeze(-1)
        distance_B2 = torch.where(seen_BV1 > 0, seen_BV1 * distance_BV2, 0.0).sum(1)
        likeness_B = (LEEWAY * self.reach_2 / distance_B2.clamp(min=1e-6)).clamp(max=1.0).prod(-1).square()
        return evidence_BK, torch.stack([total_B.log(), most_B.logit(eps=1e-6), closeness_B], -1), likeness_B

    def distance(self, statistics_xS: Tensor) -> Tensor:
        """How far clips are from the training clips' mean, in their deviations: in motion and in looks, (..., 2)."""
        square_xS = ((statistics_xS - self.clip_mean_S) / self.clip_deviation_S).square()
        parts = square_xS[..., :MOTION], square_xS[..., MOTION:]
        return torch.stack([part.mean(-1).sqrt() for part in parts], -1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        # Checkpoints from before there was a belief take evidence as it is.
        for name, x in self.state_dict().items():
            state_dict.setdefault(prefix + name, x)
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        self.learnt = bool(self.is_fitted)
