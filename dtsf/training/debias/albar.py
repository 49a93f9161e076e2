"""Peer: ALBAR, an adversary on a single frame: the network itself, shown a clip that stands still, must not know.

Source: Fioresi, Dave, Shah, "ALBAR: Adversarial Learning approach to mitigate Biases in Action Recognition" (ICLR 2025;
UCF-CRCV/ALBAR, read for its numbers): beside the clip, a static clip of one of its frames goes through the same network;
``L = CE(x) - w_s CE(x_s) + w_e sum p ln p (x_s) + w_g mean ||grad_{x_s} f(x_s)||``, weights 1, 4.25, 10 (HMDB51).

Our reading: CE(x) is DTSFNet's loss; the static clip repeats one random frame of each view, and its answer is the fused one,
as a softmax of the logits; the gradient is that of the sum of the logits, its length taken over a group's whole input. As the
authors' weights, the adversary's cross-entropy has no bound; the entropy keeps it in check.
A still clip has no dynamic part: a network that looks at that alone never sees one (``model.anchor = frame`` is needed).
Letters: B groups, V views, T frames, H W grid, C channels, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from dtsf.training.debias.debiaser import Debiaser

if TYPE_CHECKING:
    from torch import Tensor

    from dtsf.model.network import Output
    from dtsf.training.data import Batch


class Albar(Debiaser):
    """The terms on the static clip.

    Args:
        adversary: Weight w_s.
        entropy: Weight w_e.
        penalty: Weight w_g; 0 spares the gradient of the gradient, two thirds of the cost.
    """

    def __init__(self, *, adversary: float, entropy: float, penalty: float) -> None:
        super().__init__()
        self.weights = {"adversary": adversary, "entropy": entropy, "penalty": penalty}

    def losses(self, batch: Batch, output: Output, net: Any) -> dict[str, Tensor]:  # noqa: ARG002
        """``adversary`` (-CE), ``entropy`` (its negative) and ``penalty``, weighted; which frame is drawn at random."""
        B, V, T = batch.x_BVTHWC.shape[:3]
        frame_BV = torch.randint(T, (B, V)).to(batch.x_BVTHWC.device)
        index_BV11HWC = frame_BV.view(B, V, 1, 1, 1, 1).expand(-1, -1, 1, *batch.x_BVTHWC.shape[3:])
        still_BVTHWC = batch.x_BVTHWC.float().gather(2, index_BV11HWC).repeat(1, 1, T, 1, 1, 1)
        still_BVTHWC.requires_grad_(self.weights["penalty"] > 0)
        logits_BK = net(still_BVTHWC, batch.mask_BV).logits_BK.float()
        log_p_BK = logits_BK.log_softmax(-1)
        found = {
            "adversary": -self.weights["adversary"] * F.cross_entropy(logits_BK, batch.label_B),
            "entropy": self.weights["entropy"] * (log_p_BK.exp() * log_p_BK).sum(-1).mean(),
        }
        if self.weights["penalty"] > 0:
            (gradient,) = torch.autograd.grad(logits_BK.sum(), still_BVTHWC, create_graph=True)
            length_B = (gradient.flatten(1).square().sum(1) + 1e-12).sqrt()
            found["penalty"] = self.weights["penalty"] * length_B.mean()
        return found
