"""Files -> clips: links and unreadable folders, the names of each dataset, and manifests as users write them."""

import errno
import os
import subprocess
import sys

import pytest
from helpers import touch

from dtsf.errors import ConfigError, DataError, SourceError
from dtsf.pipeline import source
from dtsf.pipeline.datasets import scan_source
from dtsf.pipeline.source import VIDEO_ENDINGS, SkippedFiles, walk_files


def walked(root):
    skipped = SkippedFiles()
    return [f"{folder}/{name}".lstrip("/") for folder, name in walk_files(root, skipped)], skipped.notes()


def test_walk_files__follows_links_and_ends_loops(tmp_path):
    touch(tmp_path / "data", "a/1.avi")
    touch(tmp_path / "disk2", "b/2.avi")
    (tmp_path / "data/second").symlink_to(tmp_path / "disk2")
    (tmp_path / "disk2/b/up").symlink_to(tmp_path / "disk2")
    (tmp_path / "data/a/again").symlink_to(tmp_path / "data/a")
    (tmp_path / "data/gone.avi").symlink_to(tmp_path / "nowhere.avi")
    found, notes = walked(tmp_path / "data")
    assert found == ["a/1.avi", "second/b/2.avi"]
    assert sorted(notes) == [
        "1 links lead nowhere and were left out; the first is gone.avi",
        "2 links lead to a folder that is read already and were not followed; the first is a/again",
    ]


def test_walk_files__notes_names_that_are_not_utf8(tmp_path):
    touch(tmp_path, "ok/angleview_p01_walk_a1.avi")
    bad = os.path.join(os.fsencode(tmp_path), b"\xb6\xaf\xd7\xf7")
    os.mkdir(bad)
    for name in (b"angleview_p09_walk_a1.avi", b"x.avi"):
        with open(os.path.join(bad, name), "w"):
            pass
    catalog = scan_source("casia", tmp_path)
    assert len(catalog.clips) == 1
    assert catalog.notes == (r"1 names are not UTF-8 and were left out: rename them; the first is \xb6\xaf\xd7\xf7",)


def test_walk_files__notes_unreadable_folders_and_raises_if_the_disk_fails(tmp_path, monkeypatch):
    touch(tmp_path, "a/angleview_p01_walk_a1.avi", "locked/angleview_p02_walk_a1.avi")
    scan = os.scandir

    def refuse(code):
        def scandir(path):
            if str(path).endswith("locked"):
                raise OSError(code, os.strerror(code))
            return scan(path)

        monkeypatch.setattr(source.os, "scandir", scandir)

    refuse(errno.EACCES)
    catalog = scan_source("casia", tmp_path)
    assert [clip.subject for clip in catalog.clips] == ["1"]
    assert catalog.notes == ("1 folders cannot be read (Permission denied) and were left out; the first is locked",)
    for code in (errno.EIO, errno.ESTALE):
        refuse(code)
        with pytest.raises(SourceError, match=r"locked.*Finished work is safe: run the same command again"):
            scan_source("casia", tmp_path)


@pytest.mark.parametrize("ending", VIDEO_ENDINGS)
def test_scan_source__takes_videos_of_every_ending(tmp_path, ending):
    touch(tmp_path / "n", f"S001C001P001R001A001{ending.upper()}")
    touch(tmp_path / "c", f"angleview_p01_walk_a1{ending}")
    touch(tmp_path / "u", f"a02/v01_s03_e00{ending}")
    for kind, folder in (("ntu", "n"), ("casia", "c"), ("nucla", "u")):
        assert len(scan_source(kind, tmp_path / folder).clips) == 1


def test_scan_source__counts_videos_with_other_names(tmp_path):
    touch(tmp_path, "S001C001P001R001A001.avi", "holiday.mov", "S001C001P001R001A001.skeleton")
    assert any(note.startswith("1 video files do not have NTU's names") for note in scan_source("ntu", tmp_path).notes)
    with pytest.raises(DataError, match=r"no casia video under .*2 video files do not have CASIA's names"):
        scan_source("casia", tmp_path)


def test_scan_nucla__action_is_the_folder_and_labels_sort_as_numbers(tmp_path):
    names = [f"multiview_action_videos/a{a:02d}/v01_s01_e00.avi" for a in (1, 2, 3, 4, 5, 6, 8, 9, 11, 12)]
    catalog = scan_source("nucla", touch(tmp_path, *names))
    assert [(clip.raw_label, clip.label) for clip in catalog.clips][-2:] == [("11", 8), ("12", 9)]
    assert len({clip.group for clip in catalog.clips}) == 10


def test_scan_nucla__reads_three_layouts(tmp_path):
    root = touch(tmp_path, "view_2/a02_s03_e01/frame_1_tc_2_rgb.jpg", "view1/v01_s04_e00_a12.avi", "x/a01/v03_s10_e02.avi")
    found = [clip.id for clip in scan_source("nucla", root).clips]
    assert found == ["a01_s10_e02_v03", "a02_s03_e01_v02", "a12_s04_e00_v01"]


@pytest.mark.parametrize(("lines", "message"), [
    ("1,pull\n2,lift\n1,push\n", r"labels\.csv, line 4: action 1 is 'push' here and 'pull' before"),
    ("1,pull\n2,pull\n", "two classes of nucla .* have the name 'pull'"),
    ("1,carry\n", "two classes of nucla .* have the name 'carry'"),
])
def test_scan_nucla__refuses_class_names_that_clash(tmp_path, lines, message):
    touch(tmp_path, "a01/v01_s01_e00.avi")
    (tmp_path / "labels.csv").write_text("action,action_name\n" + lines)
    with pytest.raises(DataError, match=message):
        scan_source("nucla", tmp_path)


