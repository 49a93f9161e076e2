"""Clips from video files: frames, sizes, parts, verdicts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dtsf.cache.records import Status
from dtsf.errors import VideoError
from dtsf.pipeline.video.clip import Span, segment_centres
from dtsf.pipeline.video.container import declared_size
from dtsf.pipeline.video.decode import decode_clip, probe


@given(st.integers(1, 5000), st.integers(1, 64))
def test_segment_centres_stay_inside_and_in_order(n_frames, n_samples):
    index = segment_centres(n_frames, n_samples)
    assert index.shape == (n_samples,)
    assert index[0] >= 0
    assert index[-1] < n_frames
    assert (np.diff(index) >= 0).all()
    if n_frames < n_samples:
        assert index.tolist() == [*range(n_frames), *[n_frames - 1] * (n_samples - n_frames)]
    else:
        # Each sample lies in its own segment [i n / F, (i + 1) n / F), in whole numbers.
        for i, frame in enumerate(index.tolist()):
            assert i * n_frames // n_samples <= frame < -(-(i + 1) * n_frames // n_samples)
        assert len(set(index.tolist())) == n_samples


def test_segment_centres_values():
    assert segment_centres(12, 4).tolist() == [1, 4, 7, 10]
    with pytest.raises(ValueError, match="n_frames"):
        segment_centres(0, 4)


def test_whole_clip_is_ok(make_video, tmp_path):
    path = make_video(tmp_path / "a.avi", 40, 320, 240)
    assert (probe(path).declared_frames, probe(path).rate) == (40, 30)
    clip = decode_clip(path, 8, 192)
    assert (clip.status, clip.declared_frames, clip.decoded_frames) == (Status.OK, 40, 40)
    assert clip.frames.shape == (8, 192, 192, 3)
    assert clip.frame_index.dtype == np.int32


@pytest.mark.parametrize("size", [(33, 47), (47, 33), (240, 320), (1920, 1080), (2, 2), (16, 900)])
def test_odd_and_portrait_sizes(make_video, tmp_path, size):
    clip = decode_clip(make_video(tmp_path / "a.avi", 3, *size), 4, 96)
    assert clip.frames.shape == (4, 96, 96, 3)
    assert clip.status is Status.SHORT


def test_one_frame_clip_is_short_and_repeated(make_video, tmp_path):
    clip = decode_clip(make_video(tmp_path / "a.avi", 1), 4, 96)
    assert (clip.status, clip.frame_index.tolist(), clip.decoded_frames) == (Status.SHORT, [0, 0, 0, 0], 1)
    assert (clip.frames == clip.frames[0]).all()
    assert "1 of 4" in clip.reason


@pytest.mark.parametrize("share", [0.9, 0.6, 0.3])
def test_cut_avi_is_truncated_not_short(make_video, cut_file, tmp_path, share):
    whole = make_video(tmp_path / "whole.avi", 105, 320, 240)
    with pytest.raises(VideoError, match=r"declares \d+ bytes but has \d+: it was cut off") as raised:
        decode_clip(cut_file(whole, tmp_path / "cut.avi", share), 16, 192)
    assert raised.value.status == Status.TRUNCATED
    # Written by what could not go back to note the size: the number of frames still tells.
    data = bytearray((tmp_path / "cut.avi").read_bytes())
    data[4:8] = bytes(4)
    (tmp_path / "cut.avi").write_bytes(data)
    with pytest.raises(VideoError, match=r"declares 3\.50 s but ends at \d\.\d\d s: it was cut off") as raised:
        decode_clip(tmp_path / "cut.avi", 16, 192)
    assert raised.value.status == Status.TRUNCATED


def test_container_that_declares_nothing_is_no_truncation(make_video, tmp_path):
    path = make_video(tmp_path / "a.mkv", 20, codec="libx264")
    assert probe(path).declared_frames == 0
    assert decode_clip(path, 4, 96).status is Status.OK


def test_unreadable_files(tmp_path):
    import wave

    (tmp_path / "text.avi").write_text("not a video " * 50)
    (tmp_path / "empty.avi").touch()
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16000))
    (tmp_path / "folder").mkdir()
    for name in ("text.avi", "empty.avi", "sound.wav", "folder", "missing.avi"):
        with pytest.raises(VideoError, match=name) as raised:
            decode_clip(tmp_path / name, 4, 96)
        assert raised.value.status == Status.UNREADABLE


@pytest.mark.parametrize("rotation", [90, -90])
def test_rotated_video_keeps_its_aspect(make_video, tmp_path, rotation):
    """A 320x240 picture shown turned is 240x320: the red quarter is 160 of 320 high, the whole crop 240."""
    path = make_video(tmp_path / "a.mp4", 4, 320, 240, rotation=rotation)
    frame = decode_clip(path, 2, 96).frames[0].astype(int)
    red = (frame[..., 0] > 150) & (frame[..., 1] < 100)
    # Of 128 rows the middle 96 are kept: the red half of 64 rows loses 16. Squashed, it would have 48 by 64 or so.
    assert abs(red.any(axis=1).sum() - 48) <= 2
    assert abs(red.any(axis=0).sum() - 48) <= 2


def test_start_and_end(make_video, tmp_path):
    path = make_video(tmp_path / "a.avi", 60)
    clip = decode_clip(path, 5, 96, span=Span(start=0.5, end=1.0))
    assert clip.frame_index.tolist() == [16, 19, 22, 25, 28]
    assert decode_clip(path, 5, 96, span=Span(start=1.9)).status is Status.SHORT
    with pytest.raises(VideoError, match=r"starts at 3 s, the video ends at 2\.00 s"):
        decode_clip(path, 5, 96, span=Span(start=3.0))
    with pytest.raises(VideoError, match="before it starts"):
        decode_clip(path, 5, 96, span=Span(start=0.5, end=0.2))


def test_frame_folder_is_sorted_by_number(tmp_path):
    for number in (10, 9, 100):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(tmp_path / f"frame_{number}_tc_5_rgb.jpg", quality=100)
    (tmp_path / "frame_9_tc_5_depth.png").write_bytes(b"")
    (tmp_path / "fileList.txt").write_text("9 5")
    clip = decode_clip(tmp_path, 3, 32)
    assert np.abs(clip.frames[:, 16, 16, 0].astype(int) - [9, 10, 100]).max() <= 3
    with pytest.raises(VideoError, match="need its frame rate"):
        decode_clip(tmp_path, 3, 32, span=Span(start=1.0))
    Image.new("RGB", (60, 30)).save(tmp_path / "frame_11_tc_5_rgb.jpg")
    with pytest.raises(VideoError, match="images of different sizes"):
        decode_clip(tmp_path, 4, 32)
    (tmp_path / "frame_11_tc_5_rgb.jpg").write_bytes(b"broken")
    with pytest.raises(VideoError, match="frame_11"):
        decode_clip(tmp_path, 4, 32)


@pytest.mark.parametrize("ending", ["avi", "mp4", "mkv"])
def test_a_file_cut_anywhere_is_never_taken_for_whole_or_for_short(make_video, cut_file, tmp_path, ending):
    whole = make_video(tmp_path / f"whole.{ending}", 40, codec="mpeg4" if ending == "avi" else "libx264")
    assert decode_clip(whole, 8, 96).status == Status.OK
    assert declared_size(whole) <= whole.stat().st_size
    for percent in range(1, 100, 7):
        cut = cut_file(whole, tmp_path / f"cut.{ending}", percent / 100)
        with pytest.raises(VideoError) as raised:
            decode_clip(cut, 8, 96)
        assert raised.value.status in (Status.TRUNCATED, Status.UNREADABLE)


def test_sizes_that_no_one_declared_are_not_held_against_a_file(tmp_path):
    file = tmp_path / "x"
    for data in (b"", b"RIFF\0\0\0\0AVI ", b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x01" + b"\xff" * 7, b"noise" * 9):
        file.write_bytes(data)
        assert declared_size(file) is None
    file.write_bytes(b"\x1a\x45\xdf\xa3\x81\0\x18\x53\x80\x67\x84" + bytes(9))
    assert declared_size(file) == 15
    file.write_bytes(b"\0\0\0\x10ftypisom\0\0\0\0" + b"\0\0\0\x01mdat" + (100).to_bytes(8, "big") + bytes(50))
    assert declared_size(file) == 116


@given(st.binary(max_size=80))
def test_any_bytes_can_be_asked_for_their_declared_size(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "any"
    for head in (b"", b"RIFF", b"\x1a\x45\xdf\xa3", b"\0\0\0\x18ftyp"):
        file.write_bytes(head + data)
        size = declared_size(file)
        assert size is None or size >= 0


def test_full_check_refuses_frames_that_the_codec_flags(make_video, tmp_path):
    whole = make_video(tmp_path / "whole.avi", 60, 320, 240)
    assert decode_clip(whole, 8, 96, check="full").status == Status.OK
    data = bytearray(whole.read_bytes())
    for position in range(len(data) // 3, len(data) // 2, 97):
        data[position] ^= 0x55
    (tmp_path / "flipped.avi").write_bytes(data)
    with pytest.raises(VideoError) as raised:
        decode_clip(tmp_path / "flipped.avi", 8, 96, check="full")
    assert raised.value.status == Status.CORRUPT


@pytest.mark.parametrize("width", [24, 32, 36, 48, 72, 96, 144, 192, 288])
def test_no_width_is_refused_on_any_processor(make_video, tmp_path, width):
    """decord returns rows that FFmpeg padded as further channels: which widths that concerns depends on the processor."""
    path = make_video(tmp_path / "a.avi", 3, width, 640)
    clip = decode_clip(path, 3, width)
    assert clip.frames.shape == (3, width, width, 3)
    # The red quarter ends in the middle: nothing is shifted, and no padding is seen.
    row = clip.frames[0, 0].astype(int)
    assert (row[: width // 2 - 3, 0] > 150).all()
    assert (row[width // 2 + 3 :, 0] < 150).all()
