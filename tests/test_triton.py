"""Triton's loops against a float64 loop written from the equations: on a card where there is one, else in Triton's interpreter."""

import importlib
import os
import shutil

import pytest
import torch
from test_scan import loop_scan, relative_error, scan_arguments, value_and_gradients

if not os.environ.get("CI"):
    pytest.importorskip("triton", reason="pip install --no-deps triton==3.6.0")

from dtsf.model.mamba import BidirectionalMamba
from dtsf.model.scan import dispatch as choose
from dtsf.model.scan import parity as trial
from dtsf.model.scan import triton_conv, triton_scan
from dtsf.model.scan.dispatch import kernel_choice
from dtsf.model.scan.parity import Trial
from dtsf.model.scan.plain import conv_by_shifts, selective_scan_plain
from dtsf.model.scan.triton_conv import conv_by_triton
from dtsf.model.scan.triton_scan import scan_by_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several blocks, chunks and segments in few tokens: the interpreter takes milliseconds an operation."""
    monkeypatch.setattr(triton_scan, "_chunk", lambda length: 8)
    monkeypatch.setattr(triton_scan, "LEAST_CHUNKS", 1)
    monkeypatch.setattr(triton_scan, "BLOCK", 8)
    monkeypatch.setattr(triton_conv, "TOKENS", 8)
    monkeypatch.setattr(triton_conv, "CHANNELS", 8)
    monkeypatch.setattr(triton_scan, "_processors", lambda device: 132)


def on_device(arguments, dtype=torch.float32):
    return [x.detach().to(DEVICE, torch.float32 if k in (2, 5, 7) else dtype) for k, x in enumerate(arguments)]


def found_and_wanted(shape, reverse, dtype=torch.float32, given=range(8)):
    arguments = on_device(scan_arguments(*shape), dtype)

    def pick(function):
        def run(*some, **options):
            some = iter(some)
            return function(*(next(some) if k in given else None for k in range(8)), **options)

        return run

    chosen = [arguments[k] for k in given]
    found = value_and_gradients(pick(scan_by_triton), chosen, reverse=reverse)
    return found, value_and_gradients(pick(loop_scan), [x.double() for x in chosen], reverse=reverse)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", [(1, 3, 1, 16), (2, 11, 21, 8), (1, 8, 16, 16), (1, 9, 19, 16)])
def test_scan_and_all_its_gradients_are_the_float64_loops(shape, reverse):
    for ours, right in zip(*found_and_wanted(shape, reverse), strict=True):
        assert relative_error(ours, right) < 2e-6


def test_one_segment_gives_what_many_give(monkeypatch):
    many, _ = found_and_wanted((1, 5, 30, 8), reverse=False)
    assert triton_scan._segments(torch.empty(1, 30, 5), 16)[0] > 1
    monkeypatch.setattr(triton_scan, "_processors", lambda device: 0)
    assert triton_scan._segments(torch.empty(1, 30, 5), 16)[0] == 1
    one, wanted = found_and_wanted((1, 5, 30, 8), reverse=False)
    for a, b, right in zip(one, many, wanted, strict=True):
        assert relative_error(a, right) < 2e-6
        assert relative_error(a, b) < 2e-6


@pytest.mark.parametrize("given", [(0, 1, 2, 3, 4), (0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 4, 6), (0, 1, 2, 3, 4, 7)])
def test_skip_gate_and_bias_may_be_left_out(given):
    for ours, right in zip(*found_and_wanted((1, 3, 10, 8), True, given=given), strict=True):
        assert relative_error(ours, right) < 2e-6


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 8e-3), (torch.float16, 1e-3)])
def test_half_precision_is_rounded_once_and_comes_back_as_it_went_in(dtype, error):
    found, wanted = found_and_wanted((1, 9, 19, 16), False, dtype)
    for ours, right in zip(found, wanted, strict=True):
        assert relative_error(ours, right) < error
    leaves = [x.requires_grad_() for x in on_device(scan_arguments(1, 3, 9, 8), dtype)]
    y = scan_by_triton(*leaves)
    assert y.dtype == dtype
    gradients = torch.autograd.grad(y.float().sum(), leaves)
    assert [g.dtype for g in gradients] == [x.dtype for x in leaves]
    assert [g.shape for g in gradients] == [x.shape for x in leaves]


def test_extreme_steps_stay_right():
    arguments = scan_arguments(1, 4, 12, 8)
    with torch.no_grad():
        arguments[1][:, 0] = -90.0
        arguments[1][:, 1] = 60.0
        arguments[1][:, 2] = -12.0
    wide = [x.detach().double() for x in on_device(arguments)]
    found = scan_by_triton(*on_device(arguments)).double()
    assert torch.isfinite(found).all()
    assert relative_error(found, loop_scan(*wide)) < 2e-6
    # The step size itself: softplus near 0 is where log(1 + x) loses its digits.
    u, dt, A, B, C = wide[:5]
    alone = [u, dt, A, torch.ones_like(B), torch.ones_like(C)]
    small = scan_by_triton(*(x.float() for x in alone)).double()[:, 2]
    assert relative_error(small, loop_scan(*alone)[:, 2]) < 2e-6


@pytest.mark.parametrize("width", [16, 33])
def test_any_layout_no_sequence_and_inference_mode(width):
    arguments = on_device(scan_arguments(2, 5, 9, 8))
    wanted = scan_by_triton(*arguments)
    whole = torch.randn(2, 9, width, device=DEVICE)
    whole[:, :, 3:8] = arguments[0].transpose(1, 2)
    with torch.inference_mode():
        assert torch.equal(scan_by_triton(whole[:, :, 3:8].transpose(1, 2), *arguments[1:]), wanted)
    assert scan_by_triton(arguments[0][:0], arguments[1][:0], arguments[2], *(x[:0] for x in arguments[3:5])).shape == (0, 5, 9)


def test_results_repeat_bit_for_bit():
    first, second = (found_and_wanted((1, 9, 12, 8), False)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_gradient_of_the_gradient_is_the_loops():
    def penalty(function, arguments):
        leaves = [x.detach().clone().requires_grad_() for x in arguments]
        (slope,) = torch.autograd.grad(function(*leaves).square().sum(), leaves[0], create_graph=True)
        return [g.double() for g in torch.autograd.grad(slope.square().sum(), leaves)]

    arguments = on_device(scan_arguments(1, 2, 5, 8))
    wanted = penalty(loop_scan, [x.double() for x in arguments])
    for ours, right in zip(penalty(scan_by_triton, arguments), wanted, strict=True):
        assert relative_error(ours, right) < 1e-5


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("B", "L", "D", "taps"), [(2, 5, 3, 4), (1, 19, 11, 4), (1, 9, 8, 2)])
def test_convolution_and_its_gradients(B, L, D, taps, reverse):
    torch.manual_seed(L)
    arguments = [torch.randn(*shape, dtype=torch.float64) for shape in ((B, L, D), (taps, D), (D,))]
    wanted = value_and_gradients(conv_by_shifts, arguments, reverse=reverse)
    single = [x.to(DEVICE, torch.float32) for x in arguments]
    for ours, right in zip(value_and_gradients(conv_by_triton, single, reverse=reverse), wanted, strict=True):
        assert relative_error(ours.cpu(), right) < 2e-6


def test_convolution_in_bfloat16_is_rounded_once():
    torch.manual_seed(0)
    x = torch.randn(1, 9, 5, device=DEVICE).bfloat16()
    weight, bias = torch.randn(4, 5, device=DEVICE), torch.randn(5, device=DEVICE)
    y = conv_by_triton(x, weight, bias, reverse=False)
    assert y.dtype == torch.bfloat16
    wanted = conv_by_shifts(x.double(), weight.double(), bias.double(), reverse=False)
    torch.testing.assert_close(y.double(), wanted.bfloat16().double(), rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(8, 768, 1569, 16), (64, 192, 145, 16), (2, 768, 6273, 16), (16, 192, 145, 8)])
def test_memory_beside_inputs_and_gradients_is_under_three_times_the_inputs(monkeypatch, shape, dtype):
    """At full size, allocations counted on tensors without data."""
    monkeypatch.undo()
    monkeypatch.setattr(triton_scan, "_processors", lambda device: 132)
    B, D, L, N = shape
    made = []

    class Nothing:
        def __getitem__(self, grid):
            return lambda *arguments, **options: None

    for name in ("segment_ends", "scan_forward", "segment_heads", "scan_backward"):
        monkeypatch.setattr(triton_scan, name, Nothing())
    new_empty = torch.Tensor.new_empty

    def counted(self, *sizes, **options):
        made.append(new_empty(self, *sizes, **options))
        return made[-1]

    monkeypatch.setattr(torch.Tensor, "new_empty", counted)
    rows = [torch.empty(B, L, D, dtype=dtype, device="meta") for _ in range(4)]
    columns = [torch.empty(B, L, N, dtype=dtype, device="meta") for _ in range(2)]
    A, vectors = torch.empty(D, N, device="meta"), [torch.empty(D, device="meta") for _ in range(2)]
    tensors = [*rows[:2], A, *columns, vectors[0], rows[2], vectors[1]]
    _, states = triton_scan._forward._init_fn(*tensors, False, True)
    assert states.numel() == B * -(-L // triton_scan._chunk(L)) * N * D
    triton_scan._backward._init_fn(*tensors, states, rows[3], False)
    inputs = sum(x.numel() * x.itemsize for x in tensors)
    assert sum(x.numel() * x.itemsize for x in made) < 3 * inputs


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_torch_compile_takes_a_whole_layer_in_one_graph(monkeypatch, backend):
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("inductor needs a compiler of C++")
    choose.gpu_kernel()
    monkeypatch.setattr(choose, "_implementation", lambda x, n_states=16: "triton")
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


def test_a_layer_with_triton_is_the_layer_with_the_plain_form(monkeypatch):
    choose.gpu_kernel()
    torch.manual_seed(0)
    layer = BidirectionalMamba(4, state=16).to(DEVICE)
    x = torch.randn(2, 11, 4, device=DEVICE)
    outputs = {}
    for name in ("plain", "triton"):
        monkeypatch.setattr(choose, "_implementation", lambda x, n_states=16, name=name: name)
        y = layer(x)
        outputs[name] = [y, *torch.autograd.grad(y.square().sum(), list(layer.parameters()))]
    for a, b in zip(outputs["triton"], outputs["plain"], strict=True):
        assert relative_error(a, b) < 1e-5


# Which one runs on a card, and what is kept of trying them.


@pytest.fixture
def a_card(monkeypatch, tmp_path):
    """A card in name only."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card 9000")
    choose._on_cuda.cache_clear()
    yield torch.device("cuda", 0)
    choose._on_cuda.cache_clear()
    choose.LOADED.pop("distrusted", None)


