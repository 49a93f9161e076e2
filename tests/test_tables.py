"""Manifests as users write them: separators, encodings, and errors that name the line."""

import pytest

from dtsf.errors import ConfigError, DataError
from dtsf.pipeline.datasets import scan_source
from dtsf.training.protocols import parse_protocol, split_clips

HEADER = ("path", "label", "group", "view", "subject", "split", "start", "end")
ROWS = [
    ("a.mp4", "sitzen", "g1", "cam1", "jörg", "train", "1.5", "0:01:02.5"),
    ("b.mp4", "gehen", "g2", "cam2", "", "test", "", ""),
]


def write(folder, separator=",", encoding="utf-8", header=HEADER, rows=ROWS):
    for name in ("a.mp4", "b.mp4"):
        (folder / name).touch()
    text = "\n".join(separator.join(cells) for cells in [header, *rows]) + "\n"
    (folder / "m.csv").write_bytes(text.encode(encoding))
    return folder / "m.csv"


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
def test_scan_manifest__reads_every_separator_and_encoding(tmp_path, separator, encoding):
    catalog = scan_source("manifest", write(tmp_path, separator, encoding))
    first, second = catalog.clips
    assert (first.subject, first.start, first.end, first.split) == ("jörg", 1.5, 62.5, "train")
    assert (second.subject, second.start, second.end) == (None, None, None)
    assert catalog.class_names == ("gehen", "sitzen")
    assert any("cp1252" in note and "line 2" in note for note in catalog.notes) == (encoding == "cp1252")


def test_scan_manifest__accepts_headers_in_any_case_decimal_commas_and_backslashes(tmp_path):
    (tmp_path / "sub").mkdir()
    header = (" Path ", "LABEL", "Group", "View", "Subject", "Split", "Start", "END")
    rows = [("sub\\a.mp4", "x", "g", "1", "s", "train", "0,5", "1:02,5")]
    catalog = scan_source("manifest", write(tmp_path, ";", header=header, rows=rows))
    assert (catalog.clips[0].path, catalog.clips[0].start, catalog.clips[0].end) == ("sub/a.mp4", 0.5, 62.5)


@pytest.mark.parametrize(
    ("header", "cells", "message"),
    [
        (("path", "lable", "group", "view"), ("a.mp4", "x", "g", "1"), "line 1: column 'label' is missing .is it 'lable'"),
        (("path", "label", "group", "view", "label"), ("a.mp4", "x", "g", "1", "y"), "line 1: two columns have the name 'label'"),
        (("path", "label", "group", "view"), ("a.mp4", "x", "", "1"), "line 2: group is empty"),
        (("path", "label", "group", "view"), ("a.mp4", "x", "g", "1", "extra"), "line 2: 5 cells, but the header has 4"),
        (("path", "label", "group", "view", "start"), ("a.mp4", "x", "g", "1", "soon"), "line 2: start .'soon'. must be seconds"),
        (("path", "label", "group", "view", "end"), ("a.mp4", "x", "g", "1", "1:99"), "line 2: end .'1:99'. must be seconds"),
        (("path", "label", "group", "view", "first"), ("a.mp4", "x", "g", "1", "-3"), "first .'-3'. must be a frame number"),
        (("path", "label", "group", "view", "offset"), ("a.mp4", "x", "g", "1", "x"), "line 2: offset .'x'. must be a number"),
        (("path", "label", "group", "view", "fps"), ("a.mp4", "x", "g", "1", "0"), "line 2: fps .0. must be above 0"),
        (("path", "label", "group", "view", "first", "last"), ("a.mp4", "x", "g", "1", "5", "4"), "last .4. must not be before"),
        (("path", "label", "group", "view", "first", "end"), ("a.mp4", "x", "g", "1", "5", "9"), "not both"),
        (("path", "label", "group", "view"), ("../a.mp4", "x", "g", "1"), "line 2: ../a.mp4 is outside"),
    ],
)
def test_scan_manifest__errors_name_the_line(tmp_path, header, cells, message):
    with pytest.raises(DataError, match=rf"m\.csv, line.*{message}|m\.csv, {message}"):
        scan_source("manifest", write(tmp_path, header=header, rows=[cells]))


