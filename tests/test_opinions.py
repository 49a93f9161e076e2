"""``model.canvas`` and ``model.views`` ``both``: several opinions of each group, pooled; of any number of views."""

import pytest
import torch
from pydantic import ValidationError

from dtsf.model.config import ModelConfig
from dtsf.model.evidence import average_branches, dirichlet, probabilities, uncertainty
from dtsf.model.network import DTSFNet
from dtsf.training.augment import AugmentConfig
from dtsf.training.data import Groups, energy_mean, principal_directions, training_batches, training_source
from dtsf.training.losses import LossConfig, dtsf_loss

T, H, C, K = 4, 6, 10, 3
KEYS = {
    "width": 16, "depth": 1, "state": 4, "frames": T, "canvas": "both", "principal": 6, "signed_channels": 3,
    "anchor": "dynamic", "pasted": "none", "readout": "ordered", "change": [1], "direction": 0.2, "motion_sampling": 1.0,
}  # fmt: skip


def network(n_views=3, **changes):
    torch.manual_seed(0)
    net = DTSFNet(ModelConfig(**KEYS | changes), channels=C, canvas=H, n_classes=K, n_views=n_views).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    net.basis_CR.copy_(torch.linalg.qr(torch.randn(C, C)).Q[:, :6])
    return net


