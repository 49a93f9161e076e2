"""The selective scan of Mamba-1: one function, run by the fastest implementation that is present.

``h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t``, ``y_t = <C_t, h_t> + D u_t``, gated by ``SiLU(z)``
(Gu & Dao 2023, equations 2 and 3; argument order and shapes as in ``mamba_ssm.selective_scan_fn``).

Letters: B batch, D channels, L tokens, N state.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["causal_conv", "kernel_status", "scan_backend", "selective_scan", "selective_scan_plain"]


@lru_cache(maxsize=1)
def kernel_status() -> tuple[Any, Any, str]:
    """Look once for the CUDA kernels of mamba-ssm and causal-conv1d.

    Returns:
        The scan function and the convolution function, or None in their place, and a sentence that says
        what was found. A broken install (undefined symbol, Triton failing) counts as absent, never as fatal.

    """
    try:
        scan = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
        conv = importlib.import_module("causal_conv1d").causal_conv1d_fn
    # A half-installed CUDA extension raises anything from ImportError to RuntimeError at import.
    except (ImportError, OSError, RuntimeError, AttributeError, AssertionError, NameError) as error:
        return None, None, f"mamba-ssm is not usable ({error}); on a CUDA machine: make setup-gpu"
    return scan, conv, "mamba-ssm and causal-conv1d are installed"


def scan_backend(device: torch.device) -> str:
    """Name of the implementation that :func:`selective_scan` runs on ``device``: ``mamba-ssm`` or ``plain``."""
    return "mamba-ssm" if device.type == "cuda" and kernel_status()[0] is not None else "plain"


def selective_scan(
    u_BDL: Tensor,
    dt_BDL: Tensor,
    A_DN: Tensor,
    B_BNL: Tensor,
    C_BNL: Tensor,
    D_D: Tensor | None = None,
    z_BDL: Tensor | None = None,
    dt_bias_D: Tensor | None = None,
) -> Tensor:
    """Run the scan over the last axis; ``dt`` goes through softplus after its bias is added.

    Args:
        u_BDL: Input.
        dt_BDL: Step size before bias and softplus.
        A_DN: State decay, negative.
        B_BNL: Input projection of each token.
        C_BNL: Output projection of each token.
        D_D: Skip weight, or None.
        z_BDL: Gate, or None.
        dt_bias_D: Bias of ``dt``, or None.

    Returns:
        (B, D, L), in the dtype of ``u_BDL``; the recurrence itself runs in float32 (float64 for float64 input).

    """
    if scan_backend(u_BDL.device) == "mamba-ssm" and u_BDL.dtype != torch.float64:
        same = u_BDL.dtype
        y_BDL: Tensor = kernel_status()[0](
            u_BDL.contiguous(),
            dt_BDL.to(same).contiguous(),
            A_DN.float(),
            B_BNL.to(same).contiguous(),
            C_BNL.to(same).contiguous(),
            None if D_D is None else D_D.float(),
            None if z_BDL is None else z_BDL.to(same).contiguous(),
            None if dt_bias_D is None else dt_bias_D.float(),
            True,
        )
        return y_BDL
    return selective_scan_plain(u_BDL, dt_BDL, A_DN, B_BNL, C_BNL, D_D, z_BDL, dt_bias_D)


def selective_scan_plain(
    u_BDL: Tensor,
    dt_BDL: Tensor,
    A_DN: Tensor,
    B_BNL: Tensor,
    C_BNL: Tensor,
    D_D: Tensor | None = None,
    z_BDL: Tensor | None = None,
    dt_bias_D: Tensor | None = None,
) -> Tensor:
    """Plain PyTorch on any device and in float64 too: the fallback, and the oracle for the kernels.

    Arguments and result as for :func:`selective_scan`. Differentiable once; keeps two (B, L, D, N) tensors.
    """
    wide = torch.float64 if u_BDL.dtype == torch.float64 else torch.float32
    with torch.autocast(u_BDL.device.type, enabled=False):
        u, dt, A, B, C = (x.to(wide) for x in (u_BDL, dt_BDL, A_DN, B_BNL, C_BNL))
        if dt_bias_D is not None:
            dt = dt + dt_bias_D.to(wide)[:, None]
        dt = F.softplus(dt)
        dt_BLD, u_BLD = dt.transpose(1, 2), u.transpose(1, 2)
        y: Tensor = _Recurrence.apply(  # type: ignore[no-untyped-call]
            u_BLD, dt_BLD, A, B.transpose(1, 2), C.transpose(1, 2)
        ).transpose(1, 2)
        if D_D is not None:
            y = y + D_D.to(wide)[:, None] * u
        if z_BDL is not None:
            y = y * F.silu(z_BDL.to(wide))
    return y.to(u_BDL.dtype)


class _Recurrence(torch.autograd.Function):
    """``h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t``, ``y_t = <C_t, h_t>``, with its own backward.

    Autograd through the loop would make some forty passes over (B, L, D, N) tensors; this makes about twelve
    (benchmarks/scan.py compares). The steps come from ``unbind``: indexing ``x[:, t]`` in a loop costs ten times more
    wherever autograd sees it.
    """

    @staticmethod
    def forward(ctx: Any, u_BLD: Tensor, dt_BLD: Tensor, A_DN: Tensor, B_BLN: Tensor, C_BLN: Tensor) -> Tensor:
        """Return y (B, L, D)."""
        A_ND = A_DN.t().contiguous()
        # D is the last axis: all products with C and B then run along contiguous memory, 2 to 3 times faster.
        decay_BLND = torch.mul(dt_BLD.unsqueeze(2), A_ND).exp_()
        state_BLND = torch.mul((dt_BLD * u_BLD).unsqueeze(2), B_BLN.unsqueeze(3))
        # In place: the tensor holds the input of every step and is turned into the state of every step.
        steps = list(zip(decay_BLND.unbind(1), state_BLND.unbind(1), strict=True))
        for (_, before_BND), (decay_BND, state_BND) in pairwise(steps):
            state_BND.addcmul_(decay_BND, before_BND)
        ctx.save_for_backward(u_BLD, dt_BLD, A_ND, B_BLN, C_BLN, decay_BLND, state_BLND)
        return torch.matmul(C_BLN.unsqueeze(2), state_BLND).squeeze(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Run the recurrence of the gradients from the last token to the first."""
        u_BLD, dt_BLD, A_ND, B_BLN, C_BLN, decay_BLND, state_BLND = ctx.saved_tensors
        grad_C_BLN = torch.matmul(state_BLND, grad_y_BLD.unsqueeze(3)).squeeze(3)
        # grad_h_t = C_t grad_y_t + decay_{t+1} grad_h_{t+1}
        grad_BLND = torch.mul(grad_y_BLD.unsqueeze(2), C_BLN.unsqueeze(3))
        steps = list(zip(decay_BLND.unbind(1), grad_BLND.unbind(1), strict=True))
        for (decay_BND, later_BND), (_, grad_BND) in pairwise(reversed(steps)):
            grad_BND.addcmul_(decay_BND, later_BND)
        grad_B_BLN = torch.matmul(grad_BLND, (dt_BLD * u_BLD).unsqueeze(3)).squeeze(3)
        grad_dtu_BLD = torch.matmul(B_BLN.unsqueeze(2), grad_BLND).squeeze(2)
        # Gradient of dt_t A: grad_h_t * decay_t * h_{t-1}, 0 for the first token, whose state before is 0.
        grad_BLND[:, 0] = 0
        grad_BLND[:, 1:].mul_(decay_BLND[:, 1:]).mul_(state_BLND[:, :-1])
        grad_dt_BLD = grad_dtu_BLD * u_BLD + torch.mul(grad_BLND, A_ND).sum(2)
        grad_A_DN = grad_BLND.mul_(dt_BLD.unsqueeze(2)).sum((0, 1)).t()
        return grad_dtu_BLD * dt_BLD, grad_dt_BLD, grad_A_DN, grad_B_BLN, grad_C_BLN


def causal_conv(x_BDL: Tensor, weight_D1W: Tensor, bias_D: Tensor) -> Tensor:
    """Depthwise convolution over L that looks only back (left padding), followed by SiLU. Returns (B, D, L)."""
    if scan_backend(x_BDL.device) == "mamba-ssm" and x_BDL.dtype != torch.float64:
        same = x_BDL.dtype
        y_BDL: Tensor = kernel_status()[1](x_BDL, weight_D1W.squeeze(1).to(same), bias_D.to(same), activation="silu")
        return y_BDL
    width, length = weight_D1W.shape[-1], x_BDL.shape[-1]
    # Four shifted products instead of a grouped convolution, whose backward on a CPU takes ten times as long.
    padded_BDL = F.pad(x_BDL, (width - 1, 0))
    weight_DW1 = weight_D1W.transpose(1, 2)
    y_BDL = bias_D.unsqueeze(-1)
    for k in range(width):
        y_BDL = y_BDL + weight_DW1[:, k] * padded_BDL[..., k : k + length]
    return F.silu(y_BDL)
