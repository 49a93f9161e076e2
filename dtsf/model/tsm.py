"""TSM, the Temporal Snapshots Module: what moves, seen by the other cameras, pasted into every frame.

DTSFNet's figure, upper left: frames n-2, n-1 and n of another view are shrunk to H/3 x W/3 and pasted at random
places into frame n of this view. It works on whatever canvas the stem gets: pixels, or the grid of embeddings.
Letters: B groups, V views, T frames, H W canvas, C channels, h w thumbnail.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

Content = Literal["frame", "dynamic"]

PART = 250_000
"""Numbers handled at a time where temporary results are as large as the canvas: 1 MB in float32."""
ROUNDING = 1e-5
"""Share of a canvas below which its changes are those of float32 (6e-8), not of float16 embeddings (5e-4), that is: none."""
CELLS = 9
PASTED = 3
# Corners hide the least of an actor who stands in the middle of the frame.
FIXED_CELLS = (0, 2, 6)


def split_static_dynamic(x_BVTHWC: Tensor) -> tuple[Tensor, Tensor]:
    """Split clips, with any leading axes, into what stands still and what moves. Returns static: the temporal mean of every
    place of the canvas, T reduced to 1; dynamic: the frames minus it.
    """
    static_BV1HWC = x_BVTHWC.mean(-4, keepdim=True)
    return static_BV1HWC, x_BVTHWC - static_BV1HWC


def motion_share(x_BVTHWC: Tensor, mask_BV: Tensor, scale_C: Tensor) -> Tensor:
    """How much each view sees move, over what the group's liveliest view sees: (B, V); 0 for absent views, 1 where nothing
    moves.

    The mean distance of a view's frames from their temporal mean. A camera whose sight is blocked has noise alone to
    show, and so a small share; one that looks from farther away has a smaller one too, always the same.

    ``x_BVTHWC``: canvases; absent views may hold anything finite. ``scale_C``: each channel is multiplied by this first.
    """
    scaled_BVTHWC = x_BVTHWC.float() * scale_C
    level_BV = split_static_dynamic(scaled_BVTHWC)[1].norm(dim=-1).mean((-3, -2, -1))
    size_BV = scaled_BVTHWC.norm(dim=-1).mean((-3, -2, -1))
    level_BV = torch.where(mask_BV & (level_BV > ROUNDING * size_BV), level_BV, 0.0)
    most_B1 = level_BV.amax(1, keepdim=True)
    share_BV: Tensor = torch.where(most_B1 > 0, level_BV / most_B1.clamp(min=torch.finfo(torch.float32).tiny), 1.0)
    return torch.where(mask_BV, share_BV, 0.0)


def motion_energy(
    x_BVTHWC: Tensor, scale_C: Tensor | None = None, change: Sequence[int] = (), power: float = 1.0
) -> Tensor:
    """How far each place of each frame is from its temporal mean, over the mean of that in the clip; any leading axes.

    Where something moves and when, but neither what it looks like nor what stands behind it: the direction of the
    difference, which room and clothes decide, is left out, and so is its size in the clip, which contrast decides.

    Returns the same shape with E channels, one and those of ``change``: 1 in the mean of a clip; 0 where nothing moves at all.

    Args:
        scale_C: Each channel is multiplied by this first; by nothing if left out.
        change: For each of these numbers a further channel: how far each place is from itself so many frames before (of the
            first frames, from the first), likewise over its mean in the clip. The mean tells where someone is who is
            elsewhere most of the time, the change who is moving now.
        power: What each distance is raised to before its mean is taken. Above 1, small motions count for less.
    """

    def distances(x_PTHWC: Tensor) -> Tensor:
        scaled_PTHWC = x_PTHWC if scale_C is None else x_PTHWC * scale_C
        parts = [split_static_dynamic(scaled_PTHWC)[1].norm(dim=-1)]
        parts += [(scaled_PTHWC - shift_in_time(scaled_PTHWC, frames)).norm(dim=-1) for frames in change]
        distance_PTHWE = torch.stack(parts, -1)
        return distance_PTHWE if power == 1 else distance_PTHWE.pow(power)

    distance_BVTHWE = in_chunks(distances, x_BVTHWC)
    mean_BV111E = distance_BVTHWE.mean((-4, -3, -2), keepdim=True)
    energy_BVTHWE: Tensor = distance_BVTHWE / mean_BV111E.clamp(min=torch.finfo(x_BVTHWC.dtype).tiny)
    return energy_BVTHWE


def shift_in_time(x_PTHWC: Tensor, frames: int) -> Tensor:
    """What stood so many frames before each frame, any leading axes; before the first it is the first. Same shape."""
    time_T = torch.arange(x_PTHWC.shape[-4], device=x_PTHWC.device)
    return x_PTHWC.index_select(-4, time_T.sub(frames).clamp(min=0))


def in_chunks(measure: Callable[[Tensor], Tensor], x_BVTHWC: Tensor) -> Tensor:
    """Measure clips, any leading axes, each by itself; a few at a time on a CPU, so that they stay in its cache."""
    if x_BVTHWC.ndim == 4 or x_BVTHWC.device.type != "cpu" or torch.compiler.is_compiling():
        return measure(x_BVTHWC)
    size = max(1, PART // max(1, x_BVTHWC.shape[-4:].numel()))
    measured_PTHWE = torch.cat([measure(x_PTHWC) for x_PTHWC in x_BVTHWC.flatten(0, -5).split(size)])
    return measured_PTHWE.view(*x_BVTHWC.shape[:-1], -1)


def snapshots(
    x_BVTHWC: Tensor,
    mask_BV: Tensor,
    *,
    training: bool,
    anchor: Content = "dynamic",
    pasted: Content | Literal["none"] = "dynamic",
    places: Literal["random", "corners"] = "random",
) -> Tensor:
    """Paste three thumbnails of a partner view into every frame of every view. Returns canvases of the same shape. With one
    view present the partner is the view itself.

    Args:
        x_BVTHWC: Canvases; H and W at least 3. Values of absent views are never read.
        training: Partner and places at random (PyTorch's generator); else the next present view and fixed corners, so that
            results repeat.
        anchor: What the frame itself shows: ``frame`` as it is (the paper's figure), or ``dynamic``, the frame minus the
            clip's temporal mean: choose it for frozen embeddings, where plain frames make a model learn the room (measured:
            docs/results/network.md).
        pasted: What the thumbnails show, or ``none`` to paste nothing.
        places: Where training pastes; evaluation always takes the fixed corners. ``random``, as the figure says, hides the
            actor at times; ``corners`` never does: choose it where actors stand in the middle of the picture.
    """
    dynamic_BVTHWC = split_static_dynamic(x_BVTHWC)[1] if "dynamic" in (anchor, pasted) else x_BVTHWC
    canvas_BVTHWC = dynamic_BVTHWC if anchor == "dynamic" else x_BVTHWC
    if pasted == "none":
        return canvas_BVTHWC
    source_BVTHWC = dynamic_BVTHWC if pasted == "dynamic" else x_BVTHWC
    return paste_thumbnails(canvas_BVTHWC, source_BVTHWC, mask_BV, training=training, places=places)


def paste_thumbnails(
    canvas_BVTHWC: Tensor,
    source_BVTHWC: Tensor,
    mask_BV: Tensor,
    *,
    training: bool,
    places: Literal["random", "corners"] = "random",
) -> Tensor:
    """Paste three thumbnails of what ``source`` shows of a partner view into every frame of ``canvas``. Same shape."""
    partner_BV = choose_partners(mask_BV, training=training)
    cells_BVS = choose_cells(mask_BV, training=training and places == "random")
    return _paste(canvas_BVTHWC, thumbnails(source_BVTHWC, partner_BV), cells_BVS)


def choose_partners(mask_BV: Tensor, *, training: bool) -> Tensor:
    """Index of the partner view of every view: (B, V), a present other view where there is one, else itself."""
    n_views = mask_BV.shape[1]
    views_V = torch.arange(n_views, device=mask_BV.device)
    if training:
        score_BVV = torch.rand(*mask_BV.shape, n_views, device=mask_BV.device)
    else:
        distance_VV = (views_V[None, :] - views_V[:, None]) % n_views  # 1 is the next view, cyclically
        score_BVV = (n_views - distance_VV).expand(mask_BV.shape[0], -1, -1).float()
    usable_BVV = mask_BV[:, None, :] & (views_V[None, :] != views_V[:, None])
    # Scores are above -1: the view itself is chosen only when no other is usable.
    score_BVV = torch.where(usable_BVV, score_BVV, torch.full_like(score_BVV, -2.0))
    itself_VV = torch.eye(n_views, dtype=torch.bool, device=mask_BV.device)
    return torch.where(itself_VV, torch.full_like(score_BVV, -1.0), score_BVV).argmax(-1)


def choose_cells(mask_BV: Tensor, *, training: bool) -> Tensor:
    """Places of the three thumbnails among the nine cells: (B, V, 3), all different.

    They stay where they are for the whole clip: places that jump from frame to frame would be motion themselves.
    """
    if training:
        return torch.rand(*mask_BV.shape, CELLS, device=mask_BV.device).argsort(-1)[..., :PASTED]
    fixed_S = torch.tensor(FIXED_CELLS, device=mask_BV.device)
    return fixed_S.expand(*mask_BV.shape, PASTED)


def thumbnails(x_BVTHWC: Tensor, partner_BV: Tensor) -> Tensor:
    """Shrink frames n-2, n-1, n (clamped at the first) of every view's partner by area. Returns (B, V, T, 3, h, w, C) with h =
    H // 3, w = W // 3, the frames in order of time.
    """
    B, V, T, H, W, C = x_BVTHWC.shape
    flat_NCHW = x_BVTHWC.reshape(B * V * T, H, W, C).permute(0, 3, 1, 2)
    small_NChw = F.adaptive_avg_pool2d(flat_NCHW, (H // 3, W // 3))
    small_BVThwC = small_NChw.permute(0, 2, 3, 1).reshape(B, V, T, H // 3, W // 3, C)
    batch_B1 = torch.arange(B, device=x_BVTHWC.device)[:, None]
    partner_BVThwC = small_BVThwC[batch_B1, partner_BV]
    time_T = torch.arange(T, device=x_BVTHWC.device)
    frames_TS = torch.stack([(time_T - 2).clamp(min=0), (time_T - 1).clamp(min=0), time_T], dim=-1)
    return partner_BVThwC[:, :, frames_TS]


def _paste(canvas_BVTHWC: Tensor, thumbs_BVTShwC: Tensor, cells_BVS: Tensor) -> Tensor:
    """Write thumbnail s into cell ``cells_BVS[..., s]`` of the 3 x 3 division of every frame."""
    B, V, _, H, W, _ = canvas_BVTHWC.shape
    h, w = thumbs_BVTShwC.shape[4:6]
    device = canvas_BVTHWC.device
    # Cells start at multiples of H / 3, rounded down: at H = 224 they are 74 high and start at 0, 74, 149.
    rows_BVSh = (cells_BVS // 3 * H // 3).unsqueeze(-1) + torch.arange(h, device=device)
    columns_BVSw = (cells_BVS % 3 * W // 3).unsqueeze(-1) + torch.arange(w, device=device)
    batch = torch.arange(B, device=device).view(B, 1, 1, 1, 1)
    view = torch.arange(V, device=device).view(1, V, 1, 1, 1)
    out_BVHWTC = canvas_BVTHWC.permute(0, 1, 3, 4, 2, 5).clone()
    thumbs_BVShwTC = thumbs_BVTShwC.permute(0, 1, 3, 4, 5, 2, 6)
    out_BVHWTC[batch, view, rows_BVSh.unsqueeze(-1), columns_BVSw.unsqueeze(-2)] = thumbs_BVShwTC
    return out_BVHWTC.permute(0, 1, 4, 2, 3, 5)
