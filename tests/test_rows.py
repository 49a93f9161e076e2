"""An answer is made as the run was trained: rows of predict and of the cache, and the camera of each video."""

import itertools
import os
from pathlib import Path

import av
import numpy as np
import pytest

from dtsf import api
from dtsf.errors import ConfigError, DataError, DtsfError, VideoError
from dtsf.pipeline.datasets.manifest import OPTIONAL
from dtsf.pipeline.settings import PreprocessSettings
from dtsf.predict.videos import check_videos, embed_videos
from dtsf.predict.views import choose_views

SMALL = {"frames": 4, "size": 96, "grid": 3, "workers": 1}
PIXELS = SMALL | {"encoder": "pixels", "crop": "motion"}
# Settings of preprocess, columns of a manifest by view, and options of predict.
CASES = {
    "default": (SMALL, {}, {}),
    "frames": (PIXELS | {"frames": 7}, {}, {}),
    "size": (PIXELS | {"size": 64}, {}, {}),
    "crop": (PIXELS | {"crop": "centre"}, {}, {}),
    "region": (PIXELS | {"region": (0.0, 0.0, 0.5, 1.0)}, {}, {}),
    "columns": (PIXELS, {"region": ("0 0 0.5 1", "0 0 1 0.5"), "ignore": ("", "0 0 9 9; 0.5 0.5 0.1 0.1")}, {}),
    "ignore": (PIXELS | {"ignore": ((0.0, 0.0, 0.3, 0.3),)}, {}, {}),
    "decoder": (PIXELS | {"decoder": "decord"}, {}, {}),
    "check": (PIXELS | {"check": "full"}, {}, {}),
    "align": (PIXELS | {"align": "group"}, {}, {}),
    "offset": (PIXELS | {"align": "group"}, {"offset": (0, -0.7)}, {}),
    "offsets": (PIXELS | {"align": "group"}, {"offset": (0, -0.7)}, {"offset": ["0", "-0.7"]}),
    "part": (PIXELS, {"start": (0.5, 0.75), "end": (1.1, "0:01.25")}, {"start": [0.5, "0.75"], "end": [1.1, "0:01.25"]}),
    "part of one": (PIXELS, {"start": ("", 0.5)}, {"start": [None, 0.5]}),
    "part, aligned": (
        PIXELS | {"align": "group"},
        {"start": (0.31, 0.2), "end": (1.6, 2.1), "offset": (0.1, -0.3)},
        {"start": [0.31, 0.2], "end": [1.6, 2.1], "offset": (0.1, -0.3)},
    ),
    "folder": (PIXELS | {"align": "group"}, {"fps": ("", 10)}, {"fps": ["", 10]}),
}
# The other settings do not change a row. encoder_weights is for timm: see test_encoders.py.
NO_ROW = "views limit videos encoder_weights name format compress shard_size overwrite workers scheduler deadline"
NO_ROW += " max_bad retry_bad dry_run"
# first, last: a part in frames, which predict does not take. The others are annotations.
NO_OPTION = ("first", "last", "subject", "split", "background")


