"""One branch of the network: an input is encoded, its views are fused, and the head gives evidence.

Letters: B groups, V views, P present views of all groups, T frames, H W grid, R channels of the input, D width, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

from torch import nn

from dtsf.model.inputs import scatter_views
from dtsf.model.tsm import thumbnail_tokens
from dtsf.model.videomamba import VideoMamba

if TYPE_CHECKING:
    from torch import Tensor

    from dtsf.model.config import BranchConfig, ModelConfig
    from dtsf.model.fusion import Fusion


class ViewMask(NamedTuple):
    """Views of each group."""

    present_BV: Tensor
    fused_BV: Tensor
    """True where a view takes part in the fusion: present and not occluded."""
    complete: bool
    """True if all views are present."""


class ViewOutput(NamedTuple):
    """Outputs of a branch for each view."""

    logits_BVK: Tensor
    feature_BVD: Tensor
    """Zero for absent views."""
    weights_BV: Tensor
    """Share of each view in the fused feature."""


class BranchOutput(NamedTuple):
    """Outputs of a branch."""

    logits_BK: Tensor
    feature_BD: Tensor
    views: ViewOutput | None = None
    """None for a branch with views ``all``, which has one feature a group."""


class Branch(nn.Module):
    """Encoder of one input of R channels and H = W = ``side``, with the head that all views share.

    ``n_views``: V of the training groups; used with views ``all``.
    """

    def __init__(
        self, config: ModelConfig, branch: BranchConfig, *, channels: int, side: int, n_classes: int, n_views: int
    ) -> None:
        super().__init__()
        self.config = branch
        self.drop = nn.Dropout(config.dropout)
        thumbnail = 3 * (side // 3) ** 2 * channels if branch.paste == "tokens" else 0
        channels = channels * n_views if branch.views == "all" else channels
        self.encoder = VideoMamba(config, channels=channels, side=side, n_classes=n_classes, thumbnail=thumbnail)

    def forward(self, x_BVTHWR: Tensor, mask: ViewMask, fuse: Fusion) -> BranchOutput:
        """Encode, fuse and classify. ``x_BVTHWR``: the branch's input, zero for absent views."""
        head = self.encoder.head
        if self.config.views == "all":
            feature_BD = self._encode_all(x_BVTHWR, mask.fused_BV)
            return BranchOutput(head(feature_BD).float(), feature_BD)
        encode = self._encode_each if self.config.views == "each" else self._encode_sequence
        feature_BVD = encode(x_BVTHWR, mask)
        view_logits_BVK = head(feature_BVD).float()
        fused = fuse(feature_BVD, view_logits_BVK, mask.fused_BV)
        logits_BK = head(fused.feature_BD).float() if fused.logits_BK is None else fused.logits_BK
        views = ViewOutput(view_logits_BVK, feature_BVD, fused.weights_BV)
        return BranchOutput(logits_BK, fused.feature_BD, views)

    def _encode_each(self, x_BVTHWR: Tensor, mask: ViewMask) -> Tensor:
        """Encode every view separately: (B, V, D), zeros for absent views."""

        def present(x_BV_: Tensor) -> Tensor:
            return x_BV_.flatten(0, 1) if mask.complete else x_BV_[mask.present_BV]

        thumbs_PTX: Tensor | None = None
        if self.config.paste == "tokens":
            thumbs_PTX = present(thumbnail_tokens(x_BVTHWR, mask.present_BV, training=self.training))
        x_PRTHW = self.drop(present(x_BVTHWR)).permute(0, 4, 1, 2, 3)
        feature_PD: Tensor = self.drop(self.encoder(x_PRTHW, thumbs_PTX)).float()
        if not mask.complete:
            return scatter_views(feature_PD, mask.present_BV)
        return cast("Tensor", feature_PD.unflatten(0, mask.present_BV.shape))

    def _encode_sequence(self, x_BVTHWR: Tensor, mask: ViewMask) -> Tensor:
        """Encode the present views of a group as one sequence: (B, V, D), zeros for absent views."""
        mask_BV = mask.present_BV
        x_BVRTHW = self.drop(x_BVTHWR).permute(0, 1, 5, 2, 3, 4)
        if mask.complete:
            feature_BVD: Tensor = self.drop(self.encoder.encode_sequence(x_BVRTHW)).float()
            return feature_BVD
        feature_BVD = x_BVRTHW.new_zeros(*mask_BV.shape, self.encoder.norm_f.weight.shape[0])
        # Groups with the same present views make one dense batch.
        for pattern_V in mask_BV.unique(dim=0):
            rows_B1 = (mask_BV == pattern_V).all(1).nonzero()
            views_V = pattern_V.nonzero().flatten()
            encoded_BVD = self.encoder.encode_sequence(x_BVRTHW[rows_B1, views_V])
            feature_BVD = feature_BVD.index_put((rows_B1, views_V), encoded_BVD.to(feature_BVD.dtype))
        return scatter_views(self.drop(feature_BVD[mask_BV]).float(), mask_BV)

    def _encode_all(self, x_BVTHWR: Tensor, shown_BV: Tensor) -> Tensor:
        """Encode the stacked channels of all views: (B, D). Other views are scaled up to replace those that are not shown."""
        V = shown_BV.shape[1]
        scale_BV = shown_BV.float() * (V / shown_BV.float().sum(-1, keepdim=True).clamp(min=1.0))
        # In the order in which the patch embedding reads, so that the encoder copies nothing.
        x_BTVRHW = self.drop(x_BVTHWR).permute(0, 2, 1, 5, 3, 4).contiguous()
        x_BTVRHW = scale_BV[:, None, :, None, None, None] * x_BTVRHW
        feature_BD: Tensor = self.drop(self.encoder(x_BTVRHW.flatten(2, 3).transpose(1, 2))).float()
        return feature_BD
