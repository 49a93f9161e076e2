"""Inputs, TSM and branches: what they show, what they hide, and what they never read; the average of branches."""

import pytest
import torch
from pydantic import ValidationError

from dtsf.model.config import BranchConfig, ModelConfig
from dtsf.model.evidence import average_branches, dirichlet, probabilities, uncertainty
from dtsf.model.inputs import LEAST_DEVIATION
from dtsf.model.motion import flow, motion_magnitude, sense_motion, split_static_dynamic
from dtsf.model.network import DTSFNet
from dtsf.model.tsm import choose_cells, choose_partners, paste_thumbnails
from dtsf.training.augment import AugmentConfig
from dtsf.training.data import Groups, training_batches
from dtsf.training.losses import LossConfig, dtsf_loss
from dtsf.training.prepare import motion_mean, principal_directions, training_source

MOTION = BranchConfig(input="motion")
T, C, K = 4, 10, 3
POOLED = {"width": 16, "depth": 1, "state": 4, "frames": T, "principal": 6, "readout": "flatten", "lags": [1], "flow": 0.2}


def network(*branch, channels=8, side=6, **keys):
    torch.manual_seed(0)
    config = ModelConfig(**{"branch": branch or (BranchConfig(),), "width": 16, "depth": 1, "frames": 5} | keys)
    return DTSFNet(config, channels=channels, side=side, n_classes=4).eval()


def branches(*, together=True, shares=(1.0, 1.0, 1.0), **keys):
    """Motion of each view, motion of all views where ``together``, and the dynamic part of each view."""
    motion = BranchConfig(input="motion", weight=shares[0], **keys)
    joint = BranchConfig(input="motion", views="all", weight=shares[1])
    dynamic = BranchConfig(input="dynamic", channels=3, weight=shares[2], **keys)
    return (motion, joint, dynamic) if together else (motion, dynamic)


def pooled(branch=None, n_views=3):
    torch.manual_seed(0)
    config = ModelConfig(branch=branch or branches(together=False), motion_sampling=1.0, **POOLED)
    net = DTSFNet(config, channels=C, side=6, n_classes=K, n_views=n_views).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    net.inputs.basis_CR.copy_(torch.linalg.qr(torch.randn(C, C)).Q[:, :6])
    return net


def embeddings(B=2, V=3):
    return torch.randn(B, V, T, 6, 6, C, generator=torch.Generator().manual_seed(1))


def test_choose_partners_and_cells__another_present_view_or_itself():
    mask = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])
    fixed = choose_partners(mask, training=False)
    assert (fixed[0].tolist(), fixed[1, [0, 2]].tolist(), fixed[2, 1]) == ([1, 2, 0], [2, 0], 1)
    for _ in range(20):
        drawn = choose_partners(mask, training=True)
        assert all(drawn[0, v] != v for v in range(3))
        assert drawn[1, [0, 2]].tolist() == [2, 0]
    cells = choose_cells(torch.ones(50, 3, dtype=torch.bool), training=True)
    assert all(len(set(row) & set(range(9))) == 3 for row in cells.flatten(0, 1).tolist())


