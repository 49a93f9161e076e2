"""Odd and broken videos on the command line."""

import json

import pytest


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


def test_predict__refuses_a_broken_video_and_takes_one_frame(dtsf, world, make_video, tmp_path):
    (tmp_path / "bad.avi").write_bytes(b"no video")
    assert "bad.avi" in dtsf.refusal("predict", tmp_path / "bad.avi", "--run", "run", cwd=world)
    one = make_video(tmp_path / "one.avi", 1)
    assert dtsf.json("predict", one, "--run", "run", cwd=world)["view_weights"] == [1.0]


def test_preprocess__ntu_works_as_in_the_readme(dtsf, make_video, tmp_path):
    for camera in (1, 2, 3):
        make_video(tmp_path / f"data/ntu/nturgb+d_rgb/S001C00{camera}P001R001A010_rgb.avi", 24)
    answer = dtsf.json("preprocess", "ntu", "--views", "all", cwd=tmp_path)
    assert (answer["clips"], answer["groups"]) == (3, 1)
    assert answer["clips_per_s"] > 0


def test_preprocess__root_falls_back_to_the_environment(dtsf, make_video, tmp_path):
    make_video(tmp_path / "elsewhere/ntu/S001C001P001R001A010.avi", 24)
    dtsf.said("preprocess", "ntu", "--workers", 1, cwd=tmp_path, DTSF_DATA=tmp_path / "elsewhere")
    assert "--root" in dtsf.refusal("preprocess", "ntu", cwd=tmp_path / "elsewhere")


@pytest.mark.parametrize(
    "words", [("preprocess", "nucla", "--root", "empty"), ("train", "--cache", "empty"), ("cache", "verify", "empty")]
)
def test_commands__refuse_an_empty_folder_and_leave_it_empty(dtsf, tmp_path, words):
    (tmp_path / "empty").mkdir()
    assert "empty" in dtsf.refusal(*words, cwd=tmp_path)
    assert list((tmp_path / "empty").iterdir()) == []
