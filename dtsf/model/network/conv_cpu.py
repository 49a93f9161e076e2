"""The causal convolution and its SiLU on a CPU in one pass, by numba, with its own backward.

Same maths as :func:`dtsf.model.network.scan.causal_conv`. As separate operators it costs more time than the scan: a
dozen passes over memory forward, two dozen back. How the kernels are fast and threaded: :mod:`.scan_cpu`.

Letters: B batch, D channels, L tokens, K taps, W lanes.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dtsf.model.network.scan import conv_by_shifts, gradients_with_graph
from dtsf.model.network.scan_cpu import n_tasks, run_tasks
from dtsf.model.network.scan_kernels import LANES, ONE, ZERO, compiled, sigmoid

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["conv_on_cpu"]

TAPS = 4
"""Mamba's and VideoMamba's width."""


@compiled()
def _taps(x_BLD: Any, weight_KD: Any, bias_W: Any, b: int, t: int, d: int, last: int, reverse: bool, y_W: Any) -> None:
    """The sum before SiLU at one token, into ``y_W``. Rows are sliced: their indices are known not to be negative."""
    taps, length = weight_KD.shape[0], x_BLD.shape[1]
    if taps == TAPS and (t + TAPS <= length if reverse else t >= TAPS - 1):
        # The usual width, away from the ends: one pass, in which the sum stays in registers.
        s, step = (t + 3, -1) if reverse else (t - 3, 1)
        a_W, b_W = x_BLD[b, s, d:last], x_BLD[b, s + step, d:last]
        c_W, e_W = x_BLD[b, s + 2 * step, d:last], x_BLD[b, t, d:last]
        wa_W, wb_W, wc_W, we_W = weight_KD[0, d:last], weight_KD[1, d:last], weight_KD[2, d:last], weight_KD[3, d:last]
        for w in range(last - d):
            y = bias_W[w] + wa_W[w] * a_W[w]
            y += wb_W[w] * b_W[w]
            y += wc_W[w] * c_W[w]
            y_W[w] = y + we_W[w] * e_W[w]
        return
    for w in range(last - d):
        y_W[w] = bias_W[w]
    for k in range(taps):
        s = t + taps - 1 - k if reverse else t - taps + 1 + k
        if 0 <= s < length:
            weight_W, x_W = weight_KD[k, d:last], x_BLD[b, s, d:last]
            for w in range(last - d):
                y_W[w] += weight_W[w] * x_W[w]


@compiled()
def forward(begin: int, end: int, reverse: bool, x_BLD: Any, weight_KD: Any, bias_D: Any, y_BLD: Any) -> None:
    """Tasks ``begin`` to ``end``: outputs. Tap K - 1 is the token itself, tap 0 the farthest."""
    n_blocks = (x_BLD.shape[2] + LANES - 1) // LANES
    y_W = np.empty(LANES, np.float32)
    for task in range(begin, end):
        b, d = task // n_blocks, task % n_blocks * LANES
        last = min(d + LANES, x_BLD.shape[2])
        bias_W = bias_D[d:last]
        for t in range(x_BLD.shape[1]):
            _taps(x_BLD, weight_KD, bias_W, b, t, d, last, reverse, y_W)
            out_W = y_BLD[b, t, d:last]
            for w in range(last - d):
                out_W[w] = y_W[w] * sigmoid(y_W[w])


@compiled()
def backward(
    begin: int, end: int, reverse: bool, x_BLD: Any, weight_KD: Any, bias_D: Any, gy_BLD: Any,
    gx_BLD: Any, gweight_BKD: Any, gbias_BD: Any,
) -> None:  # fmt: skip
    """Tasks ``begin`` to ``end``: the gradients; those of weight and bias for each sequence by itself."""
    n_blocks = (x_BLD.shape[2] + LANES - 1) // LANES
    length, taps = x_BLD.shape[1], weight_KD.shape[0]
    g_W, gbias_W = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    gweight_KW = np.empty((taps, LANES), np.float32)
    for task in range(begin, end):
        b, d = task // n_blocks, task % n_blocks * LANES
        last = min(d + LANES, x_BLD.shape[2])
        bias_W = bias_D[d:last]
        gweight_KW[:], gbias_W[:] = ZERO, ZERO
        gx_BLD[b, :, d:last] = ZERO
        for t in range(length):
            _taps(x_BLD, weight_KD, bias_W, b, t, d, last, reverse, g_W)
            gy_W = gy_BLD[b, t, d:last]
            for w in range(last - d):
                share = sigmoid(g_W[w])
                g_W[w] = gy_W[w] * share * (ONE + g_W[w] * (ONE - share))
                gbias_W[w] += g_W[w]
            for k in range(taps):
                s = t + taps - 1 - k if reverse else t - taps + 1 + k
                if 0 <= s < length:
                    weight_W, x_W, gx_W = weight_KD[k, d:last], x_BLD[b, s, d:last], gx_BLD[b, s, d:last]
                    for w in range(last - d):
                        gweight_KW[k, w] += g_W[w] * x_W[w]
                        gx_W[w] += g_W[w] * weight_W[w]
        gbias_BD[b, d:last] = gbias_W[: last - d]
        gweight_BKD[b, :, d:last] = gweight_KW[:, : last - d]


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BLD: Tensor, weight_KD: Tensor, bias_D: Tensor, reverse: bool) -> Tensor:
        y_BLD = torch.empty_like(x_BLD)
        ctx.reverse = reverse
        ctx.save_for_backward(x_BLD, weight_KD, bias_D)
        run_tasks(forward, n_tasks(x_BLD), x_BLD.numel(), reverse, x_BLD, weight_KD, bias_D, y_BLD)
        return y_BLD

    @staticmethod
    def backward(ctx: Any, gy_BLD: Tensor) -> tuple[Tensor | None, ...]:
        x_BLD, weight_KD, bias_D = ctx.saved_tensors
        if torch.is_grad_enabled():
            function = partial(conv_by_shifts, reverse=ctx.reverse)
            return (*gradients_with_graph(function, ctx.saved_tensors, gy_BLD), None)
        gx_BLD = torch.empty_like(x_BLD)
        gweight_BKD = x_BLD.new_empty(x_BLD.shape[0], *weight_KD.shape)
        gbias_BD = x_BLD.new_empty(x_BLD.shape[0], x_BLD.shape[2])
        run_tasks(
            backward, n_tasks(x_BLD), 2 * x_BLD.numel(), ctx.reverse, x_BLD, weight_KD, bias_D, gy_BLD.contiguous(),
            gx_BLD, gweight_BKD, gbias_BD,
        )  # fmt: skip
        return gx_BLD, gweight_BKD.sum(0), gbias_BD.sum(0), None


def conv_on_cpu(x_BLD: Tensor, weight_KD: Tensor, bias_D: Tensor, *, reverse: bool) -> Tensor:
    """Convolve; see :func:`dtsf.model.network.scan.causal_conv`. (B, L, D), in the dtype of ``x_BLD``."""
    y_BLD: Tensor = _Conv.apply(  # type: ignore[no-untyped-call]
        x_BLD.float().contiguous(), weight_KD.float().contiguous(), bias_D.float().contiguous(), reverse
    )
    return y_BLD.to(x_BLD.dtype)
