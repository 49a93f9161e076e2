"""Selective scan of Mamba-1 and its causal convolution, run by the first usable backend of the device, or by ``DTSF_SCAN``.

``h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t``, ``y_t = <C_t, h_t> + D u_t``, gated by ``SiLU(z)`` (Gu & Dao 2023, equations 2, 3).
Letters: B batch, D channels, L tokens, N state, K taps.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dtsf.errors import ConfigError
from dtsf.model.scan.plain import ScanInputs

__all__ = ["ScanInputs", "causal_conv", "choose_backend", "selective_scan", "use_backend"]

BACKENDS = {"cuda": ("mamba_ssm", "triton", "plain"), "cpu": ("numba", "plain")}  # in order of preference
MODULES = {"mamba_ssm": "mamba_ssm_scan", "triton": "triton_scan", "numba": "numba_scan", "plain": "plain"}
TRITON_STATES = (8, 16)  # N that the Triton kernels support
_chosen: ContextVar[str] = ContextVar("scan_backend", default="")


class Backend(NamedTuple):
    """Chosen backend, and why it was chosen and not the ones before it."""

    name: str
    reason: str


def choose_backend(device: torch.device, n_states: int = 16) -> Backend:
    """Return the backend for ``device`` and N states. Raises ConfigError: ``DTSF_SCAN`` names an unknown or unusable backend."""
    wanted = os.environ.get("DTSF_SCAN", "")
    if wanted and wanted not in MODULES:
        raise ConfigError(
            f"DTSF_SCAN={wanted!r} is not a backend of the scan: choose one of {', '.join(MODULES)}, or unset it"
        )
    names = BACKENDS.get(device.type, ("plain",))
    reasons: list[str] = []
    for name in (wanted,) if wanted in names else names:
        module, reason = _load(name)
        if name == "triton" and n_states not in TRITON_STATES:
            module, reason = None, f"triton supports {' or '.join(map(str, TRITON_STATES))} states, not {n_states}"
        reasons.insert(0, reason)
        if module is not None:
            return Backend(name, "; ".join(reasons))
    raise ConfigError(f"DTSF_SCAN={wanted!r}: {'; '.join(reasons)}; install it, or unset DTSF_SCAN")


@lru_cache(maxsize=8)
def _load(name: str) -> tuple[Any, str]:
    """Import a backend once. Returns its module or None, and the reason."""
    # A broken install of a compiled package raises any of these: a missing symbol, a wrong NumPy, a wrong LLVM or driver.
    broken = (ImportError, OSError, RuntimeError, AttributeError, TypeError, AssertionError, NameError, SystemError)
    try:
        module = importlib.import_module(f"dtsf.model.scan.{MODULES[name]}")
    except broken as error:
        return None, f"{name} is not usable ({error})"
    return module, f"{name} is usable" if name != "plain" else "plain PyTorch"


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run all scans of the context by this backend. ``plain`` is the only one with gradients of gradients."""
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def backend_for(x: Tensor, n_states: int = 16) -> Any:
    """Return the module that runs ``x``. Kernels do not support float64. A compiled graph for a CPU has PyTorch's operators only;
    ``torch.compile`` on a GPU takes the Triton kernels, which :meth:`dtsf.model.videomamba.VideoMamba.compile_mixers` loads.
    """
    from dtsf.model.scan import plain  # noqa: PLC0415

    if x.dtype == torch.float64:
        return plain
    if torch.compiler.is_compiling():
        if not x.is_cuda or n_states not in TRITON_STATES:
            return plain
        from dtsf.model.scan import triton_scan  # noqa: PLC0415

        return triton_scan
    return _load(_chosen.get() or choose_backend(x.device, n_states).name)[0]


def selective_scan(inputs: ScanInputs) -> Tensor:
    """Run the scan over the last axis: (B, D, L), in the dtype of ``u_BDL``. The recurrence runs in float32 or float64."""
    y_BDL: Tensor = backend_for(inputs.u_BDL, inputs.A_DN.shape[1]).scan(inputs)
    return y_BDL


def causal_conv(
    x_BDL: Tensor, weight_D1K: Tensor, bias_D: Tensor, *, reverse: bool = False, n_states: int = 16
) -> Tensor:
    """Convolve each channel over the tokens before, or after with ``reverse``; then SiLU. (B, D, L)."""
    # Backends compute in (B, L, D), the layout of linear layers.
    conv = backend_for(x_BDL, n_states).conv
    y_BLD: Tensor = conv(x_BDL.transpose(1, 2), weight_D1K.squeeze(1).t(), bias_D, reverse=reverse)
    return y_BLD.transpose(1, 2)
