"""Filmstrips of cached pictures, with the snapshots drawn in where the network pastes them."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

BORDERS = ((255, 196, 0), (0, 200, 255), (255, 90, 200), (120, 230, 80), (255, 130, 60), (170, 150, 255))
"""Colour of a view, by its number less 1: a pasted thumbnail wears that of the view it comes from."""


def choose_frames(embeddings_NFPC: np.ndarray, n_frames: int, motion_sampling: float) -> np.ndarray:
    """Cached frames that the network reads at evaluation, as (N, T) indices; the nearer one where it reads between two."""
    import torch

    from dtsf.training.frame_sampling import cumulative_motion, uniform_times

    N, F = embeddings_NFPC.shape[:2]
    time_T = uniform_times(n_frames)
    if motion_sampling == 0 or F == 1:
        return np.asarray((time_T * F).long().clamp(0, F - 1).expand(N, -1))
    clock_NF = cumulative_motion(torch.from_numpy(embeddings_NFPC), motion_sampling)
    return np.asarray((clock_NF[:, None, :] - time_T[None, :, None]).abs().argmin(-1))


def draw_snapshots(pictures_VTHWC: np.ndarray, views: Sequence[int]) -> np.ndarray:
    """Paste the thumbnails into the pictures as evaluation pastes them into embeddings, each with a coloured border.
    ``pictures_VTHWC``: uint8 RGB pictures of the present views of one performance.
    """
    import torch

    from dtsf.model.tsm import CELLS, choose_cells, choose_partners, paste_thumbnails

    V, _, H, W, _ = pictures_VTHWC.shape
    mask_BV = torch.ones(1, V, dtype=torch.bool)
    pasted_BVTHWC = paste_thumbnails(torch.from_numpy(pictures_VTHWC).float().unsqueeze(0), mask_BV, training=False)
    out: np.ndarray = pasted_BVTHWC[0].round().clamp(0, 255).to(torch.uint8).numpy()
    partner_V = choose_partners(mask_BV, training=False)[0].tolist()
    side = round(CELLS**0.5)
    for v, cells_S in enumerate(choose_cells(mask_BV, training=False)[0].tolist()):
        colour = BORDERS[(views[partner_V[v]] - 1) % len(BORDERS)]
        for cell in cells_S:
            top, left = cell // side * H // side, cell % side * W // side
            bottom, right = top + H // side - 1, left + W // side - 1
            out[v, :, [top, bottom], left : right + 1] = colour
            out[v, :, top : bottom + 1, [left, right]] = colour
    return out


def film_strip(pictures_THWC: np.ndarray, n_shown: int = 8, gap: int = 2) -> str:
    """Put frames of one clip side by side; returns a data URI."""
    T, H, W, _ = pictures_THWC.shape
    shown = np.unique(np.linspace(0, T - 1, min(n_shown, T)).round().astype(int))
    strip = np.full((H, len(shown) * (W + gap) - gap, 3), 128, np.uint8)
    for k, t in enumerate(shown):
        strip[:, k * (W + gap) : k * (W + gap) + W] = pictures_THWC[t]
    return data_uri(strip)


def data_uri(picture_HWC: np.ndarray) -> str:
    """One picture as a JPEG inside a URL."""
    from PIL import Image

    buffer = io.BytesIO()
    # Full colour resolution: halved, it would smear the thumbnails' one-pixel borders.
    options: dict[str, Any] = {"quality": 85, "subsampling": 0}
    Image.fromarray(picture_HWC).save(buffer, "JPEG", **options)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
