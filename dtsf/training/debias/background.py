"""Peer methods that remove the background from the features: HSIC and SOAR.

HSIC: Kobayashi, Ding, Tamaki 2025 (arXiv 2509.23009; abstract and summary, no code): ``L = CE_u + CE_b + l1 HSIC(F_u, F_b) + l2
L_scene`` for an unbiased stream, and a biased one of an altered input. HSIC (Gretton et al. 2005): ``tr(K H L H) / (N - 1)^2``,
``H = I - 1 1^T / N``, Gaussian kernels. Our reading, since the equations are not published: the biased input is the temporal mean
of the clip. The samples are the present views of a batch, the kernel widths are median distances. HSIC changes only the features
of the network; otherwise a useless biased stream would lower it. L_scene is a background classifier behind a
gradient reversal on the network's features, and a plain one on the biased stream. CE_u is the loss of DTSFNet.

SOAR: Zhai et al., "SOAR: Scene-debiasing Open-set Action Recognition" (ICCV 2023; structure from the code, yhZhai/SOAR). Behind
reversed gradients, a decoder (times 0.2) reconstructs the background by L1, weighted by the detached uncertainty, and a deep
classifier predicts the scene. The features are trained so that both fail. Our reading: the adversaries read the feature of each
view. The background is the median over time of each cell, in units of the deviation of its channel. The uncertainty is that of the
view (the paper has a map over positions). The guidance loss of the paper is off in the authors' configuration and is omitted.

The background is named by the dataset, or is a cluster of the static embeddings (SOAR's paper uses a Places classifier).
Letters: N clips, P present views of a batch, B groups, V views, T F frames, H W grid, C channels, D width, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dtsf.model.network import Output
from dtsf.training.data import Batch, Groups
from dtsf.training.debias import Debiaser

REVERSED = 0.2  # SOAR: share of the decoder's gradient that reaches the features
LAYERS = 5  # SOAR: layers of the background classifier


def dependence(x_PD: Tensor, y_PE: Tensor) -> Tensor:
    """Return the HSIC of paired samples: a scalar, at least 0, in float32 or wider. 0 for fewer than two pairs."""
    n = x_PD.shape[0]
    if n < 2:
        return x_PD.sum() * 0.0
    # Centring one kernel is enough: tr(K H L H) = sum of (H K H) * L, and H is its own square.
    kernel_PP = _gaussian(x_PD)
    centred_PP = kernel_PP - kernel_PP.mean(0, keepdim=True) - kernel_PP.mean(1, keepdim=True) + kernel_PP.mean()
    return (centred_PP * _gaussian(y_PE)).sum() / (n - 1) ** 2


def _gaussian(x_PD: Tensor) -> Tensor:
    """Return the Gaussian kernel matrix. Its width is the median squared distance."""
    x_PD = x_PD.to(torch.promote_types(x_PD.dtype, torch.float32))
    # Not cdist: its gradient is not finite at distance 0.
    square_PP = (x_PD.unsqueeze(0) - x_PD.unsqueeze(1)).square().sum(-1)
    i, j = torch.triu_indices(len(x_PD), len(x_PD), 1, device=x_PD.device)
    width = square_PP.detach()[i, j].median().clamp(min=torch.finfo(x_PD.dtype).tiny)
    return torch.exp(-square_PP / width)


def reverse_gradient(x: Tensor) -> Tensor:
    """Return the same values (2 x - x is exact), with a gradient of opposite sign."""
    return 2 * x.detach() - x


def cluster(x_NC: Tensor, k: int, generator: torch.Generator, steps: int = 25) -> Tensor:
    """Cluster rows by k-means (Lloyd) from a k-means++ start. Return the cluster of each row, (N,), below ``min(k, N)``."""
    x_NC = x_NC.double()
    k = min(k, len(x_NC))
    centres_kC = x_NC[torch.randint(len(x_NC), (1,), generator=generator)]
    for _ in range(1, k):
        far_N = torch.cdist(x_NC, centres_kC).amin(1).square() + 1e-12
        centres_kC = torch.cat([centres_kC, x_NC[torch.multinomial(far_N, 1, generator=generator)]])
    nearest_N = torch.cdist(x_NC, centres_kC).argmin(1)
    for _ in range(steps):
        member_Nk = F.one_hot(nearest_N, k).double()
        count_k1 = member_Nk.sum(0).unsqueeze(1)
        # A cluster without members keeps its centre.
        centres_kC = torch.where(count_k1 > 0, member_Nk.t() @ x_NC / count_k1.clamp(min=1), centres_kC)
        nearest_N = torch.cdist(x_NC, centres_kC).argmin(1)
    return nearest_N


class BackgroundDebiaser(Debiaser):
    """Base of both methods: the background of each clip, and the scale of the static part of each channel."""

    background_N: Tensor
    scale_C: Tensor

    def build(self, groups: Groups) -> None:
        """Number the backgrounds by name, or by clusters of the static embeddings. Scale by 1 / deviation of the static part."""
        used_N = groups.row_GV[groups.mask_GV]
        # In chunks: the whole dataset in float32 would take twice the memory of its cache.
        static_NC = torch.cat([x_NFHWC.float().mean((1, 2, 3)) for x_NFHWC in groups.embeddings_NFHWC.split(256)])
        background_N = groups.background_N
        if background_N is None:
            background_N = torch.zeros(len(static_NC), dtype=torch.int64)
            generator = torch.Generator().manual_seed(self.seed)
            background_N[used_N] = cluster(static_NC[used_N], self.config.backgrounds, generator)
        self.register_buffer("background_N", background_N, persistent=False)
        scale_C = 1.0 / static_NC[used_N].std(0, correction=0).clamp(min=1e-6)
        self.register_buffer("scale_C", scale_C, persistent=False)
        self.n_backgrounds = int(background_N.max()) + 1


class Hsic(BackgroundDebiaser):
    """The biased stream, the background classifiers, and their terms."""

    def build(self, groups: Groups) -> None:
        """Make the stream and the classifiers."""
        super().build(groups)
        D, (H, W, C) = self.width, groups.embeddings_NFHWC.shape[2:]
        # Each cell is reduced first, as in the network: a background is recognised by the layout of its cells.
        self.stream = nn.Sequential(nn.Linear(C, 16), nn.ReLU(), nn.Flatten(), nn.Linear(H * W * 16, D), nn.ReLU())
        self.action = nn.Linear(D, self.n_classes)
        self.background_of_biased = nn.Linear(D, self.n_backgrounds)
        self.background_of_features = nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, self.n_backgrounds))

    def losses(self, batch: Batch, output: Output, net: Any) -> dict[str, Tensor]:  # noqa: ARG002
        """Return ``biased`` (CE_b), ``hsic`` and ``background``, weighted."""
        config, mask_BV = self.config, batch.mask_BV
        static_PHWC = batch.x_BVTHWC[mask_BV].float().mean(1) * self.scale_C
        biased_PD = self.stream(static_PHWC.flatten(1, 2))
        unbiased_PD = output.view_feature_BVD[mask_BV]
        label_P = batch.label_B.unsqueeze(1).expand(mask_BV.shape)[mask_BV]
        terms = {
            "biased": F.cross_entropy(self.action(biased_PD), label_P),
            "hsic": config.hsic * dependence(unbiased_PD, biased_PD.detach()),
        }
        if config.background:
            background_P = self.background_N[batch.row_BV[mask_BV]]
            adversary = F.cross_entropy(self.background_of_features(reverse_gradient(unbiased_PD)), background_P)
            plain = F.cross_entropy(self.background_of_biased(biased_PD), background_P)
            terms["background"] = config.background * (adversary + plain)
        return terms


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
