"""Selective scan and causal convolution in plain PyTorch: the fallback, and in float64 the reference.
Letters: B batch, D channels, L tokens, N state, K taps, M chunks of Q tokens, X other axes.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class ScanInputs(NamedTuple):
    """Inputs of a scan."""

    u_BDL: Tensor
    dt_BDL: Tensor  # step sizes before bias and softplus
    A_DN: Tensor  # state decay, negative
    B_BNL: Tensor
    C_BNL: Tensor
    D_D: Tensor
    z_BDL: Tensor
    dt_bias_D: Tensor
    reverse: bool = False  # scan from the last token to the first, and write results at their tokens


def scan(inputs: ScanInputs) -> Tensor:
    """Run the scan; see :func:`dtsf.model.scan.selective_scan`. The backward stores two (B, L, D, N) tensors."""
    given, reverse = inputs.u_BDL, inputs.reverse
    wide = torch.promote_types(given.dtype, torch.float32)
    with torch.autocast(given.device.type, enabled=False):
        u_BDL, dt_BDL, A_DN, B_BNL, C_BNL, D_D, z_BDL, bias_D = (x.to(wide) for x in inputs[:8])
        dt_BDL = F.softplus(dt_BDL + bias_D[:, None])
        rows = [x.transpose(1, 2) for x in (u_BDL, dt_BDL, B_BNL, C_BNL)]
        u_BLD, dt_BLD, B_BLN, C_BLN = (x_BLX.flip(1) for x_BLX in rows) if reverse else rows
        run = outputs if torch.compiler.is_compiling() else _Recurrence.apply
        y_BLD: Tensor = run(u_BLD, dt_BLD, A_DN, B_BLN, C_BLN)
        y_BDL = (y_BLD.flip(1) if reverse else y_BLD).transpose(1, 2)
        y_BDL = (y_BDL + D_D[:, None] * u_BDL) * F.silu(z_BDL)
    return y_BDL.to(given.dtype)


def outputs(u_BLD: Tensor, dt_BLD: Tensor, A_DN: Tensor, B_BLN: Tensor, C_BLN: Tensor) -> Tensor:
    """Compute the recurrence in operators that every exporter and autograd of every order support."""
    decay_BLND = torch.exp(dt_BLD.unsqueeze(2) * A_DN.t())
    state_BLND = states_by_chunks(decay_BLND, (dt_BLD * u_BLD).unsqueeze(2) * B_BLN.unsqueeze(3))
    return torch.matmul(C_BLN.unsqueeze(2), state_BLND).squeeze(2)


def states_by_chunks(decay_BLX: Tensor, input_BLX: Tensor) -> Tensor:
    """Compute all states of ``h_t = decay_t h_{t-1} + input_t`` in about ``2 sqrt(L)`` steps instead of L.
    First within all chunks of about sqrt(L) tokens at once; then from chunk to chunk. Decays are at most 1: no product overflows.
    """
    length = decay_BLX.shape[1]
    size = int(max(1, length - 1) ** 0.5) + 1
    n_chunks = -(-length // size)
    if short := n_chunks * size - length:
        padding = (0, 0) * (decay_BLX.ndim - 2) + (0, short)
        decay_BLX, input_BLX = F.pad(decay_BLX, padding), F.pad(input_BLX, padding)
    decay_BMQX, input_BMQX = (x.unflatten(1, (n_chunks, size)) for x in (decay_BLX, input_BLX))
    states, products = [input_BMQX[:, :, 0]], [decay_BMQX[:, :, 0]]
    for decay_BMX, input_BMX in zip(decay_BMQX.unbind(2)[1:], input_BMQX.unbind(2)[1:], strict=True):
        states.append(decay_BMX * states[-1] + input_BMX)
        products.append(decay_BMX * products[-1])
    carries = [torch.zeros_like(states[-1][:, 0])]
    for last_BX, whole_BX in zip(states[-1].unbind(1), products[-1].unbind(1), strict=True):
        carries.append(whole_BX * carries[-1] + last_BX)
    carry_BM1X = torch.stack(carries[:-1], 1).unsqueeze(2)
    state_BMQX = torch.stack(states, 2) + torch.stack(products, 2) * carry_BM1X
    return state_BMQX.flatten(1, 2)[:, :length]


def states(decay_BLX: Tensor, input_BLX: Tensor) -> Tensor:
    """Compute all states, by chunks on a GPU, where every step is a launch. May overwrite ``input_BLX``."""
    if decay_BLX.device.type != "cpu":
        return states_by_chunks(decay_BLX, input_BLX)
    steps = list(zip(decay_BLX.unbind(1), input_BLX.unbind(1), strict=True))
    for (_, before_BX), (decay_BX, state_BX) in pairwise(steps):
        state_BX.addcmul_(decay_BX, before_BX)
    return input_BLX


class _Recurrence(torch.autograd.Function):
    """Recurrence ``h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t``, ``y_t = <C_t, h_t>``; its backward is faster than autograd's."""

    @staticmethod
    def forward(ctx: Any, u_BLD: Tensor, dt_BLD: Tensor, A_DN: Tensor, B_BLN: Tensor, C_BLN: Tensor) -> Tensor:
        # D is the last axis, so that all products with C and B run along contiguous memory, 2 to 3 times faster.
        decay_BLND = torch.mul(dt_BLD.unsqueeze(2), A_DN.t().contiguous()).exp_()
        state_BLND = states(decay_BLND, torch.mul((dt_BLD * u_BLD).unsqueeze(2), B_BLN.unsqueeze(3)))
        ctx.save_for_backward(u_BLD, dt_BLD, A_DN, B_BLN, C_BLN, decay_BLND, state_BLND)
        return torch.matmul(C_BLN.unsqueeze(2), state_BLND).squeeze(2)

    @staticmethod
    def backward(ctx: Any, grad_y_BLD: Tensor) -> tuple[Tensor | None, ...]:
        """Run the recurrence of the gradients from the last token to the first."""
        *inputs, decay_BLND, state_BLND = ctx.saved_tensors
        if torch.is_grad_enabled():  # under create_graph: gradients that can be differentiated again
            views = [x.view_as(x) for x in inputs]  # a tensor may be two of the inputs
            wanted = [x for x in views if x.requires_grad]
            found = iter(torch.autograd.grad(outputs(*views), wanted, grad_y_BLD, create_graph=True))
            return tuple(next(found) if x.requires_grad else None for x in views)
        u_BLD, dt_BLD, A_DN, B_BLN, C_BLN = inputs
        grad_C_BLN = torch.matmul(state_BLND, grad_y_BLD.unsqueeze(3)).squeeze(3)
        # grad_h_t = C_t grad_y_t + decay_{t+1} grad_h_{t+1}
        grad_BLND = torch.mul(grad_y_BLD.unsqueeze(2), C_BLN.unsqueeze(3))
        later_BLND = torch.cat([decay_BLND[:, 1:], torch.ones_like(decay_BLND[:, :1])], 1)
        grad_BLND = states(later_BLND.flip(1), grad_BLND.flip(1)).flip(1)
        grad_B_BLN = torch.matmul(grad_BLND, (dt_BLD * u_BLD).unsqueeze(3)).squeeze(3)
        grad_dtu_BLD = torch.matmul(B_BLN.unsqueeze(2), grad_BLND).squeeze(2)
        # Gradient of dt_t A: grad_h_t * decay_t * h_{t-1}, 0 for the first token, whose state before is 0.
        grad_BLND[:, 0] = 0
        grad_BLND[:, 1:].mul_(decay_BLND[:, 1:]).mul_(state_BLND[:, :-1])
        grad_dt_BLD = grad_dtu_BLD * u_BLD + torch.mul(grad_BLND, A_DN.t()).sum(2)
        grad_A_DN = grad_BLND.mul_(dt_BLD.unsqueeze(2)).sum((0, 1)).t()
        return grad_dtu_BLD * dt_BLD, grad_dt_BLD, grad_A_DN, grad_B_BLN, grad_C_BLN


