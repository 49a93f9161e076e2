"""Temporal Snapshots Module (TSM), DTSFNet's figure, upper left: pastes thumbnails of another view into every frame.
Frames n-2, n-1 and n of another view are shrunk to H/3 x W/3 and pasted at random cells into frame n of this view.
Letters: B groups, V views, T frames, H W grid, C channels, h w thumbnail, S the three thumbnails of a frame.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CELLS = 9  # of a frame: 3 x 3
FIXED_CELLS = (0, 2, 6)  # cells in evaluation: corners hide the least of a person in the middle


def paste_thumbnails(x_BVTHWC: Tensor, mask_BV: Tensor, *, training: bool) -> Tensor:
    """Paste three thumbnails of another view over cells of each frame. Same shape; H and W are at least 3.
    ``mask_BV``: True where a view is present; values of absent views are not read. ``training`` draws partner view and cells from
    PyTorch's generator; else they are the next present view and fixed corners.
    """
    B, V, _, H, W, _ = x_BVTHWC.shape
    device = x_BVTHWC.device
    partner_BV = choose_partners(mask_BV, training=training)
    cells_BVS = choose_cells(mask_BV, training=training)
    thumbs_BVShwTC = thumbnails(x_BVTHWC, partner_BV).permute(0, 1, 3, 4, 5, 2, 6)
    # Cells start at multiples of H / 3, rounded down: at H = 224 they are 74 high and start at 0, 74, 149.
    rows_BVSh = (cells_BVS // 3 * H // 3).unsqueeze(-1) + torch.arange(H // 3, device=device)
    columns_BVSw = (cells_BVS % 3 * W // 3).unsqueeze(-1) + torch.arange(W // 3, device=device)
    batch = torch.arange(B, device=device).view(B, 1, 1, 1, 1)
    view = torch.arange(V, device=device).view(1, V, 1, 1, 1)
    out_BVHWTC = x_BVTHWC.permute(0, 1, 3, 4, 2, 5).clone()
    out_BVHWTC[batch, view, rows_BVSh.unsqueeze(-1), columns_BVSw.unsqueeze(-2)] = thumbs_BVShwTC
    return out_BVHWTC.permute(0, 1, 4, 2, 3, 5)


def choose_partners(mask_BV: Tensor, *, training: bool) -> Tensor:
    """Return the index of each view's partner: another present view, or the view itself if it is alone. (B, V)."""
    n_views = mask_BV.shape[1]
    views_V = torch.arange(n_views, device=mask_BV.device)
    if training:
        score_BVV = torch.rand(*mask_BV.shape, n_views, device=mask_BV.device)
    else:
        distance_VV = (views_V[None, :] - views_V[:, None]) % n_views  # 1 is the next view, cyclically
        score_BVV = (n_views - distance_VV).expand(mask_BV.shape[0], -1, -1).float()
    itself_VV = torch.eye(n_views, dtype=torch.bool, device=mask_BV.device)
    # Scores are above -1, so a view is its own partner only if no other is present.
    score_BVV = torch.where(mask_BV[:, None, :], score_BVV, -2.0)
    return torch.where(itself_VV, -1.0, score_BVV).argmax(-1)


def choose_cells(mask_BV: Tensor, *, training: bool) -> Tensor:
    """Return three different cells, 0 to 8, the same in all frames of a clip, because a change would be motion: (B, V, 3)."""
    if training:
        return torch.rand(*mask_BV.shape, CELLS, device=mask_BV.device).argsort(-1)[..., : len(FIXED_CELLS)]
    return torch.tensor(FIXED_CELLS, device=mask_BV.device).expand(*mask_BV.shape, -1)


def thumbnails(x_BVTHWC: Tensor, partner_BV: Tensor) -> Tensor:
    """Shrink frames n-2, n-1, n of each partner by area: (B, V, T, 3, h, w, C). Frames before the first are the first."""
    B, V, T, H, W, C = x_BVTHWC.shape
    flat_NCHW = x_BVTHWC.reshape(B * V * T, H, W, C).permute(0, 3, 1, 2)
    small_NChw = F.adaptive_avg_pool2d(flat_NCHW, (H // 3, W // 3))
    small_BVThwC = small_NChw.permute(0, 2, 3, 1).reshape(B, V, T, H // 3, W // 3, C)
    partner_BVThwC = small_BVThwC[torch.arange(B, device=x_BVTHWC.device)[:, None], partner_BV]
    time_T = torch.arange(T, device=x_BVTHWC.device)
    return partner_BVThwC[:, :, torch.stack([(time_T - ago).clamp(min=0) for ago in (2, 1, 0)], dim=-1)]
