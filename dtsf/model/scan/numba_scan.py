"""Selective scan and causal convolution on a CPU, compiled by numba, with their own backward.

The backward of the scan stores the states at the borders of chunks only. As separate operators, the convolution costs more time
than the scan: a dozen passes over memory forward, two dozen backward. Importing this module imports numba (half a second).

Threads are Python's, one for each of PyTorch's (``torch.set_num_threads``), because the kernels release the GIL. Numba's thread
pool is not used: its fallback layer aborts the process when two threads call it. Sums over channels and sequences have a fixed
order, so results do not depend on the number of threads.

Letters: B batch, D channels, L tokens, N state, M chunks, J blocks of channels, K taps.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dtsf.model.scan.numba_kernels import CHUNK, LANES, ONE, ZERO, backward, compiled, forward, sigmoid
from dtsf.model.scan.plain import refuse_graph

if TYPE_CHECKING:
    from torch import Tensor

    from dtsf.model.scan.plain import ScanInputs

WORTH_A_THREAD = 200_000
"""State updates below which another thread costs more than it saves."""
TAPS = 4
"""Width of Mamba's and VideoMamba's convolution."""
BLOCK = 192
"""Channels of a convolution's task; divides VideoMamba's inner widths. Entering the loops over channels costs time, so there are
more channels than in the scan's LANES."""


