"""DTSFNet: branches that encode an input, fuse its views and give evidence; the average of their evidence; a calibrator.
Letters: B groups, V views, P present views, T frames, H W grid, C channels, R of an input, D width, K classes, N branches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dtsf.model import evidence
from dtsf.model.config import BranchConfig, ModelConfig
from dtsf.model.fusion import Fusion, make_fusion
from dtsf.model.inputs import Inputs, scatter_views
from dtsf.model.motion import motion_share
from dtsf.model.tsm import choose_partners, thumbnails
from dtsf.model.videomamba import FeatureStatistics, VideoMamba


class ViewMask(NamedTuple):
    """Views of each group: those present, and those that take part in the fusion because they are not occluded."""

    present_BV: Tensor
    fused_BV: Tensor
    complete: bool  # True if all views are present


class ViewOutput(NamedTuple):
    """Outputs of a branch for each view: features (zero for absent views) and shares in the fused feature."""

    logits_BVK: Tensor
    feature_BVD: Tensor
    weights_BV: Tensor


class BranchOutput(NamedTuple):
    """Outputs of a branch. One with views ``all`` has one feature a group, and none of its views."""

    logits_BK: Tensor
    feature_BD: Tensor
    views: ViewOutput | None = None


class Branch(nn.Module):
    """Encoder of one input of R channels and H = W = ``side``, with one head. ``n_views``: V of training, for views ``all``."""

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
            partner_BV = choose_partners(mask.present_BV, training=self.training)
            thumbs_PTX = present(thumbnails(x_BVTHWR, partner_BV).flatten(3))
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


@dataclass
class Output:
    """Outputs for a batch of groups; logits are averaged over the branches. Not frozen, because Lightning Fabric rebuilds it.
    A fitted calibrator changes ``alpha_BK`` in evaluation, and nothing of the single views.
    """

    logits_BK: Tensor
    alpha_BK: Tensor
    uncertainty_B: Tensor
    view_logits_BVK: Tensor
    view_feature_BVD: Tensor  # features of the encoder; zero for absent views
    feature_BD: Tensor  # fused features, the input of the head; for fusion "tmc" the mean of the views' features
    view_weights_BV: Tensor  # share of each view in the fused feature; 0 for absent and occluded views
    mask_BV: Tensor
    branch_logits_NBK: Tensor
    branch_view_logits_NBVK: Tensor  # logits of each view, from the branches that have them

    @property
    def view_uncertainty_BV(self) -> Tensor:
        """Uncertainty of each view, without calibration."""
        return evidence.uncertainty(evidence.dirichlet(self.view_logits_BVK))

    @property
    def probabilities_BK(self) -> Tensor:
        """Expected class probabilities of the fused Dirichlet distribution."""
        return evidence.probabilities(self.alpha_BK)


class DTSFNet(nn.Module):
    """The network. ``channels``: C, 3 for pixels. ``side``: H = W, the cache's grid, or the side of a frame in pixels.
    ``n_views``: V of the training groups; used by ``fusion`` ``concat`` and branches with views ``all``.
    """

    min_motion_share_V: Tensor  # smallest motion share of each view in the training groups

    def __init__(self, config: ModelConfig, *, channels: int, side: int, n_classes: int, n_views: int = 3) -> None:
        super().__init__()
        if side % config.patch:
            raise ValueError(f"model.patch ({config.patch}) must divide the side of the input ({side})")
        self.config, self.n_views = config, n_views
        self.register_buffer("min_motion_share_V", torch.zeros(n_views), persistent=config.occlusion_threshold > 0)
        self.inputs = Inputs(config, channels, side)
        # Branches with views "all" are made last. The order decides the random initialisation and the order of the parameters, with
        # which the results in docs were measured.
        order = sorted(enumerate(config.branch), key=lambda numbered: numbered[1].views == "all")
        sizes = {"side": side, "n_classes": n_classes, "n_views": n_views}
        made = {str(k): Branch(config, x, channels=self.inputs.channels(x), **sizes) for k, x in order}
        self.branches = nn.ModuleDict(made)
        self.fusion = make_fusion(config.fusion, config.width, n_views)
        self.calibrator = evidence.EvidenceCalibrator(config.width, n_classes, channels)
        self.feature_stats = FeatureStatistics(self, config.width)

    @property
    def encoders(self) -> list[VideoMamba]:
        """Encoders of the branches, in the order of the settings."""
        return [cast("Branch", self.branches[str(k)]).encoder for k in range(len(self.branches))]

    def forward(self, x_BVTHWC: Tensor, mask_BV: Tensor | None = None) -> Output:
        """Classify groups of views. Raises ConfigError: ``fusion`` ``concat`` with more views than in training.
        ``x_BVTHWC``: embeddings or pixels, or the result of :meth:`Inputs.project` or :meth:`Inputs.motion`; values of absent
        views are not read. ``mask_BV``: True for present views, at least one a group. None: all are present, and shapes are
        independent of values, as the ONNX export needs.
        """
        complete = mask_BV is None or bool(mask_BV.all())
        if mask_BV is None:
            mask_BV = torch.ones(x_BVTHWC.shape[:2], dtype=torch.bool, device=x_BVTHWC.device)
        mask = ViewMask(mask_BV, self._fused_views(x_BVTHWC, mask_BV), complete)
        weights = self._weights(mask_BV.shape[1])
        branches = self._branches(list(weights), self.inputs.project(x_BVTHWC), mask)
        average = branches[0] if len(branches) == 1 else _average(branches, list(weights.values()))
        views = cast("ViewOutput", average.views)
        alpha_BK = evidence.dirichlet(average.logits_BK)
        if self.calibrator.fitted and not self.training:
            statistics_BVS = self.statistics(x_BVTHWC)
            alpha_BK = self.calibrator(average.logits_BK, average.feature_BD, statistics_BVS, views.weights_BV)
        return Output(
            logits_BK=average.logits_BK,
            alpha_BK=alpha_BK,
            uncertainty_B=evidence.uncertainty(alpha_BK),
            view_logits_BVK=views.logits_BVK,
            view_feature_BVD=views.feature_BVD,
            feature_BD=average.feature_BD.float(),
            view_weights_BV=views.weights_BV,
            mask_BV=mask_BV,
            branch_logits_NBK=torch.stack([x.logits_BK for x in branches]),
            branch_view_logits_NBVK=torch.stack([x.views.logits_BVK for x in branches if x.views is not None]),
        )

    def statistics(self, x_BVTHWC: Tensor) -> Tensor:
        """Return :func:`.evidence.clip_statistics` of each view: (B, V, 3 + C)."""
        statistics_PS = evidence.clip_statistics(x_BVTHWC.flatten(0, 1), self.inputs.channel_scale_C)
        return statistics_PS.view(*x_BVTHWC.shape[:2], -1)

    def _branches(self, chosen: list[int], x_BVTHWC: Tensor, mask: ViewMask) -> list[BranchOutput]:
        """Run the chosen branches. Those with the same input share it."""
        found: list[BranchOutput] = []
        inputs: dict[tuple[object, ...], Tensor] = {}
        for k in chosen:
            settings = self.config.branch[k]
            key = (settings.input, settings.channels, settings.msm, settings.paste == "thumbnails")
            if key not in inputs:
                inputs[key] = self.inputs(settings, x_BVTHWC, mask.present_BV, complete=mask.complete)
            found.append(self.branches[str(k)](inputs[key], mask, self.fusion))
        return found

    def _weights(self, n_views: int) -> dict[int, float]:
        """Return the weights of the branches that run for V views. Branches with views ``all`` need the V of training.
        Without them, branches with the same input take over their weight.
        """
        settings = self.config.branch
        weights = {k: x.weight for k, x in enumerate(settings) if x.views != "all" or n_views == self.n_views}
        for skipped in (x for k, x in enumerate(settings) if k not in weights):
            heirs = [k for k in weights if settings[k].input == skipped.input]
            weights |= {k: weights[k] + skipped.weight / len(heirs) for k in heirs}
        return weights

    def _fused_views(self, x_BVTHWC: Tensor, mask_BV: Tensor) -> Tensor:
        """Return the present views that are not occluded; see ``ModelConfig.occlusion_threshold``. In training, all present."""
        threshold = self.config.occlusion_threshold
        if self.training or not threshold or x_BVTHWC.shape[-1] != len(self.inputs.channel_scale_C):
            return mask_BV
        share_BV = motion_share(x_BVTHWC, mask_BV, self.inputs.channel_scale_C)
        V = mask_BV.shape[1]
        # Views beyond those of training have the smallest share 0, so they are never excluded.
        least_V = F.pad(self.min_motion_share_V, (0, max(0, V - self.n_views)))[:V]
        return mask_BV & (share_BV >= threshold * least_V)


def _average(branches: list[BranchOutput], weights: list[float]) -> BranchOutput:
    """Average evidence and features; those of views over the branches that have them."""

    def shares(weights: list[float]) -> Tensor:
        weight_N = branches[0].logits_BK.new_tensor(weights)
        return weight_N / weight_N.sum()

    views = [x.views for x in branches if x.views is not None]
    view_share_N = shares([weight for weight, x in zip(weights, branches, strict=True) if x.views is not None])
    return BranchOutput(
        evidence.average_branches(torch.stack([x.logits_BK for x in branches]), shares(weights)),
        torch.stack([x.feature_BD for x in branches]).mean(0),
        ViewOutput(
            evidence.average_branches(torch.stack([x.logits_BVK for x in views]), view_share_N),
            torch.stack([x.feature_BVD for x in views]).mean(0),
            (view_share_N.view(-1, 1, 1) * torch.stack([x.weights_BV for x in views])).sum(0),
        ),
    )
