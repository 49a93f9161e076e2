"""Peer methods against missing cameras and habits of people: parts, masks, gradients, and each in a training."""

from dataclasses import replace

import make_groups
import pytest
import torch
import torch.nn.functional as F
from make_groups import CLASSES, SMALL, VIEWS, toy

from dtsf.errors import ConfigError
from dtsf.model.network import DTSFNet
from dtsf.training.data import evaluation_batches
from dtsf.training.debias import DebiasConfig, make_debiaser
from dtsf.training.debias.views import hide_views
from dtsf.training.losses import LossConfig, dtsf_loss, euc_loss
from dtsf.training.recipe import load_recipe

WIDTH = 16
QUICK = ["train.lr=0.01", "loss.kl=0.0", "train.epochs=30", "augment.view_drop=0.0", "train.batch_size=6"]
PEERS = {"prototypes": {"prototypes"}, "actionmae": {"reconstruction", "reconstructed"}, "cir": {"cir"}}


@pytest.fixture
def groups():
    """Eighteen groups of three people; one view is missing."""
    made = toy()
    made.row_GV[3, 1] = -1
    return replace(made, subject_N=torch.arange(18 * VIEWS) // VIEWS // 6)


@pytest.fixture
def network(groups):
    """A network, the batch of all groups, and the output."""
    torch.manual_seed(0)
    net = DTSFNet(load_recipe("thumbnails", SMALL).model, channels=6, side=3, n_classes=CLASSES, n_views=VIEWS)
    batch = next(evaluation_batches(groups, 18, 4, 0.0))
    return net, batch, net(batch.x_BVTHWC, batch.mask_BV)


def made(method, groups, **weights):
    torch.manual_seed(1)
    return make_debiaser(DebiasConfig(method=method, **weights), groups, width=WIDTH, n_classes=CLASSES, seed=0)


@pytest.mark.parametrize("method", sorted(PEERS))
def test_losses__reach_the_network_and_every_parameter_and_read_no_absent_view(groups, network, method):
    net, batch, output = network
    peer = made(method, groups)

    def terms(output):
        torch.manual_seed(2)
        return peer.losses(batch, output, net)

    found = terms(output)
    assert set(found) == PEERS[method]
    sum(found.values()).backward()
    assert net.encoders[0].layers[0].mixer.x_proj.weight.grad.abs().max() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 and p.grad.isfinite().all() for p in peer.parameters())
    dirty = output.view_feature_BVD.masked_fill(~batch.mask_BV.unsqueeze(-1), 7.0)
    again = terms(replace(output, view_feature_BVD=dirty))
    assert {name: x.item() for name, x in again.items()} == {name: x.item() for name, x in found.items()}


@pytest.mark.parametrize("method", ["prototypes", "cir"])
def test_losses__have_right_gradients(groups, network, method):
    net, batch, output = network
    peer = made(method, groups)
    name = "feature_BD" if method == "cir" else "view_feature_BVD"

    def total(x):
        return sum(peer.losses(batch, replace(output, **{name: x}), net).values())

    x = getattr(output, name).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(total(x), x)
    step = 1e-2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    difference = (total(x + step) - total(x - step)).item() / 2
    assert difference == pytest.approx((gradient * step).sum().item(), rel=0.05, abs=1e-5)


def test_prototypes__are_means_of_other_performances_in_other_views(groups, network):
    _, batch, output = network
    found = made("prototypes", groups).losses(batch, output, None)["prototypes"]
    errors = []
    for b, v in batch.mask_BV.nonzero().tolist():
        distances = []
        for k in range(CLASSES):
            others = [
                output.view_feature_BVD[g, w]
                for g, w in batch.mask_BV.nonzero().tolist()
                if g != b and w != v and batch.label_B[g] == k
            ]
            distances.append((output.view_feature_BVD[b, v] - torch.stack(others).mean(0)).square().mean())
        errors.append(F.cross_entropy(-torch.stack(distances), batch.label_B[b]))
    torch.testing.assert_close(found, torch.stack(errors).mean())


def test_prototypes__without_another_performance_add_nothing(groups, network):
    _, batch, output = network
    one = batch._replace(mask_BV=batch.mask_BV[:1], label_B=batch.label_B[:1], row_BV=batch.row_BV[:1])
    given = replace(output, view_feature_BVD=output.view_feature_BVD[:1])
    found = made("prototypes", groups).losses(one, given, None)["prototypes"]
    assert found.item() == 0
    found.backward()


def test_hide_views__hides_some_views_of_each_group_but_never_all():
    torch.manual_seed(0)
    mask = torch.rand(300, 4) < 0.7
    mask[:, 0] |= ~mask.any(1)
    hidden = hide_views(mask)
    n, left = mask.sum(1), (mask & ~hidden).sum(1)
    assert not (hidden & ~mask).any()
    assert (left >= 1).all()
    assert (hidden.sum(1)[n > 1] >= 1).all()
    assert set(hidden.sum(1)[n == 4].tolist()) == {1, 2, 3}


