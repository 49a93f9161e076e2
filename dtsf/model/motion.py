"""Motion of embeddings: static and dynamic part, motion magnitude, flow, and the Motion Sense Module of MS-SC.
Letters: B groups, V views, P clips, T frames, H W grid, C channels, E channels of motion. Leading axes are free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 250_000  # numbers processed at a time on a CPU: 1 MB in float32, which stays in its cache
ROUNDING = 1e-5  # smaller shares of a clip's length are no motion: float32 rounds at 6e-8, float16 embeddings at 5e-4


def split_static_dynamic(x_PTHWC: Tensor) -> tuple[Tensor, Tensor]:
    """Split clips into the static part (the temporal mean of each cell, T = 1) and the dynamic part (frames minus mean)."""
    static_P1HWC = x_PTHWC.mean(-4, keepdim=True)
    return static_P1HWC, x_PTHWC - static_P1HWC


def motion_share(x_BVTHWC: Tensor, mask_BV: Tensor, scale_C: Tensor) -> Tensor:
    """Return the mean distance of each view's frames from their temporal mean, divided by the group's largest one: (B, V).
    An occluded view has a small share. Absent views have share 0; if nothing moves, present views have share 1. Absent views may
    hold anything finite. ``scale_C`` multiplies each channel first.
    """

    def lengths(x_PTHWC: Tensor) -> Tensor:
        scaled_PTHWC = x_PTHWC.float() * scale_C
        parts = (split_static_dynamic(scaled_PTHWC)[1], scaled_PTHWC)
        return torch.stack([part_PTHWC.norm(dim=-1).mean((-3, -2, -1)) for part_PTHWC in parts], -1)

    level_BV, size_BV = in_chunks(lengths, x_BVTHWC).unbind(-1)
    level_BV = torch.where(mask_BV & (level_BV > ROUNDING * size_BV), level_BV, 0.0)
    most_B1 = level_BV.amax(1, keepdim=True)
    share_BV: Tensor = torch.where(most_B1 > 0, level_BV / most_B1.clamp(min=torch.finfo(torch.float32).tiny), 1.0)
    return torch.where(mask_BV, share_BV, 0.0)


def motion_magnitude(
    x_PTHWC: Tensor, scale_C: Tensor | None = None, lags: Sequence[int] = (), exponent: float = 1.0
) -> Tensor:
    """Return the distance of each cell from its temporal mean, divided by the mean distance in the clip: (P, T, H, W, E).
    This hides background and clothes, which decide the direction of the difference, and contrast, which decides its length.
    ``scale_C`` multiplies each channel first. Each lag adds a channel: the distance from the same cell so many frames before
    (frames before the first are the first). ``exponent`` raises distances before the division. Without motion all are 0.
    """

    def distances(x_PTHWC: Tensor) -> Tensor:
        scaled_PTHWC = x_PTHWC if scale_C is None else x_PTHWC * scale_C
        parts = [split_static_dynamic(scaled_PTHWC)[1].norm(dim=-1)]
        parts += [(scaled_PTHWC - _frames_before(scaled_PTHWC, lag)).norm(dim=-1) for lag in lags]
        distance_PTHWE = torch.stack(parts, -1)
        return distance_PTHWE if exponent == 1 else distance_PTHWE.pow(exponent)

    distance_PTHWE = in_chunks(distances, x_PTHWC)
    mean_P111E = distance_PTHWE.mean((-4, -3, -2), keepdim=True)
    magnitude_PTHWE: Tensor = distance_PTHWE / mean_P111E.clamp(min=torch.finfo(x_PTHWC.dtype).tiny)
    return magnitude_PTHWE


def flow(x_PTHWC: Tensor, scale_C: Tensor | None = None, exponent: float = 1.0) -> Tensor:
    """Return the motion to the right and downwards through each cell, from the frame before to this one: (P, T, H, W, 2).
    A correlation of opponent detectors (Hassenstein and Reichardt 1956): the change of a cell in the frame before times the
    change of its neighbour now, minus the same with both exchanged. A flickering lamp cancels. Not from the paper; see
    docs/results/network.md. Motion to the left and upwards is negative. The mean size in a clip is 1; values are 0 in the first
    two frames and without motion. Arguments as for :func:`motion_magnitude`; products are raised to half the exponent and keep
    their sign.
    """

    def flows(x_PTHWC: Tensor) -> Tensor:
        scaled_PTHWC = x_PTHWC if scale_C is None else x_PTHWC * scale_C
        now_PTHWC = scaled_PTHWC - _frames_before(scaled_PTHWC, 1)
        before_PTHWC = _frames_before(now_PTHWC, 1)

        def through(axis: int) -> Tensor:
            """Return the flow from each cell to the next one along ``axis``."""
            n = now_PTHWC.shape[axis] - 1
            here, there = (now_PTHWC.narrow(axis, k, n) for k in (0, 1))
            here_before, there_before = (before_PTHWC.narrow(axis, k, n) for k in (0, 1))
            return (here_before * there - there_before * here).sum(-1)

        # A flow between two cells counts in both.
        right_PTHw, down_PThW = through(-2), through(-3)
        right_PTHW = F.pad(right_PTHw, (0, 1)) + F.pad(right_PTHw, (1, 0))
        down_PTHW = F.pad(down_PThW, (0, 0, 0, 1)) + F.pad(down_PThW, (0, 0, 1, 0))
        flow_PTHW2 = torch.stack([right_PTHW, down_PTHW], -1)
        # The root has no gradient at 0.
        return flow_PTHW2.sign() * flow_PTHW2.abs().clamp(min=torch.finfo(flow_PTHW2.dtype).tiny).pow(exponent / 2)

    flow_PTHW2 = in_chunks(flows, x_PTHWC)
    mean_P1111 = flow_PTHW2.abs().mean((-4, -3, -2, -1), keepdim=True)
    scaled_PTHW2: Tensor = flow_PTHW2 / mean_P1111.clamp(min=torch.finfo(x_PTHWC.dtype).tiny)
    return scaled_PTHW2


def sense_motion(x_PTHWC: Tensor) -> Tensor:
    """Increase the distance of each cell from the clip's mean, more for distant cells. Same shape.
    The Motion Sense Module of MS-SC (ICASSP; openreview P9bm9tW6W6, abstract and poster only), a peer of TSM without published
    equations. Our reading: ``x' = m + r (1 + d / (d + mean d))`` with the mean m, ``r = x - m``, ``d = |r| / sqrt(C)``.
    """
    mean_P111C = x_PTHWC.mean((-4, -3, -2), keepdim=True)
    residual_PTHWC = x_PTHWC - mean_P111C
    # The root has no gradient at 0, and all distances of a constant clip are 0.
    tiny = torch.finfo(x_PTHWC.dtype).tiny
    distance_PTHW1 = residual_PTHWC.square().mean(-1, keepdim=True).clamp(min=tiny).sqrt()
    mean_P1111 = distance_PTHW1.mean((-4, -3, -2), keepdim=True)
    return mean_P111C + residual_PTHWC * (1.0 + distance_PTHW1 / (distance_PTHW1 + mean_P1111))


def _frames_before(x_PTHWC: Tensor, frames: int) -> Tensor:
    """Return for each frame the one so many frames before it; the first frame for those without one. Same shape."""
    time_T = torch.arange(x_PTHWC.shape[-4], device=x_PTHWC.device)
    return x_PTHWC.index_select(-4, time_T.sub(frames).clamp(min=0))


def in_chunks(measure: Callable[[Tensor], Tensor], x_PTHWC: Tensor) -> Tensor:
    """Apply ``measure`` to each clip; on a CPU to a few at a time, which then stay in its cache. Leading axes are kept."""
    if x_PTHWC.ndim == 4 or x_PTHWC.device.type != "cpu" or torch.compiler.is_compiling():
        return measure(x_PTHWC)
    size = max(1, CHUNK // max(1, x_PTHWC.shape[-4:].numel()))
    measured = torch.cat([measure(part_PTHWC) for part_PTHWC in x_PTHWC.flatten(0, -5).split(size)])
    return measured.view(*x_PTHWC.shape[:-4], *measured.shape[1:])
