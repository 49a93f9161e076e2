"""From videos, also odd and broken ones, to a prediction on the command line; and wrong input."""

import json

import pytest

from dtsf.pipeline.datasets.synthetic_scene import ACTIONS


def test_preprocess__does_nothing_the_second_time(dtsf, world):
    again = dtsf.said("preprocess", "nucla", "--root", "data", "--workers", 1, cwd=world)
    assert "nothing to do: all 60 clips were done before" in again


def test_evaluate__gives_the_numbers_of_train_and_of_given_views(dtsf, world):
    trained = json.loads((world / "run/metrics.json").read_text())
    again = dtsf.json("evaluate", "run", cwd=world)
    assert again["top1"] == trained["top1"]
    assert again["confusion"] == trained["confusion"]
    assert again["n_groups"] == 10
    assert dtsf.json("evaluate", "run", "--views", "2", cwd=world)["view_weights"] == [0, 1, 0]
    # The table has only the given views, and ends with an empty line.
    shown = dtsf("evaluate", "run", "--views", "2", cwd=world).stderr
    lines = iter(shown[shown.index("mean weight") :].splitlines()[2:])
    assert [line.split()[0] for line in iter(lambda: next(lines).strip(), "")] == ["2"]


def test_predict__takes_three_views_or_one_frame_but_no_broken_video(dtsf, world, performance, make_video, tmp_path):
    answer = dtsf.json("predict", *performance, "--run", "run", cwd=world)
    assert answer["label"] in {name for name, _, _ in ACTIONS.values()}
    assert abs(sum(answer["view_weights"]) - 1) < 1e-5
    assert 0 < answer["uncertainty"] <= 1
    (tmp_path / "bad.avi").write_bytes(b"no video")
    assert "bad.avi" in dtsf.refusal("predict", tmp_path / "bad.avi", "--run", "run", cwd=world)
    one = make_video(tmp_path / "one.avi", 1)
    assert dtsf.json("predict", one, "--run", "run", cwd=world)["view_weights"] == [1.0]


def test_preprocess__lists_bad_clips_and_sets_the_exit_code(dtsf, make_video, cut_file, tmp_path):
    folder = tmp_path / "data/multiview_action_videos/a01"
    whole = make_video(folder / "v01_s01_e00.avi", 40)
    make_video(folder / "v02_s01_e00.avi", 1)
    cut_file(whole, folder / "v03_s01_e00.avi", 0.8)
    (folder / "v01_s02_e00.avi").write_bytes(b"this is no video")
    words = ("preprocess", "nucla", "--root", "data", "--workers", 1)
    done = dtsf(*words, "--json", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["verdicts"] == {"ok": 1, "short": 1, "truncated": 1, "unreadable": 1}
    assert "--max-bad" in done.stderr
    text = dtsf.said(*words, "--max-bad", "50%", cwd=tmp_path)
    assert "v03_s01_e00.avi" in text
    assert "v01_s02_e00.avi" in text
    assert "next: dtsf train --dataset nucla" in text
    (tmp_path / "own.csv").write_text("path,label,group,view\ndata/multiview_action_videos/a01/v01_s02_e00.avi,wave,a,door\n")
    words = ("preprocess", "manifest", "--root", "own.csv", "--workers", 1)
    text = dtsf(*words, cwd=tmp_path).stderr
    assert "1 of 1 clips cannot be used" in text
    assert "next:" not in text
    assert "manifest has no usable clip (1 unreadable): run" in dtsf.refusal("train", "--dataset", "manifest", cwd=tmp_path)


def test_preprocess__ntu_is_found_in_data_or_in_the_folder_of_the_environment(dtsf, make_video, tmp_path):
    for camera in (1, 2, 3):
        make_video(tmp_path / f"data/ntu/nturgb+d_rgb/S001C00{camera}P001R001A010_rgb.avi", 24)
    answer = dtsf.json("preprocess", "ntu", "--views", "all", cwd=tmp_path)
    assert (answer["clips"], answer["groups"]) == (3, 1)
    assert answer["clips_per_s"] > 0
    make_video(tmp_path / "else/where/ntu/S001C001P001R001A010.avi", 24)
    dtsf.said("preprocess", "ntu", "--workers", 1, cwd=tmp_path / "else", DTSF_DATA=tmp_path / "else/where")
    assert "--root" in dtsf.refusal("preprocess", "ntu", cwd=tmp_path / "else/where")


@pytest.mark.parametrize(
    "words", [("preprocess", "nucla", "--root", "empty"), ("train", "--cache", "empty"), ("cache", "verify", "empty")]
)
def test_commands__refuse_an_empty_folder_and_leave_it_empty(dtsf, tmp_path, words):
    (tmp_path / "empty").mkdir()
    assert "empty" in dtsf.refusal(*words, cwd=tmp_path)
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize(("words", "message"), [
    (("preprocess", "kinetics"), "unknown kind of dataset 'kinetics'; known kinds: nucla, ntu"),
    (("preprocess", "nucla", "--root", "data", "--size", "224", "--grid", "7"), "not divisible by 3"),
    (("preprocess", "nucla", "--root", "data", "--views", "9"), "unknown view '9'"),
    (("train", "--protocol", "xsub"), "unknown protocol 'xsub'"),
    (("train", "--set", "model.dept=4"), "did you mean 'model.depth'?"),
    (("train", "--recipe", "magic"), "unknown recipe 'magic'"),
    (("train", "--protocol", "cross-subject:2", "--out", "run"), "is not empty"),
    (("evaluate", "nothing"), "no run folder nothing"),
    (("predict", "gone.avi", "--run", "run"), "gone.avi does not exist"),
    (("cache", "verify", "cache", "--dataset", "x"), "no dataset 'x'"),
    (("preprocess", "nucla", "--root", "data", "--compress", "lzma"), "'lzma' is not one of"),
    (("preprocess", "nucla", "--root", "data", "--crop", "face"), "'face' is not one of 'motion', 'centre'"),
])
def test_commands__exit_2_with_a_message_on_wrong_input(dtsf, world, words, message):
    assert message in dtsf.refusal(*words, cwd=world)
