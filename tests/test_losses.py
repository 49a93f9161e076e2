"""Losses against closed forms, PyTorch, and the edges of their range."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dtsf.model.config import ModelConfig
from dtsf.model.evidence import dirichlet, dirichlet_kl_to_uniform, uncertainty
from dtsf.model.network import DTSFNet
from dtsf.training.losses import LossConfig, dtsf_loss, evidence_loss, kl_loss, uncertain_cross_entropy


@given(st.lists(st.floats(1, 200), min_size=2, max_size=7))
def test_kl__equals_torch(alpha):
    alpha = torch.tensor(alpha, dtype=torch.float64)
    both = torch.distributions.Dirichlet(alpha), torch.distributions.Dirichlet(torch.ones_like(alpha))
    wanted = torch.distributions.kl_divergence(*both)
    torch.testing.assert_close(dirichlet_kl_to_uniform(alpha), wanted, rtol=1e-8, atol=1e-8)


def test_kl__accurate_in_float32_for_large_evidence():
    alpha = torch.tensor([[1e6, 1.0, 1.0], [1e6, 1e6, 1e6], [1e3, 2.0, 1.0]])
    wanted = dirichlet_kl_to_uniform(alpha.double())
    torch.testing.assert_close(dirichlet_kl_to_uniform(alpha).double(), wanted, rtol=1e-4, atol=1e-3)


def test_evidence_loss__is_minus_the_log_of_the_expected_likelihood():
    # Integrating p_y over the Dirichlet gives alpha_y / S; here against a mean over many draws.
    torch.manual_seed(0)
    alpha = torch.tensor([[2.0, 1.0, 5.0]], dtype=torch.float64)
    drawn = torch.distributions.Dirichlet(alpha[0]).sample((200_000,))
    for label in range(3):
        loss = evidence_loss(alpha, torch.tensor([label])).item()
        assert loss == pytest.approx(-math.log(alpha[0, label] / 8.0), rel=1e-12)
        assert loss == pytest.approx(-math.log(drawn[:, label].mean()), abs=0.01)


def test_kl_loss__excludes_the_true_class_if_adjusted():
    assert uncertainty(torch.ones(3, 4)).tolist() == [1, 1, 1]
    alpha, label = torch.tensor([[9.0, 1.0, 1.0]]), torch.tensor([0])
    assert kl_loss(alpha, label).item() == pytest.approx(0.0, abs=1e-5)
    assert kl_loss(alpha, label, adjusted=False).item() > 1.0
    assert kl_loss(alpha, torch.tensor([1])).item() > 1.0


def test_uncertain_cross_entropy__has_a_detached_weight():
    torch.manual_seed(0)
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    label = torch.arange(6) % 4
    u = uncertainty(dirichlet(logits)).detach()
    wanted = (1 + u) * torch.nn.functional.cross_entropy(logits, label, reduction="none")
    found = uncertain_cross_entropy(logits, label)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)
    (ours,), (right,) = (torch.autograd.grad(loss.sum(), logits) for loss in (found, wanted))
    torch.testing.assert_close(ours, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("adjusted", [True, False])
def test_losses__finite_for_extreme_evidence(adjusted):
    edges = (-1e4, -90.0, 0.0, 1e6)
    logits = torch.tensor([[low, high, low] for low in edges for high in edges], requires_grad=True)
    for k in range(3):
        alpha, label = dirichlet(logits), torch.full((16,), k)
        kl = kl_loss(alpha, label, adjusted=adjusted)
        terms = torch.stack([evidence_loss(alpha, label), kl, uncertain_cross_entropy(logits, label)])
        assert terms.isfinite().all()
        assert kl.min() >= -1e-3
        assert torch.autograd.grad(terms.sum(), logits)[0].isfinite().all()


@pytest.mark.parametrize("fusion", ["msf", "mean", "concat", "tmc", "sfm"])
def test_dtsf_loss__bfloat16_autocast_is_close_to_float32(fusion):
    torch.manual_seed(0)
    net = DTSFNet(ModelConfig(width=16, depth=1, frames=4, fusion=fusion), channels=8, side=6, n_classes=3).eval()
    x, mask = torch.randn(4, 2, 4, 6, 6, 8), torch.ones(4, 2, dtype=torch.bool)
    label = torch.tensor([0, 1, 2, 0])
    wanted = dtsf_loss(net(x, mask), label, LossConfig(), epoch=20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = dtsf_loss(net(x, mask), label, LossConfig(), epoch=20)
    for name, value in found.items():
        assert value.dtype == torch.float32, name
        assert value.item() == pytest.approx(wanted[name].item(), rel=0.05, abs=0.01), name
    found["loss"].backward()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


def test_dtsf_loss__annealing_ends_after_kl_epochs():
    torch.manual_seed(0)
    net = DTSFNet(ModelConfig(width=16, depth=1, frames=2), channels=4, side=6, n_classes=3).eval()
    output = net(torch.randn(3, 1, 2, 6, 6, 4), torch.ones(3, 1, dtype=torch.bool))
    label, config = torch.tensor([0, 1, 2]), LossConfig(views=0.0, kl_epochs=10)
    at = {epoch: dtsf_loss(output, label, config, epoch) for epoch in (0, 5, 10, 50)}
    rest = at[0]["evidence"] + at[0]["cross"]
    for epoch, share in ((0, 0.0), (5, 0.5), (10, 1.0), (50, 1.0)):
        torch.testing.assert_close(at[epoch]["loss"], rest + share * at[0]["kl"])