def test_scan_manifest__order_does_not_depend_on_the_hash_seed(tmp_path):
    words = ["Run", "run", "RUN", "1", "01", "1.0", "A2", "a2"]
    names = [f"v{k}.avi" for k in range(len(words))]
    touch(tmp_path, *names)
    rows = [f"{name},{word},g{k},c{word}" for k, (name, word) in enumerate(zip(names, words, strict=True))]
    (tmp_path / "m.csv").write_text("path,label,group,view\n" + "\n".join(rows) + "\n")
    code = (
        "from pathlib import Path; from dtsf.pipeline.datasets.manifest import catalog_manifest;"
        f"c = catalog_manifest(Path({str(tmp_path / 'm.csv')!r})); print(c.class_names, c.view_names)"
    )
    seeds = [{**os.environ, "PYTHONHASHSEED": str(seed)} for seed in range(4)]
    found = {subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True).stdout for env in seeds}
    assert len(found) == 1


def test_scan_source__refuses_two_files_for_the_same_clip(tmp_path):
    root = touch(tmp_path, "one/a01/v01_s01_e00.avi", "two/a01/v01_s01_e00.avi")
    with pytest.raises(DataError, match=r"one/a01/v01_s01_e00\.avi and .*two/a01/v01_s01_e00\.avi"):
        scan_source("nucla", root)
    with pytest.raises(DataError, match="two files are the clip S001C001P001R001A001"):
        scan_source("ntu", touch(tmp_path, "S001C001P001R001A001_rgb.avi", "S001C001P001R001A001.mp4"))


def test_scan_ntu__groups_by_setup_and_notes_missing_cameras(tmp_path):
    names = ["S001C001P001R001A060_rgb.avi", "deep/S002C001P001R001A060.mp4", "S001C004P001R001A001_rgb.avi"]
    catalog = scan_source("ntu", touch(tmp_path, *names, "S001C001P001R001A001.skeleton"))
    assert [clip.group for clip in catalog.clips] == ["S001P001R001A060", "S002P001R001A060"]
    assert [clip.label for clip in catalog.clips] == [59, 59]
    assert len(catalog.class_names) == 60
    assert "lack a camera" in " ".join(catalog.notes)
    assert len(scan_source("ntu", touch(tmp_path, "S018C001P041R001A061_rgb.avi")).class_names) == 120


def test_scan_casia__reads_pairs_and_both_spellings_of_wander(tmp_path):
    touch(tmp_path, "casia_angleview_p01_wonder_a1.mp4", "TopDownView_p02_wander_a2.avi", "angleview_p01p02_fight_a1.avi")
    clips = scan_source("casia", tmp_path).clips
    assert {clip.raw_label for clip in clips} == {"wonder", "fight"}
    assert {clip.subject for clip in clips} == {"1", "2", "1+2"}
    assert {clip.view for clip in clips} == {2, 3}


def test_scan_source__errors_name_what_exists(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        scan_source("nucla", tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no nucla video under .* found 1 \.txt"):
        scan_source("nucla", touch(tmp_path, "readme.txt"))
    with pytest.raises(ConfigError, match="unknown view '7'"):
        scan_source("nucla", touch(tmp_path, "a01/v01_s01_e00.avi"), views="7")


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


@pytest.mark.parametrize(("header", "cells", "message"), [
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
    (("path", "label", "group", "view", "region"), ("a.mp4", "x", "g", "1", "0 0 1"), "line 2: region must be four numbers"),
    (("path", "label", "group", "view", "region"), ("a.mp4", "x", "g", "1", "0 0 1 1|0 0 1 1"), "region must be one box"),
    (("path", "label", "group", "view", "ignore"), ("a.mp4", "x", "g", "1", "0.6 0 0.5 1"), "ignore reaches beyond"),
    (("path", "label", "group", "view", "ignore"), ("a.mp4", "x", "g", "1", "0 0 nan 1"), "ignore must be four numbers"),
    (("path", "label", "group", "view"), ("../a.mp4", "x", "g", "1"), "line 2: ../a.mp4 is outside"),
])
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


@pytest.mark.parametrize(("region", "ignore", "expected"), [
    ("0.1 0.2 0.5 0.6", "0 0.9 1 0.1; 0.8 0 0.2 0.2", ((0.1, 0.2, 0.5, 0.6), ((0, 0.9, 1, 0.1), (0.8, 0, 0.2, 0.2)))),
    ("0,1 0,2 0,5 0,6", "64, 0, 320, 20", ((0.1, 0.2, 0.5, 0.6), ((64, 0, 320, 20),))),
    ('"10,20,30,40"', "", ((10, 20, 30, 40), ())),
    ("", "0 0 1 1|0 0 1 1", (None, ((0, 0, 1, 1), (0, 0, 1, 1)))),
])
def test_scan_manifest__reads_regions_in_shares_and_pixels(tmp_path, region, ignore, expected):
    rows = [("a.mp4", "x", "g", "1", region, ignore)]
    clip = scan_source("manifest", write(tmp_path, "\t", header=(*HEADER[:4], "region", "ignore"), rows=rows)).clips[0]
    assert (clip.region, clip.ignore) == expected


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
