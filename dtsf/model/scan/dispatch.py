"""The selective scan of Mamba-1 and its causal convolution: one function each, run by the fastest form that is right here.

``h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t``, ``y_t = <C_t, h_t> + D u_t``, gated by ``SiLU(z)``
(Gu & Dao 2023, equations 2 and 3; argument order and shapes as in ``mamba_ssm.selective_scan_fn``).

Letters: B batch, D channels, L tokens, N state.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from dtsf.model.scan import parity as trial
from dtsf.model.scan.mamba_ssm_scan import conv_by_mamba_ssm, kernel_status, scan_by_mamba_ssm
from dtsf.model.scan.plain import conv_by_shifts, selective_scan_plain

if TYPE_CHECKING:
    from torch import Tensor

STATES = (8, 16)
"""N for which Triton's loops are laid out."""

LOADED: dict[str, Any] = {}
"""Triton's ``scan`` and ``conv`` once they are imported, and ``distrusted`` once they were wrong or did not run on a card: a
plain dictionary, which ``torch.compile`` can read."""


@dataclass(frozen=True)
class Choice:
    """Which implementation runs, and why."""

    name: str
    """``triton``, ``mamba-ssm``, ``numba``, or ``plain`` (PyTorch)."""
    reason: str
    """One sentence, for ``dtsf doctor``."""


def kernel_choice(device: torch.device, n_states: int = 16) -> Choice:
    """Which implementation runs on ``device`` for anything but float64, and why. The one place that decides.

    On CUDA: Triton, unless mamba-ssm is there and was faster on this card; each only if it was right on this card. The first
    call on a card tries them, which takes some seconds; what came of it is kept (:mod:`dtsf.model.scan.parity`).
    """
    if device.type == "cpu":
        found, _, reason = cpu_kernel()
        return Choice("plain" if found is None else "numba", reason)
    if device.type != "cuda":
        return Choice("plain", f"there is no kernel for the device {device.type}")
    return _on_cuda(device.index, n_states)


@lru_cache(maxsize=16)
def _on_cuda(index: int | None, n_states: int) -> Choice:
    triton, why_not_triton = gpu_kernel()
    theirs, _, why_not_theirs = kernel_status()
    forms = {"mamba-ssm": (scan_by_mamba_ssm, conv_by_mamba_ssm)} if theirs is not None else {}
    if triton is not None and n_states in STATES:
        forms["triton"] = (triton, LOADED["conv"])
    elif triton is not None:
        why_not_triton = f"Triton's loops are for {' or '.join(map(str, STATES))} states, not {n_states}"
    if not torch.cuda.is_available():
        return Choice("plain", f"chunked PyTorch: no CUDA device is seen; {why_not_triton}; {why_not_theirs}")
    found = trial.on_this_card(forms, torch.device("cuda", index or 0))
    right = {name: result for name, result in found.items() if result.right}
    if "triton" in forms and "triton" not in right:
        LOADED["distrusted"] = True
    said = [result.said for result in found.values()]
    said += [why for name, why in (("triton", why_not_triton), ("mamba-ssm", why_not_theirs)) if name not in forms]
    if not right:
        return Choice("plain", "; ".join(["chunked PyTorch", *said]))
    # Triton where they are level, and where only one could be timed.
    name = min(right, key=lambda name: (right[name].milliseconds, name != "triton"))
    return Choice(name, "; ".join(said))


@lru_cache(maxsize=1)
def gpu_kernel() -> tuple[Any, str]:
    """Look once for Triton: the scan or None, and a sentence that says what was found."""
    try:
        LOADED["scan"] = importlib.import_module("dtsf.model.scan.triton_scan").scan_by_triton
        LOADED["conv"] = importlib.import_module("dtsf.model.scan.triton_conv").conv_by_triton
        version = importlib.import_module("triton").__version__
    # A Triton that does not fit its PyTorch raises anything at import.
    except (ImportError, OSError, RuntimeError, AttributeError, TypeError) as error:
        LOADED.clear()
        return None, f"Triton is not usable ({error}): pip install triton"
    return LOADED["scan"], f"Triton {version} is installed"


@lru_cache(maxsize=1)
def cpu_kernel() -> tuple[Any, Any, str]:
    """Look once for numba: the scan and the convolution or None, and a sentence that says what was found."""
    try:
        scan = importlib.import_module("dtsf.model.scan.numba_scan").scan_on_cpu
        conv = importlib.import_module("dtsf.model.scan.numba_conv").conv_on_cpu
    # numba refuses some versions of NumPy with ImportError or SystemError, and a broken LLVM with OSError.
    except (ImportError, OSError, RuntimeError, AttributeError, SystemError) as error:
        return None, None, f"numba is not usable ({error}): pip install --force-reinstall numba"
    return scan, conv, "numba is installed"


def _implementation(x: Tensor, n_states: int = 16) -> str:
    """What runs for ``x``: the kernels know no float64, and what is exported is made of PyTorch's own operators.

    ``torch.compile`` knows Triton's loops as operators of their own, and no other kernel.
    """
    if x.dtype == torch.float64:
        return "plain"
    if torch.compiler.is_compiling():
        exporting = getattr(torch.compiler, "is_exporting", lambda: x.device.type != "cuda")()
        fits = x.device.type == "cuda" and n_states in STATES and "scan" in LOADED and "distrusted" not in LOADED
        return "triton" if fits and not exporting else "plain"
    return kernel_choice(x.device, n_states).name


def selective_scan(
    u_BDL: Tensor,
    dt_BDL: Tensor,
    A_DN: Tensor,
    B_BNL: Tensor,
    C_BNL: Tensor,
    D_D: Tensor | None = None,
    z_BDL: Tensor | None = None,
    dt_bias_D: Tensor | None = None,
    *,
    reverse: bool = False,
) -> Tensor:
    """Run the scan over the last axis; ``dt`` goes through softplus after its bias is added.

    Returns (B, D, L), in the dtype of ``u_BDL``; the recurrence itself runs in float32 (float64 for float64 input). The
    gradient of the gradient is right too, at the cost of the plain form; mamba-ssm's kernel has none.

    Args:
        dt_BDL: Step size before bias and softplus.
        A_DN: State decay, negative.
        reverse: From the last token to the first, as if all sequences were flipped and the result flipped back.
    """
    run = {"plain": selective_scan_plain, "mamba-ssm": scan_by_mamba_ssm}
    name = _implementation(u_BDL, A_DN.shape[1])
    function = run.get(name) or (cpu_kernel()[0] if name == "numba" else LOADED["scan"])
    y_BDL: Tensor = function(u_BDL, dt_BDL, A_DN, B_BNL, C_BNL, D_D, z_BDL, dt_bias_D, reverse=reverse)
    return y_BDL


def causal_conv(x_BDL: Tensor, weight_D1W: Tensor, bias_D: Tensor, *, reverse: bool = False) -> Tensor:
    """Depthwise convolution over L that looks only back, or only ahead with ``reverse``; then SiLU. (B, D, L)."""
    run = {"plain": conv_by_shifts, "mamba-ssm": conv_by_mamba_ssm}
    name = _implementation(x_BDL)
    conv = run.get(name) or (cpu_kernel()[1] if name == "numba" else LOADED["conv"])
    # In (B, L, D), which is how linear layers leave and take tokens.
    y_BLD: Tensor = conv(x_BDL.transpose(1, 2), weight_D1W.squeeze(1).t(), bias_D, reverse=reverse)
    return y_BLD.transpose(1, 2)
