"""The causal convolution and its SiLU on a CPU in one pass, by numba, with its own backward.

Same maths as :func:`dtsf.model.scan.dispatch.causal_conv`. As separate operators it costs more time than the scan: a
dozen passes over memory forward, two dozen back. How the kernels are fast and threaded: :mod:`.scan_cpu`.

Letters: B batch, D channels, L tokens, K taps.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dtsf.model.scan.numba_kernels import ONE, ZERO, compiled, sigmoid
from dtsf.model.scan.numba_scan import n_tasks, run_tasks
from dtsf.model.scan.plain import conv_by_shifts, gradients_with_graph

if TYPE_CHECKING:
    from torch import Tensor

TAPS = 4
"""Mamba's and VideoMamba's width."""
BLOCK = 192
"""Channels of a task; divides VideoMamba's inner widths. More than the scan's LANES: a token costs so little here that
entering the loops over its channels shows."""


@compiled()
def _sums(x_LD: Any, weight_KD: Any, bias_D: Any, t: int, lo: Any, hi: Any, reverse: bool, y_D: Any) -> None:
    """The sums before SiLU at token ``t``, channels ``lo`` to ``hi``, into ``y_D``.

    ``lo`` and ``hi`` are unsigned: an index that might be negative would keep the loops from becoming vector
    instructions. Whole rows and these bounds cost less than a slice of every row.
    """
    length, taps = x_LD.shape[0], weight_KD.shape[0]
    if taps == TAPS and (t + TAPS <= length if reverse else t >= TAPS - 1):
        # The usual width, away from the ends: one pass, in which the sum stays in registers.
        s, step = (t + 3, -1) if reverse else (t - 3, 1)
        a_D, b_D, c_D, e_D = x_LD[s], x_LD[s + step], x_LD[s + 2 * step], x_LD[t]
        wa_D, wb_D, wc_D, we_D = weight_KD[0], weight_KD[1], weight_KD[2], weight_KD[3]
        for d in range(lo, hi):
            y = bias_D[d] + wa_D[d] * a_D[d]
            y += wb_D[d] * b_D[d]
            y += wc_D[d] * c_D[d]
            y_D[d] = y + we_D[d] * e_D[d]
        return
    for d in range(lo, hi):
        y_D[d] = bias_D[d]
    for k in range(taps):
        s = t + taps - 1 - k if reverse else t - taps + 1 + k
        if 0 <= s < length:
            weight_D, x_D = weight_KD[k], x_LD[s]
            for d in range(lo, hi):
                y_D[d] += weight_D[d] * x_D[d]


@compiled()
def forward(begin: int, end: int, reverse: bool, x_BLD: Any, weight_KD: Any, bias_D: Any, y_BLD: Any) -> None:
    """Tasks ``begin`` to ``end``: outputs. Tap K - 1 is the token itself, tap 0 the farthest."""
    width = x_BLD.shape[2]
    n_blocks = (width + BLOCK - 1) // BLOCK
    for task in range(begin, end):
        b, first = task // n_blocks, task % n_blocks * BLOCK
        lo, hi = np.uint64(first), np.uint64(min(first + BLOCK, width))
        x_LD = x_BLD[b]
        for t in range(x_LD.shape[0]):
            y_D = y_BLD[b, t]
            _sums(x_LD, weight_KD, bias_D, t, lo, hi, reverse, y_D)
            for d in range(lo, hi):
                y_D[d] = y_D[d] * sigmoid(y_D[d])


@compiled()
def backward(
    begin: int, end: int, reverse: bool, x_BLD: Any, weight_KD: Any, bias_D: Any, gy_BLD: Any,
    gx_BLD: Any, gweight_BKD: Any, gbias_BD: Any,
) -> None:  # fmt: skip
    """Tasks ``begin`` to ``end``: the gradients; those of weight and bias for each sequence by itself.

    A token is part of K sums, its own and the K - 1 of the tokens that see it: a ring keeps the gradients of the latest
    K sums, so that each token's gradient is written once, when the last of its own has come.
    """
    width, taps = x_BLD.shape[2], weight_KD.shape[0]
    n_blocks = (width + BLOCK - 1) // BLOCK
    g_KD = np.empty((taps, width), np.float32)
    for task in range(begin, end):
        b, first = task // n_blocks, task % n_blocks * BLOCK
        lo, hi = np.uint64(first), np.uint64(min(first + BLOCK, width))
        x_LD, gx_LD, gweight_KD, gbias_D = x_BLD[b], gx_BLD[b], gweight_BKD[b], gbias_BD[b]
        for d in range(lo, hi):
            gbias_D[d] = ZERO
        for k in range(taps):
            g_D, gweight_D = g_KD[k], gweight_KD[k]
            for d in range(lo, hi):
                g_D[d], gweight_D[d] = ZERO, ZERO
        length = x_LD.shape[0]
        # Reversed, the tokens that see t come before it; otherwise the last of them comes K - 1 later, or is past the end.
        delay = 0 if reverse else taps - 1
        for t in range(length + delay):
            g_D = g_KD[t % taps]
            if t < length:
                gy_D = gy_BLD[b, t]
                _sums(x_LD, weight_KD, bias_D, t, lo, hi, reverse, g_D)
                for d in range(lo, hi):
                    share = sigmoid(g_D[d])
                    g_D[d] = gy_D[d] * share * (ONE + g_D[d] * (ONE - share))
                    gbias_D[d] += g_D[d]
            else:
                for d in range(lo, hi):
                    g_D[d] = ZERO
            if t < delay:
                continue
            x_D, gx_D = x_LD[t - delay], gx_LD[t - delay]
            for d in range(lo, hi):
                gx_D[d] = ZERO
            for i in range(taps):  # from the oldest in the ring
                k = i if reverse else taps - 1 - i
                g_D, weight_D, gweight_D = g_KD[(t + 1 + i) % taps], weight_KD[k], gweight_KD[k]
                for d in range(lo, hi):
                    gx_D[d] += g_D[d] * weight_D[d]
                    gweight_D[d] += g_D[d] * x_D[d]


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BLD: Tensor, weight_KD: Tensor, bias_D: Tensor, reverse: bool) -> Tensor:
        y_BLD = torch.empty_like(x_BLD)
        ctx.reverse = reverse
        ctx.save_for_backward(x_BLD, weight_KD, bias_D)
        run_tasks(forward, n_tasks(x_BLD, BLOCK), x_BLD.numel(), reverse, x_BLD, weight_KD, bias_D, y_BLD)
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
            backward, n_tasks(x_BLD, BLOCK), 2 * x_BLD.numel(), ctx.reverse, x_BLD, weight_KD, bias_D, gy_BLD.contiguous(),
            gx_BLD, gweight_BKD, gbias_BD,
        )  # fmt: skip
        return gx_BLD, gweight_BKD.sum(0), gbias_BD.sum(0), None


def conv_on_cpu(x_BLD: Tensor, weight_KD: Tensor, bias_D: Tensor, *, reverse: bool) -> Tensor:
    """Convolve; see :func:`dtsf.model.scan.dispatch.causal_conv`. (B, L, D), in the dtype of ``x_BLD``."""
    y_BLD: Tensor = _Conv.apply(  # type: ignore[no-untyped-call]
        x_BLD.float().contiguous(), weight_KD.float().contiguous(), bias_D.float().contiguous(), reverse
    )
    return y_BLD.to(x_BLD.dtype)
