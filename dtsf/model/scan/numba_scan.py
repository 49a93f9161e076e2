"""The selective scan on a CPU: compiled by numba, with its own backward that keeps chunk-boundary states only.

Same maths as :mod:`dtsf.model.scan.dispatch`, whose docstring has the equations. Importing this module imports numba
(half a second); nothing but :func:`dtsf.model.scan.dispatch.selective_scan` does, and only when it is called on a CPU.

Threads are Python's, one for each of PyTorch's (``torch.set_num_threads``): the kernels release the GIL. Numba's own
thread pool is left alone: its fallback layer aborts the process when two threads call it. Sums over channels and over
sequences are added in a fixed order, so results do not depend on the number of threads.

Letters: B batch, D channels, L tokens, N state, M chunks, J blocks of channels.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from dtsf.model.scan.numba_kernels import CHUNK, LANES, backward, forward
from dtsf.model.scan.plain import gradients_with_graph, selective_scan_plain

if TYPE_CHECKING:
    from torch import Tensor

WORTH_A_THREAD = 200_000
"""State updates below which another thread costs more than it saves."""


class _Scan(torch.autograd.Function):
    """The fused scan in (B, L, D) layout, float32."""

    @staticmethod
    def forward(
        ctx: Any, u_BLD: Tensor, dt_BLD: Tensor, A_ND: Tensor, B_BLN: Tensor, C_BLN: Tensor,
        D_D: Tensor, z_BLD: Tensor | None, bias_D: Tensor, reverse: bool,
    ) -> Tensor:  # fmt: skip
        """Return y (B, L, D)."""
        B, L, D = u_BLD.shape
        gate_BLD = u_BLD if z_BLD is None else z_BLD
        inputs = (u_BLD, dt_BLD, A_ND, B_BLN, C_BLN, D_D, gate_BLD, bias_D)
        y_BLD = torch.empty_like(u_BLD)
        edge_BMND = u_BLD.new_empty(B, -(-L // CHUNK), A_ND.shape[0], D)
        ctx.flags = (reverse, z_BLD is not None)
        run_tasks(forward, n_tasks(u_BLD), u_BLD.numel() * A_ND.shape[0], *ctx.flags, *inputs, y_BLD, edge_BMND)
        ctx.save_for_backward(*inputs, edge_BMND)
        return y_BLD

    @staticmethod
    def backward(ctx: Any, gy_BLD: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs."""
        *inputs, edge_BMND = ctx.saved_tensors
        u_BLD, dt_BLD, A_ND, B_BLN, C_BLN, D_D, gate_BLD, bias_D = inputs
        (B, _, D), n_blocks = u_BLD.shape, -(-u_BLD.shape[2] // LANES)
        reverse, gated = ctx.flags
        if torch.is_grad_enabled():
            given = inputs if gated else [*inputs[:6], bias_D]
            found = gradients_with_graph(partial(_as_operators, reverse=reverse), given, gy_BLD)
            return (*found[:6], found[6] if gated else None, found[-1], None)
        gu_BLD, gdt_BLD = torch.empty_like(u_BLD), torch.empty_like(u_BLD)
        gz_BLD = torch.empty_like(u_BLD) if gated else gu_BLD
        gA_BND = u_BLD.new_empty(B, *A_ND.shape)
        gB_JBLN, gC_JBLN = (u_BLD.new_empty(n_blocks, *B_BLN.shape) for _ in range(2))
        gD_BD, gbias_BD = u_BLD.new_empty(B, D), u_BLD.new_empty(B, D)
        run_tasks(
            backward, n_tasks(u_BLD), 3 * u_BLD.numel() * A_ND.shape[0], reverse, gated,
            *inputs, edge_BMND, gy_BLD.contiguous(),
            gu_BLD, gdt_BLD, gA_BND, gB_JBLN, gC_JBLN, gD_BD, gz_BLD, gbias_BD,
        )  # fmt: skip
        gate = gz_BLD if gated else None
        return gu_BLD, gdt_BLD, gA_BND.sum(0), gB_JBLN.sum(0), gC_JBLN.sum(0), gD_BD.sum(0), gate, gbias_BD.sum(0), None


def _as_operators(
    u_BLD: Tensor, dt_BLD: Tensor, A_ND: Tensor, B_BLN: Tensor, C_BLN: Tensor, D_D: Tensor, *gate_bias: Tensor, reverse: bool
) -> Tensor:  # fmt: skip
    """The same in PyTorch's operators, for the gradient of the gradient. ``gate_bias`` is z, where there is one, and bias."""
    *gate, bias_D = gate_bias
    columns = [x.transpose(1, 2) for x in (u_BLD, dt_BLD, B_BLN, C_BLN, *gate)]
    z_BDL = columns[4] if gate else None
    return selective_scan_plain(
        columns[0], columns[1], A_ND.t(), columns[2], columns[3], D_D, z_BDL, bias_D, reverse=reverse
    ).transpose(1, 2)


def scan_on_cpu(
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
    """Run the scan; arguments and result as for :func:`dtsf.model.scan.dispatch.selective_scan`, all on the CPU.

    Tensors that are (B, L, D) in memory, as linear layers leave them, are read in place; others are copied.
    """
    D = u_BDL.shape[1]

    def rows(x_BXL: Tensor) -> Tensor:
        return x_BXL.transpose(1, 2).float().contiguous()

    y_BLD: Tensor = _Scan.apply(  # type: ignore[no-untyped-call]
        rows(u_BDL),
        rows(dt_BDL),
        A_DN.float().t().contiguous(),
        rows(B_BNL),
        rows(C_BNL),
        u_BDL.new_zeros(D, dtype=torch.float32) if D_D is None else D_D.float().contiguous(),
        None if z_BDL is None else rows(z_BDL),
        u_BDL.new_zeros(D, dtype=torch.float32) if dt_bias_D is None else dt_bias_D.float().contiguous(),
        reverse,
    )
    return y_BLD.transpose(1, 2).to(u_BDL.dtype)


def n_tasks(u_BLD: Tensor, block: int = LANES) -> int:
    """Tasks of one sequence and ``block`` channels."""
    return u_BLD.shape[0] * -(-u_BLD.shape[2] // block)


def run_tasks(kernel: Any, n_tasks: int, work: int, *arguments: Any) -> None:
    """Call ``kernel(begin, end, ...)`` over all tasks, on as many threads as PyTorch uses and the work is worth."""
    arrays = [x.detach().numpy() if isinstance(x, torch.Tensor) else x for x in arguments]
    n_threads = min(torch.get_num_threads(), n_tasks, 1 + work // WORTH_A_THREAD)
    if n_threads <= 1:
        kernel(0, n_tasks, *arrays)
        return
    bounds = [n_tasks * k // n_threads for k in range(n_threads + 1)]
    pool = _threads(os.getpid(), n_threads)
    parts = [pool.submit(kernel, begin, end, *arrays) for begin, end in pairwise(bounds)]
    for part in parts:
        part.result()


@lru_cache(maxsize=4)
def _threads(process: int, n_threads: int) -> ThreadPoolExecutor:  # noqa: ARG001
    """Threads of this process: a forked child has none of its parent's, hence the process in the key."""
    return ThreadPoolExecutor(n_threads, thread_name_prefix="dtsf-scan")
