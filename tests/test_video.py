"""Clips from video files and image folders: sampling, sizes, spans, status of damaged files, and exact frames."""

import json
import re
import shutil
import struct
import subprocess
import sys
import wave
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dtsf.cache.status import Status
from dtsf.errors import VideoError
from dtsf.pipeline.video.clip import Span, segment_centres
from dtsf.pipeline.video.container import declared_size
from dtsf.pipeline.video.decode import decode_clip, decoder_name, probe


def status_of(path, n_frames=4, size=96, match=None, **options):
    """Return the status of a clip that is refused."""
    with pytest.raises(VideoError, match=match) as raised:
        decode_clip(path, n_frames, size, **options)
    return raised.value.status


@given(st.integers(1, 5000), st.integers(1, 64))
def test_segment_centres__are_sorted_and_one_per_segment(n_frames, n_samples):
    index = segment_centres(n_frames, n_samples)
    assert index.shape == (n_samples,)
    if n_frames < n_samples:
        assert index.tolist() == [*range(n_frames), *[n_frames - 1] * (n_samples - n_frames)]
        return
    for i, frame in enumerate(index.tolist()):
        assert i * n_frames // n_samples <= frame < -(-(i + 1) * n_frames // n_samples)
    assert len(set(index.tolist())) == n_samples
    assert segment_centres(12, 4).tolist() == [1, 4, 7, 10]
    with pytest.raises(ValueError, match="n_frames"):
        segment_centres(0, 4)


@pytest.mark.parametrize("size", [(33, 47), (47, 33), (240, 320), (1920, 1080), (2, 2), (16, 900)])
def test_decode_clip__short_clip_of_any_size_repeats_its_last_frame(make_video, tmp_path, size):
    clip = decode_clip(make_video(tmp_path / "a.avi", 3, *size), 5, 96)
    assert clip.frames.shape == (5, 96, 96, 3)
    assert (clip.status, clip.frame_index.tolist(), clip.decoded_frames) == (Status.SHORT, [0, 1, 2, 2, 2], 3)
    assert (clip.frames[3:] == clip.frames[2]).all()
    assert "3 of 5" in clip.facts()["reason"]


def test_decode_clip__whole_file_is_ok_and_a_cut_one_is_truncated(make_video, cut_file, tmp_path):
    whole = make_video(tmp_path / "whole.avi", 105, 320, 240)
    assert (probe(whole).declared_frames, probe(whole).rate) == (105, 30)
    clip = decode_clip(whole, 8, 192)
    assert (clip.status, clip.declared_frames, clip.decoded_frames) == (Status.OK, 105, 105)
    assert (clip.frames.shape, clip.frame_index.dtype) == ((8, 192, 192, 3), np.int32)
    for share in (0.9, 0.6, 0.3):
        cut = cut_file(whole, tmp_path / "cut.avi", share)
        assert status_of(cut, match=r"declares \d+ bytes but has \d+: it was cut off") == Status.TRUNCATED
        # A writer that cannot seek back leaves no size. The number of frames still reveals the cut.
        data = bytearray(cut.read_bytes())
        data[4:8] = bytes(4)
        cut.write_bytes(data)
        assert status_of(cut, match=r"declares 3\.50 s but ends at \d\.\d\d s: it was cut off") == Status.TRUNCATED


@pytest.mark.parametrize("ending", ["avi", "mp4", "mkv"])
def test_decode_clip__file_cut_anywhere_is_refused(make_video, cut_file, tmp_path, ending):
    whole = make_video(tmp_path / f"whole.{ending}", 40, codec="mpeg4" if ending == "avi" else "libx264")
    assert decode_clip(whole, 8, 96).status == Status.OK
    assert (probe(whole).declared_frames == 0) == (ending == "mkv")
    assert declared_size(whole) <= whole.stat().st_size
    for percent in range(1, 100, 7):
        cut = cut_file(whole, tmp_path / f"cut.{ending}", percent / 100)
        assert status_of(cut, 8) in (Status.TRUNCATED, Status.UNREADABLE)


