"""DTSFNet put together from one config: canvas -> TSM -> encoder of each view -> MSF -> Dirichlet.

Letters: B groups, V views, T frames, H W canvas, C channels, R reduced channels, D width, K classes,
P present views of all groups, S opinions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import nn

from dtsf.model.branches import encode_apart, encode_as_one, encode_merged, encode_together
from dtsf.model.calibrator import EvidenceCalibrator, clip_statistics
from dtsf.model.evidence import average_branches, dirichlet, uncertainty
from dtsf.model.feature_stats import FeatureStatistics
from dtsf.model.fusions import FUSIONS, FUSIONS_WITH_WEIGHTS
from dtsf.model.inputs import moving_part, prepare_canvas, project, scaled_energy, snapshot_tokens
from dtsf.model.output import Output
from dtsf.model.tsm import motion_share
from dtsf.model.videomamba import VideoMamba

if TYPE_CHECKING:
    from torch import Tensor

    from dtsf.model.config import ModelConfig
    from dtsf.model.fusion import Fused

__all__ = ["DTSFNet", "Output"]


class _Seen(NamedTuple):
    """Which views of each group count."""

    mask_BV: Tensor
    """True where present."""
    fused_BV: Tensor
    """Of these, those that are fused: not behind a pillar."""
    complete: bool
    """All are present."""


class _Views(NamedTuple):
    """What an opinion has of each view."""

    logits_BVK: Tensor
    feature_BVD: Tensor
    weights_BV: Tensor


class _Opinion(NamedTuple):
    """What one encoder says."""

    share: float
    """Of the pool."""
    logits_BK: Tensor
    fused_BD: Tensor
    views: _Views | None = None


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
    min_motion_share_V: Tensor
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
        self.register_buffer("min_motion_share_V", torch.zeros(n_views), persistent=config.covered > 0)
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

        def encoder(channels: int) -> VideoMamba:
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

        both = config.canvas == "both"
        self.encoder = encoder(reduced * n_views if config.views == "merged" else reduced)
        self.signed = encoder(min(config.signed_channels, principal)) if both else None
        self.joint = encoder(reduced * n_views) if config.views == "both" else None
        weighted = FUSIONS_WITH_WEIGHTS.get(config.fusion)
        self.fusion = weighted(config.width, n_views) if weighted else None
        self.belief = EvidenceCalibrator(config.width, n_classes, len(self.channel_scale_C))
        self.streams = FeatureStatistics(self, config.width)

    @property
    def encoders(self) -> list[VideoMamba]:
        """One for each opinion."""
        return [encoder for encoder in (self.encoder, self.joint, self.signed) if encoder is not None]

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
        complete = mask_BV is None or bool(mask_BV.all())
        if mask_BV is None:
            mask_BV = torch.ones(x_BVTHWC.shape[:2], dtype=torch.bool, device=x_BVTHWC.device)
        seen = _Seen(mask_BV, self._uncovered(x_BVTHWC, mask_BV), complete)
        opinions = self._opinions(x_BVTHWC, seen)
        output = self._output(x_BVTHWC, mask_BV, opinions[0] if len(opinions) == 1 else _pool(opinions))
        if len(opinions) > 1:
            output.opinions_SBK = torch.stack([opinion.logits_BK for opinion in opinions])
            output.view_opinions_SBVK = torch.stack([x.views.logits_BVK for x in opinions if x.views is not None])
        return output

    def _opinions(self, x_BVTHWC: Tensor, seen: _Seen) -> list[_Opinion]:
        """What each encoder says: of the canvas, of all cameras as one picture, and of what moves, signed."""
        config, V = self.config, seen.mask_BV.shape[1]
        signed = config.signed if self.signed is not None else 0.0
        # The one picture knows each camera by its place: it is silent where views are not in the places of training's.
        joint = config.joint if self.joint is not None and self.n_views == V else 0.0
        if self.signed is not None:
            x_BVTHWC = self.project(x_BVTHWC)
        canvas_BVTHWR = self._canvas(x_BVTHWC, seen.mask_BV, complete=seen.complete)
        found = [self._opinion(self.encoder, (1.0 - signed) * (1.0 - joint), canvas_BVTHWR, seen)]
        if self.joint is not None and joint:
            joint_BD = encode_as_one(self.joint, canvas_BVTHWR, seen.fused_BV, self.drop, cameras=self.n_views)
            found.append(_Opinion((1.0 - signed) * joint, self.joint.head(joint_BD).float(), joint_BD))
        if self.signed is not None:
            moving_BVTHWR = moving_part(x_BVTHWC, config.signed_channels)
            moving_BVTHWR = torch.where(seen.mask_BV.view(*seen.mask_BV.shape, 1, 1, 1, 1), moving_BVTHWR, 0.0)
            found.append(self._opinion(self.signed, signed, moving_BVTHWR, seen))
        return found

    def _opinion(self, encoder: VideoMamba, share: float, canvas_BVTHWR: Tensor, seen: _Seen) -> _Opinion:
        """Each view encoded as ``views`` says, then fused."""
        mask_BV, fused_BV, complete = seen
        joint_BD: Tensor | None = None
        if self.config.views == "merged":
            joint_BV = None if self.config.fusion == "tmc" else fused_BV
            feature_BVD, joint_BD = encode_merged(
                encoder, canvas_BVTHWR, mask_BV, joint_BV, self.drop, cameras=self.n_views
            )
        elif self.config.views == "together":
            feature_BVD = encode_together(encoder, canvas_BVTHWR, mask_BV, self.drop, complete=complete)
        else:
            tokens = self.config.pasted == "tokens"
            thumbs_BVTX = snapshot_tokens(canvas_BVTHWR, mask_BV, training=self.training) if tokens else None
            feature_BVD = encode_apart(encoder, canvas_BVTHWR, mask_BV, self.drop, thumbs_BVTX, complete=complete)
        view_logits_BVK = encoder.head(feature_BVD).float()
        fused = self._fuse(feature_BVD, view_logits_BVK, fused_BV)
        fused_BD = fused.feature_BD if joint_BD is None else (fused.feature_BD + joint_BD) / 2
        logits_BK = encoder.head(fused_BD).float() if fused.logits_BK is None else fused.logits_BK
        return _Opinion(share, logits_BK, fused_BD, _Views(view_logits_BVK, feature_BVD, fused.weights_BV))

    def _fuse(self, feature_BVD: Tensor, view_logits_BVK: Tensor, mask_BV: Tensor) -> Fused:
        fused: Fused = (self.fusion or FUSIONS[self.config.fusion])(feature_BVD, view_logits_BVK, mask_BV)
        return fused

    def _output(self, x_BVTHWC: Tensor, mask_BV: Tensor, said: _Opinion) -> Output:
        views = cast("_Views", said.views)
        alpha_BK, view_alpha_BVK = dirichlet(said.logits_BK), dirichlet(views.logits_BVK)
        if self.belief.learnt and not self.training:
            alpha_BK = self.belief(said.logits_BK, said.fused_BD, self.statistics(x_BVTHWC), views.weights_BV)
        return Output(
            logits_BK=said.logits_BK,
            alpha_BK=alpha_BK,
            uncertainty_B=uncertainty(alpha_BK),
            view_logits_BVK=views.logits_BVK,
            view_alpha_BVK=view_alpha_BVK,
            view_uncertainty_BV=uncertainty(view_alpha_BVK),
            view_feature_BVD=views.feature_BVD,
            feature_BD=said.fused_BD.float(),
            view_weights_BV=views.weights_BV,
            mask_BV=mask_BV,
        )

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
        least_V = torch.nn.functional.pad(self.min_motion_share_V, (0, max(0, V - self.n_views)))[:V]
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


def _pool(opinions: list[_Opinion]) -> _Opinion:
    """Several as one: evidence pooled by their shares, features as their mean; of each view, by those that saw it alone."""
    alone = [opinion for opinion in opinions if opinion.views is not None]
    views = [cast("_Views", opinion.views) for opinion in alone]
    share_S = _shares(alone, opinions[0].logits_BK)
    return _Opinion(
        1.0,
        average_branches(torch.stack([x.logits_BK for x in opinions]), _shares(opinions, opinions[0].logits_BK)),
        torch.stack([x.fused_BD for x in opinions]).mean(0),
        _Views(
            average_branches(torch.stack([x.logits_BVK for x in views]), share_S),
            torch.stack([x.feature_BVD for x in views]).mean(0),
            (share_S.view(-1, 1, 1) * torch.stack([x.weights_BV for x in views])).sum(0),
        ),
    )


def _shares(opinions: list[_Opinion], like: Tensor) -> Tensor:
    share_S = like.new_tensor([opinion.share for opinion in opinions])
    return share_S / share_S.sum()
