"""CUDA kernels of mamba-ssm and causal-conv1d. Importing this module fails if they are not installed or do not work."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from dtsf.model.scan.plain import ScanInputs

if TYPE_CHECKING:
    from torch import Tensor


_interface = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
_conv = importlib.import_module("causal_conv1d").causal_conv1d_fn
# Its default build omits the kernel and raises at the first call.
if getattr(_interface, "selective_scan_cuda", None) is None:
    raise ImportError("mamba-ssm was built without selective_scan_cuda")


def scan(inputs: ScanInputs) -> Tensor:
    """Run the scan; see :func:`dtsf.model.scan.selective_scan`. It has no gradient of its gradient."""
    u_BDL, dt_BDL, A_DN, B_BNL, C_BNL, D_D, z_BDL, dt_bias_D, reverse = inputs
    rows = [x.flip(-1) if reverse else x for x in (u_BDL, dt_BDL, B_BNL, C_BNL, z_BDL)]
    u, dt, B, C, z = (x.to(u_BDL.dtype).contiguous() for x in rows)
    y_BDL: Tensor = _interface.selective_scan_fn(u, dt, A_DN.float(), B, C, D_D.float(), z, dt_bias_D.float(), True)
    return y_BDL.flip(-1) if reverse else y_BDL


def conv(x_BLD: Tensor, weight_KD: Tensor, bias_D: Tensor, *, reverse: bool) -> Tensor:
    """Convolve; see :func:`dtsf.model.scan.causal_conv`. (B, L, D)."""
    same = x_BLD.dtype
    x_BLD = x_BLD.flip(1) if reverse else x_BLD
    y_BDL: Tensor = _conv(x_BLD.transpose(1, 2), weight_KD.t().to(same), bias_D.to(same), activation="silu")
    return y_BDL.transpose(1, 2).flip(1) if reverse else y_BDL.transpose(1, 2)
