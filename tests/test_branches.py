"""Several branches: their average, for any number of views."""

import pytest
import torch

from dtsf.model.config import BranchConfig, ModelConfig
from dtsf.model.evidence import average_branches, dirichlet, probabilities, uncertainty
from dtsf.model.network import DTSFNet
from dtsf.training.augment import AugmentConfig
from dtsf.training.data import Groups, training_batches
from dtsf.training.losses import LossConfig, dtsf_loss
from dtsf.training.prepare import motion_mean, principal_directions, training_source

T, H, C, K = 4, 6, 10, 3
KEYS = {
    "width": 16, "depth": 1, "state": 4, "frames": T, "principal": 6, "readout": "flatten", "lags": [1], "flow": 0.2,
    "motion_sampling": 1.0,
}  # fmt: skip


def branches(*, together=True, shares=(1.0, 1.0, 1.0), **keys):
    """Motion of each view, motion of all views where ``together``, and the dynamic part of each view."""
    motion = BranchConfig(input="motion", weight=shares[0], **keys)
    joint = BranchConfig(input="motion", views="all", weight=shares[1])
    dynamic = BranchConfig(input="dynamic", channels=3, weight=shares[2], **keys)
    return (motion, joint, dynamic) if together else (motion, dynamic)


def network(branch=None, n_views=3):
    torch.manual_seed(0)
    config = ModelConfig(branch=branch or branches(together=False), **KEYS)
    net = DTSFNet(config, channels=C, side=H, n_classes=K, n_views=n_views).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    net.inputs.basis_CR.copy_(torch.linalg.qr(torch.randn(C, C)).Q[:, :6])
    return net


