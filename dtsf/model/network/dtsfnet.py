"""DTSFNet put together from one config: canvas -> TSM -> encoder of each view -> MSF -> Dirichlet.

Letters: B groups, V views, T frames, H W canvas, C channels, R reduced channels, D width, K classes,
P present views of all groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from dtsf.errors import ConfigError
from dtsf.model.network.canvas import prepare_canvas, scaled_energy, scatter_views
from dtsf.model.network.encoder import VideoMamba
from dtsf.model.network.evidence import dirichlet, probabilities, uncertainty
from dtsf.model.network.fusion import Fused, fuse_mean, fuse_msf
from dtsf.model.network.fusion_concat import ConcatFusion
from dtsf.model.network.fusion_sfm import SemanticCorrection
from dtsf.model.network.fusion_tmc import fuse_tmc
from dtsf.model.network.snapshots import motion_share

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["DTSFNet", "ModelConfig", "Output"]

FUSIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Fused]] = {
    "msf": fuse_msf,
    "mean": fuse_mean,
    "tmc": fuse_tmc,
}
FUSIONS_WITH_WEIGHTS: dict[str, Callable[[int, int], nn.Module]] = {
    "concat": ConcatFusion,
    "sfm": SemanticCorrection,
}


class ModelConfig(BaseModel):
    """Everything that decides the network's shape and maths. Recipes hold it as ``[model]``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(default=96, ge=1)
    """D, the length of a token. 96 for a hundred groups on a CPU; VideoMamba-S has 384."""
    depth: int = Field(default=2, ge=1)
    """Bidirectional Mamba blocks. 2 for a hundred groups; VideoMamba-S has 24."""
    state: int = Field(default=16, ge=1)
    """N, the state of each channel in the scan."""
    expand: int = Field(default=2, ge=1)
    """Inner width of a block over D."""
    conv: int = Field(default=4, ge=2, le=4)
    """Width of the causal convolution; the CUDA kernel takes 2 to 4."""
    patch: int = Field(default=6, ge=1)
    """Side of a patch of the canvas. On a 6 x 6 grid, 6 makes one token a frame (best on little data, and 8 times
    cheaper), 2 makes nine, so that a pasted thumbnail is one token. 16 for pixels."""
    reduce: int = Field(default=24, ge=0, le=4096)
    """Each cell's channels are first reduced to this many by a 1 x 1 map; 0 leaves them. Keeps a one-token patch
    embedding small: 6 x 6 x 24 inputs instead of 6 x 6 x 112."""
    frames: int = Field(default=16, ge=1)
    """T, frames the network sees of each clip; at most the cache's."""
    pace: float = Field(default=0.0, ge=0, le=1)
    """Where those frames lie: 0 at equal distances in time, as the paper; 1 at equal shares of the clip's motion, so
    that performances of different speeds and pauses line up; between, a mixture that still knows tempo."""
    canvas: Literal["embedding", "energy"] = "embedding"
    """What the network looks at: the embeddings, or each cell's motion energy (one number a cell: see
    :func:`dtsf.model.network.snapshots.motion_energy`). Choose ``energy`` for a camera that stands still and few
    performances: rooms and clothes vanish. Then ``anchor`` is ``frame``, and ``pasted`` is ``frame`` or ``none``."""
    readout: Literal["cls", "mean", "ordered"] = "mean"
    """``cls`` is the paper's (and VideoMamba's) class token; ``mean`` of the tokens learns faster from little data;
    ``ordered`` is a linear map of all tokens in their order, best with ``pace`` 1, where frame t of every clip means the
    same share of the motion."""
    anchor: Literal["frame", "dynamic"] = "dynamic"
    """What TSM leaves of a frame: itself, or itself minus the clip's temporal mean. See :mod:`.snapshots`."""
    pasted: Literal["frame", "dynamic", "none"] = "dynamic"
    """What TSM pastes; ``none`` turns the pasting off."""
    places: Literal["random", "corners"] = "random"
    """Where training pastes: ``random``, as the figure says; ``corners`` never hides an actor in the middle (measured
    on motion energy: docs/results.md)."""
    normalise: Literal["data", "clip", "imagenet"] = "clip"
    """Embeddings are divided by each channel's deviation over the training clips (``data``); ``clip`` then also by the
    deviation of the clip's own dynamic part, so that contrast of clothes and room weighs less. ``imagenet`` is for
    pixels: minus ImageNet's mean, over its deviation, which is what VideoMamba's checkpoints were trained with."""
    views: Literal["apart", "together", "merged"] = "apart"
    """``apart`` encodes each view by itself, whichever camera it is; ``together`` all views of a group as one sequence,
    frame by frame, so that the state sees a moment from all sides (needs readout ``mean`` or ``ordered``). ``merged``
    has a patch embedding for each camera and one token for all of them: it reads each camera alone and all as one, and
    the fused feature is the mean of MSF's and of that (``fusion`` ``tmc`` has no fused feature: each camera alone).
    Choose it where training and test have the same cameras."""
    covered: float = Field(default=0.0, ge=0, le=1)
    """A camera whose sight is blocked takes no part in the fusion: in evaluation, one that sees less move than this times
    the least that it saw in training, as a share of what the group's liveliest camera sees. 0 never; just under 1 where
    cameras stand still. Where training clips have blocked cameras the least is small, and none is left out: the network
    has learnt from them. A camera that no one trained with is never left out."""
    motion: Literal["tsm", "msm", "none"] = "tsm"
    """``tsm`` is the paper's and does what ``pasted`` says; ``msm`` is MS-SC's, see :mod:`.motion_msm`; ``none`` leaves
    the canvas as ``anchor`` says."""
    fusion: Literal["msf", "mean", "concat", "tmc", "sfm"] = "msf"
    """``msf`` is the paper's; ``mean`` and ``concat`` are baselines without evidence; ``tmc`` joins the views' evidence
    by Dempster's rule; ``sfm`` is MS-SC's cross-attention. See the ``fusion_*`` modules."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Stochastic depth at the last block."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the embedding cells' reduced channels and on the feature of each view."""
    dt_init: Literal["mamba", "videomamba"] = "mamba"
    """Start of the scan's step sizes; see :class:`dtsf.model.network.encoder.VideoMamba`."""

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.views == "together" and self.readout == "cls":
            raise ValueError(
                'views "together" needs readout "mean" or "ordered": one class token cannot stand for several views'
            )
        if self.canvas == "energy" and (self.anchor != "frame" or self.pasted == "dynamic"):
            raise ValueError('canvas "energy" is dynamic already: it needs anchor "frame" and pasted "frame" or "none"')
        if self.canvas == "energy" and self.normalise == "imagenet":
            raise ValueError('normalise "imagenet" is for pixels, canvas "energy" for embeddings: normalise "data"')
        return self


