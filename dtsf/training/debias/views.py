"""Peer methods against missing cameras: prototypes across views, and the reconstruction of a missing view's feature.

Prototypes: MMG-Ego4D (Gong et al., CVPR 2023; the idea of its cross-modal prototypical loss, from the abstract): a clip must be
near the prototype of its class that was made in *another* modality. Our reading: modalities are views. The prototype of a class
in a batch is the mean feature of its clips of other views and other performances; ``L = CE(-|z - c_k|^2 / D)``.

ActionMAE: Woo et al., "Towards Good Practices for Missing Modality Robust Action Recognition" (AAAI 2023; structure from the code,
sangminwoo/ActionMAE). Some modalities are hidden at random, their features are reconstructed from the others and from learned
memory, and the fused reconstructions are classified. The error is that of targets normalised by mean and deviation. Our reading:
modalities are views; a network of two layers takes the place of the transformers, its biases that of the memory tokens, and one
code for each view that of its position; targets are detached; the fusion is the mean, with a classifier of its own. It shapes the
features in training. The network itself fuses the views that it has, because dtsf classifies any number of them.
Letters: B groups, V views, P Q present views of a batch, D width, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dtsf.errors import ConfigError
from dtsf.model.network import Output
from dtsf.training.data import Batch, Groups
from dtsf.training.debias import Debiaser


class ViewPeer(Debiaser):
    """Base of both methods."""

    def build(self, groups: Groups) -> None:
        """Raise ConfigError if no group has two views."""
        if int(groups.mask_GV.sum(1).max()) < 2:
            method = self.config.method
            raise ConfigError(f'debias.method "{method}" needs groups with two views: --set debias.method=none')


class Prototypes(ViewPeer):
    """Prototypes of classes across views."""

    def losses(self, batch: Batch, output: Output, net: Any) -> dict[str, Tensor]:  # noqa: ARG002
        """Return ``prototypes``. Clips without a prototype of their class do not count."""
        mask_BV = batch.mask_BV
        feature_PD = output.view_feature_BVD[mask_BV].float()
        group_P, view_P = mask_BV.nonzero().unbind(1)
        label_P = batch.label_B[group_P]
        others_PQ = (group_P.unsqueeze(1) != group_P) & (view_P.unsqueeze(1) != view_P)
        # Number of clips of each class that make its prototype for each clip.
        member_QK = F.one_hot(label_P, self.n_classes).to(feature_PD.dtype)
        count_PK = others_PQ.to(feature_PD.dtype) @ member_QK
        weight_PKQ = others_PQ.unsqueeze(1) * member_QK.T / count_PK.clamp(min=1).unsqueeze(-1)
        prototype_PKD = weight_PKQ @ feature_PD
        distance_PK = (feature_PD.unsqueeze(1) - prototype_PKD).square().mean(-1)
        counts_P = count_PK.gather(1, label_P.unsqueeze(1)).squeeze(1) > 0
        logits_PK = (-distance_PK).masked_fill(count_PK == 0, torch.finfo(distance_PK.dtype).min)
        error_P = F.cross_entropy(logits_PK, label_P, reduction="none")
        error = torch.where(counts_P, error_P, 0.0).sum() / counts_P.sum().clamp(min=1)
        return {"prototypes": self.config.prototypes * error}


class ActionMae(ViewPeer):
    """Reconstruction of the features of hidden views."""

    def build(self, groups: Groups) -> None:
        """Make the network that reconstructs, and the classifier."""
        super().build(groups)
        D = self.width
        self.code_VD = nn.Parameter(0.02 * torch.randn(groups.row_GV.shape[1], D))
        self.reconstruct = nn.Sequential(nn.Linear(2 * D, 2 * D), nn.GELU(), nn.Linear(2 * D, D))
        self.action = nn.Linear(D, self.n_classes)

    def losses(self, batch: Batch, output: Output, net: Any) -> dict[str, Tensor]:  # noqa: ARG002
        """Return ``reconstruction`` and ``reconstructed`` (the classification). Draws from PyTorch's global generator."""
        mask_BV, feature_BVD = batch.mask_BV, output.view_feature_BVD.float()
        hidden_BV = hide_views(mask_BV)
        seen_BV1 = (mask_BV & ~hidden_BV).unsqueeze(-1)
        mean_BD = torch.where(seen_BV1, feature_BVD, 0.0).sum(1) / seen_BV1.sum(1).clamp(min=1)
        given_BVD = mean_BD.unsqueeze(1).expand(feature_BVD.shape)
        made_BVD = self.reconstruct(torch.cat([given_BVD, self.code_VD.expand(feature_BVD.shape)], -1))
        # In the scale of a normalised feature.
        target_BVD = F.layer_norm(feature_BVD.detach(), (self.width,))
        error_BV = (made_BVD - target_BVD).square().mean(-1)
        error = torch.where(hidden_BV, error_BV, 0.0).sum() / hidden_BV.sum().clamp(min=1)
        normal_BVD = F.layer_norm(feature_BVD, (self.width,))
        all_BVD = torch.where(hidden_BV.unsqueeze(-1), made_BVD, normal_BVD)
        fused_BD = torch.where(mask_BV.unsqueeze(-1), all_BVD, 0.0).sum(1) / mask_BV.sum(1, keepdim=True)
        classified = F.cross_entropy(self.action(fused_BD), batch.label_B)
        return {"reconstruction": self.config.reconstruction * error, "reconstructed": classified}


def hide_views(mask_BV: Tensor) -> Tensor:
    """Draw the views to hide: one or more of each group with two views, but not all. (B, V)."""
    n_B1 = mask_BV.sum(1, keepdim=True)
    draw_BV = torch.rand(mask_BV.shape).to(mask_BV.device).masked_fill(~mask_BV, -1.0)
    place_BV = draw_BV.argsort(1, descending=True).argsort(1)
    # From 1 to n - 1 views; none of a single one.
    number_B1 = 1 + (torch.rand(n_B1.shape).to(mask_BV.device) * (n_B1 - 1)).long()
    return mask_BV & (place_BV < number_B1) & (n_B1 > 1)
