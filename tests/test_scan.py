"""Backends of the selective scan and of its convolution on a CPU, against float64 written from the equations."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F

from dtsf.errors import ConfigError
from dtsf.model import scan as scan_package
from dtsf.model.scan import ScanInputs, choose_backend, numba_scan, parity, plain, selective_scan, use_backend
from dtsf.model.scan.numba_kernels import CHUNK, LANES, compiled
from dtsf.model.scan.numba_scan import BLOCK

CPU = torch.device("cpu")
causal_conv = scan_package.causal_conv
BOTH = pytest.mark.parametrize("reverse", [False, True])


def by(scan):
    """A backend's scan as a function of its tensors."""
    return lambda *tensors, reverse=False: scan(ScanInputs(*tensors, reverse))


scan_on_cpu, scan_in_plain, chosen_scan = by(numba_scan.scan), by(plain.scan), by(selective_scan)


def loop_scan(u, dt, A, B, C, D, z, bias, *, reverse=False):
    """``h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t``, token by token."""
    dt = F.softplus(dt + bias[:, None])
    state, outputs = u.new_zeros(*u.shape[:2], A.shape[1]), []
    steps = range(u.shape[-1])
    for t in reversed(steps) if reverse else steps:
        state = torch.exp(dt[:, :, t, None] * A) * state + (dt * u)[:, :, t, None] * B[:, None, :, t]
        outputs.append((state * C[:, None, :, t]).sum(-1))
    return (torch.stack(outputs[::-1] if reverse else outputs, -1) + D[:, None] * u) * F.silu(z)


def scan_arguments(B, D, L, N):
    torch.manual_seed(L)
    A = -3 * torch.rand(D, N, dtype=torch.float64) - 0.1
    shapes = [(B, D, L), (B, D, L), (B, N, L), (B, N, L), (D,), (B, D, L), (D,)]
    drawn = [torch.randn(*shape, dtype=torch.float64) for shape in shapes]
    return [x.requires_grad_() for x in (*drawn[:2], A, *drawn[2:])]


def conv_arguments(B, D, L, taps=4):
    torch.manual_seed(L)
    return [torch.randn(B, D, L), torch.randn(D, 1, taps), torch.randn(D)]


def floats(arguments):
    return [x.detach().float() for x in arguments]


def value_and_gradients(function, arguments, **options):
    """The output, and the gradient of its product with fixed random numbers for every argument, all in float64."""
    leaves = [x.detach().clone().requires_grad_() for x in arguments]
    y = function(*leaves, **options)
    torch.manual_seed(0)
    probe = torch.randn(y.shape, dtype=torch.float64)
    gradients = torch.autograd.grad((y.double() * probe).sum(), leaves)
    return [y.detach().double(), *(g.double() for g in gradients)]


def relative_error(found, wanted):
    return ((found - wanted).norm() / wanted.norm().clamp(min=1e-30)).item()


def assert_near(found, wanted, tolerance):
    """Absolute errors are shares of the largest number of each tensor."""
    for ours, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.double(), right, rtol=tolerance, atol=tolerance * right.abs().max().item())


# One token, whole chunks, a second block of three channels, and VideoMamba's 8 frames at 224 px.
SHAPES = [(1, 3, 1, 4), (1, 1, 2, 1), (2, 5, CHUNK, 8), (3, 7, CHUNK + 1, 16), (2, LANES + 3, 3 * CHUNK - 1, 5), (1, 6, 1569, 16)]
# One token, a second block of five channels, each token alone, and more taps than tokens.
WIDE = [(3, BLOCK + 5, 37, 4), (1, 2 * BLOCK, 8, 4), (2, BLOCK + 1, 5, 1)]
CONVOLUTIONS = [(1, 3, 1, 4), (2, 5, 3, 4), (2, 5, 4, 4), *WIDE, (2, 4, 9, 2), (2, 4, 3, 6)]


@BOTH
@pytest.mark.parametrize("shape", SHAPES)
def test_scan__output_and_gradients_are_the_float64_loops(shape, reverse):
    arguments = scan_arguments(*shape)
    wanted = value_and_gradients(loop_scan, arguments, reverse=reverse)
    assert_near(value_and_gradients(scan_on_cpu, floats(arguments), reverse=reverse), wanted, 2e-5)
    found = value_and_gradients(scan_in_plain, arguments, reverse=reverse)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@BOTH
def test_plain__the_form_for_gpus_is_the_loop(monkeypatch, reverse):
    monkeypatch.setattr(plain, "states", plain.states_by_chunks)
    for length in (1, 2, 3, 16, 17, 145):
        arguments = scan_arguments(2, 3, length, 4)
        found, wanted = (value_and_gradients(function, arguments, reverse=reverse) for function in (scan_in_plain, loop_scan))
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@BOTH
@pytest.mark.parametrize(
    ("function", "reference", "arguments"),
    [
        (scan_on_cpu, loop_scan, scan_arguments(2, 8, 200, 16)),
        (scan_in_plain, loop_scan, scan_arguments(2, 8, 200, 16)),
        (causal_conv, causal_conv, conv_arguments(2, 8, 33)),
    ],
)
def test_scan__bfloat16_is_rounded_once(function, reference, arguments, reverse):
    arguments = [x.detach().bfloat16() for x in arguments]
    wanted = value_and_gradients(reference, [x.double() for x in arguments], reverse=reverse)
    found = value_and_gradients(function, arguments, reverse=reverse)
    assert function(*arguments, reverse=reverse).dtype == torch.bfloat16
    # bfloat16 keeps 8 bits: rounding the result alone costs 2^-9, and the inputs are the same.
    assert max(map(relative_error, found, wanted)) < 2**-7


