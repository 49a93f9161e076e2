"""Which frames of a clip are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from dtsf.pipeline.video.clip import Span
    from dtsf.pipeline.video.index import VideoIndex


def segment_centres(n_frames: int, n_samples: int) -> np.ndarray:
    """Cut ``n_frames`` into ``n_samples`` equal segments and take the centre of each (TSN's rule, without chance).

    ::

        n_frames = 12, n_samples = 4:   .x..x..x..x.   ->   1 4 7 10

    A clip shorter than ``n_samples`` gives every frame in order and then repeats the last one: what is seen is the
    whole clip, and its end lasts. Training may still draw fewer frames than were kept.

    ``n_frames``: frames the clip has, at least 1. ``n_samples``: frames to keep, at least 1. Returns (n_samples,) int64, not
    decreasing, within [0, n_frames). Raises ValueError: either number is below 1.
    """
    if n_frames < 1 or n_samples < 1:
        raise ValueError(f"n_frames ({n_frames}) and n_samples ({n_samples}) must be at least 1")
    if n_frames < n_samples:
        return np.minimum(np.arange(n_samples), n_frames - 1)
    # Whole numbers throughout: (i + 1/2) * n / F in floating point can land on the wrong side of a frame.
    return (2 * np.arange(n_samples) + 1) * n_frames // (2 * n_samples)


def pick_frames(index: VideoIndex, n_samples: int, span: Span) -> tuple[np.ndarray, int]:
    """The frames shown at the centres of ``n_samples`` equal shares of a clip's time.

    At a steady rate that is :func:`segment_centres`, in whole numbers, however coarse the file's clock.

    ``index``: of a file with at least one frame. Returns ranks of the frames, (F,) int64, not decreasing; and how many frames
    the clip has.
    """
    moments = span.moments(n_samples, index.duration)
    if span.common:
        return frames_at(index, moments), n_samples
    if span.first is not None or span.last is not None:
        first = min(span.first or 0, index.n_frames - 1)
        behind = index.n_frames if span.last is None else min(span.last + 1, index.n_frames)
    else:
        first, behind = frames_between(index, span.start, span.end)
    if behind - first < n_samples or (index.is_steady and span.start is None and span.end is None):
        return first + segment_centres(behind - first, n_samples), behind - first
    if span.first is not None or span.last is not None:
        begin, stop = (index.end_tick if k == index.n_frames else index.ticks[k] for k in (first, behind))
        moments = (begin + (np.arange(n_samples) + 0.5) * (stop - begin) / n_samples) * float(index.tick)
    return np.clip(frames_at(index, moments), first, behind - 1), behind - first


def frames_between(index: VideoIndex, start: float | None, end: float | None) -> tuple[int, int]:
    """Ranks of the first frame whose time lies in [start, end) and of the one behind the last; at least the frame shown then."""
    begin = 0 if start is None else int(_place(index, start, "left"))
    behind = index.n_frames if end is None else int(_place(index, end, "left"))
    if begin < behind:
        return begin, behind
    shown = int(frames_at(index, 0.0 if start is None else start))
    return shown, shown + 1


def frames_at(index: VideoIndex, seconds: np.ndarray | float) -> np.ndarray:
    """Ranks of the frames that are shown at these moments; before the first the first, behind the last the last."""
    return np.asarray(np.clip(_place(index, seconds, "right") - 1, 0, index.n_frames - 1))


def _place(index: VideoIndex, seconds: np.ndarray | float, side: Literal["left", "right"]) -> np.ndarray:
    """Where moments belong among the times of frames, forgiving what the clock rounds."""
    ticks = np.asarray(seconds, np.float64) / float(index.tick)
    if index.is_steady and index.n_frames > 1:
        # As frames were timed before the clock rounded it.
        place: np.ndarray = ticks / index.step
        place = np.ceil(place - 1e-6) if side == "left" else np.floor(place + 1e-6) + 1
        return np.asarray(np.clip(place, 0, index.n_frames), np.int64)
    slack = 0.5 if index.gap > 8 else 1e-6 * index.gap
    return np.asarray(np.searchsorted(index.ticks, ticks - slack if side == "left" else ticks + slack, side))
