"""From drawn videos to a prediction through the command line, and what it refuses."""

import json

import pytest

from dtsf.pipeline.datasets.synthetic_scene import ACTIONS


def test_second_preprocess_does_nothing_and_says_so(dtsf, world):
    again = dtsf("preprocess", "nucla", "--root", "data", "--workers", 1, cwd=world)
    assert again.returncode == 0
    assert "nothing to do: all 60 clips were done before" in again.stderr


def test_evaluate_gives_the_numbers_of_training(dtsf, world):
    trained = json.loads((world / "run/metrics.json").read_text())
    again = json.loads(dtsf("evaluate", "run", "--json", cwd=world).stdout)
    assert again["top1"] == trained["top1"]
    assert again["confusion"] == trained["confusion"]
    assert again["n_groups"] == 10
    one = json.loads(dtsf("evaluate", "run", "--views", "2", "--json", cwd=world).stdout)
    assert one["view_weights"] == [0, 1, 0]


def test_predict_names_a_class_and_weighs_the_views(dtsf, world):
    videos = sorted((world / "data/multiview_action_videos/a05").glob("*_s02_*"))
    said = json.loads(dtsf("predict", *videos, "--run", "run", "--json", cwd=world).stdout)
    assert said["label"] in {name for name, _, _ in ACTIONS.values()}
    assert abs(sum(said["view_weights"]) - 1) < 1e-5
    assert 0 < said["uncertainty"] <= 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("preprocess", "nucla", "--root", "nowhere"), "nowhere does not exist"),
        (("preprocess", "kinetics"), "unknown data set 'kinetics'"),
        (("preprocess", "nucla", "--root", "data", "--size", "224", "--grid", "7"), "not divisible by 3"),
        (("preprocess", "nucla", "--root", "data", "--frames", "8"), "frames: 16 in the cache, 8 asked for"),
        (("preprocess", "nucla", "--root", "data", "--views", "9"), "unknown view '9'"),
        (("train", "--cache", "empty"), "no cache at empty"),
        (("train", "--protocol", "xsub"), "unknown protocol 'xsub'"),
        (("train", "--set", "model.dept=4"), "did you mean 'model.depth'?"),
        (("train", "--recipe", "magic"), "unknown recipe 'magic'"),
        (("train", "--protocol", "cross-subject:2", "--out", "run"), "is not empty"),
        (("evaluate", "nothing"), "no run folder nothing"),
        (("predict", "gone.avi", "--run", "run"), "gone.avi does not exist"),
        (("cache", "info", "empty"), "no cache at empty"),
    ],
)
def test_wrong_input_exits_2_with_a_message_and_no_traceback(dtsf, world, words, message):
    done = dtsf(*words, cwd=world)
    assert done.returncode == 2, done.stderr
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_tables_show_the_views_that_were_given(dtsf, world):
    shown = dtsf("evaluate", "run", "--views", "2", cwd=world).stderr
    table = shown[shown.index("mean weight") : shown.index("classes")]
    assert [line.split()[0] for line in table.splitlines()[2:] if line.strip()] == ["2"]
