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
from make_cache import SMALL_NETWORK, draw, list_clips
from sklearn.metrics import log_loss

import dtsf as package
from dtsf.errors import CacheError, CheckpointError, ConfigError
from dtsf.experiments import crossval as crossval_module
from dtsf.experiments.crossval_files import advice, read_others, write_crossval
from dtsf.experiments.folds import plan_folds
from dtsf.experiments.grid import identity
from dtsf.experiments.settings import CrossvalSettings
from dtsf.training import start
from dtsf.training.answers import read_answers

TINY = [*SMALL_NETWORK, "train.epochs=1", "train.calibrate=0", "train.batch_size=12"]
SLOWER = [*TINY, "train.lr=0.002"]
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
    """An undisturbed result, and its folder."""
    out = tmp_path_factory.mktemp("whole")
    return package.crossval(cache, out=out, tests=["other"], **COMMON), out


@pytest.fixture(scope="module")
def slower(cache, whole, tmp_path_factory):
    """The result of another recipe, compared with the first one, and its folder."""
    out = tmp_path_factory.mktemp("slower")
    return package.crossval(cache, out=out, tests=["other"], compare=[whole[1]], **COMMON | {"overrides": SLOWER}), out


def test_crossval__pools_the_answers_of_all_folds(cache, whole):
    result, out = whole
    assert (result.done, result.total, result.by) == (5, 5, "one person left out")
    assert [(f.left_out, f.protocol, f.train_groups, f.test_groups) for f in result.folds] == [
        (str(k), f"cross-subject:{k}", 24, 6) for k in (1, 2, 3, 4, 5)
    ]
    # Each fold is an ordinary run, which answers the same again.
    rows = list(csv.DictReader((out / "answers.csv").read_text().splitlines()))
    assert result.tests["drawn"].top1 == pytest.approx(np.mean([row["label"] == row["answer"] for row in rows]))
    assert len(rows) == len({row["group"] for row in rows}) == 30
    assert {row["views"] for row in rows} == {"1+2+3"}
    p = np.array([[float(row[f"p class {k}"]) for k in range(3)] for row in rows])
    wanted = log_loss([int(row["label"][-1]) for row in rows], p / p.sum(1, keepdims=True), labels=range(3))
    assert result.tests["drawn"].log_loss == pytest.approx(wanted, rel=1e-4)
    fold = result.folds[2]
    evaluated = package.load(out / fold.run).evaluate(cache).metrics
    assert (evaluated.top1, evaluated.ece) == pytest.approx((fold.top1, fold.ece), abs=1e-6)
    third = package.load(out / fold.run).evaluate(cache, views="3").metrics
    alone = read_answers(out / "answers/drawn-seed0.safetensors").alone(3)
    of_3 = alone.rows(torch.tensor([alone.subjects[g] == "3" for g in alone.group_R.tolist()]))
    assert of_3.top1() == pytest.approx(third.top1)
    assert {name: n["groups"] for name, n in result.views.items()} == {"1": 30, "2": 30, "3": 30}
    assert {name: n["groups"] for name, n in result.people.items()} == dict.fromkeys("12345", 6)
    assert result.people["3"]["top1"] == pytest.approx(fold.top1)
    # The other dataset leaves out the same people.
    assert result.tests["other"].groups == 30
    page = (out / "report.html").read_text()
    assert "the intervals rest on 5 people".capitalize() in page
    assert "Not finished" not in page
    assert json.loads((out / "crossval.json").read_text())["tests"]["drawn"]["top1"] == result.tests["drawn"].top1


@pytest.mark.slow
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
    assert (tmp_path / "answers.csv").read_bytes() == (whole[1] / "answers.csv").read_bytes()