@pytest.mark.parametrize("side", [6, 7, 9])
def test_paste_thumbnails__the_partners_last_three_frames_and_nothing_else(side):
    # Every frame of every view is one number, so a pasted cell tells its origin.
    x = (torch.arange(2).view(1, 2, 1, 1, 1, 1) * 100 + torch.arange(4).view(1, 1, 4, 1, 1, 1)).float()
    x = x.expand(1, 2, 4, side, side, 1)
    out = paste_thumbnails(x, torch.ones(1, 2, dtype=torch.bool), training=False)
    h = side // 3
    assert out[0, 0, 3, 0, 0, 0] == 101
    assert out[0, 0, 3, 0, 2 * side // 3, 0] == 102
    assert out[0, 0, 3, 2 * side // 3, 0, 0] == 103
    assert out[0, 0, 0, 0, 0, 0] == 100
    assert (out[0, 0, 3] == 3).sum() == side * side - 3 * h * h


@torch.inference_mode()
@pytest.mark.parametrize("views", ["each", "sequence", "tokens", "all"])
def test_network__absent_views_never_reach_the_output(views):
    whole = views in ("each", "sequence")
    if whole:
        net, x = network(BranchConfig(views=views, paste="thumbnails")), torch.randn(2, 3, 5, 6, 6, 8)
    else:
        net, x = pooled(branches() if views == "all" else branches(together=False, paste="tokens")), embeddings()
    mask = torch.tensor([[True, False, True], [True, True, True] if whole else [False, True, False]])
    clean = net(x, mask)
    if views != "all":
        alone = net(x[:1, [0, 2]], mask[:1, [0, 2]])
        torch.testing.assert_close(clean.logits_BK[:1], alone.logits_BK)
    x[~mask] = float("nan")
    torch.testing.assert_close(net(x, mask).logits_BK, clean.logits_BK)


def test_sequence__views_see_each_other_and_one_view_is_as_each():
    net, each = (network(BranchConfig(views=views), depth=2) for views in ("sequence", "each"))
    each.load_state_dict(net.state_dict())
    x, both = torch.randn(1, 2, 5, 6, 6, 8), torch.ones(1, 2, dtype=torch.bool)
    other = x.clone()
    other[0, 1] = torch.randn(5, 6, 6, 8)
    with torch.inference_mode():
        assert not torch.equal(net(x, both).view_logits_BVK[0, 0], net(other, both).view_logits_BVK[0, 0])
        torch.testing.assert_close(each(x, both).view_logits_BVK[0, 0], each(other, both).view_logits_BVK[0, 0])
        one = torch.tensor([[True, False]])
        torch.testing.assert_close(net(x, one).logits_BK, each(x, one).logits_BK)


@pytest.mark.parametrize("normalise", ["clip", "data"])
@pytest.mark.parametrize("shown", ["dynamic", "frames"])
def test_inputs__pasting_after_reduction_equals_pasting_before(shown, normalise):
    branch = BranchConfig(input=shown, paste="thumbnails")
    inputs = network(branch, normalise=normalise).inputs
    inputs.channel_scale_C.copy_(torch.rand(8) + 0.5)
    x = torch.randn(2, 3, 5, 6, 6, 8)
    mask = torch.tensor([[True, False, True], [True, True, True]])
    scaled = x * inputs.channel_scale_C
    moving = split_static_dynamic(scaled)[1]
    if normalise == "clip":
        deviation = moving.std((2, 3, 4), keepdim=True, correction=0) + LEAST_DEVIATION
        scaled, moving = scaled / deviation, moving / deviation
    for complete in (False, True):
        rows = torch.ones_like(mask) if complete else mask
        wanted = inputs.reduce(paste_thumbnails(moving if shown == "dynamic" else scaled, rows, training=False))
        found = inputs(branch, x, rows, complete=complete)
        torch.testing.assert_close(found[rows], wanted[rows], rtol=1e-4, atol=1e-5)


def test_motion_magnitude__hides_background_contrast_and_direction():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6, 6, 5)
    magnitude = motion_magnitude(x)
    assert magnitude.shape == (2, 3, 6, 6, 6, 1)
    torch.testing.assert_close(magnitude.mean((2, 3, 4)), torch.ones(2, 3, 1))
    background = torch.randn(2, 3, 1, 6, 6, 5)
    turned = torch.linalg.qr(torch.randn(5, 5))[0]
    torch.testing.assert_close(motion_magnitude(3.0 * (x + background) @ turned), magnitude, rtol=1e-4, atol=1e-5)
    assert (motion_magnitude(torch.ones(1, 1, 4, 3, 3, 2)) == 0).all()
    moved = x.clone()
    moved[0, 0, 3, 1, 2] += 10
    assert motion_magnitude(moved)[0, 0, 3, 1, 2] > 2 * magnitude[0, 0, 3, 1, 2]


def test_motion_magnitude__a_lag_compares_with_so_many_frames_before():
    x = torch.zeros(1, 1, 6, 3, 3, 2)
    x[0, 0, 3:, 1, 1] = 1.0  # a cell that changes at frame 3
    magnitude = motion_magnitude(x, lags=(2, 1))
    assert magnitude.shape == (1, 1, 6, 3, 3, 3)
    torch.testing.assert_close(magnitude[..., :1], motion_magnitude(x))
    assert (magnitude[0, 0, :, 1, 1, 1] > 0).tolist() == [False, False, False, True, True, False]
    assert (magnitude[0, 0, :, 1, 1, 2] > 0).tolist() == [False, False, False, True, False, False]
    torch.testing.assert_close(magnitude.mean((2, 3, 4)), torch.ones(1, 1, 3))
    # Frame 1 has no frame -1: it is compared with frame 0.
    x[0, 0, 1] = 1.0
    assert motion_magnitude(x, lags=(2,))[0, 0, 1, 0, 0, 1] > 0
    assert (motion_magnitude(torch.ones(1, 1, 4, 3, 3, 2), lags=(2, 3), exponent=1.5) == 0).all()
    many = torch.randn(3, 2, 4, 3, 3, 5)
    torch.testing.assert_close(motion_magnitude(many, lags=(1,))[2, 1], motion_magnitude(many[2, 1], lags=(1,)))
    x = torch.randn(2, 3, 6, 6, 6, 5, generator=torch.Generator().manual_seed(0))
    plain, squared = (motion_magnitude(x, lags=(1, 3), exponent=exponent) for exponent in (1, 2))
    raised = plain**2
    torch.testing.assert_close(squared, raised / raised.mean((2, 3, 4), keepdim=True))
    torch.testing.assert_close(squared.mean((2, 3, 4)), torch.ones(2, 3, 3))
    assert torch.equal(motion_magnitude(x, lags=(1, 3)), plain)


@pytest.mark.parametrize(("right", "down"), [(1, 0), (-1, 0), (0, 1), (0, -1), (0, 0)])
def test_flow__has_the_direction_of_the_motion(right, down):
    # A bright cell walks from the middle. It waits, makes two steps and waits: the second step continues the first.
    x = torch.zeros(1, 5, 5, 5, 2)
    for t, steps in enumerate((0, 0, 1, 2, 2)):
        x[0, t, 2 + steps * down, 2 + steps * right] = torch.tensor([1.0, -2.0])
    found = flow(x)
    assert found.shape == (1, 5, 5, 5, 2)
    assert found.sum((2, 3)).sign()[0].tolist() == [[0, 0]] * 3 + [[right, down], [0, 0]]
    if right or down:
        torch.testing.assert_close(found.abs().mean(), torch.tensor(1.0))


def test_flow__hides_background_and_contrast_and_turns_with_mirror_and_time():
    torch.manual_seed(0)
    x = torch.randn(3, 2, 6, 4, 5, 7)
    found = flow(x, exponent=1.5)
    turned = torch.linalg.qr(torch.randn(7, 7))[0]
    background = torch.randn(3, 2, 1, 4, 5, 7)
    close = {"rtol": 1e-4, "atol": 1e-3}
    torch.testing.assert_close(flow(3.0 * (x + background) @ turned, exponent=1.5), found, **close)
    torch.testing.assert_close(flow(2 * x, torch.full((7,), 0.5), 1.5), found, **close)
    sides = torch.tensor([-1.0, 1.0])
    torch.testing.assert_close(flow(x.flip(4), exponent=1.5), found.flip(4) * sides, **close)
    torch.testing.assert_close(flow(x.flip(3), exponent=1.5), found.flip(3) * -sides, **close)
    torch.testing.assert_close(flow(x.flip(2), exponent=1.5)[:, :, 2:], -found[:, :, 2:].flip(2), **close)
    flicker = torch.rand(2, 1, 6, 1, 1, 7).expand(-1, -1, -1, 4, 5, -1)
    for still in (torch.ones(2, 4, 3, 3, 2), torch.randn(2, 1, 3, 3, 2), torch.randn(2, 2, 3, 3, 2), flicker):
        assert (flow(still) == 0).all()
    torch.testing.assert_close(flow(x[2, 1], exponent=1.5), found[2, 1])


def test_inputs__flow_follows_the_magnitude_with_its_weight():
    inputs = network(MOTION, lags=(1, 3), exponent=1.5, flow=0.2).inputs
    assert inputs.channels(MOTION) == 5
    inputs.channel_scale_C.copy_(torch.rand(8))
    x, scale = torch.randn(2, 6, 3, 3, 8), inputs.channel_scale_C
    motion = inputs.motion(x)
    torch.testing.assert_close(motion[..., :3], motion_magnitude(x, scale, (1, 3), 1.5))
    torch.testing.assert_close(motion[..., 3:], 0.2 * flow(x, scale, 1.5))
    assert torch.equal(inputs.motion(motion), motion)


def test_sense_motion__enlarges_the_distance_to_the_clips_mean():
    torch.manual_seed(0)
    x = 0.1 * torch.randn(2, 3, 4, 6, 6, 5, dtype=torch.float64)
    x[:, :, 2, 1, 1] += 3.0  # an action
    out = sense_motion(x)
    mean = x.mean((2, 3, 4), keepdim=True)
    grown = (out - mean).norm(dim=-1) / (x - mean).norm(dim=-1)
    assert (grown >= 1).all()
    assert (grown <= 2).all()
    assert (grown[:, :, 2, 1, 1] > grown.mean((2, 3, 4))).all()
    still = torch.full((1, 1, 2, 3, 3, 4), 2.0, requires_grad=True)
    torch.testing.assert_close(sense_motion(still), still)
    (gradient,) = torch.autograd.grad(sense_motion(still).sum(), still)
    assert gradient.isfinite().all()


def test_config__lags_are_a_list_a_number_or_words():
    for given, lags in ((0, ()), (2, (2,)), ("1,3", (1, 3)), ("1, 3", (1, 3)), ([1, 3], (1, 3))):
        config = ModelConfig(lags=given)
        assert (config.lags, config.motion_channels) == (lags, 1 + len(lags))
        assert ModelConfig.model_validate_json(config.model_dump_json()) == config
    for wrong in (-1, [1, 0], "1,x", "", 1.5, True):
        with pytest.raises(ValidationError):
            ModelConfig(lags=wrong)


@pytest.mark.parametrize(
    ("branch", "keys", "words"),
    [
        ({"views": "all"}, {}, "needs a branch with views"),
        ({"views": "sequence"}, {"readout": "cls"}, 'branch.0.views "sequence" needs readout'),
        ({"views": "sequence", "paste": "tokens"}, {}, 'branch.0.paste "tokens" needs views "each"'),
        ({"channels": 3}, {}, 'branch.0.channels needs input "dynamic" and model.principal above 0'),
        ({"input": "motion", "channels": 3}, {"principal": 4}, "branch.0.channels needs"),
        ({"input": "pixels"}, {"principal": 4}, 'branch.0.input "pixels" needs model.principal = 0'),
    ],
)
def test_config__keys_that_do_not_fit_are_refused(branch, keys, words):
    with pytest.raises(ValidationError, match=words):
        ModelConfig(branch=(BranchConfig(**branch),), **keys)


@pytest.mark.parametrize("keys", [{}, {"lags": (1, 3)}, {"lags": 2, "flow": 0.5}])
def test_motion__the_background_changes_nothing(keys):
    net = network(MOTION, channels=4, state=4, **keys)
    x, mask = torch.randn(2, 3, 5, 6, 6, 4), torch.tensor([[True, True, True], [True, False, True]])
    here, there = net(x, mask), net(x + torch.randn(2, 3, 1, 6, 6, 4), mask)
    torch.testing.assert_close(here.logits_BK, there.logits_BK, rtol=1e-4, atol=1e-5)
    moved = net(x + torch.randn(2, 3, 5, 6, 6, 4), mask)
    assert (here.logits_BK - moved.logits_BK).abs().max() > 1e-4


def test_all__reads_all_views_and_scales_up_for_absent_ones():
    net = network(BranchConfig(views="each"), BranchConfig(views="all"), channels=5, frames=4, reduce=4)
    x = torch.randn(2, 3, 4, 6, 6, 5)
    mask = torch.tensor([[True, True, True], [True, False, True]])
    output = net(x, mask)
    assert (output.view_weights_BV[~mask] == 0).all()
    changed = torch.where(mask[..., None, None, None, None], x, torch.randn_like(x))
    torch.testing.assert_close(net(changed, mask).logits_BK, output.logits_BK)
    # Each view has weights of its own: exchanged views give another answer.
    swapped = net(x.flip(1), mask.flip(1)).branch_logits_NBK
    torch.testing.assert_close(swapped[0], output.branch_logits_NBK[0])
    assert (swapped[1] - output.branch_logits_NBK[1]).abs().max() > 1e-4
    first = mask & torch.tensor([True, False, False])
    stacked = torch.cat([3.0 * net.inputs(net.config.branch[0], x, mask, complete=False)[:, 0], torch.zeros(2, 4, 6, 6, 8)], -1)
    wanted = net.encoders[1](stacked.permute(0, 4, 1, 2, 3))
    torch.testing.assert_close(net(x, first).branch_logits_NBK[1], net.encoders[1].head(wanted))


@torch.inference_mode()
def test_network__the_order_of_the_views_changes_nothing():
    net, x, order = pooled(), embeddings(), [2, 0, 1]
    mask = torch.tensor([[True, True, True], [True, False, True]])
    one, other = net(x, mask), net(x[:, order], mask[:, order])
    torch.testing.assert_close(one.logits_BK, other.logits_BK, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(one.view_weights_BV[:, order], other.view_weights_BV, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(one.view_weights_BV.sum(1), torch.ones(2))
    assert other.view_weights_BV[1, 2] == 0
    # Nor do copies of a view. More views than in training are accepted.
    x = embeddings(V=1)
    five = net(x.repeat(1, 5, 1, 1, 1, 1))
    torch.testing.assert_close(five.logits_BK, net(x).logits_BK, atol=1e-4, rtol=1e-4)
    assert five.view_weights_BV.shape == (2, 5)
    assert net(embeddings(V=7)).probabilities_BK.isfinite().all()


@torch.inference_mode()
def test_all__is_skipped_for_another_number_of_views_and_leaves_its_weight():
    net, x = pooled(branches(shares=(0.25, 0.5, 0.25)), n_views=2), embeddings(V=3)
    three = net(x)
    assert three.branch_logits_NBK.shape[0] == 2
    wanted = average_branches(three.branch_logits_NBK, torch.tensor([0.75, 0.25]))
    torch.testing.assert_close(three.logits_BK, wanted, atol=1e-4, rtol=1e-4)
    assert net(x[:, :2]).branch_logits_NBK.shape[0] == 3
    assert net(x[:, :1]).branch_logits_NBK.shape[0] == 2
    assert net(x[:, :2], torch.tensor([[True, False]] * 2)).branch_logits_NBK.shape[0] == 3


@torch.inference_mode()
def test_network__weights_are_those_of_the_settings():
    net, x = pooled(branches(shares=(6, 2, 2))), embeddings()
    output = net(x)
    wanted = average_branches(output.branch_logits_NBK, torch.tensor([0.6, 0.2, 0.2]))
    torch.testing.assert_close(output.logits_BK, wanted, atol=1e-4, rtol=1e-4)
    views = average_branches(output.branch_view_logits_NBVK, torch.tensor([0.75, 0.25]))
    torch.testing.assert_close(output.view_logits_BVK, views, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_tokens__show_another_view_and_cover_nothing():
    net, x = pooled(branches(together=False, paste="tokens")), embeddings(B=1)
    before = net(x)
    x[:, 1] += torch.randn(T, 6, 6, C)
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
    u_opposed, u_agreed = (uncertainty(dirichlet(average_branches(x, half))) for x in (opposed, opposed[:1].expand(2, -1, -1)))
    assert u_opposed > 1.3 * u_agreed


@pytest.mark.parametrize("together", [False, True])
def test_loss__each_branch_learns_from_its_own_loss(together):
    net, mask = pooled(branches(together=together)).train(), torch.tensor([[True, True, False], [True, True, True]])
    output = net(embeddings(), mask)
    assert output.branch_logits_NBK.shape == (len(net.encoders), 2, K)
    assert output.branch_view_logits_NBVK.shape == (2, 2, 3, K)
    dtsf_loss(output, torch.tensor([0, 2]), LossConfig(), 1.0)["loss"].backward()
    for part in net.encoders:
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in (part.head.weight, part.flatten.weight))


@torch.no_grad()
def test_training_source__principal_channels_are_those_of_motion_and_give_the_outputs_of_evaluation():
    net, x = pooled(), torch.randn(10, 8, 6, 6, C, generator=torch.Generator().manual_seed(2)).cumsum(1).half()
    held = Groups(x, torch.arange(10).view(5, 2), torch.arange(5) % K, tuple("01234"))
    inputs = net.inputs
    inputs.basis_CR.copy_(principal_directions(held, inputs.channel_scale_C, 6))
    torch.testing.assert_close(inputs.basis_CR.T @ inputs.basis_CR, torch.eye(6), atol=1e-5, rtol=1e-5)
    source, sampling = training_source(net, held, AugmentConfig(jitter=0.0, swap_background=0.5), embeddings=False)
    assert source.embeddings_NFHWC.shape == (10, T, 6, 6, 6)
    inputs.motion_mean_HWE.copy_(motion_mean(net, source, sampling))
    order, scale = [torch.arange(5)], inputs.channel_scale_C
    ready, raw = (
        next(training_batches(g, 5, T, s, AugmentConfig(jitter=0.0), scale, order)) for g, s in ((source, sampling), (held, 1.0))
    )
    torch.testing.assert_close(net(ready.x_BVTHWC).logits_BK, net(raw.x_BVTHWC).logits_BK, atol=1e-4, rtol=1e-3)
    moving = x.clone()
    moving[..., 1:] = moving[:, :1, ..., 1:]  # all but the first channel are still
    basis = principal_directions(Groups(moving, held.row_GV, held.label_G, held.names), torch.ones(C), 1)
    assert basis[0].abs() == pytest.approx(1.0, abs=1e-4)


def test_network__gradients_are_finite_where_nothing_moves():
    net, x = pooled(branches(), n_views=2).train(), embeddings(V=2)
    x[:, :, :, :2] = 0.0
    x.requires_grad_()
    net(x).logits_BK.sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad[:, :, :, 2:].abs().sum() > 0