def test_actionmae__learns_to_reconstruct_and_does_not_move_its_targets(groups, network):
    _, batch, output = network
    peer = made("actionmae", groups)
    views = output.view_feature_BVD.detach().requires_grad_()
    torch.manual_seed(4)
    hidden = hide_views(batch.mask_BV)
    torch.manual_seed(4)
    (gradient,) = torch.autograd.grad(peer.losses(batch, replace(output, view_feature_BVD=views), None)["reconstruction"], views)
    assert (gradient[hidden] == 0).all()
    assert gradient[batch.mask_BV & ~hidden].abs().sum() > 0
    optimizer = torch.optim.Adam(peer.parameters(), lr=0.01)
    errors = []
    for _ in range(150):
        error = peer.losses(batch, replace(output, view_feature_BVD=views.detach()), None)["reconstruction"]
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert sum(errors[-10:]) < 0.5 * sum(errors[:10])


def test_cir__reconstructs_from_other_people_and_places_alone(groups, network):
    _, batch, output = network
    peer = made("cir", groups)
    person = torch.arange(18) // 6
    assert torch.equal(peer.others(batch), person.unsqueeze(1) != person)
    place = torch.arange(18 * VIEWS) // VIEWS % 2
    both = made("cir", replace(groups, background_N=place))
    elsewhere = torch.arange(18).unsqueeze(1) % 2 != torch.arange(18) % 2
    assert torch.equal(both.others(batch), (person.unsqueeze(1) != person) & elsewhere)
    nobody = made("cir", replace(groups, subject_N=None))
    assert nobody.differ == ["place_of_N"], "clusters, if neither has names"
    fused = output.feature_BD.detach().requires_grad_()
    rebuilt = peer.rebuild(fused, peer.others(batch))
    sources = torch.stack([torch.autograd.grad(rebuilt[b].sum(), fused, retain_graph=True)[0].abs().sum(1) for b in range(2)])
    assert (sources[:, 6:] > 0).all()
    assert (sources[0, 1:6] == 0).all()
    alone = peer.rebuild(fused, torch.zeros(18, 18, dtype=torch.bool))
    assert (alone == 0).all()


@pytest.mark.parametrize("method", ["prototypes", "actionmae"])
def test_make_debiaser__refuses_groups_of_one_view(groups, method):
    with pytest.raises(ConfigError, match=f'"{method}" needs groups with two views: --set debias.method=none'):
        made(method, groups.with_views({1}))


@pytest.mark.parametrize("change", [*(f"debias.method={name}" for name in sorted(PEERS)), "loss.euc=1.0"])
def test_fit__learns_with_each_peer(groups, tmp_path, change):
    _, log = make_groups.train(tmp_path / "run", groups, *QUICK, change)
    assert sum(line["accuracy"] for line in log[-3:]) / 3 > 0.8
    names = PEERS.get(change.removeprefix("debias.method="), {"euc"})
    assert names <= set(log[0])
    for name in names - {"euc"}:
        assert sum(line[name] for line in log[-6:]) < sum(line[name] for line in log[:6])


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_euc_loss__is_the_formula_of_dear(share):
    logits = torch.tensor([[3.0, -1.0, 0.0], [0.2, 2.0, 0.1]], dtype=torch.float64, requires_grad=True)
    label = torch.tensor([0, 2])
    evidence = F.softplus(logits)
    strength = (evidence + 1).sum(-1)
    p, u, w = ((evidence + 1) / strength.unsqueeze(1)).amax(1), 3 / strength, 0.01 ** (1 - share)
    wanted = torch.stack([-w * p[0] * (1 - u[0]).log(), -(1 - w) * (1 - p[1]) * u[1].log()])
    torch.testing.assert_close(euc_loss(logits, label, share), wanted)
    assert torch.autograd.gradcheck(lambda x: euc_loss(x, label, share), logits)


def test_euc_loss__is_finite_for_extreme_logits():
    logits = torch.tensor([[-1e4] * 3, [1e6, 0.0, -1e6], [0.0, 1e6, 0.0]], requires_grad=True)
    loss = euc_loss(logits, torch.tensor([0, 0, 0]), 0.5)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad.isfinite().all()


def test_dtsf_loss__has_euc_only_with_a_weight(network):
    _, batch, output = network
    plain = dtsf_loss(output, batch.label_B, LossConfig(), 3)
    weighed = dtsf_loss(output, batch.label_B, LossConfig(euc=2.0), 3)
    assert set(weighed) - set(plain) == {"euc"}
    assert weighed["loss"] > plain["loss"]
