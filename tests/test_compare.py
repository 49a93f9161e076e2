"""What a catalog knows is compared: copies, contradictions, classes of one side, ends behind the file."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from make_cache import SMALL_NETWORK, clip, info, source

from dtsf import api
from dtsf.cache.compare import find_copies, make_pieces, remarks
from dtsf.cache.schema import CatalogDocument, CatalogEntry, ClipRecord
from dtsf.cache.status import Status
from dtsf.errors import ConfigError
from dtsf.pipeline.datasets import scan_source
from dtsf.pipeline.preprocess import align_groups
from dtsf.report.run_page import report_run
from dtsf.training.protocols import Split, parse_protocol
from dtsf.training.splits import check_split, compare_sides

HEADER = "path,label,group,view,subject,split"


def catalog(*clips, **facts):
    """A catalog and its records. The content of a clip is its path; its frames are its path, part and region."""
    records = {}
    for one in clips:
        known = {"duration": 60.0, "decoded_frames": 600, "frames_hash": one.path + one.part} | facts
        records[one.id] = 0, ClipRecord(source=source(one, region=one.region), status=Status.OK, row=0, **known)
    entries = [CatalogEntry(clip=one, key=records[one.id][1].key) for one in clips]
    return CatalogDocument(info=info(), clips=tuple(entries)), records


def copies(a, b, **changes):
    pieces = make_pieces(*catalog(clip("a", path="f", group="1", **a), clip("b", path="f", group="2", **b), **changes))
    same, parts = find_copies([pieces["b"]], [pieces["a"]])
    return [(one.id, other.id) for one, other in same], [(one.id, other.id) for one, other in parts]


@pytest.mark.parametrize(("a", "b", "same"), [
    ({}, {}, True),
    ({}, {"start": 5.0, "end": 9.0}, True),
    ({"start": 1.0, "end": 5.0}, {"start": 3.0, "end": 7.0}, True),
    ({"start": 1.0, "end": 5.0}, {"start": 5.0, "end": 9.0}, False),
    ({"start": 1.0, "end": 5.1}, {"start": 5.0, "end": 9.0}, False),
    ({"end": 5.0}, {"start": 6.0}, False),
    ({"first": 10, "last": 49}, {"start": 1.0, "end": 5.0}, True),
    ({"first": 10, "last": 49}, {"start": 5.0, "end": 9.0}, False),
    ({"region": (0, 0, 0.5, 1)}, {"region": (0.5, 0, 0.5, 1)}, False),
    ({"region": (0, 0, 0.5, 1)}, {"region": (0.3, 0, 0.5, 1)}, True),
    ({"region": (0, 0, 320, 240)}, {"region": (320, 0, 320, 240)}, False),
    ({"region": (0, 0, 0.5, 1)}, {}, True),
    ({"region": (0, 0, 0.5, 1)}, {"region": (320, 0, 320, 240)}, True),
])  # fmt: skip
def test_find_copies__needs_common_seconds_and_a_common_part_of_the_picture(a, b, same):
    assert copies(a, b) == (([("b", "a")], []) if same else ([], [("b", "a")]))
    assert copies(b, a) == (([("b", "a")], []) if same else ([], [("b", "a")]))


def test_find_copies__frames_find_a_recording_in_another_container():
    one, other = clip("a", path="a.mp4", group="1"), clip("b", path="b.mkv", group="2")
    for frames, found in (("same", 1), ("", 0)):
        pieces = make_pieces(*catalog(one, other, frames_hash=frames))
        assert len(find_copies([pieces["b"]], [pieces["a"]])[0]) == found


def test_find_copies__agrees_with_the_comparison_of_each_pair():
    """Random parts of two files, with regions, against the plain rule."""
    rng = np.random.default_rng(0)
    regions = [None, (0, 0, 0.5, 1), (0.5, 0, 0.5, 1)]
    clips = [
        clip(f"{k}", path="fg"[k % 2], group=f"{k % 7}", start=start, end=start + rng.uniform(1, 4), region=regions[k % 3])
        for k, start in enumerate(rng.uniform(0, 60, 60).tolist())
    ]
    pieces = make_pieces(*catalog(*clips))

    def alike(a, b):
        inside = min(a.end, b.end) - max(a.start, b.start) > 0.2
        picture = a.region is None or b.region is None or a.region == b.region
        return a.path == b.path and inside and picture and a.group != b.group

    found, _ = find_copies([*pieces.values()], pieces.values(), other_group=True)
    assert {one.id for one, _ in found} == {a.id for a in clips if any(alike(a, b) for b in clips)}
    assert all(alike(one, other) for one, other in found)


@pytest.mark.parametrize(("clips", "said"), [
    ([{"path": "f", "line": 2}, {"path": "e", "label": 1}, {"path": "f", "group": "h", "line": 4}],
     "2 clips show a recording that is also in another group: f (line 4) = f (line 2)"),
    ([{"path": "f", "group": "g"}, {"path": "f", "group": "g", "view": 2}, {"label": 1}], "one recording: group g, 1: f = 2: f"),
    ([{"group": "g", "subject": "ann"}, {"group": "g", "view": 2, "subject": "ben", "line": 3}, {"label": 1}],
     "groups with different subjects: group g: ann in 0.avi, ben in 1.avi (line 3)"),
    ([{}, {}], "all clips (2) are of one class (x): dtsf train needs two"),
    ([{"split": "train"}, {"split": "test", "label": 1}], "column split: classes without a training clip cannot be learned: y"),
    ([{"end": 90.0, "line": 7}, {"label": 1}], "long after its file, of which the rest is used: 0.avi (line 7) ends at 90 s"),
    ([{"first": 0, "last": 999}, {"label": 1}], "0.avi ends with frame 999, its file with frame 599"),
    ([{"subject": "Ann"}, {"subject": "ann", "label": 1}], "subjects that differ only in how they are written: 'Ann' and 'ann'"),
    ([{"split": "Test"}, {"split": "test", "label": 1}], "splits that differ only in how they are written"),
])  # fmt: skip
def test_remarks__say_what_makes_a_result_doubtful(clips, said):
    made = [clip(f"{k}", **fields) for k, fields in enumerate(clips)]
    (remark,) = remarks(*catalog(*made))
    assert said in remark


def test_remarks__are_silent_without_a_doubt():
    parts = [{"path": "f", "start": 0.0, "end": 30.0}, {"path": "f", "start": 30.0, "end": 60.3, "label": 1}]
    pair = [{"group": "g", "subject": "a+b"}, {"group": "g", "view": 2, "subject": "b+a"}]
    made = [clip(f"{k}", **fields) for k, fields in enumerate([*parts, *pair])]
    assert remarks(*catalog(*made)) == ()
    assert remarks(None, {}) == ()


def sides(train, test, held_out=()):
    data = SimpleNamespace(info=info(), pieces=make_pieces(*catalog(*train, *test, *held_out)))
    return data, Split(train=train, test=test, held_out=held_out, left_out={}, task="t")


def test_check_split__refuses_what_means_nothing():
    x, y = clip("x", line=2), clip("y", label=1, line=3)
    copy, part = clip("c", path="x.avi", line=4), clip("p", path="x.avi", start=70.0, line=5)
    rule = parse_protocol("split", "manifest")

    def check(train, test, held_out=(), rule=rule, **options):
        data, split = sides(tuple(train), tuple(test), tuple(held_out))
        return check_split(data, split, ("x", "y"), rule, **options).notes

    with pytest.raises(ConfigError, match=r"all training clips \(1\) are of one class \(x\)"):
        check([x], [y])
    leak = "1 of 2 test clips show recordings of the training: x.avi .line 4. = x.avi .line 2.*--allow-leak"
    with pytest.raises(ConfigError, match=leak):
        check([x, y], [copy, clip("z", label=1)])
    assert check([x, y], [copy, clip("z", label=1)], allow_leak=True)[0].startswith("1 of 2 test clips show")
    assert check([x, y], [x, y], rule=parse_protocol("all", "manifest")) == ()
    (note,) = check([x.model_copy(update={"end": 9.0}), y], [part, clip("z", label=1)])
    assert note.startswith("1 of 2 test clips are other seconds, or other parts of the picture, of files of the training")
    (note,) = check([x, y], [clip("z"), clip("w", label=1)], [copy])
    assert note.startswith("1 of 1 held-out clips show recordings of the training")
    shared = [clip("s", group="gx", view=2), clip("z", label=1)]
    with pytest.raises(ConfigError, match="1 group is in the training and in the test: gx"):
        check([x, y], shared, rule=parse_protocol("cross-subject:1", "manifest"))
    assert check([x, y], shared) == ()


def test_compare_sides__names_classes_that_nobody_could_learn():
    data, split = sides((clip("x"), clip("w")), (clip("y", label=1), clip("z")))
    _, notes = compare_sides(data, split.train, data, split.test, ("x", "y"), parse_protocol("split", "manifest"))
    assert notes == ("classes without a training clip, which cannot be right: y (1 test clip)",)
    data, split = sides((clip("x"), clip("w", label=1)), (clip("z"),))
    _, notes = compare_sides(data, split.train, data, split.test, ("x", "y"), parse_protocol("split", "manifest"))
    assert notes == ("all test clips are of one class (x): top-1 is only its recall",)


def test_commands__say_and_refuse_shared_recordings(tmp_path, dtsf, make_video):
    for k, name in enumerate("abcd"):
        make_video(tmp_path / f"{name}.avi", 8 + k)
    shutil.copy(tmp_path / "a.avi", tmp_path / "e.avi")
    rows = ["a.avi,x,1,c,ann,train", "b.avi,y,2,c,ann,train", "c.avi,y,3,c,Ann,test", "e.avi,x,4,c,zoe,test"]
    (tmp_path / "m.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    frames = ("--size", 96, "--frames", 4, "--workers", 1)
    words = ("preprocess", "manifest", "--root", "m.csv", "--cache", "c", *frames)
    copied, written = "e.avi (line 5) = a.avi (line 2)", "'Ann' and 'ann'"
    assert copied in dtsf.said(*words, "--dry-run", cwd=tmp_path)
    for said in (dtsf.said(*words, cwd=tmp_path), dtsf.said("cache", "info", "c", cwd=tmp_path)):
        assert copied in said
        assert written in said
    set_ = [word for change in (*SMALL_NETWORK, "model.frames=4", "train.calibrate=0") for word in ("--set", change)]
    train = ("train", "--cache", "c", "--protocol", "split", "--epochs", 1, *set_, "--out", "run")
    assert f"1 of 2 test clips show recordings of the training: {copied}" in dtsf.refusal(*train, cwd=tmp_path)
    assert not (tmp_path / "run").exists()
    assert "1 of 2 test clips show recordings of the training" in dtsf.said(*train, "--allow-leak", cwd=tmp_path)
    stored = json.loads((tmp_path / "run/metrics.json").read_text())
    assert stored["task"].endswith("; 1 of 2 test clips show recordings of the training")
    assert any(written in note for note in stored["notes"])
    assert copied in report_run(tmp_path / "run", cache=tmp_path / "c").read_text()
    # The same recordings under another name of a dataset; and without the dataset of the training.
    run = api.load(tmp_path / "run")
    dtsf.said(*words, "--name", "again", cwd=tmp_path)
    found = run.evaluate(tmp_path / "c", dataset="again", protocol="all")
    assert found.task.endswith("; 3 of 4 test clips show recordings of the training")
    shutil.rmtree(tmp_path / "c/manifest")
    found = run.evaluate(tmp_path / "c", dataset="again", protocol="all")
    assert found.notes[0].startswith("the test is not compared with the training clips: no dataset 'manifest'")


def test_align_groups__says_that_a_clip_ends_behind_its_file(make_video, tmp_path):
    for name in "ab":
        make_video(tmp_path / f"{name}.avi", 30)
    (tmp_path / "m.csv").write_text("path,label,group,view,end\na.avi,x,1,c,100\nb.avi,x,1,d,1.2\n")
    catalog = align_groups(scan_source("manifest", tmp_path / "m.csv"), [], 60.0)
    assert [clip.end for clip in catalog.clips] == [1.0, 1.0]
    (note,) = catalog.notes
    assert note.endswith(": a.avi (line 2) ends at 100 s, its file at 1.0 s")
