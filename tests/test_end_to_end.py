"""From drawn videos to a prediction through the command line, and what it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dtsf.pipeline.datasets.synthetic import synthesize_nucla
from dtsf.pipeline.datasets.synthetic_scene import ACTIONS, Style, trajectory


def dtsf(*words, cwd):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [str(Path(sys.executable).with_name("dtsf")), *map(str, words)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A small data set, its cache, and a run of two epochs."""
    root = tmp_path_factory.mktemp("world")
    synthesize_nucla(root / "data", subjects=2, episodes=1)
    made = dtsf("preprocess", "nucla", "--root", "data", "--workers", 1, "--json", cwd=root)
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["verdicts"] == {"ok": 60}
    trained = dtsf("train", "--protocol", "cross-subject:2", "--epochs", 2, "--out", "run", "--json", cwd=root)
    assert trained.returncode == 0, trained.stderr
    assert json.loads(trained.stdout)["epochs"] == 2
    return root


def test_second_preprocess_does_nothing_and_says_so(world):
    again = dtsf("preprocess", "nucla", "--root", "data", "--workers", 1, cwd=world)
    assert again.returncode == 0
    assert "nothing to do: all 60 clips were done before" in again.stderr


def test_evaluate_gives_the_numbers_of_training(world):
    trained = json.loads((world / "run/metrics.json").read_text())
    again = json.loads(dtsf("evaluate", "run", "--json", cwd=world).stdout)
    assert again["top1"] == trained["top1"]
    assert again["confusion"] == trained["confusion"]
    assert again["n_groups"] == 10
    one = json.loads(dtsf("evaluate", "run", "--views", "2", "--json", cwd=world).stdout)
    assert one["view_weights"] == [0, 1, 0]


def test_predict_names_a_class_and_weighs_the_views(world):
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
def test_wrong_input_exits_2_with_a_message_and_no_traceback(world, words, message):
    done = dtsf(*words, cwd=world)
    assert done.returncode == 2, done.stderr
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_partners_of_a_pair_are_each_others_reversal():
    style = Style.draw(np.random.default_rng(0), np.random.default_rng(1))
    for forward, backward in ((1, 2), (3, 4), (5, 6), (8, 9), (11, 12)):
        if ACTIONS[forward][1] != ACTIONS[backward][1]:
            pytest.fail("partners must share a motion")
        np.testing.assert_array_equal(trajectory(forward, style, 50), trajectory(backward, style, 50)[::-1])
