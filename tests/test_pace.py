"""Which moments of a clip are read: order, limits, and that different speeds line up."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from dtsf.model.training.augment import AugmentConfig, choose_moments
from dtsf.model.training.pace import evenly_spaced, motion_clock, read_frames


def _clip(position_F):
    """A clip whose one number moves along ``position_F``."""
    return torch.as_tensor(position_F, dtype=torch.float32).view(1, -1, 1, 1, 1)


@given(n_cached=st.integers(1, 20), n_frames=st.integers(1, 20), pace=st.floats(0, 1), seed=st.integers(0, 99))
def test_clock_rises_from_0_to_1_and_frames_lie_between_cached_ones(n_cached, n_frames, pace, seed):
    x = torch.randn(3, n_cached, 2, 2, 4, generator=torch.Generator().manual_seed(seed))
    if n_cached > 1:
        clock = motion_clock(x, pace)
        assert (clock[:, 0] == 0).all()
        torch.testing.assert_close(clock[:, -1], torch.ones(3))
        assert (clock.diff(dim=1) >= 0).all()
    frames = read_frames(x, torch.arange(3), evenly_spaced(n_frames).expand(3, -1), pace)
    assert frames.shape == (3, n_frames, 2, 2, 4)
    assert frames.isfinite().all()
    assert frames.max() <= x.max() + 1e-5
    assert frames.min() >= x.min() - 1e-5


@given(n_cached=st.integers(1, 40), n_frames=st.integers(1, 20))
def test_by_time_alone_every_frame_is_a_cached_one_from_its_own_segment(n_cached, n_frames):
    frames = read_frames(
        _clip(torch.arange(n_cached)), torch.zeros(1, dtype=torch.int64), evenly_spaced(n_frames).unsqueeze(0), 0.0
    ).flatten()
    expected = [int((t + 0.5) * n_cached / n_frames) for t in range(n_frames)]
    assert frames.tolist() == expected


def test_late_start_and_pause_disappear_by_motion_and_stay_by_time():
    walk = torch.linspace(0, 1, 12)
    late = torch.cat([torch.zeros(10), walk, torch.ones(4)])
    early = torch.cat([walk, torch.ones(14)])
    moments = evenly_spaced(8).unsqueeze(0)
    by_motion = [read_frames(_clip(x), torch.zeros(1, dtype=torch.int64), moments, 1.0) for x in (late, early)]
    torch.testing.assert_close(*by_motion, atol=1e-4, rtol=0)
    by_time = [read_frames(_clip(x), torch.zeros(1, dtype=torch.int64), moments, 0.0) for x in (late, early)]
    assert (by_time[0] - by_time[1]).abs().max() > 0.5


def test_clip_in_which_nothing_moves_runs_by_time():
    torch.testing.assert_close(motion_clock(torch.ones(1, 5, 2, 2, 3), 1.0), torch.linspace(0, 1, 5).unsqueeze(0))


def test_moments_without_augmentation_are_evaluations_and_with_it_stay_in_order_inside_the_clip():
    plain = choose_moments((2, 3), 7, AugmentConfig(jitter=0))
    torch.testing.assert_close(plain, evenly_spaced(7).expand(2, 3, 7))
    torch.manual_seed(0)
    drawn = choose_moments((20, 3), 7, AugmentConfig(jitter=1, crop=0.5))
    assert (drawn.diff(dim=-1) >= 0).all()
    assert drawn.min() >= 0
    assert drawn.max() <= 1
