"""Test-time adaptation for ``evaluate --adapt``: the network is adapted to the test clips, one group after the other.

Source: Lin, Mirza, Kozinski, Possegger, Kuehne, Bischof, "Video Test-Time Adaptation for Action Recognition" (ViTTA, CVPR
2023; numbers from the code, wlin-at/ViTTA). Before the prediction for a video, one gradient step aligns the running mean and
variance of the features at the norms to those of the training clips (L1), and the predictions for two temporal samples of the video
to each other (weight 0.1). A video has weight 0.1 in the running statistics.

Our reading: the features are the tokens behind each RMSNorm. The running statistics start as those of the training clips, so that
the first groups do not dominate. The step is plain gradient descent on the weights of the encoders; the heads do not change.
Letters: B groups (one), V views, T frames, N norms, D width, K classes, X tokens.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from dtsf.errors import ConfigError
from dtsf.model.feature_stats import record_norms
from dtsf.model.videomamba import VideoMamba

if TYPE_CHECKING:
    from torch import Tensor

    from dtsf.model.network import DTSFNet, Output

MOMENTUM = 0.1
CONSISTENCY = 0.1
RATE = 1e-3
"""Learning rate. The paper's 5e-5 is for networks with a hundred times the weights; see docs/results/uncertainty.md."""


class OnlineAdapter:
    """Copy of a network that adapts to each group before it predicts. Raises ConfigError without statistics of the training."""

    def __init__(self, net: DTSFNet, rate: float = RATE) -> None:
        if not net.feature_stats.recorded:
            raise ConfigError("--adapt: the run has no statistics of its training clips: train again")
        self.net = copy.deepcopy(net).eval()
        self.rate = rate
        self.running_N2D = self.net.feature_stats.mean_var_N2D.clone()
        encoders = [module for module in self.net.modules() if isinstance(module, VideoMamba)]
        self.weights = [
            x for encoder in encoders for name, x in encoder.named_parameters() if not name.startswith("head.")
        ]

    def __call__(self, samples: list[tuple[Tensor, Tensor]]) -> Output:
        """Adapt to a group, then predict. ``samples``: input and mask of the group; other samples of its frames follow."""
        training_N2D = self.net.feature_stats.mean_var_N2D
        with torch.inference_mode(False), torch.enable_grad():
            probabilities, statistics = [], []
            for x_BVTHWC, mask_BV in samples:
                with record_norms(self.net) as recorded:
                    output = self.net(x_BVTHWC.clone(), mask_BV.clone())
                probabilities.append(output.probabilities_BK)
                # An encoder that was not used keeps the statistics of the training.
                parts = [_mean_var(tokens) if tokens else training_N2D[n] for n, tokens in enumerate(recorded)]
                statistics.append(torch.stack(parts))
            running_N2D: Tensor = (1 - MOMENTUM) * self.running_N2D + MOMENTUM * torch.stack(statistics).mean(0)
            alignment = (running_N2D - training_N2D).abs().mean(-1).sum()
            mean_BK = torch.stack(probabilities).mean(0)
            difference = (torch.stack(probabilities) - mean_BK).abs().sum()
            # Weights that these samples do not use have no gradient.
            gradients = torch.autograd.grad(alignment + CONSISTENCY * difference, self.weights, allow_unused=True)
        with torch.no_grad():
            for weight, gradient in zip(self.weights, gradients, strict=True):
                if gradient is not None:
                    weight.sub_(self.rate * gradient)
            self.running_N2D = running_N2D.detach()
            prediction: Output = self.net(*samples[0])
        return prediction


def _mean_var(tokens: list[Tensor]) -> Tensor:
    x_XD = torch.cat(tokens)
    return torch.stack([x_XD.mean(0), x_XD.var(0, correction=0)])
