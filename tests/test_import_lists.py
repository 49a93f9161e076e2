"""Lists of other projects become a manifest; a hostile pickle becomes an error."""

import csv
import os
import pickle
import resource

import numpy as np
import pytest
from helpers import touch

from dtsf.errors import DataError
from dtsf.pipeline.datasets import scan_source
from dtsf.pipeline.datasets.import_lists import import_lists


def test_import_lists__reads_the_chosen_splits_of_a_pyskl_pickle(tmp_path):
    stems = [f"S001C00{c}P00{p}R001A010" for p in (1, 2) for c in (1, 2, 3)]
    touch(tmp_path / "v", *(f"nturgb+d_rgb/{stem}_rgb.avi" for stem in stems[:-1]))
    document = {
        "split": {"xsub_train": stems[:3], "xsub_val": stems[3:], "xview_train": stems, "xview_val": []},
        "annotations": [
            {"frame_dir": stem, "label": np.int64(9), "total_frames": 4, "keypoint": np.zeros((1, 4, 2, 3))}
            for stem in stems
        ],
    }
    (tmp_path / "ntu.pkl").write_bytes(pickle.dumps(document))
    with pytest.raises(DataError, match="choose with --split"):
        import_lists([tmp_path / "ntu.pkl"], tmp_path / "v")
    made = import_lists([tmp_path / "ntu.pkl"], tmp_path / "v", split="xsub")
    assert (made.rows, made.groups, made.splits, made.alone) == (5, 2, {"train": 3, "test": 2}, 0)
    assert made.missing == (f"{stems[-1]} ({tmp_path / 'ntu.pkl'}, xsub_val)",)
    catalog = scan_source("manifest", tmp_path / "v/manifest.csv")
    assert catalog.groups_by_views == {3: 1, 2: 1}
    assert {(c.split, c.subject, c.raw_label) for c in catalog.clips} == {("train", "1", "9"), ("test", "2", "9")}
    with pytest.raises(DataError, match="exists: remove it"):
        import_lists([tmp_path / "ntu.pkl"], tmp_path / "v", split="xsub")


def test_import_lists__a_line_for_excel_is_no_header(tmp_path):
    touch(tmp_path / "v", "a.mp4", "b.mp4")
    (tmp_path / "list.csv").write_text("sep=;\npath;label\na.mp4;wave\nb.mp4;jump\n")
    made = import_lists([tmp_path / "list.csv"], tmp_path / "v")
    assert (made.rows, sorted(clip.raw_label for clip in scan_source("manifest", made.manifest).clips)) == (2, ["jump", "wave"])


RECONSTRUCT = np.zeros(1).__reduce__()[0]


