"""The scan's backward in Triton; see :mod:`dtsf.model.scan.triton_kernels`, which explains it and has its helpers."""

from __future__ import annotations

import triton
import triton.language as tl

from dtsf.model.scan.triton_kernels import place, sigmoid, softplus, step_sizes, steps_of

LN2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=["states_BMDN", "heads_BSDN"])
def scan_backward(
    u, dt, A_DN, B, C, skip_D, z, bias_D, grad_BLD, states_BMDN, heads_BSDN, sums_BSD, scratch,
    du, ddt, dz, dA_BSDN, dB, dC, dskip_BSD, dbias_BSD,
    L, D, segment, u_b, u_l, dt_b, dt_l, B_b, B_l, C_b, C_l, z_b, z_l, grad_b, grad_l,
    N: tl.constexpr, BD: tl.constexpr, T: tl.constexpr, Q: tl.constexpr, REVERSE: tl.constexpr,
    HAS_SKIP: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SEGMENTS: tl.constexpr,
):  # fmt: skip
    """All gradients of one segment, chunk by chunk from its last.

    A chunk's states are computed twice: once to leave one every T tokens in ``scratch``, which the first-level cache keeps,
    once more in each step, whose T states stay in registers for the way back.
    """
    block, b, s = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    S = tl.num_programs(2)
    n = tl.arange(0, N)
    d = block * BD + tl.arange(0, BD)
    inside = d < D
    A = tl.load(A_DN + d[:, None] * N + n[None, :], mask=inside[:, None], other=0.0)
    bias = tl.load(bias_D + d, mask=inside, other=0.0) if HAS_BIAS else tl.zeros((BD,), tl.float32)
    skip = tl.load(skip_D + d, mask=inside, other=0.0) if HAS_SKIP else tl.zeros((BD,), tl.float32)
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
        tl.debug_barrier()  # all are written before any is read, and (below) read before the next chunk's are written
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
                # Loaded again, from the nearest cache: kept, they would take registers from the states.
                valid, known = inside & (i + t < L), (n < N) & (i + t < L)
                l = place(i + t, L, REVERSE)
                delta = tl.load(dt + l * dt_l + d, mask=valid, other=0.0).to(tl.float32)
                delta = tl.where(i + t < L, softplus(delta + bias), 0.0)
                u_t = tl.load(u + l * u_l + d, mask=valid, other=0.0).to(tl.float32)
                grad = tl.load(grad_BLD + l * grad_l + d, mask=valid, other=0.0).to(tl.float32)
                B_t = tl.load(B + l * B_l + n, mask=known, other=0.0).to(tl.float32)
                C_t = tl.load(C + l * C_l + n, mask=known, other=0.0).to(tl.float32)
                if HAS_Z:
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
                # flow times decay times the state before, without dividing: the state less what came in.
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
