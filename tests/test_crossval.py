"""``dtsf crossval``: folds of tiny networks, killed and continued, pooled, compared, drawn as curves, and refusals."""

import csv
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import exit_code, forked
from make_cache import SMALL_NETWORK, draw
from sklearn.metrics import log_loss

import dtsf as package
from dtsf.errors import CheckpointError, ConfigError
from dtsf.experiments.crossval_files import advice
from dtsf.training.answers import read_answers

TINY = [*SMALL_NETWORK, "train.epochs=1", "train.calibrate=0", "train.batch_size=12"]
COMMON = {"dataset": "drawn", "recipe": "default", "overrides": TINY, "device": "cpu", "workers": 1}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    root = tmp_path_factory.mktemp("crossval")
    draw(root, "drawn", subjects=(1, 2, 3, 4, 5))
    draw(root, "other", subjects=(1, 2, 3, 4, 5), seed=1)
    draw(root, "single", subjects=(1,), takes=4)
    return root


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory):
    """An undisturbed result with two seeds, and its folder."""
    out = tmp_path_factory.mktemp("whole")
    return package.crossval(cache, out=out, seeds=(0, 1), tests=["other"], **COMMON), out


def test_crossval__pools_the_answers_of_all_folds(cache, whole):
    result, out = whole
    assert (result.done, result.total, result.by) == (10, 10, "one person left out")
    assert [(f.left_out, f.protocol, f.train_groups, f.test_groups) for f in result.folds if f.seed == 0] == [
        (str(k), f"cross-subject:{k}", 24, 6) for k in (1, 2, 3, 4, 5)
    ]
    # Each fold is an ordinary run, which answers the same again.
    rows = list(csv.DictReader((out / "answers.csv").read_text().splitlines()))
    right = {seed: [] for seed in ("0", "1")}
    for row in rows:
        right[row["seed"]].append(row["label"] == row["answer"])
    assert result.tests["drawn"].top1 == pytest.approx((np.mean(right["0"]) + np.mean(right["1"])) / 2)
    assert result.tests["drawn"].spread["top1"] == pytest.approx(abs(np.mean(right["0"]) - np.mean(right["1"])))
    assert len(rows) == len({(row["seed"], row["group"]) for row in rows}) == 60
    p = np.array([[float(row[f"p class {k}"]) for k in range(3)] for row in rows if row["seed"] == "0"])
    labels = [int(row["label"][-1]) for row in rows if row["seed"] == "0"]
    wanted = [log_loss(labels, p / p.sum(1, keepdims=True), labels=range(3))]
    fold = next(f for f in result.folds if (f.left_out, f.seed) == ("3", 1))
    evaluated = package.load(out / fold.run).evaluate(cache).metrics
    assert (evaluated.top1, evaluated.ece) == pytest.approx((fold.top1, fold.ece), abs=1e-6)
    own = read_answers(out / "answers/drawn-seed0.safetensors")
    assert (-own.complete().log_p_RK.gather(1, own.complete().label_R[:, None])).mean().item() == pytest.approx(wanted[0], rel=1e-4)
    third = package.load(out / fold.run).evaluate(cache, views="3").metrics
    alone = read_answers(out / "answers/drawn-seed1.safetensors").alone(3)
    of_3 = alone.rows(torch.tensor([alone.subjects[g] == "3" for g in alone.group_R.tolist()]))
    assert of_3.top1() == pytest.approx(third.top1)
    assert {name: n["groups"] for name, n in result.views.items()} == {"1": 30, "2": 30, "3": 30}
    assert {name: n["groups"] for name, n in result.people.items()} == dict.fromkeys("12345", 6)
    mean = np.mean([f.top1 for f in result.folds if f.left_out == "3"])
    assert result.people["3"]["top1"] == pytest.approx(mean)
    # The other dataset leaves out the same people.
    assert result.tests["other"].groups == 30
    page = (out / "report.html").read_text()
    assert "the intervals rest on 5 people".capitalize() in page
    assert "Not finished" not in page
    assert json.loads((out / "crossval.json").read_text())["tests"]["drawn"]["top1"] == result.tests["drawn"].top1


