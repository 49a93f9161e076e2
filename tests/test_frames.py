"""Every kept frame is the frame that was asked for: numbered frames, drawn in many codecs and containers, cut in many ways."""

import shutil
import struct
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dtsf.errors import VideoError
from dtsf.pipeline.video.clip import Span
from dtsf.pipeline.video.decode import decode_clip, decoder_name

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from frames import frames_to_keep, number_of, read_player  # noqa: E402
from frames_drawn import CASES, draw, numbered  # noqa: E402

BY_NAME = {case.name: case for case in CASES}
KINDS = [
    "h264_g30_b3.avi", "h264_g30_b3.ts", "h264_g12_b0.mpg", "h264_g30_b3.h264", "h264_open.mkv", "h264_refresh.ts",
    "h264_30000_1001fps.mkv", "hevc_open.mp4", "hevc_open.mkv", "mpeg4_g12_b2.avi", "mpeg4_g12_b2.asf",
    "mpeg1video_g12_b2.m2v", "mpeg2video_g12_b0.mpg", "wmv2.wmv", "vp8_altref.webm", "vp9_altref.webm", "mjpeg.avi",
    "theora.ogv", "flv1.flv", "fragmented.mp4", "late.ts", "wraps.mpg", "sound.mkv", "cut_h264_2.1_1.2.mp4",
    "cut_h264_1.5_1.5.avi", "cut_hevc.mkv", "cut_open.mp4", "cut_mpeg2.ts", "cut_mpeg4.avi", "midgop_h264.ts",
    "midgop_hevc.ts", "uneven.mp4", "uneven.mkv", "drops_mpeg4.avi", "two_streams.mp4", "two_streams.mkv",
    "cover.mp4", "turned.mp4",
]  # fmt: skip


@pytest.fixture(scope="module")
def drawn(needed, tmp_path_factory):
    """Draws one of the files of benchmarks/frames.py."""
    needed(shutil.which("ffmpeg"), "no ffmpeg")
    folder = tmp_path_factory.mktemp("drawn")

    def file(name):
        path = folder / name
        if not path.exists() and not draw(BY_NAME[name], path):
            pytest.skip(f"this ffmpeg does not write {name}")
        return path

    return file


def numbers_of(clip):
    return [number_of(frame) for frame in clip.frames]


@pytest.mark.parametrize("name", KINDS)
def test_kept_frames_are_those_that_a_player_shows(drawn, name):
    path = drawn(name)
    clip = decode_clip(path, 16, 96, check="full")
    assert numbers_of(clip) == frames_to_keep(BY_NAME[name], path, 16)
    assert (np.diff(clip.frame_time) > 0).all()
    assert len(clip.frames_hash) == 16


@pytest.mark.parametrize(
    "name",
    ["h264_g30_b3.avi", "h264_g30_b3.ts", "hevc_open.mkv", "mpeg4_g12_b2.avi", "mpeg2video_g12_b2.mpg", "vp9_altref.webm"],
)
def test_a_part_of_a_file_is_the_same_whether_decoded_from_its_beginning_or_from_a_key_frame(drawn, name):
    path = drawn(name)
    every = numbers_of(decode_clip(path, 120, 96))
    assert every == list(range(120))
    for start in (0.05, 1.4, 2.72, 3.8):
        clip = decode_clip(path, 4, 96, span=Span(start=start, end=start + 0.2))
        assert numbers_of(clip) == clip.frame_index.tolist()
        assert clip.frame_time[0] >= start - 0.001
        assert clip.frame_time[-1] < start + 0.2


@pytest.mark.parametrize(("start", "first", "last"), [(0, 0, 59), (2, 60, 69)])
@pytest.mark.parametrize("name", ["uneven.mp4", "uneven.mkv", "uneven.ts", "drops_mjpeg.avi"])
def test_start_and_end_are_seconds_of_presentation_at_an_uneven_rate(drawn, name, start, first, last):
    kept = numbers_of(decode_clip(drawn(name), 10, 96, span=Span(start=start, end=start + 2)))
    assert min(kept) >= first
    assert max(kept) <= last
    assert len(set(kept)) == 10