def _results(monkeypatch, **trials):
    asked = []

    def result(name, scan, conv, device, timed):
        asked.append(name)
        return trials[name.replace("-", "_")]

    monkeypatch.setattr(trial, "_try", result)
    return asked


def test_on_a_card_triton_runs_where_mamba_ssm_is_absent(monkeypatch, a_card):
    asked = _results(monkeypatch, triton=Trial(True, 0.0, "triton is right on this card"))
    monkeypatch.setattr(choose, "kernel_status", lambda: (None, None, "mamba-ssm is not usable (absent)"))
    choice = kernel_choice(a_card)
    assert choice.name == "triton"
    assert choice.reason == "triton is right on this card; mamba-ssm is not usable (absent)"
    choose._on_cuda.cache_clear()
    kernel_choice(a_card)
    assert asked == ["triton"], "tried once, then looked up"
    assert kernel_choice(a_card, 5).name == "plain"
    assert "8 or 16 states, not 5" in kernel_choice(a_card, 5).reason


@pytest.mark.parametrize(("theirs", "ours", "name"), [(1.0, 2.0, "mamba-ssm"), (2.0, 1.0, "triton"), (1.0, 1.0, "triton")])
def test_mamba_ssm_runs_only_where_it_is_faster(monkeypatch, a_card, theirs, ours, name):
    _results(monkeypatch, triton=Trial(True, ours, "a"), mamba_ssm=Trial(True, theirs, "b"))
    monkeypatch.setattr(choose, "kernel_status", lambda: (print, print, "installed"))
    assert kernel_choice(a_card).name == name


