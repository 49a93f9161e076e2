"""Backends of the selective scan on a CPU against a float64 loop written from the equations."""

import threading

import pytest
import torch
import torch.nn.functional as F

from dtsf.errors import ConfigError
from dtsf.model import scan as scan_package
from dtsf.model.scan import ScanInputs, choose_backend, numba_scan, parity, plain, selective_scan, use_backend
from dtsf.model.scan.numba_kernels import CHUNK, LANES, compiled

CPU = torch.device("cpu")


def by(scan):
    """A backend's scan as a function of its tensors."""
    return lambda *tensors, reverse=False: scan(ScanInputs(*tensors, *[None] * (8 - len(tensors)), reverse))


scan_on_cpu, scan_in_plain, chosen_scan = by(numba_scan.scan), by(plain.scan), by(selective_scan)


def loop_scan(u, dt, A, B, C, D=None, z=None, bias=None, *, reverse=False):
    """``h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t``, token by token."""
    dt = F.softplus(dt if bias is None else dt + bias[:, None])
    state, outputs = u.new_zeros(*u.shape[:2], A.shape[1]), []
    steps = range(u.shape[-1])
    for t in reversed(steps) if reverse else steps:
        state = torch.exp(dt[:, :, t, None] * A) * state + (dt * u)[:, :, t, None] * B[:, None, :, t]
        outputs.append((state * C[:, None, :, t]).sum(-1))
    y = torch.stack(outputs[::-1] if reverse else outputs, -1)
    y = y if D is None else y + D[:, None] * u
    return y if z is None else y * F.silu(z)


def scan_arguments(B, D, L, N, dtype=torch.float64):
    torch.manual_seed(L)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64).to(dtype).requires_grad_()

    A = (-3 * torch.rand(D, N, dtype=torch.float64) - 0.1).to(dtype).requires_grad_()
    return [draw(B, D, L), draw(B, D, L), A, draw(B, N, L), draw(B, N, L), draw(D), draw(B, D, L), draw(D)]


def value_and_gradients(function, arguments, **options):
    """The output, and the gradient of its product with fixed random numbers for every argument, all in float64."""
    leaves = [x.detach().clone().requires_grad_() for x in arguments]
    y = function(*leaves, **options)
    torch.manual_seed(0)
    probe = torch.randn(y.shape, dtype=torch.float64)
    gradients = torch.autograd.grad((y.double() * probe).sum(), leaves)
    return [y.detach().double(), *(g.double() for g in gradients)]


def assert_any_number_of_threads(function, arguments, **options):
    """The same bits with one thread, two and three."""
    before = torch.get_num_threads()
    results = []
    try:
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            results.append(value_and_gradients(function, arguments, **options))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def relative_error(found, wanted):
    return ((found - wanted).norm() / wanted.norm().clamp(min=1e-30)).item()


SHAPES = [
    (1, 3, 1, 4),  # one token
    (1, 1, 2, 1),
    (2, 5, CHUNK, 8),
    (3, 7, CHUNK + 1, 16),
    (2, LANES + 3, 3 * CHUNK - 1, 5),  # odd length, a second block of three channels
    (1, 6, 1569, 16),  # VideoMamba's 8 frames at 224 px
]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_numba__output_and_gradients_are_the_float64_loops(shape, reverse):
    arguments = scan_arguments(*shape)
    wanted = value_and_gradients(loop_scan, arguments, reverse=reverse)
    found = value_and_gradients(scan_on_cpu, [x.float() for x in arguments], reverse=reverse)
    for name, ours, right in zip(["y", "u", "dt", "A", "B", "C", "D", "z", "bias"], found, wanted, strict=True):
        torch.testing.assert_close(ours, right, rtol=2e-5, atol=2e-5 * right.abs().max().item(), msg=name)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", SHAPES[:-1])
