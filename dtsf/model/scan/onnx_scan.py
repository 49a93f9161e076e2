"""Selective scan for an export to ONNX: one operator for PyTorch's exporter, and a node ``Scan`` of seven operators for any length.
Letters: B batch, L tokens, D channels, N states.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dtsf.model.scan import plain
from dtsf.model.scan.plain import ScanInputs, conv

__all__ = ["conv", "scan", "translations"]

# One token: the state and A are carried from token to token, the output is collected.
STEP = """
step (float[B, N, D] state, float[N, D] A, float[B, 1, D] dt, float[B, 1, D] dt_u, float[B, N, 1] b, float[B, 1, N] c)
  => (float[B, N, D] next_state, float[N, D] same_A, float[B, 1, D] y) {
    rate = Mul(dt, A)
    decay = Exp(rate)
    kept = Mul(decay, state)
    new = Mul(dt_u, b)
    next_state = Add(kept, new)
    y = MatMul(c, next_state)
    same_A = Identity(A)
}
"""


def scan(inputs: ScanInputs) -> Tensor:
    """Run the scan with the recurrence as one operator; see :func:`dtsf.model.scan.selective_scan`."""
    return plain.scan(inputs, _recurrence)


@torch.library.custom_op("dtsf::recurrence", mutates_args=())
def _recurrence(u_BLD: Tensor, dt_BLD: Tensor, A_DN: Tensor, B_BLN: Tensor, C_BLN: Tensor) -> Tensor:
    return plain.outputs(u_BLD, dt_BLD, A_DN, B_BLN, C_BLN)


@_recurrence.register_fake
def _(u_BLD: Tensor, dt_BLD: Tensor, A_DN: Tensor, B_BLN: Tensor, C_BLN: Tensor) -> Tensor:
    return torch.empty_like(u_BLD, memory_format=torch.contiguous_format)


def translations() -> dict[Any, Any]:
    """Return the argument ``custom_translation_table`` of ``torch.onnx.export``."""
    import onnx.parser
    import onnx_ir
    from onnxscript import evaluator, opset18

    op: Any = opset18  # its types describe scripts, not graphs
    recorder: Any = evaluator

    def translate(u_BLD: Any, dt_BLD: Any, A_DN: Any, B_BLN: Any, C_BLN: Any) -> Any:
        rows, columns = op.Constant(value_ints=[2]), op.Constant(value_ints=[3])
        dt_BL1D, dt_u_BL1D = op.Unsqueeze(dt_BLD, rows), op.Unsqueeze(op.Mul(dt_BLD, u_BLD), rows)
        B_BLN1, C_BL1N = op.Unsqueeze(B_BLN, columns), op.Unsqueeze(C_BLN, rows)
        A_ND = op.Transpose(A_DN, perm=[1, 0])
        batch = op.Constant(value_ints=[u_BLD.shape[0]])
        state_BND = op.Expand(op.Constant(value_float=0.0), op.Concat(batch, op.Shape(A_ND), axis=0))
        inputs = dt_BL1D, dt_u_BL1D, B_BLN1, C_BL1N
        axes: dict[str, Any] = {
            "num_scan_inputs": len(inputs),
            "scan_input_axes": [1] * len(inputs),
            "scan_output_axes": [1],
        }
        body = onnx_ir.from_proto(onnx.parser.parse_graph(STEP))
        # Not op.Scan: it returns the first of its outputs alone.
        node = onnx_ir.node("Scan", [state_BND, A_ND, *inputs], axes | {"body": body}, num_outputs=3)
        recorder.default().nodes.append(node)
        return op.Squeeze(node.outputs[2], rows)

    return {torch.ops.dtsf.recurrence.default: translate}