def test_what_is_wrong_on_a_card_does_not_run_there(monkeypatch, a_card):
    _results(monkeypatch, triton=Trial(False, 0.0, "triton is wrong on this card"), mamba_ssm=Trial(True, 9.0, "b"))
    monkeypatch.setattr(choose, "kernel_status", lambda: (print, print, "installed"))
    assert kernel_choice(a_card).name == "mamba-ssm"
    monkeypatch.setattr(choose, "kernel_status", lambda: (None, None, "absent"))
    choose._on_cuda.cache_clear()
    assert kernel_choice(a_card).name == "plain"
    assert "triton is wrong on this card" in kernel_choice(a_card).reason


def test_what_is_wrong_on_a_card_is_not_compiled_into_a_graph_either(monkeypatch, a_card):
    monkeypatch.setattr(choose, "kernel_status", lambda: (None, None, "absent"))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: False, raising=False)
    there = type("OnACard", (), {"dtype": torch.float32, "device": a_card})()
    for right, name in ((True, "triton"), (False, "plain")):
        choose._on_cuda.cache_clear()
        _results(monkeypatch, triton=Trial(right, 0.0, "a"))
        trial.kept_file().unlink(missing_ok=True)
        kernel_choice(a_card)
        assert choose._implementation(there) == name


def shifted(function):
    return lambda *arguments, reverse: function(*arguments, reverse=not reverse)


