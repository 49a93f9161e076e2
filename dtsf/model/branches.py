"""How the views of a group reach an encoder: each by itself, all as one sequence, or all as one picture.

Letters as in :mod:`.dtsfnet`: P present views of all groups, R channels of the canvas, N pictures of a group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from dtsf.errors import ConfigError
from dtsf.model.inputs import scatter_views

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dtsf.model.videomamba import VideoMamba

__all__ = ["encode_apart", "encode_as_one", "encode_merged", "encode_together"]


def encode_apart(
    encoder: VideoMamba,
    canvas_BVTHWR: Tensor,
    mask_BV: Tensor,
    drop: nn.Module,
    thumbs_BVTX: Tensor | None = None,
    *,
    complete: bool,
) -> Tensor:
    """Features of each view by itself, whichever camera it is: (B, V, D), zeros for absent views.

    Args:
        encoder: Of one view.
        canvas_BVTHWR: What it is shown.
        mask_BV: True where the view is present.
        drop: Dropout, on the canvas and on the features.
        thumbs_BVTX: Thumbnails that get a token of their own.
        complete: Every view is present.

    """

    def present(x_BV_: Tensor) -> Tensor:
        return x_BV_.flatten(0, 1) if complete else x_BV_[mask_BV]

    x_PCTHW = drop(present(canvas_BVTHWR)).permute(0, 4, 1, 2, 3)
    feature_PD = drop(encoder(x_PCTHW, None if thumbs_BVTX is None else present(thumbs_BVTX))).float()
    return feature_PD.unflatten(0, mask_BV.shape) if complete else scatter_views(feature_PD, mask_BV)


def encode_together(
    encoder: VideoMamba, canvas_BVTHWR: Tensor, mask_BV: Tensor, drop: nn.Module, *, complete: bool
) -> Tensor:
    """Features of views that are encoded as one sequence, frame by frame: (B, V, D), zeros for absent views.

    An absent view has no token that a state could see. Arguments as for :func:`encode_apart`.
    """
    x_BVCTHW = drop(canvas_BVTHWR).permute(0, 1, 5, 2, 3, 4)
    if complete:
        feature_BVD: Tensor = drop(encoder.encode_together(x_BVCTHW)).float()
        return feature_BVD
    feature_BVD = x_BVCTHW.new_zeros(*mask_BV.shape, encoder.norm_f.weight.shape[0])
    # Groups with the same present views make one dense batch.
    for pattern_V in mask_BV.unique(dim=0):
        rows_B1 = (mask_BV == pattern_V).all(1).nonzero()
        views_V = pattern_V.nonzero().flatten()
        encoded_BVD = encoder.encode_together(x_BVCTHW[rows_B1, views_V])
        feature_BVD = feature_BVD.index_put((rows_B1, views_V), encoded_BVD.to(feature_BVD.dtype))
    return scatter_views(drop(feature_BVD[mask_BV]).float(), mask_BV)


def encode_merged(
    encoder: VideoMamba,
    canvas_BVTHWR: Tensor,
    mask_BV: Tensor,
    joint_BV: Tensor | None,
    drop: nn.Module,
    *,
    cameras: int,
) -> tuple[Tensor, Tensor | None]:
    """Features of each camera alone, by an encoder that knows each, (B, V, D), and of those in ``joint_BV`` as one, (B, D).

    The latter is None where ``joint_BV`` is. Other arguments as for :func:`encode_as_one`.
    """
    V = mask_BV.shape[1]
    shown_BNV = torch.eye(V, device=mask_BV.device) * mask_BV.unsqueeze(1)
    if joint_BV is not None:
        shown_BNV = torch.cat([shown_BNV, joint_BV.float().unsqueeze(1)], 1)
    feature_BND = _encode_pictures(encoder, canvas_BVTHWR, shown_BNV, drop, cameras)
    return feature_BND[:, :V], None if joint_BV is None else feature_BND[:, V]


def encode_as_one(
    encoder: VideoMamba, canvas_BVTHWR: Tensor, shown_BV: Tensor, drop: nn.Module, *, cameras: int
) -> Tensor:
    """Features of all cameras as one picture with the channels of each: (B, D).

    Args:
        encoder: With a patch embedding for each camera.
        canvas_BVTHWR: What it is shown.
        shown_BV: True where a camera is in the picture.
        drop: Dropout, on the canvas and on the features.
        cameras: Of training.

    Raises:
        ConfigError: A camera beyond those of training is present.

    """
    return _encode_pictures(encoder, canvas_BVTHWR, shown_BV.float().unsqueeze(1), drop, cameras).squeeze(1)


def _encode_pictures(
    encoder: VideoMamba, canvas_BVTHWR: Tensor, shown_BNV: Tensor, drop: nn.Module, cameras: int
) -> Tensor:
    """Features of N pictures of a group, (B, N, D), each of the cameras that ``shown_BNV`` names.

    Cameras are scaled up to stand for those that are not shown, so that one alone is what training with withheld views has seen.
    """
    B, N, V = shown_BNV.shape
    if cameras < V and bool(shown_BNV[..., cameras:].any()):
        raise ConfigError(
            f"{V} views given to a network with model.views = merged that was trained for {cameras}: give at most as many "
            "(evaluate --views), or train with --set model.views=apart"
        )
    shown_BNV = shown_BNV * (cameras / shown_BNV.sum(-1, keepdim=True).clamp(min=1.0))
    # In the order in which a patch of the whole canvas is read, so that the encoder copies nothing.
    x_BTVRHW = drop(canvas_BVTHWR).permute(0, 2, 1, 5, 3, 4).contiguous()
    x_BNTVRHW = shown_BNV.view(B, N, 1, V, 1, 1, 1) * x_BTVRHW.unsqueeze(1)
    x_BNTVRHW = F.pad(x_BNTVRHW, (0, 0, 0, 0, 0, 0, 0, cameras - V))
    x_PCTHW = x_BNTVRHW.flatten(3, 4).flatten(0, 1).transpose(1, 2)
    feature_BND: Tensor = drop(encoder(x_PCTHW)).float().unflatten(0, (B, N))
    return feature_BND