def test_crossval__compares_with_another_recipe_in_pairs(cache, whole, slower, tmp_path, dtsf):
    result, out = slower
    found, own = result.compared[str(whole[1])]["drawn"], result.tests["drawn"]
    assert found.scores["top1"].difference == pytest.approx(own.top1 - whole[0].tests["drawn"].top1)
    assert (found.won - found.lost) / 30 == pytest.approx(found.scores["top1"].difference)
    assert 0 <= found.scores["top1"].better <= 1
    words = [word for change in SLOWER for word in ("--set", change)]
    words += ["--cache", cache, "--dataset", "drawn", "--recipe", "default", "--device", "cpu", "--test", "other", "--out", out]
    said = dtsf.json("crossval", *words, "--compare", whole[1], cwd=tmp_path)
    assert {"top1", "log_loss", "brier", "ece", "people", "views", "folds"} <= said.keys()
    page = (Path(__file__).resolve().parents[1] / "docs/output.md").read_text()
    assert not [key for key in (*said, *said["folds"][0]) if f"`{key}`" not in page]
    assert (said["top1"], said["reused"]) == (own.top1, 5)
    shown = dtsf.said("crossval", *words, "--compare", whole[1], cwd=tmp_path)
    for text in ("95 % interval", f"minus {whole[1]}", "better with probability", "camera alone", "the intervals rest on 5 people"):
        assert text in shown
    for command in (("report", out), ("evaluate", out), ("predict", "x.mp4", "--run", out)):
        no_run = f"no run but the result of several: they are in {out / 'trainings'}, and its page is {out / 'report.html'}"
        assert no_run in dtsf.refusal(*command, cwd=tmp_path)
    with pytest.raises(ConfigError, match=rf"--out {whole[1]} has the result of other settings .*: choose another, and --compare"):
        package.crossval(cache, **COMMON | {"overrides": SLOWER, "out": whole[1]})
    new = COMMON | {"compare": [whole[1]], "out": tmp_path / "new"}
    for changed, message in (
        ({"folds": "groups"}, "has other clips, labels or folds"),
        ({"compare": [tmp_path]}, r"no crossval.json in it"),
        ({"seeds": 3}, r"has other finished seeds \(0\): choose --seeds by them"),
        ({"compare": [out], "overrides": SLOWER, "out": out}, "is --out itself"),
    ):
        with pytest.raises(ConfigError, match=message):
            package.crossval(cache, **new | changed)
    (tmp_path / "old").mkdir()
    (tmp_path / "old/crossval.json").write_text("{}")
    with pytest.raises(CheckpointError, match="remove .*crossval.json and run dtsf crossval again"):
        package.crossval(cache, **COMMON | {"out": tmp_path / "old"})


@pytest.mark.slow
def test_ablate__compares_variants_on_folds_as_crossval_does(cache, whole, slower, tmp_path):
    (tmp_path / "two.toml").write_text('title = "Two"\n[[row]]\nname = "a"\n[[row]]\nname = "b"\nset = ["train.lr=0.002"]\n')
    options = COMMON | {"seeds": (0,), "folds": "people", "tests": ["other"], "table": str(tmp_path / "two.toml")}
    result = package.ablate(cache, out=tmp_path / "out", **options)
    assert (result.protocol, result.total, [test.n_groups for test in result.tests]) == ("one person left out", 10, [30, 30])
    first, second = result.rows
    assert (first.scores, first.compared) == (whole[0].tests, {})
    assert first.top1["drawn"] == {0: whole[0].tests["drawn"].top1}
    assert second.scores == slower[0].tests
    assert second.compared == slower[0].compared[str(whole[1])]
    page = (tmp_path / "out/two.md").read_text()
    assert "probability to be better" in page
    assert "the intervals rest on 5 people" in page
    rows = list(csv.DictReader((tmp_path / "out/two.csv").read_text().splitlines()))
    (line,) = [row for row in rows if (row["variant"], row["test"]) == ("b", "drawn")]
    assert line["probability to be better"] == f"{second.compared['drawn'].scores['top1'].better:.2f}"
    with pytest.raises(ConfigError, match="--folds and --protocol exclude each other"):
        package.ablate(cache, out=tmp_path / "out", **options, protocol="all")


@pytest.mark.slow
def test_crossval__draws_curves_of_people_takes_and_cameras(cache, whole, tmp_path):
    shutil.copytree(whole[1], tmp_path, dirs_exist_ok=True)
    options = COMMON | {"out": tmp_path, "people": (2,), "cameras": "1"}
    result = package.crossval(cache, **options)
    assert (result.reused, result.total) == (5, 15)
    assert [(p.kind, p.number) for p in result.curve] == [
        *(("people", 2), ("people", 4)), *(("cameras", 1), ("cameras", 3))
    ]  # fmt: skip
    assert [p.step is None for p in result.curve] == [True, False] * 2
    assert all(p.scores.groups == 30 for p in result.curve)
    assert all(p.scores == result.tests["drawn"] for p in result.curve[1::2])
    trained = [json.loads(file.read_text()) for file in tmp_path.glob("trainings/*/result.json")]
    assert sorted(one["train_groups"] for one in trained) == [12] * 5 + [24] * 10
    people = sorted(one["settings"]["train"]["only_subjects"] for one in trained)
    assert [some for some in people if len(some) == 2] == [["1", "2"], ["2", "3"], ["3", "4"], ["4", "5"], ["5", "1"]]
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 2
    for line in advice(result.curve):
        assert line in page.replace("&#43;", "+")
    assert "From 2 to 4 people: top-1" in page


