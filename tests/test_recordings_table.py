"""The table of recordings: cameras, chapters, offsets, and what is refused with its line."""

from pathlib import Path

import pytest

from dtsf.errors import ConfigError, DataError
from dtsf.recordings.settings import TimelineSettings
from dtsf.recordings.table import (
    Camera,
    Recording,
    chapters,
    check_offsets,
    check_videos,
    read_recordings,
    write_offsets,
)


def table(folder: Path, text: str, files="a.mp4 b.mp4 c.mp4 marks.csv") -> Path:
    for name in files.split():
        (folder / name).write_bytes(b"x")
    path = folder / "recordings.csv"
    path.write_text(text)
    return path


def test_read_recordings__rows_of_one_view_are_chapters_and_empty_offsets_are_none(tmp_path):
    rows = "lab,left,a.mp4,-1.5,ann,marks.csv\nlab,right,b.mp4,,,\nlab,left,c.mp4,,ann,\nyard,left,a.mp4,0,,"
    lab, yard = read_recordings(table(tmp_path, "recording,view,path,offset,subject,events\n" + rows))
    left = Camera("left", (tmp_path / "a.mp4", tmp_path / "c.mp4"), -1.5, 2)
    assert lab == Recording("lab", "ann", (left, Camera("right", (tmp_path / "b.mp4",), None, 3)), tmp_path / "marks.csv")
    assert yard == Recording("yard", None, (Camera("left", (tmp_path / "a.mp4",), 0.0, 5),))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("lab,1,nine.mp4,,,", r"line 2: there is no file .*nine.mp4"),
        ("lab,1,../other/a.mp4,,,", r"line 2: ../other/a.mp4 is outside of .*: give an absolute path$"),
        ("lab,1,rtsp://host/a,,,", "line 2: rtsp://host/a is an address"),
        ("lab,1,a.mp4,soon,,", r"line 2: offset \('soon'\)"),
        ("lab,1,a.mp4,99999999999,,", "line 2: offset"),
        ("lab,1,a.mp4,1,,\nlab,1,b.mp4,2,,", "line 3: .*another offset on line 2"),
        ("lab,1,a.mp4,1,,\nlab,2,./a.mp4,2,,", "line 3: .*already camera '1' of 'lab' on line 2"),
        ("lab,1,a.mp4,1,ann,\nlab,2,b.mp4,2,bob,", "line 3: 'lab' has subject 'bob' here and 'ann' on line 2"),
        ("lab,1,a.mp4,,,b.mp4\nlab,2,b.mp4,2,,c.mp4", "line 3: 'lab' has events"),
        ("lab,1,a.mp4,,,none.csv", "line 2: there is no file .*none.csv"),
        ("../x,1,a.mp4,,,", r"line 2: recording \('../x'\)"),
        (".x,1,a.mp4,,,", "line 2: recording"),
        ("lab,,a.mp4,,,", "line 2: view is empty"),
        ("", "no row"),
    ],
)
def test_read_recordings__refuses_a_wrong_cell_with_its_line(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        read_recordings(table(tmp_path, "recording,view,path,offset,subject,events\n" + rows))


def test_read_recordings__a_column_that_is_nearly_right_is_named(tmp_path):
    with pytest.warns(UserWarning, match="'ofset' is not used; did you mean 'offset'"):
        read_recordings(table(tmp_path, "recording,view,path,ofset\nlab,1,a.mp4,3"))


def test_write_offsets__below_the_line_that_excel_knows(tmp_path):
    path = table(tmp_path, "sep=;\n\nrecording;view;path\nlab;1;a.mp4\nlab;2;b.mp4\n")
    assert [camera.line for camera in read_recordings(path)[0].cameras] == [4, 5]
    write_offsets(path, {("lab", "2"): 1.5})
    assert path.read_text() == "sep=;\n\nrecording;view;path;offset\nlab;1;a.mp4\nlab;2;b.mp4;1.5\n"
    assert [camera.offset for camera in read_recordings(path)[0].cameras] == [None, 1.5]


def test_write_offsets__finds_columns_with_invisible_characters(tmp_path):
    path = table(tmp_path, "\ufeff\ufeffrecording,view,path,offset\u200b\nlab,1,a.mp4,\nlab,2,b.mp4,\n")
    write_offsets(path, {("lab", "1"): 0.0, ("lab", "2"): 1.5})
    assert [camera.offset for camera in read_recordings(path)[0].cameras] == [0.0, 1.5]


def test_check_offsets__names_the_line_and_the_command_unless_there_is_one_camera(tmp_path):
    path = table(tmp_path, "recording,view,path,offset\nlab,1,a.mp4,0\nlab,2,b.mp4,\nyard,1,c.mp4,")
    lab, yard = read_recordings(path)
    check_offsets(yard, path)
    with pytest.raises(DataError, match=r"line 3: camera '2' of 'lab' has no offset: dtsf sync --recordings .* --write"):
        check_offsets(lab, path)


@pytest.mark.parametrize("offset", [float("nan"), float("inf"), -1e9])
def test_check_offsets__refuses_what_is_no_time(offset):
    recording = Recording("day", None, (Camera("a", (Path("a.mp4"),), offset),))
    with pytest.raises(DataError, match="camera 'a' of 'day' has the offset"):
        check_offsets(recording, Path("recordings"))


@pytest.mark.parametrize(("videos", "message"), [
    (("a.mp4", "b.mp4"), "there is no file b.mp4"),
    (("a.mp4", "./a.mp4"), "a.mp4 is given for two cameras"),
    ((".",), "there is no file ."),
    (("rtsp://x/y",), "rtsp://x/y is no file: dtsf timeline RUN --follow --video rtsp://x/y"),
    (("-",), "- is no file: .* --follow"),
])
def test_check_videos__one_file_a_camera_unless_they_are_still_written(tmp_path, monkeypatch, videos, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.mp4").write_bytes(b"x")
    with pytest.raises(DataError, match=message):
        check_videos(videos)
    if "no file:" in message:
        check_videos(videos, live=True)


def test_check_videos__a_file_that_nobody_writes_cannot_be_followed(tmp_path):
    for place in (tmp_path, tmp_path / "none.ts"):
        with pytest.raises(DataError, match=f"there is no file {place}: .*start the camera first"):
            check_videos([place], live=True)


@pytest.mark.parametrize("windows", ["0", "-1", "nan", "1e6", "2,0.001", "2;3", (2.0, 0.0)])
def test_timeline_settings__windows_are_seconds_that_a_camera_can_show(windows):
    with pytest.raises(ConfigError, match="--windows .*must be seconds from 0.1 to 3600"):
        TimelineSettings.of(windows=windows)


def test_chapters__each_begins_where_the_one_before_ends(tmp_path, make_video):
    for name, n_frames in (("a.mp4", 30), ("b.mp4", 15)):
        make_video(tmp_path / name, n_frames)
    camera = Camera("1", (tmp_path / "a.mp4", tmp_path / "b.mp4"), offset=-2.0)
    first, second = chapters(camera)
    assert [first.start, first.stop, second.start, second.stop] == pytest.approx([-2.0, -1.0, -1.0, -0.5])
