"""Selective scan and causal convolution on a CPU, compiled by numba, with their own backward. Imports numba (half a second).

Threads are Python's, as many as PyTorch's: the kernels release the GIL, and numba's pool may abort the process if two threads
call it. Sums have a fixed order, so results do not depend on the number of threads.
Letters: B batch, D channels, L tokens, N state, M chunks, J blocks of channels, K taps.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dtsf.model.scan.numba_kernels import CHUNK, LANES, ONE, ZERO, backward, compiled, forward, sigmoid
from dtsf.model.scan.plain import ScanInputs, refuse_graph

WORTH_A_THREAD = 200_000  # state updates, below which another thread costs more than it saves
TAPS = 4  # of Mamba's and VideoMamba's convolution
BLOCK = 192  # channels of a convolution's task; divides VideoMamba's inner widths


def scan(inputs: ScanInputs) -> Tensor:
    """Run the scan; see :func:`dtsf.model.scan.selective_scan`. Tensors that are (B, L, D) in memory are read without a copy."""
    u_BDL, dt_BDL, A_DN, B_BNL, C_BNL, D_D, z_BDL, dt_bias_D, reverse = inputs
    u, dt, B, C, z = (x_BXL.transpose(1, 2).float().contiguous() for x_BXL in (u_BDL, dt_BDL, B_BNL, C_BNL, z_BDL))
    A_ND, D_D, bias_D = (x.float().contiguous() for x in (A_DN.t(), D_D, dt_bias_D))
    y_BLD: Tensor = _Scan.apply(reverse, u, dt, A_ND, B, C, D_D, z, bias_D)  # type: ignore[no-untyped-call]
    return y_BLD.transpose(1, 2).to(u_BDL.dtype)


def conv(x_BLD: Tensor, weight_KD: Tensor, bias_D: Tensor, *, reverse: bool) -> Tensor:
    """Convolve; see :func:`dtsf.model.scan.causal_conv`. (B, L, D), in the dtype of ``x_BLD``."""
    narrow = (x.float().contiguous() for x in (x_BLD, weight_KD, bias_D))
    y_BLD: Tensor = _Conv.apply(reverse, *narrow)  # type: ignore[no-untyped-call]
    return y_BLD.to(x_BLD.dtype)


class _Scan(torch.autograd.Function):
    """Fused scan in (B, L, D) layout, float32."""

    @staticmethod
    def forward(ctx: Any, reverse: bool, *inputs: Tensor) -> Tensor:
        u_BLD, _, A_ND, *_ = inputs
        (B, L, D), N = u_BLD.shape, len(A_ND)
        y_BLD, edge_BMND = torch.empty_like(u_BLD), u_BLD.new_empty(B, -(-L // CHUNK), N, D)
        ctx.reverse = reverse
        _run_tasks(forward, LANES, N, reverse, *inputs, y_BLD, edge_BMND)
        ctx.save_for_backward(*inputs, edge_BMND)
        return y_BLD

    @staticmethod
    def backward(ctx: Any, gy_BLD: Tensor) -> tuple[Tensor | None, ...]:
        refuse_graph("numba")
        # Once only: with gradient checkpointing each access recomputes the tensors.
        u_BLD, _, A_ND, B_BLN, *_ = saved = ctx.saved_tensors
        B, _, D = u_BLD.shape
        gu_BLD, gdt_BLD, gz_BLD = (torch.empty_like(u_BLD) for _ in range(3))
        gA_BND, gD_BD, gbias_BD = u_BLD.new_empty(B, *A_ND.shape), u_BLD.new_empty(B, D), u_BLD.new_empty(B, D)
        gB_JBLN, gC_JBLN = (u_BLD.new_empty(-(-D // LANES), *B_BLN.shape) for _ in range(2))
        _run_tasks(
            backward, LANES, 3 * len(A_ND), ctx.reverse, *saved, gy_BLD.contiguous(),
            gu_BLD, gdt_BLD, gA_BND, gB_JBLN, gC_JBLN, gD_BD, gz_BLD, gbias_BD,
        )  # fmt: skip
        sums = (gA_BND.sum(0), gB_JBLN.sum(0), gC_JBLN.sum(0), gD_BD.sum(0))
        return None, gu_BLD, gdt_BLD, *sums, gz_BLD, gbias_BD.sum(0)


class _Conv(torch.autograd.Function):
    """Convolution and SiLU in (B, L, D) layout, float32."""

    @staticmethod
    def forward(ctx: Any, reverse: bool, *inputs: Tensor) -> Tensor:
        y_BLD = torch.empty_like(inputs[0])
        ctx.reverse = reverse
        ctx.save_for_backward(*inputs)
        _run_tasks(_conv_forward, BLOCK, 1, reverse, *inputs, y_BLD)
        return y_BLD

    @staticmethod
    def backward(ctx: Any, gy_BLD: Tensor) -> tuple[Tensor | None, ...]:
        refuse_graph("numba")
        x_BLD, weight_KD, bias_D = saved = ctx.saved_tensors
        gx_BLD = torch.empty_like(x_BLD)
        gweight_BKD, gbias_BD = (x_BLD.new_empty(len(x_BLD), *x.shape) for x in (weight_KD, bias_D))
        gradients = (gx_BLD, gweight_BKD, gbias_BD)
        _run_tasks(_conv_backward, BLOCK, 2, ctx.reverse, *saved, gy_BLD.contiguous(), *gradients)
        return None, gx_BLD, gweight_BKD.sum(0), gbias_BD.sum(0)


def _run_tasks(kernel: Any, block: int, work: int, reverse: bool, x_BLD: Tensor, *others: Tensor) -> None:
    """Call ``kernel(begin, end, ...)`` for all tasks, on as many threads as PyTorch has and the work justifies.
    A task is one sequence and ``block`` channels. ``work`` counts the updates of one number.
    """
    n_tasks = x_BLD.shape[0] * -(-x_BLD.shape[2] // block)
    arrays = [x.detach().numpy() for x in (x_BLD, *others)]
    n_threads = min(torch.get_num_threads(), n_tasks, 1 + work * x_BLD.numel() // WORTH_A_THREAD)
    if n_threads <= 1:
        kernel(0, n_tasks, reverse, *arrays)
        return
    bounds = [n_tasks * k // n_threads for k in range(n_threads + 1)]
    pool = _threads(os.getpid(), n_threads)
    parts = [pool.submit(kernel, begin, end, reverse, *arrays) for begin, end in pairwise(bounds)]
    for part in parts:
        part.result()


@lru_cache(maxsize=4)
def _threads(process: int, n_threads: int) -> ThreadPoolExecutor:  # noqa: ARG001
    """Return threads of this process. A forked child has none of its parent's threads, so the process is part of the key."""
    return ThreadPoolExecutor(n_threads, thread_name_prefix="dtsf-scan")