def test_write_crossval__of_a_test_with_a_long_name(whole, tmp_path):
    name = "漢" * 80 + "@cross-subject:1"
    result, answers = whole[0], read_answers(whole[1] / "answers/drawn-seed0.safetensors")
    write_crossval(result.model_copy(update={"tests": {name: result.tests["drawn"]}}), {name: {0: answers}}, tmp_path)
    settings = CrossvalSettings(compare=(tmp_path,), out=tmp_path / "out")
    assert read_others(settings, result.key, "")[str(tmp_path)][name][0].groups == answers.groups


def test_plan_folds__names_the_parts(cache):
    data = package.open_cache(cache, "drawn")
    assert plan_folds(data, "groups")[0] == "5 parts of the performances"
    assert [str(rule) for rule in plan_folds(data, "groups:2")[1].values()] == ["groups:1/2", "groups:2/2"]
    assert list(plan_folds(data, "2")[1]) == ["1, 3, 5", "2, 4"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folds", "by", "tests"),
    [
        ("2", "2 parts of the people", [18, 12]),
        ("views", "one view left out", [30] * 3),
    ],
)
def test_crossval__divides_by_people_views_or_groups(cache, tmp_path, folds, by, tests):
    result = package.crossval(cache, folds=folds, out=tmp_path, **COMMON | {"recipe": None})
    assert (result.by, [fold.test_groups for fold in result.folds]) == (by, tests)
    assert result.tests["drawn"].groups == sum(tests)
    assert result.tests["drawn"].unit == "people"
    lead = "trained with the other cameras alone" if folds == "views" else "trained without it"
    assert lead in (tmp_path / "report.html").read_text()


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
        ({"people": "4"}, "--people 4: a fold needs more people .* without 1 there are 4"),
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


def change(cache, name, **changes):
    """Replace annotations of a dataset: field -> function of the clip."""
    data = package.open_cache(cache, name)
    clips = [clip.model_copy(update={key: new(clip) for key, new in changes.items()}) for clip in data.clips]
    list_clips(cache / name, clips, data.info)


ANNOTATIONS = {
    "label": lambda clip: (clip.label + 1) % 3,
    "group": lambda clip: clip.group + "b",
    "background": lambda clip: "elsewhere",
    "subject": lambda clip: {"1": "2", "2": "1"}[clip.subject],
}


@pytest.mark.parametrize("field", ANNOTATIONS)
def test_identity__of_clips_with_other_annotations_is_another(tmp_path, field):
    draw(tmp_path, "drawn")
    before = package.open_cache(tmp_path, "drawn")
    known = identity(before, before.clips)
    change(tmp_path, "drawn", **{field: ANNOTATIONS[field]})
    after = package.open_cache(tmp_path, "drawn")
    assert identity(before, before.clips) == known != identity(after, after.clips)
    assert [row[0] for row in known] == [row[0] for row in identity(after, after.clips)]


def test_crossval__of_corrected_labels_trains_again(tmp_path):
    draw(tmp_path, "drawn")
    options = COMMON | {"out": tmp_path / "out"}
    assert package.crossval(tmp_path, **options).done == 2
    change(tmp_path, "drawn", label=ANNOTATIONS["label"])
    with pytest.raises(ConfigError, match="has the result of other clips, labels or folds"):
        package.crossval(tmp_path, **options)
    (tmp_path / "out/crossval.json").unlink()
    assert package.crossval(tmp_path, **options).reused == 0


def test_crossval__stops_when_the_labels_change_meanwhile(tmp_path):
    draw(tmp_path, "drawn")

    def correct(done, _total, _note):
        if done == 1:
            change(tmp_path, "drawn", label=ANNOTATIONS["label"])

    with pytest.raises(CacheError, match="have changed since this command began: run the same command again"):
        package.crossval(tmp_path, on_epoch=correct, out=tmp_path / "out", **COMMON)


