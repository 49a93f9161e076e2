"""The causal depthwise convolution and its SiLU on a GPU by Triton, as operators of PyTorch's own kind.

Forward one pass over memory; backward one too: what goes into SiLU is computed again where it is needed, from neighbours that the
first-level cache holds. Gradients of taps and bias are summed in one order, by blocks and then over them.

Letters: B batch, D channels, L tokens, K taps, R blocks of tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dtsf.model.scan.plain import conv_by_shifts, gradients_with_graph
from dtsf.model.scan.triton_kernels import sigmoid
from dtsf.model.scan.triton_launch import on_device

TOKENS, CHANNELS = 32, 64
"""Of a program, which has four warps: 128 bytes of a token in bfloat16 are one line of the cache."""


@triton.jit
def tap(x, l, back, x_l, d, L, inside):
    """The tokens ``back`` before ``l``, in float32; 0 outside the sequence."""
    at = l - back
    there = (at >= 0) & (at < L)
    return tl.load(x + at[:, None] * x_l + d[None, :], mask=there[:, None] & inside[None, :], other=0.0).to(tl.float32)


@triton.jit
def before_silu(x, weight_KD, bias, l, x_l, d, L, D, inside, K: tl.constexpr, SIGN: tl.constexpr):
    """The convolution of the tokens ``l`` before SiLU; ``SIGN`` is 1 looking back, -1 looking ahead."""
    total = tl.zeros((l.shape[0], d.shape[0]), tl.float32) + bias[None, :]
    for k in tl.static_range(K):
        weight = tl.load(weight_KD + k * D + d, mask=inside, other=0.0)
        total += weight[None, :] * tap(x, l, SIGN * (K - 1 - k), x_l, d, L, inside)
    return total


@triton.jit
def conv_forward(
    x, weight_KD, bias_D, y_BLD, L, D, x_b, x_l,
    K: tl.constexpr, BL: tl.constexpr, BD: tl.constexpr, SIGN: tl.constexpr,
):  # fmt: skip
    """One block of tokens and channels."""
    b = tl.program_id(2).to(tl.int64)
    l = tl.program_id(1) * BL + tl.arange(0, BL)
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    inside = d < D
    bias = tl.load(bias_D + d, mask=inside, other=0.0)
    total = before_silu(x + b * x_b, weight_KD, bias, l, x_l, d, L, D, inside, K, SIGN)
    at = y_BLD + b * L * D + l[:, None] * D + d[None, :]
    tl.store(at, (total * sigmoid(total)).to(y_BLD.dtype.element_ty), mask=(l < L)[:, None] & inside[None, :])


@triton.jit
def conv_backward(
    x, weight_KD, bias_D, grad, dx_BLD, dweight_BRKD, dbias_BRD, L, D, x_b, x_l, grad_b, grad_l,
    K: tl.constexpr, BL: tl.constexpr, BD: tl.constexpr, SIGN: tl.constexpr,
):  # fmt: skip
    """All gradients of one block; those of taps and bias are its share."""
    b, R = tl.program_id(2).to(tl.int64), tl.num_programs(1)
    l = tl.program_id(1) * BL + tl.arange(0, BL)
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    inside = d < D
    bias = tl.load(bias_D + d, mask=inside, other=0.0)
    x, grad = x + b * x_b, grad + b * grad_b
    share = b * R + tl.program_id(1)
    dx = tl.zeros((BL, BD), tl.float32)
    for k in tl.static_range(K):
        ahead = SIGN * (K - 1 - k)
        total = before_silu(x, weight_KD, bias, l + ahead, x_l, d, L, D, inside, K, SIGN)
        gate = sigmoid(total)
        # Where the token lies outside the sequence its gradient is read as 0.
        dtotal = tap(grad, l, -ahead, grad_l, d, L, inside) * gate * (1.0 + total * (1.0 - gate))
        dx += tl.load(weight_KD + k * D + d, mask=inside, other=0.0)[None, :] * dtotal
        # Tap k takes x at l to the output at l + ahead: the same product summed over l.
        taken = tap(x, l, 0, x_l, d, L, inside)
        tl.store(dweight_BRKD + (share * K + k) * D + d, tl.sum(dtotal * taken, 0), mask=inside)
        if k == K - 1:
            tl.store(dbias_BRD + share * D + d, tl.sum(dtotal, 0), mask=inside)
    at = dx_BLD + b * L * D + l[:, None] * D + d[None, :]
    tl.store(at, dx.to(dx_BLD.dtype.element_ty), mask=(l < L)[:, None] & inside[None, :])


def _grid(x_BLD: Tensor) -> tuple[int, int, int]:
    return triton.cdiv(x_BLD.shape[2], CHANNELS), triton.cdiv(x_BLD.shape[1], TOKENS), x_BLD.shape[0]


def _tiles(weight_KD: Tensor, reverse: bool) -> dict[str, int]:
    return {"K": weight_KD.shape[0], "BL": TOKENS, "BD": CHANNELS, "SIGN": -1 if reverse else 1, "num_warps": 4}


@torch.library.custom_op(
    "dtsf::conv_forward", mutates_args=(), schema="(Tensor x, Tensor weight, Tensor bias, bool reverse) -> Tensor"
)
def _forward(x_BLD: Tensor, weight_KD: Tensor, bias_D: Tensor, reverse: bool) -> Tensor:
    """(B, L, D)."""
    y_BLD = torch.empty_like(x_BLD, memory_format=torch.contiguous_format)
    _, L, D = x_BLD.shape
    with on_device(x_BLD):
        conv_forward[_grid(x_BLD)](
            x_BLD, weight_KD, bias_D, y_BLD, L, D, *x_BLD.stride()[:2], **_tiles(weight_KD, reverse)
        )
    return y_BLD


@torch.library.custom_op(
    "dtsf::conv_backward",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor bias, Tensor grad, bool reverse) -> (Tensor, Tensor, Tensor)",
)
def _backward(
    x_BLD: Tensor, weight_KD: Tensor, bias_D: Tensor, grad_BLD: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias."""
    B, L, D = x_BLD.shape
    grid = _grid(x_BLD)
    dx_BLD = torch.empty_like(x_BLD, memory_format=torch.contiguous_format)
    dweight_BRKD = weight_KD.new_empty((B, grid[1], *weight_KD.shape))
    dbias_BRD = weight_KD.new_empty((B, grid[1], D))
    with on_device(x_BLD):
        conv_backward[grid](
            x_BLD, weight_KD, bias_D, grad_BLD, dx_BLD, dweight_BRKD, dbias_BRD,
            L, D, *x_BLD.stride()[:2], *grad_BLD.stride()[:2], **_tiles(weight_KD, reverse),
        )  # fmt: skip
    return dx_BLD, dweight_BRKD.sum((0, 1)), dbias_BRD.sum((0, 1))


