"""Frames at equal shares of motion: order, limits, alignment of speeds, and motion computed once."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dtsf.model.config import BranchConfig, ModelConfig
from dtsf.model.network import DTSFNet
from dtsf.training.augment import AugmentConfig, sample_times
from dtsf.training.data import Groups, evaluation_batches, training_batches
from dtsf.training.frame_sampling import cumulative_motion, motion_steps, read_frames, uniform_times
from dtsf.training.prepare import training_source


def read(positions_F, n_frames, motion_sampling):
    """Read the frames of a clip whose one number follows these positions."""
    x = torch.as_tensor(positions_F, dtype=torch.float32).view(1, -1, 1, 1, 1)
    times = uniform_times(n_frames).unsqueeze(0)
    return read_frames(x, torch.zeros(1, dtype=torch.int64), times, motion_sampling).flatten()


@given(n_cached=st.integers(1, 20), n_frames=st.integers(1, 20), motion_sampling=st.floats(0, 1), seed=st.integers(0, 99))
def test_cumulative_motion__rises_from_0_to_1_and_frames_lie_between_cached_ones(n_cached, n_frames, motion_sampling, seed):
    x = torch.randn(3, n_cached, 2, 2, 4, generator=torch.Generator().manual_seed(seed))
    if n_cached > 1:
        clock = cumulative_motion(motion_steps(x), motion_sampling)
        assert (clock[:, 0] == 0).all()
        torch.testing.assert_close(clock[:, -1], torch.ones(3))
        assert (clock.diff(dim=1) >= 0).all()
    frames = read_frames(x, torch.arange(3), uniform_times(n_frames).expand(3, -1), motion_sampling)
    assert frames.shape == (3, n_frames, 2, 2, 4)
    assert frames.isfinite().all()
    assert frames.max() <= x.max() + 1e-5
    assert frames.min() >= x.min() - 1e-5


@given(n_cached=st.integers(1, 40), n_frames=st.integers(1, 20))
def test_read_frames__by_time_each_frame_is_of_its_own_segment(n_cached, n_frames):
    for t, frame in enumerate(read(torch.arange(n_cached), n_frames, 0.0).tolist()):
        # A time on the border of two segments may fall to either: (6.5 / 11) * 22 is a little below 13 in float32.
        assert frame - 1e-4 <= (t + 0.5) * n_cached / n_frames <= frame + 1 + 1e-4


def test_read_frames__late_start_and_pause_disappear_by_motion_and_stay_by_time():
    walk = torch.linspace(0, 1, 12)
    late, early = torch.cat([torch.zeros(10), walk, torch.ones(4)]), torch.cat([walk, torch.ones(14)])
    torch.testing.assert_close(read(late, 8, 1.0), read(early, 8, 1.0), atol=1e-4, rtol=0)
    assert (read(late, 8, 0.0) - read(early, 8, 0.0)).abs().max() > 0.5


def test_cumulative_motion__clip_without_motion_runs_by_time():
    torch.testing.assert_close(cumulative_motion(torch.zeros(1, 4), 1.0), torch.linspace(0, 1, 5).unsqueeze(0))


def test_sample_times__as_in_evaluation_without_augmentation_else_in_order_inside_the_clip():
    plain = sample_times((2, 3), 7, AugmentConfig(jitter=0))
    torch.testing.assert_close(plain, uniform_times(7).expand(2, 3, 7))
    torch.manual_seed(0)
    drawn = sample_times((20, 3), 7, AugmentConfig(jitter=1, crop=0.5))
    assert (drawn.diff(dim=-1) >= 0).all()
    assert drawn.min() >= 0
    assert drawn.max() <= 1


@pytest.fixture
def groups():
    """Four groups of three views, some absent."""
    torch.manual_seed(3)
    rows = torch.tensor([[-1, 0, 1], [2, -1, -1], [3, 4, -1], [5, 6, 7]])
    return Groups(torch.randn(8, 6, 6, 6, 5).half(), rows, torch.arange(4) % 3, tuple("abcd"))


@pytest.mark.parametrize("motion_sampling", [0.0, 0.5, 1.0])
def test_evaluation_batches__each_present_clip_as_if_read_alone(groups, motion_sampling):
    (batch,) = evaluation_batches(groups, 4, 5, motion_sampling)
    assert torch.equal(batch.mask_BV, groups.row_GV >= 0)
    for row, frames in zip(groups.row_GV[batch.mask_BV], batch.x_BVTHWC[batch.mask_BV], strict=True):
        alone = read_frames(groups.embeddings_NFHWC, row.view(1), uniform_times(5).view(1, -1), motion_sampling)
        assert torch.equal(frames, alone[0])
        # Slowly, from the definition.
        clip = groups.embeddings_NFHWC[row].double()
        if motion_sampling:
            clock = cumulative_motion(motion_steps(groups.embeddings_NFHWC[row][None]), motion_sampling)[0].double()
            wanted = [interpolated(clip, clock, (t + 0.5) / 5) for t in range(5)]
            torch.testing.assert_close(frames.double(), torch.stack(wanted), rtol=1e-4, atol=1e-4)


def interpolated(clip, clock, time):
    after = next(k for k in range(1, len(clock)) if clock[k] >= time or k == len(clock) - 1)
    share = (time - clock[after - 1]) / (clock[after] - clock[after - 1])
    return clip[after - 1] * (1 - share) + clip[after] * share


def motion_network(*views, paste="none", **keys):
    torch.manual_seed(5)
    branch = [BranchConfig(input="motion", views=name, paste=paste) for name in views or ("each",)]
    config = ModelConfig(branch=branch, width=16, depth=1, state=4, frames=5, **keys)
    net = DTSFNet(config, channels=5, side=6, n_classes=3)
    net.inputs.channel_scale_C.copy_(torch.rand(5) + 0.5)
    net.inputs.motion_mean_HWE.copy_(torch.rand(6, 6, config.motion_channels))
    return net


def test_groups__parts_share_the_motion_of_their_clips(groups):
    part = groups.with_views([1]).choose(torch.tensor([0, 1]))
    assert part.step_NS is groups.step_NS
    other = replace(groups, embeddings_NFHWC=groups.embeddings_NFHWC.flip(0))
    assert torch.equal(other.step_NS, groups.step_NS.flip(0))
    assert torch.equal(part.step_NS, motion_steps(groups.embeddings_NFHWC))


@pytest.mark.parametrize(("views", "keys"), [
    (("each", "all"), {"motion_sampling": 1.0, "lags": (1, 3)}),
    (("each", "all"), {"motion_sampling": 1.0, "lags": (1, 3), "exponent": 1.5}),
    (("each", "all"), {"motion_sampling": 1.0, "lags": 2, "exponent": 2, "flow": 0.2}),
    (("each",), {"paste": "thumbnails"}),
])
def test_training_source__motion_computed_once_gives_the_same_gradients(groups, views, keys):
    augment = AugmentConfig(jitter=0, view_drop=0.5)
    found = {False: [], True: []}
    for once in found:
        net = motion_network(*views, **keys)
        source, motion_sampling = training_source(net, groups, augment, embeddings=not once)
        E = net.config.motion_channels
        assert source.embeddings_NFHWC.shape == ((8, 5, 6, 6, E) if once else (8, 6, 6, 6, 5))
        assert motion_sampling == (0.0 if once else keys.get("motion_sampling", 0.0))
        torch.manual_seed(1)
        for batch in training_batches(source, 2, 5, motion_sampling, augment, torch.ones(5)):
            output = net(batch.x_BVTHWC, batch.mask_BV)
            output.logits_BK.sum().backward()
            found[once] += [output.logits_BK.detach(), net.encoders[0].layers[0].mixer.in_proj.weight.grad.clone()]
    # PyTorch raises the last few numbers of an array by another routine than the rest: other rows, another last bit.
    digits = {"rtol": 1e-5, "atol": 1e-6} if keys.get("exponent", 1) != 1 else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(found[True], found[False], **digits)


def test_training_source__keeps_embeddings_where_each_epoch_differs(groups):
    net, directed, still = motion_network(), motion_network(flow=0.2), AugmentConfig(jitter=0.0)
    for varied in ("jitter", "crop", "noise", "swap_background", "occlude"):
        assert training_source(net, groups, still.model_copy(update={varied: 0.1}), embeddings=False)[0] is groups
    # Cells that only move keep their values. But a mirror turns right into left.
    moved = AugmentConfig(jitter=0.0, shift=0.4, zoom=0.2, flip=0.5, tempo=0.5, delay=1)
    assert training_source(net, groups, moved, embeddings=False)[0].embeddings_NFHWC.shape[-1] == 1
    assert training_source(directed, groups, moved, embeddings=False)[0] is groups
    upright = moved.model_copy(update={"flip": 0.0})
    assert training_source(directed, groups, upright, embeddings=False)[0].embeddings_NFHWC.shape[-1] == 3
    assert training_source(net, groups, still, embeddings=True)[0] is groups
    other = DTSFNet(ModelConfig(width=16, depth=1, frames=5), channels=5, side=6, n_classes=3)
    assert training_source(other, groups, still, embeddings=False)[0] is groups
