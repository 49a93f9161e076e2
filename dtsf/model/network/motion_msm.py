"""Peer of TSM: the Motion Sense Module of MS-SC, which moves apart what acts and what does not.

Source: "MS-SC" (ICASSP; abstract and poster only, openreview P9bm9tW6W6). Public words: enlarge the distance between
the features of action and non-action, measured to the mean feature of the whole video. The equations are not published.

Our reading, without parameters: with the clip's mean feature m over frames and places, ``r = x - m``, the distance
``d = |r| / sqrt(C)`` of a cell and its mean over the clip, ``x' = m + r (1 + d / (d + mean d))``. A cell at the mean stays,
a cell far from it is moved up to twice as far.
Letters: B groups, V views, T frames, H W canvas, C channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["sense_motion"]


def sense_motion(x_BVTHWC: Tensor) -> Tensor:
    """Enlarge every cell's distance to its clip's mean feature, far cells' more. Same shape."""
    mean_BV111C = x_BVTHWC.mean((2, 3, 4), keepdim=True)
    residual_BVTHWC = x_BVTHWC - mean_BV111C
    # The root of zero has no slope; a clip of one colour has distance zero everywhere.
    tiny = torch.finfo(x_BVTHWC.dtype).tiny
    distance_BVTHW1 = residual_BVTHWC.square().mean(-1, keepdim=True).clamp(min=tiny).sqrt()
    usual_BV1111 = distance_BVTHW1.mean((2, 3, 4), keepdim=True)
    return mean_BV111C + residual_BVTHWC * (1.0 + distance_BVTHW1 / (distance_BVTHW1 + usual_BV1111))
