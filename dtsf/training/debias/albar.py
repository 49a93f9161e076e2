"""ALBAR, a peer method: the network must not recognise the action in a clip made of one repeated frame.

Source: Fioresi, Dave, Shah, "ALBAR: Adversarial Learning approach to mitigate Biases in Action Recognition" (ICLR 2025;
numbers from the code, UCF-CRCV/ALBAR). A static clip goes through the same network as the clip itself:
``L = CE(x) - w_s CE(x_s) + w_e sum p ln p (x_s) + w_g mean ||grad_{x_s} f(x_s)||``, weights 1, 4.25, 10 (HMDB51).

Our reading: CE(x) is the loss of DTSFNet. The static clip repeats one random frame of each view, and its prediction is the
softmax of the fused logits. The gradient is that of the sum of the logits; its norm is taken over the whole input of a group. The
adversarial cross-entropy has no bound, as in the authors' code; the entropy term limits it.
A static clip has no dynamic part, so the input of the network must be frames.
Letters: B groups, V views, T frames, H W grid, C channels, K classes.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dtsf.model.scan import use_backend
from dtsf.training.debias.base import Debiaser

if TYPE_CHECKING:
    from dtsf.model.network import Output
    from dtsf.training.data import Batch


class Albar(Debiaser):
    """Adversarial terms on a static clip."""

    def losses(self, batch: Batch, output: Output, net: Any) -> dict[str, Tensor]:  # noqa: ARG002
        """Return ``adversary`` (negative CE), ``entropy`` (its negative) and ``penalty``. The frame is drawn at random."""
        config = self.config
        B, V, T = batch.x_BVTHWC.shape[:3]
        frame_BV = torch.randint(T, (B, V)).to(batch.x_BVTHWC.device)
        index_BV11HWC = frame_BV.view(B, V, 1, 1, 1, 1).expand(-1, -1, 1, *batch.x_BVTHWC.shape[3:])
        still_BVTHWC = batch.x_BVTHWC.float().gather(2, index_BV11HWC).repeat(1, 1, T, 1, 1, 1)
        still_BVTHWC.requires_grad_(config.penalty > 0)
        # Only the plain scan has the gradient of a gradient.
        with use_backend("plain") if config.penalty > 0 else nullcontext():
            logits_BK = net(still_BVTHWC, batch.mask_BV).logits_BK.float()
        log_p_BK = logits_BK.log_softmax(-1)
        terms = {
            "adversary": -config.adversary * F.cross_entropy(logits_BK, batch.label_B),
            "entropy": config.entropy * (log_p_BK.exp() * log_p_BK).sum(-1).mean(),
        }
        if config.penalty > 0:
            (gradient,) = torch.autograd.grad(logits_BK.sum(), still_BVTHWC, create_graph=True)
            norm_B = (gradient.flatten(1).square().sum(1) + 1e-12).sqrt()
            terms["penalty"] = config.penalty * norm_B.mean()
        return terms
