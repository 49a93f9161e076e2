"""The scan's loops for a GPU, in Triton: forward, and backward with the states computed again.

A program has one sequence, a block of channels and a segment of its tokens. The N states of a channel stay in registers; tokens
come :data:`T` at a time, all loads of a step before its arithmetic, so that they are under way together. Segments run side by
side: each is first run from a state of zero (:func:`segment_ends`, :func:`segment_heads`), and what the segments before (or, going
back, behind) leave is added from there. No atomics: every sum has one order.

Forward tiles are (N, D), a lane a channel: the sum over N needs no other lane. Backward tiles are (D, N), four lanes a channel: it
sums over both, and so shuffles least. What goes from one to the other lies as (D, N) in memory, turned where it is written: turned
where it is read, it takes the registers that the backward has not. A is in units of log 2.

Letters: B sequences, D channels, L tokens, N states, S segments, M chunks, Q tokens of a chunk, T tokens of a step.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def softplus(x):
    """``log(1 + exp(x))``, exact to float32 everywhere: log1p(e) as 2 artanh(e / (2 + e)), whose series is short."""
    e = tl.exp(-tl.abs(x))
    s = e / (2.0 + e)
    q = s * s
    series = 1.0 + q * (
        1.0 / 3 + q * (1.0 / 5 + q * (1.0 / 7 + q * (1.0 / 9 + q * (1.0 / 11 + q * (1.0 / 13 + q * (1.0 / 15))))))
    )
    return tl.maximum(x, 0.0) + 2.0 * s * series


@triton.jit
def sigmoid(x):
    """``1 / (1 + exp(-x))``."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def place(i, L, REVERSE: tl.constexpr):
    """Where the i-th token of the scan lies."""
    return L - 1 - i if REVERSE else i


@triton.jit
def steps_of(pointer, i, L, stride, d, inside, REVERSE: tl.constexpr, T: tl.constexpr):
    """T tokens from ``i`` on, in float32, 0 beyond the end; a tuple."""
    rows = ()
    for t in tl.static_range(T):
        at = pointer + place(i + t, L, REVERSE) * stride + d
        rows = rows + (tl.load(at, mask=inside & (i + t < L), other=0.0).to(tl.float32),)
    return rows


@triton.jit
def step_sizes(dt, bias, i, L, T: tl.constexpr):
    """Softplus of T tokens' ``dt``; 0 beyond the end, where the state stays as it is."""
    deltas = ()
    for t in tl.static_range(T):
        deltas = deltas + (tl.where(i + t < L, softplus(dt[t] + bias), 0.0),)
    return deltas


