"""Augmentation of training clips: cells moved, frames moved, backgrounds swapped, views occluded."""

import pytest
import torch

from dtsf.model.motion import motion_magnitude
from dtsf.training import augment
from dtsf.training.augment import AugmentConfig, move_frames, move_grid, occlude_views, swap_backgrounds


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def blob(B=40, side=9):
    """One cell of each view's grid is 1, in all frames; a second channel holds the frame's number. (B, 2, 3, side, side, 2)."""
    x = torch.zeros(B, 2, 3, side, side, 2)
    x[..., side // 2, side // 2, 0] = 1.0
    x[..., 1] = torch.arange(3.0).view(3, 1, 1)
    return x


def middles(x):
    """Centre of mass of the first channel, (B, V, T, 2): row, column."""
    cells = torch.arange(float(x.shape[3])) - x.shape[3] // 2
    mass = x[..., 0] / x[..., 0].sum((3, 4), keepdim=True)
    return torch.stack([(mass.sum(4) * cells).sum(3), (mass.sum(3) * cells).sum(3)], -1)


def test_move_grid__mirrors_whole_groups_exactly():
    x = torch.randn(16, 3, 2, 6, 6, 4)
    moved = move_grid(x, AugmentConfig(flip=0.5))
    mirrored, kept = (torch.isclose(moved, y, atol=1e-5).flatten(1).all(1) for y in (x.flip(4), x))
    assert (mirrored ^ kept).all()
    assert 2 < mirrored.sum() < 14


def test_move_grid__shifts_each_view_within_the_limit():
    moved = move_grid(blob(), AugmentConfig(shift=1.5))
    where = middles(moved)
    assert where.abs().max() <= 1.5 + 1e-4
    assert where.abs().amax((0, 1, 2)).min() > 1.2
    torch.testing.assert_close(where[:, :, :1].expand_as(where), where)
    assert (where[:, 0, 0] - where[:, 1, 0]).abs().max() > 1
    torch.testing.assert_close(moved[..., 1], blob()[..., 1])  # a constant stays constant, at the edges too


def test_move_grid__zooms_about_the_centre():
    x = torch.zeros(60, 1, 1, 12, 12, 1)
    x[:, :, :, 3:9, 3:9] = 1.0
    area = move_grid(x, AugmentConfig(zoom=0.5)).sum((3, 4)).flatten() / 36
    assert 1 / 1.5**2 - 0.05 < area.min() < 0.6
    assert 1.7 < area.max() < 1.5**2 + 0.05
    torch.testing.assert_close(middles(move_grid(x, AugmentConfig(zoom=0.5))).mean((0, 1, 2)), torch.full((2,), -0.5))


def counted(B=200, T=16):
    """Every cell holds the number of its frame. (B, 2, T, 3, 3, 1)."""
    return torch.arange(float(T)).view(1, 1, T, 1, 1, 1).expand(B, 2, T, 3, 3, 1)


def test_move_frames__delay_is_common_to_views_and_repeats_the_ends():
    read = move_frames(counted(), AugmentConfig(delay=2))
    assert read.shape == (200, 2, 16, 3, 3, 1)
    torch.testing.assert_close(read, read[:, :1, :, :1, :1].expand_as(read))
    moved = read[:, 0, :, 0, 0, 0] - torch.arange(16.0)
    assert -2 <= moved.min() < -1.8
    assert 1.8 < moved.max() <= 2
    torch.testing.assert_close(moved[:, 2:14], moved[:, 2:3].expand(-1, 12), atol=1e-5, rtol=0)
    assert read.min() == 0
    assert read.max() == 15


def test_move_frames__tempo_changes_the_speed_about_the_middle():
    time = move_frames(counted(), AugmentConfig(tempo=0.5))[:, 0, :, 0, 0, 0]
    speed = time[:, 8] - time[:, 7]
    assert 1 / 1.5 - 1e-5 <= speed.min() < 0.7
    assert 1.45 < speed.max() <= 1.5 + 1e-5
    torch.testing.assert_close((time[:, 8] + time[:, 7]) / 2, torch.full((200,), 7.5))
    assert (time.diff(dim=1) >= 0).all()


def test_move_frames__one_frame_or_no_change_is_unchanged():
    x = torch.randn(3, 2, 1, 3, 3, 4)
    assert torch.equal(move_frames(x, AugmentConfig(tempo=0.5, delay=3)), x)
    assert move_frames(x, AugmentConfig(shift=1)) is x
    assert move_grid(x, AugmentConfig(tempo=0.5, delay=3)) is x


B, V, T, H, R = 6, 3, 8, 6, 4
ALL = torch.ones(B, V, dtype=torch.bool)


def walk():
    """A person walks from left to right through the middle rows, before a background that differs between views."""
    x = torch.randn(B, V, 1, H, H, R, generator=torch.Generator().manual_seed(0)).repeat(1, 1, T, 1, 1, 1)
    for t in range(T):
        x[:, :, t, 2:4, t * (H - 1) // (T - 1)] += 8.0
    return x


def test_swap_backgrounds__keeps_the_moving_foreground():
    x = walk()
    swapped = swap_backgrounds(x, ALL, 1.0)
    weight = augment.foreground_weight(x.flatten(0, 1)).view(B, V, T, H, H)
    backgrounds = x.mean(2).flatten(0, 1)
    # In a corner without motion, each clip shows one clip's background, and together they show every background once.
    assert (weight[..., 0, 0] < 0.01).all()
    corner = swapped[..., 0, 0, :].flatten(0, 1)[:, 0]
    shown = (corner[:, None] - backgrounds[:, 0, 0]).abs().amax(-1).argmin(1)
    assert sorted(shown.tolist()) == list(range(B * V))
    assert (shown != torch.arange(B * V)).any()
    torch.testing.assert_close(corner, backgrounds[shown, 0, 0], atol=1e-3, rtol=1e-2)  # the root of rounding
    before, after = (motion_magnitude(y)[..., 0] for y in (x, swapped))
    assert torch.equal(before.sum(3).argmax(-1), after.sum(3).argmax(-1))
    assert torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1] > 0.95
    assert (weight == 1).flatten(2).any(-1).all()
    torch.testing.assert_close(swapped[weight == 1], x[weight == 1])


def test_swap_backgrounds__only_a_share_of_present_views():
    x, mask = walk(), ALL.clone()
    mask[:, 1] = False
    x[:, 1] = torch.nan
    swapped = swap_backgrounds(x, mask, 0.5)
    assert swapped[:, 1].isnan().all()
    assert not swapped[:, ::2].isnan().any()
    changed = (swapped != x)[:, ::2].flatten(2).any(-1).float().mean()
    assert 0 < changed < 1
    assert torch.equal(swap_backgrounds(walk(), ALL, 0.0), walk())


def test_occlude_views__removes_motion_and_keeps_one_view_free():
    x = walk()
    hidden = occlude_views(x, ALL, 1.0)
    changed = (hidden != x).flatten(2).any(-1)
    assert (changed.sum(1) == V - 1).all()
    before, after = ((y - y.mean(2, keepdim=True)).norm(dim=-1).sum((2, 3, 4))[changed] for y in (x, hidden))
    assert (after < before).all()
    assert (after / before).min() < 0.3
    # A bar covers whole columns; the background stays visible behind it.
    columns = (hidden != x).any(-1).any(2).any(2)
    assert columns.flatten(0, 1).any(0).all()
    torch.testing.assert_close(hidden.mean(2), x.mean(2), atol=1e-4, rtol=1e-4)


def test_occlude_views__never_covers_a_single_view():
    x, mask = walk(), torch.zeros_like(ALL)
    mask[:, 2] = True
    assert torch.equal(occlude_views(x, mask, 1.0), x)
    assert torch.equal(occlude_views(x, ALL, 0.0), x)