def test_crossval__continues_after_a_kill_with_the_same_numbers(cache, whole, tmp_path):
    options = COMMON | {"out": tmp_path}

    def die(done, _total, _note):
        if done == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    assert exit_code(forked(lambda: package.crossval(cache, on_epoch=die, **options))) == -signal.SIGKILL
    document = json.loads((tmp_path / "crossval.json").read_text())
    assert (document["done"], document["seeds"]) == (3, [])
    assert "Not finished: 3 of 5 trainings" in (tmp_path / "report.html").read_text()
    again = package.crossval(cache, **options)
    assert (again.reused, again.done, again.seeds) == (3, 5, (0,))
    answers, wanted = ((folder / "answers.csv").read_text().splitlines() for folder in (tmp_path, whole[1]))
    assert answers == wanted[: len(answers)]
    assert len(answers) == 31


def test_crossval__compares_with_another_recipe_in_pairs(cache, whole, tmp_path, dtsf):
    options = COMMON | {"overrides": [*TINY, "train.lr=0.002"], "out": tmp_path / "out"}
    result = package.crossval(cache, compare=[whole[1]], seeds=(1,), **options)
    found = result.compared[str(whole[1])]["drawn"]
    before = np.mean([f.top1 for f in whole[0].folds if f.seed == 1])
    assert found.scores["top1"].difference == pytest.approx(result.tests["drawn"].top1 - before)
    assert (found.won - found.lost) / 30 == pytest.approx(found.scores["top1"].difference)
    assert 0 <= found.scores["top1"].better <= 1
    words = [word for change in options["overrides"] for word in ("--set", change)]
    words += ["--cache", cache, "--dataset", "drawn", "--recipe", "default", "--device", "cpu", "--seeds", 1]
    words += ["--out", tmp_path / "out"]
    said = dtsf.json("crossval", *words, "--compare", whole[1], cwd=tmp_path)
    assert {"top1", "log_loss", "brier", "ece", "people", "views", "folds"} <= said.keys()
    page = (Path(__file__).resolve().parents[1] / "docs/output.md").read_text()
    assert not [key for key in (*said, *said["folds"][0]) if f"`{key}`" not in page]
    assert (said["top1"], said["reused"]) == (result.tests["drawn"].top1, 5)
    shown = dtsf.said("crossval", *words, "--compare", whole[1], cwd=tmp_path)
    for text in ("95 % interval", f"minus {whole[1]}", "better with probability", "camera alone", "the intervals rest on 5 people"):
        assert text in shown
    with pytest.raises(ConfigError, match=rf"--out {whole[1]} has the result of other settings .*: choose another, and --compare"):
        package.crossval(cache, **options | {"out": whole[1]})
    for changed, message in (
        ({"folds": "groups"}, "has other clips or folds"),
        ({"seeds": (5,), "out": tmp_path / "more"}, "no common seed"),
        ({"compare": [tmp_path]}, r"no crossval.json in it"),
        ({"compare": [tmp_path / "out"]}, "is --out itself"),
    ):
        with pytest.raises(ConfigError, match=message):
            package.crossval(cache, **options | {"compare": [whole[1]], "overrides": TINY} | changed)
    (tmp_path / "out/crossval.json").write_text("{}")
    with pytest.raises(CheckpointError, match="remove .*crossval.json and run dtsf crossval again"):
        package.crossval(cache, seeds=(1,), **options)


