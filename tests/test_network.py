"""Inputs and TSM: what they show, what they hide, and what they never read."""

import pytest
import torch
from pydantic import ValidationError

from dtsf.model.config import BranchConfig, ModelConfig
from dtsf.model.inputs import LEAST_DEVIATION
from dtsf.model.motion import flow, motion_magnitude, sense_motion, split_static_dynamic
from dtsf.model.network import DTSFNet
from dtsf.model.tsm import choose_cells, choose_partners, paste_thumbnails

MOTION = BranchConfig(input="motion")


def network(*branch, channels=8, side=6, **keys):
    torch.manual_seed(0)
    config = ModelConfig(**{"branch": branch or (BranchConfig(),), "width": 16, "depth": 1} | keys)
    return DTSFNet(config, channels=channels, side=side, n_classes=4).eval()


def test_choose_partners__another_present_view_or_itself():
    mask = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])
    assert choose_partners(mask, training=False)[0].tolist() == [1, 2, 0]
    assert choose_partners(mask, training=False)[1, [0, 2]].tolist() == [2, 0]
    assert choose_partners(mask, training=False)[2, 1] == 1
    for _ in range(20):
        drawn = choose_partners(mask, training=True)
        assert all(drawn[0, v] != v for v in range(3))
        assert drawn[1, [0, 2]].tolist() == [2, 0]


def test_choose_cells__three_different_ones_of_nine():
    cells = choose_cells(torch.ones(50, 3, dtype=torch.bool), training=True)
    assert cells.min() >= 0
    assert cells.max() <= 8
    assert all(len(set(row)) == 3 for row in cells.flatten(0, 1).tolist())


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


@pytest.mark.parametrize("views", ["each", "sequence"])
def test_network__absent_views_never_reach_the_output(views):
    net = network(BranchConfig(views=views, paste="thumbnails"))
    x = torch.randn(2, 3, 16, 6, 6, 8)
    mask = torch.tensor([[True, False, True], [True, True, True]])
    spoiled = x.clone()
    spoiled[0, 1] = float("nan")
    with torch.inference_mode():
        clean, dirty = net(x, mask), net(spoiled, mask)
    torch.testing.assert_close(clean.logits_BK, dirty.logits_BK)
    alone = net(x[:1, [0, 2]], mask[:1, [0, 2]])
    torch.testing.assert_close(clean.logits_BK[:1], alone.logits_BK)


def test_sequence__views_see_each_other_and_one_view_is_as_each():
    net, each = (network(BranchConfig(views=views), depth=2) for views in ("sequence", "each"))
    each.load_state_dict(net.state_dict())
    x, both = torch.randn(1, 2, 16, 6, 6, 8), torch.ones(1, 2, dtype=torch.bool)
    other = x.clone()
    other[0, 1] = torch.randn(16, 6, 6, 8)
    with torch.inference_mode():
        assert not torch.equal(net(x, both).view_logits_BVK[0, 0], net(other, both).view_logits_BVK[0, 0])
        torch.testing.assert_close(each(x, both).view_logits_BVK[0, 0], each(other, both).view_logits_BVK[0, 0])
        one = torch.tensor([[True, False]])
        torch.testing.assert_close(net(x, one).logits_BK, each(x, one).logits_BK)


@pytest.mark.parametrize("normalise", ["clip", "data"])
@pytest.mark.parametrize("shown", ["dynamic", "frames"])
def test_inputs__pasting_after_reduction_equals_pasting_before(shown, normalise):
    branch = BranchConfig(input=shown, paste="thumbnails")
    inputs = network(branch, frames=5, normalise=normalise).inputs
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
    # In chunks, all at once, or a single clip without leading axes: the same numbers.
    many = torch.randn(3, 2, 4, 3, 3, 5)
    torch.testing.assert_close(motion_magnitude(many, lags=(1,))[2, 1], motion_magnitude(many[2, 1], lags=(1,)))


def test_motion_magnitude__the_exponent_weighs_large_motions_more_and_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6, 6, 5)
    plain = motion_magnitude(x, lags=(1, 3))
    squared = motion_magnitude(x, lags=(1, 3), exponent=2)
    raised = plain**2
    torch.testing.assert_close(squared, raised / raised.mean((2, 3, 4), keepdim=True))
    torch.testing.assert_close(squared.mean((2, 3, 4)), torch.ones(2, 3, 3))
    assert torch.equal(motion_magnitude(x, lags=(1, 3), exponent=1), plain)


def walk(steps, grid=5):
    """One clip in which a bright cell walks, from the middle: (1, T, H, W, 2)."""
    x, place = torch.zeros(1, len(steps) + 1, grid, grid, 2), [grid // 2, grid // 2]
    for t, step in enumerate([(0, 0), *steps]):
        place = [a + b for a, b in zip(place, step, strict=True)]
        x[0, t, place[0], place[1]] = torch.tensor([1.0, -2.0])
    return x


@pytest.mark.parametrize(
    ("step", "right", "down"), [((0, 1), 1, 0), ((0, -1), -1, 0), ((1, 0), 0, 1), ((-1, 0), 0, -1), ((0, 0), 0, 0)]
)
def test_flow__has_the_direction_of_the_motion(step, right, down):
    # Wait, two steps, wait: the second step continues the first.
    found = flow(walk([(0, 0), step, step, (0, 0)]))
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
    net = network(MOTION, channels=4, state=4, frames=5, **keys)
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
    # A view alone is scaled by V.
    first = mask & torch.tensor([True, False, False])
    stacked = torch.cat([3.0 * net.inputs(net.config.branch[0], x, mask, complete=False)[:, 0], torch.zeros(2, 4, 6, 6, 8)], -1)
    wanted = net.encoders[1](stacked.permute(0, 4, 1, 2, 3))
    torch.testing.assert_close(net(x, first).branch_logits_NBK[1], net.encoders[1].head(wanted))