def test_decode_clip__files_without_video_are_unreadable(make_video, tmp_path):
    (tmp_path / "text.avi").write_text("not a video " * 50)
    (tmp_path / "empty.avi").touch()
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16000))
    (tmp_path / "folder").mkdir()
    data = make_video(tmp_path / "a.avi", 60, 320, 240).read_bytes()
    (tmp_path / "headless.avi").write_bytes(bytes(2048) + data[2048:])  # not a raw stream
    for name in ("text.avi", "empty.avi", "sound.wav", "folder", "missing.avi", "headless.avi"):
        assert status_of(tmp_path / name, match=name) == Status.UNREADABLE


def test_decode_clip__full_check_refuses_flagged_frames(make_video, tmp_path):
    path = make_video(tmp_path / "a.avi", 60, 320, 240)
    assert decode_clip(path, 8, 96, check="full").status == Status.OK
    data = bytearray(path.read_bytes())
    for position in range(len(data) // 3, len(data) // 2, 97):
        data[position] ^= 0x55
    (tmp_path / "flipped.avi").write_bytes(data)
    assert status_of(tmp_path / "flipped.avi", 8, check="full") == Status.CORRUPT


def test_decode_clip__names_the_seconds_of_flagged_frames(make_video, tmp_path):
    path = make_video(tmp_path / "a.avi", 60, 320, 240)
    assert decode_clip(path, 8, 96).damaged is None
    data = bytearray(path.read_bytes())
    for position in range(len(data) // 3, len(data) // 2, 97):
        data[position] ^= 0x55
    (tmp_path / "flipped.avi").write_bytes(data)
    clip = decode_clip(tmp_path / "flipped.avi", 8, 96)
    assert 0 < clip.damaged[0] < clip.damaged[1] < clip.duration
    assert decode_clip(tmp_path / "flipped.avi", 8, 96, span=Span(end=clip.damaged[0] - 0.1)).damaged is None


def test_decode_clip__start_and_end(make_video, tmp_path):
    path = make_video(tmp_path / "a.avi", 60)
    clip = decode_clip(path, 5, 96, span=Span(start=0.5, end=1.0))
    assert clip.frame_index.tolist() == [16, 19, 22, 25, 28]
    assert decode_clip(path, 5, 96, span=Span(start=1.9)).status is Status.SHORT
    status_of(path, match=r"starts at 3 s, the picture ends at 2\.00 s", span=Span(start=3.0))
    status_of(path, match="before it starts", span=Span(start=0.5, end=0.2))


def test_decode_clip__common_times_of_two_frame_rates(make_video, tmp_path):
    span = Span(start=0.5, end=1.5, common=True)
    fast = decode_clip(make_video(tmp_path / "a.mp4", 60, codec="libx264", fps=30), 5, 64, span=span)
    slow = decode_clip(make_video(tmp_path / "b.mp4", 14, codec="libx264", fps=10), 5, 64, span=span)
    assert fast.frame_index.tolist() == [18, 24, 30, 36, 42]
    assert slow.frame_index.tolist() == [6, 8, 10, 12, 13]


def test_declared_size__of_headers_with_and_without_a_size(tmp_path):
    file = tmp_path / "x"
    for data in (b"", b"RIFF\0\0\0\0AVI ", b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x01" + b"\xff" * 7, b"noise" * 9):
        file.write_bytes(data)
        assert declared_size(file) is None
    file.write_bytes(b"\x1a\x45\xdf\xa3\x81\0\x18\x53\x80\x67\x84" + bytes(9))
    assert declared_size(file) == 15
    file.write_bytes(b"\0\0\0\x10ftypisom\0\0\0\0" + b"\0\0\0\x01mdat" + (100).to_bytes(8, "big") + bytes(50))
    assert declared_size(file) == 116


@given(st.binary(max_size=80))
def test_declared_size__accepts_any_bytes(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "any"
    for head in (b"", b"RIFF", b"\x1a\x45\xdf\xa3", b"\0\0\0\x18ftyp"):
        file.write_bytes(head + data)
        size = declared_size(file)
        assert size is None or size >= 0


def test_decode_clip__huge_frames_are_unreadable_and_take_no_memory(make_video, tmp_path):
    path = make_video(tmp_path / "a.avi", 4, codec="rawvideo")  # a raw codec cannot contradict the header
    data = path.read_bytes()
    at = data.index(b"strf") + 12
    for side in (65535, 20000):
        path.write_bytes(data[:at] + struct.pack("<ii", side, side) + data[at + 8 :])
        assert status_of(path) == Status.UNREADABLE
    for number, size in enumerate([(16000, 16000), (9000, 9000), (60000, 8)], 1):
        Image.new("1", size).save(tmp_path / f"0000{number}.png")
        span = Span(first=number, last=number)
        assert status_of(tmp_path, 16, 192, match="too large|bomb", span=span) == Status.UNREADABLE


def test_decode_clip__colon_in_a_name_works_and_playlists_are_refused(make_video, tmp_path):
    assert decode_clip(make_video(tmp_path / "a:b.avi", 6), 4, 64).status == "ok"
    playlist = tmp_path / "list.avi"
    playlist.write_text(f"ffconcat version 1.0\nfile {tmp_path / 'a:b.avi'}\n")
    assert status_of(playlist) == Status.UNREADABLE


def test_decode_clip__messages_end_with_a_command_and_name_no_source_file(make_video, tmp_path):
    path = make_video(tmp_path / "a.mp4", 30, codec="libx264")
    data = bytearray(path.read_bytes())
    begin = data.index(b"mdat") + 4
    data[begin + 8 : begin + (len(data) - begin) // 2] = bytes((len(data) - begin) // 2 - 8)
    path.write_bytes(data)
    with pytest.raises(VideoError, match="ffmpeg -i") as raised:
        decode_clip(path, 30, 96)
    assert ".c" not in str(raised.value).replace("-c:v", "")


@pytest.mark.parametrize("pattern", ["img_{:05}.jpg", "frame_{}_tc_{tc}_rgb.jpg", "{}.png", "S01_cam2-{}.PNG"])
def test_image_folder__is_in_natural_order_and_cut_by_numbers_or_seconds(tmp_path, pattern):
    for k, number in enumerate((9, 10, 100), 1):
        name = pattern.format(number, tc=60 + 10 * k)
        Image.new("RGB", (96, 72), (70 * k, 0, 0)).save(tmp_path / name, quality=100)
    (tmp_path / "frame_9_tc_5_depth.png").write_bytes(b"")
    (tmp_path / "fileList.txt").write_text("9 5")

    def decoded(n_frames, **span):
        clip = decode_clip(tmp_path, n_frames, 96, span=Span(**span))
        return clip, [round(shade / 70) for shade in clip.frames[..., 0].mean((1, 2))]

    clip, order = decoded(3)
    assert order == [1, 2, 3]
    assert np.isnan(clip.frame_time).all()
    assert decoded(2, first=10)[1] == [2, 3]
    assert decoded(2, last=10)[1] == [1, 2]
    timed, order = decoded(1, start=1.0, end=1.5, fps=2.0)
    assert (order, timed.frame_time.tolist(), timed.duration) == ([3], [1.0], 1.5)
    status_of(tmp_path, match="need its frame rate", span=Span(start=1.0))


def test_image_folder__refuses_mixed_names_mixed_sizes_and_broken_images(tmp_path):
    for name in ("a_1.png", "a_2.png", "b_1.png", "b_2.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    status_of(tmp_path, match=r"2 images each of a_#\.png and b_#\.png")
    Image.new("RGB", (60, 30)).save(tmp_path / "a_3.png")
    status_of(tmp_path, match="images of different sizes")
    (tmp_path / "a_3.png").write_bytes(b"broken")
    status_of(tmp_path, match=r"a_3\.png cannot be read")


BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "frames.py"
KINDS = [
    "h264_g30_b3.avi", "h264_g30_b3.ts", "h264_g12_b0.mpg", "h264_g30_b3.h264", "h264_open.mkv", "h264_refresh.ts",
    "h264_30000_1001fps.mkv", "hevc_open.mp4", "hevc_open.mkv", "mpeg4_g12_b2.avi", "mpeg4_g12_b2.asf",
    "mpeg1video_g12_b2.m2v", "mpeg2video_g12_b0.mpg", "wmv2.wmv", "vp8_altref.webm", "vp9_altref.webm", "mjpeg.avi",
    "theora.ogv", "flv1.flv", "fragmented.mp4", "late.ts", "wraps.mpg", "sound.mkv", "cut_h264_2.1_1.2.mp4",
    "cut_h264_1.5_1.5.avi", "cut_hevc.mkv", "cut_open.mp4", "cut_mpeg2.ts", "cut_mpeg4.avi", "midgop_h264.ts",
    "midgop_hevc.ts", "uneven.mp4", "uneven.mkv", "drops_mpeg4.avi", "two_streams.mp4", "two_streams.mkv",
    "cover.mp4", "turned.mp4",
]  # fmt: skip
PARTS = ["h264_g30_b3.avi", "h264_g30_b3.ts", "hevc_open.mkv", "mpeg4_g12_b2.avi", "mpeg2video_g12_b2.mpg", "vp9_altref.webm"]
UNEVEN = ["uneven.mp4", "uneven.mkv", "uneven.ts", "drops_mjpeg.avi"]
CUT = "cut_h264_1.5_1.5.mp4"


@pytest.fixture(scope="module")
def drawn(needed, tmp_path_factory):
    """Returns path, shown and expected frames of a file, which the benchmark draws and ffmpeg reads."""
    needed(shutil.which("ffmpeg"), "no ffmpeg")
    folder = tmp_path_factory.mktemp("drawn")
    names = sorted({*KINDS, *PARTS, *UNEVEN, CUT, "dv.avi"})
    command = [sys.executable, BENCHMARK, "--draw-only", "--keep", folder, "--only", ",".join(names)]
    files = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)

    def file(name):
        if name not in files:
            pytest.skip(f"this ffmpeg does not write {name}")
        return SimpleNamespace(path=folder / name, **files[name])

    return file


def number_of(frame):
    """Return the number that nine black or white squares of a frame of 96 px show, -1 if they are grey."""
    values = frame.reshape(3, 32, 3, 32, 3)[:, 10:22, :, 10:22].mean((1, 3, 4)).ravel()
    return int(((values > 125) << np.arange(9)).sum()) if np.abs(values - 125).min() > 40 else -1


def numbers_of(clip):
    return [number_of(frame) for frame in clip.frames]


@pytest.mark.parametrize("name", KINDS)
def test_decode_clip__frames_are_those_that_a_player_shows(drawn, name):
    file = drawn(name)
    clip = decode_clip(file.path, 16, 96, check="full")
    assert numbers_of(clip) == file.expected
    assert (np.diff(clip.frame_time) > 0).all()
    assert len(clip.facts()["frames_hash"]) == 16


@pytest.mark.parametrize("name", PARTS)
def test_decode_clip__a_span_is_the_same_from_the_start_and_from_a_key_frame(drawn, name):
    path = drawn(name).path
    assert numbers_of(decode_clip(path, 120, 96)) == list(range(120))
    for start in (0.05, 1.4, 2.72, 3.8):
        clip = decode_clip(path, 4, 96, span=Span(start=start, end=start + 0.2))
        assert numbers_of(clip) == clip.frame_index.tolist()
        assert clip.frame_time[0] >= start - 0.001
        assert clip.frame_time[-1] < start + 0.2


@pytest.mark.parametrize("name", UNEVEN)
def test_decode_clip__start_and_end_are_presentation_seconds(drawn, name):
    for start, first, last in ((0, 0, 59), (2, 60, 69)):
        numbers = numbers_of(decode_clip(drawn(name).path, 10, 96, span=Span(start=start, end=start + 2)))
        assert first <= min(numbers) <= max(numbers) <= last
        assert len(set(numbers)) == 10


def test_decode_clip__counts_frames_that_were_never_written_and_skips_those_that_an_edit_list_hides(drawn):
    clip = decode_clip(drawn("drops_mjpeg.avi").path, 16, 96)
    # 2 s at 30 per second, then 12 s at 5 per second: five empty chunks behind each of the last 60 frames but the last.
    assert (clip.status, clip.decoded_frames, clip.missing_frames) == ("ok", 120, 59 * 5)
    assert decode_clip(drawn("uneven.mp4").path, 16, 96).missing_frames == 0
    file = drawn(CUT)
    clip = decode_clip(file.path, len(file.shown), 96)
    assert (clip.decoded_frames, clip.missing_frames) == (len(file.shown), 0)
    assert number_of(clip.frames[0]) == file.shown[0] == 45


def test_decode_clip__applies_the_pixel_aspect_ratio(tmp_path):
    import av

    path = tmp_path / "wide.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 180, 144, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(16, 9)
        picture = np.full((144, 180, 3), 20, np.uint8)
        picture[32:112, 45:135] = 230
        for _ in range(8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    light = decode_clip(path, 2, 144).frames[0, :, :, 0] > 125
    # 90 stored pixels become 160, more than the square. 80 rows stay 80.
    assert light.any(1).sum() == 80
    assert light.any(0).sum() == 144


@pytest.mark.parametrize(("rotation", "corner"), [(0, (0, 0)), (90, (1, 0)), (180, (1, 1)), (-90, (0, 1))])
def test_decode_clip__applies_the_rotation(make_video, tmp_path, rotation, corner):
    frame = decode_clip(make_video(tmp_path / "a.mp4", 3, 320, 240, rotation=rotation), 2, 96).frames[0].astype(int)
    red = (frame[..., 0] > 150) & (frame[..., 1] < 100)
    quarters = red.reshape(2, 48, 2, 48).mean((1, 3))
    assert tuple(np.unravel_index(quarters.argmax(), (2, 2))) == corner
    # Without its aspect, red would be 36 x 64.
    assert all(abs(red.any(axis=axis).sum() - 48) <= 2 for axis in (0, 1))


@pytest.mark.parametrize("name", ["h264_g30_b3.avi", "h264_g30_b3.ts", CUT, "dv.avi"])
def test_decord__gives_the_right_pictures_or_none(drawn, name):
    pytest.importorskip("decord")
    file = drawn(name)
    if name == "dv.avi":
        assert numbers_of(decode_clip(file.path, 16, 96, decoder="decord")) == file.expected
        return
    with pytest.raises(VideoError, match="--decoder pyav") as raised:
        decode_clip(file.path, 16, 96, decoder="decord")
    assert raised.value.status in ("misplaced", "unreadable")


@pytest.mark.parametrize(("decoder", "name"), [("pyav", "pyav .* libavcodec "), ("decord", "decord2 ")])
@pytest.mark.parametrize("width", [24, 32, 36, 48, 72, 96, 144, 192, 288])
def test_decode_clip__every_width_is_right_on_every_processor(make_video, tmp_path, width, decoder, name):
    """decord confuses the padding of rows with channels: for which widths, depends on the processor."""
    pytest.importorskip("decord" if decoder == "decord" else "av")
    assert re.match(name, decoder_name(decoder))
    clip = decode_clip(make_video(tmp_path / "a.avi", 3, width, 640), 3, width, decoder=decoder)
    assert clip.frames.shape == (3, width, width, 3)
    # The red quarter ends in the middle: nothing is shifted, and no padding is visible.
    row = clip.frames[0, 0].astype(int)
    assert (row[: width // 2 - 3, 0] > 150).all()
    assert (row[width // 2 + 3 :, 0] < 150).all()