@compiled
def _sums(x_LD: Any, weight_KD: Any, bias_D: Any, t: int, lo: Any, hi: Any, reverse: bool, y_D: Any) -> None:
    """Write the sums before SiLU at token ``t``, channels ``lo`` to ``hi``, to ``y_D``.
    Unsigned ``lo`` and ``hi`` allow vector instructions, and cost less than a slice of every row.
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


@compiled
def _conv_forward(begin: int, end: int, reverse: bool, x_BLD: Any, weight_KD: Any, bias_D: Any, y_BLD: Any) -> None:
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


@compiled
def _conv_backward(
    begin: int, end: int, reverse: bool, x_BLD: Any, weight_KD: Any, bias_D: Any, gy_BLD: Any,
    gx_BLD: Any, gweight_BKD: Any, gbias_BD: Any,
) -> None:  # fmt: skip
    """Compute the gradients of tasks ``begin`` to ``end``, those of weight and bias for each sequence separately.
    A token is part of K sums. A ring stores the gradients of the latest K sums, so that a token's gradient is written once.
    """
    width, taps = x_BLD.shape[2], weight_KD.shape[0]
    n_blocks = (width + BLOCK - 1) // BLOCK
    g_KD = np.empty((taps, width), np.float32)
    for task in range(begin, end):
        b, first = task // n_blocks, task % n_blocks * BLOCK
        lo, hi = np.uint64(first), np.uint64(min(first + BLOCK, width))
        x_LD, gx_LD, gweight_KD, gbias_D = x_BLD[b], gx_BLD[b], gweight_BKD[b], gbias_BD[b]
        g_KD[:, lo:hi], gweight_KD[:, lo:hi], gbias_D[lo:hi] = ZERO, ZERO, ZERO
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
                g_D[lo:hi] = ZERO
            if t < delay:
                continue
            x_D, gx_D = x_LD[t - delay], gx_LD[t - delay]
            gx_D[lo:hi] = ZERO
            for i in range(taps):  # from the oldest of the ring
                k = i if reverse else taps - 1 - i
                g_D, weight_D, gweight_D = g_KD[(t + 1 + i) % taps], weight_KD[k], gweight_KD[k]
                for d in range(lo, hi):
                    gx_D[d] += g_D[d] * weight_D[d]
                    gweight_D[d] += g_D[d] * x_D[d]