@_forward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, reverse: bool) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@_backward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor, reverse: bool) -> tuple[Tensor, Tensor, Tensor]:
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    return dx, torch.empty_like(weight), torch.empty_like(bias)


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.reverse = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, grad_BLD: Tensor) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():

        def function(*given: Tensor) -> Tensor:
            return conv_by_shifts(*given, reverse=ctx.reverse)

        return *gradients_with_graph(function, ctx.saved_tensors, grad_BLD), None
    grad_BLD = grad_BLD if grad_BLD.stride(-1) == 1 else grad_BLD.contiguous()
    return *torch.ops.dtsf.conv_backward(*ctx.saved_tensors, grad_BLD, ctx.reverse), None


_forward.register_autograd(_gradients, setup_context=_keep_inputs)


def conv_by_triton(x_BLD: Tensor, weight_KD: Tensor, bias_D: Tensor, *, reverse: bool) -> Tensor:
    """Convolve; see :func:`dtsf.model.scan.dispatch.causal_conv`. (B, L, D), in the dtype of ``x_BLD``."""
    if x_BLD.numel() == 0:
        return torch.zeros_like(x_BLD)
    x_BLD = x_BLD if x_BLD.stride(-1) == 1 else x_BLD.contiguous()
    y_BLD: Tensor = torch.ops.dtsf.conv_forward(
        x_BLD, weight_KD.float().contiguous(), bias_D.float().contiguous(), reverse
    )
    return y_BLD
