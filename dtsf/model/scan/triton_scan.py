"""Selective scan on a GPU by Triton, as two custom operators, forward and backward, that ``torch.compile`` supports.
The backward stores the inputs and one state every 16 or 32 tokens. :mod:`dtsf.model.scan.triton_kernels` has the kernels.
Letters: B batch, D channels, L tokens, N states, S segments, M chunks, J blocks of channels.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from dtsf.model.scan.plain import ScanInputs, conv, refuse_graph
from dtsf.model.scan.triton_kernels import scan_backward, scan_forward, segment_ends, segment_heads

__all__ = ["conv", "scan"]

BLOCK = 32  # channels of a program of one warp
STEP, STEP_BACK = 4, 2  # tokens of a step; with 4 in the backward, the compiler spills states (tests/test_triton.py)
WARPS, WARPS_BACK = 16, 8  # programs on a processor of the GPU at once; an H100 has 10 in the backward
LEAST_CHUNKS = 4  # of a segment: in the backward, each segment stores the steps of a chunk
LOG2E = 1.4426950408889634


@lru_cache(maxsize=16)
def n_processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def chunk_tokens(length: int) -> int:
    """Return the tokens between two stored states: with 32, they take half the bytes of a float32 input, for 16 states."""
    return 32 if length > 512 else 16


def segments(u_BLD: Tensor, warps: int) -> tuple[int, int]:
    """Return the number of segments and their tokens: one if sequences and channels fill the GPU, else enough to fill it."""
    B, L, D = u_BLD.shape
    chunks = triton.cdiv(L, chunk_tokens(L))
    wanted = warps * n_processors(u_BLD.device) // (B * triton.cdiv(D, BLOCK))
    each = triton.cdiv(chunks, max(1, min(wanted, chunks // LEAST_CHUNKS)))
    return triton.cdiv(chunks, each), each * chunk_tokens(L)


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for x in tensors for stride in x.stride()[:2]]


def _like(*tensors: Tensor) -> list[Tensor]:
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in tensors]


SCHEMA = "Tensor u, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor skip, Tensor z, Tensor bias"


@torch.library.custom_op(
    "dtsf::scan_forward", mutates_args=(), schema=f"({SCHEMA}, bool reverse, bool keep) -> (Tensor, Tensor)"
)
def forward_op(
    u_BLD: Tensor, dt_BLD: Tensor, A_DN: Tensor, B_BLN: Tensor, C_BLN: Tensor, skip_D: Tensor, z_BLD: Tensor, bias_D: Tensor,
    reverse: bool, keep: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return outputs (B, L, D) and stored states (B, M, D, N), empty without ``keep``."""
    (B, L, D), N = u_BLD.shape, A_DN.shape[1]
    A_ND = (A_DN * LOG2E).t().contiguous()
    (y_BLD,) = _like(u_BLD)
    states = A_ND.new_empty((B, triton.cdiv(L, chunk_tokens(L)), D, N) if keep else (0,))
    S, segment = segments(u_BLD, WARPS)
    grid = (triton.cdiv(D, BLOCK), B, S)
    ends, sums = (A_ND.new_empty((B, S, N, D)), A_ND.new_empty((B, S, D))) if S > 1 else (A_ND, A_ND)
    tiles = {"N": N, "BD": BLOCK, "T": STEP, "REVERSE": reverse, "num_warps": 1}
    with torch.cuda.device(u_BLD.device) if u_BLD.is_cuda else nullcontext():  # the interpreter has no GPU
        if S > 1:
            segment_ends[grid](
                u_BLD, dt_BLD, A_ND, B_BLN, bias_D, ends, sums, L, D, segment, *_strides(u_BLD, dt_BLD, B_BLN), **tiles
            )
        scan_forward[grid](
            u_BLD, dt_BLD, A_ND, B_BLN, C_BLN, skip_D, z_BLD, bias_D, ends, sums, y_BLD, states,
            L, D, segment, *_strides(u_BLD, dt_BLD, B_BLN, C_BLN, z_BLD),
            Q=chunk_tokens(L), SEGMENTS=S > 1, SAVE=keep, **tiles,
        )  # fmt: skip
    return y_BLD, states