def test_scan_manifest__views_are_unique_in_a_group_and_in_natural_order(tmp_path):
    rows = [("a.mp4", "x", "g", "cam10"), ("b.mp4", "x", "g", "cam2")]
    assert scan_source("manifest", write(tmp_path, header=HEADER[:4], rows=rows)).view_names == ("cam2", "cam10")
    with pytest.raises(DataError, match=r"line 3: group 'g' has view 'cam10' already on line 2"):
        scan_source("manifest", write(tmp_path, header=HEADER[:4], rows=[rows[0], rows[0]]))


def test_scan_manifest__reads_frame_numbers_and_notes_a_misspelt_column(tmp_path):
    header = ("path", "label", "group", "view", "first", "last", "fps", "offset", "subjct")
    rows = [("a.mp4", "x", "g", "1", "3", "9.0", "25", "-0.5", "")]
    catalog = scan_source("manifest", write(tmp_path, header=header, rows=rows))
    clip = catalog.clips[0]
    assert (clip.first, clip.last, clip.fps, clip.offset, clip.start) == (3, 9, 25.0, -0.5, None)
    assert any("'subjct' is not used; did you mean 'subject'" in note for note in catalog.notes)


def test_scan_manifest__videos_may_be_in_another_folder(tmp_path, dtsf, make_video):
    """A read-only store of videos, with the table in another folder."""
    (tmp_path / "mine").mkdir()
    make_video(tmp_path / "store/x/a.avi", 8)
    make_video(tmp_path / "store/y/b.avi", 9)
    table = tmp_path / "mine/m.csv"
    table.write_text("path,label,group,view\nx/a.avi,x,g1,1\ny/b.avi,x,g2,1\n")
    by_folder = scan_source("manifest", table, videos=tmp_path / "store")
    assert [(by_folder.root / clip.path).is_file() for clip in by_folder.clips] == [True, True]
    table.write_text(f"path,label,group,view\n{tmp_path}/store/x/a.avi,x,g1,1\n{tmp_path}/store/y/b.avi,x,g2,1\n")
    whole = scan_source("manifest", table)
    assert (whole.root, [clip.path for clip in whole.clips]) == (tmp_path / "store", ["x/a.avi", "y/b.avi"])
    with pytest.raises(DataError, match="--videos .* does not exist"):
        scan_source("manifest", table, videos=tmp_path / "none")
    with pytest.raises(DataError, match="--videos is only for manifests"):
        scan_source("nucla", tmp_path, videos=tmp_path)
    table.write_text("path,label,group,view\nx/a.avi,x,g1,1\ny/b.avi,x,g2,1\n")
    words = ("preprocess", "manifest", "--root", "mine/m.csv", "--videos", "store", "--workers", 1, "--dry-run")
    dtsf.said(*words, cwd=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "store"]


def clips_of(folder, views, subjects):
    rows = [("a.mp4", "x", f"g{s}", v, s, "train", "", "") for v in views for s in subjects]
    catalog = scan_source("manifest", write(folder, rows=rows))
    return catalog.clips, catalog.view_names


def test_protocol__words_are_names_before_they_are_numbers(tmp_path):
    clips, names = clips_of(tmp_path, ["02", "05"], ["01", "02", "03"])

    def test_side(text):
        return split_clips(clips, parse_protocol(text, "manifest"), "manifest", names).test

    assert {names[clip.view - 1] for clip in test_side("cross-view:02")} == {"02"}
    assert {names[clip.view - 1] for clip in test_side("cross-view:05")} == {"05"}
    assert {names[clip.view - 1] for clip in test_side("cross-view:2")} == {"02"}
    assert {clip.subject for clip in test_side("cross-subject:03")} == {"03"}
    assert {clip.subject for clip in test_side("cross-subject:3")} == {"03"}
    with pytest.raises(ConfigError, match="unknown view '1': there are 02, 05"):
        test_side("cross-view:1")
    clips, names = clips_of(tmp_path, ["left", "right"], ["5", "05", "x"])
    assert {names[clip.view - 1] for clip in test_side("cross-view:2")} == {"right"}
    assert {clip.subject for clip in test_side("cross-subject:05")} == {"05"}
    with pytest.raises(ConfigError, match="no subject 005"):
        test_side("cross-subject:005")
