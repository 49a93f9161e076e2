"""Square crops: around the motion, or the centre where there is none or too much."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtsf.pipeline.preprocess import make_spec
from dtsf.pipeline.settings import PreprocessSettings
from dtsf.pipeline.video.crop import CROPS, cut_square, motion_square, size_to_decode
from dtsf.pipeline.video.decode import decode_clip


def actor(height, width, tall, x, feet, n_frames=8):
    """Draw a grey body of ``tall`` pixels that sways in front of a textured wall and raises an arm: (F, H, W, 3) uint8."""
    wall = np.random.default_rng(0).integers(80, 120, (height, width, 3), np.uint8)
    frames = np.repeat(wall[None], n_frames, 0)
    for k, frame in enumerate(frames):
        left = x + round(0.02 * tall * np.sin(k))
        frame[feet - tall : feet, left : left + tall // 4] = 230
        hand = feet - round(tall * (0.5 + 0.4 * k / n_frames))
        frame[hand : hand + tall // 10, left + tall // 4 : left + tall // 2] = 20
    return frames


def as_bytes(frames):
    return frames.clip(0, 255).astype(np.uint8)


TEXTURE = np.random.default_rng(3).integers(0, 255, (12, 16, 3), np.uint8).repeat(20, 0).repeat(20, 1)


@given(st.integers(1, 4000), st.integers(1, 4000), st.sampled_from(CROPS))
def test_size_to_decode__keeps_the_aspect_ratio(width, height, crop):
    w, h = size_to_decode(width, height, 192, crop)
    short = min(width, height)
    assert min(w, h) == (192 if crop == "centre" else max(192, min(short, 384)))
    assert abs(max(w, h) - min(w, h) * max(width, height) / short) <= 0.5


@pytest.mark.parametrize("tall", [90, 120, 180])
@pytest.mark.parametrize("x", [30, 150])
def test_cut_square__actor_fills_the_square_at_any_size_and_position(tall, x):
    cut = cut_square(actor(240, 320, tall, x, feet=220), 96, "motion").astype(int)
    assert cut.shape == (8, 96, 96, 3)
    body = (cut[0, ..., 0] > 190).any(1).nonzero()[0]
    # A square is 1.1 times the actor's height: 87 of 96 rows. Motion is located within 2 of 240 pixels; swaying blurs the edge.
    smallest = 240 * 0.5
    assert abs((body[-1] - body[0] + 1) - 96 * tall / max(1.1 * tall, smallest)) <= 6
    assert abs((body[-1] + body[0]) / 2 - 47.5) <= 4


def test_cut_square__is_the_same_in_all_frames_and_repeats_the_edge_beyond_the_picture():
    frames = actor(240, 320, 120, 60, feet=200)
    top, left, side = motion_square(frames)
    expected = frames[:, top : top + side, left : left + side]
    np.testing.assert_array_equal(cut_square(frames, side, "motion"), expected)
    frames = actor(240, 320, 235, 10, feet=238)
    top, _, side = motion_square(frames)
    assert side > 240
    assert top < 0
    cut = cut_square(frames, side, "motion")
    np.testing.assert_array_equal(cut[:, 0], cut[:, -top])
    assert cut.shape == (8, side, side, 3)


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param(actor(120, 160, 60, 40, 100, 1), id="one-frame"),
        pytest.param(np.repeat(actor(120, 160, 60, 40, 100, 1), 4, 0), id="repeated-frame"),
        pytest.param(as_bytes(np.random.default_rng(1).normal(128, 20, (8, 240, 320, 3))), id="noise"),
        pytest.param(np.stack([np.roll(TEXTURE, 9 * k, 1) for k in range(8)]), id="panning-camera"),
        pytest.param(np.stack([np.full((120, 160, 3), 60 * k, np.uint8) for k in range(4)]), id="flicker"),
    ],
)
def test_cut_square__is_the_centre_without_usable_motion(frames):
    assert motion_square(frames) is None
    np.testing.assert_array_equal(cut_square(frames, 96, "motion"), cut_square(frames, 96, "centre"))


def test_motion_square__camera_noise_does_not_enlarge_it():
    clean = actor(240, 320, 120, 60, feet=200)
    top, _, side = motion_square(clean)
    noisy_top, _, noisy_side = motion_square(as_bytes(clean + np.random.default_rng(2).normal(0, 6, clean.shape)))
    assert abs(side - noisy_side) <= 12
    assert abs(top + side / 2 - noisy_top - noisy_side / 2) <= 8


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 90), st.integers(1, 90), st.integers(8, 40), st.integers(0, 10**6))
def test_cut_square__any_clip_gives_the_requested_size(n_frames, height, width, size, seed):
    rng = np.random.default_rng(seed)
    frames = np.repeat(rng.integers(0, 255, (1, height, width, 3), np.uint8), n_frames, 0)
    top, left = rng.integers(0, height), rng.integers(0, width)
    frames[:, top : top + 9, left : left + 9] = rng.integers(0, 255, (n_frames, 1, 1, 3))
    for crop in CROPS:
        assert cut_square(frames, size, crop).shape == (n_frames, size, size, 3)
    square = motion_square(frames)
    if square is not None:
        short = min(height, width)
        assert round(0.5 * short) <= square[2] <= round(1.25 * short)


def test_decode_clip__crops_the_frames(make_video, tmp_path):
    path = make_video(tmp_path / "a.avi", 24, 320, 240)
    motion, centre = (decode_clip(path, 4, 96, crop=crop) for crop in CROPS)
    assert motion.frames.shape == centre.frames.shape == (4, 96, 96, 3)
    assert motion.frame_index.tolist() == centre.frame_index.tolist()


def test_make_spec__crop_is_part_of_the_fingerprint():
    settings = {"encoder": "efficientnet-lite0", "frames": 3, "size": 96, "grid": 6}
    motion, centre = (make_spec(PreprocessSettings(**settings, crop=crop)) for crop in CROPS)
    assert motion.fingerprint != centre.fingerprint
    assert make_spec(PreprocessSettings(**settings)) == motion
    assert make_spec(PreprocessSettings(**{**settings, "encoder": "pixels"})).crop == "centre"
