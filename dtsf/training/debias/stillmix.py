"""Peer: StillMix, which mixes still frames that betray the action into clips of any action.

Source: Li, Yang, Xu et al., "Mitigating and Evaluating Static Bias of Action Representations in the Background and the
Foreground" (ICCV 2023; lihaoxin05/StillMix, read for its numbers): a 2-D reference network scores single frames by the
probability of the class that it predicts, right or wrong; a bank holds frames drawn from the half of which it is surest;
``x' = lambda x + (1 - lambda) frame``, the frame the same at all times, one lambda ~ Beta(200, 200) a batch, each clip mixed
with probability 1/2; the label stays.

Our reading on cached embeddings: the reference network is a softmax regression on one frame's embedding, pooled over
the grid; clips are the views of a group, each mixed by itself.
A still frame is static, so a network that looks at the dynamic part only (``model.anchor``) would never see it.
Letters: N clips, F T frames, B groups, V views, S frames of the bank, H W grid, C channels, K classes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from dtsf.training.debias.debiaser import Debiaser

if TYPE_CHECKING:
    from torch import Tensor

    from dtsf.training.data import Batch, Groups


def frame_sureness(frames_MC: Tensor, label_M: Tensor, n_classes: int, steps: int = 100) -> Tensor:
    """Probability that a softmax regression, fitted to these frames, gives the class that it predicts of each. (M,)."""
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
    """The bank of still frames.

    Args:
        bank: S.
        confident: Share of the frames, the surest ones, that the bank is drawn from.
        probability: That a clip is mixed.
        beta: Both parameters of lambda's distribution.
    """

    bank_SHWC: Tensor

    def __init__(
        self,
        groups: Groups,
        n_classes: int,
        *,
        bank: int,
        confident: float,
        probability: float,
        beta: float,
        seed: int,
    ) -> None:
        super().__init__()
        self.probability, self.beta = probability, beta
        row_N = groups.row_GV[groups.mask_GV]
        label_N = groups.label_G.unsqueeze(1).expand(groups.row_GV.shape)[groups.mask_GV]
        x_NFHWC = groups.embeddings_NFHWC
        n_frames = x_NFHWC.shape[1]
        pooled_MC = torch.cat([x_NFHWC[rows].float().mean((2, 3)).flatten(0, 1) for rows in row_N.split(256)])
        sure_M = frame_sureness(pooled_MC, label_N.repeat_interleave(n_frames), n_classes)
        surest_X = sure_M.argsort(descending=True)[: max(1, round(confident * len(sure_M)))]
        generator = torch.Generator().manual_seed(seed)
        drawn_S = surest_X[torch.randperm(len(surest_X), generator=generator)[:bank]]
        self.register_buffer("bank_SHWC", x_NFHWC[row_N[drawn_S // n_frames], drawn_S % n_frames], persistent=False)

    def prepare(self, batch: Batch) -> Batch:
        """Mix a still frame into some views; all draws come from PyTorch's global generator."""
        shape = batch.mask_BV.shape
        still_BVHWC = self.bank_SHWC[torch.randint(len(self.bank_SHWC), shape, device=self.bank_SHWC.device)]
        beta = torch.tensor(self.beta)
        keep = torch.distributions.Beta(beta, beta).sample()
        keep_BV = torch.where(torch.rand(shape) < self.probability, keep, torch.ones(shape))
        keep_BV1111 = keep_BV[..., None, None, None, None].to(batch.x_BVTHWC.device)
        mixed_BVTHWC = keep_BV1111 * batch.x_BVTHWC + (1 - keep_BV1111) * still_BVHWC.unsqueeze(2).float()
        return replace(batch, x_BVTHWC=mixed_BVTHWC)
