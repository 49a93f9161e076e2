"""DTSFNet put together from one config: canvas -> TSM -> encoder of each view -> MSF -> Dirichlet.

Letters: B groups, V views, T frames, H W canvas, C channels, R reduced channels, D width, K classes,
P present views of all groups.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from dtsf.errors import ConfigError
from dtsf.model.network.belief import Belief, clip_statistics
from dtsf.model.network.canvas import (
    moving_part,
    prepare_canvas,
    project,
    scaled_energy,
    scatter_views,
    snapshot_tokens,
)
from dtsf.model.network.encoder import VideoMamba
from dtsf.model.network.evidence import dirichlet, pool_opinions, uncertainty
from dtsf.model.network.fusions import FUSIONS, FUSIONS_WITH_WEIGHTS
from dtsf.model.network.output import Output
from dtsf.model.network.snapshots import motion_share
from dtsf.model.network.streams import Streams

if TYPE_CHECKING:
    from torch import Tensor

    from dtsf.model.network.config import ModelConfig
    from dtsf.model.network.fusion import Fused

__all__ = ["DTSFNet", "Output"]


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
    energy_mean_HWE: Tensor
    least_share_V: Tensor
    basis_CR: Tensor

    def __init__(self, config: ModelConfig, *, channels: int, canvas: int, n_classes: int, n_views: int = 3) -> None:
        super().__init__()
        if canvas % config.patch:
            raise ValueError(f"model.patch ({config.patch}) must divide the canvas ({canvas})")
        self.config = config
        # One over each channel's standard deviation in the training clips; set once before training.
        self.register_buffer("channel_scale_C", torch.ones(channels))
        self.register_buffer(
            "energy_mean_HWE", torch.zeros(canvas, canvas, config.energies), persistent=config.canvas != "embedding"
        )
        self.register_buffer("least_share_V", torch.zeros(n_views), persistent=config.covered > 0)
        principal = min(config.principal, channels - 1)
        self.principal = principal
        if principal:
            # The directions in which training clips move most: set once before training.
            self.register_buffer("basis_CR", torch.eye(channels)[:, :principal].clone())
            channels = principal
        reduced = config.energies if config.canvas != "embedding" else config.reduce or channels
        plain = config.canvas != "embedding" or not config.reduce
        self.reduce = nn.Identity() if plain else nn.Linear(channels, reduced)
        self.drop = nn.Dropout(config.dropout)
        self.n_views = n_views

        def encoder(channels: int, n_classes: int) -> VideoMamba:
            return VideoMamba(
                channels=channels,
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
                snapshot=3 * (canvas // 3) ** 2 * channels if config.pasted == "tokens" else 0,
            )

        self.encoder = encoder(reduced * n_views if config.views == "merged" else reduced, n_classes)
        self.signed = encoder(min(config.signed_channels, principal), n_classes) if config.canvas == "both" else None
        weighted = FUSIONS_WITH_WEIGHTS.get(config.fusion)
        self.fusion = weighted(config.width, n_views) if weighted else None
        self.belief = Belief(config.width, n_classes, len(self.channel_scale_C))
        self.streams = Streams(self, config.width)

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
        if config.canvas == "both":
            return self._two_opinions(x_BVTHWC, mask_BV, complete=complete)
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
        fused = self._fuse(feature_BVD, view_logits_BVK, fused_BV)
        fused_BD = fused.feature_BD if merged_BD is None else (fused.feature_BD + merged_BD) / 2
        logits_BK = fused.logits_BK if fused.logits_BK is not None else self.encoder.head(fused_BD).float()
        return self._output(x_BVTHWC, logits_BK, view_logits_BVK, feature_BVD, fused_BD, fused.weights_BV, mask_BV)

    @property
    def encoders(self) -> list[VideoMamba]:
        """One, or that of each opinion."""
        return [self.encoder] if self.signed is None else [self.encoder, self.signed]

    def _fuse(self, feature_BVD: Tensor, view_logits_BVK: Tensor, mask_BV: Tensor) -> Fused:
        fused: Fused = (self.fusion or FUSIONS[self.config.fusion])(feature_BVD, view_logits_BVK, mask_BV)
        return fused

    def _output(
        self,
        x_BVTHWC: Tensor,
        logits_BK: Tensor,
        view_logits_BVK: Tensor,
        feature_BVD: Tensor,
        fused_BD: Tensor,
        weights_BV: Tensor,
        mask_BV: Tensor,
    ) -> Output:
        alpha_BK, view_alpha_BVK = dirichlet(logits_BK), dirichlet(view_logits_BVK)
        if self.belief.learnt and not self.training:
            alpha_BK = self.belief(logits_BK, fused_BD, self.statistics(x_BVTHWC), weights_BV)
        return Output(
            logits_BK=logits_BK,
            alpha_BK=alpha_BK,
            uncertainty_B=uncertainty(alpha_BK),
            view_logits_BVK=view_logits_BVK,
            view_alpha_BVK=view_alpha_BVK,
            view_uncertainty_BV=uncertainty(view_alpha_BVK),
            view_feature_BVD=feature_BVD,
            feature_BD=fused_BD.float(),
            view_weights_BV=weights_BV,
            mask_BV=mask_BV,
        )

    def _two_opinions(self, x_BVTHWC: Tensor, mask_BV: Tensor, *, complete: bool) -> Output:
        """Energies and moving parts, each encoded and fused over the views by itself, and their opinions pooled."""
        x_PTHWC = x_BVTHWC.flatten(0, 1)
        if not complete:
            x_PTHWC = x_PTHWC.index_select(0, mask_BV.flatten().nonzero().flatten())
        found = []
        y_PTHWR = self.project(x_PTHWC)
        canvases = self.energy(y_PTHWR) - self.energy_mean_HWE, moving_part(y_PTHWR, self.config.signed_channels)
        for canvas_PTHWR, encoder in zip(canvases, self.encoders, strict=True):
            tokens = self.config.pasted == "tokens"
            thumbs = snapshot_tokens(canvas_PTHWR, mask_BV, self.training, complete) if tokens else None
            feature_PD = self.drop(encoder(self.drop(canvas_PTHWR).permute(0, 4, 1, 2, 3), thumbs)).float()
            logits_PK = encoder.head(feature_PD).float()
            feature_BVD, view_logits_BVK = (
                x_P.unflatten(0, mask_BV.shape) if complete else scatter_views(x_P, mask_BV)
                for x_P in (feature_PD, logits_PK)
            )
            fused = self._fuse(feature_BVD, view_logits_BVK, mask_BV)
            logits_BK = fused.logits_BK if fused.logits_BK is not None else encoder.head(fused.feature_BD).float()
            found.append((logits_BK, view_logits_BVK, feature_BVD, fused.feature_BD, fused.weights_BV))
        logits_SBK, view_logits_SBVK, feature_SBVD, fused_SBD, weights_SBV = (
            torch.stack(x) for x in zip(*found, strict=True)
        )
        share_S = logits_SBK.new_tensor([1.0 - self.config.signed, self.config.signed])
        output = self._output(
            x_BVTHWC,
            pool_opinions(logits_SBK, share_S),
            pool_opinions(view_logits_SBVK, share_S),
            feature_SBVD.mean(0),
            fused_SBD.mean(0),
            (share_S.view(2, 1, 1) * weights_SBV).sum(0),
            mask_BV,
        )
        output.opinions_SBK, output.view_opinions_SBVK = logits_SBK, view_logits_SBVK
        return output

    def project(self, x_PTHWC: Tensor) -> Tensor:
        """Embeddings in the principal channels, where the network has such."""
        return project(x_PTHWC, self.channel_scale_C, self.basis_CR) if self.principal else x_PTHWC

    def energy(self, x_PTHWC: Tensor) -> Tensor:
        """Motion energy of clips' embeddings, each channel in units of the training clips' deviation: (P, T, H, W, E)."""
        if self.principal:
            y_PTHWR = self.project(x_PTHWC)
            return scaled_energy(y_PTHWR, self.basis_CR.new_ones(self.principal), self.config)
        return scaled_energy(x_PTHWC, self.channel_scale_C, self.config)

    def statistics(self, x_BVTHWC: Tensor) -> Tensor:
        """What each view looks like and how it moves: :func:`.belief.clip_statistics`, (B, V, 3 + C)."""
        statistics_PS = clip_statistics(x_BVTHWC.flatten(0, 1), self.channel_scale_C)
        return statistics_PS.view(*x_BVTHWC.shape[:2], -1)

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
            self.project(x_BVTHWC),
            mask_BV,
            scale_C=self.basis_CR.new_ones(self.principal) if self.principal else self.channel_scale_C,
            energy_mean_HWE=self.energy_mean_HWE,
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
        # In the order in which a patch of the whole canvas is read, so that the encoder copies nothing.
        x_BTVRHW = self.drop(canvas_BVTHWR).permute(0, 2, 1, 5, 3, 4).contiguous()
        x_BNTVRHW = shown_BNV.view(*shown_BNV.shape[:2], 1, V, 1, 1, 1) * x_BTVRHW.unsqueeze(1)
        x_BNTVRHW = torch.nn.functional.pad(x_BNTVRHW, (0, 0, 0, 0, 0, 0, 0, most - V))
        x_NCTHW = x_BNTVRHW.flatten(3, 4).flatten(0, 1).transpose(1, 2)
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