def test_choose_backend__numba_on_a_cpu_and_plain_in_float64():
    wide = scan_arguments(1, 3, 5, 2)
    assert choose_backend(CPU) == ("numba", "numba is usable")
    assert torch.equal(chosen_scan(*floats(wide)), scan_on_cpu(*floats(wide)))
    assert chosen_scan(*wide).dtype == torch.float64
    assert torch.equal(chosen_scan(*wide), scan_in_plain(*wide))


def test_choose_backend__plain_without_numba_and_says_why(monkeypatch):
    original = scan_package.importlib.import_module

    def broken(name):
        if name.endswith("numba_scan"):
            raise ImportError("Numba needs NumPy 2.3 or less")
        return original(name)

    monkeypatch.setattr(scan_package.importlib, "import_module", broken)
    monkeypatch.setattr(scan_package, "_load", scan_package._load.__wrapped__)
    backend = choose_backend(CPU)
    assert backend.name == "plain"
    assert "Numba needs NumPy 2.3" in backend.reason
    arguments = floats(scan_arguments(1, 3, 5, 2))
    assert torch.equal(chosen_scan(*arguments), scan_in_plain(*arguments))


def test_choose_backend__the_environment_chooses(monkeypatch):
    monkeypatch.setenv("DTSF_SCAN", "plain")
    assert choose_backend(CPU).name == "plain"
    monkeypatch.setenv("DTSF_SCAN", "triton")  # not for a CPU
    assert choose_backend(CPU).name == "numba"
    monkeypatch.setenv("DTSF_SCAN", "magic")
    with pytest.raises(ConfigError, match="DTSF_SCAN='magic' is not a backend of the scan: choose one of mamba_ssm, triton"):
        choose_backend(CPU)


def test_choose_backend__names_why_mamba_ssm_is_not_used():
    backend = choose_backend(torch.device("cuda"))
    if backend.name == "mamba_ssm":
        pytest.skip("mamba-ssm is installed here")
    assert "mamba_ssm is not usable" in backend.reason
    assert choose_backend(torch.device("mps")).name == "plain"
    assert choose_backend(torch.device("cuda"), 5).name == "plain"


def test_use_backend__plain_has_the_gradient_of_a_gradient_and_numba_refuses():
    def penalty(function, tensors):
        tensors = [x.detach().requires_grad_() for x in tensors]
        first = torch.autograd.grad(function(*tensors).square().sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), tensors)

    narrow = floats(scan_arguments(2, 3, 9, 2))
    with use_backend("plain"):
        found = penalty(chosen_scan, narrow)
    assert_near(found, penalty(loop_scan, [x.double() for x in narrow]), 1e-5)
    with pytest.raises(RuntimeError, match="the numba scan has no gradient of its gradient"):
        penalty(chosen_scan, narrow)
    assert torch.autograd.gradgradcheck(scan_in_plain, scan_arguments(1, 2, 5, 2))


def test_check_parity__finds_what_is_wrong(monkeypatch):
    assert parity.check_parity(CPU) < parity.TOLERANCE
    shape = (1, 3, 9, 8)
    assert parity.compare(numba_scan.scan, CPU, reverse=True, shape=shape) < parity.TOLERANCE
    assert parity.compare(lambda x: plain.scan(x._replace(reverse=not x.reverse)), CPU, reverse=True, shape=shape) > 0.01
    for wrong in (lambda x: plain.scan(x) * 1.001, lambda x: plain.scan(x) * float("nan")):
        monkeypatch.setattr(numba_scan, "scan", wrong)
        with pytest.raises(ConfigError, match="the scan backend numba is wrong on cpu.*DTSF_SCAN=plain"):
            parity.check_parity(CPU, shape=shape)


@pytest.mark.filterwarnings("ignore:In CPU autocast")
@pytest.mark.parametrize("around", [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_check_parity__is_the_same_in_evaluation_and_mixed_precision(around):
    with around():
        assert parity.check_parity(CPU, shape=(1, 3, 9, 8)) < parity.TOLERANCE


@BOTH
@pytest.mark.parametrize(
    ("function", "arguments"),
    [(scan_on_cpu, floats(scan_arguments(5, 70, 150, 16))), (causal_conv, conv_arguments(7, 2 * BLOCK + 9, 90))],
)
def test_numba__results_do_not_depend_on_the_number_of_threads(function, arguments, reverse):
    before = torch.get_num_threads()
    results = []
    try:
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            results.append(value_and_gradients(function, arguments, reverse=reverse))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def test_numba__several_threads_may_scan_at_the_same_time():
    arguments = floats(scan_arguments(2, 40, 100, 8))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: scan_on_cpu(*arguments), range(4)))
    assert all(torch.equal(y, scan_on_cpu(*arguments)) for y in found)


