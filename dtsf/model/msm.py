"""Peer of TSM: the Motion Sense Module of MS-SC, which moves apart what acts and what does not.

Source: "MS-SC" (ICASSP; abstract and poster only, openreview P9bm9tW6W6). Public words: enlarge the distance between
the features of action and non-action, measured to the mean feature of the whole video. The equations are not published.

Our reading, without parameters: with the clip's mean feature m over frames and places, ``r = x - m``, the distance
``d = |r| / sqrt(C)`` of a cell and its mean over the clip, ``x' = m + r (1 + d / (d + mean d))``. A cell at the mean stays,
a cell far from it is moved up to twice as far.
Letters: P clips (leading axes are free), T frames, H W canvas, C channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def sense_motion(x_PTHWC: Tensor) -> Tensor:
    """Enlarge every cell's distance to its clip's mean feature, far cells' more. Same shape."""
    mean_P111C = x_PTHWC.mean((-4, -3, -2), keepdim=True)
    residual_PTHWC = x_PTHWC - mean_P111C
    # The root of zero has no slope; a clip of one colour has distance zero everywhere.
    tiny = torch.finfo(x_PTHWC.dtype).tiny
    distance_PTHW1 = residual_PTHWC.square().mean(-1, keepdim=True).clamp(min=tiny).sqrt()
    usual_P1111 = distance_PTHW1.mean((-4, -3, -2), keepdim=True)
    return mean_P111C + residual_PTHWC * (1.0 + distance_PTHW1 / (distance_PTHW1 + usual_P1111))