@dataclass
class Output:
    """What the network says of a batch of groups. Not frozen, because Lightning Fabric rebuilds it.

    Logits are the head's; alpha = softplus(logits) + 1.
    """

    logits_BK: Tensor
    alpha_BK: Tensor
    uncertainty_B: Tensor
    view_logits_BVK: Tensor
    view_alpha_BVK: Tensor
    view_uncertainty_BV: Tensor
    view_feature_BVD: Tensor
    """The encoder's; zero for absent views."""
    view_weights_BV: Tensor
    """Share of each view in the fused feature; 0 for absent and for covered views."""
    mask_BV: Tensor

    @property
    def probabilities_BK(self) -> Tensor:
        """Expected class probabilities of the fused Dirichlet."""
        return probabilities(self.alpha_BK)


class DTSFNet(nn.Module):
    """The whole network.

    Args:
        config: Its shape.
        channels: C of the canvas: the cache's embedding channels, or 3.
        canvas: H = W of the canvas: the cache's grid, or the side of the picture in pixels.
        n_classes: K.
        n_views: Cameras of the data set; only ``fusion`` ``concat`` and ``views`` ``merged`` need it.

    """

    channel_scale_C: Tensor
    energy_mean_HW1: Tensor
    least_share_V: Tensor

    def __init__(self, config: ModelConfig, *, channels: int, canvas: int, n_classes: int, n_views: int = 3) -> None:
        super().__init__()
        if canvas % config.patch:
            raise ValueError(f"model.patch ({config.patch}) must divide the canvas ({canvas})")
        self.config = config
        # One over each channel's standard deviation in the training clips; set once before training.
        self.register_buffer("channel_scale_C", torch.ones(channels))
        # Mean motion energy of every cell over the training clips, likewise.
        self.register_buffer("energy_mean_HW1", torch.zeros(canvas, canvas, 1), persistent=config.canvas == "energy")
        # The least share of the group's motion that each camera saw in training, likewise.
        self.register_buffer("least_share_V", torch.zeros(n_views), persistent=config.covered > 0)
        reduced = 1 if config.canvas == "energy" else config.reduce or channels
        plain = config.canvas == "energy" or not config.reduce
        self.reduce = nn.Identity() if plain else nn.Linear(channels, reduced)
        self.drop = nn.Dropout(config.dropout)
        self.n_views = n_views
        self.encoder = VideoMamba(
            channels=reduced * n_views if config.views == "merged" else reduced,
            canvas=canvas,
            patch=config.patch,
            frames=config.frames,
            n_classes=n_classes,
            width=config.width,
            depth=config.depth,
            state=config.state,
            conv=config.conv,
            expand=config.expand,
            readout=config.readout,
            drop_path_rate=config.drop_path,
            dt_init=config.dt_init,
        )
        weighted = FUSIONS_WITH_WEIGHTS.get(config.fusion)
        self.fusion = weighted(config.width, n_views) if weighted else None

    def forward(self, x_BVTHWC: Tensor, mask_BV: Tensor | None = None) -> Output:
        """Classify groups of views.

        Args:
            x_BVTHWC: Canvases: embeddings or pixels; with ``canvas`` ``energy`` also what :meth:`energy` made of them.
                Absent views may hold anything; they are neither encoded nor pasted.
            mask_BV: True where the view is present; every group needs one. None says that all are, and leaves no
                shape that depends on values: what is exported.

        Raises:
            ConfigError: More views than a network was made for that has weights for each.

        """
        config = self.config
        complete = mask_BV is None or bool(mask_BV.all())
        if mask_BV is None:
            mask_BV = torch.ones(x_BVTHWC.shape[:2], dtype=torch.bool, device=x_BVTHWC.device)
        canvas_BVTHWR = self._canvas(x_BVTHWC, mask_BV, complete=complete)
        merged_BD: Tensor | None = None
        fused_BV = self._uncovered(x_BVTHWC, mask_BV)
        if config.views == "merged":
            feature_BVD, merged_BD = self._encode_merged(canvas_BVTHWR, mask_BV, fused_BV)
            view_logits_BVK = self.encoder.head(feature_BVD).float()
        elif complete:
            feature_BVD = self.drop(self._encode_all(canvas_BVTHWR)).float()
            view_logits_BVK = self.encoder.head(feature_BVD).float()
        else:
            feature_PD = self.drop(self._encode(canvas_BVTHWR, mask_BV))
            feature_BVD = scatter_views(feature_PD.float(), mask_BV)
            view_logits_BVK = scatter_views(self.encoder.head(feature_PD).float(), mask_BV)
        fused = (self.fusion or FUSIONS[config.fusion])(feature_BVD, view_logits_BVK, fused_BV)
        fused_BD = fused.feature_BD if merged_BD is None else (fused.feature_BD + merged_BD) / 2
        logits_BK = fused.logits_BK if fused.logits_BK is not None else self.encoder.head(fused_BD).float()
        alpha_BK, view_alpha_BVK = dirichlet(logits_BK), dirichlet(view_logits_BVK)
        return Output(
            logits_BK=logits_BK,
            alpha_BK=alpha_BK,
            uncertainty_B=uncertainty(alpha_BK),
            view_logits_BVK=view_logits_BVK,
            view_alpha_BVK=view_alpha_BVK,
            view_uncertainty_BV=uncertainty(view_alpha_BVK),
            view_feature_BVD=feature_BVD,
            view_weights_BV=fused.weights_BV,
            mask_BV=mask_BV,
        )

    def energy(self, x_PTHWC: Tensor) -> Tensor:
        """Motion energy of clips' embeddings, each channel in units of the training clips' deviation: (P, T, H, W, 1)."""
        return scaled_energy(x_PTHWC, self.channel_scale_C)

    def _uncovered(self, x_BVTHWC: Tensor, mask_BV: Tensor) -> Tensor:
        """Present views without those whose sight is blocked: see ``ModelConfig.covered``. Training knows none."""
        if self.training or not self.config.covered or x_BVTHWC.shape[-1] != len(self.channel_scale_C):
            return mask_BV
        share_BV = motion_share(x_BVTHWC, mask_BV, self.channel_scale_C)
        V = mask_BV.shape[1]
        # Of cameras beyond those of training nothing is known, as of one that no one trained with.
        least_V = torch.nn.functional.pad(self.least_share_V, (0, max(0, V - self.n_views)))[:V]
        return mask_BV & (share_BV >= self.config.covered * least_V)

    def _canvas(self, x_BVTHWC: Tensor, mask_BV: Tensor, *, complete: bool) -> Tensor:
        """What the encoder is shown; see :mod:`.canvas`."""
        return prepare_canvas(
            self.config,
            x_BVTHWC,
            mask_BV,
            scale_C=self.channel_scale_C,
            energy_mean_HW1=self.energy_mean_HW1,
            reduce=self.reduce,
            training=self.training,
            complete=complete,
        )

    def _encode_all(self, canvas_BVTHWR: Tensor) -> Tensor:
        """Features of views that are all present, (B, V, D)."""
        x_BVCTHW = self.drop(canvas_BVTHWR).permute(0, 1, 5, 2, 3, 4)
        if self.config.views == "together":
            return self.encoder.encode_together(x_BVCTHW)
        feature_BVD: Tensor = self.encoder(x_BVCTHW.flatten(0, 1)).unflatten(0, x_BVCTHW.shape[:2])
        return feature_BVD

    def _encode_merged(self, canvas_BVTHWR: Tensor, mask_BV: Tensor, merged_BV: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features of each camera alone, (B, V, D), and of all in ``merged_BV`` as one picture with V x R channels, (B, D).

        The latter is None, and not computed, with ``fusion`` ``tmc``, which joins evidence and reads no fused feature.
        Present cameras are scaled up to stand for the absent ones, so that one alone is what training with withheld
        views has seen.
        """
        V, most = mask_BV.shape[1], self.n_views
        if most < V and bool(mask_BV[:, most:].any()):
            raise ConfigError(
                f"{V} views given to a network with model.views = merged that was trained for {most}: give at most as "
                "many (evaluate --views), or train with --set model.views=apart"
            )
        alone_VV = torch.eye(V, device=mask_BV.device).expand(mask_BV.shape[0], -1, -1)
        merged = self.config.fusion != "tmc"
        alone_BVV = alone_VV * mask_BV.unsqueeze(1)
        shown_BNV = torch.cat([alone_BVV, merged_BV.float().unsqueeze(1)], 1) if merged else alone_BVV
        shown_BNV = shown_BNV * (most / shown_BNV.sum(-1, keepdim=True).clamp(min=1.0))
        x_BVTHWR = self.drop(canvas_BVTHWR)
        x_BNTHWVR = torch.einsum("bnv,bvthwr->bnthwvr", shown_BNV, x_BVTHWR)
        x_BNTHWVR = torch.nn.functional.pad(x_BNTHWVR, (0, 0, 0, most - V))
        x_NCTHW = x_BNTHWVR.flatten(5).flatten(0, 1).permute(0, 4, 1, 2, 3)
        feature_BND = self.drop(self.encoder(x_NCTHW)).float().unflatten(0, (-1, V + merged))
        return feature_BND[:, :V], feature_BND[:, V] if merged else None

    def _encode(self, canvas_BVTHWR: Tensor, mask_BV: Tensor) -> Tensor:
        """Features of the present views, (P, D), in the order of ``mask_BV.nonzero()``."""
        if self.config.views == "apart":
            feature_PD: Tensor = self.encoder(self.drop(canvas_BVTHWR[mask_BV]).permute(0, 4, 1, 2, 3))
            return feature_PD
        x_BVCTHW = self.drop(canvas_BVTHWR).permute(0, 1, 5, 2, 3, 4)
        feature_BVD = x_BVCTHW.new_zeros(*mask_BV.shape, self.config.width)
        # Groups with the same present views make one dense batch: an absent view has no token that a state could see.
        for pattern_V in mask_BV.unique(dim=0):
            rows_B = (mask_BV == pattern_V).all(1).nonzero().flatten()
            views_V = pattern_V.nonzero().flatten()
            encoded_BVD = self.encoder.encode_together(x_BVCTHW[rows_B.unsqueeze(1), views_V])
            feature_BVD = feature_BVD.index_put((rows_B.unsqueeze(1), views_V), encoded_BVD.to(feature_BVD.dtype))
        together_PD: Tensor = feature_BVD[mask_BV]
        return together_PD
