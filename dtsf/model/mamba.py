"""Bidirectional Mamba block with the parameters of VideoMamba (``mamba_simple.py``, flag ``bimamba``), and its norms.

Letters: B sequences, L tokens, D width, I inner width (2 D), R rank of dt, N state; of norms: N norms, X tokens.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import nn

from dtsf.model.scan import ScanInputs, causal_conv, selective_scan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


class RMSNorm(nn.Module):
    """RMS norm ``x / sqrt(mean(x^2) + 1e-5) * weight`` of the last axis, without bias; computed in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise. The result has the weight's dtype."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)
        return (wide * scale).to(self.weight.dtype) * self.weight


class FeatureStatistics(nn.Module):
    """Mean and variance of each channel behind each norm of ``net``, over the tokens of all training clips.

    Test-time adaptation (:class:`dtsf.training.evaluate.OnlineAdapter`) aligns a test stream to them.
    """

    mean_var_N2D: Tensor

    def __init__(self, net: nn.Module, width: int) -> None:
        super().__init__()
        self.register_buffer("mean_var_N2D", torch.zeros(len(_norms(net)), 2, width))

    @property
    def recorded(self) -> bool:
        """True once the statistics are set: a recorded variance is never 0."""
        return bool((self.mean_var_N2D[:, 1] > 0).any())


def _norms(net: nn.Module) -> list[RMSNorm]:
    return [module for module in net.modules() if isinstance(module, RMSNorm)]


@contextmanager
def record_norms(net: nn.Module) -> Iterator[list[list[Tensor]]]:
    """Collect the output of each norm while the context is open: a list for each norm, tokens flattened to (X, D)."""
    norms = _norms(net)
    numbers = {norm: k for k, norm in enumerate(norms)}
    outputs: list[list[Tensor]] = [[] for _ in norms]

    def record(norm: nn.Module, _: object, output: Tensor) -> None:
        outputs[numbers[cast("RMSNorm", norm)]].append(output.flatten(0, -2).float())

    hooks = [norm.register_forward_hook(record) for norm in norms]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


class BidirectionalMamba(nn.Module):
    """Two selective scans of one sequence, forward and reversed, with shared ``in_proj`` and ``out_proj``.

    Each direction has its own convolution, ``x_proj``, ``dt_proj``, ``A_log`` and ``D`` (suffix ``_b`` for the reversed one). The
    directions are added, not averaged, as VideoMamba does and Vim does not.
    """

    def __init__(self, width: int, state: int = 16, conv: int = 4, expand: int = 2) -> None:
        super().__init__()
        inner = expand * width
        self.rank = math.ceil(width / 16)
        self.state = state
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.out_proj = nn.Linear(inner, width, bias=False)
        A_log_IN = torch.arange(1, state + 1, dtype=torch.float32).log().repeat(inner, 1)
        # VideoMamba's names, so that its checkpoints load: A_log, D, conv1d ... and A_b_log, D_b, conv1d_b ...
        for suffix in ("", "_b"):
            self.register_parameter(f"A{suffix}_log", nn.Parameter(A_log_IN.clone()))
            self.register_parameter(f"D{suffix}", nn.Parameter(torch.ones(inner)))
            self.add_module(f"conv1d{suffix}", nn.Conv1d(inner, inner, conv, groups=inner, padding=conv - 1))
            self.add_module(f"x_proj{suffix}", nn.Linear(inner, self.rank + 2 * state, bias=False))
            self.add_module(f"dt_proj{suffix}", nn.Linear(self.rank, inner, bias=True))

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Mix tokens. (B, L, D) -> (B, L, D)."""
        # Both directions read both halves, so each is copied once. Triton's kernels need no copy.
        halves = self.in_proj(x_BLD).chunk(2, dim=-1)
        x_BIL, z_BIL = (half.transpose(1, 2) if half.is_cuda else half.contiguous().transpose(1, 2) for half in halves)
        y_BIL = self._scan(x_BIL, z_BIL, "", reverse=False) + self._scan(x_BIL, z_BIL, "_b", reverse=True)
        out: Tensor = self.out_proj(y_BIL.transpose(1, 2))
        return out

    def _scan(self, x_BIL: Tensor, z_BIL: Tensor, suffix: str, *, reverse: bool) -> Tensor:
        """Run one direction: convolution, projections of each token, scan, gate."""
        conv = cast("nn.Conv1d", self.get_submodule(f"conv1d{suffix}"))
        dt_proj = cast("nn.Linear", self.get_submodule(f"dt_proj{suffix}"))
        x_BIL = causal_conv(x_BIL, conv.weight, cast("Tensor", conv.bias), reverse=reverse, n_states=self.state)
        projected_BLX = self.get_submodule(f"x_proj{suffix}")(x_BIL.transpose(1, 2))
        dt_BLR, B_BLN, C_BLN = projected_BLX.split([self.rank, self.state, self.state], dim=-1)
        # The bias is added inside the scan, in float32, once.
        dt_BIL = F.linear(dt_BLR, dt_proj.weight).transpose(1, 2)
        A_IN = -torch.exp(self.get_parameter(f"A{suffix}_log").to(torch.promote_types(x_BIL.dtype, torch.float32)))
        D_I, B_BNL, C_BNL = self.get_parameter(f"D{suffix}"), B_BLN.transpose(1, 2), C_BLN.transpose(1, 2)
        return selective_scan(ScanInputs(x_BIL, dt_BIL, A_IN, B_BNL, C_BNL, D_I, z_BIL, dt_proj.bias, reverse))


class Block(nn.Module):
    """Pre-norm block: add to the residual, normalise, mix. The residual stays in float32 under autocast."""

    def __init__(self, width: int, state: int, conv: int, expand: int) -> None:
        super().__init__()
        self.mixer = BidirectionalMamba(width, state, conv, expand)
        self.norm = RMSNorm(width)

    def forward(self, hidden_BLD: Tensor, residual_BLD: Tensor | None, drop: float) -> tuple[Tensor, Tensor]:
        """Return the mixed tokens and the residual before them; ``drop`` is what the previous output loses."""
        if self.training and drop > 0:
            hidden_BLD = drop_path(hidden_BLD, drop)
        wide = torch.promote_types(hidden_BLD.dtype, torch.float32)
        residual_BLD = hidden_BLD.to(wide) if residual_BLD is None else residual_BLD + hidden_BLD
        return self.mixer(self.norm(residual_BLD)), residual_BLD


def drop_path(x_BLD: Tensor, rate: float) -> Tensor:
    """Stochastic depth: drop whole sequences with probability ``rate`` and scale the others by ``1 / (1 - rate)``."""
    keep = 1.0 - rate
    mask_B11 = torch.rand(x_BLD.shape[0], 1, 1, device=x_BLD.device) < keep
    return x_BLD * mask_B11.to(x_BLD.dtype) / keep