def refuse_graph(name: str) -> None:
    """Raise RuntimeError under ``create_graph``: kernels have no second gradients, and ``once_differentiable`` hides that."""
    if torch.is_grad_enabled():
        raise RuntimeError(f"the {name} scan has no gradient of its gradient: use dtsf.model.scan.use_backend('plain')")


def conv(x_BLD: Tensor, weight_KD: Tensor, bias_D: Tensor, *, reverse: bool) -> Tensor:
    """Convolve; see :func:`dtsf.model.scan.causal_conv`. (B, L, D). On a CPU by shifted products, whose backward is faster."""
    taps, length = len(weight_KD), x_BLD.shape[1]
    if x_BLD.is_cuda:
        padded_BDL = F.pad(x_BLD.transpose(1, 2), (0, taps - 1) if reverse else (taps - 1, 0))
        weight_D1K = (weight_KD.flip(0) if reverse else weight_KD).t().unsqueeze(1)
        sums_BDL = F.conv1d(padded_BDL, weight_D1K.to(x_BLD.dtype), bias_D.to(x_BLD.dtype), groups=x_BLD.shape[2])
        return F.silu(sums_BDL).transpose(1, 2)
    padded_BLD = F.pad(x_BLD, (0, 0, 0, taps - 1) if reverse else (0, 0, taps - 1, 0))
    y_BLD = bias_D
    for k in range(taps):
        first = taps - 1 - k if reverse else k
        y_BLD = y_BLD + weight_KD[k] * padded_BLD[:, first : first + length]
    return F.silu(y_BLD)
