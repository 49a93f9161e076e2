"""Augmentation of cached clips: time, position, background, views. Draws from PyTorch's global generator.

Swapped backgrounds and occlusion are ours, in the spirit of TSM. With s the temporal mean of each cell of a clip and m its
foreground weight, a clip with the background of clip b is ``s_b + m (x - s_b)``. An occluded cell is s plus noise.

Letters: B groups, V views, T frames, H W grid, C R channels, N views of all groups, P present, Q changed, X cells, or numbers of a
row of cells.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from dtsf.settings import Frozen
from dtsf.training.frame_sampling import uniform_times


class AugmentConfig(Frozen):
    """Augmentation of training clips. Section ``[augment]`` of a recipe. Not used in evaluation."""

    crop: float = Field(default=0.0, ge=0, lt=1)  # maximum share of a clip that is cut off, at both ends together
    # Each frame moves by up to half of this share of the distance between frames. 0 keeps the frames fixed. Without motion
    # sampling it needs a cache of more frames than model.frames.
    jitter: float = Field(default=0.5, ge=0, le=1)
    shift: float = Field(default=0.0, ge=0)  # maximum shift of a view's grid in cells; 0.4 is the motion crop's error
    zoom: float = Field(default=0.0, ge=0)  # maximum relative change of the size of a view's grid; 0.2 suits few people
    # Maximum relative change of the speed of a group. 0.5 suits few people, 0 a test on unseen views of the same performances.
    tempo: float = Field(default=0.0, ge=0)
    delay: float = Field(default=0.0, ge=0)  # maximum shift of a group in time, in frames; 1 goes with tempo 0.5
    # Probability to mirror a group. "auto": 0.5 if each training group has one view, as people face both ways there, else 0, as
    # several views already see both sides and a mirror moves the cameras. 0 too if a class is named after left or right.
    flip: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = 0.0
    view_drop: float = Field(default=0.0, ge=0, lt=1)  # probability to drop a present view; one always stays
    swap_background: float = Field(default=0.0, ge=0, le=1)  # share of clips with the background of another clip
    occlude: float = Field(default=0.0, ge=0, le=1)  # probability that a vertical bar covers a view; one stays free
    noise: float = Field(default=0.0, ge=0)  # deviation of Gaussian noise, in units of the deviation of each channel


def sample_times(shape: tuple[int, int], n_frames: int, config: AugmentConfig) -> Tensor:
    """Draw the times of the training frames, for each view independently (views are not frame-aligned). (B, V, T), in [0, 1]."""
    cut_BV2 = torch.rand(*shape, 2) * (config.crop / 2)
    begin_BV1 = cut_BV2[..., :1]
    length_BV1 = 1.0 - cut_BV2.sum(-1, keepdim=True)
    jitter_BVT = (torch.rand(*shape, n_frames) * 2 - 1) * config.jitter / 2
    time_BVT = uniform_times(n_frames) + jitter_BVT / n_frames
    return (begin_BV1 + length_BV1 * time_BVT).clamp(0, 1)


def move_grid(x_BVTHWC: Tensor, config: AugmentConfig) -> Tensor:
    """Mirror whole groups; shift and scale the grid of each view, the same in all its frames. Same shape."""
    mirrored = 0.0 if config.flip == "auto" else config.flip  # resolve_auto() has replaced it
    if not (mirrored or config.shift or config.zoom):
        return x_BVTHWC
    B, V, _, H, W, _ = x_BVTHWC.shape
    size_BV1 = torch.exp((torch.rand(B, V) * 2 - 1) * math.log1p(config.zoom)).unsqueeze(-1)
    mirror_B11 = torch.where(torch.rand(B, 1) < mirrored, -1.0, 1.0).unsqueeze(-1)
    shift_BV2 = (torch.rand(B, V, 2) * 2 - 1) * config.shift
    column_W, row_H = (torch.arange(n) - (n - 1) / 2 for n in (W, H))  # distance from the middle
    column_BVWW = _interpolation((W - 1) / 2 + column_W * mirror_B11 / size_BV1 + shift_BV2[..., :1], W)
    row_BVHH = _interpolation((H - 1) / 2 + row_H / size_BV1 + shift_BV2[..., 1:], H)
    # Small products of matrices, first of whole rows, read memory in its order: grid_sample takes twice as long.
    rows_BVTHX = row_BVHH.unsqueeze(2).to(x_BVTHWC) @ x_BVTHWC.flatten(4)
    return column_BVWW[:, :, None, None].to(x_BVTHWC) @ rows_BVTHX.view_as(x_BVTHWC)


def _interpolation(read_BVn: Tensor, n: int) -> Tensor:
    """Return the matrix that reads a line of ``n`` cells at these places, linearly; the ends continue: (B, V, n, n)."""
    distance_BVnn = read_BVn.clamp(0, n - 1).unsqueeze(-1) - torch.arange(n)
    return (1.0 - distance_BVnn.abs()).clamp(min=0)


def move_frames(x_BVTHWC: Tensor, config: AugmentConfig) -> Tensor:
    """Change the speed and the start of each group, the same for all its views, by interpolation. Same shape."""
    B, V, T = x_BVTHWC.shape[:3]
    if not (config.tempo or config.delay):
        return x_BVTHWC
    speed_B1 = torch.exp((torch.rand(B, 1) * 2 - 1) * math.log1p(config.tempo))
    delay_B1 = (torch.rand(B, 1) * 2 - 1) * config.delay
    middle = (T - 1) / 2
    read_BT = (middle + (torch.arange(T) - middle) * speed_B1 + delay_B1).clamp(0, T - 1).to(x_BVTHWC.device)
    before_BT = read_BT.long()
    after_BT = (before_BT + 1).clamp(max=T - 1)
    share_B1T111 = (read_BT - before_BT).view(B, 1, T, 1, 1, 1)
    # Frames as rows: a copy of whole rows is many times faster than indexing by two axes.
    first_BV1 = torch.arange(B * V, device=x_BVTHWC.device).view(B, V, 1) * T
    frame_RHWC = x_BVTHWC.flatten(0, 2)
    rows = (first_BV1 + frame_BT.unsqueeze(1) for frame_BT in (before_BT, after_BT))
    before, after = (frame_RHWC.index_select(0, row_BVT.flatten()).view_as(x_BVTHWC) for row_BVT in rows)
    return torch.lerp(before, after, share_B1T111)


def drop_views(mask_BV: Tensor, probability: float) -> Tensor:
    """Drop present views at random; one present view of each group, drawn at random, always stays."""
    stays_BV = _one_view(mask_BV)
    return mask_BV & (stays_BV | (torch.rand(mask_BV.shape) >= probability))


def _one_view(mask_BV: Tensor) -> Tensor:
    """Draw one present view of each group: a mask."""
    draw_BV = torch.rand(mask_BV.shape).masked_fill(~mask_BV, -1.0)
    return torch.zeros_like(mask_BV).scatter(1, draw_BV.argmax(1, keepdim=True), True)


def foreground_weight(x_QTHWR: Tensor) -> Tensor:
    """Return the root of each cell's distance from its temporal mean, as a share of the clip's maximum: (Q, T, H, W, 1)."""
    distance_QTHW1 = torch.linalg.vector_norm(x_QTHWR - x_QTHWR.mean(1, keepdim=True), dim=-1, keepdim=True)
    most_Q1111 = distance_QTHW1.amax((1, 2, 3), keepdim=True)
    weight_QTHW1: Tensor = (distance_QTHW1 / most_Q1111.clamp(min=torch.finfo(torch.float32).tiny)).sqrt()
    return weight_QTHW1


def swap_backgrounds(x_BVTHWR: Tensor, mask_BV: Tensor, share: float) -> Tensor:
    """Put the foreground of a ``share`` of the clips before the background of another clip of the batch. Same shape."""
    present_P = mask_BV.flatten().nonzero().flatten()
    other_P = present_P[torch.randperm(len(present_P))]
    drawn_P = torch.rand(len(present_P)) < share
    clip_Q, other_Q = present_P[drawn_P].to(x_BVTHWR.device), other_P[drawn_P].to(x_BVTHWR.device)
    x_NTHWR = x_BVTHWR.flatten(0, 1)
    x_QTHWR = x_NTHWR.index_select(0, clip_Q)
    static_Q1HWR = x_NTHWR.index_select(0, other_Q).mean(1, keepdim=True)
    swapped_QTHWR = torch.lerp(static_Q1HWR.expand_as(x_QTHWR), x_QTHWR, foreground_weight(x_QTHWR))
    return x_NTHWR.index_copy(0, clip_Q, swapped_QTHWR).view_as(x_BVTHWR)


def occlude_views(x_BVTHWR: Tensor, mask_BV: Tensor, probability: float) -> Tensor:
    """Cover some views with a vertical bar of at least one column; only noise changes behind it. One view stays free."""
    device, W = x_BVTHWR.device, x_BVTHWR.shape[4]
    free_BV = _one_view(mask_BV)
    covered_BV = mask_BV & ~free_BV & (torch.rand(mask_BV.shape) < probability)
    covered_N = covered_BV.flatten().nonzero().flatten().to(device)
    x_NTHWR = x_BVTHWR.flatten(0, 1)
    x_QTHWR = x_NTHWR.index_select(0, covered_N)
    width_Q1 = 1.0 + torch.rand(len(covered_N), 1) * 1.5 * W
    middle_Q1 = W / 4 + torch.rand(len(covered_N), 1) * W / 2
    behind_QW = ((torch.arange(W) + 0.5 - middle_Q1).abs() * 2 < width_Q1).to(device)
    static_Q1HWR = x_QTHWR.mean(1, keepdim=True)
    # The bar is still, up to the noise of the camera: that of the quietest cell of the clip.
    square_QXR = (x_QTHWR - static_Q1HWR).square().mean(1).flatten(1, 2)
    quietest_Q = square_QXR.sum(-1).argmin(1)
    noise_QR = square_QXR[torch.arange(len(covered_N), device=device), quietest_Q].sqrt()
    noise_Q111R = noise_QR[:, None, None, None]
    still_QTHWR = static_Q1HWR + noise_Q111R * torch.randn_like(x_QTHWR, device="cpu").to(device)
    covered_QTHWR = torch.where(behind_QW.view(-1, 1, 1, W, 1), still_QTHWR, x_QTHWR)
    return x_NTHWR.index_copy(0, covered_N, covered_QTHWR).view_as(x_BVTHWR)
