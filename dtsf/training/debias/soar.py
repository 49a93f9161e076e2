"""Peer: SOAR, adversaries that read scene and background out of the features.

Source: Zhai, Liu, Wu, Wu, Zhou, Doermann, Yuan, Hua, "SOAR: Scene-debiasing Open-set Action Recognition" (ICCV 2023;
yhZhai/SOAR, read for its structure): beside evidential learning, a decoder behind a reversed gradient (times 0.2) reconstructs the
background (the clip's median over time; L1, weighted by the detached uncertainty of the batch), and a deep classifier behind a
reversed gradient tells the scene. Both must fail.

Our reading on cached embeddings: adversaries read each view's feature; the background is the median over time of each cell,
in units of its channel's deviation; the uncertainty is the view's own (theirs is a map over places); a scene is the
background that the data set names, or else a cluster of the training clips' static embeddings (theirs are predictions of a
Places classifier). The guidance of their paper is off in their own configuration, and left out here.
Letters: P present views of a batch, B groups, V views, T frames, H W grid, C channels, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import nn

from dtsf.training.debias.hsic import BackgroundDebiaser, reverse_gradient

if TYPE_CHECKING:
    from torch import Tensor

    from dtsf.model.network import Output
    from dtsf.training.data import Batch, Groups

REVERSED = 0.2
"""How much of the decoder's gradient reaches the features."""
LAYERS = 5
"""Of the scene classifier."""


class Soar(BackgroundDebiaser):
    """The decoder, the scene classifier, and the terms they add.

    Args:
        reconstruction: Weight of the reconstruction; 0 turns it off.
        background: Weight of the scene loss; 0 turns it off.
        backgrounds: Clusters, where the groups name no backgrounds.
    """

    def __init__(
        self, groups: Groups, width: int, *, reconstruction: float, background: float, backgrounds: int, seed: int
    ) -> None:
        super().__init__(groups, backgrounds, seed)
        self.weights = {"reconstruction": background, "background": background}
        _, _, H, W, C = groups.embeddings_NFHWC.shape
        self.decoder = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, H * W * C))
        hidden = [layer for _ in range(LAYERS - 1) for layer in (nn.Linear(width, width), nn.LeakyReLU())]
        self.background_of_features = nn.Sequential(*hidden, nn.Linear(width, self.n_backgrounds))

    def losses(self, batch: Batch, output: Output, net: Any) -> dict[str, Tensor]:  # noqa: ARG002
        """``background`` and ``scene``, weighted: what the adversaries lower and the features raise."""
        mask_BV = batch.mask_BV
        feature_PD, found = output.view_feature_BVD[mask_BV], {}
        against_PD = reverse_gradient(feature_PD)
        if self.weights["reconstruction"]:
            median_PHWC = batch.x_BVTHWC[mask_BV].float().median(1).values * self.scale_C
            # A fifth of the reversed gradient, all of the value.
            little_PD = REVERSED * against_PD + (1 - REVERSED) * feature_PD.detach()
            apart_P = (self.decoder(little_PD) - median_PHWC.flatten(1)).abs().mean(1)
            doubt_P = output.view_uncertainty_BV[mask_BV].detach()
            found["reconstruction"] = self.weights["reconstruction"] * (apart_P * doubt_P / doubt_P.mean()).mean()
        if self.weights["background"]:
            background_P = self.background_N[batch.row_BV[mask_BV]]
            found["background"] = self.weights["background"] * F.cross_entropy(
                self.background_of_features(against_PD), background_P
            )
        return found
