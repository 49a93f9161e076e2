"""Mamba mixer for an export to ONNX: one operator for PyTorch's exporter, which takes milliseconds for each operator, and here its
translation: the projections, the convolution as shifted products, and the recurrence as a node ``Scan``.
Letters: B batch, L tokens, D width, I inner width, N states, R rank, K taps.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dtsf.model.videomamba import BidirectionalMamba

if TYPE_CHECKING:
    from dtsf.model.network import DTSFNet

FIRST, LAST = -(1 << 62), 1 << 62  # ends of a slice

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


def with_exported_mixers(net: DTSFNet) -> DTSFNet:
    """Return a copy whose mixers are one operator each. It can be traced, not run."""
    net = copy.deepcopy(net)
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, BidirectionalMamba):
                setattr(module, name, _Mixer(child))
    return net


# Weights of a direction, by the names of :class:`BidirectionalMamba`.
DIRECTION = (
    "A{}_log",
    "D{}",
    "conv1d{}.weight",
    "conv1d{}.bias",
    "x_proj{}.weight",
    "dt_proj{}.weight",
    "dt_proj{}.bias",
)


class _Mixer(nn.Module):
    """Mixer as one operator of its input and its weights."""

    def __init__(self, mixer: BidirectionalMamba) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Return (B, L, D), without values."""
        weights = dict(self.mixer.named_parameters())
        directions = [weights[name.format(suffix)] for suffix in ("", "_b") for name in DIRECTION]
        y_BLD: Tensor = _mixer(x_BLD, [weights["in_proj.weight"], weights["out_proj.weight"], *directions])
        return y_BLD


@torch.library.custom_op("dtsf::mixer", mutates_args=())
def _mixer(x_BLD: Tensor, weights: Sequence[Tensor]) -> Tensor:
    # Never run: the export traces the fake below, and translations() writes the nodes.
    raise NotImplementedError


@_mixer.register_fake
def _(x_BLD: Tensor, weights: Sequence[Tensor]) -> Tensor:
    return torch.empty_like(x_BLD, memory_format=torch.contiguous_format)


def translations() -> dict[Any, Any]:
    """Return the argument ``custom_translation_table`` of ``torch.onnx.export``."""
    import onnx.parser
    import onnx_ir
    from onnxscript import evaluator, opset18

    op: Any = opset18  # its types describe scripts, not graphs
    recorder: Any = evaluator

    def node(kind: str, inputs: Sequence[Any], n_outputs: int, **attributes: Any) -> Any:
        # Not op.Split or op.Scan: they return their first output alone.
        made = onnx_ir.node(kind, inputs, attributes, num_outputs=n_outputs)
        recorder.default().nodes.append(made)
        return made.outputs

    def numbers(*values: int) -> Any:
        return op.Constant(value_ints=values)

    def product(x: Any, weight: Any) -> Any:
        return op.MatMul(x, op.Transpose(weight, perm=[1, 0]))

    def silu(x: Any) -> Any:
        return op.Mul(x, op.Sigmoid(x))

    def flip(x_BLI: Any) -> Any:
        return op.Slice(x_BLI, numbers(LAST), numbers(FIRST), numbers(1), numbers(-1))

    def recurrence(u_BLI: Any, dt_BLI: Any, A_IN: Any, B_BLN: Any, C_BLN: Any, sizes_BNI: Any) -> Any:
        rows, columns = numbers(2), numbers(3)
        dt_BL1I, dt_u_BL1I = op.Unsqueeze(dt_BLI, rows), op.Unsqueeze(op.Mul(dt_BLI, u_BLI), rows)
        A_NI = op.Transpose(A_IN, perm=[1, 0])
        state_BNI = op.Expand(op.Constant(value_float=0.0), sizes_BNI)
        inputs = dt_BL1I, dt_u_BL1I, op.Unsqueeze(B_BLN, columns), op.Unsqueeze(C_BLN, rows)
        axes: dict[str, Any] = {"num_scan_inputs": 4, "scan_input_axes": [1] * 4, "scan_output_axes": [1]}
        body = onnx_ir.from_proto(onnx.parser.parse_graph(STEP))
        return op.Squeeze(node("Scan", [state_BNI, A_NI, *inputs], 3, body=body, **axes)[2], rows)

    def direction(x_BLI: Any, gate_BLI: Any, weights: Sequence[Any], size: tuple[int, int]) -> Any:
        A_log_IN, D_I, conv_I1K, conv_bias_I, projection, dt_IR, dt_bias_I = weights
        (inner, n_states), taps, (batch, length) = A_log_IN.shape, conv_I1K.shape[2], size
        padded_BLI = op.Pad(x_BLI, numbers(0, taps - 1, 0, 0, 0, 0))
        sum_BLI = conv_bias_I
        for k in range(taps):
            weight_I = op.Reshape(op.Slice(conv_I1K, numbers(k), numbers(k + 1), numbers(2)), numbers(inner))
            sum_BLI = op.Add(
                sum_BLI, op.Mul(weight_I, op.Slice(padded_BLI, numbers(k), numbers(k + length), numbers(1)))
            )
        u_BLI = silu(sum_BLI)
        sizes = numbers(dt_IR.shape[1], n_states, n_states)
        dt_BLR, B_BLN, C_BLN = node("Split", [product(u_BLI, projection), sizes], 3, axis=2)
        dt_BLI = op.Softplus(op.Add(product(dt_BLR, dt_IR), dt_bias_I))
        state = numbers(batch, n_states, inner)
        y_BLI = recurrence(u_BLI, dt_BLI, op.Neg(op.Exp(A_log_IN)), B_BLN, C_BLN, state)
        return op.Mul(op.Add(y_BLI, op.Mul(D_I, u_BLI)), gate_BLI)

    def translate(x_BLD: Any, weights: Sequence[Any]) -> Any:
        in_proj, out_proj, *directions = weights
        half = len(directions) // 2
        x_BLI, z_BLI = node("Split", [product(x_BLD, in_proj)], 2, axis=2, num_outputs=2)
        gate_BLI = silu(z_BLI)
        forward_BLI = direction(x_BLI, gate_BLI, directions[:half], x_BLD.shape[:2])
        reverse_BLI = direction(flip(x_BLI), flip(gate_BLI), directions[half:], x_BLD.shape[:2])
        return product(op.Add(forward_BLI, flip(reverse_BLI)), out_proj)

    return {torch.ops.dtsf.mixer.default: translate}
