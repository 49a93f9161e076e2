"""Which moments of a clip the network sees: by the clock, or by how much happens.

People start late, pause, and move at their own speed; frames at equal distances in time then show one person's action
in four frames and another's in ten. Frames at equal shares of the clip's *motion* line performances up. A share of
plain time stays in, because tempo tells some actions apart. Ours, not the paper's; measured in docs/results.md.

Letters: N clips, M clips read, F cached frames, T frames of the network, H W grid, C channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["evenly_spaced", "motion_clock", "read_frames"]

STILL = 0.7
"""Share of the clip's smallest step that counts as noise of camera and encoder, not as motion."""


def evenly_spaced(n_frames: int, place: float = 0.5) -> Tensor:
    """Evaluation's moments: the same ``place`` (0 to 1, the centre) of ``n_frames`` equal shares of the clip. (T,), in (0, 1)."""
    return (torch.arange(n_frames) + place) / n_frames


def motion_clock(x_NFHWC: Tensor, pace: float) -> Tensor:
    """How much of each clip has passed at each cached frame.

    Args:
        x_NFHWC: Embeddings of all cached frames.
        pace: Share of motion in the clock, from 0 (time alone) to 1 (motion alone). Motion is the distance between
            the embeddings of neighbouring frames.

    Returns:
        (N, F), float32, rising from 0 at the first cached frame to 1 at the last. A clip in which nothing moves
        runs by time.

    """
    x_NFX = x_NFHWC.flatten(2).float()
    step_NS = (x_NFX[:, 1:] - x_NFX[:, :-1]).norm(dim=-1)
    step_NS = step_NS - STILL * step_NS.amin(1, keepdim=True)
    mean_N1 = step_NS.mean(1, keepdim=True)
    motion_NS = torch.where(mean_N1 > 0, step_NS / mean_N1.clamp(min=torch.finfo(torch.float32).tiny), 1.0)
    passed_NS = (pace * motion_NS + (1.0 - pace)).cumsum(1)
    clock_NS = passed_NS / passed_NS[:, -1:]
    return torch.cat([torch.zeros_like(clock_NS[:, :1]), clock_NS], 1)


def read_frames(x_NFHWC: Tensor, row_M: Tensor, moment_MT: Tensor, pace: float) -> Tensor:
    """Read clips at given moments.

    Args:
        x_NFHWC: Embeddings of all cached frames of all clips, any float type.
        row_M: Which clips; a clip may be read more than once.
        moment_MT: In [0, 1], for each clip read.
        pace: See :func:`motion_clock`. At 0 a moment takes the cached frame whose segment holds it, unchanged; above
            0 it is interpolated between the two cached frames around it.

    Returns:
        (M, T, H, W, C), float32.

    """
    F = x_NFHWC.shape[1]
    if pace == 0 or F == 1:
        # One gather of just the frames that are wanted: this is the loader's hot path.
        return x_NFHWC[row_M.unsqueeze(1), (moment_MT * F).long().clamp(0, F - 1)].float()
    x_MFHWC = x_NFHWC[row_M]
    row_M1 = torch.arange(len(row_M)).unsqueeze(1)
    clock_MF = motion_clock(x_MFHWC, pace)
    after_MT = torch.searchsorted(clock_MF, moment_MT.contiguous()).clamp(1, F - 1)
    begin_MT, end_MT = clock_MF.gather(1, after_MT - 1), clock_MF.gather(1, after_MT)
    share_MT = ((moment_MT - begin_MT) / (end_MT - begin_MT).clamp(min=1e-9)).clamp(0, 1)
    share_MT111 = share_MT[..., None, None, None]
    before_MTHWC, after_MTHWC = x_MFHWC[row_M1, after_MT - 1].float(), x_MFHWC[row_M1, after_MT].float()
    return before_MTHWC * (1 - share_MT111) + after_MTHWC * share_MT111
