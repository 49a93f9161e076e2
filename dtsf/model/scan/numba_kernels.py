"""Scan and its backward, compiled by numba for :mod:`dtsf.model.scan.numba_scan`. A task is one sequence and ``LANES`` channels.

The compiler vectorises neither loops whose index may be negative nor the C library's ``exp``. So the loops read slices of rows,
and ``exp`` is a polynomial. Arithmetic with whole slices takes numba seconds to compile, so loops do it. The backward computes
the states of a chunk again, into a buffer that fits the processor's cache.
Letters: B batch, D channels, L tokens, N state, M chunks, J blocks of LANES channels, Q tokens of a chunk, W lanes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

LANES = 64  # channels of a task: few enough that the states of a chunk stay in the processor's cache
CHUNK = 16  # tokens between two stored states, which take N / CHUNK of the input's size

LOG2_E, LN_2 = np.float32(np.log2(np.e)), np.float32(np.log(2))
# 2^f for |f| <= 1/2 by Chebyshev interpolation; degree 6 errs by less than float32 rounds.
_EXP2 = np.polynomial.Chebyshev.interpolate(np.exp2, 6, domain=[-0.5, 0.5]).convert(kind=np.polynomial.Polynomial)
E0, E1, E2, E3, E4, E5, E6 = (np.float32(c) for c in _EXP2.coef)
LEAST_EXPONENT = np.float32(-126.0)
MAGIC = np.float32(1.5 * 2**23)  # adding it rounds to the nearest integer and puts it into the low bits
MAGIC_BITS = np.int32(np.float32(MAGIC).view(np.int32))
ONE, ZERO, TWO = np.float32(1), np.float32(0), np.float32(2)
# log(1 + e) = 2 artanh(e / (2 + e)); the series converges fast because the argument is at most 1/3.
T1, T2, T3, T4, T5, T6, T7 = (np.float32(1 / (2 * k + 1)) for k in range(1, 8))
FASTMATH = {"contract", "reassoc", "nsz", "arcp"}  # no nnan, ninf: a diverged network returns NaN


def compiled(function: Any) -> Any:
    """Compile a function on its first call (about ten seconds for a backward), and cache it on disk (NUMBA_CACHE_DIR)."""
    options: dict[str, Any] = {"nogil": True, "fastmath": FASTMATH, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # a read-only install without a home folder
        return njit(**options)(function)


@compiled
def _exp2(x: Any) -> Any:
    if x < LEAST_EXPONENT:  # a NaN goes through
        x = LEAST_EXPONENT
    k = np.int32(np.float32(x + MAGIC).view(np.int32) - MAGIC_BITS)
    f = x - np.float32(k)
    p = E0 + f * (E1 + f * (E2 + f * (E3 + f * (E4 + f * (E5 + f * E6)))))
    return p * np.int32(np.int32(k + np.int32(127)) << np.int32(23)).view(np.float32)


@compiled
def _softplus(x: Any) -> Any:
    e = _exp2(-abs(x) * LOG2_E)
    s = e / (TWO + e)
    q = s * s
    series = ONE + q * (T1 + q * (T2 + q * (T3 + q * (T4 + q * (T5 + q * (T6 + q * T7))))))
    return max(x, ZERO) + TWO * s * series


@compiled
def sigmoid(x: Any) -> Any:
    """Return ``1 / (1 + exp(-x))`` without overflow."""
    e = _exp2(-abs(x) * LOG2_E)
    return (ONE if x >= ZERO else e) / (ONE + e)


@compiled
def forward(
    begin: int, end: int, reverse: bool, u_BLD: Any, dt_BLD: Any, A_ND: Any, B_BLN: Any, C_BLN: Any,
    D_D: Any, z_BLD: Any, bias_D: Any, y_BLD: Any, edge_BMND: Any,
) -> None:  # fmt: skip
    """Compute tasks ``begin`` to ``end``: outputs, and the state before every chunk."""
    n_blocks = (u_BLD.shape[2] + LANES - 1) // LANES
    length, n_state = B_BLN.shape[1], B_BLN.shape[2]
    h_NW, a_NW = np.empty((n_state, LANES), np.float32), np.empty((n_state, LANES), np.float32)
    delta_W, x_W, y_W = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    for task in range(begin, end):
        b, d = task // n_blocks, task % n_blocks * LANES
        last = min(d + LANES, u_BLD.shape[2])
        width = last - d
        bias_W, D_W = bias_D[d:last], D_D[d:last]
        h_NW[:] = ZERO
        for n in range(n_state):
            A_W = A_ND[n, d:last]
            for w in range(width):
                a_NW[n, w] = A_W[w] * LOG2_E
        for step in range(length):
            t = length - 1 - step if reverse else step
            if step % CHUNK == 0:
                for n in range(n_state):
                    edge_W = edge_BMND[b, step // CHUNK, n, d:last]
                    for w in range(width):
                        edge_W[w] = h_NW[n, w]
            u_W, dt_W, z_W = u_BLD[b, t, d:last], dt_BLD[b, t, d:last], z_BLD[b, t, d:last]
            out_W = y_BLD[b, t, d:last]
            for w in range(width):
                delta_W[w] = _softplus(dt_W[w] + bias_W[w])
                x_W[w] = delta_W[w] * u_W[w]
                y_W[w] = D_W[w] * u_W[w]
            for n in range(n_state):
                in_, out = B_BLN[b, t, n], C_BLN[b, t, n]
                for w in range(width):
                    h = _exp2(delta_W[w] * a_NW[n, w]) * h_NW[n, w] + x_W[w] * in_
                    h_NW[n, w] = h
                    y_W[w] += h * out
            for w in range(width):
                out_W[w] = y_W[w] * z_W[w] * sigmoid(z_W[w])


@compiled
def backward(
    begin: int, end: int, reverse: bool, u_BLD: Any, dt_BLD: Any, A_ND: Any, B_BLN: Any, C_BLN: Any,
    D_D: Any, z_BLD: Any, bias_D: Any, edge_BMND: Any, gy_BLD: Any,
    gu_BLD: Any, gdt_BLD: Any, gA_BND: Any, gB_JBLN: Any, gC_JBLN: Any, gD_BD: Any, gz_BLD: Any, gbias_BD: Any,
) -> None:  # fmt: skip
    """Compute tasks ``begin`` to ``end``: all gradients, chunk by chunk from the last token to the first."""
    n_blocks = (u_BLD.shape[2] + LANES - 1) // LANES
    length, n_state = B_BLN.shape[1], B_BLN.shape[2]
    ga_NW, gh_NW = np.empty((n_state, LANES), np.float32), np.empty((n_state, LANES), np.float32)
    a_NW = np.empty((n_state, LANES), np.float32)
    h_QNW = np.empty((CHUNK + 1, n_state, LANES), np.float32)
    decay_QNW = np.empty((CHUNK, n_state, LANES), np.float32)
    delta_QW, x_QW = np.empty((CHUNK, LANES), np.float32), np.empty((CHUNK, LANES), np.float32)
    y_QW = np.empty((CHUNK, LANES), np.float32)
    gy_W, gx_W, gdelta_W = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    gD_W, gbias_W = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    for task in range(begin, end):
        b, j = task // n_blocks, task % n_blocks
        d = j * LANES
        last = min(d + LANES, u_BLD.shape[2])
        width = last - d
        bias_W, D_W = bias_D[d:last], D_D[d:last]
        gh_NW[:], ga_NW[:], gD_W[:], gbias_W[:] = ZERO, ZERO, ZERO, ZERO
        for n in range(n_state):
            A_W = A_ND[n, d:last]
            for w in range(width):
                a_NW[n, w] = A_W[w] * LOG2_E
        for m in range((length - 1) // CHUNK, -1, -1):
            first = m * CHUNK
            size = min(CHUNK, length - first)
            for n in range(n_state):
                edge_W = edge_BMND[b, m, n, d:last]
                for w in range(width):
                    h_QNW[0, n, w] = edge_W[w]
            for q in range(size):
                t = length - 1 - first - q if reverse else first + q
                u_W, dt_W = u_BLD[b, t, d:last], dt_BLD[b, t, d:last]
                for w in range(width):
                    delta_QW[q, w] = _softplus(dt_W[w] + bias_W[w])
                    x_QW[q, w] = delta_QW[q, w] * u_W[w]
                    y_QW[q, w] = D_W[w] * u_W[w]
                for n in range(n_state):
                    in_, out = B_BLN[b, t, n], C_BLN[b, t, n]
                    for w in range(width):
                        decay = _exp2(delta_QW[q, w] * a_NW[n, w])
                        h = decay * h_QNW[q, n, w] + x_QW[q, w] * in_
                        decay_QNW[q, n, w] = decay
                        h_QNW[q + 1, n, w] = h
                        y_QW[q, w] += h * out
            for q in range(size - 1, -1, -1):
                t = length - 1 - first - q if reverse else first + q
                u_W, dt_W, z_W = u_BLD[b, t, d:last], dt_BLD[b, t, d:last], z_BLD[b, t, d:last]
                gu_W, gdt_W, gz_W = gu_BLD[b, t, d:last], gdt_BLD[b, t, d:last], gz_BLD[b, t, d:last]
                given_W = gy_BLD[b, t, d:last]
                for w in range(width):
                    gx_W[w], gdelta_W[w] = ZERO, ZERO
                    z, gy = z_W[w], given_W[w]
                    s = sigmoid(z)
                    gz_W[w] = gy * y_QW[q, w] * s * (ONE + z * (ONE - s))
                    gy_W[w] = gy * z * s
                for n in range(n_state):
                    in_, out = B_BLN[b, t, n], C_BLN[b, t, n]
                    g_in, g_out = ZERO, ZERO
                    for w in range(width):
                        gh = gh_NW[n, w] + out * gy_W[w]
                        g_out += h_QNW[q + 1, n, w] * gy_W[w]
                        g_in += gh * x_QW[q, w]
                        gx_W[w] += gh * in_
                        gh = gh * decay_QNW[q, n, w]
                        gh_NW[n, w] = gh
                        exponent = gh * h_QNW[q, n, w]  # gradient of delta A
                        gdelta_W[w] += exponent * a_NW[n, w]
                        ga_NW[n, w] += exponent * delta_QW[q, w]
                    gB_JBLN[j, b, t, n] = g_in
                    gC_JBLN[j, b, t, n] = g_out
                for w in range(width):
                    u = u_W[w]
                    gu_W[w] = gx_W[w] * delta_QW[q, w] + D_W[w] * gy_W[w]
                    gdt = (gdelta_W[w] * LN_2 + gx_W[w] * u) * sigmoid(dt_W[w] + bias_W[w])
                    gdt_W[w] = gdt
                    gbias_W[w] += gdt
                    gD_W[w] += gy_W[w] * u
        for w in range(width):
            gD_BD[b, d + w], gbias_BD[b, d + w] = gD_W[w], gbias_W[w]
        for n in range(n_state):
            gA_W = gA_BND[b, n, d:last]
            for w in range(width):
                gA_W[w] = ga_NW[n, w]
