"""The network against what is written of it: scan, parameter counts, snapshots, fusion, losses."""

import pytest
import torch
from pydantic import ValidationError

from dtsf.model.config import ModelConfig
from dtsf.model.flow import motion_direction
from dtsf.model.inputs import LEAST_DEVIATION, scaled_energy
from dtsf.model.network import DTSFNet
from dtsf.model.tsm import choose_cells, choose_partners, motion_energy, snapshots


def test_partner_is_another_present_view_or_the_view_itself():
    mask = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])
    assert choose_partners(mask, training=False)[0].tolist() == [1, 2, 0]
    assert choose_partners(mask, training=False)[1, [0, 2]].tolist() == [2, 0]
    assert choose_partners(mask, training=False)[2, 1] == 1
    for _ in range(20):
        drawn = choose_partners(mask, training=True)
        assert all(drawn[0, v] != v for v in range(3))
        assert drawn[1, [0, 2]].tolist() == [2, 0]


def test_cells_are_three_different_ones_of_nine():
    cells = choose_cells(torch.ones(50, 3, dtype=torch.bool), training=True)
    assert cells.min() >= 0
    assert cells.max() <= 8
    assert all(len(set(row)) == 3 for row in cells.flatten(0, 1).tolist())


@pytest.mark.parametrize("side", [6, 7, 9])
def test_snapshots_paste_the_partners_last_three_frames_and_nothing_else(side):
    # Every frame of every view is one number, so a pasted cell says where it came from.
    x = (torch.arange(2).view(1, 2, 1, 1, 1, 1) * 100 + torch.arange(4).view(1, 1, 4, 1, 1, 1)).float()
    x = x.expand(1, 2, 4, side, side, 1)
    mask = torch.ones(1, 2, dtype=torch.bool)
    out = snapshots(x, mask, training=False, anchor="frame", pasted="frame")
    h = side // 3
    assert out[0, 0, 3, 0, 0, 0] == 101
    assert out[0, 0, 3, 0, 2 * side // 3, 0] == 102
    assert out[0, 0, 3, 2 * side // 3, 0, 0] == 103
    assert out[0, 0, 0, 0, 0, 0] == 100
    assert (out[0, 0, 3] == 3).sum() == side * side - 3 * h * h


def test_dynamic_part_forgets_the_room():
    torch.manual_seed(0)
    x = torch.randn(1, 2, 5, 6, 6, 3)
    room = torch.randn(1, 2, 1, 6, 6, 3)
    mask = torch.ones(1, 2, dtype=torch.bool)
    torch.testing.assert_close(
        snapshots(x, mask, training=False), snapshots(x + room, mask, training=False), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("views", ["apart", "together"])
def test_absent_views_never_reach_the_output(views):
    torch.manual_seed(0)
    net = DTSFNet(ModelConfig(width=16, depth=1, views=views), channels=8, canvas=6, n_classes=4).eval()
    x = torch.randn(2, 3, 16, 6, 6, 8)
    mask = torch.tensor([[True, False, True], [True, True, True]])
    spoiled = x.clone()
    spoiled[0, 1] = float("nan")
    with torch.inference_mode():
        clean, dirty = net(x, mask), net(spoiled, mask)
    torch.testing.assert_close(clean.logits_BK, dirty.logits_BK)
    alone = net(x[:1, [0, 2]], mask[:1, [0, 2]])
    torch.testing.assert_close(clean.logits_BK[:1], alone.logits_BK)


def test_views_encoded_together_see_each_other_and_one_alone_is_encoded_as_apart():
    torch.manual_seed(0)
    net = DTSFNet(ModelConfig(width=16, depth=2, pasted="none", views="together"), channels=8, canvas=6, n_classes=4)
    apart = DTSFNet(ModelConfig(width=16, depth=2, pasted="none"), channels=8, canvas=6, n_classes=4)
    apart.load_state_dict(net.state_dict())
    net.eval(), apart.eval()
    x, both = torch.randn(1, 2, 16, 6, 6, 8), torch.ones(1, 2, dtype=torch.bool)
    other = x.clone()
    other[0, 1] = torch.randn(16, 6, 6, 8)
    with torch.inference_mode():
        assert not torch.equal(net(x, both).view_logits_BVK[0, 0], net(other, both).view_logits_BVK[0, 0])
        torch.testing.assert_close(apart(x, both).view_logits_BVK[0, 0], apart(other, both).view_logits_BVK[0, 0])
        one = torch.tensor([[True, False]])
        torch.testing.assert_close(net(x, one).logits_BK, apart(x, one).logits_BK)
    with pytest.raises(ValidationError, match="needs readout"):
        ModelConfig(views="together", readout="cls")


@pytest.mark.parametrize("normalise", ["clip", "data"])
@pytest.mark.parametrize(("anchor", "pasted"), [("dynamic", "dynamic"), ("frame", "dynamic"), ("frame", "frame")])
def test_reducing_before_pasting_shows_the_encoder_what_pasting_before_reducing_would(anchor, pasted, normalise):
    torch.manual_seed(0)
    config = ModelConfig(width=16, depth=1, frames=5, anchor=anchor, pasted=pasted, normalise=normalise)
    net = DTSFNet(config, channels=8, canvas=6, n_classes=4).eval()
    net.channel_scale_C.copy_(torch.rand(8) + 0.5)
    x = torch.randn(2, 3, 5, 6, 6, 8)
    mask = torch.tensor([[True, False, True], [True, True, True]])
    scaled = x * net.channel_scale_C
    if normalise == "clip":
        moving = scaled - scaled.mean(2, keepdim=True)
        scaled = scaled / (moving.std((2, 3, 4), keepdim=True, correction=0) + LEAST_DEVIATION)
    for complete in (False, True):
        rows = torch.ones_like(mask) if complete else mask
        wanted = net.reduce(snapshots(scaled, rows, training=False, anchor=anchor, pasted=pasted))
        found = net._canvas(x, rows, complete=complete)
        torch.testing.assert_close(found[rows], wanted[rows], rtol=1e-4, atol=1e-5)


def test_motion_energy_sees_where_and_when_but_neither_room_nor_contrast_nor_direction():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6, 6, 5)
    energy = motion_energy(x)
    assert energy.shape == (2, 3, 6, 6, 6, 1)
    torch.testing.assert_close(energy.mean((2, 3, 4)), torch.ones(2, 3, 1))
    room = torch.randn(2, 3, 1, 6, 6, 5)
    turned = torch.linalg.qr(torch.randn(5, 5))[0]
    torch.testing.assert_close(motion_energy(3.0 * (x + room) @ turned), energy, rtol=1e-4, atol=1e-5)
    assert (motion_energy(torch.ones(1, 1, 4, 3, 3, 2)) == 0).all()
    moved = x.clone()
    moved[0, 0, 3, 1, 2] += 10
    assert motion_energy(moved)[0, 0, 3, 1, 2] > 2 * energy[0, 0, 3, 1, 2]


def test_change_is_measured_from_so_many_frames_before():
    x = torch.zeros(1, 1, 6, 3, 3, 2)
    x[0, 0, 3:, 1, 1] = 1.0  # a place that is another from frame 3 on
    energy = motion_energy(x, change=(2, 1))
    assert energy.shape == (1, 1, 6, 3, 3, 3)
    torch.testing.assert_close(energy[..., :1], motion_energy(x))
    assert (energy[0, 0, :, 1, 1, 1] > 0).tolist() == [False, False, False, True, True, False]
    assert (energy[0, 0, :, 1, 1, 2] > 0).tolist() == [False, False, False, True, False, False]
    torch.testing.assert_close(energy.mean((2, 3, 4)), torch.ones(1, 1, 3))
    # Frame 1 has no frame -1: it is compared with frame 0.
    x[0, 0, 1] = 1.0
    assert motion_energy(x, change=(2,))[0, 0, 1, 0, 0, 1] > 0
    assert (motion_energy(torch.ones(1, 1, 4, 3, 3, 2), change=(2, 3), power=1.5) == 0).all()
    # A few clips at a time, or all at once, or a single clip without leading axes: the same numbers.
    many = torch.randn(3, 2, 4, 3, 3, 5)
    torch.testing.assert_close(motion_energy(many, change=(1,))[2, 1], motion_energy(many[2, 1], change=(1,)))


def test_power_weighs_large_motions_more_and_leaves_the_mean():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6, 6, 5)
    plain = motion_energy(x, change=(1, 3))
    squared = motion_energy(x, change=(1, 3), power=2)
    raised = plain**2
    torch.testing.assert_close(squared, raised / raised.mean((2, 3, 4), keepdim=True))
    torch.testing.assert_close(squared.mean((2, 3, 4)), torch.ones(2, 3, 3))
    assert torch.equal(motion_energy(x, change=(1, 3), power=1), plain)


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
def test_direction_says_which_way_it_goes(step, right, down):
    # It waits, takes two steps, and waits: at the second step, what went on from the first is seen to have gone on.
    flow = motion_direction(walk([(0, 0), step, step, (0, 0)]))
    assert flow.shape == (1, 5, 5, 5, 2)
    assert flow.sum((2, 3)).sign()[0].tolist() == [[0, 0]] * 3 + [[right, down], [0, 0]]
    if right or down:
        torch.testing.assert_close(flow.abs().mean(), torch.tensor(1.0))


def test_direction_knows_neither_room_nor_contrast_and_turns_with_mirror_and_time():
    torch.manual_seed(0)
    x = torch.randn(3, 2, 6, 4, 5, 7)
    flow = motion_direction(x, power=1.5)
    turned = torch.linalg.qr(torch.randn(7, 7))[0]
    room = torch.randn(3, 2, 1, 4, 5, 7)
    close = {"rtol": 1e-4, "atol": 1e-3}
    torch.testing.assert_close(motion_direction(3.0 * (x + room) @ turned, power=1.5), flow, **close)
    torch.testing.assert_close(motion_direction(2 * x, torch.full((7,), 0.5), 1.5), flow, **close)
    sides = torch.tensor([-1.0, 1.0])
    torch.testing.assert_close(motion_direction(x.flip(4), power=1.5), flow.flip(4) * sides, **close)
    torch.testing.assert_close(motion_direction(x.flip(3), power=1.5), flow.flip(3) * -sides, **close)
    # Backwards it goes the other way.
    torch.testing.assert_close(motion_direction(x.flip(2), power=1.5)[:, :, 2:], -flow[:, :, 2:].flip(2), **close)
    flicker = torch.rand(2, 1, 6, 1, 1, 7).expand(-1, -1, -1, 4, 5, -1)
    for still in (torch.ones(2, 4, 3, 3, 2), torch.randn(2, 1, 3, 3, 2), torch.randn(2, 2, 3, 3, 2), flicker):
        assert (motion_direction(still) == 0).all()
    torch.testing.assert_close(motion_direction(x[2, 1], power=1.5), flow[2, 1])


def test_direction_stands_behind_the_energies_with_its_weight():
    energy = {"canvas": "energy", "anchor": "frame", "pasted": "none"}
    config = ModelConfig(change=(1, 3), power=1.5, direction=0.2, **energy)
    assert config.energies == 5
    x, scale = torch.randn(2, 6, 3, 3, 8), torch.rand(8)
    told = scaled_energy(x, scale, config)
    torch.testing.assert_close(told[..., :3], motion_energy(x, scale, (1, 3), 1.5))
    torch.testing.assert_close(told[..., 3:], 0.2 * motion_direction(x, scale, 1.5))
    assert torch.equal(scaled_energy(told, scale, config), told)
    with pytest.raises(ValidationError, match="direction 0.2 asks for more of motion energy"):
        ModelConfig(direction=0.2)


def test_change_may_be_written_as_before_or_in_one_word():
    energy = {"canvas": "energy", "anchor": "frame", "pasted": "none"}
    for given, change in ((0, ()), (2, (2,)), ("1,3", (1, 3)), ("1, 3", (1, 3)), ([1, 3], (1, 3))):
        config = ModelConfig(change=given, **energy)
        assert (config.change, config.energies) == (change, 1 + len(change))
        assert ModelConfig.model_validate_json(config.model_dump_json()) == config
    for wrong in (-1, [1, 0], "1,x", "", 1.5, True):
        with pytest.raises(ValidationError):
            ModelConfig(change=wrong, **energy)
    with pytest.raises(ValidationError, match=r"change \[2\] asks for more of motion energy"):
        ModelConfig(change=2)


@pytest.mark.parametrize("more", [{}, {"change": (1, 3)}, {"change": 2, "direction": 0.5}])
def test_energy_canvas_says_the_same_in_any_room(more):
    config = ModelConfig(width=16, state=4, frames=5, canvas="energy", anchor="frame", pasted="none", **more)
    torch.manual_seed(0)
    net = DTSFNet(config, channels=4, canvas=6, n_classes=3).eval()
    x, mask = torch.randn(2, 3, 5, 6, 6, 4), torch.tensor([[True, True, True], [True, False, True]])
    here, there = net(x, mask), net(x + torch.randn(2, 3, 1, 6, 6, 4), mask)
    torch.testing.assert_close(here.logits_BK, there.logits_BK, rtol=1e-4, atol=1e-5)
    moved = net(x + torch.randn(2, 3, 5, 6, 6, 4), mask)
    assert (here.logits_BK - moved.logits_BK).abs().max() > 1e-4
    with pytest.raises(ValidationError, match="needs anchor"):
        ModelConfig(canvas="energy")


def test_merged_views_read_each_camera_alone_and_all_as_one():
    config = ModelConfig(width=16, state=4, frames=4, reduce=4, views="merged", pasted="none", normalise="data")
    torch.manual_seed(0)
    net = DTSFNet(config, channels=5, canvas=6, n_classes=3, n_views=3).eval()
    x = torch.randn(2, 3, 4, 6, 6, 5)
    mask = torch.tensor([[True, True, True], [True, False, True]])
    output = net(x, mask)
    assert (output.view_weights_BV[~mask] == 0).all()
    changed = torch.where(mask[..., None, None, None, None], x, torch.randn_like(x))
    torch.testing.assert_close(net(changed, mask).logits_BK, output.logits_BK)
    # What a view's own feature says is what it says when it is the only one there, and then the whole says the same.
    alone = net(x, torch.tensor([[False, False, True], [True, False, False]]))
    torch.testing.assert_close(alone.view_logits_BVK[0, 2], output.view_logits_BVK[0, 2])
    torch.testing.assert_close(alone.logits_BK[1], output.view_logits_BVK[1, 0])
    # Fewer videos than cameras are the first of them.
    torch.testing.assert_close(
        net(x[:, :1], mask[:, :1]).logits_BK[0], net(x, mask & torch.tensor([1, 0, 0]).bool()).logits_BK[0]
    )
    # Each camera has weights of its own: exchanged cameras say something else.
    assert (net(x.flip(1), mask.flip(1)).logits_BK - output.logits_BK).abs().max() > 1e-4
