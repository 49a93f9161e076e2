"""Exact frames: numbered frames in many codecs and containers, as a player shows them."""

import json
import re
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dtsf.errors import VideoError
from dtsf.pipeline.video.clip import Span
from dtsf.pipeline.video.decode import decode_clip, decoder_name

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
    """FFmpeg's rotation is counter-clockwise: by 90 degrees the red top left quarter moves to the bottom left."""
    frame = decode_clip(make_video(tmp_path / "a.mp4", 3, 320, 240, rotation=rotation), 2, 96).frames[0].astype(int)
    red = (frame[..., 0] > 150) & (frame[..., 1] < 100)
    quarters = red.reshape(2, 48, 2, 48).mean((1, 3))
    assert tuple(np.unravel_index(quarters.argmax(), (2, 2))) == corner
    # The picture of 128 x 96 or 96 x 128 is cropped to 96 x 96, so that red is 48 x 48. Without its aspect it would be 36 x 64.
    assert abs(red.any(axis=1).sum() - 48) <= 2
    assert abs(red.any(axis=0).sum() - 48) <= 2


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
