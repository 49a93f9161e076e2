"""Kernels of the scan for a GPU, in Triton: forward, and backward with the states computed again.

A program computes a block of channels of one sequence over a segment of its tokens, with the states in registers. A step loads
all its inputs before it computes, so that loads overlap. Segments run in parallel: :func:`segment_ends` and :func:`segment_heads`
start each segment from a state of zero, and the other segments' contribution is added later. Without atomics, every sum has one
order. Forward tiles are (N, D), one lane a channel: the sum over N needs no other lane. Backward tiles are (D, N), four lanes a
channel, with the fewest shuffles. Arrays are (D, N), because the backward has no registers to transpose. A has units of log 2.
Letters: B sequences, D channels, L tokens, N states, S segments, M chunks, Q tokens of a chunk, T tokens of a step.
"""

from __future__ import annotations

import triton
import triton.language as tl

LN2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def softplus(x):
    """Return ``log(1 + exp(x))``, exact to float32: log1p(e) is 2 artanh(e / (2 + e)), whose series is short."""
    e = tl.exp(-tl.abs(x))
    s = e / (2.0 + e)
    q = s * s
    tail = 1.0 / 9 + q * (1.0 / 11 + q * (1.0 / 13 + q * (1.0 / 15)))
    series = 1.0 + q * (1.0 / 3 + q * (1.0 / 5 + q * (1.0 / 7 + q * tail)))
    return tl.maximum(x, 0.0) + 2.0 * s * series


@triton.jit
def sigmoid(x):
    """Return ``1 / (1 + exp(-x))``."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def position(i, L, REVERSE: tl.constexpr):
    """Return the position of the i-th token of the scan."""
    return L - 1 - i if REVERSE else i


@triton.jit
def steps_of(pointer, i, L, stride, d, inside, REVERSE: tl.constexpr, T: tl.constexpr):
    """Load T tokens from ``i`` on, in float32, 0 beyond the end. Returns a tuple."""
    rows = ()
    for t in tl.static_range(T):
        at = pointer + position(i + t, L, REVERSE) * stride + d
        rows = rows + (tl.load(at, mask=inside & (i + t < L), other=0.0).to(tl.float32),)
    return rows


@triton.jit
def step_sizes(dt, bias, i, L, T: tl.constexpr):
    """Compute softplus of the ``dt`` of T tokens; 0 beyond the end, which keeps the state."""
    deltas = ()
    for t in tl.static_range(T):
        deltas = deltas + (tl.where(i + t < L, softplus(dt[t] + bias), 0.0),)
    return deltas


@triton.jit
def channels_of(A_ND, bias_D, D, N: tl.constexpr, BD: tl.constexpr):
    """Return states and channels of a program, the mask of the channels that exist, their A (N, D) and their bias."""
    n, d = tl.arange(0, N), tl.program_id(0) * BD + tl.arange(0, BD)
    A = tl.load(A_ND + n[:, None] * D + d[None, :], mask=(d < D)[None, :], other=0.0)
    return n, d, d < D, A, tl.load(bias_D + d, mask=d < D, other=0.0)


@triton.jit(do_not_specialize=["A_ND", "ends_BSND"])
def segment_ends(
    u, dt, A_ND, B, bias_D, ends_BSND, sums_BSD,
    L, D, segment, u_b, u_l, dt_b, dt_l, B_b, B_l,
    N: tl.constexpr, BD: tl.constexpr, T: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Compute the state at the end of each segment from a state of zero, and the sum of its step sizes."""
    b, s, S = tl.program_id(1).to(tl.int64), tl.program_id(2), tl.num_programs(2)
    n, d, inside, A, bias = channels_of(A_ND, bias_D, D, N, BD)
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
    SEGMENTS: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """Compute the outputs of one segment, and with ``SAVE`` the state before each of its chunks."""
    b, s, S = tl.program_id(1).to(tl.int64), tl.program_id(2), tl.num_programs(2)
    n, d, inside, A, bias = channels_of(A_ND, bias_D, D, N, BD)
    skip = tl.load(skip_D + d, mask=inside, other=0.0)
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
        zs = steps_of(z + b * z_b, i, L, z_l, d, inside, REVERSE, T)
        deltas = step_sizes(dts, bias, i, L, T)
        ys = ()
        for t in tl.static_range(T):
            state = tl.exp2(A * deltas[t][None, :]) * state + Bs[t][:, None] * (deltas[t] * us[t])[None, :]
            y = tl.sum(Cs[t][:, None] * state, 0) + skip * us[t]
            ys = ys + (y * zs[t] * sigmoid(zs[t]),)
        for t in tl.static_range(T):
            at = y_BLD + b * L * D + position(i + t, L, REVERSE) * D + d
            tl.store(at, ys[t].to(y_BLD.dtype.element_ty), mask=inside & (i + t < L))


