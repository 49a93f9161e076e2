"""Which frames of a clip are kept."""

from __future__ import annotations

import numpy as np

__all__ = ["segment_centres"]


def segment_centres(n_frames: int, n_samples: int) -> np.ndarray:
    """Cut ``n_frames`` into ``n_samples`` equal segments and take the centre of each (TSN's rule, without chance).

    ::

        n_frames = 12, n_samples = 4:   .x..x..x..x.   ->   1 4 7 10

    A clip shorter than ``n_samples`` gives every frame in order and then repeats the last one: what is seen is the
    whole clip, and its end lasts. Training may still draw fewer frames than were kept.

    Args:
        n_frames: Frames the clip has, at least 1.
        n_samples: Frames to keep, at least 1.

    Returns:
        (n_samples,) int64, not decreasing, within [0, n_frames).

    Raises:
        ValueError: Either number is below 1.

    """
    if n_frames < 1 or n_samples < 1:
        raise ValueError(f"n_frames ({n_frames}) and n_samples ({n_samples}) must be at least 1")
    if n_frames < n_samples:
        return np.minimum(np.arange(n_samples), n_frames - 1)
    # Whole numbers throughout: (i + 1/2) * n / F in floating point can land on the wrong side of a frame.
    return (2 * np.arange(n_samples) + 1) * n_frames // (2 * n_samples)
