"""Seconds of a file are those of a player: they count from its earliest stream."""

import shutil
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from dtsf import api
from dtsf.cache.reader import open_dataset
from dtsf.errors import VideoError
from dtsf.pipeline.video.clip import Span
from dtsf.pipeline.video.decode import decode_clip, probe

PIXELS = {"encoder": "pixels", "frames": 4, "size": 32, "workers": 1, "max_bad": 1.0}
CODECS = {"mkv": ("libx264", "aac"), "mp4": ("libx264", "aac"), "ts": ("mpeg2video", "mp2"), "wmv": ("wmv2", "wmav2")}


@pytest.fixture(scope="module")
def late_video():
    """Writes a video whose first of 90 pictures comes 2 s after its sound. Picture k has the grey level 2 k."""
    import av

    def write(path, seconds=2):
        video_codec, audio_codec = CODECS[path.suffix[1:]]
        with av.open(str(path), "w") as container:
            video = container.add_stream(video_codec, rate=30)
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
            audio = container.add_stream(audio_codec, rate=44100, layout="mono")
            audio.bit_rate = 64_000
            audio.codec_context.open()
            size = audio.codec_context.frame_size
            for k in range((seconds + 3) * 44100 // size):
                kind = audio.codec_context.format.name
                sound = av.AudioFrame.from_ndarray(
                    np.zeros((1, size), np.int16 if "s16" in kind else np.float32), kind, "mono"
                )
                sound.sample_rate, sound.pts, sound.time_base = 44100, k * size, Fraction(1, 44100)
                container.mux(audio.encode(sound))
            for k in range(90):
                frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 2 * k, np.uint8), format="rgb24")
                frame.pts, frame.time_base = k + 30 * seconds, Fraction(1, 30)
                container.mux(video.encode(frame))
            for stream in (video, audio):
                container.mux(stream.encode())
        return path

    return write


def shown(clip):
    return [round(float(level) / 2) for level in clip.frames.mean((1, 2, 3))]


@pytest.mark.parametrize("ending", CODECS)
def test_decode_clip__seconds_count_from_the_earliest_stream(late_video, tmp_path, ending):
    path = late_video(tmp_path / f"late.{ending}")
    begin = probe(path).begin
    assert begin == pytest.approx(2, abs=0.07)  # some encoders of sound begin before zero
    clip = decode_clip(path, 4, 32, span=Span(start=3.1, end=4.1))
    wanted = (3.1 - begin) * 30 + np.array([3.75, 11.25, 18.75, 26.25])
    np.testing.assert_allclose(clip.frame_index, wanted, atol=1)
    np.testing.assert_allclose(shown(clip), wanted, atol=3)
    np.testing.assert_allclose(clip.frame_time, begin + clip.frame_index / 30, atol=2e-3)
    whole, until = decode_clip(path, 4, 32), decode_clip(path, 4, 32, span=Span(start=0, end=begin + 1))
    assert (whole.begin, whole.duration) == (begin, pytest.approx(3, abs=0.01))
    assert (whole.frame_index.tolist(), until.frame_index.tolist()) == ([11, 33, 56, 78], [3, 11, 18, 26])
    common = decode_clip(path, 4, 32, span=Span(start=3.1, end=4.1, common=True))
    assert np.abs(common.frame_time - [3.225, 3.475, 3.725, 3.975]).max() <= 1 / 30 + 1e-6
    for span, reason in ((Span(end=1.5), "the clip ends at 1.5 s, the picture begins at "), (Span(start=5.5), "ends at 5")):
        with pytest.raises(VideoError, match=reason):
            decode_clip(path, 4, 32, span=span)


def test_cache_info__names_clips_whose_picture_begins_later(late_video, make_video, dtsf, tmp_path):
    late_video(tmp_path / "late.mp4")
    make_video(tmp_path / "plain.avi", 90)
    (tmp_path / "m.csv").write_text("path,label,group,view,start,end\nlate.mp4,x,g,1,3,4\nplain.avi,y,h,1,1,2\n")
    api.preprocess("manifest", tmp_path / "m.csv", tmp_path / "c", **PIXELS)
    data = open_dataset(tmp_path / "c")
    np.testing.assert_array_equal(*data.frame_index([clip.id for clip in data.clips]))
    assert data.frame_time(["g_v01"])[0] == pytest.approx(1 + data.frame_time(["h_v01"])[0] + 1, abs=1e-3)
    said = dtsf.said("cache", "info", "c", cwd=tmp_path)
    assert "1 clip: the picture begins up to 2.0 s after the file, often after its sound (late.mp4)" in said
    page = dtsf.json("cache", "info", "c", cwd=tmp_path)["datasets"][0]
    assert page["pictures_begin"] == {"late.mp4": pytest.approx(2, abs=1e-3)}