def test_frames_that_were_never_written_are_counted_and_are_no_cut(drawn):
    clip = decode_clip(drawn("drops_mjpeg.avi"), 16, 96)
    assert (clip.status, clip.decoded_frames) == ("ok", 120)
    # 2 s at 30 a second, then 12 at 5: five of six places are empty behind each of the last 59 but the last.
    assert clip.missing_frames == 59 * 5
    assert decode_clip(drawn("uneven.mp4"), 16, 96).missing_frames == 0


def test_what_an_edit_list_hides_is_neither_counted_nor_shown(drawn):
    path = drawn("cut_h264_1.5_1.5.mp4")
    shown = read_player(path, BY_NAME[path.name])
    clip = decode_clip(path, len(shown), 96)
    assert (clip.decoded_frames, clip.missing_frames) == (len(shown), 0)
    assert number_of(clip.frames[0]) == shown[0] == 45


def test_pixels_that_are_not_square_are_shown_as_wide_as_a_player_does(make_video, tmp_path):
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
    # 90 stored pixels are 160 wide, more than the square; 80 are 80 high.
    assert light.any(1).sum() == 80
    assert light.any(0).sum() == 144


@pytest.mark.parametrize(("rotation", "corner"), [(0, (0, 0)), (90, (1, 0)), (180, (1, 1)), (-90, (0, 1))])
def test_a_turned_picture_is_shown_upright(make_video, tmp_path, rotation, corner):
    """FFmpeg's rotation is counter-clockwise: the red top left quarter goes to the bottom left by 90 degrees."""
    frame = decode_clip(make_video(tmp_path / "a.mp4", 3, 64, 64, rotation=rotation), 2, 64).frames[0].astype(int)
    red = (frame[..., 0] > 150) & (frame[..., 1] < 100)
    quarters = red.reshape(2, 32, 2, 32).mean((1, 3))
    assert tuple(np.unravel_index(quarters.argmax(), (2, 2))) == corner


def test_huge_pictures_are_unreadable_and_take_no_memory(make_video, tmp_path):
    path = make_video(tmp_path / "a.avi", 4, codec="rawvideo")  # no codec says another size than the header
    data = path.read_bytes()
    at = data.index(b"strf") + 12
    for side in (65535, 20000):
        path.write_bytes(data[:at] + struct.pack("<ii", side, side) + data[at + 8 :])
        with pytest.raises(VideoError) as raised:
            decode_clip(path, 4, 96)
        assert raised.value.status == "unreadable"
    Image.new("L", (16000, 16000)).save(tmp_path / "00001.png")
    Image.new("L", (9000, 9000)).save(tmp_path / "00002.png")
    for number in (1, 2):
        with pytest.raises(VideoError, match=r"too large|bomb") as raised:
            decode_clip(tmp_path, 1, 96, span=Span(first=number, last=number))
        assert raised.value.status == "unreadable"


def test_a_picture_whose_sides_are_too_unlike_is_unreadable(tmp_path):
    Image.new("RGB", (60000, 8)).save(tmp_path / "1.png")
    with pytest.raises(VideoError, match="too large"):
        decode_clip(tmp_path, 16, 192)


def test_a_colon_in_a_name_and_a_playlist_are_what_they_are(make_video, tmp_path):
    assert decode_clip(make_video(tmp_path / "a:b.avi", 6), 4, 64).status == "ok"
    listed = tmp_path / "list.avi"
    listed.write_text(f"ffconcat version 1.0\nfile {tmp_path / 'a:b.avi'}\n")
    with pytest.raises(VideoError) as raised:
        decode_clip(listed, 4, 64)
    assert raised.value.status == "unreadable"


def test_a_container_without_its_header_is_not_taken_for_a_raw_stream(make_video, tmp_path):
    path = make_video(tmp_path / "a.avi", 60, 320, 240)
    path.write_bytes(bytes(2048) + path.read_bytes()[2048:])
    with pytest.raises(VideoError) as raised:
        decode_clip(path, 4, 96)
    assert raised.value.status == "unreadable"


