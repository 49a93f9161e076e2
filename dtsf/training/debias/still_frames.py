"""Peer methods that use still frames: StillMix and ALBAR. A still frame has no dynamic part, so the network must read frames.

StillMix: Li et al., "Mitigating and Evaluating Static Bias of Action Representations in the Background and the Foreground" (ICCV
2023; numbers from the code, lihaoxin05/StillMix). ``x' = lambda x + (1 - lambda) frame``, with the same frame at all times, one
lambda ~ Beta(200, 200) a batch, and each clip mixed with probability 1/2. The label does not change. The frames are from the half
that a reference network of single frames classifies most confidently, right or wrong. Our reading: this network is a softmax
regression on the embedding of one frame, pooled over the grid. Clips are the views of a group, mixed independently.

ALBAR: Fioresi, Dave, Shah, "ALBAR: Adversarial Learning approach to mitigate Biases in Action Recognition" (ICLR 2025; numbers from
the code, UCF-CRCV/ALBAR). A static clip goes through the same network: ``L = CE(x) - w_s CE(x_s) + w_e sum p ln p (x_s) + w_g mean
||grad_{x_s} f(x_s)||``, weights 1, 4.25, 10 (HMDB51). Our reading: CE(x) is the loss of DTSFNet. The static clip repeats one random
frame of each view. The gradient is that of the sum of the fused logits; its norm is taken over the whole input of a group. The
adversarial cross-entropy has no bound, as in the authors' code; the entropy term limits it.

Letters: N clips, F T frames, B groups, V views, S frames of the bank, H W grid, C channels, K classes, M X frames of all clips.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dtsf.model.network import Output
from dtsf.model.scan import use_backend
from dtsf.training.data import Batch, Groups
from dtsf.training.debias import Debiaser


def frame_confidence(frames_MC: Tensor, label_M: Tensor, n_classes: int, steps: int = 100) -> Tensor:
    """Fit a softmax regression to frames, and return the probability of the class that it predicts for each. (M,)."""
    x_MC = (frames_MC - frames_MC.mean(0)) / frames_MC.std(0, correction=0).clamp(min=1e-6)
    weight_CK = torch.zeros(x_MC.shape[1], n_classes, requires_grad=True)
    bias_K = torch.zeros(n_classes, requires_grad=True)
    optimizer = torch.optim.Adam([weight_CK, bias_K], lr=0.05)
    with torch.enable_grad():
        for _ in range(steps):
            loss = F.cross_entropy(x_MC @ weight_CK + bias_K, label_M) + 1e-3 * weight_CK.square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return (x_MC @ weight_CK + bias_K).softmax(-1).amax(1)


class StillMix(Debiaser):
    """The bank of still frames, and the mixing."""

    bank_SHWC: Tensor

    def build(self, groups: Groups) -> None:
        """Fill the bank with frames from the more confident share."""
        row_N = groups.row_GV[groups.mask_GV]
        label_N = groups.label_G.unsqueeze(1).expand(groups.row_GV.shape)[groups.mask_GV]
        x_NFHWC = groups.embeddings_NFHWC
        n_frames = x_NFHWC.shape[1]
        pooled_MC = torch.cat([x_NFHWC[rows].float().mean((2, 3)).flatten(0, 1) for rows in row_N.split(256)])
        confidence_M = frame_confidence(pooled_MC, label_N.repeat_interleave(n_frames), self.n_classes)
        n_chosen = max(1, round(self.config.confident * len(confidence_M)))
        chosen_X = confidence_M.argsort(descending=True)[:n_chosen]
        generator = torch.Generator().manual_seed(self.seed)
        drawn_S = chosen_X[torch.randperm(len(chosen_X), generator=generator)[: self.config.bank]]
        self.register_buffer("bank_SHWC", x_NFHWC[row_N[drawn_S // n_frames], drawn_S % n_frames], persistent=False)

    def prepare(self, batch: Batch) -> Batch:
        """Mix a still frame into some views. Draws from PyTorch's global generator."""
        shape = batch.mask_BV.shape
        still_BVHWC = self.bank_SHWC[torch.randint(len(self.bank_SHWC), shape, device=self.bank_SHWC.device)]
        beta = torch.tensor(self.config.beta)
        keep = torch.distributions.Beta(beta, beta).sample()
        keep_BV = torch.where(torch.rand(shape) < self.config.mix, keep, torch.ones(shape))
        keep_BV1111 = keep_BV[..., None, None, None, None].to(batch.x_BVTHWC.device)
        mixed_BVTHWC = keep_BV1111 * batch.x_BVTHWC + (1 - keep_BV1111) * still_BVHWC.unsqueeze(2).float()
        return batch._replace(x_BVTHWC=mixed_BVTHWC)


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