@pytest.mark.parametrize("where", range(8))
def test_numba__a_nan_reaches_the_output(where):
    arguments = floats(scan_arguments(1, 4, 20, 3))
    arguments[where].flatten()[0] = float("nan")
    assert scan_on_cpu(*arguments).isnan().any()


def test_numba__extreme_steps_and_gates_stay_finite_and_right():
    arguments = scan_arguments(1, 4, 24, 3)
    for x, values in ((arguments[1], [-200.0, -30.0, 30.0, 200.0]), (arguments[6], [-500.0, -90.0, 90.0, 500.0])):
        x.data[0] = torch.tensor(values, dtype=torch.float64)[:, None]
    assert_near(value_and_gradients(scan_on_cpu, floats(arguments)), value_and_gradients(loop_scan, arguments), 1e-5)


def test_numba__any_layout_and_inference_mode():
    arguments = floats(scan_arguments(2, 6, 33, 4))
    wanted = scan_on_cpu(*arguments)
    arguments[0] = arguments[0].transpose(1, 2).contiguous().transpose(1, 2)
    wide = torch.randn(2, 6, 66)
    wide[..., ::2] = arguments[1]
    arguments[1] = wide[..., ::2]
    arguments[3], arguments[4] = (x[:1].expand(2, -1, -1) for x in arguments[3:5])
    with torch.inference_mode():
        found = scan_on_cpu(*arguments)
    torch.testing.assert_close(found[:1], wanted[:1])


def test_compiled__works_where_the_code_cannot_be_cached():
    # Code without a file has no folder for numba's cache, just as a read-only install without a home.
    scope = {}
    exec("def double(x):\n    return x + x", scope)  # noqa: S102
    assert compiled(scope["double"])(21) == 42


@BOTH
@pytest.mark.parametrize("length", [1, 3, 10])
def test_causal_conv__reads_tokens_before_or_after_only(length, reverse):
    x, weight, bias = (y.double() for y in conv_arguments(2, 5, length))
    seen = x.flip(-1) if reverse else x
    wanted = F.silu(F.conv1d(F.pad(seen, (3, 0)), weight, bias, groups=5))
    wanted = wanted.flip(-1) if reverse else wanted
    torch.testing.assert_close(causal_conv(x, weight, bias, reverse=reverse), wanted)
    torch.testing.assert_close(causal_conv(*floats([x, weight, bias]), reverse=reverse), wanted.float())


@BOTH
@pytest.mark.parametrize("shape", CONVOLUTIONS)
def test_causal_conv__gradients_of_numba_are_those_of_plain(shape, reverse):
    narrow = conv_arguments(*shape)
    found = value_and_gradients(causal_conv, narrow, reverse=reverse)
    wanted = value_and_gradients(causal_conv, [x.double() for x in narrow], reverse=reverse)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_causal_conv__any_layout_no_sequence_and_inference_mode():
    x, weight, bias = conv_arguments(2, 6, 21)
    wanted = causal_conv(x, weight, bias)
    wide = torch.randn(2, 6, 42)
    wide[..., ::2] = x
    with torch.inference_mode():
        assert torch.equal(causal_conv(wide[..., ::2], weight, bias), wanted)
        assert torch.equal(causal_conv(x.transpose(1, 2).contiguous().transpose(1, 2), weight, bias), wanted)
    found = value_and_gradients(causal_conv, [x[:0], weight, bias])
    assert found[0].shape == (0, 6, 21)
    assert not any(gradient.any() for gradient in found[1:])


@BOTH
@pytest.mark.parametrize("token", [0, 2, 9, 18, 20])
def test_causal_conv__a_nan_reaches_the_tokens_that_read_it_only(token, reverse):
    x, weight, bias = conv_arguments(2, 6, 21)
    x[1, 3, token] = float("nan")
    wrong = causal_conv(x, weight, bias, reverse=reverse).isnan()
    later, earlier = ([[1, 3, t] for t in range(21) if 0 <= sign * (t - token) <= 3] for sign in (1, -1))
    assert wrong.nonzero().tolist() == (earlier if reverse else later)
    x[1, 3, token] = 0.0
    gy = torch.zeros(2, 6, 21)
    gy[1, 3, token] = float("nan")
    leaf = x.requires_grad_()
    (gx,) = torch.autograd.grad(causal_conv(leaf, weight, bias, reverse=reverse), leaf, gy)
    assert gx.isnan().nonzero().tolist() == (later if reverse else earlier)


def test_causal_conv__extreme_sums_stay_finite_and_right():
    arguments = conv_arguments(2, 4, 12)
    arguments[0][0] *= 200
    wanted = value_and_gradients(causal_conv, [y.double() for y in arguments])
    assert_near(value_and_gradients(causal_conv, arguments), wanted, 1e-5)