@pytest.mark.slow
def test_crossval__draws_curves_of_people_takes_and_cameras(cache, whole, tmp_path):
    shutil.copytree(whole[1], tmp_path, dirs_exist_ok=True)
    options = COMMON | {"out": tmp_path, "people": (2,), "takes": "1", "cameras": (1,)}
    result = package.crossval(cache, **options)
    assert (result.reused, result.total) == (5, 20)
    assert [(p.kind, p.number) for p in result.curve] == [
        *(("people", 2), ("people", 4)), *(("takes", 1), ("takes", 2)), *(("cameras", 1), ("cameras", 3))
    ]  # fmt: skip
    assert [p.step is None for p in result.curve] == [True, False] * 3
    assert all(p.scores.groups == 30 for p in result.curve)
    assert all(p.scores == result.tests["drawn"] for p in result.curve[1::2])
    trained = [json.loads(file.read_text()) for file in tmp_path.glob("trainings/*/result.json")]
    assert sorted(one["train_groups"] for one in trained) == [12] * 10 + [24] * 15
    people = sorted(one["settings"]["train"]["only_subjects"] for one in trained)
    assert [some for some in people if len(some) == 2] == [["1", "2"], ["2", "3"], ["3", "4"], ["4", "5"], ["5", "1"]]
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 3
    for line in advice(result.curve):
        assert line in page.replace("&#43;", "+")
    assert "From 2 to 4 people: top-1" in page


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folds", "by", "tests"),
    [
        ("2", "2 parts of the people", [18, 12]),
        ("views", "one view left out", [30] * 3),
        ("groups:2", "2 parts of the performances", [15] * 2),
    ],
)
def test_crossval__divides_by_people_views_or_groups(cache, tmp_path, folds, by, tests):
    result = package.crossval(cache, folds=folds, out=tmp_path, **COMMON | {"recipe": None})
    assert (result.by, [fold.test_groups for fold in result.folds]) == (by, tests)
    assert result.tests["drawn"].groups == sum(tests)
    assert result.tests["drawn"].unit == "people"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"folds": "persons"}, "--folds 'persons': must be people, views, groups"),
        ({"folds": "6"}, "2 to 5 parts are possible, because drawn has 5 people"),
        ({"folds": "1"}, "2 to 5 parts are possible"),
        ({"folds": "groups:31"}, "2 to 30 parts are possible, because drawn has 30 groups"),
        ({"dataset": "single"}, "single has one person, 1: --folds groups"),
        ({"dataset": "nameless"}, "nameless names no subjects: add the column subject"),
        ({"dataset": "lonely"}, r"1 class is in no training .* \(class 2 only in the part 2\): .*exclude_classes"),
        ({"people": "4"}, "--people 4: fewer than the 4 training people"),
        ({"people": "0"}, "--people '0': must be numbers from 1"),
        ({"takes": "2"}, "--takes 2: fewer than 2 are possible"),
        ({"cameras": "3"}, "--cameras 3: fewer than 3 are possible"),
        ({"recipe": "nowhere"}, "unknown recipe"),
        ({"seeds": "0,0"}, "must be different numbers"),
    ],
)
def test_crossval__refuses_what_is_not_possible_before_the_first_training(cache, tmp_path, changed, message):
    if changed.get("dataset") in ("nameless", "lonely") and not (cache / changed["dataset"]).exists():
        draw(cache, "nameless", subjects=("",))
        draw(cache, "lonely", keep=lambda clip: clip.label < 2 or clip.subject == "2")
    with pytest.raises(ConfigError, match=message):
        package.crossval(cache, out=tmp_path / "out", **COMMON | changed)
    assert not (tmp_path / "out").exists()


def test_crossval__learns_without_the_class_of_one_person(cache, tmp_path):
    draw(tmp_path, "lonely", subjects=(1, 2, 3), keep=lambda clip: clip.label < 2 or clip.subject == "2")
    changes = [*TINY, 'train.exclude_classes=["class 2"]']
    result = package.crossval(tmp_path, out=tmp_path / "out", **COMMON | {"dataset": "lonely", "overrides": changes})
    assert result.tests["lonely"].groups == 12
    assert len(result.folds) == 3
    assert "too few for an interval" in result.tests["lonely"].doubt