class _Scan(torch.autograd.Function):
    """Fused scan in (B, L, D) layout, float32."""

    @staticmethod
    def forward(
        ctx: Any, u_BLD: Tensor, dt_BLD: Tensor, A_ND: Tensor, B_BLN: Tensor, C_BLN: Tensor,
        D_D: Tensor, z_BLD: Tensor | None, bias_D: Tensor, reverse: bool,
    ) -> Tensor:  # fmt: skip
        """Return y (B, L, D)."""
        B, L, D = u_BLD.shape
        gate_BLD = u_BLD if z_BLD is None else z_BLD
        inputs = (u_BLD, dt_BLD, A_ND, B_BLN, C_BLN, D_D, gate_BLD, bias_D)
        y_BLD = torch.empty_like(u_BLD)
        edge_BMND = u_BLD.new_empty(B, -(-L // CHUNK), A_ND.shape[0], D)
        ctx.flags = (reverse, z_BLD is not None)
        run_tasks(forward, n_tasks(u_BLD), u_BLD.numel() * A_ND.shape[0], *ctx.flags, *inputs, y_BLD, edge_BMND)
        ctx.save_for_backward(*inputs, edge_BMND)
        return y_BLD

    @staticmethod
    def backward(ctx: Any, gy_BLD: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs."""
        *inputs, edge_BMND = ctx.saved_tensors
        u_BLD, dt_BLD, A_ND, B_BLN, C_BLN, D_D, gate_BLD, bias_D = inputs
        (B, _, D), n_blocks = u_BLD.shape, -(-u_BLD.shape[2] // LANES)
        reverse, gated = ctx.flags
        refuse_graph("numba")
        gu_BLD, gdt_BLD = torch.empty_like(u_BLD), torch.empty_like(u_BLD)
        gz_BLD = torch.empty_like(u_BLD) if gated else gu_BLD
        gA_BND = u_BLD.new_empty(B, *A_ND.shape)
        gB_JBLN, gC_JBLN = (u_BLD.new_empty(n_blocks, *B_BLN.shape) for _ in range(2))
        gD_BD, gbias_BD = u_BLD.new_empty(B, D), u_BLD.new_empty(B, D)
        run_tasks(
            backward, n_tasks(u_BLD), 3 * u_BLD.numel() * A_ND.shape[0], reverse, gated,
            *inputs, edge_BMND, gy_BLD.contiguous(),
            gu_BLD, gdt_BLD, gA_BND, gB_JBLN, gC_JBLN, gD_BD, gz_BLD, gbias_BD,
        )  # fmt: skip
        gate = gz_BLD if gated else None
        return gu_BLD, gdt_BLD, gA_BND.sum(0), gB_JBLN.sum(0), gC_JBLN.sum(0), gD_BD.sum(0), gate, gbias_BD.sum(0), None


def scan(inputs: ScanInputs) -> Tensor:
    """Run the scan; see :func:`dtsf.model.scan.selective_scan`. All tensors are on the CPU.

    Tensors that are (B, L, D) in memory, as linear layers return them, are read without a copy.
    """
    u_BDL, dt_BDL, A_DN, B_BNL, C_BNL, D_D, z_BDL, dt_bias_D, reverse = inputs
    D = u_BDL.shape[1]

    def rows(x_BXL: Tensor) -> Tensor:
        return x_BXL.transpose(1, 2).float().contiguous()

    y_BLD: Tensor = _Scan.apply(  # type: ignore[no-untyped-call]
        rows(u_BDL),
        rows(dt_BDL),
        A_DN.float().t().contiguous(),
        rows(B_BNL),
        rows(C_BNL),
        u_BDL.new_zeros(D, dtype=torch.float32) if D_D is None else D_D.float().contiguous(),
        None if z_BDL is None else rows(z_BDL),
        u_BDL.new_zeros(D, dtype=torch.float32) if dt_bias_D is None else dt_bias_D.float().contiguous(),
        reverse,
    )
    return y_BLD.transpose(1, 2).to(u_BDL.dtype)


def n_tasks(u_BLD: Tensor, block: int = LANES) -> int:
    """Return the number of tasks of one sequence and ``block`` channels."""
    return u_BLD.shape[0] * -(-u_BLD.shape[2] // block)


def run_tasks(kernel: Any, n_tasks: int, work: int, *arguments: Any) -> None:
    """Call ``kernel(begin, end, ...)`` for all tasks, on as many threads as PyTorch has and the work justifies."""
    arrays = [x.detach().numpy() if isinstance(x, torch.Tensor) else x for x in arguments]
    n_threads = min(torch.get_num_threads(), n_tasks, 1 + work // WORTH_A_THREAD)
    if n_threads <= 1:
        kernel(0, n_tasks, *arrays)
        return
    bounds = [n_tasks * k // n_threads for k in range(n_threads + 1)]
    pool = _threads(os.getpid(), n_threads)
    parts = [pool.submit(kernel, begin, end, *arrays) for begin, end in pairwise(bounds)]
    for part in parts:
        part.result()


@lru_cache(maxsize=4)
def _threads(process: int, n_threads: int) -> ThreadPoolExecutor:  # noqa: ARG001
    """Return threads of this process. A forked child has none of its parent's threads, so the process is part of the key."""
    return ThreadPoolExecutor(n_threads, thread_name_prefix="dtsf-scan")


@compiled()
def _sums(x_LD: Any, weight_KD: Any, bias_D: Any, t: int, lo: Any, hi: Any, reverse: bool, y_D: Any) -> None:
    """Write the sums before SiLU at token ``t``, channels ``lo`` to ``hi``, to ``y_D``.

    ``lo`` and ``hi`` are unsigned, because loops with a possibly negative index do not become vector instructions. Whole rows and
    these bounds cost less than a slice of every row.
    """
    length, taps = x_LD.shape[0], weight_KD.shape[0]
    if taps == TAPS and (t + TAPS <= length if reverse else t >= TAPS - 1):
        # Four taps, not at the ends: one pass, and the sum stays in registers.
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
def conv_forward(begin: int, end: int, reverse: bool, x_BLD: Any, weight_KD: Any, bias_D: Any, y_BLD: Any) -> None:
    """Compute the outputs of tasks ``begin`` to ``end``. Tap K - 1 is the token itself, tap 0 the farthest."""
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
def conv_backward(
    begin: int, end: int, reverse: bool, x_BLD: Any, weight_KD: Any, bias_D: Any, gy_BLD: Any,
    gx_BLD: Any, gweight_BKD: Any, gbias_BD: Any,
) -> None:  # fmt: skip
    """Compute the gradients of tasks ``begin`` to ``end``, those of weight and bias for each sequence separately.

    A token is part of K sums. A ring stores the gradients of the latest K sums, so that the gradient of a token is written once.
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
        # With reverse, the sums with token t come before it; else the last one comes K - 1 tokens later, or after the end.
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
            for i in range(taps):  # from the oldest of the ring
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
        run_tasks(conv_forward, n_tasks(x_BLD, BLOCK), x_BLD.numel(), reverse, x_BLD, weight_KD, bias_D, y_BLD)
        return y_BLD

    @staticmethod
    def backward(ctx: Any, gy_BLD: Tensor) -> tuple[Tensor | None, ...]:
        x_BLD, weight_KD, bias_D = ctx.saved_tensors
        refuse_graph("numba")
        gx_BLD = torch.empty_like(x_BLD)
        gweight_BKD = x_BLD.new_empty(x_BLD.shape[0], *weight_KD.shape)
        gbias_BD = x_BLD.new_empty(x_BLD.shape[0], x_BLD.shape[2])
        run_tasks(
            conv_backward, n_tasks(x_BLD, BLOCK), 2 * x_BLD.numel(), ctx.reverse, x_BLD, weight_KD, bias_D, gy_BLD.contiguous(),
            gx_BLD, gweight_BKD, gbias_BD,
        )  # fmt: skip
        return gx_BLD, gweight_BKD.sum(0), gbias_BD.sum(0), None


def conv(x_BLD: Tensor, weight_KD: Tensor, bias_D: Tensor, *, reverse: bool) -> Tensor:
    """Convolve; see :func:`dtsf.model.scan.causal_conv`. (B, L, D), in the dtype of ``x_BLD``."""
    y_BLD: Tensor = _Conv.apply(  # type: ignore[no-untyped-call]
        x_BLD.float().contiguous(), weight_KD.float().contiguous(), bias_D.float().contiguous(), reverse
    )
    return y_BLD.to(x_BLD.dtype)