def test_messages_end_with_a_way_out_and_name_no_source_file(make_video, tmp_path):
    path = make_video(tmp_path / "a.mp4", 30, codec="libx264")
    data = bytearray(path.read_bytes())
    begin = data.index(b"mdat") + 4
    data[begin + 8 : begin + (len(data) - begin) // 2] = bytes((len(data) - begin) // 2 - 8)
    path.write_bytes(data)
    with pytest.raises(VideoError) as raised:
        decode_clip(path, 30, 96)
    assert "ffmpeg -i" in str(raised.value)
    assert ".c" not in str(raised.value).replace("-c:v", "")


@pytest.mark.parametrize(
    "names",
    [
        ["img_00009.jpg", "img_00010.jpg", "img_00100.jpg"],
        ["frame_9_tc_70_rgb.jpg", "frame_10_tc_80_rgb.jpg", "frame_100_tc_90_rgb.jpg"],
        ["9.png", "10.png", "100.png"],
        ["S01_cam2-9.PNG", "S01_cam2-10.PNG", "S01_cam2-100.PNG"],
    ],
)
def test_a_folder_of_pictures_is_in_natural_order_whatever_its_names(tmp_path, names):
    for k, name in enumerate(names):
        Image.fromarray(numbered(k + 1, 96, 96)).save(tmp_path / name)
    clip = decode_clip(tmp_path, 3, 96)
    assert numbers_of(clip) == [1, 2, 3]
    assert np.isnan(clip.frame_time).all()
    assert numbers_of(decode_clip(tmp_path, 2, 96, span=Span(first=10))) == [2, 3]
    assert numbers_of(decode_clip(tmp_path, 2, 96, span=Span(last=10))) == [1, 2]
    timed = decode_clip(tmp_path, 1, 96, span=Span(start=1.0, end=1.5, fps=2.0))
    assert (numbers_of(timed), timed.frame_time.tolist(), timed.duration) == ([3], [1.0], 1.5)


def test_two_kinds_of_pictures_of_which_there_are_as_many_are_not_mixed(tmp_path):
    for name in ("a_1.png", "a_2.png", "b_1.png", "b_2.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    with pytest.raises(VideoError, match=r"2 images each of a_#\.png and b_#\.png"):
        decode_clip(tmp_path, 2, 64)


def test_common_moments_are_shown_whatever_frames_a_view_has_there(make_video, tmp_path):
    """Two cameras of other rates: the same moments, and behind its end a view shows its last frame."""
    span = Span(start=0.5, end=1.5, common=True)
    quick = decode_clip(make_video(tmp_path / "a.mp4", 60, codec="libx264", fps=30), 5, 64, span=span)
    slow = decode_clip(make_video(tmp_path / "b.mp4", 14, codec="libx264", fps=10), 5, 64, span=span)
    assert quick.frame_index.tolist() == [18, 24, 30, 36, 42]
    assert slow.frame_index.tolist() == [6, 8, 10, 12, 13]


@pytest.mark.parametrize("name", ["h264_g30_b3.avi", "h264_g30_b3.ts", "cut_h264_1.5_1.5.mp4", "dv.avi"])
def test_decord_gives_the_right_pictures_or_none(drawn, name):
    pytest.importorskip("decord")
    path = drawn(name)
    if name == "dv.avi":
        assert numbers_of(decode_clip(path, 16, 96, decoder="decord")) == frames_to_keep(BY_NAME[name], path, 16)
        return
    with pytest.raises(VideoError, match="--decoder pyav") as raised:
        decode_clip(path, 16, 96, decoder="decord")
    assert raised.value.status in ("misplaced", "unreadable")


def test_decord_is_taken_where_it_is_right(make_video, tmp_path):
    pytest.importorskip("decord")
    path = make_video(tmp_path / "a.avi", 40)
    assert decode_clip(path, 8, 96, decoder="decord").frame_index.tolist() == [2, 7, 12, 17, 22, 27, 32, 37]
    assert decoder_name("decord").startswith("decord2 ")
    assert "libavcodec" in decoder_name()