@torch.library.custom_op(
    "dtsf::scan_backward",
    mutates_args=(),
    schema=f"({SCHEMA}, Tensor states, Tensor grad, bool reverse) -> ({', '.join(['Tensor'] * 8)})",
)
def backward_op(
    u_BLD: Tensor, dt_BLD: Tensor, A_DN: Tensor, B_BLN: Tensor, C_BLN: Tensor, skip_D: Tensor, z_BLD: Tensor, bias_D: Tensor,
    states: Tensor, grad_BLD: Tensor, reverse: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return the gradients of u, dt, A, B, C, skip, z and bias."""
    (B, L, D), N = u_BLD.shape, A_DN.shape[1]
    A2_DN = (A_DN * LOG2E).contiguous()
    S, segment = segments(u_BLD, WARPS_BACK)
    J, B, S = grid = (triton.cdiv(D, BLOCK), B, S)
    du, ddt, dz = _like(u_BLD, dt_BLD, z_BLD)
    new = states.new_empty
    dA_BSDN, dB_JBLN, dC_JBLN = new((B, S, D, N)), new((J, B, L, N)), new((J, B, L, N))
    dskip_BSD, dbias_BSD = new((B, S, D)), new((B, S, D))
    heads, sums = (new((B, S, D, N)), new((B, S, D))) if S > 1 else (states, states)
    scratch = new((J * B * S, chunk_tokens(L) // STEP_BACK, BLOCK, N))
    tiles = {"N": N, "BD": BLOCK, "REVERSE": reverse, "num_warps": 1}
    with torch.cuda.device(u_BLD.device) if u_BLD.is_cuda else nullcontext():  # the interpreter has no GPU
        if S > 1:
            segment_heads[grid](
                dt_BLD, A2_DN.t().contiguous(), C_BLN, z_BLD, bias_D, grad_BLD, heads, sums,
                L, D, segment, *_strides(dt_BLD, C_BLN, z_BLD, grad_BLD), T=STEP, **tiles,
            )  # fmt: skip
        scan_backward[grid](
            u_BLD, dt_BLD, A2_DN, B_BLN, C_BLN, skip_D, z_BLD, bias_D, grad_BLD, states, heads, sums, scratch,
            du, ddt, dz, dA_BSDN, dB_JBLN, dC_JBLN, dskip_BSD, dbias_BSD,
            L, D, segment, *_strides(u_BLD, dt_BLD, B_BLN, C_BLN, z_BLD, grad_BLD),
            T=STEP_BACK, Q=chunk_tokens(L), SEGMENTS=S > 1, **tiles,
        )  # fmt: skip
    dA_DN, dskip_D, dbias_D = (x.sum((0, 1)) for x in (dA_BSDN, dskip_BSD, dbias_BSD))
    return du, ddt, dA_DN, dB_JBLN.sum(0).to(B_BLN.dtype), dC_JBLN.sum(0).to(C_BLN.dtype), dskip_D, dz, dbias_D


@forward_op.register_fake
def _(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, skip: Any, z: Any, bias: Any, reverse: bool, keep: bool
) -> Any:
    n_batch, L, D = u.shape
    shape = (n_batch, -(-L // chunk_tokens(L)), D, A.shape[1]) if keep else (0,)
    return u.new_empty(u.shape), A.new_empty(shape, dtype=torch.float32)


@backward_op.register_fake
def _(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, skip: Tensor, z: Tensor, bias: Tensor, states: Any, grad: Any,
    reverse: bool,
) -> Any:  # fmt: skip
    return tuple(_like(u, dt, A, B, C, skip, z, bias))


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.reverse, _ = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad_BLD: Tensor | None, _states: Tensor | None) -> tuple[Tensor | None, ...]:
    *inputs, states = ctx.saved_tensors
    if grad_BLD is None:
        return (None,) * 10
    refuse_graph("triton")
    grad_BLD = grad_BLD if grad_BLD.stride(-1) == 1 else grad_BLD.contiguous()
    found = torch.ops.dtsf.scan_backward(*inputs, states, grad_BLD, ctx.reverse)
    return *(g.to(x.dtype) for x, g in zip(inputs, found, strict=True)), None, None


forward_op.register_autograd(_gradients, setup_context=_keep_inputs)


def scan(inputs: ScanInputs) -> Tensor:
    """Run the scan; see :func:`dtsf.model.scan.selective_scan`. N is 8 or 16. Contiguous channels are read without a copy."""
    u_BDL, dt_BDL, A_DN, B_BNL, C_BNL, D_D, z_BDL, dt_bias_D, reverse = inputs

    def rows(x_BXL: Tensor) -> Tensor:
        x_BLX = x_BXL.transpose(1, 2)
        return x_BLX if x_BLX.stride(-1) == 1 else x_BLX.contiguous()

    if u_BDL.numel() == 0:
        return torch.zeros_like(u_BDL)
    A_DN, skip_D, bias_D = (x.float().contiguous() for x in (A_DN, D_D, dt_bias_D))
    tensors = (rows(u_BDL), rows(dt_BDL), A_DN, rows(B_BNL), rows(C_BNL), skip_D, rows(z_BDL), bias_D)
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    y_BLD: Tensor = torch.ops.dtsf.scan_forward(*tensors, reverse, keep)[0]
    return y_BLD.transpose(1, 2)