def test_plain__output_and_gradients_are_the_float64_loops(shape, reverse):
    arguments = scan_arguments(*shape)
    wanted = value_and_gradients(loop_scan, arguments, reverse=reverse)
    for ours, right in zip(value_and_gradients(scan_in_plain, arguments, reverse=reverse), wanted, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("length", [1, 2, 3, 16, 17, 145])
def test_states_by_chunks__are_the_loops(length):
    torch.manual_seed(length)
    decay, entering = torch.rand(2, length, 3, dtype=torch.float64), torch.randn(2, length, 3, dtype=torch.float64)
    state, wanted = torch.zeros(2, 3, dtype=torch.float64), []
    for t in range(length):
        state = decay[:, t] * state + entering[:, t]
        wanted.append(state)
    found = plain.states_by_chunks(decay, entering)
    torch.testing.assert_close(found, torch.stack(wanted, 1), rtol=1e-13, atol=1e-13)


def test_plain__the_form_for_gpus_is_the_loop(monkeypatch):
    # No GPU is needed to run the same operators here.
    monkeypatch.setattr(plain, "states", plain.states_by_chunks)
    arguments = scan_arguments(2, 3, 29, 4)
    wanted = value_and_gradients(loop_scan, arguments)
    for ours, right in zip(value_and_gradients(scan_in_plain, arguments), wanted, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("function", [scan_on_cpu, scan_in_plain])
@pytest.mark.parametrize("given", [(), ("D",), ("z",), ("bias",)])
def test_scan__skip_gate_and_bias_are_optional(function, given):
    *tensors, D, z, bias = scan_arguments(2, 3, 9, 4)
    options = {"D": D, "z": z, "bias": bias}
    chosen = [options[name] if name in given else None for name in options]
    wanted = loop_scan(*tensors, *chosen)
    found = function(*(x if x is None else x.float() for x in (*tensors, *chosen)))
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("function", [scan_on_cpu, scan_in_plain])
def test_scan__bfloat16_with_the_recurrence_in_float32(function):
    arguments = scan_arguments(2, 8, 200, 16, torch.bfloat16)
    wanted = value_and_gradients(loop_scan, [x.double() for x in arguments])
    found = value_and_gradients(function, arguments)
    assert function(*arguments).dtype == torch.bfloat16
    # bfloat16 keeps 8 bits: rounding the result alone costs 2^-9, and the inputs are the same.
    assert max(map(relative_error, found, wanted)) < 2**-7


@pytest.fixture
def fresh():
    """Backends are chosen and imported again, in the test and after it."""
    scan_package._choose.cache_clear(), scan_package._load.cache_clear()
    yield
    scan_package._choose.cache_clear(), scan_package._load.cache_clear()


def test_choose_backend__numba_on_a_cpu_and_plain_in_float64():
    arguments = [x.float() for x in scan_arguments(1, 3, 5, 2)]
    assert choose_backend(CPU) == ("numba", "numba is usable")
    assert torch.equal(chosen_scan(*arguments), scan_on_cpu(*arguments))
    wide = scan_arguments(1, 3, 5, 2)
    assert chosen_scan(*wide).dtype == torch.float64
    assert torch.equal(chosen_scan(*wide), scan_in_plain(*wide))


def test_choose_backend__plain_without_numba_and_says_why(monkeypatch, fresh):
    original = scan_package.importlib.import_module

    def broken(name):
        if name.endswith("numba_scan"):
            raise ImportError("Numba needs NumPy 2.3 or less")
        return original(name)

    monkeypatch.setattr(scan_package.importlib, "import_module", broken)
    backend = choose_backend(CPU)
    assert backend.name == "plain"
    assert "Numba needs NumPy 2.3" in backend.reason
    arguments = [x.float() for x in scan_arguments(1, 3, 5, 2)]
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
    other = choose_backend(torch.device("cuda"), 5)
    assert other.name == "plain"


def test_use_backend__plain_has_the_gradient_of_a_gradient_and_numba_refuses():
    tensors = [x.detach().float().requires_grad_() for x in scan_arguments(2, 3, 9, 2)]

    def penalty(function):
        first = torch.autograd.grad(function(*tensors).square().sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), tensors)

    with use_backend("plain"):
        found = penalty(chosen_scan)
    wide = [x.detach().double().requires_grad_() for x in tensors]
    tensors, narrow = wide, tensors
    wanted = penalty(loop_scan)
    for ours, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.double(), right, rtol=1e-4, atol=1e-5 * right.abs().max().item())
    tensors = narrow
    with pytest.raises(RuntimeError, match="the numba scan has no gradient of its gradient"):
        penalty(chosen_scan)


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


def test_plain__gradient_of_the_gradient():
    assert torch.autograd.gradgradcheck(scan_in_plain, scan_arguments(1, 2, 5, 2))


def test_numba__results_do_not_depend_on_the_number_of_threads():
    assert_any_number_of_threads(scan_on_cpu, [x.float() for x in scan_arguments(5, 70, 150, 16)])


def test_numba__several_threads_may_scan_at_the_same_time():
    arguments = [x.detach().float() for x in scan_arguments(2, 40, 100, 8)]
    wanted = scan_on_cpu(*arguments)
    found = [None] * 4

    def work(k):
        found[k] = scan_on_cpu(*arguments)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(y, wanted) for y in found)


@pytest.mark.parametrize("where", range(8))
def test_numba__a_nan_reaches_the_output(where):
    arguments = [x.detach().float() for x in scan_arguments(1, 4, 20, 3)]
    arguments[where].flatten()[0] = float("nan")
    assert scan_on_cpu(*arguments).isnan().any()


def test_numba__extreme_steps_and_gates_stay_finite_and_right():
    arguments = scan_arguments(1, 4, 24, 3)
    for x, values in ((arguments[1], [-200.0, -30.0, 30.0, 200.0]), (arguments[6], [-500.0, -90.0, 90.0, 500.0])):
        x.data[0] = torch.tensor(values, dtype=torch.float64)[:, None]
    wanted = value_and_gradients(loop_scan, arguments)
    found = value_and_gradients(scan_on_cpu, [x.float() for x in arguments])
    for ours, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-5 * right.abs().max().item())


def test_numba__any_layout_and_inference_mode():
    arguments = [x.detach().float() for x in scan_arguments(2, 6, 33, 4)]
    wanted = scan_on_cpu(*arguments)
    arguments[0] = arguments[0].transpose(1, 2).contiguous().transpose(1, 2)
    wide = torch.randn(2, 6, 66)
    wide[..., ::2] = arguments[1]
    arguments[1] = wide[..., ::2]
    arguments[3] = arguments[3][:1].expand(2, -1, -1)
    arguments[4] = arguments[4][:1].expand(2, -1, -1)
    with torch.inference_mode():
        found = scan_on_cpu(*arguments)
    torch.testing.assert_close(found[:1], wanted[:1])


def test_compiled__works_where_the_code_cannot_be_cached():
    # Code without a file has no folder for numba's cache, just as a read-only install without a home.
    scope = {}
    exec("def double(x):\n    return x + x", scope)  # noqa: S102
    assert compiled()(scope["double"])(21) == 42
