"""Training clips are varied in place without anything being made up: mirrored, shifted, enlarged, shrunk."""

import pytest
import torch
from pydantic import ValidationError

from dtsf.model.training.augment import AugmentConfig, move_grid


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


def test_nothing_asked_for_changes_nothing():
    x = blob()
    assert move_grid(x, AugmentConfig()) is x


def test_mirror_is_exact_and_common_to_a_group():
    torch.manual_seed(0)
    x = torch.randn(16, 3, 2, 6, 6, 4)
    moved = move_grid(x, AugmentConfig(flip=0.5))
    mirrored = torch.isclose(moved, x.flip(4), atol=1e-5).flatten(1).all(1)
    kept = torch.isclose(moved, x, atol=1e-5).flatten(1).all(1)
    assert (mirrored ^ kept).all()
    assert 2 < mirrored.sum() < 14


def test_shift_reaches_as_far_as_it_says_each_view_by_itself_and_is_one_for_all_frames():
    torch.manual_seed(0)
    moved = move_grid(blob(), AugmentConfig(shift=1.5))
    where = middles(moved)
    assert where.abs().max() <= 1.5 + 1e-4
    assert where.abs().amax((0, 1, 2)).min() > 1.2
    torch.testing.assert_close(where[:, :, :1].expand_as(where), where)
    assert (where[:, 0, 0] - where[:, 1, 0]).abs().max() > 1
    torch.testing.assert_close(moved[..., 1], blob()[..., 1])  # what is the same everywhere stays so, at the edges too


def test_zoom_enlarges_and_shrinks_about_the_middle():
    torch.manual_seed(0)
    x = torch.zeros(60, 1, 1, 12, 12, 1)
    x[:, :, :, 3:9, 3:9] = 1.0
    area = move_grid(x, AugmentConfig(zoom=0.5)).sum((3, 4)).flatten() / 36
    assert 1 / 1.5**2 - 0.05 < area.min() < 0.6
    assert 1.7 < area.max() < 1.5**2 + 0.05
    torch.testing.assert_close(middles(move_grid(x, AugmentConfig(zoom=0.5))).mean((0, 1, 2)), torch.full((2,), -0.5))


def test_moving_is_drawn_from_the_generator_and_refuses_what_means_nothing():
    torch.manual_seed(3)
    one = move_grid(blob(), AugmentConfig(shift=1, zoom=0.2, flip=0.5))
    torch.manual_seed(3)
    assert torch.equal(one, move_grid(blob(), AugmentConfig(shift=1, zoom=0.2, flip=0.5)))
    for wrong in ({"shift": -1}, {"zoom": -0.1}, {"flip": 2}):
        with pytest.raises(ValidationError):
            AugmentConfig(**wrong)