def embeddings(B=2, V=3, seed=1):
    return torch.randn(B, V, T, H, H, C, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def test_network__the_order_of_the_views_changes_nothing():
    net, x, order = network(), embeddings(), [2, 0, 1]
    mask = torch.tensor([[True, True, True], [True, False, True]])
    one, other = net(x, mask), net(x[:, order], mask[:, order])
    torch.testing.assert_close(one.logits_BK, other.logits_BK, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(one.view_weights_BV[:, order], other.view_weights_BV, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(one.view_weights_BV.sum(1), torch.ones(2))
    assert other.view_weights_BV[1, 2] == 0


@torch.inference_mode()
def test_network__more_views_than_in_training_and_copies_of_a_view():
    net, x = network(), embeddings(V=1)
    five = net(x.repeat(1, 5, 1, 1, 1, 1))
    torch.testing.assert_close(five.logits_BK, net(x).logits_BK, atol=1e-4, rtol=1e-4)
    assert five.view_weights_BV.shape == (2, 5)
    assert net(embeddings(V=7)).probabilities_BK.isfinite().all()


@torch.inference_mode()
def test_all__is_skipped_for_another_number_of_views_and_leaves_its_weight():
    net, x = network(branches(shares=(0.25, 0.5, 0.25)), n_views=2), embeddings(V=3)
    three = net(x)
    assert three.branch_logits_NBK.shape[0] == 2
    wanted = average_branches(three.branch_logits_NBK, torch.tensor([0.75, 0.25]))
    torch.testing.assert_close(three.logits_BK, wanted, atol=1e-4, rtol=1e-4)
    assert net(x[:, :2]).branch_logits_NBK.shape[0] == 3
    assert net(x[:, :1]).branch_logits_NBK.shape[0] == 2
    assert net(x[:, :2], torch.tensor([[True, False]] * 2)).branch_logits_NBK.shape[0] == 3


@torch.inference_mode()
def test_network__weights_are_those_of_the_settings():
    net, x = network(branches(shares=(6, 2, 2))), embeddings()
    output = net(x)
    wanted = average_branches(output.branch_logits_NBK, torch.tensor([0.6, 0.2, 0.2]))
    torch.testing.assert_close(output.logits_BK, wanted, atol=1e-4, rtol=1e-4)
    views = average_branches(output.branch_view_logits_NBVK, torch.tensor([0.75, 0.25]))
    torch.testing.assert_close(output.view_logits_BVK, views, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.view_weights_BV.sum(1), torch.ones(2))


@torch.inference_mode()
@pytest.mark.parametrize("branch", [branches(together=False, paste="tokens"), branches()])
def test_network__values_of_absent_views_are_never_read(branch):
    net, x = network(branch), embeddings()
    mask = torch.tensor([[True, False, True], [False, True, False]])
    wanted = net(x, mask).logits_BK
    x[~mask] = torch.nan
    torch.testing.assert_close(net(x, mask).logits_BK, wanted)


@torch.inference_mode()
def test_tokens__show_another_view_and_cover_nothing():
    net, x = network(branches(together=False, paste="tokens")), embeddings(B=1)
    before = net(x)
    x[:, 1] += torch.randn(T, H, H, C)
    after = net(x)
    # View 1 gets thumbnails of view 2, its next; view 2 of view 3; view 3 of view 1.
    changed = (before.view_logits_BVK - after.view_logits_BVK).abs().amax(-1)[0] > 1e-5
    assert changed.tolist() == [True, True, False]


def test_average_branches__is_the_logarithmic_pool_and_unsure_where_branches_differ():
    logits = torch.randn(2, 50, K, generator=torch.Generator().manual_seed(0)) * 6
    share = torch.tensor([0.7, 0.3])
    alpha, average = dirichlet(logits), dirichlet(average_branches(logits, share))
    wanted = (share.view(2, 1, 1) * probabilities(alpha).log()).sum(0).softmax(-1)
    torch.testing.assert_close(probabilities(average), wanted, atol=1e-5, rtol=1e-4)
    assert (average >= 1).all()
    bound = (share.view(2, 1) * alpha.sum(-1).log()).sum(0).exp()
    assert (average.sum(-1) <= bound * (1 + 1e-4)).all()
    same = average_branches(logits[:1].expand(2, -1, -1), share)
    torch.testing.assert_close(dirichlet(same), alpha[0], atol=1e-4, rtol=1e-3)
    opposed = torch.tensor([[[9.0, 0.0, 0.0]], [[0.0, 9.0, 0.0]]])
    half = torch.tensor([0.5, 0.5])
    u_opposed, u_agreed = (
        uncertainty(dirichlet(average_branches(x, half))) for x in (opposed, opposed[:1].expand(2, -1, -1))
    )
    assert u_opposed > 1.3 * u_agreed


@pytest.mark.parametrize("together", [False, True])
def test_loss__each_branch_learns_from_its_own_loss(together):
    net, mask = network(branches(together=together)).train(), torch.tensor([[True, True, False], [True, True, True]])
    output = net(embeddings(), mask)
    assert output.branch_logits_NBK.shape == (len(net.encoders), 2, K)
    assert output.branch_view_logits_NBVK.shape == (2, 2, 3, K)
    dtsf_loss(output, torch.tensor([0, 2]), LossConfig(), 1.0)["loss"].backward()
    for part in net.encoders:
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in (part.head.weight, part.flatten.weight))


def groups(n=5):
    rng = torch.Generator().manual_seed(2)
    x = torch.randn(2 * n, 8, H, H, C, generator=rng).cumsum(1).half()
    rows = torch.arange(2 * n).view(n, 2)
    return Groups(x, rows, torch.arange(n) % K, tuple(map(str, range(n))))


@torch.no_grad()
def test_training_source__principal_channels_give_the_outputs_of_evaluation():
    net, held = network(), groups()
    inputs = net.inputs
    inputs.basis_CR.copy_(principal_directions(held, inputs.channel_scale_C, 6))
    torch.testing.assert_close(inputs.basis_CR.T @ inputs.basis_CR, torch.eye(6), atol=1e-5, rtol=1e-5)
    source, sampling = training_source(net, held, AugmentConfig(jitter=0.0, swap_background=0.5), embeddings=False)
    assert source.embeddings_NFHWC.shape == (10, T, H, H, 6)
    inputs.motion_mean_HWE.copy_(motion_mean(net, source, sampling))
    order, scale = [torch.arange(5)], inputs.channel_scale_C
    ready, raw = (
        next(training_batches(g, 5, T, s, AugmentConfig(jitter=0.0), scale, order))
        for g, s in ((source, sampling), (held, 1.0))
    )
    torch.testing.assert_close(net(ready.x_BVTHWC).logits_BK, net(raw.x_BVTHWC).logits_BK, atol=1e-4, rtol=1e-3)


def test_principal_directions__are_those_of_motion():
    held = groups()
    moving = held.embeddings_NFHWC.clone()
    moving[..., 1:] = moving[:, :1, ..., 1:]  # all but the first channel are still
    basis = principal_directions(Groups(moving, held.row_GV, held.label_G, held.names), torch.ones(C), 1)
    assert basis[0].abs() == pytest.approx(1.0, abs=1e-4)


def test_network__gradients_are_finite_where_nothing_moves():
    net, x = network(branches(), n_views=2).train(), embeddings(V=2)
    x[:, :, :, :2] = 0.0
    x.requires_grad_()
    net(x).logits_BK.sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad[:, :, :, 2:].abs().sum() > 0