class Hostile:
    def __init__(self, *reduced):
        self.reduced = reduced or (os.system, ("touch harmed",))

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("content", [
    *map(pickle.dumps, (Hostile(), {"split": Hostile()}, [1], np.zeros(3))), b"\x80\x04broken", b"\x80",
    # A few bytes that would take gigabytes: an array, a number of any size, a high number of a remembered object.
    *map(pickle.dumps, (Hostile(np.ndarray, ((1 << 33,),)), Hostile(RECONSTRUCT, (np.ndarray, (1 << 33,), b"b")))),
    pickle.dumps(Hostile(np.int64(1).__reduce__()[0], (np.dtype("V2000000000"),))), b"\x80\x02}r\xff\xff\xff\x0f.",
])
def test_import_lists__refuses_a_pickle_with_code_or_of_any_size(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.pkl").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"list\.pkl"):
        import_lists([tmp_path / "list.pkl"], tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
    assert not (tmp_path / "harmed").exists()


def test_import_lists__reads_dvanet_csv_with_newlines_inside_quotes(tmp_path):
    touch(tmp_path, "a01/v01_s01_e00.avi", "a01/v02_s01_e00.avi", "a12/v01_s01_e00.avi")
    text = 'video,subject,action,viewpoint\nv01_s01_e00.avi,1,1,"v01\n"\nv02_s01_e00.avi,1,1,"v02\n"\n'
    (tmp_path / "NUMA_CV_train.csv").write_text(text)
    (tmp_path / "NUMA_CV_test.csv").write_text('video,subject,action,viewpoint\nv01_s01_e00.avi,1,12,"v01\n"\n')
    made = import_lists([tmp_path / "NUMA_CV_train.csv", tmp_path / "NUMA_CV_test.csv"], tmp_path)
    assert (made.rows, made.groups, made.splits, made.missing) == (3, 2, {"train": 2, "test": 1}, ())
    catalog = scan_source("manifest", tmp_path)
    assert {clip.path for clip in catalog.clips if clip.split == "test"} == {"a12/v01_s01_e00.avi"}


@pytest.mark.parametrize("separator", [",", " ", "\t"])
def test_import_lists__reads_videomamba_lines(tmp_path, separator):
    touch(tmp_path, "run/x y.mp4", "walk/z.mp4", "v1/z.mp4")
    (tmp_path / "val.csv").write_text(f"/else/run/x y.mp4{separator}0\nwalk/z.mp4{separator}3\n\n")
    made = import_lists([tmp_path / "val.csv"], tmp_path)
    assert (made.rows, made.groups, made.splits, made.alone) == (2, 2, {"test": 2}, 2)
    catalog = scan_source("manifest", tmp_path)
    assert {(clip.path, clip.raw_label) for clip in catalog.clips} == {("run/x y.mp4", "0"), ("walk/z.mp4", "3")}


@pytest.mark.parametrize(("text", "message"), [
    ("", "names no video"),
    ("justoneword\n", "line 1: 'justoneword' is not a path and one label"),
    ("gone.avi 1\n", "no video under .* for 1 entry; the first is gone.avi"),
])
def test_import_lists__refuses_an_unknown_form(tmp_path, text, message):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        import_lists([tmp_path / "list.txt"], tmp_path)


def test_import_lists__manifest_may_be_in_any_folder(tmp_path):
    (tmp_path / "list.txt").write_text("a.avi 1\n")
    touch(tmp_path / "v", "a.avi")
    (tmp_path / "else").mkdir()
    import_lists([tmp_path / "list.txt"], tmp_path / "v", tmp_path / "m.csv")
    assert scan_source("manifest", tmp_path / "m.csv").clips[0].path == "v/a.avi"
    import_lists([tmp_path / "list.txt"], tmp_path / "v", tmp_path / "else/m.csv")
    catalog = scan_source("manifest", tmp_path / "else/m.csv")
    assert catalog.root / catalog.clips[0].path == tmp_path / "v/a.avi"
    with pytest.raises(DataError, match=r"cannot write .*--out FILE"):
        import_lists([tmp_path / "list.txt"], tmp_path / "v", tmp_path / "none/m.csv")
    assert sorted(path.name for path in (tmp_path / "v").iterdir()) == ["a.avi"]


@pytest.mark.parametrize(("text", "found"), [
    ("test.mp4 0\nrun.mp4 1\n", {("test.mp4", "0"), ("run.mp4", "1")}),
    ("test.avi,0\ntest.mp4,1\n", {("test.avi", "0"), ("test.mp4", "1")}),
    ("walk, fast/001.mp4 0\nrun.mp4 1\n", {("walk, fast/001.mp4", "0"), ("run.mp4", "1")}),
    ("walk, fast/001.mp4,0\nrun.mp4,1\n", {("walk, fast/001.mp4", "0"), ("run.mp4", "1")}),
    ('"walk, fast/001.mp4",0\n', {("walk, fast/001.mp4", "0")}),
    ("walk, fast\\001.mp4;0\n", {("walk, fast/001.mp4", "0")}),
    ("2.webm 1\nclip.MTS 0\n", {("2.webm", "1"), ("clip.MTS", "0")}),
])
def test_import_lists__finds_names_that_contain_separators(tmp_path, text, found):
    touch(tmp_path, "test.mp4", "test.avi", "run.mp4", "walk, fast/001.mp4", "2.webm", "clip.MTS")
    (tmp_path / "a_train.txt").write_text(text)
    made = import_lists([tmp_path / "a_train.txt"], tmp_path)
    assert made.missing == ()
    assert {(clip.path, clip.raw_label) for clip in scan_source("manifest", tmp_path).clips} == found


@pytest.mark.parametrize("text", ["0 sit down\n1 wave\n", "sit down\nwave\n", "1,wave\n0,sit down\n"])
def test_import_lists__label_map_gives_names(tmp_path, text):
    touch(tmp_path, "a.avi", "b.avi")
    (tmp_path / "train.txt").write_text("a.avi 0\nb.avi 1\n")
    (tmp_path / "labels.txt").write_text(text)
    import_lists([tmp_path / "train.txt"], tmp_path, labels=tmp_path / "labels.txt")
    assert scan_source("manifest", tmp_path).class_names == ("sit down", "wave")
    (tmp_path / "labels.txt").write_text("sit down\n")
    with pytest.raises(DataError, match=r"labels.txt has no name for label 1 of b.avi"):
        import_lists([tmp_path / "train.txt"], tmp_path, tmp_path / "two.csv", labels=tmp_path / "labels.txt")


def manifest(folder, text, name="list.csv", **options):
    """Import a list and return the rows of its manifest as (path, label, and the other columns that are not empty)."""
    (folder / name).write_text(text)
    made = import_lists([folder / name], folder, folder / "out.csv", **options)
    with open(made.manifest, newline="") as file:
        rows = list(csv.DictReader(file))
    scan_source("manifest", folder / "out.csv")
    return [{key: text for key, text in row.items() if text and key not in ("group", "view")} for row in rows], made


@pytest.mark.parametrize(("text", "found"), [
    ("path,label,start,end,split\na.mp4,groom,2,5,train\nb.mp4,rear,8,9,val\n", [
        {"path": "a.mp4", "label": "groom", "start": "2", "end": "5", "split": "train"},
        {"path": "b.mp4", "label": "rear", "start": "8", "end": "9", "split": "test"},
    ]),
    ("Time_End;Class;time_start;VIDEO\n5;groom;0:02;a.mp4\n9;rear;8;a.mp4\n", [
        {"path": "a.mp4", "label": "groom", "start": "0:02", "end": "5"},
        {"path": "a.mp4", "label": "rear", "start": "8", "end": "9"},
    ]),
    ("behavior\tfile\ngroom\ta\n", [{"path": "a.mp4", "label": "groom"}]),
    ("label,youtube_id,time_start,time_end,split\ngroom,xyz,3,13,train\n", [
        {"path": "xyz_000003_000013.mp4", "label": "groom", "split": "train"},
    ]),
    ("path,class,last,first\na.mp4,groom,9,3\n", [{"path": "a.mp4", "label": "groom", "first": "3", "last": "9"}]),
])
def test_import_lists__a_header_is_a_header_in_any_order(tmp_path, text, found):
    touch(tmp_path, "a.mp4", "b.mp4", "xyz_000003_000013.mp4")
    rows, made = manifest(tmp_path, text)
    assert rows == found
    assert made.groups == len(found)


@pytest.mark.parametrize(("text", "message"), [
    ("a.mp4,3,13,groom\nb.mp4,5,15,rear\n", "line 1: 'a.mp4,3,13,groom' is not a path and one label"),
    ("a.mp4 0 2\nb.mp4 1\n", "line 1: .* has 0 between path and label, but the video has 20 frames|line 2: .*as many cells"),
    ("a.mp4 0\nb.mp4 1 2\n", "line 2: 'b.mp4 1 2' has not as many cells as the first line"),
    ("a.mp4 3 1\nb.mp4 2 4\n", "line 1: 'a.mp4 3 1' has 3 between path and label, but the video has 20 frames"),
    ("a.mp4 sit down\n", "line 1: .*is not a path and one label"),
    ("a.mp4,0,1,2\n", "line 1: .*is not a path and one label"),
    ("a.mp4 0,2\n", "line 1: .*is not a path and one label"),
    ('path,label\na.mp4,"0, 2"\n', "line 2: '0, 2' is several labels"),
    ("empty.mp4 2 3\n", "line 1: .* a number that is not known to be that of the frames"),
    ("a.mp4,\u200b\n", "line 1: .*is not a path and one label"),
    ("a b.mp4\nb a.mp4\n", "line 1: 'a b.mp4' is not a path and one label"),
    ("path,species\na.mp4,mouse\n", "line 1: column 'label' is missing"),
    ("name,label\na.mp4,groom\n", "line 1: column 'path' is missing"),
    ("path,label,class\na.mp4,groom,3\n", "line 1: the columns 'class' and 'label' both mean label"),
    ("path,label,start_frame\na.mp4,groom,3\n", "column 'start_frame' may be a part of the video"),
    ("path,label,start,duration\na.mp4,groom,3,4\n", "column 'duration' may be a part of the video"),
    ("path,label,group,view\na.mp4,groom,g,1\nb.mp4,rear,g,2\n", "line 3: group 'g' has label 'rear' here and 'groom' in .*line 2"),
    ("path,label,offset\na.mp4,groom,soon\n", "line 2: offset .'soon'. must be a number"),
    ("path,label,start,end\na.mp4,groom,5,2\n", r"line 2: end \(2\) must be after start \(5\)"),
    ("path,label,start,end\na.mp4,groom,soon,2\n", r"line 2: start .'soon'. must be seconds"),
    ("path label\na.mp4 groom\n", "line 1: the header has blanks between 'path' and 'label': use commas"),
    ('[{"data":{"video":"a.mp4"}}]', "is JSON, not a list of clips: .*--recordings"),
    ("<annotations></annotations>", "is XML, not a list of clips"),
    ("WEBVTT\n\n00:01.000 --> 00:02.000\nwave\n", "is WebVTT, not a list of clips"),
    ("PK\x03\x04", "is an Excel or OpenDocument file"),
    ("a.mp4 0\nb.mp4 1\na.mp4 1\n", "line 3: a.mp4 is in .*line 1 already, with label '0' there and '1' here"),
])
def test_import_lists__refuses_what_it_cannot_place(tmp_path, make_video, text, message):
    touch(tmp_path, "empty.mp4")
    for name in ("a.mp4", "b.mp4"):
        make_video(tmp_path / name, 20)
    with pytest.raises(DataError, match=message):
        manifest(tmp_path, text)
    assert not (tmp_path / "out.csv").exists()


def test_import_lists__a_number_between_path_and_label_is_that_of_the_frames(tmp_path, make_video):
    make_video(tmp_path / "a.mp4", 20)
    touch(tmp_path, *(f"folder/img_{k:03d}.jpg" for k in range(1, 13)))
    rows, made = manifest(tmp_path, "x/a.mp4 20 3\nx/folder 12 1\nx/gone 9 1\n")
    assert rows == [{"path": "a.mp4", "label": "3"}, {"path": "folder", "label": "1"}]
    assert made.missing == (f"x/gone ({tmp_path / 'list.csv'}, line 3)",)


@pytest.mark.parametrize(("name", "split"), [
    ("latest_values.txt", ""), ("constraint.txt", ""),
    ("trainlist01.txt", "train"), ("my-Train_1.txt", "train"), ("val.csv", "test"),
])
def test_import_lists__the_split_is_a_whole_word_of_the_file_name(tmp_path, name, split):
    touch(tmp_path, "a.mp4")
    assert manifest(tmp_path, "a.mp4 0\n", name)[0][0].get("split", "") == split


def test_import_lists__names_columns_without_use_rows_without_video_and_repeats(tmp_path):
    touch(tmp_path, "a.mp4", "cafe\u0301.mp4")
    text = "path,label,weather,\na.mp4,x,fine,0\ngone.mp4,x,fine,1\na.mp4,x,fine,2\ncaf\u00e9.mp4,y,rain,3\n"
    rows, made = manifest(tmp_path, text)
    assert [row["path"] for row in rows] == ["a.mp4", "cafe\u0301.mp4"]
    assert len(made.missing) == 1
    assert "gone.mp4 (" in made.missing[0]
    assert "line 3)" in made.missing[0]
    assert any("columns without use: weather, (without a name)" in note for note in made.notes)
    assert any("line 4: the same as" in note for note in made.notes)