@pytest.fixture(scope="module")
def cameras(tmp_path_factory):
    """A square that moves across a picture: 2 s of camera 1, and 3 s of camera 2. Camera 2 also as pictures."""
    folder = tmp_path_factory.mktemp("cameras")
    (folder / "pictures2").mkdir()
    for camera, n_frames in ((1, 40), (2, 60)):
        with av.open(str(folder / f"cam{camera}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=20, options={"preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
            for k in range(n_frames):
                picture = np.full((96, 128, 3), 60, np.uint8)
                picture[10 * camera : 10 * camera + 40, 20 + k : 50 + k] = 200, 3 * k, 40 * camera
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                container.mux(stream.encode(frame))
                if camera == 2 and k < 24:
                    frame.to_image().save(folder / f"pictures2/img_{k:03d}.png")
            container.mux(stream.encode())
    return folder


def make_cache(cameras, target, columns, settings):
    names = ("cam1.mp4", "pictures2" if "fps" in columns else "cam2.mp4")
    rows = [[name, "up", "g", f"c{k}", *(columns[c][k - 1] for c in columns)] for k, name in enumerate(names, 1)]
    # A class more, as training would need; one camera, so nothing is aligned.
    rows.append([str(cameras / "cam2.mp4"), "side", "h", "c2", *(columns[c][1] if c not in ("fps",) else "" for c in columns)])
    text = "\n".join(",".join(map(str, row)) for row in [("path", "label", "group", "view", *columns), *rows])
    (target / "m.csv").write_text(text + "\n")
    api.preprocess("manifest", target / "m.csv", target / "c", videos=cameras, **settings)
    return api.open_cache(target / "c"), [cameras / name for name in names]


@pytest.mark.parametrize("case", CASES)
def test_embed_videos__rows_are_those_of_the_cache_bit_for_bit(cameras, tmp_path, case):
    settings, columns, options = CASES[case]
    if settings.get("decoder") == "decord":
        pytest.importorskip("decord")
    data, videos = make_cache(cameras, tmp_path, columns, settings)
    ids = [clip.id for clip in data.clips if clip.group == "g"]
    numbers = choose_views(data.info.view_names, videos).numbers
    embedded = embed_videos(videos, numbers, data.info, data.spec, options)
    assert [row.facts["frames_hash"] for row in embedded.rows] == [data.records[name][1].frames_hash for name in ids]
    np.testing.assert_array_equal(embedded.embeddings_VFPC, data.embeddings(ids))
    assert embedded.embeddings_VFPC.dtype == data.embeddings(ids).dtype
    assert [row.facts["frame_index"] for row in embedded.rows] == data.frame_index(ids).tolist()
    # Other moments, another region, or another decoder would have been seen.
    assert len({row.facts["frames_hash"] for row in embedded.rows}) == 2


def test_cases__have_every_setting_and_every_column_that_changes_a_row():
    settings = {name for case in CASES.values() for name in case[0]} | set(NO_ROW.split())
    assert set(PreprocessSettings.model_fields) <= settings
    assert set(OPTIONAL) <= {name for case in CASES.values() for name in case[1]} | set(NO_OPTION)


@pytest.mark.parametrize(
    ("columns", "options", "error", "message"),
    [
        ({"offset": (0, -0.7)}, {}, None, "with the offsets of the training clips (0, -0.7 s)"),
        ({}, {}, None, "as if they begin together"),
        ({"offset": (0, -0.7)}, {"offset": [0, -9]}, VideoError, "have no common time with the offsets 0, -9 s"),
        ({}, {"offset": [1, 2, 3]}, DataError, "--offset: 3 given for 2 videos"),
        ({}, {"offset": "1 s"}, DataError, "--offset ('1 s') must be a number"),
        ({}, {"start": -1}, ConfigError, "--start must be seconds"),
        ({}, {"start": float("nan")}, ConfigError, "--start must be seconds"),
        ({}, {"start": 2, "end": "1.5"}, ConfigError, "--end 1.5 must be after --start 2"),
        ({}, {"fps": 0}, ConfigError, "--fps 0 must be above 0"),
    ],
)
def test_embed_videos__says_how_views_are_aligned_and_refuses_wrong_parts(
    cameras, tmp_path, columns, options, error, message
):
    data, videos = make_cache(cameras, tmp_path, columns, PIXELS | {"align": "group"})
    if error is None:
        assert message in embed_videos(videos, (0, 1), data.info, data.spec, options).notes[0]
        return
    with pytest.raises(error) as caught:
        embed_videos(videos, (0, 1), data.info, data.spec, options)
    assert message in str(caught.value)


def test_embed_videos__asks_for_offsets_that_differ_between_performances(cameras, tmp_path):
    rows = [(k, camera, k * camera) for k in range(2) for camera in (1, 2)]
    lines = [f"cam{camera}.mp4,a{k},g{k},c{camera},{offset}" for k, camera, offset in rows]
    (tmp_path / "m.csv").write_text("\n".join(["path,label,group,view,offset", *lines]))
    result = api.preprocess("manifest", tmp_path / "m.csv", tmp_path / "own", videos=cameras, **PIXELS)
    assert any("column offset" in note and "--align group" in note for note in result.notes)
    api.preprocess("manifest", tmp_path / "m.csv", tmp_path / "group", videos=cameras, align="group", **PIXELS)
    own, group = (api.open_cache(tmp_path / align) for align in ("own", "group"))
    videos = [cameras / "cam1.mp4", cameras / "cam2.mp4"]
    with pytest.raises(ConfigError, match="give --offset for each video"):
        embed_videos(videos, (0, 1), group.info, group.spec, {})
    assert embed_videos(videos, (0, 1), group.info, group.spec, {"offset": [0, 0]}).notes == ()
    with pytest.raises(ConfigError, match="--offset has no effect"):
        embed_videos(videos, (0, 1), own.info, own.spec, {"offset": [0, 1]})
    assert embed_videos(videos, (0, 1), own.info, own.spec, {"offset": 0}).notes == ()
    [note] = embed_videos(videos[:1], (0,), group.info, group.spec, {}).notes
    assert "one video alone" in note
    late, same = embed_videos([videos[0]] * 2, (0, 1), own.info, own.spec, {"end": [None, 9]}).notes
    assert f"{videos[0]} ends at 2.0 s, before --end 9: the rest is used" == late
    assert "show the same pictures: one recording is taken as two views" in same
    [note] = embed_videos(videos, (0, 1), own.info, own.spec, {"end": ["0.1", None]}).notes
    assert "2 of 4 frames" in note
    other = own.spec.model_copy(update={"decoder": "pyav 1.0.0"})
    [note] = embed_videos(videos, (0, 1), own.info, other, {}).notes
    assert "decoded by pyav 1.0.0" in note


def test_check_videos__refuses_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    for given, error, message in (
        ([], DataError, "no videos given"),
        ([tmp_path] * 65, DataError, "65 videos given"),
        ([tmp_path / "pipe.mp4"], VideoError, "is a pipe, socket or device"),
        (["/dev/zero"], VideoError, "is a pipe, socket or device"),
        (["/proc/self/mem"], VideoError, "has 0 bytes, as an empty file or one of /proc"),
        ([tmp_path / "gone.mp4"], VideoError, "gone.mp4 does not exist"),
    ):
        with pytest.raises(error, match=message):
            check_videos(given)


NAMED = [
    ("left right", "r_right.mp4 r_left.mp4", "right left"),
    ("left right", "camLeft.mp4 Right1.MP4", "left right"),
    ("left front_left", "x/front-left.mp4 x/left1.mp4", "front_left left"),
    ("1 2 3", "a05/v03_s01_e00.avi a05/v01_s01_e00.avi", "3 1"),
    ("1 2 3", "S001C002P003R001A010.avi S001C001P003R001A010.avi", "2 1"),
    ("c1 c2", "p4a0c2.mp4 p4a0c1.mp4", "c2 c1"),
    ("cam1 cam10", "cam10.mp4 cam01.mp4", "cam10 cam1"),
    ("c1 c2", "view_2/x.mp4 view_1/x.mp4", "c2 c1"),
    ("left right", "right/2024/x.mp4 left/2024/x.mp4", "right left"),
    ("左 右", "右机位.mp4 左机位.mp4", "右 左"),
    ("küche", "Ku\u0308che_1.mp4", "küche"),
    ("1 2", "take_2.mp4 take_1.mp4", "2 1"),
    ("left right", "x.mp4 b_left.mp4", "right? left"),
    ("left right", "bright.mp4 copyleft.mp4", "left? right?"),
    ("left right", "left_to_right.mp4", "left?"),
    ("1 2", "take_1a.mp4 s1_take_1.mp4", "1? 2?"),
    ("left right", "left/a.mp4 left/b.mp4", "left? right?"),
    ("cam1 cam2", "/cam2/take.mp4 /cam1/take.mp4", "cam2 cam1"),
]


@pytest.mark.parametrize(("names", "videos", "expected"), NAMED)
def test_choose_views__finds_cameras_by_the_names_of_files_and_folders(names, videos, expected):
    names, videos = names.split(), [Path(video) for video in videos.split()]
    views = choose_views(names, videos)
    found = [names[n] + "?" * (by == "order") for n, by in zip(views.numbers, views.by, strict=True)]
    assert found == expected.split()
    assert views.known == (not all(word.endswith("?") for word in found))
    assert bool(views.notes(names, videos)) == any(word.endswith("?") for word in found)
    # The order of the videos does not matter if all names are known.
    if views.known and "?" not in expected:
        for order in itertools.permutations(range(len(videos))):
            turned = choose_views(names, [videos[k] for k in order])
            assert turned.numbers == tuple(views.numbers[k] for k in order)


@pytest.mark.parametrize("videos", ["a_left.mp4 b_left.mp4", "x/left/a.mp4 y/left/b.mp4"])
def test_choose_views__refuses_two_videos_of_a_camera(videos):
    videos = [Path(video) for video in videos.split()]
    with pytest.raises(DtsfError, match="both of camera 'left' by their names: name the cameras with --views"):
        choose_views(["left", "right"], videos)
    assert choose_views(["left", "right"], videos, "right,left").numbers == (1, 0)
