"""Lists of other projects become a manifest; a hostile pickle becomes an error."""

import os
import pickle

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
    assert made.missing == (stems[-1],)
    catalog = scan_source("manifest", tmp_path / "v/manifest.csv")
    assert catalog.groups_by_views == {3: 1, 2: 1}
    assert {(c.split, c.subject, c.raw_label) for c in catalog.clips} == {("train", "1", "9"), ("test", "2", "9")}
    with pytest.raises(DataError, match="exists: remove it"):
        import_lists([tmp_path / "ntu.pkl"], tmp_path / "v", split="xsub")


class Hostile:
    def __reduce__(self):
        return os.system, ("touch harmed",)


@pytest.mark.parametrize("content", [
    *map(pickle.dumps, (Hostile(), {"split": Hostile()}, [1])), b"\x80\x04broken", b"\x80",
])
def test_import_lists__refuses_a_pickle_with_code(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.pkl").write_bytes(content)
    with pytest.raises(DataError, match=r"list\.pkl"):
        import_lists([tmp_path / "list.pkl"], tmp_path)
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
    ("justoneword\n", "line 1: 'justoneword' is not a path and a label"),
    ("video,action\nx.avi,1\n", "column 'subject' is missing"),
    ("gone.avi 1\n", "none of the 1 entries has a video"),
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
