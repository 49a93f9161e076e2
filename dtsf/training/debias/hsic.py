"""Peer: two streams made independent, and a scene loss.

Source: Kobayashi, Ding, Tamaki 2025 (arXiv 2509.23009; abstract and summary, no code): an unbiased stream sees the
video, a biased one an altered input; their dependence, measured by HSIC, is minimised; a scene-prediction loss helps.
``L = CE_u + CE_b + l1 HSIC(F_u, F_b) + l2 L_scene``. HSIC (Gretton et al. 2005), biased estimate:
``tr(K H L H) / (N - 1)^2``, ``H = I - 1 1^T / N``, Gaussian kernels.

Our reading, the equations being unpublished: the biased input is the clip's temporal mean (all that stands still), seen
by a small network of its own; the samples are the present views of a batch; kernel widths are median distances; HSIC
moves the network's features only, else the biased stream would lower it by becoming useless; L_scene is a scene
classifier behind a gradient reversal on the network's features, and a plain one on the biased stream. A scene is the
background that the data set names, or else a cluster of the training clips' static embeddings. CE_u is DTSFNet's loss.
Letters: N clips, P present views of a batch, B groups, V views, T F frames, H W grid, C channels, D width, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from dtsf.training.debias.debiaser import Debiaser

if TYPE_CHECKING:
    from torch import Tensor

    from dtsf.model.network import Output
    from dtsf.training.data import Batch, Groups


def dependence(x_PD: Tensor, y_PE: Tensor) -> Tensor:
    """HSIC of paired samples, at least 0; 0 for fewer than two pairs. A scalar, in float32 or wider."""
    n = x_PD.shape[0]
    if n < 2:
        return x_PD.sum() * 0.0
    # Centring one kernel is enough: tr(K H L H) = sum of (H K H) * L, and H is its own square.
    kernel_PP = _gaussian(x_PD)
    centred_PP = kernel_PP - kernel_PP.mean(0, keepdim=True) - kernel_PP.mean(1, keepdim=True) + kernel_PP.mean()
    return (centred_PP * _gaussian(y_PE)).sum() / (n - 1) ** 2


def _gaussian(x_PD: Tensor) -> Tensor:
    """Gaussian kernel matrix with the median squared distance for its width."""
    x_PD = x_PD.to(torch.promote_types(x_PD.dtype, torch.float32))
    # Not cdist: its gradient at distance 0 is that of a root.
    square_PP = (x_PD.unsqueeze(0) - x_PD.unsqueeze(1)).square().sum(-1)
    i, j = torch.triu_indices(len(x_PD), len(x_PD), 1, device=x_PD.device)
    width = square_PP.detach()[i, j].median().clamp(min=torch.finfo(x_PD.dtype).tiny)
    return torch.exp(-square_PP / width)


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        return -gradient


def reverse_gradient(x: Tensor) -> Tensor:
    """The same values, with the gradient's sign turned: what minimises above maximises below."""
    y: Tensor = _Reversal.apply(x)  # type: ignore[no-untyped-call]
    return y


def cluster(x_NC: Tensor, k: int, generator: torch.Generator, steps: int = 25) -> Tensor:
    """Lloyd's k-means from k-means++ starts. Returns the cluster of each row, (N,), below ``min(k, N)``."""
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
        # A cluster that lost all its members keeps its place.
        centres_kC = torch.where(count_k1 > 0, member_Nk.t() @ x_NC / count_k1.clamp(min=1), centres_kC)
        nearest_N = torch.cdist(x_NC, centres_kC).argmin(1)
    return nearest_N


def name_backgrounds(groups: Groups, backgrounds: int, seed: int) -> tuple[Tensor, Tensor]:
    """The scene of each clip (N,), and one over the deviation of each channel's static part (C,). ``backgrounds``: clusters of
    static embeddings, where the groups name no backgrounds.
    """
    used_N = groups.row_GV[groups.mask_GV]
    # A part at a time: a whole data set in float32 would be twice its cache.
    static_NC = torch.cat([x_NFHWC.float().mean((1, 2, 3)) for x_NFHWC in groups.embeddings_NFHWC.split(256)])
    if groups.background_N is not None:
        background_N = groups.background_N
    else:
        background_N = torch.zeros(len(static_NC), dtype=torch.int64)
        background_N[used_N] = cluster(static_NC[used_N], backgrounds, torch.Generator().manual_seed(seed))
    return background_N, 1.0 / static_NC[used_N].std(0, correction=0).clamp(min=1e-6)


class BackgroundDebiaser(Debiaser):
    """One that knows each clip's scene, and how much each channel says of what stands still."""

    background_N: Tensor
    scale_C: Tensor

    def __init__(self, groups: Groups, backgrounds: int, seed: int) -> None:
        super().__init__()
        background_N, scale_C = name_backgrounds(groups, backgrounds, seed)
        self.register_buffer("background_N", background_N, persistent=False)
        self.register_buffer("scale_C", scale_C, persistent=False)
        self.n_backgrounds = int(background_N.max()) + 1


class Hsic(BackgroundDebiaser):
    """The biased stream, the scene classifiers, and the terms they add.

    Args:
        hsic: Weight l1.
        scene: Weight l2.
        backgrounds: Clusters, where the groups name no backgrounds.
    """

    def __init__(
        self, groups: Groups, width: int, n_classes: int, *, hsic: float, background: float, backgrounds: int, seed: int
    ) -> None:
        super().__init__(groups, backgrounds, seed)
        self.weights = {"hsic": hsic, "background": background}
        _, _, H, W, C = groups.embeddings_NFHWC.shape
        # Each cell is reduced first, as the network itself does it: a room is known by what stands where.
        self.stream = nn.Sequential(nn.Linear(C, 16), nn.ReLU(), nn.Flatten(), nn.Linear(H * W * 16, width), nn.ReLU())
        self.action = nn.Linear(width, n_classes)
        self.background_of_biased = nn.Linear(width, self.n_backgrounds)
        self.background_of_features = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, self.n_backgrounds)
        )

    def losses(self, batch: Batch, output: Output, net: Any) -> dict[str, Tensor]:  # noqa: ARG002
        """``biased`` (CE_b), ``hsic`` and ``scene``, weighted."""
        mask_BV = batch.mask_BV
        static_PHWC = batch.x_BVTHWC[mask_BV].float().mean(1) * self.scale_C
        biased_PD = self.stream(static_PHWC.flatten(1, 2))
        unbiased_PD = output.view_feature_BVD[mask_BV]
        label_P = batch.label_B.unsqueeze(1).expand(mask_BV.shape)[mask_BV]
        found = {
            "biased": F.cross_entropy(self.action(biased_PD), label_P),
            "hsic": self.weights["hsic"] * dependence(unbiased_PD, biased_PD.detach()),
        }
        if self.weights["background"]:
            background_P = self.background_N[batch.row_BV[mask_BV]]
            adversary = F.cross_entropy(self.background_of_features(reverse_gradient(unbiased_PD)), background_P)
            plain = F.cross_entropy(self.background_of_biased(biased_PD), background_P)
            found["background"] = self.weights["background"] * (adversary + plain)
        return found
