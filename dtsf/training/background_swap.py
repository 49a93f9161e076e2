"""What moves and what stands, told apart in training clips: rooms exchanged, and people hidden where they stand.

Both belong to TSM's idea. With s the temporal mean of each cell of a clip and m its share of somebody who moves, a clip in
another's room is ``s_b + m (x - s_b)``, and one whose person is behind a pillar is s, and noise, in the cells behind it.
Drawn afresh each step, of the principal channels (``model.principal``), in which both are as linear as in all.

Letters: B groups, V views, P present views of all groups, Q of these the changed ones, T frames, H W grid, R channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def share_of_mover(x_QTHWR: Tensor) -> Tensor:
    """How much of each cell somebody is who moves: the root of its distance from its temporal mean, over the most in the clip.
    Returns (Q, T, H, W, 1), in [0, 1].
    """
    distance_QTHW1 = torch.linalg.vector_norm(x_QTHWR - x_QTHWR.mean(1, keepdim=True), dim=-1, keepdim=True)
    most_Q1111 = distance_QTHW1.amax((1, 2, 3), keepdim=True)
    share_QTHW1: Tensor = (distance_QTHW1 / most_Q1111.clamp(min=torch.finfo(torch.float32).tiny)).sqrt()
    return share_QTHW1


def swap_backgrounds(x_BVTHWR: Tensor, mask_BV: Tensor, share: float) -> Tensor:
    """Put what moves in a ``share`` of the clips into the room of another clip of the batch. Same shape."""
    present_P = mask_BV.flatten().nonzero().flatten()
    room_P = present_P[torch.randperm(len(present_P))]
    drawn_P = torch.rand(len(present_P)) < share
    clip_Q, room_Q = present_P[drawn_P].to(x_BVTHWR.device), room_P[drawn_P].to(x_BVTHWR.device)
    x_NTHWR = x_BVTHWR.flatten(0, 1)
    x_QTHWR = x_NTHWR[clip_Q]
    static_Q1HWR = x_NTHWR[room_Q].mean(1, keepdim=True)
    exchanged_QTHWR = torch.lerp(static_Q1HWR.expand_as(x_QTHWR), x_QTHWR, share_of_mover(x_QTHWR))
    return x_NTHWR.index_copy(0, clip_Q, exchanged_QTHWR).view_as(x_BVTHWR)


def occlude_views(x_BVTHWR: Tensor, mask_BV: Tensor, probability: float) -> Tensor:
    """Put a pillar before some views, as wide as a column of cells or as all: nothing moves there but noise. Same shape.

    In each group one present view, drawn at random, always sees all; a view alone is never hidden.
    """
    draw_BV = torch.rand(mask_BV.shape).masked_fill(~mask_BV, -1.0)
    sees_BV = torch.zeros_like(mask_BV).scatter(1, draw_BV.argmax(1, keepdim=True), True)
    device = x_BVTHWR.device
    hidden_N = (mask_BV & ~sees_BV & (torch.rand(mask_BV.shape) < probability)).flatten().nonzero().flatten().to(device)
    x_NTHWR = x_BVTHWR.flatten(0, 1)
    x_QTHWR = x_NTHWR[hidden_N]
    W = x_QTHWR.shape[3]
    width_Q1 = 1.0 + torch.rand(len(hidden_N), 1) * 1.5 * W
    middle_Q1 = W / 4 + torch.rand(len(hidden_N), 1) * W / 2
    behind_QW = ((torch.arange(W) + 0.5 - middle_Q1).abs() * 2 < width_Q1).to(device)
    static_Q1HWR = x_QTHWR.mean(1, keepdim=True)
    # A pillar is still but for the camera's noise: that of the clip's quietest cell.
    square_QXR = (x_QTHWR - static_Q1HWR).square().mean(1).flatten(1, 2)
    quietest_Q = square_QXR.sum(-1).argmin(1)
    noise_Q111R = (
        square_QXR[torch.arange(len(hidden_N), device=device), quietest_Q]
        .sqrt()
        .view(-1, 1, 1, 1, square_QXR.shape[-1])
    )
    still_QTHWR = static_Q1HWR + noise_Q111R * torch.randn_like(x_QTHWR, device="cpu").to(device)
    hidden_QTHWR = torch.where(behind_QW.view(-1, 1, 1, W, 1), still_QTHWR, x_QTHWR)
    return x_NTHWR.index_copy(0, hidden_N, hidden_QTHWR).view_as(x_BVTHWR)
