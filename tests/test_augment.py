"""Training clips are varied in place and time without anything being made up: mirrored, shifted, enlarged, run slower."""

import pytest
import torch
from pydantic import ValidationError

from dtsf.training.augment import AugmentConfig, move_frames, move_grid


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
    torch.manual_seed(0)
    x = torch.randn(16, 3, 2, 6, 6, 4)
    moved = move_grid(x, AugmentConfig(flip=0.5))
    mirrored = torch.isclose(moved, x.flip(4), atol=1e-5).flatten(1).all(1)
    kept = torch.isclose(moved, x, atol=1e-5).flatten(1).all(1)
    assert (mirrored ^ kept).all()
    assert 2 < mirrored.sum() < 14


def test_move_grid__shifts_each_view_within_the_limit():
    torch.manual_seed(0)
    moved = move_grid(blob(), AugmentConfig(shift=1.5))
    where = middles(moved)
    assert where.abs().max() <= 1.5 + 1e-4
    assert where.abs().amax((0, 1, 2)).min() > 1.2
    torch.testing.assert_close(where[:, :, :1].expand_as(where), where)
    assert (where[:, 0, 0] - where[:, 1, 0]).abs().max() > 1
    torch.testing.assert_close(moved[..., 1], blob()[..., 1])  # what is the same everywhere stays so, at the edges too


def test_move_grid__zooms_about_the_centre():
    torch.manual_seed(0)
    x = torch.zeros(60, 1, 1, 12, 12, 1)
    x[:, :, :, 3:9, 3:9] = 1.0
    area = move_grid(x, AugmentConfig(zoom=0.5)).sum((3, 4)).flatten() / 36
    assert 1 / 1.5**2 - 0.05 < area.min() < 0.6
    assert 1.7 < area.max() < 1.5**2 + 0.05
    torch.testing.assert_close(middles(move_grid(x, AugmentConfig(zoom=0.5))).mean((0, 1, 2)), torch.full((2,), -0.5))


@pytest.mark.parametrize("wrong", [{"shift": -1}, {"zoom": -0.1}, {"flip": 2}, {"tempo": -0.1}, {"delay": -1}])
def test_augment_config__refuses_values_out_of_range(wrong):
    with pytest.raises(ValidationError):
        AugmentConfig(**wrong)


def test_move_grid__draws_from_the_global_generator():
    torch.manual_seed(3)
    one = move_grid(blob(), AugmentConfig(shift=1, zoom=0.2, flip=0.5))
    torch.manual_seed(3)
    assert torch.equal(one, move_grid(blob(), AugmentConfig(shift=1, zoom=0.2, flip=0.5)))


def counted(B=200, T=16):
    """Every cell holds the number of its frame. (B, 2, T, 3, 3, 1)."""
    return torch.arange(float(T)).view(1, 1, T, 1, 1, 1).expand(B, 2, T, 3, 3, 1)


def test_move_frames__delay_is_common_to_views_and_repeats_the_ends():
    torch.manual_seed(0)
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
    torch.manual_seed(0)
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
