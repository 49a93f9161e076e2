"""Seconds of the plain scan, forward and backward, against autograd through the loop it replaces. One run, a ratio."""

from __future__ import annotations

import argparse
import json
import sys
import time

import torch
import torch.nn.functional as F

from dtsf.model.network.scan import selective_scan_plain


def loop(u, dt, A, B, C):  # noqa: ANN001, ANN201
    """The recurrence with autograd, steps from unbind."""
    dt = F.softplus(dt)
    decay = torch.exp(dt.unsqueeze(-1) * A.unsqueeze(1)).unbind(2)
    inputs = ((dt * u).unsqueeze(-1) * B.transpose(1, 2).unsqueeze(1)).unbind(2)
    state, outputs = torch.zeros_like(inputs[0]), []
    for a, b, c in zip(decay, inputs, C.unbind(2), strict=True):
        state = a * state + b
        outputs.append((state * c.unsqueeze(1)).sum(-1))
    return torch.stack(outputs, -1)


def seconds(function, tensors, repeats: int) -> float:  # noqa: ANN001
    """Best of several runs, forward and backward."""
    best = float("inf")
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        function(*tensors).square().sum().backward()
        best = min(best, time.perf_counter() - begun)
    return best


def main() -> None:
    """Print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    B, D, L, N = 48, 192, 16, 16
    tensors = [
        torch.randn(B, D, L),
        torch.randn(B, D, L),
        -torch.rand(D, N),
        torch.randn(B, N, L),
        torch.randn(B, N, L),
    ]
    tensors = [x.requires_grad_() for x in tensors]
    ours, theirs = seconds(selective_scan_plain, tensors, 5), seconds(loop, tensors, 5)
    document = {"ours_s": ours, "autograd_loop_s": theirs, "speedup": theirs / ours}
    text = (
        json.dumps(document)
        if arguments.json
        else f"ours {ours:.4f} s, autograd loop {theirs:.4f} s: {theirs / ours:.1f} x"
    )
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