def canvases(B=2, V=3, seed=1):
    return torch.randn(B, V, T, H, H, C, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def test_the_order_of_the_views_changes_nothing():
    net, x, order = network(), canvases(), [2, 0, 1]
    mask = torch.tensor([[True, True, True], [True, False, True]])
    one, other = net(x, mask), net(x[:, order], mask[:, order])
    torch.testing.assert_close(one.logits_BK, other.logits_BK, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(one.view_weights_BV[:, order], other.view_weights_BV, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(one.view_weights_BV.sum(1), torch.ones(2))
    assert other.view_weights_BV[1, 2] == 0


@torch.inference_mode()
def test_more_views_than_in_training_are_fused_and_a_copy_of_a_view_tells_nothing_new():
    net, x = network(), canvases(V=1)
    five = net(x.repeat(1, 5, 1, 1, 1, 1))
    torch.testing.assert_close(five.logits_BK, net(x).logits_BK, atol=1e-4, rtol=1e-4)
    assert five.view_weights_BV.shape == (2, 5)
    assert net(canvases(V=7)).probabilities_BK.isfinite().all()


@torch.inference_mode()
def test_the_picture_of_all_cameras_is_silent_where_views_are_not_in_the_places_of_training():
    net, x = network(views="both", n_views=2), canvases(V=3)
    three = net(x)
    assert three.opinions_SBK.shape[0] == 2
    apart = network(n_views=2)
    kept = {name: w for name, w in net.state_dict().items() if not name.startswith(("joint.", "streams."))}
    apart.load_state_dict(kept, strict=False)
    torch.testing.assert_close(three.logits_BK, apart(x).logits_BK, atol=1e-4, rtol=1e-4)
    assert net(x[:, :2]).opinions_SBK.shape[0] == 3
    assert net(x[:, :1]).opinions_SBK.shape[0] == 2
    assert net(x[:, :2], torch.tensor([[True, False]] * 2)).opinions_SBK.shape[0] == 3


@torch.inference_mode()
def test_shares_are_those_of_the_recipe():
    net, x = network(views="both", joint=0.25, signed=0.2), canvases()
    output = net(x)
    wanted = average_branches(output.opinions_SBK, torch.tensor([0.6, 0.2, 0.2]))
    torch.testing.assert_close(output.logits_BK, wanted, atol=1e-4, rtol=1e-4)
    views = average_branches(output.view_opinions_SBVK, torch.tensor([0.75, 0.25]))
    torch.testing.assert_close(output.view_logits_BVK, views, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.view_weights_BV.sum(1), torch.ones(2))


@torch.inference_mode()
@pytest.mark.parametrize("changes", [{"pasted": "tokens"}, {"views": "both"}])
def test_what_absent_views_hold_is_never_read(changes):
    net, x = network(**changes), canvases()
    mask = torch.tensor([[True, False, True], [False, True, False]])
    wanted = net(x, mask).logits_BK
    x[~mask] = torch.nan
    torch.testing.assert_close(net(x, mask).logits_BK, wanted)


@torch.inference_mode()
def test_snapshot_tokens_show_another_view_and_cover_nothing():
    net, x = network(pasted="tokens"), canvases(B=1)
    before = net(x)
    x[:, 1] += torch.randn(T, H, H, C)
    after = net(x)
    # View 1 is shown view 2, its next; view 2 is shown view 3; view 3 is shown view 1.
    changed = (before.view_logits_BVK - after.view_logits_BVK).abs().amax(-1)[0] > 1e-5
    assert changed.tolist() == [True, True, False]
    alone = network()(x).view_logits_BVK
    assert (network()(x[:, :1]).view_logits_BVK - alone[:, :1]).abs().max() < 1e-5


def test_a_pool_is_the_logarithmic_one_and_is_unsure_where_opinions_differ():
    logits = torch.randn(2, 50, K, generator=torch.Generator().manual_seed(0)) * 6
    share = torch.tensor([0.7, 0.3])
    alpha, pooled = dirichlet(logits), dirichlet(average_branches(logits, share))
    wanted = (share.view(2, 1, 1) * probabilities(alpha).log()).sum(0).softmax(-1)
    torch.testing.assert_close(probabilities(pooled), wanted, atol=1e-5, rtol=1e-4)
    assert (pooled >= 1).all()
    usual = (share.view(2, 1) * alpha.sum(-1).log()).sum(0).exp()
    assert (pooled.sum(-1) <= usual * (1 + 1e-4)).all()
    same = average_branches(logits[:1].expand(2, -1, -1), share)
    torch.testing.assert_close(dirichlet(same), alpha[0], atol=1e-4, rtol=1e-3)
    opposed = torch.tensor([[[9.0, 0.0, 0.0]], [[0.0, 9.0, 0.0]]])
    agreed = opposed[:1].expand(2, -1, -1)
    half = torch.tensor([0.5, 0.5])
    assert uncertainty(dirichlet(average_branches(opposed, half))) > 1.3 * uncertainty(dirichlet(average_branches(agreed, half)))


@pytest.mark.parametrize("views", ["apart", "both"])
def test_each_opinion_learns_for_itself(views):
    net, mask = network(views=views).train(), torch.tensor([[True, True, False], [True, True, True]])
    output = net(canvases(), mask)
    assert output.opinions_SBK.shape == (len(net.encoders), 2, K)
    assert output.view_opinions_SBVK.shape == (2, 2, 3, K)
    dtsf_loss(output, torch.tensor([0, 2]), LossConfig(), 1.0)["loss"].backward()
    for part in net.encoders:
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in (part.head.weight, part.in_order.weight))


def groups(n=5):
    rng = torch.Generator().manual_seed(2)
    x = torch.randn(2 * n, 8, H, H, C, generator=rng).cumsum(1).half()
    rows = torch.arange(2 * n).view(n, 2)
    return Groups(x, rows, torch.arange(n) % K, tuple(map(str, range(n))))


@torch.no_grad()
def test_training_reads_principal_channels_and_sees_what_evaluation_sees():
    net, held = network(), groups()
    net.basis_CR.copy_(principal_directions(held, net.channel_scale_C, 6))
    torch.testing.assert_close(net.basis_CR.T @ net.basis_CR, torch.eye(6), atol=1e-5, rtol=1e-5)
    source, motion_sampling = training_source(net, held, AugmentConfig(jitter=0.0, room=0.5), embeddings=False)
    assert source.embeddings_NFHWC.shape == (10, T, H, H, 6)
    net.energy_mean_HWE.copy_(energy_mean(net, source, motion_sampling))
    order = [torch.arange(5)]
    plain = AugmentConfig(jitter=0.0)
    ready, raw = (
        next(training_batches(g, 5, T, p, plain, net.channel_scale_C, order)) for g, p in ((source, motion_sampling), (held, 1.0))
    )
    torch.testing.assert_close(net(ready.x_BVTHWC).logits_BK, net(raw.x_BVTHWC).logits_BK, atol=1e-4, rtol=1e-3)


def test_principal_directions_are_those_that_move():
    held = groups()
    moving = held.embeddings_NFHWC.clone()
    moving[..., 1:] = moving[:, :1, ..., 1:]  # all but the first channel stand still
    basis = principal_directions(Groups(moving, held.row_GV, held.label_G, held.names), torch.ones(C), 1)
    assert basis[0].abs() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [{"anchor": "frame"}, {"views": "together"}, {"views": "merged"}, {"principal": 0}, {"pasted": "dynamic"}],
)
def test_what_does_not_go_together_is_refused(wrong):
    with pytest.raises(ValidationError, match='canvas "both" needs'):
        ModelConfig(**KEYS | wrong)


def test_thumbnails_as_tokens_are_for_views_that_are_encoded_apart():
    with pytest.raises(ValidationError, match='pasted "tokens" needs'):
        ModelConfig(**KEYS | {"views": "both", "pasted": "tokens"})


def test_a_gradient_reaches_what_comes_before_the_network_also_where_nothing_moves():
    net, x = network(views="both", n_views=2).train(), canvases(V=2)
    x[:, :, :, :2] = 0.0
    x.requires_grad_()
    net(x).logits_BK.sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad[:, :, :, 2:].abs().sum() > 0
