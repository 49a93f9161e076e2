"""What the encoder is shown of the embeddings: normalised, separated, reduced, thumbnails pasted (TSM or MSM).

Letters as in :mod:`.dtsfnet`: P present views of all groups, R reduced channels, E
channels of motion energy.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from dtsf.model.flow import motion_direction
from dtsf.model.msm import sense_motion
from dtsf.model.tsm import choose_partners, motion_energy, paste_thumbnails, split_static_dynamic, thumbnails

if TYPE_CHECKING:
    from torch import Tensor

    from dtsf.model.config import ModelConfig

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of red, green and blue, on a scale from 0 to 1."""
LEAST_DEVIATION = 0.05
"""Added to a clip's own deviation, in units of the training clips': a channel that is silent in a clip stays silent."""


def project(x_PTHWC: Tensor, scale_C: Tensor, basis_CR: Tensor) -> Tensor:
    """Embeddings in the principal channels, (..., R), float32; what has R channels already is returned as it is."""
    if x_PTHWC.shape[-1] == basis_CR.shape[1] != basis_CR.shape[0]:
        return x_PTHWC
    return x_PTHWC.float() @ (scale_C.unsqueeze(1) * basis_CR)


def moving_part(y_PTHWR: Tensor, channels: int) -> Tensor:
    """What moves, signed, in the first principal channels and in units of their mean length in the clip. (P, T, H, W, channels)."""
    moving_PTHWR = split_static_dynamic(y_PTHWR[..., :channels])[1]
    length_P1111 = moving_PTHWR.square().mean((-4, -3, -2, -1), keepdim=True).sqrt()
    return moving_PTHWR / length_P1111.clamp(min=torch.finfo(torch.float32).tiny)


def snapshot_tokens(canvas_BVTHWR: Tensor, mask_BV: Tensor, *, training: bool) -> Tensor:
    """TSM's thumbnails of another view, what a token of its own is made of, for each frame: (B, V, T, 3 h w R)."""
    return thumbnails(canvas_BVTHWR, choose_partners(mask_BV, training=training)).flatten(3)


def scaled_energy(x_PTHWC: Tensor, scale_C: Tensor, config: ModelConfig) -> Tensor:
    """Motion energy of clips' embeddings, each channel in units of the training clips' deviation: (P, T, H, W, E).

    With ``config.direction`` the last two of its numbers are the direction of motion, times that.
    What has E channels in the place of the embeddings' C is energy already, and returned as it is.
    """
    if x_PTHWC.shape[-1] == config.energies != len(scale_C):
        return x_PTHWC
    energy_PTHWE = motion_energy(x_PTHWC.float(), scale_C, config.change, config.power)
    if not config.direction:
        return energy_PTHWE
    direction_PTHW2 = motion_direction(x_PTHWC.float(), scale_C, config.power)
    return torch.cat([energy_PTHWE, config.direction * direction_PTHW2], -1)


def prepare_canvas(
    config: ModelConfig,
    x_BVTHWC: Tensor,
    mask_BV: Tensor,
    *,
    scale_C: Tensor,
    energy_mean_HWE: Tensor,
    reduce: nn.Module,
    training: bool,
    complete: bool,
) -> Tensor:
    """What the encoder is shown: normalised, reduced to R channels, thumbnails pasted. Absent views count for nothing.

    Scaling and reducing before pasting is the same as after it, since both are linear for each cell and so is the
    area average; and it is done on present views only, and pasted in a quarter of the channels.
    """
    pasted = config.pasted if config.motion == "tsm" else "none"
    x_PTHWC = x_BVTHWC.flatten(0, 1)
    if not complete:
        # Rows by number: many times faster than by a mask.
        x_PTHWC = x_PTHWC.index_select(0, mask_BV.flatten().nonzero().flatten())
    x_PTHWC = x_PTHWC.float()

    def grouped(y_PTHWR: Tensor) -> Tensor:
        y_BVTHWR: Tensor = y_PTHWR.unflatten(0, mask_BV.shape) if complete else scatter_views(y_PTHWR, mask_BV)
        return y_BVTHWR

    def paste(canvas_BVTHWR: Tensor, source_BVTHWR: Tensor) -> Tensor:
        return paste_thumbnails(canvas_BVTHWR, source_BVTHWR, mask_BV, training=training, places=config.places)

    if config.canvas != "embedding":
        energy_PTHWE = scaled_energy(x_PTHWC, scale_C, config) - energy_mean_HWE
        energy_BVTHWE = grouped(sense_motion(energy_PTHWE) if config.motion == "msm" else energy_PTHWE)
        return energy_BVTHWE if pasted in ("none", "tokens") else paste(energy_BVTHWE, energy_BVTHWE)
    factor_PTHWC = scale_C.view(1, 1, 1, 1, -1)
    if config.normalise == "imagenet":
        x_PTHWC, factor_PTHWC = _as_imagenet(x_PTHWC), torch.ones_like(factor_PTHWC)
    parts = {"frame": x_PTHWC}
    if config.normalise == "clip" or "dynamic" in (config.anchor, pasted):
        parts["dynamic"] = split_static_dynamic(x_PTHWC)[1]
    if config.normalise == "clip":
        # The dynamic part has mean zero: its deviation is its length.
        length_P111C = torch.linalg.vector_norm(parts["dynamic"], dim=(1, 2, 3), keepdim=True)
        deviation_P111C = length_P111C * factor_PTHWC / math.sqrt(math.prod(x_PTHWC.shape[1:4]))
        factor_PTHWC = factor_PTHWC / (deviation_P111C + LEAST_DEVIATION)

    def shown(part: str) -> Tensor:
        if config.motion == "msm":
            y_PTHWR = reduce(sense_motion(parts[part] * factor_PTHWC))
        elif isinstance(reduce, nn.Linear):
            # Each clip's factors go into the small matrix, not over the large canvas.
            weight_PRC = reduce.weight * factor_PTHWC.flatten(-4, -2).expand(x_PTHWC.shape[0], 1, -1)
            y_PXR = torch.bmm(parts[part].flatten(1, 3), weight_PRC.transpose(1, 2)) + reduce.bias
            y_PTHWR = y_PXR.unflatten(1, x_PTHWC.shape[1:4])
        else:
            y_PTHWR = parts[part] * factor_PTHWC
        return grouped(y_PTHWR)

    canvas_BVTHWR = shown(config.anchor)
    if pasted == "none":
        return canvas_BVTHWR
    source_BVTHWR = canvas_BVTHWR if pasted == config.anchor else shown(pasted)
    return paste(canvas_BVTHWR, source_BVTHWR)


def scatter_views(x_P_: Tensor, mask_BV: Tensor) -> Tensor:
    """Put the rows of the present views back to (B, V, ...); absent views are zero, and masked wherever they are read."""
    out_BV_ = x_P_.new_zeros(*mask_BV.shape, *x_P_.shape[1:])
    return out_BV_.index_put((mask_BV,), x_P_)


def _as_imagenet(x_PTHWC: Tensor) -> Tensor:
    """Pixels from 0 to 255, RGB, as ImageNet's classifiers and VideoMamba take them."""
    mean_C, deviation_C = x_PTHWC.new_tensor(IMAGENET_MEAN), x_PTHWC.new_tensor(IMAGENET_DEVIATION)
    return (x_PTHWC / 255.0 - mean_C) / deviation_C