def tried(monkeypatch, **forms):
    """What comes of the forms on the device of these tests, and how many of their verdicts are kept."""
    monkeypatch.setattr(trial, "PARITY_SHAPE", (1, 3, 9, 8))
    monkeypatch.setattr(trial, "_milliseconds", lambda function, device: 1.0)
    return trial.on_this_card(forms, torch.device(DEVICE)), len(trial._read(trial.kept_file()))


def test_a_trial_finds_what_is_wrong(monkeypatch, a_card):
    forms = {
        "triton": (scan_by_triton, conv_by_triton),
        "scan": (shifted(selective_scan_plain), conv_by_shifts),
        "conv": (selective_scan_plain, shifted(conv_by_shifts)),
        "nan": (selective_scan_plain, lambda x, *w, reverse: (x + w[0].sum() + w[1]) * float("nan")),
    }
    found, kept = tried(monkeypatch, **forms)
    assert [result.right for result in found.values()] == [True, False, False, False], found
    assert "departs from float64" in found["conv"].said
    assert kept == 4


@pytest.mark.filterwarnings("ignore:In CPU autocast")
@pytest.mark.parametrize("around", [torch.inference_mode, torch.no_grad, lambda: torch.autocast(DEVICE, torch.bfloat16)])
def test_the_verdict_is_the_same_wherever_the_first_scan_is_asked_for(monkeypatch, a_card, around):
    """An evaluation, or a training in mixed precision."""
    with around():
        found, kept = tried(monkeypatch, mine=(selective_scan_plain, conv_by_shifts))
    assert found["mine"].right, found["mine"].said
    assert kept == 1


def test_what_raises_is_said_and_tried_again_next_time(monkeypatch, a_card):
    """A card may have been full."""

    def broken(*arguments, reverse=False):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    found, kept = tried(monkeypatch, mine=(broken, conv_by_shifts))
    assert not found["mine"].right
    assert found["mine"].said == "mine does not run on this card (OutOfMemoryError: CUDA out of memory.)"
    assert kept == 0


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1}', '{"a": {"right": 1}}', "null"])
def test_what_was_kept_and_is_damaged_is_tried_again(monkeypatch, a_card, text):
    trial.kept_file().parent.mkdir()
    trial.kept_file().write_text(text)
    asked = _results(monkeypatch, triton=Trial(True, 0.0, "a"))
    monkeypatch.setattr(choose, "kernel_status", lambda: (None, None, "absent"))
    assert kernel_choice(a_card).name == "triton"
    assert asked == ["triton"]