@triton.jit(do_not_specialize=["A_ND", "heads_BSDN"])
def segment_heads(
    dt, A_ND, C, z, bias_D, grad_BLD, heads_BSDN, sums_BSD,
    L, D, segment, dt_b, dt_l, C_b, C_l, z_b, z_l, grad_b, grad_l,
    N: tl.constexpr, BD: tl.constexpr, T: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of the state before each segment as if no segment followed, and the sum of its step sizes."""
    b, s, S = tl.program_id(1).to(tl.int64), tl.program_id(2), tl.num_programs(2)
    n, d, inside, A, bias = channels_of(A_ND, bias_D, D, N, BD)
    flow = tl.zeros((N, BD), tl.float32)
    total = tl.zeros((BD,), tl.float32)
    first, last = s * segment, tl.minimum((s + 1) * segment, L)
    n_steps = tl.cdiv(last - first, T)
    for k in range(0, n_steps):
        i = first + (n_steps - 1 - k) * T
        dts = steps_of(dt + b * dt_b, i, L, dt_l, d, inside, REVERSE, T)
        grads = steps_of(grad_BLD + b * grad_b, i, L, grad_l, d, inside, REVERSE, T)
        Cs = steps_of(C + b * C_b, i, L, C_l, n, n < N, REVERSE, T)
        zs = steps_of(z + b * z_b, i, L, z_l, d, inside, REVERSE, T)
        deltas = step_sizes(dts, bias, i, L, T)
        for t in tl.static_range(T - 1, -1, -1):
            grad = grads[t] * zs[t] * sigmoid(zs[t])
            flow = tl.exp2(A * deltas[t][None, :]) * (flow + Cs[t][:, None] * grad[None, :])
            total += deltas[t]
    at = ((b * S + s) * D + d[None, :]) * N + n[:, None]
    tl.store(heads_BSDN + at, flow, mask=inside[None, :])
    tl.store(sums_BSD + (b * S + s) * D + d, total, mask=inside)


@triton.jit(do_not_specialize=["states_BMDN", "heads_BSDN"])
def scan_backward(
    u, dt, A_DN, B, C, skip_D, z, bias_D, grad_BLD, states_BMDN, heads_BSDN, sums_BSD, scratch,
    du, ddt, dz, dA_BSDN, dB, dC, dskip_BSD, dbias_BSD,
    L, D, segment, u_b, u_l, dt_b, dt_l, B_b, B_l, C_b, C_l, z_b, z_l, grad_b, grad_l,
    N: tl.constexpr, BD: tl.constexpr, T: tl.constexpr, Q: tl.constexpr, REVERSE: tl.constexpr,
    SEGMENTS: tl.constexpr,
):  # fmt: skip
    """Compute all gradients of one segment, chunk by chunk from its last.
    The states of a chunk are computed twice: first to store every T-th in ``scratch`` (first-level cache), then in registers.
    """
    block, b, s = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    S = tl.num_programs(2)
    n = tl.arange(0, N)
    d = block * BD + tl.arange(0, BD)
    inside = d < D
    A = tl.load(A_DN + d[:, None] * N + n[None, :], mask=inside[:, None], other=0.0)
    bias = tl.load(bias_D + d, mask=inside, other=0.0)
    skip = tl.load(skip_D + d, mask=inside, other=0.0)
    flow = tl.zeros((BD, N), tl.float32)
    if SEGMENTS:
        for k in range(s + 1, S):
            behind = S + s - k
            total = tl.load(sums_BSD + (b * S + behind) * D + d, mask=inside, other=0.0)
            at = ((b * S + behind) * D + d[:, None]) * N + n[None, :]
            head = tl.load(heads_BSDN + at, mask=inside[:, None], other=0.0)
            flow = tl.exp2(A * total[:, None]) * flow + head
    dA = tl.zeros((BD, N), tl.float32)
    dskip = tl.zeros((BD,), tl.float32)
    dbias = tl.zeros((BD,), tl.float32)
    u, dt, z, grad_BLD = u + b * u_b, dt + b * dt_b, z + b * z_b, grad_BLD + b * grad_b
    B, C = B + b * B_b, C + b * C_b
    du, ddt, dz = du + b * L * D, ddt + b * L * D, dz + b * L * D
    part = (block * tl.num_programs(1) + b) * L * N
    dB, dC = dB + part, dC + part
    own = scratch + ((b * S + s) * tl.num_programs(0) + block) * (Q // T) * BD * N
    own = own + tl.arange(0, BD)[:, None] * N + n[None, :]
    M = tl.cdiv(L, Q)
    first = s * segment // Q
    n_chunks = tl.minimum(first + segment // Q, M) - first
    for c in range(0, n_chunks):
        chunk = first + n_chunks - 1 - c
        at = ((b * M + chunk) * D + d[:, None]) * N + n[None, :]
        state = tl.load(states_BMDN + at, mask=inside[:, None], other=0.0)
        n_steps = tl.cdiv(tl.minimum(L - chunk * Q, Q), T)
        for k in range(0, n_steps):
            tl.store(own + k * BD * N, state)
            i = chunk * Q + k * T
            dts = steps_of(dt, i, L, dt_l, d, inside, REVERSE, T)
            us = steps_of(u, i, L, u_l, d, inside, REVERSE, T)
            Bs = steps_of(B, i, L, B_l, n, n < N, REVERSE, T)
            deltas = step_sizes(dts, bias, i, L, T)
            for t in tl.static_range(T):
                state = tl.exp2(A * deltas[t][:, None]) * state + Bs[t][None, :] * (deltas[t] * us[t])[:, None]
        tl.debug_barrier()  # writes finish before reads, and reads (below) before the writes of the next chunk
        for k in range(0, n_steps):
            step = n_steps - 1 - k
            i = chunk * Q + step * T
            state = tl.load(own + step * BD * N)
            dts = steps_of(dt, i, L, dt_l, d, inside, REVERSE, T)
            us = steps_of(u, i, L, u_l, d, inside, REVERSE, T)
            Bs = steps_of(B, i, L, B_l, n, n < N, REVERSE, T)
            deltas = step_sizes(dts, bias, i, L, T)
            states = ()
            for t in tl.static_range(T):
                state = tl.exp2(A * deltas[t][:, None]) * state + Bs[t][None, :] * (deltas[t] * us[t])[:, None]
                states = states + (state,)
            for t in tl.static_range(T - 1, -1, -1):
                # Loaded again from the nearest cache, because the states need the registers.
                valid, known = inside & (i + t < L), (n < N) & (i + t < L)
                l = position(i + t, L, REVERSE)
                delta = tl.load(dt + l * dt_l + d, mask=valid, other=0.0).to(tl.float32)
                delta = tl.where(i + t < L, softplus(delta + bias), 0.0)
                u_t = tl.load(u + l * u_l + d, mask=valid, other=0.0).to(tl.float32)
                grad = tl.load(grad_BLD + l * grad_l + d, mask=valid, other=0.0).to(tl.float32)
                B_t = tl.load(B + l * B_l + n, mask=known, other=0.0).to(tl.float32)
                C_t = tl.load(C + l * C_l + n, mask=known, other=0.0).to(tl.float32)
                z_t = tl.load(z + l * z_l + d, mask=valid, other=0.0).to(tl.float32)
                gate = sigmoid(z_t)
                y = tl.sum(C_t[None, :] * states[t], 1) + skip * u_t
                dz_t = grad * y * gate * (1.0 + z_t * (1.0 - gate))
                tl.store(dz + l * D + d, dz_t.to(dz.dtype.element_ty), mask=valid)
                grad = grad * z_t * gate
                tl.store(dC + l * N + n, tl.sum(states[t] * grad[:, None], 0), mask=known)
                flow += C_t[None, :] * grad[:, None]
                input_t = delta * u_t
                tl.store(dB + l * N + n, tl.sum(flow * input_t[:, None], 0), mask=known)
                by_B = tl.sum(flow * B_t[None, :], 1)
                tl.store(du + l * D + d, (grad * skip + delta * by_B).to(du.dtype.element_ty), mask=valid)
                # flow times decay times the state before, without a division: the state minus its input.
                through = flow * (states[t] - B_t[None, :] * input_t[:, None])
                dA += through * delta[:, None]
                ddt_t = (u_t * by_B + LN2 * tl.sum(through * A, 1)) * (1.0 - tl.exp(-delta))
                tl.store(ddt + l * D + d, ddt_t.to(ddt.dtype.element_ty), mask=valid)
                dskip += grad * u_t
                dbias += ddt_t
                flow = tl.exp2(A * delta[:, None]) * flow
        tl.debug_barrier()
    at = (b * S + s) * D + d
    tl.store(dA_BSDN + at[:, None] * N + n[None, :], dA, mask=inside[:, None])
    tl.store(dskip_BSD + at, dskip, mask=inside)
    tl.store(dbias_BSD + at, dbias, mask=inside)
