"""The CUDA kernels of mamba-ssm and causal-conv1d, where they are installed and work.

Letters: B batch, D channels, L tokens, N state, W taps.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@lru_cache(maxsize=1)
def kernel_status() -> tuple[Any, Any, str]:
    """Look once for the CUDA kernels of mamba-ssm and causal-conv1d.

    Returns the scan function and the convolution function, or None in their place, and a sentence that says what was found. A
    broken install (undefined symbol, Triton failing) counts as absent, never as fatal.
    """
    try:
        interface = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
        scan = interface.selective_scan_fn
        # Its default build leaves the kernel out and raises at the first call.
        if getattr(interface, "selective_scan_cuda", None) is None:
            raise ImportError("it was built without selective_scan_cuda")
        conv = importlib.import_module("causal_conv1d").causal_conv1d_fn
    # A half-installed CUDA extension raises anything from ImportError to RuntimeError at import.
    except (ImportError, OSError, RuntimeError, AttributeError, AssertionError, NameError) as error:
        return None, None, f"mamba-ssm is not usable ({error})"
    return scan, conv, f"mamba-ssm {importlib.metadata.version('mamba-ssm')} and causal-conv1d are installed"


def scan_by_mamba_ssm(
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
    """Arguments and result as for :func:`dtsf.model.scan.dispatch.selective_scan`; no gradient of the gradient."""
    if reverse:
        u_BDL, dt_BDL, B_BNL, C_BNL = u_BDL.flip(-1), dt_BDL.flip(-1), B_BNL.flip(-1), C_BNL.flip(-1)
        z_BDL = None if z_BDL is None else z_BDL.flip(-1)
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
    return y_BDL.flip(-1) if reverse else y_BDL


def conv_by_mamba_ssm(x_BLD: Tensor, weight_WD: Tensor, bias_D: Tensor, *, reverse: bool) -> Tensor:
    """(B, L, D), as :func:`dtsf.model.scan.plain.conv_by_shifts`."""
    same = x_BLD.dtype
    x_BLD = x_BLD.flip(1) if reverse else x_BLD
    conv = kernel_status()[1]
    y_BDL: Tensor = conv(x_BLD.transpose(1, 2), weight_WD.t().to(same), bias_D.to(same), activation="silu")
    return y_BDL.transpose(1, 2).flip(1) if reverse else y_BDL.transpose(1, 2)
