"""Frame sampling: frames at equal distances in time, or at equal shares of the motion of the clip.

Frames at equal shares of motion align clips in which people start late, pause, or move at other speeds. A share of time can stay,
because some actions differ in tempo. This is ours, not the paper's; measured in docs/results/network.md.

Letters: N clips, M clips read, F cached frames, S steps between them, T frames of the network, H W grid, C channels, R all
cached frames, Y frames read, X numbers of a frame, P a part.
"""

from __future__ import annotations

import torch
from torch import Tensor

STILL = 0.7  # share of the smallest step of a clip that counts as noise of the camera, not as motion
CHUNK = 250_000  # numbers in a chunk, 1 MB: temporary results stay in the cache of the CPU, which is 4 times faster


def uniform_times(n_frames: int, position: float = 0.5) -> Tensor:
    """Return the same ``position`` (0 to 1) in each of ``n_frames`` equal parts of the clip: (T,), in (0, 1)."""
    return (torch.arange(n_frames) + position) / n_frames


def motion_steps(x_NFHWC: Tensor) -> Tensor:
    """Return the distance of the embeddings of each cached frame from the frame before it: (N, F - 1), float32."""
    parts = []
    for x_PFHWC in x_NFHWC.split(max(1, CHUNK // x_NFHWC.shape[1:].numel())):
        x_PFX = x_PFHWC.flatten(2).float()
        parts.append((x_PFX[:, 1:] - x_PFX[:, :-1]).norm(dim=-1))
    return torch.cat(parts)


def cumulative_motion(step_NS: Tensor, motion_sampling: float) -> Tensor:
    """Return the share of each clip that has passed at each cached frame: (N, F), float32, from 0 to 1.

    ``motion_sampling``: share of motion, from 0 (time alone) to 1 (motion alone). A clip without motion runs by time.
    """
    step_NS = step_NS - STILL * step_NS.amin(1, keepdim=True)
    mean_N1 = step_NS.mean(1, keepdim=True)
    motion_NS = torch.where(mean_N1 > 0, step_NS / mean_N1.clamp(min=torch.finfo(torch.float32).tiny), 1.0)
    passed_NS = (motion_sampling * motion_NS + (1.0 - motion_sampling)).cumsum(1)
    clock_NS = passed_NS / passed_NS[:, -1:]
    return torch.cat([torch.zeros_like(clock_NS[:, :1]), clock_NS], 1)


def read_frames(
    x_NFHWC: Tensor, row_M: Tensor, time_MT: Tensor, motion_sampling: float, step_NS: Tensor | None = None
) -> Tensor:
    """Read the clips of rows at given times, in [0, 1]. Return (M, T, H, W, C), float32.

    At ``motion_sampling`` 0, the result is the cached frame of the segment that contains the time. Above 0, it is interpolated
    between the two cached frames around the time. ``step_NS``: :func:`motion_steps` of all clips; computed by default.
    """
    F = x_NFHWC.shape[1]
    # Frames as rows: a copy of whole rows is ten times faster than indexing by two axes.
    frame_RX = x_NFHWC.flatten(2).flatten(0, 1)
    first_M1 = row_M.unsqueeze(1) * F
    if motion_sampling == 0 or F == 1:
        nearest_MT = first_M1 + (time_MT * F).long().clamp(0, F - 1)
        out_YX = frame_RX.index_select(0, nearest_MT.flatten()).float()
        return out_YX.view(*time_MT.shape, *x_NFHWC.shape[2:])
    step_MS = motion_steps(x_NFHWC[row_M]) if step_NS is None else step_NS[row_M]
    clock_MF = cumulative_motion(step_MS, motion_sampling)
    after_MT = torch.searchsorted(clock_MF, time_MT.contiguous()).clamp(1, F - 1)
    begin_MT, end_MT = clock_MF.gather(1, after_MT - 1), clock_MF.gather(1, after_MT)
    share_MT = ((time_MT - begin_MT) / (end_MT - begin_MT).clamp(min=1e-9)).clamp(0, 1)
    after_Y, share_Y1 = (first_M1 + after_MT).flatten(), share_MT.flatten().unsqueeze(1)
    out_YX = torch.empty(len(after_Y), frame_RX.shape[1], device=frame_RX.device)
    size = max(1, CHUNK // frame_RX.shape[1])
    for after_P, share_P1, out_PX in zip(after_Y.split(size), share_Y1.split(size), out_YX.split(size), strict=True):
        out_PX.copy_(frame_RX.index_select(0, after_P - 1)).mul_(1 - share_P1)
        out_PX.add_(frame_RX.index_select(0, after_P).float().mul_(share_P1))
    return out_YX.view(*time_MT.shape, *x_NFHWC.shape[2:])
