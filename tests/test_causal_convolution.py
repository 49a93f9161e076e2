"""The causal convolution compiled by numba against shifted products in float64."""

import pytest
import torch
import torch.nn.functional as F
from test_scan import assert_any_number_of_threads, relative_error, value_and_gradients

from dtsf.model.scan import causal_conv
from dtsf.model.scan.numba_scan import BLOCK


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 3, 10])
def test_causal_conv__reads_tokens_before_or_after_only(length, reverse):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 5, length).double(), torch.randn(5, 1, 4).double(), torch.randn(5).double()
    seen = x.flip(-1) if reverse else x
    wanted = F.silu(F.conv1d(F.pad(seen, (3, 0)), weight, bias, groups=5))
    wanted = wanted.flip(-1) if reverse else wanted
    torch.testing.assert_close(causal_conv(x, weight, bias, reverse=reverse), wanted)
    torch.testing.assert_close(causal_conv(x.float(), weight.float(), bias.float(), reverse=reverse), wanted.float())


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("B", "D", "L", "taps"),
    [
        (1, 3, 1, 4),  # every token is at both ends
        (2, 5, 3, 4),
        (2, 5, 4, 4),
        (3, BLOCK + 5, 37, 4),  # odd length, a second block of five channels
        (1, 2 * BLOCK, 8, 4),
        (2, 4, 9, 2),
        (2, BLOCK + 1, 5, 1),  # each token by itself
        (2, 4, 3, 6),  # more taps than tokens
    ],
)
def test_causal_conv__gradients_of_numba_are_those_of_plain(B, D, L, taps, reverse):
    torch.manual_seed(0)
    given = [torch.randn(B, D, L).double(), torch.randn(D, 1, taps).double(), torch.randn(D).double()]
    wide = [x.requires_grad_() for x in given]
    narrow = [x.detach().float().requires_grad_() for x in given]
    for ours, right in zip(
        value_and_gradients(causal_conv, narrow, reverse=reverse),
        value_and_gradients(causal_conv, wide, reverse=reverse),
        strict=True,
    ):
        torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-5)


def conv_arguments(B, D, L, taps=4):
    torch.manual_seed(L)
    return [torch.randn(B, D, L), torch.randn(D, 1, taps), torch.randn(D)]


@pytest.mark.parametrize("reverse", [False, True])
def test_causal_conv__does_not_depend_on_the_number_of_threads(reverse):
    assert_any_number_of_threads(causal_conv, conv_arguments(7, 2 * BLOCK + 9, 90), reverse=reverse)


@pytest.mark.parametrize("reverse", [False, True])
def test_causal_conv__bfloat16_is_rounded_once(reverse):
    arguments = [x.bfloat16() for x in conv_arguments(2, 8, 33)]
    wanted = value_and_gradients(causal_conv, [x.double() for x in arguments], reverse=reverse)
    found = value_and_gradients(causal_conv, arguments, reverse=reverse)
    assert causal_conv(*arguments, reverse=reverse).dtype == torch.bfloat16
    assert max(map(relative_error, found, wanted)) < 2**-7


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


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("token", [0, 2, 9, 18, 20])
def test_causal_conv__a_nan_reaches_the_tokens_that_read_it_only(token, reverse):
    x, weight, bias = conv_arguments(2, 6, 21)
    x[1, 3, token] = float("nan")
    wrong = causal_conv(x, weight, bias, reverse=reverse).isnan()
    sees = [token - k if reverse else token + k for k in range(4)]
    assert wrong.nonzero().tolist() == [[1, 3, t] for t in sorted(sees) if 0 <= t < 21]
    x[1, 3, token] = 0.0
    gy = torch.zeros(2, 6, 21)
    gy[1, 3, token] = float("nan")
    leaf = x.requires_grad_()
    (gx,) = torch.autograd.grad(causal_conv(leaf, weight, bias, reverse=reverse), leaf, gy)
    seen = [token + k if reverse else token - k for k in range(4)]
    assert gx.isnan().nonzero().tolist() == [[1, 3, t] for t in sorted(seen) if 0 <= t < 21]


def test_causal_conv__extreme_sums_stay_finite_and_right():
    x, weight, bias = conv_arguments(2, 4, 12)
    x[0] *= 200
    wanted = value_and_gradients(causal_conv, [y.double() for y in (x, weight, bias)])
    found = value_and_gradients(causal_conv, [x, weight, bias])
    for ours, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-5 * right.abs().max().item())
