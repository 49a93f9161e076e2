"""Square crops: around the motion, or the centre where there is none or too much."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dtsf.errors import VideoError
from dtsf.pipeline.preprocess import make_spec
from dtsf.pipeline.settings import PreprocessSettings
from dtsf.pipeline.video.clip import Span
from dtsf.pipeline.video.crop import CROPS, cut_square, size_to_decode
from dtsf.pipeline.video.decode import decode_clip
from dtsf.pipeline.video.motion import motion_square


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
    cut = cut_square(actor(240, 320, tall, x, feet=220), 96, "motion")[0].astype(int)
    assert cut.shape == (8, 96, 96, 3)
    body = (cut[0, ..., 0] > 190).any(1).nonzero()[0]
    # A square is 1.1 times the actor's height: 87 of 96 rows. Motion is located within 2 of 240 pixels; swaying blurs the edge.
    smallest = 240 * 0.5
    assert abs((body[-1] - body[0] + 1) - 96 * tall / max(1.1 * tall, smallest)) <= 6
    assert abs((body[-1] + body[0]) / 2 - 47.5) <= 4


def test_cut_square__is_the_same_in_all_frames_and_repeats_the_edge_beyond_the_picture():
    frames = actor(240, 320, 120, 60, feet=200)
    top, left, side = motion_square(frames).square
    expected = frames[:, top : top + side, left : left + side]
    np.testing.assert_array_equal(cut_square(frames, side, "motion")[0], expected)
    frames = actor(240, 320, 235, 10, feet=238)
    top, _, side = motion_square(frames).square
    assert side > 240
    assert top < 0
    cut = cut_square(frames, side, "motion")[0]
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
    assert motion_square(frames).square is None
    np.testing.assert_array_equal(cut_square(frames, 96, "motion")[0], cut_square(frames, 96, "centre")[0])


def walker(height, width, tall, feet, xs):
    """Draw a grey body at one place per frame, in front of :func:`actor`'s wall, or None where it is not there."""
    frames = np.repeat(actor(height, width, 1, 0, 1, 1), len(xs), 0)
    for frame, x in zip(frames, xs, strict=True):
        frame[feet - tall : feet, max(0, x) : max(0, x + tall // 3)] = 230
    return frames


def together(one, other):
    return np.where(other == 230, other, one)


def clock(frames):
    for k, frame in enumerate(frames):
        frame[222:232, 420:460] = 20
        frame[222:232, 420:460:4] = 250
        frame[222:232, 440 + 3 * (k % 5) : 448 + 3 * (k % 5)] = 250
    return frames


def lamp(frames):
    brighter = frames.astype(float) + np.linspace(20, 90, frames.shape[2])[:, None]
    return np.where(np.arange(len(frames))[:, None, None, None] < 7, frames, brighter.clip(0, 255)).astype(np.uint8)


def spot(frames):
    frames[9:, 20:80, 400:470] = 250
    return frames


def screen(frames):
    frames[:, 20:90, 380:460] = np.random.default_rng(4).integers(0, 255, (len(frames), 70, 80, 3))
    return frames


def fan(frames):
    frames[::2, 30:50, 400:440] = 240
    return frames


@pytest.mark.parametrize(
    ("clutter", "notes"), [(clock, {"small"}), (lamp, set()), (spot, {"small"}), (screen, {"small"}), (fan, {"small"})]
)
def test_motion_square__stays_on_the_person(clutter, notes):
    clean = actor(240, 480, 120, 60, 200, 16)
    (top, left, side), _ = motion_square(clean)
    found = motion_square(clutter(clean.copy()))
    np.testing.assert_allclose(found.square, (top, left, side), atol=6)
    assert set(found.notes) == notes


def test_motion_square__two_movers_are_both_in_it_where_they_fit_else_the_larger_one():
    near = together(actor(240, 480, 120, 60, 200, 16), walker(240, 480, 100, 190, [200 + k % 4 * 5 for k in range(16)]))
    found = motion_square(near)
    assert found.square.left < 60
    assert found.square.left + found.square.side > 240
    assert "second" not in found.notes
    far = together(actor(240, 480, 150, 60, 200, 16), walker(240, 480, 60, 190, [430 + k % 4 * 5 for k in range(16)]))
    found = motion_square(far)
    assert found.square.left + found.square.side < 430
    assert "second" in found.notes


def test_motion_square__the_one_who_stays_is_in_it_not_the_one_who_passes():
    person = actor(240, 480, 150, 200, 220, 16)
    for k, frame in enumerate(person):  # a textured body: it changes in every frame
        frame[70:220:8, 200 : 240 + 5 * (k % 3)] = 20 * (k % 7)
    passer = walker(240, 480, 70, 235, [36 * k - 40 for k in range(16)])
    found = motion_square(together(person, passer))
    assert "second" in found.notes
    assert found.square.side < 240
    assert found.square.left < 200 < 240 < found.square.left + found.square.side


def test_motion_square__of_one_who_walks_through_is_the_whole_picture():
    found = motion_square(walker(240, 480, 100, 200, [30 * k for k in range(16)]))
    assert found.square.side > 450
    assert "wide" in found.notes


def test_motion_square__says_where_it_lies_and_what_moves():
    assert "border" in motion_square(actor(240, 320, 60, 2, 200, 8)).notes
    assert motion_square(actor(240, 320, 60, 2, 200, 1)) == (None, ("still",))
    assert motion_square(np.stack([np.roll(TEXTURE, 9 * k, 1) for k in range(8)])) == (None, ("everywhere",))


def test_motion_square__ignores_masked_pixels():
    frames = together(actor(240, 480, 100, 60, 200, 16), walker(240, 480, 170, 220, [400 + k % 4 * 5 for k in range(16)]))
    assert motion_square(frames).square.left > 240
    mask = np.zeros((240, 480), bool)
    mask[:, 380:] = True
    alone = motion_square(actor(240, 480, 100, 60, 200, 16)).square
    np.testing.assert_allclose(motion_square(frames, mask).square, alone, atol=4)


@pytest.mark.parametrize("region", [(0.5, 0.25, 0.5, 0.5), (160, 60, 160, 120)])
@pytest.mark.parametrize("rotation", [0, 90])
def test_decode_clip__region_equals_a_video_of_that_part(make_video, tmp_path, region, rotation):
    path = make_video(tmp_path / "a.avi" if not rotation else tmp_path / "a.mp4", 24, 320, 240, rotation=rotation)
    if rotation and max(region) > 1:
        region = (120, 80, 120, 160)
    whole = decode_clip(path, 4, 240).frames  # the middle square
    found = decode_clip(path, 4, 96, span=Span(region=region)).frames
    sides = (240, 320, 240, 320) if rotation else (320, 240, 320, 240)
    x, y, wide, high = (round(v * side) if max(region) <= 1 else v for v, side in zip(region, sides, strict=True))
    dx, dy = (0, 40) if rotation else (40, 0)
    short = min(wide, high)
    top, left = y + (high - short) // 2 - dy, x + (wide - short) // 2 - dx
    part = whole[:, max(0, top) : top + short, max(0, left) : left + short]
    part = np.stack([np.asarray(Image.fromarray(p).resize((96, 96), Image.Resampling.BOX)) for p in part])
    assert np.abs(part.astype(int) - found).mean() < 3


@pytest.mark.parametrize("region", [(0, 0, 400, 100), (300, 0, 40, 20), (0, 0, 0.001, 0.5)])
def test_decode_clip__a_region_outside_of_the_picture_is_an_error(make_video, tmp_path, region):
    path = make_video(tmp_path / "a.avi", 8, 320, 240)
    with pytest.raises(VideoError, match="is not in its picture of 320 x 240 pixels"):
        decode_clip(path, 4, 96, span=Span(region=region))


def test_motion_square__camera_noise_does_not_enlarge_it():
    clean = actor(240, 320, 120, 60, feet=200)
    top, _, side = motion_square(clean).square
    noisy_top, _, noisy_side = motion_square(as_bytes(clean + np.random.default_rng(2).normal(0, 6, clean.shape))).square
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
        assert cut_square(frames, size, crop)[0].shape == (n_frames, size, size, 3)
    square = motion_square(frames).square
    if square is not None:
        short = min(height, width)
        assert round(0.5 * short) <= square.side <= max(round(1.25 * short), height, width)


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
