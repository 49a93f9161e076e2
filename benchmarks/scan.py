"""Seconds and memory of the selective scan on a CPU, forward and backward: ours, mambapy's parallel scan, a plain loop.

In one process, best of several runs, at (B, D, L, N) = (4, 384, 576, 16) and (16, 384, 145, 16), 2 threads.
All three compute the same: softplus of the step sizes, recurrence, output projection, skip, gate, and every gradient.
mambapy is optional: pip install --no-deps --target DIR mambapy, and DIR on PYTHONPATH. ``--json`` gives the worst of the
shapes: {speedup_vs_mambapy, max_rel_error, extra_memory_ratio, ...}. The speedup is null without mambapy.
Memory is the growth of the process's peak over one forward and backward, over the bytes of the inputs, with gradients.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from dtsf.model.scan import ScanInputs, choose_backend, selective_scan

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

SHAPES = [(4, 384, 576, 16), (16, 384, 145, 16)]


def draw(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Return u, dt, A, B, C, D, z, bias with the memory layout of linear layers: channels last."""
    B, D, L, N = shape
    torch.manual_seed(0)
    rows = [torch.randn(B, L, width).transpose(1, 2) for width in (D, D, N, N, D)]
    A = -torch.arange(1, N + 1).repeat(D, 1) * torch.empty(D, N).uniform_(0.5, 1.5)
    u, dt, B_, C, z = rows
    given = [u, dt, A, B_, C, torch.randn(D), z, torch.randn(D) - 3]
    return [x.to(dtype).requires_grad_() for x in given]


def finish(y: Tensor, u: Tensor, D: Tensor, z: Tensor) -> Tensor:
    return (y + D[:, None] * u) * F.silu(z)


def unbind_loop(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor) -> Tensor:
    """Run autograd through the loop, with steps from unbind."""
    dt = F.softplus(dt + bias[:, None])
    decay = torch.exp(dt.unsqueeze(-1) * A.unsqueeze(1)).unbind(2)
    entering = ((dt * u).unsqueeze(-1) * B.transpose(1, 2).unsqueeze(1)).unbind(2)
    state, outputs = torch.zeros_like(entering[0]), []
    for a, b, c in zip(decay, entering, C.unbind(2), strict=True):
        state = a * state + b
        outputs.append((state * c.unsqueeze(1)).sum(-1))
    return finish(torch.stack(outputs, -1), u, D, z)


def mambapy_scan() -> Callable[..., Tensor] | None:
    """Return mambapy's parallel scan with the same arithmetic around it, or None if it is not installed."""
    try:
        pscan = importlib.import_module("mambapy.pscan").pscan
    except ImportError:
        return None

    def scan(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor) -> Tensor:
        dt = F.softplus(dt + bias[:, None]).transpose(1, 2)
        decay = torch.exp(dt.unsqueeze(-1) * A)
        entering = (dt * u.transpose(1, 2)).unsqueeze(-1) * B.transpose(1, 2).unsqueeze(2)
        states = pscan(decay, entering)
        y = (states @ C.transpose(1, 2).unsqueeze(-1)).squeeze(-1)
        return finish(y.transpose(1, 2), u, D, z)

    return scan


def seconds(function: Callable[..., Tensor], tensors: list[Tensor], repeats: int) -> tuple[float, float]:
    """Return the best forward and the best forward + backward of several runs."""
    forward = both = float("inf")
    for _ in range(repeats + 1):
        for x in tensors:
            x.grad = None
        begun = time.perf_counter()
        y = function(*tensors)
        forward = min(forward, time.perf_counter() - begun)
        y.backward(torch.ones_like(y))
        both = min(both, time.perf_counter() - begun)
    return forward, both


def ours(*tensors: torch.Tensor) -> torch.Tensor:
    """Run dtsf's scan."""
    return selective_scan(ScanInputs(*tensors))


def relative_error(shape: tuple[int, ...]) -> float:
    """Return the largest relative error of output and gradients against the float64 loop."""
    narrow, wide = draw(shape), draw(shape)
    wide = [x.detach().double().requires_grad_() for x in wide]
    found, wanted = [], []
    for function, tensors, into in ((ours, narrow, found), (unbind_loop, wide, wanted)):
        y = function(*tensors)
        y.backward(torch.ones_like(y))
        into += [y.detach().double(), *(x.grad.double() for x in tensors)]
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(found, wanted, strict=True))


def peak_bytes() -> int:
    """Return the highest resident size of this process since the last reset of the peak, on Linux."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def memory_ratio(shape: tuple[int, ...]) -> float:
    """Return the growth of the peak over one forward and backward, over the bytes of the inputs. Needs a fresh process."""
    small = draw((1, 64, 16, shape[3]))
    y = ours(*small)
    y.backward(torch.ones_like(y))  # compiles and starts the threads
    tensors = draw(shape)
    size = sum(x.numel() * x.element_size() for x in tensors)
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")  # resets the peak
    before = peak_bytes()
    y = ours(*tensors)
    # The caller owns the gradient of the output: here a view of one number.
    y.backward(torch.ones(()).expand_as(y))
    return (peak_bytes() - before) / size


def measure(shape: tuple[int, ...], repeats: int) -> dict[str, object]:
    tensors = draw(shape)
    forward, both = seconds(ours, tensors, 3 * repeats)
    _, loop = seconds(unbind_loop, tensors, repeats)
    peer = mambapy_scan()
    theirs = seconds(peer, tensors, repeats)[1] if peer else None
    alone = subprocess.run(
        [sys.executable, __file__, "--memory", ",".join(map(str, shape))],
        capture_output=True, text=True, check=True, env=os.environ,
    )  # fmt: skip
    return {
        "shape": shape,
        "ours_forward_s": forward,
        "ours_s": both,
        "mambapy_s": theirs,
        "unbind_loop_s": loop,
        "speedup_vs_mambapy": theirs / both if theirs else None,
        "speedup_vs_unbind_loop": loop / both,
        "max_rel_error": relative_error(shape),
        "extra_memory_ratio": float(alone.stdout),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory:
        sys.stdout.write(f"{memory_ratio(tuple(map(int, arguments.memory.split(','))))}\n")
        return
    rows = [measure(shape, arguments.repeats) for shape in SHAPES]
    speedups = [row["speedup_vs_mambapy"] for row in rows if row["speedup_vs_mambapy"] is not None]
    choice = choose_backend(torch.device("cpu"))
    document = {
        "scan": choice.name,
        "threads": arguments.threads,
        "speedup_vs_mambapy": min(speedups) if speedups else None,
        "max_rel_error": max(row["max_rel_error"] for row in rows),
        "extra_memory_ratio": max(row["extra_memory_ratio"] for row in rows),
        "shapes": rows,
    }
    if arguments.json:
        sys.stdout.write(json.dumps(document) + "\n")
        return
    sys.stdout.write(f"scan on CPU: {choice.name} ({choice.reason}), {arguments.threads} threads, forward + backward\n")
    for row in rows:
        peer = f"{row['mambapy_s']:.3f} s ({row['speedup_vs_mambapy']:.1f} x)" if row["mambapy_s"] else "not installed"
        sys.stdout.write(
            f"{row['shape']}: both {row['ours_s']:.4f} s (forward {row['ours_forward_s']:.4f}), mambapy {peer}, unbind loop "
            f"{row['unbind_loop_s']:.3f} s ({row['speedup_vs_unbind_loop']:.1f} x); largest relative error "
            f"{row['max_rel_error']:.1e}; extra memory {row['extra_memory_ratio']:.2f} x the inputs\n"
        )


if __name__ == "__main__":
    main()
