"""Which way it goes: what moves in one cell and, a frame later, in the next. Beside motion energy, which does not say.

A hammer and clapping hands move in the same cells; one goes down, the other sideways. The opponent correlation of
Hassenstein and Reichardt (1956), the model of how an insect's eye sees motion, tells the two apart without saying what
moves: how a cell changed in the frame before times how its neighbour changes now, less the same the other way round. Ours,
not the paper's; measured in docs/results/network.md.

Letters: B groups, V views, P clips, T frames, H W grid, C channels, h w pairs of neighbouring cells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from dtsf.model.tsm import in_chunks, shift_in_time

if TYPE_CHECKING:
    from torch import Tensor


def motion_direction(x_BVTHWC: Tensor, scale_C: Tensor | None = None, power: float = 1.0) -> Tensor:
    """How much goes right and how much goes down through each cell from the frame before to this one; any leading axes.

    Like motion energy it knows neither room nor contrast: of each place only its change from frame to frame counts, and the
    result is divided by its mean size in the clip. What changes in two neighbours alike, a lamp that flickers, cancels.

    ``scale_C``: each channel is multiplied by this first; by nothing if left out. ``power``: of the distances of
    :func:`.snapshots.motion_energy`, so that both count small motions alike: products are raised to half of it, and keep their
    sign. Returns the same shape with two channels: right, down; negative where it goes left, up. Their size is 1 in the mean of
    a clip; 0 in the first two frames, which have no change before them, and where nothing goes anywhere at all.
    """

    def flows(x_PTHWC: Tensor) -> Tensor:
        scaled_PTHWC = x_PTHWC if scale_C is None else x_PTHWC * scale_C
        now_PTHWC = scaled_PTHWC - shift_in_time(scaled_PTHWC, 1)
        before_PTHWC = shift_in_time(now_PTHWC, 1)

        def through(axis: int) -> Tensor:
            """From each cell to the next one along ``axis``."""
            n = now_PTHWC.shape[axis] - 1
            here, there = (now_PTHWC.narrow(axis, k, n) for k in (0, 1))
            was_here, was_there = (before_PTHWC.narrow(axis, k, n) for k in (0, 1))
            return (was_here * there - was_there * here).sum(-1)

        # What passes between two cells is counted in both.
        right_PTHw, down_PThW = through(-2), through(-3)
        right_PTHW = F.pad(right_PTHw, (0, 1)) + F.pad(right_PTHw, (1, 0))
        down_PTHW = F.pad(down_PThW, (0, 0, 0, 1)) + F.pad(down_PThW, (0, 0, 1, 0))
        flow_PTHW2 = torch.stack([right_PTHW, down_PTHW], -1)
        # Where nothing goes anywhere the root has no gradient.
        return flow_PTHW2.sign() * flow_PTHW2.abs().clamp(min=torch.finfo(flow_PTHW2.dtype).tiny).pow(power / 2)

    flow_BVTHW2 = in_chunks(flows, x_BVTHWC)
    mean_BV1111 = flow_BVTHW2.abs().mean((-4, -3, -2, -1), keepdim=True)
    direction_BVTHW2: Tensor = flow_BVTHW2 / mean_BV1111.clamp(min=torch.finfo(x_BVTHWC.dtype).tiny)
    return direction_BVTHW2
