"""Parity of a backend with the plain scan in float64, also of gradients: a kernel that compiles may be wrong on a new GPU.
Letters: B batch, D channels, L tokens, N state, K taps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dtsf.errors import ConfigError
from dtsf.model.scan import ScanInputs, backend_for, choose_backend, plain

SHAPE = (2, 40, 131, 16)  # B, D, L, N: odd numbers, over several chunks
TOLERANCE = 1e-4  # largest relative error of the outputs and of any gradient, float32 against float64


def check_parity(device: torch.device, n_states: int = 16, shape: tuple[int, int, int, int] = SHAPE) -> float:
    """Return the largest relative error of the chosen backend, scan and convolution. Raises ConfigError: it is wrong."""
    backend = backend_for(torch.empty(0, device=device), n_states)
    shape = (*shape[:3], n_states)
    errors = [compare(backend.scan, device, reverse=reverse, shape=shape) for reverse in (False, True)]
    errors += [compare_conv(backend.conv, device, reverse=reverse, shape=shape) for reverse in (False, True)]
    # NaN compares false, so test `error < TOLERANCE`, not `error >= TOLERANCE`.
    if not all(error < TOLERANCE for error in errors):
        name = choose_backend(device, n_states).name
        raise ConfigError(
            f"the scan backend {name} is wrong on {device}: its relative error is {max(errors):.0e}; "
            "set DTSF_SCAN=plain, and file an issue with dtsf doctor --json"
        )
    return max(errors)


def compare(
    scan: Callable[[ScanInputs], Tensor],
    device: torch.device | str,
    *,
    reverse: bool,
    dtype: torch.dtype = torch.float32,
    shape: tuple[int, int, int, int] = SHAPE,
) -> float:
    """Return the largest relative error of a scan's output and gradients; ``dtype`` of all but A, D and the bias."""
    inputs = [x if k in (2, 5, 7) else x.to(dtype) for k, x in enumerate(drawn_inputs(shape)[:8])]

    def run(scan: Callable[[ScanInputs], Tensor]) -> Callable[..., Tensor]:
        return lambda *x: scan(ScanInputs._make([*x, reverse]))

    return _error(run(scan), run(plain.scan), inputs, device)


def compare_conv(
    conv: Callable[..., Tensor], device: torch.device | str, *, reverse: bool, shape: tuple[int, int, int, int] = SHAPE
) -> float:
    """Return the same for a convolution of (B, L, D), taps (K, D) and a bias, in float32."""
    B, D, L, _ = shape
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(*sizes, generator=generator) for sizes in ((B, L, D), (4, D), (D,))]
    return _error(lambda *x: conv(*x, reverse=reverse), lambda *x: plain.conv(*x, reverse=reverse), inputs, device)


@torch.inference_mode(False)
def _error(
    function: Callable[..., Tensor], reference: Callable[..., Tensor], inputs: list[Tensor], device: torch.device | str
) -> float:
    probe = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def run(function: Callable[..., Tensor], given: list[Tensor]) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in given]
        y = function(*leaves)
        gradients = torch.autograd.grad((y * probe.to(y)).sum(), leaves)
        return [x.detach().cpu().double() for x in (y, *gradients)]

    with torch.enable_grad(), torch.autocast(torch.device(device).type, enabled=False):
        pairs = zip(
            run(function, [x.to(device) for x in inputs]), run(reference, [x.double() for x in inputs]), strict=True
        )
        return max(float((found - wanted).norm() / wanted.norm()) for found, wanted in pairs)


def drawn_inputs(shape: tuple[int, int, int, int], device: torch.device | str = "cpu") -> ScanInputs:
    """Draw all inputs of a scan of (B, D, L, N) in float32; (B, L, D) in memory, as linear layers return them."""
    B, D, L, N = shape
    generator = torch.Generator().manual_seed(0)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator).to(device)

    A_DN = (-3 * torch.rand(D, N, generator=generator) - 0.1).to(device)
    u, dt, z = (draw(B, L, D).transpose(1, 2) for _ in range(3))
    B_BNL, C_BNL = (draw(B, L, N).transpose(1, 2) for _ in range(2))
    return ScanInputs(u, dt - 1, A_DN, B_BNL, C_BNL, draw(D), z, draw(D))
