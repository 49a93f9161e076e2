"""``evaluate --adapt``: the network is aligned to the test stream while it is judged, one performance at a time.

Source: Lin, Mirza, Kozinski, Possegger, Kuehne, Bischof, "Video Test-Time Adaptation for Action Recognition" (ViTTA, CVPR
2023; wlin-at/ViTTA, read for its numbers): before each video is answered, one gradient step brings running means and
variances of the features at the norms to those of the training clips (L1), and the answers to two temporal samples of the
video to each other (weight 0.1); the running statistics take a tenth of each video.

Our reading: features are the tokens behind each RMSNorm; the running statistics begin as the training clips', so that the
first performances are not taken for the whole stream; the step is plain gradient descent on the encoders' weights alone, so that
what a class's evidence is stays. Where all samples of frames would be the same, consistency asks nothing.
Letters: B groups (one), V views, T frames, N norms, D width, K classes.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from dtsf.errors import ConfigError
from dtsf.model.feature_stats import record_norms
from dtsf.model.videomamba import VideoMamba
from dtsf.training.data import evaluation_batches

if TYPE_CHECKING:
    from torch import Tensor

    from dtsf.model.network import DTSFNet, Output
    from dtsf.training.data import Groups

MOMENTUM = 0.1
CONSISTENCY = 0.1
RATE = 1e-3
"""Of the step. The paper's 5e-5 is for networks with a hundred times the weights; docs/results/uncertainty.md has others."""


@torch.inference_mode()
def feature_statistics(net: DTSFNet, groups: Groups) -> Tensor:
    """Mean and variance of every channel behind every norm, over the tokens of all clips: (N, 2, D)."""
    device = next(net.parameters()).device
    total_N2D, count_N = torch.zeros(()), torch.zeros(())
    for batch in evaluation_batches(groups, 32, net.config.frames, net.config.motion_sampling):
        with record_norms(net) as seen:
            net(batch.x_BVTHWC.to(device), batch.mask_BV.to(device))
        wide = [torch.cat(mine).double().cpu() for mine in seen]
        total_N2D = total_N2D + torch.stack([torch.stack([x_XD.sum(0), x_XD.square().sum(0)]) for x_XD in wide])
        count_N = count_N + torch.tensor([len(x_XD) for x_XD in wide])
    mean_ND, square_ND = (total_N2D / count_N.view(-1, 1, 1)).unbind(1)
    return torch.stack([mean_ND, (square_ND - mean_ND.square()).clamp(min=1e-12)], 1)


class OnlineAdapter:
    """A copy of a network that adapts to each group before it answers it. Groups must come one by one. Raises ConfigError: the
    network does not know what its training clips were like.
    """

    def __init__(self, net: DTSFNet, rate: float = RATE) -> None:
        if not net.feature_stats.recorded:
            raise ConfigError("--adapt: the run keeps no statistics of its training clips: train it with this version")
        self.net = copy.deepcopy(net).eval()
        self.rate = rate
        self.running_N2D = self.net.feature_stats.mean_var_N2D.clone()
        encoders = [module for module in self.net.modules() if isinstance(module, VideoMamba)]
        self.weights = [
            x for encoder in encoders for name, x in encoder.named_parameters() if not name.startswith("head.")
        ]

    def __call__(self, samples: list[tuple[Tensor, Tensor]]) -> Output:
        """Adapt to a group, then answer. ``samples``: canvases and mask of the group: as it is judged, then other samples of
        its frames.
        """
        with torch.inference_mode(False), torch.enable_grad():
            probabilities, moments = [], []
            for x_BVTHWC, mask_BV in samples:
                with record_norms(self.net) as seen:
                    output = self.net(x_BVTHWC.clone(), mask_BV.clone())
                probabilities.append(output.probabilities_BK)
                moments.append(torch.stack([self._moments(n, mine) for n, mine in enumerate(seen)]))
            running_N2D: Tensor = (1 - MOMENTUM) * self.running_N2D + MOMENTUM * torch.stack(moments).mean(0)
            apart = (running_N2D - self.net.feature_stats.mean_var_N2D).abs().mean(-1).sum()
            middle_BK = torch.stack(probabilities).mean(0)
            differ = (torch.stack(probabilities) - middle_BK).abs().sum()
            # A weight that these samples do not reach (another readout's) has no gradient.
            gradients = torch.autograd.grad(apart + CONSISTENCY * differ, self.weights, allow_unused=True)
        with torch.no_grad():
            for weight, gradient in zip(self.weights, gradients, strict=True):
                if gradient is not None:
                    weight.sub_(self.rate * gradient)
            self.running_N2D = running_N2D.detach()
            answer: Output = self.net(*samples[0])
        return answer

    def _moments(self, n: int, seen: list[Tensor]) -> Tensor:
        """Mean and variance behind norm ``n``, (2, D); of an encoder that was not asked those of training."""
        if not seen:
            return self.net.feature_stats.mean_var_N2D[n]
        x_XD = torch.cat(seen)
        return torch.stack([x_XD.mean(0), x_XD.var(0, correction=0)])
