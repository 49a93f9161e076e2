"""Triton's loops against a float64 loop: on a GPU or in the interpreter; and compiled for GPUs that are not here."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
from test_scan import by, loop_scan, relative_error, scan_arguments, value_and_gradients

if not os.environ.get("CI"):
    pytest.importorskip("triton", reason="pip install --no-deps triton==3.6.0")

from dtsf.model import scan as scan_package
from dtsf.model.scan import plain, triton_scan
from dtsf.model.videomamba import BidirectionalMamba

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

if os.environ.get("TRITON_INTERPRET") == "1":
    # The interpreter makes loop bounds of arrays, which NumPy 2.4 refuses as numbers.
    interpreter = importlib.import_module("triton.runtime.interpreter")
    original = interpreter._patch_lang_tensor

    def patch(tensor, scope=None):
        original(tensor, scope) if scope is not None else original(tensor)
        tensor.__index__ = lambda self: int(self.handle.data.reshape(-1)[0])

    interpreter._patch_lang_tensor = patch

scan_by_triton = by(triton_scan.scan)
KERNELS = ("segment_ends", "scan_forward", "segment_heads", "scan_backward")


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several blocks, chunks and segments in few tokens: the interpreter takes milliseconds an operation."""
    monkeypatch.setattr(triton_scan, "chunk_tokens", lambda length: 8)
    monkeypatch.setattr(triton_scan, "LEAST_CHUNKS", 1)
    monkeypatch.setattr(triton_scan, "BLOCK", 8)
    monkeypatch.setattr(triton_scan, "n_processors", lambda device: 132)


def on_device(arguments, dtype=torch.float32):
    return [x.detach().to(DEVICE, torch.float32 if k in (2, 5, 7) else dtype) for k, x in enumerate(arguments)]


def found_and_wanted(shape, reverse, dtype=torch.float32):
    arguments = on_device(scan_arguments(*shape), dtype)
    found = value_and_gradients(scan_by_triton, arguments, reverse=reverse)
    return found, value_and_gradients(loop_scan, [x.double() for x in arguments], reverse=reverse)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", [(1, 3, 1, 16), (2, 11, 21, 8), (1, 8, 16, 16), (1, 9, 19, 16)])
def test_scan__output_and_gradients_are_the_float64_loops(shape, reverse):
    for ours, right in zip(*found_and_wanted(shape, reverse), strict=True):
        assert relative_error(ours, right) < 2e-6


def test_scan__results_repeat_to_the_bit_and_one_segment_gives_the_result_of_many(monkeypatch):
    many, again = (found_and_wanted((1, 5, 30, 8), reverse=False)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(many, again, strict=True))
    assert triton_scan.segments(torch.empty(1, 30, 5), 16)[0] > 1
    monkeypatch.setattr(triton_scan, "n_processors", lambda device: 0)
    assert triton_scan.segments(torch.empty(1, 30, 5), 16)[0] == 1
    one, wanted = found_and_wanted((1, 5, 30, 8), reverse=False)
    for a, b, right in zip(one, many, wanted, strict=True):
        assert relative_error(a, right) < 2e-6
        assert relative_error(a, b) < 2e-6


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 8e-3), (torch.float16, 1e-3)])
def test_scan__half_precision_is_rounded_once(dtype, error):
    found, wanted = found_and_wanted((1, 9, 19, 16), False, dtype)
    for ours, right in zip(found, wanted, strict=True):
        assert relative_error(ours, right) < error
    leaves = [x.requires_grad_() for x in on_device(scan_arguments(1, 3, 9, 8), dtype)]
    y = scan_by_triton(*leaves)
    assert y.dtype == dtype
    gradients = torch.autograd.grad(y.float().sum(), leaves)
    assert [(g.dtype, g.shape) for g in gradients] == [(x.dtype, x.shape) for x in leaves]


def test_scan__extreme_steps_stay_right():
    arguments = scan_arguments(1, 4, 12, 8)
    arguments[1].data[:, :3] = torch.tensor([-90.0, 60.0, -12.0])[:, None]
    wide = [x.detach().double() for x in on_device(arguments)]
    found = scan_by_triton(*on_device(arguments)).double()
    assert torch.isfinite(found).all()
    assert relative_error(found, loop_scan(*wide)) < 2e-6
    # The step size itself: softplus near 0 is where log(1 + x) loses its digits.
    alone = [*wide[:3], *(torch.ones_like(x) for x in wide[3:5]), *(torch.zeros_like(x) for x in wide[5:])]
    alone[6] += 1.0
    small = scan_by_triton(*(x.float() for x in alone)).double()[:, 2]
    assert relative_error(small, loop_scan(*alone)[:, 2]) < 2e-6


@pytest.mark.parametrize("width", [16, 33])
def test_scan__any_layout_no_sequence_and_inference_mode(width):
    arguments = on_device(scan_arguments(2, 5, 9, 8))
    wanted = scan_by_triton(*arguments)
    whole = torch.randn(2, 9, width, device=DEVICE)
    whole[:, :, 3:8] = arguments[0].transpose(1, 2)
    with torch.inference_mode():
        assert torch.equal(scan_by_triton(whole[:, :, 3:8].transpose(1, 2), *arguments[1:]), wanted)
    none = [x if k in (2, 5, 7) else x[:0] for k, x in enumerate(arguments)]
    assert scan_by_triton(*none).shape == (0, 5, 9)


def test_scan__refuses_the_gradient_of_a_gradient():
    leaves = [x.requires_grad_() for x in on_device(scan_arguments(1, 2, 5, 8))]
    with pytest.raises(RuntimeError, match="the triton scan has no gradient of its gradient"):
        torch.autograd.grad(scan_by_triton(*leaves).square().sum(), leaves[0], create_graph=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(8, 768, 1569, 16), (64, 192, 145, 16), (2, 768, 6273, 16), (16, 192, 145, 8)])
