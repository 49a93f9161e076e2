"""The gallery: right, wrong and most uncertain performances as filmstrips of every view."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dtsf.report.strips import choose_frames, draw_snapshots, film_strip

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dtsf.cache.reader import CachedDataset
    from dtsf.cache.schema import Clip
    from dtsf.report.run_data import RunFacts
    from dtsf.training.evaluate import GroupPrediction


@dataclass(frozen=True)
class Strip:
    """One view of one performance."""

    view: str
    border: int
    """Number of its colour."""
    weight: float | None
    picture: str
    """A data URI."""
    note: str = ""


@dataclass(frozen=True)
class Sample:
    """One performance as the page shows it."""

    group: str
    label: str
    predicted: str
    right: bool
    probability: float
    uncertainty: float
    strips: tuple[Strip, ...]


def choose_samples(predictions: Sequence[GroupPrediction], each: int) -> dict[str, list[GroupPrediction]]:
    """The wrong ones that it was surest of, the most uncertain, and right ones of as many classes as fit."""
    wrong = sorted((p for p in predictions if p.label != p.predicted), key=lambda p: (-p.probability, p.group))
    right = sorted((p for p in predictions if p.label == p.predicted), key=lambda p: (-p.probability, p.group))
    nth: dict[int, int] = {}
    turn: dict[str, int] = {}
    for p in right:
        turn[p.group] = nth[p.label] = nth.get(p.label, -1) + 1
    return {
        "wrong": wrong[:each],
        "uncertain": sorted(predictions, key=lambda p: (-p.uncertainty, p.group))[:each],
        # Round by round over the classes: the surest twelve would often be twelve of one class.
        "right": sorted(right, key=lambda p: (turn[p.group], -p.probability))[:each],
    }


def show_sample(facts: RunFacts, data: CachedDataset, clips: Sequence[Clip], p: GroupPrediction) -> Sample:
    """Draw one performance with its snapshots, in the frames that the network reads. ``clips``: those of the performance that
    the network was given.
    """
    model, names = facts.checkpoint.state.recipe.model, facts.class_names
    clips = sorted(clips, key=lambda clip: clip.view)
    ids = [clip.id for clip in clips]
    frames_VT = choose_frames(data.embeddings(ids), model.frames, model.motion_sampling)
    pictures_VTHWC = np.take_along_axis(data.pictures(ids), frames_VT[:, :, None, None, None], 1)
    if any(branch.paste == "thumbnails" for branch in model.branch):
        pictures_VTHWC = draw_snapshots(pictures_VTHWC, [clip.view for clip in clips])
    strips = tuple(
        Strip(
            data.info.view_names[clip.view - 1],
            clip.view - 1,
            p.view_weights[clip.view - 1],
            film_strip(pictures_THWC),
            # An absent view has no strip: see ModelConfig.covered.
            "" if p.view_weights[clip.view - 1] else "taken as covered",
        )
        for clip, pictures_THWC in zip(clips, pictures_VTHWC, strict=True)
    )
    return Sample(
        p.group, names[p.label], names[p.predicted], p.label == p.predicted, p.probability, p.uncertainty, strips
    )


def plain_strips(data: CachedDataset, clips: Sequence[Clip]) -> tuple[Strip, ...]:
    """Filmstrips of the cached pictures as they are."""
    ids = [clip.id for clip in clips]
    made = zip(clips, data.pictures(ids), data.frame_index(ids), strict=True)
    return tuple(
        Strip(
            data.info.view_names[clip.view - 1],
            clip.view - 1,
            None,
            film_strip(pictures_THWC),
            f"frames {index_T[0]} to {index_T[-1]} of {data.records[clip.id][1].decoded_frames}"
            + ("" if (status := data.records[clip.id][1].status.value) == "ok" else f", {status}"),
        )
        for clip, pictures_THWC, index_T in made
    )