def test_crossval__says_what_is_in_no_fold(tmp_path):
    draw(tmp_path, "drawn", subjects=(1, 2, 3))
    change(tmp_path, "drawn", subject=lambda clip: None if clip.subject == "3" and clip.label else clip.subject)
    result = package.crossval(tmp_path, out=tmp_path / "out", people=(1,), **COMMON)
    assert result.notes == ("drawn: 12 clips are left out (no subject)",)
    assert result.notes[0] in (tmp_path / "out/report.html").read_text()


def test_crossval__refuses_a_start_that_has_seen_a_person_before_the_first_training(cache, whole, tmp_path):
    options = COMMON | {"out": tmp_path / "out", "init": whole[1] / whole[0].folds[0].run}
    with pytest.raises(ConfigError, match=r"was trained on drawn by cross-subject:1: it has seen people of this test \(2\)"):
        package.crossval(cache, **options)
    assert not (tmp_path / "out").exists()


def test_crossval__reads_the_start_of_all_folds_once_and_notes_it(cache, whole, tmp_path, monkeypatch):
    read, given, folder = [], start.load_checkpoint, whole[1] / whole[0].folds[0].run
    monkeypatch.setattr(start, "load_checkpoint", lambda path: read.append(path) or given(path))

    def stop(result):
        assert f"--init {folder} was trained on drawn" in result.notes[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        package.crossval(cache, on_result=stop, **COMMON | {"out": tmp_path, "init": folder, "allow_leak": True})
    assert read == [folder / "last"]


def test_crossval__does_not_replace_a_result_by_one_of_another_start_or_version(cache, whole, tmp_path, monkeypatch):
    shutil.copytree(whole[1], tmp_path, dirs_exist_ok=True)
    before, folder = (tmp_path / "crossval.json").read_bytes(), whole[1] / whole[0].folds[0].run
    options = COMMON | {"out": tmp_path, "tests": ["other"]}
    with pytest.raises(ConfigError, match="has the result of other settings .*: choose another, and --compare"):
        package.crossval(cache, **options | {"init": folder, "allow_leak": True})
    new = {**crossval_module.versions(), "dtsf": "9.9"}
    monkeypatch.setattr(crossval_module, "versions", lambda: new)
    with pytest.raises(ConfigError, match="has the result of other settings .*, dtsf .*: choose another"):
        package.crossval(cache, **options)
    assert (tmp_path / "crossval.json").read_bytes() == before


def test_crossval__a_test_that_cannot_be_compared_is_a_note(cache, whole, tmp_path):
    other = shutil.copytree(cache, tmp_path / "cache")
    change(other, "other", label=ANNOTATIONS["label"])
    options = COMMON | {"overrides": SLOWER, "out": tmp_path / "out", "tests": ["other"], "compare": [whole[1]]}
    result = package.crossval(other, **options)
    assert set(result.compared[str(whole[1])]) == {"drawn"}
    assert any(f"other: not compared with {whole[1]}: " in note for note in result.notes)


def test_crossval__names_what_to_remove_of_damaged_answers(cache, whole, tmp_path):
    shutil.copytree(whole[1], tmp_path, dirs_exist_ok=True)
    file = next(tmp_path.glob("trainings/*/answers-*.safetensors"))
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=rf"{file} has no usable answers .*: remove it and run the same command again"):
        package.crossval(cache, **COMMON | {"out": tmp_path, "tests": ["other"]})
    file.unlink()
    assert package.crossval(cache, **COMMON | {"out": tmp_path, "tests": ["other"]}).tests == whole[0].tests


@pytest.mark.slow
def test_crossval__learns_without_the_class_of_one_person(cache, tmp_path):
    draw(tmp_path, "lonely", subjects=(1, 2, 3), keep=lambda clip: clip.label < 2 or clip.subject == "2")
    changes = [*TINY, 'train.exclude_classes=["class 2"]']
    result = package.crossval(tmp_path, out=tmp_path / "out", **COMMON | {"dataset": "lonely", "overrides": changes})
    assert result.tests["lonely"].groups == 12
    assert len(result.folds) == 3
    assert "too few for an interval" in result.tests["lonely"].doubt
