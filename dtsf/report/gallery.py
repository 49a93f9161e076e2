"""Film strips of performances, with the thumbnails (TSM) drawn where the network pastes them.
Letters: N clips, V views, F cached frames, T frames of the network, H W pixels, P cells, C channels, S pasted cells.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dtsf.cache.reader import CachedDataset
from dtsf.cache.schema import Clip
from dtsf.model.config import ModelConfig
from dtsf.training.metrics import GroupPrediction

VIEW_COLOURS = ((255, 196, 0), (0, 200, 255), (255, 90, 200), (120, 230, 80), (255, 130, 60), (170, 150, 255))
"""Colour of each view, also for the border of its thumbnails."""


class Strip(NamedTuple):
    """Film strip of one view. ``colour``: index into :data:`VIEW_COLOURS`. ``picture``: a data URI."""

    view: str
    colour: int
    weight: float | None
    picture: str
    note: str


def choose_samples(predictions: Sequence[GroupPrediction], each: int) -> dict[str, list[GroupPrediction]]:
    """Choose ``each`` performances of three kinds: wrong with high probability, most uncertain, right of many classes."""
    ordered = sorted(predictions, key=lambda p: (-p.probability, p.group))
    right: dict[int, list[GroupPrediction]] = {}
    for p in ordered:
        if p.label == p.predicted:
            right.setdefault(p.label, []).append(p)
    # The best of each class first, because the best of all are often of one class.
    ranked = [(rank, p) for of_class in right.values() for rank, p in enumerate(of_class)]
    return {
        "wrong": [p for p in ordered if p.label != p.predicted][:each],
        "uncertain": sorted(predictions, key=lambda p: (-p.uncertainty, p.group))[:each],
        "right": [p for _, p in sorted(ranked, key=lambda item: (item[0], -item[1].probability, item[1].group))][:each],
    }


def network_strips(
    data: CachedDataset, model: ModelConfig, clips: Sequence[Clip], view_weights: Sequence[float]
) -> list[Strip]:
    """Draw the frames that the network reads of one performance. ``clips``: the clips that the network was given."""
    clips = sorted(clips, key=lambda clip: clip.view)
    ids, views = [clip.id for clip in clips], [clip.view for clip in clips]
    frames_VT = choose_frames(data.embeddings(ids), model.frames, model.motion_sampling)
    pictures_VTHWC = np.take_along_axis(data.pictures(ids), frames_VT[:, :, None, None, None], 1)
    if any(branch.paste == "thumbnails" for branch in model.branch):
        pictures_VTHWC = draw_thumbnails(pictures_VTHWC, views)
    strips = []
    for view, pictures_THWC in zip(views, pictures_VTHWC, strict=True):
        weight = view_weights[view - 1]
        note = "" if weight else "excluded as occluded"
        strips.append(Strip(data.info.view_names[view - 1], view - 1, weight, film_strip(pictures_THWC), note))
    return strips


def plain_strips(data: CachedDataset, clips: Sequence[Clip]) -> list[Strip]:
    """Draw the cached pictures of clips."""
    ids = [clip.id for clip in clips]
    strips = []
    for clip, pictures_FHWC, index_F in zip(clips, data.pictures(ids), data.frame_index(ids), strict=True):
        record = data.records[clip.id][1]
        note = f"frames {index_F[0]} to {index_F[-1]} of {record.decoded_frames}"
        note += "" if record.status.value == "ok" else f", {record.status.value}"
        view = clip.view - 1
        strips.append(Strip(data.info.view_names[view], view, None, film_strip(pictures_FHWC), note))
    return strips


def choose_frames(embeddings_NFPC: np.ndarray, n_frames: int, motion_sampling: float) -> np.ndarray:
    """Return the cached frames nearest to the frames that the network reads at evaluation, as (N, T) indices."""
    import torch

    from dtsf.training.frame_sampling import cumulative_motion, motion_steps, uniform_times

    N, F = embeddings_NFPC.shape[:2]
    time_T = uniform_times(n_frames)
    if motion_sampling == 0 or F == 1:
        return np.asarray((time_T * F).long().clamp(0, F - 1).expand(N, -1))
    motion_NF = cumulative_motion(motion_steps(torch.from_numpy(embeddings_NFPC)), motion_sampling)
    return np.asarray((motion_NF[:, None, :] - time_T[None, :, None]).abs().argmin(-1))


def draw_thumbnails(pictures_VTHWC: np.ndarray, views: Sequence[int]) -> np.ndarray:
    """Paste the thumbnails of evaluation into uint8 pictures of the present views, each with a border in its view's colour."""
    import torch

    from dtsf.model.tsm import CELLS, choose_cells, choose_partners, paste_thumbnails

    V, _, H, W, _ = pictures_VTHWC.shape
    mask_BV = torch.ones(1, V, dtype=torch.bool)
    pasted_BVTHWC = paste_thumbnails(torch.from_numpy(pictures_VTHWC).float().unsqueeze(0), mask_BV, training=False)
    out: np.ndarray = pasted_BVTHWC[0].round().clamp(0, 255).to(torch.uint8).numpy()
    partner_V = choose_partners(mask_BV, training=False)[0].tolist()
    side = round(CELLS**0.5)
    for v, cells_S in enumerate(choose_cells(mask_BV, training=False)[0].tolist()):
        colour = VIEW_COLOURS[(views[partner_V[v]] - 1) % len(VIEW_COLOURS)]
        for cell in cells_S:
            top, left = cell // side * H // side, cell % side * W // side
            bottom, right = top + H // side - 1, left + W // side - 1
            out[v, :, [top, bottom], left : right + 1] = colour
            out[v, :, top : bottom + 1, [left, right]] = colour
    return out


def film_strip(pictures_THWC: np.ndarray, n_shown: int = 8, gap: int = 2) -> str:
    """Put frames of one clip side by side. Returns a JPEG as a data URI."""
    from PIL import Image

    T, H, W, _ = pictures_THWC.shape
    shown = np.unique(np.linspace(0, T - 1, min(n_shown, T)).round().astype(int))
    strip_HWC = np.full((H, len(shown) * (W + gap) - gap, 3), 128, np.uint8)
    for k, t in enumerate(shown):
        strip_HWC[:, k * (W + gap) : k * (W + gap) + W] = pictures_THWC[t]
    buffer = io.BytesIO()
    # Full colour resolution: half of it would blur the one-pixel borders of thumbnails.
    options: dict[str, Any] = {"quality": 85, "subsampling": 0}
    Image.fromarray(strip_HWC).save(buffer, "JPEG", **options)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