def test_scan__extra_memory_is_under_three_times_the_inputs(monkeypatch, shape, dtype):
    monkeypatch.undo()
    monkeypatch.setattr(triton_scan, "n_processors", lambda device: 132)
    B, D, L, N = shape
    made = []

    for name in KERNELS:
        monkeypatch.setattr(triton_scan, name, MagicMock())
    new_empty = torch.Tensor.new_empty

    def counted(self, *sizes, **options):
        made.append(new_empty(self, *sizes, **options))
        return made[-1]

    monkeypatch.setattr(torch.Tensor, "new_empty", counted)
    rows = [torch.empty(B, L, D, dtype=dtype, device="meta") for _ in range(4)]
    columns = [torch.empty(B, L, N, dtype=dtype, device="meta") for _ in range(2)]
    A, vectors = torch.empty(D, N, device="meta"), [torch.empty(D, device="meta") for _ in range(2)]
    tensors = [*rows[:2], A, *columns, vectors[0], rows[2], vectors[1]]
    _, states = triton_scan.forward_op._init_fn(*tensors, False, True)
    assert states.numel() == B * -(-L // triton_scan.chunk_tokens(L)) * N * D
    triton_scan.backward_op._init_fn(*tensors, states, rows[3], False)
    inputs = sum(x.numel() * x.itemsize for x in tensors)
    assert sum(x.numel() * x.itemsize for x in made) < 3 * inputs


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_torch_compile__a_whole_layer_is_one_graph(monkeypatch, backend):
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("inductor needs a compiler of C++")
    monkeypatch.setattr(scan_package, "backend_for", lambda x, n_states=16: triton_scan)
    torch.manual_seed(0)
    layer = BidirectionalMamba(4, state=8).to(DEVICE)
    x = torch.randn(1, 10, 4, device=DEVICE)
    names, leaves = zip(*layer.named_parameters(), strict=True)
    eager = layer(x)
    wanted = torch.autograd.grad(eager.square().sum(), leaves)
    # What is kept on the disk was made with other tiles.
    inductor, autograd = (importlib.import_module(f"torch.{name}.config") for name in ("_inductor", "_functorch"))
    with inductor.patch(fx_graph_cache=False), autograd.patch(enable_autograd_cache=False):
        compiled = torch.compile(layer, backend=backend, fullgraph=True)(x)
        found = torch.autograd.grad(compiled.square().sum(), leaves)
    torch.testing.assert_close(compiled, eager)
    for name, a, b in zip(names, found, wanted, strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")


def test_layer__triton_gives_the_result_of_plain(monkeypatch):
    torch.manual_seed(0)
    layer = BidirectionalMamba(4, state=16).to(DEVICE)
    x = torch.randn(2, 11, 4, device=DEVICE)
    outputs = {}
    for name, module in (("plain", plain), ("triton", triton_scan)):
        monkeypatch.setattr(scan_package, "backend_for", lambda x, n_states=16, module=module: module)
        y = layer(x)
        outputs[name] = [y, *torch.autograd.grad(y.square().sum(), list(layer.parameters()))]
    for a, b in zip(outputs["triton"], outputs["plain"], strict=True):
        assert relative_error(a, b) < 1e-5


def compiled(*cases):
    """Results of a process without the interpreter: for each case and kernel its PTX, registers, spills and shared memory."""
    plain = {"arch": 90, "dtype": "bf16", "state": 16, "flags": True, "ones": ()}
    command = [sys.executable, str(Path(__file__).with_name("triton_compiler.py"))]
    lines = "".join(json.dumps(plain | one) + "\n" for one in cases)
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    done = subprocess.run(command, input=lines, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    made = [json.loads(line) for line in done.stdout.splitlines()]
    assert [sorted(kernels) for kernels in made] == [sorted(KERNELS)] * len(cases)
    return made


def test_kernels__compile_for_an_h100_without_spills_or_atomics():
    (found,) = compiled({})
    for name, facts in found.items():
        assert facts["stack"] == 0, f"{name} spills registers"
        # A sum by atomics has another order every time.
        assert not re.search(r"\b(atom|red)\.", facts["ptx"]), name
    # A lane a channel: the sum over the states needs no other lane. Only what is kept is turned, once a chunk or segment.
    assert "shfl" not in found["scan_forward"]["ptx"]
    assert found["scan_forward"]["shared"] == found["segment_heads"]["shared"] == 4 * 16 * 32
    assert found["segment_ends"]["shared"] == 0
    # Ten warps of a processor's 65,536 registers, which are given out eight to a lane.
    assert found["scan_backward"]["registers"] <= 200


@pytest.mark.slow
@pytest.mark.parametrize("arch", [75, 80, 86, 89, 90, 100])
def test_kernels__compile_for_other_gpus(arch):
    half = "fp16" if arch < 80 else "bf16"
    tiles = [("fp32", 16, True), (half, 16, True), (half, 8, True), ("fp16", 8, False)]
    cases = [{"arch": arch, "dtype": dtype, "state": state, "flags": flags} for dtype, state, flags in tiles]
    for one, made in zip(cases, compiled(*cases), strict=True):
        for name, facts in made.items():
            assert facts["stack"] == 0, f"{name} spills registers: {one}"


@pytest.mark.slow
def test_kernels__compile_where_a_size_is_one():
    compiled(*({"ones": ones.split(",")} for ones in ("L", "D", "L,D,u_l,z_l,grad_l,dt_l")))
