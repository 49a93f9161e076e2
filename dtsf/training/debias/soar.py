"""SOAR, a peer method: adversaries that read the background out of the features.

Source: Zhai, Liu, Wu, Wu, Zhou, Doermann, Yuan, Hua, "SOAR: Scene-debiasing Open-set Action Recognition" (ICCV 2023; structure
from the code, yhZhai/SOAR). It adds two adversaries to evidential learning. A decoder behind a reversed gradient (times 0.2)
reconstructs the background: the median of the clip over time, by L1, weighted by the detached uncertainty of the batch. A deep
classifier behind a reversed gradient predicts the scene. The features are trained so that both fail.

Our reading on cached embeddings: the adversaries read the feature of each view. The background is the median over time of each
cell, in units of the deviation of its channel. The uncertainty is that of the view (the paper has a map over positions). The class
of the background is named by the dataset, or is a cluster of static embeddings (the paper uses a Places classifier). The
guidance loss of the paper is off in the authors' own configuration and is omitted.
Letters: P present views of a batch, B groups, V views, T frames, H W grid, C channels, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from dtsf.training.debias.hsic import BackgroundDebiaser, reverse_gradient

if TYPE_CHECKING:
    from dtsf.model.network import Output
    from dtsf.training.data import Batch, Groups

REVERSED = 0.2
"""Share of the decoder's gradient that reaches the features."""
LAYERS = 5
"""Layers of the background classifier."""


class Soar(BackgroundDebiaser):
    """The decoder, the background classifier, and their terms. A weight of 0 disables a term."""

    def build(self, groups: Groups) -> None:
        """Make the decoder and the classifier."""
        super().build(groups)
        D, size = self.width, groups.embeddings_NFHWC.shape[2:].numel()
        self.decoder = nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, size))
        hidden = [layer for _ in range(LAYERS - 1) for layer in (nn.Linear(D, D), nn.LeakyReLU())]
        self.background_of_features = nn.Sequential(*hidden, nn.Linear(D, self.n_backgrounds))

    def losses(self, batch: Batch, output: Output, net: Any) -> dict[str, Tensor]:  # noqa: ARG002
        """Return ``reconstruction`` and ``background``: the adversaries minimise them, the features maximise them."""
        config, mask_BV, terms = self.config, batch.mask_BV, {}
        feature_PD = output.view_feature_BVD[mask_BV]
        reversed_PD = reverse_gradient(feature_PD)
        if config.reconstruction:
            median_PHWC = batch.x_BVTHWC[mask_BV].float().median(1).values * self.scale_C
            # The full value, with a fifth of the reversed gradient.
            scaled_PD = REVERSED * reversed_PD + (1 - REVERSED) * feature_PD.detach()
            error_P = (self.decoder(scaled_PD) - median_PHWC.flatten(1)).abs().mean(1)
            uncertainty_P = output.view_uncertainty_BV[mask_BV].detach()
            weighted = (error_P * uncertainty_P / uncertainty_P.mean()).mean()
            terms["reconstruction"] = config.reconstruction * weighted
        if config.background:
            background_P = self.background_N[batch.row_BV[mask_BV]]
            error = F.cross_entropy(self.background_of_features(reversed_PD), background_P)
            terms["background"] = config.background * error
        return terms
