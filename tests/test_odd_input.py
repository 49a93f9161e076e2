"""Odd and broken videos through the command line, as a person meets them."""

import json

import pytest


def test_bad_clips_are_listed_with_their_verdict_and_set_the_exit_code(dtsf, make_video, cut_file, tmp_path):
    folder = tmp_path / "data/multiview_action_videos/a01"
    whole = make_video(folder / "v01_s01_e00.avi", 40)
    make_video(folder / "v02_s01_e00.avi", 1)
    cut_file(whole, folder / "v03_s01_e00.avi", 0.8)
    (folder / "v01_s02_e00.avi").write_bytes(b"this is no video")
    words = ("preprocess", "nucla", "--root", "data", "--workers", 1)
    done = dtsf(*words, "--json", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    answer = json.loads(done.stdout)
    assert answer["verdicts"] == {"ok": 1, "short": 1, "truncated": 1, "unreadable": 1}
    assert "--max-bad" in done.stderr
    shown = dtsf(*words, "--max-bad", "50%", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    text = " ".join(shown.stderr.split())
    assert "2 clips were not used" in text
    assert "v03_s01_e00.avi" in text
    assert "v01_s02_e00.avi" in text


def test_predict_refuses_an_unreadable_video_and_takes_a_one_frame_clip(dtsf, world, make_video, tmp_path):
    (tmp_path / "bad.avi").write_bytes(b"no video")
    refused = dtsf("predict", tmp_path / "bad.avi", "--run", "run", cwd=world)
    assert refused.returncode == 2
    assert "bad.avi" in refused.stderr
    assert "Traceback" not in refused.stderr
    one = make_video(tmp_path / "one.avi", 1)
    said = dtsf("predict", one, "--run", "run", "--json", cwd=world)
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["view_weights"] == [1.0]


def test_preprocess_ntu_views_all_works_as_the_readme_writes_it(dtsf, make_video, tmp_path):
    for camera in (1, 2, 3):
        make_video(tmp_path / f"data/ntu/nturgb+d_rgb/S001C00{camera}P001R001A010_rgb.avi", 24)
    done = dtsf("preprocess", "ntu", "--views", "all", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["clips"], answer["groups"]) == (3, 1)
    assert answer["clips_per_s"] > 0


def test_data_root_falls_back_to_the_environment(dtsf, make_video, tmp_path):
    make_video(tmp_path / "elsewhere/ntu/S001C001P001R001A010.avi", 24)
    done = dtsf("preprocess", "ntu", "--workers", 1, "--json", cwd=tmp_path, DTSF_DATA=str(tmp_path / "elsewhere"))
    assert done.returncode == 0, done.stderr
    lost = dtsf("preprocess", "ntu", cwd=tmp_path / "elsewhere")
    assert lost.returncode == 2
    assert "--root" in lost.stderr


@pytest.mark.parametrize("words", [("preprocess", "nucla", "--root", "empty"), ("train", "--cache", "empty")])
def test_empty_folder_is_refused_and_left_empty(dtsf, tmp_path, words):
    (tmp_path / "empty").mkdir()
    done = dtsf(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert "empty" in done.stderr
    assert list((tmp_path / "empty").iterdir()) == []
