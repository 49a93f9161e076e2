"""What came of trying the kernels on this card: whether each is right, and, where there are several, how long each takes.

Kernels that compile may still be wrong on a new card (a fix of mamba-ssm's in July 2026 was for silently wrong numbers): each is
compared with float64 once a card and version, and timed if it has a rival. Kept in ``$XDG_CACHE_HOME/dtsf/kernels.json``, else
under ``~/.cache``; remove the file to try again.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dtsf.files.read import first_line
from dtsf.files.write import write_atomically
from dtsf.model.scan.plain import conv_by_shifts, selective_scan_plain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

PARITY_SHAPE, TIMED_SHAPE = (2, 40, 131, 16), (8, 768, 1569, 16)
"""(B, D, L, N): odd, over several chunks; and a layer of the paper's network."""
TOLERANCE = 1e-4
"""Largest relative error of the outputs and of any gradient, float32 against float64."""
REPEATS = 5


@dataclass(frozen=True)
class Trial:
    """What came of it."""

    right: bool
    milliseconds: float
    """Forward and backward at :data:`TIMED_SHAPE` in bfloat16; 0 where it has no rival."""
    said: str


def kept_file() -> Path:
    """Where the results of this person's machines are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dtsf" / "kernels.json"


def on_this_card(
    forms: Mapping[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]], device: torch.device
) -> dict[str, Trial]:
    """Try every form on a card, or look up what came of it before. ``forms``: scan and convolution by name; the convolution
    takes (B, L, D), taps (K, D) and a bias.
    """
    file, timed = kept_file(), len(forms) > 1
    kept = _read(file)
    results: dict[str, Trial] = {}
    for name, (scan, conv) in forms.items():
        key = _key(name, device, timed)
        try:
            # The first scan may be asked for where nothing is differentiated or all is rounded: an evaluation, autocast.
            with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
                results[name] = kept.get(key) or _try(name, scan, conv, device, timed)
        # A compiler and a driver raise whatever they raise; the scan must run all the same. Not kept: the card may be full.
        except Exception as error:  # noqa: BLE001
            said = f"{name} does not run on this card ({type(error).__name__}: {first_line(error)[:200]})"
            results[name] = Trial(False, 0.0, said)
            continue
        if key not in kept:
            kept[key] = results[name]
            _keep(file, kept)
    return results


def compare(function: Callable[..., Tensor], device: torch.device | str, *, reverse: bool, dtype: torch.dtype) -> float:
    """Largest relative error of a scan's outputs and gradients, against the plain form in float64 of the same numbers."""
    arguments = [x.to(dtype) if k not in (2, 5, 7) else x for k, x in enumerate(drawn_arguments(PARITY_SHAPE))]
    return _departure(function, selective_scan_plain, arguments, device, reverse)


def compare_conv(function: Callable[..., Tensor], device: torch.device | str, *, reverse: bool) -> float:
    """The same of a convolution in float32, which takes (B, L, D), taps (K, D) and a bias."""
    B, D, L, _ = PARITY_SHAPE
    generator = torch.Generator().manual_seed(0)
    arguments = [torch.randn(*sizes, generator=generator) for sizes in ((B, L, D), (4, D), (D,))]
    return _departure(function, conv_by_shifts, arguments, device, reverse)


def _departure(
    form: Callable[..., Tensor],
    oracle: Callable[..., Tensor],
    arguments: list[Tensor],
    device: torch.device | str,
    reverse: bool,
) -> float:
    probe = torch.randn(arguments[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def run(form: Callable[..., Tensor], place: torch.device | str, wide: bool) -> list[Tensor]:
        given = [(x.double() if wide else x).to(place).detach().requires_grad_() for x in arguments]
        y = form(*given, reverse=reverse)
        gradients = torch.autograd.grad((y * probe.to(place, y.dtype)).sum(), given)
        return [x.detach().cpu().double() for x in (y, *gradients)]

    with torch.enable_grad():
        pairs = zip(run(form, device, False), run(oracle, "cpu", True), strict=True)
        return max(float((found - wanted).norm() / wanted.norm()) for found, wanted in pairs)


def drawn_arguments(shape: tuple[int, int, int, int], device: torch.device | str = "cpu") -> list[Tensor]:
    """Numbers for a scan of (B, D, L, N), all arguments given, in float32; (B, L, D) in memory, as linear layers leave them."""
    B, D, L, N = shape
    generator = torch.Generator().manual_seed(0)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator).to(device)

    A_DN = (-3 * torch.rand(D, N, generator=generator) - 0.1).to(device)
    rows = [draw(B, L, D).transpose(1, 2) for _ in range(3)]
    columns = [draw(B, L, N).transpose(1, 2) for _ in range(2)]
    return [rows[0], rows[1] - 1, A_DN, *columns, draw(D), rows[2], draw(D)]


def _try(
    name: str, scan: Callable[..., Tensor], conv: Callable[..., Tensor], device: torch.device, timed: bool
) -> Trial:
    errors = [compare(scan, device, reverse=reverse, dtype=torch.float32) for reverse in (False, True)]
    errors += [compare_conv(conv, device, reverse=reverse) for reverse in (False, True)]
    # A number that is none is above no tolerance.
    if not all(error < TOLERANCE for error in errors):
        return Trial(False, 0.0, f"{name} is wrong on this card: it departs from float64 by {max(errors):.0e}")
    took = _milliseconds(scan, device) if timed else 0.0
    speed = f", {took:.2f} ms a layer" if timed else ""
    return Trial(True, took, f"{name} is right on this card, within {max(errors):.0e} of float64{speed}")


def _milliseconds(function: Callable[..., Tensor], device: torch.device) -> float:
    """Median of some runs forward and backward."""
    half = [x.bfloat16() if k not in (2, 5, 7) else x for k, x in enumerate(drawn_arguments(TIMED_SHAPE, device))]
    given = [x.requires_grad_() for x in half]
    times = []
    for _ in range(REPEATS + 2):
        torch.cuda.synchronize(device)
        begun = time.perf_counter()
        torch.autograd.grad(function(*given).sum(), given)
        torch.cuda.synchronize(device)
        times.append(1000 * (time.perf_counter() - begun))
    return sorted(times[2:])[REPEATS // 2]


def _key(name: str, device: torch.device, timed: bool) -> str:
    def version(package: str) -> str:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return "none"

    packages = ("dtsf", "torch", "triton", "mamba-ssm")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return f"{name}{' timed' if timed else ''} on {torch.cuda.get_device_name(device)}, {versions}"


def _read(file: Path) -> dict[str, Trial]:
    """Nothing where the file is missing or says something else."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        return {
            str(key): Trial(bool(value["right"]), float(value["milliseconds"]), str(value["said"]))
            for key, value in document.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _keep(file: Path, kept: Mapping[str, Trial]) -> None:
    """Keep, or try again next time where nothing can be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({key: asdict(trial) for key, trial in kept.items()}, indent=1)
        write_atomically(file, text.encode())
    except OSError:
        return