@pytest.fixture
def folders(tmp_path):
    """Returns a function that writes a table of two folders of 20 and 40 pictures: their frame rates and offsets."""
    for name, count in (("a", 20), ("b", 40)):
        (tmp_path / name).mkdir()
        for k in range(count):
            Image.new("RGB", (32, 32), (5 * k, 0, 0)).save(tmp_path / name / f"{k:02}.png")

    def write(*rows):
        lines = [f"{name},x,g,{view},{fps},{offset}" for view, (name, fps, offset) in enumerate(rows)]
        (tmp_path / "m.csv").write_text("path,label,group,view,fps,offset\n" + "\n".join(lines) + "\n")
        return tmp_path / "m.csv"

    return write


def test_align_group__length_of_a_folder_follows_its_frame_rate(folders, tmp_path):
    table = folders(("a", 10, 0), ("b", 10, 0))
    api.preprocess("manifest", table, tmp_path / "c", align="group", **PIXELS)
    folders(("a", 5, 0), ("b", 10, 0))
    for cache in ("c", "fresh"):
        api.preprocess("manifest", table, tmp_path / cache, align="group", **PIXELS)
        data = open_dataset(tmp_path / cache)
        assert [(clip.start, clip.end) for clip in data.clips] == [(0.0, 4.0)] * 2
        np.testing.assert_allclose(*data.frame_time([clip.id for clip in data.clips]), atol=0.2)
    folders(("a", 10, 0), ("a", 5, 0))
    clips = api.preprocess("manifest", table, tmp_path / "one", align="group", **PIXELS)
    assert clips.verdicts == {"ok": 2}


@pytest.mark.parametrize("offsets", [(0, 100), (100, 0)])
def test_align_group__folders_without_a_common_moment_are_refused(folders, tmp_path, offsets):
    table = folders(("a", 10, offsets[0]), ("b", 10, offsets[1]))
    result = api.preprocess("manifest", table, tmp_path / "c", align="group", **PIXELS)
    assert result.verdicts == {"unreadable": 2}
    assert all("the views of its group share no time" in one.reason for one in result.bad)
    assert any("1 performance has views without a common time" in note for note in result.notes)


def test_align_group__late_pictures_limit_the_common_time(late_video, make_video, tmp_path):
    late_video(tmp_path / "late.mp4")
    make_video(tmp_path / "plain.mp4", 120, codec="libx264")
    (tmp_path / "m.csv").write_text("path,label,group,view\nlate.mp4,x,g,1\nplain.mp4,x,g,2\n")
    for done in (0, 2):
        result = api.preprocess("manifest", tmp_path / "m.csv", tmp_path / "c", align="group", **PIXELS)
        assert result.already_done == done
    data = open_dataset(tmp_path / "c")
    assert [(clip.start, clip.end) for clip in data.clips] == [(pytest.approx(2, abs=1e-3), 4.0)] * 2
    np.testing.assert_allclose(*data.frame_time([clip.id for clip in data.clips]), atol=1 / 30)


def test_preprocess__what_follows_from_bytes_is_kept_for_the_same_ending_only(tmp_path):
    """FFmpeg reads a raw stream by its ending. The reason names each file itself."""
    import av

    (tmp_path / "d").mkdir()
    with av.open(str(tmp_path / "d/r.mp4"), "w", format="h264") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for k in range(12):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), k, np.uint8), format="rgb24")))
        container.mux(stream.encode())
    names = ["d/r.mp4", "d/copy of r.MP4", "d/r.264"]
    for name in names[1:]:
        shutil.copyfile(tmp_path / names[0], tmp_path / name)

    def run(cache, *names):
        rows = [f"{name},x,{k},1" for k, name in enumerate(names)]
        (tmp_path / "m.csv").write_text("path,label,group,view\n" + "\n".join(rows) + "\n")
        return api.preprocess("manifest", tmp_path / "m.csv", tmp_path / cache, **PIXELS)

    result = run("c", *names)
    assert result.verdicts == {"ok": 1, "unreadable": 2}
    hint = "{} has lost its header; try to re-encode it: ffmpeg -i {} -c:v libx264 {}_new.mp4"
    assert [one.reason for one in result.bad] == [
        hint.format(name, name[2:], name[2:-4]) for name in ("d/r.mp4", "d/copy of r.MP4")
    ]
    assert run("renamed", "d/r.mp4").verdicts == {"unreadable": 1}
    assert run("renamed", "d/r.264").verdicts == {"ok": 1}
    assert run("renamed", "d/copy of r.MP4").already_done == 1
