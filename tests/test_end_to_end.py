"""From synthetic videos to a prediction on the command line, and wrong input."""

import json

import pytest

from dtsf.pipeline.datasets.synthetic_scene import ACTIONS


def test_preprocess__does_nothing_the_second_time(dtsf, world):
    again = dtsf.said("preprocess", "nucla", "--root", "data", "--workers", 1, cwd=world)
    assert "nothing to do: all 60 clips were done before" in again


def test_evaluate__gives_the_numbers_of_train(dtsf, world):
    trained = json.loads((world / "run/metrics.json").read_text())
    again = dtsf.json("evaluate", "run", cwd=world)
    assert again["top1"] == trained["top1"]
    assert again["confusion"] == trained["confusion"]
    assert again["n_groups"] == 10
    one = dtsf.json("evaluate", "run", "--views", "2", cwd=world)
    assert one["view_weights"] == [0, 1, 0]


def test_predict__returns_class_weights_and_uncertainty(dtsf, world, performance):
    answer = dtsf.json("predict", *performance, "--run", "run", cwd=world)
    assert answer["label"] in {name for name, _, _ in ACTIONS.values()}
    assert abs(sum(answer["view_weights"]) - 1) < 1e-5
    assert 0 < answer["uncertainty"] <= 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("preprocess", "kinetics"), "unknown kind of dataset 'kinetics'; known kinds: nucla, ntu"),
        (("preprocess", "nucla", "--root", "data", "--size", "224", "--grid", "7"), "not divisible by 3"),
        (("preprocess", "nucla", "--root", "data", "--views", "9"), "unknown view '9'"),
        (("train", "--cache", "empty"), "no dataset in the cache empty"),
        (("train", "--protocol", "xsub"), "unknown protocol 'xsub'"),
        (("train", "--set", "model.dept=4"), "did you mean 'model.depth'?"),
        (("train", "--recipe", "magic"), "unknown recipe 'magic'"),
        (("train", "--protocol", "cross-subject:2", "--out", "run"), "is not empty"),
        (("evaluate", "nothing"), "no run folder nothing"),
        (("predict", "gone.avi", "--run", "run"), "gone.avi does not exist"),
        (("cache", "verify", "cache", "--dataset", "x"), "no dataset 'x'"),
        (("cache", "convert", "cache", "cache"), "onto itself"),
        (("cache", "convert", "cache", "new", "--compress", "gzip"), "zarr has no compression 'gzip'"),
        (("preprocess", "nucla", "--root", "data", "--compress", "lzma"), "'lzma' is not one of"),
        (("preprocess", "nucla", "--root", "data", "--crop", "face"), "'face' is not one of 'motion', 'centre'"),
    ],
)
def test_commands__exit_2_with_a_message_on_wrong_input(dtsf, world, words, message):
    assert message in dtsf.refusal(*words, cwd=world)


def test_evaluate__prints_only_the_given_views(dtsf, world):
    shown = dtsf("evaluate", "run", "--views", "2", cwd=world).stderr
    lines = iter(shown[shown.index("mean weight") :].splitlines()[2:])
    # An empty line ends the table.
    assert [line.split()[0] for line in iter(lambda: next(lines).strip(), "")] == ["2"]