@triton.jit(do_not_specialize=["A_ND", "ends_BSND"])
def segment_ends(
    u, dt, A_ND, B, bias_D, ends_BSND, sums_BSD,
    L, D, segment, u_b, u_l, dt_b, dt_l, B_b, B_l,
    N: tl.constexpr, BD: tl.constexpr, T: tl.constexpr, REVERSE: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """State at the end of each segment if it began at zero, and the sum of its step sizes."""
    block, b, s = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    S = tl.num_programs(2)
    n = tl.arange(0, N)
    d = block * BD + tl.arange(0, BD)
    inside = d < D
    A = tl.load(A_ND + n[:, None] * D + d[None, :], mask=inside[None, :], other=0.0)
    bias = tl.load(bias_D + d, mask=inside, other=0.0) if HAS_BIAS else tl.zeros((BD,), tl.float32)
    state = tl.zeros((N, BD), tl.float32)
    total = tl.zeros((BD,), tl.float32)
    for i in range(s * segment, tl.minimum((s + 1) * segment, L), T):
        dts = steps_of(dt + b * dt_b, i, L, dt_l, d, inside, REVERSE, T)
        us = steps_of(u + b * u_b, i, L, u_l, d, inside, REVERSE, T)
        Bs = steps_of(B + b * B_b, i, L, B_l, n, n < N, REVERSE, T)
        deltas = step_sizes(dts, bias, i, L, T)
        for t in tl.static_range(T):
            state = tl.exp2(A * deltas[t][None, :]) * state + Bs[t][:, None] * (deltas[t] * us[t])[None, :]
            total += deltas[t]
    at = (b * S + s) * N * D + n[:, None] * D + d[None, :]
    tl.store(ends_BSND + at, state, mask=inside[None, :])
    tl.store(sums_BSD + (b * S + s) * D + d, total, mask=inside)


@triton.jit(do_not_specialize=["A_ND", "ends_BSND", "states_BMDN"])
def scan_forward(
    u, dt, A_ND, B, C, skip_D, z, bias_D, ends_BSND, sums_BSD, y_BLD, states_BMDN,
    L, D, segment, u_b, u_l, dt_b, dt_l, B_b, B_l, C_b, C_l, z_b, z_l,
    N: tl.constexpr, BD: tl.constexpr, T: tl.constexpr, Q: tl.constexpr, REVERSE: tl.constexpr,
    HAS_SKIP: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SEGMENTS: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """Outputs of one segment, and with ``SAVE`` the state before each of its chunks."""
    block, b, s = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    S = tl.num_programs(2)
    n = tl.arange(0, N)
    d = block * BD + tl.arange(0, BD)
    inside = d < D
    A = tl.load(A_ND + n[:, None] * D + d[None, :], mask=inside[None, :], other=0.0)
    bias = tl.load(bias_D + d, mask=inside, other=0.0) if HAS_BIAS else tl.zeros((BD,), tl.float32)
    skip = tl.load(skip_D + d, mask=inside, other=0.0) if HAS_SKIP else tl.zeros((BD,), tl.float32)
    state = tl.zeros((N, BD), tl.float32)
    if SEGMENTS:
        for before in range(0, s):
            total = tl.load(sums_BSD + (b * S + before) * D + d, mask=inside, other=0.0)
            at = (b * S + before) * N * D + n[:, None] * D + d[None, :]
            end = tl.load(ends_BSND + at, mask=inside[None, :], other=0.0)
            state = tl.exp2(A * total[None, :]) * state + end
    M = tl.cdiv(L, Q)
    for i in range(s * segment, tl.minimum((s + 1) * segment, L), T):
        if SAVE and i % Q == 0:
            at = ((b * M + i // Q) * D + d[None, :]) * N + n[:, None]
            tl.store(states_BMDN + at, state, mask=inside[None, :])
        dts = steps_of(dt + b * dt_b, i, L, dt_l, d, inside, REVERSE, T)
        us = steps_of(u + b * u_b, i, L, u_l, d, inside, REVERSE, T)
        Bs = steps_of(B + b * B_b, i, L, B_l, n, n < N, REVERSE, T)
        Cs = steps_of(C + b * C_b, i, L, C_l, n, n < N, REVERSE, T)
        zs = steps_of(z + b * z_b, i, L, z_l, d, inside, REVERSE, T) if HAS_Z else us
        deltas = step_sizes(dts, bias, i, L, T)
        ys = ()
        for t in tl.static_range(T):
            state = tl.exp2(A * deltas[t][None, :]) * state + Bs[t][:, None] * (deltas[t] * us[t])[None, :]
            y = tl.sum(Cs[t][:, None] * state, 0) + skip * us[t]
            ys = ys + (y * zs[t] * sigmoid(zs[t]) if HAS_Z else y,)
        for t in tl.static_range(T):
            at = y_BLD + b * L * D + place(i + t, L, REVERSE) * D + d
            tl.store(at, ys[t].to(y_BLD.dtype.element_ty), mask=inside & (i + t < L))


@triton.jit(do_not_specialize=["A_ND", "heads_BSDN"])
def segment_heads(
    dt, A_ND, C, z, bias_D, grad_BLD, heads_BSDN, sums_BSD,
    L, D, segment, dt_b, dt_l, C_b, C_l, z_b, z_l, grad_b, grad_l,
    N: tl.constexpr, BD: tl.constexpr, T: tl.constexpr, REVERSE: tl.constexpr, HAS_Z: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Gradient of the state before each segment if none came from behind it, and the sum of its step sizes."""
    block, b, s = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    S = tl.num_programs(2)
    n = tl.arange(0, N)
    d = block * BD + tl.arange(0, BD)
    inside = d < D
    A = tl.load(A_ND + n[:, None] * D + d[None, :], mask=inside[None, :], other=0.0)
    bias = tl.load(bias_D + d, mask=inside, other=0.0) if HAS_BIAS else tl.zeros((BD,), tl.float32)
    flow = tl.zeros((N, BD), tl.float32)
    total = tl.zeros((BD,), tl.float32)
    first, last = s * segment, tl.minimum((s + 1) * segment, L)
    n_steps = tl.cdiv(last - first, T)
    for k in range(0, n_steps):
        i = first + (n_steps - 1 - k) * T
        dts = steps_of(dt + b * dt_b, i, L, dt_l, d, inside, REVERSE, T)
        grads = steps_of(grad_BLD + b * grad_b, i, L, grad_l, d, inside, REVERSE, T)
        Cs = steps_of(C + b * C_b, i, L, C_l, n, n < N, REVERSE, T)
        zs = steps_of(z + b * z_b, i, L, z_l, d, inside, REVERSE, T) if HAS_Z else grads
        deltas = step_sizes(dts, bias, i, L, T)
        for t in tl.static_range(T - 1, -1, -1):
            grad = grads[t] * zs[t] * sigmoid(zs[t]) if HAS_Z else grads[t]
            flow = tl.exp2(A * deltas[t][None, :]) * (flow + Cs[t][:, None] * grad[None, :])
            total += deltas[t]
    at = ((b * S + s) * D + d[None, :]) * N + n[:, None]
    tl.store(heads_BSDN + at, flow, mask=inside[None, :])
    tl.store(sums_BSD + (b * S + s) * D + d, total, mask=inside)
