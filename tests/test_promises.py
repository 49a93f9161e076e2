"""Promises of held-out answers: sets of classes, the surest share, and cameras as needed."""

import itertools
import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from make_cache import clip
from make_groups import run_state
from sklearn.base import BaseEstimator, ClassifierMixin

from dtsf import api
from dtsf.errors import ConfigError
from dtsf.model.config import ModelConfig
from dtsf.model.network import DTSFNet
from dtsf.recordings.table import Camera, Recording
from dtsf.training import held_out as held_out_answers
from dtsf.training.answers import Answers, read_answers, write_answers
from dtsf.training.as_needed import answers_as_needed, plan_cameras, view_order
from dtsf.training.checkpoint import load_checkpoint
from dtsf.training.data import Groups, group_clips
from dtsf.training.held_out import HeldOut, ask_held_out
from dtsf.training.promises import at_shares, limit_of_new, surest_curve
from dtsf.training.splits import Fold


def draw_scores(rng, *shape):
    return rng.normal(size=shape)


def limit_of_each(scores, level):
    """The limit if each score is a unit of its own."""
    return limit_of_new(scores, np.arange(len(scores)), level)


@pytest.mark.parametrize("level", [0.8, 0.9])
def test_limit_of_new__holds_a_new_score_as_often_as_promised(level):
    scores = draw_scores(np.random.default_rng(0), 4000, 20)
    limits = np.array([limit_of_each(row[:-1], level) for row in scores])
    rank = math.ceil(20 * level)
    assert np.mean(scores[:, -1] <= limits) == pytest.approx(rank / 20, abs=0.02)
    assert limit_of_each(np.arange(8.0), 0.9) == math.inf
    assert limit_of_each(np.arange(9.0), 0.9) == 8.0
    assert limit_of_new(np.arange(8.0), np.arange(4).repeat(2), 0.81) == math.inf


def test_limit_of_new__holds_scores_of_new_people_as_often_as_promised():
    rng, level = np.random.default_rng(0), 0.8
    held, pooled = [], []
    for _ in range(1500):
        # Ten people of different difficulty; one of them has most of the performances.
        people = np.repeat(np.arange(11), [60, *[4] * 10])
        scores = rng.normal(size=11)[people] * 3 + rng.normal(size=len(people))
        order = rng.permutation(11)  # the new person is any of them
        new = people == order[0]
        limit = limit_of_new(scores[~new], people[~new], level)
        held.append(np.mean(scores[new] <= limit))
        pooled.append(np.mean(scores[new] <= limit_of_each(scores[~new], level)))
    assert np.mean(held) >= level - 0.02
    assert np.mean(pooled) < np.mean(held)


class Given(ClassifierMixin, BaseEstimator):
    """A classifier whose input is its probabilities."""

    def fit(self, x, _):
        self.classes_, self.fitted_ = np.arange(x.shape[1]), True
        return self

    def predict_proba(self, x):
        return x

    def predict(self, x):
        return x.argmax(1)


def held_out(p, label, *, given=None, subjects=None, uncertainty=None, by="people held out", group=None):
    """Held-out answers with these probabilities (R, K). ``group``: of each row."""
    p = torch.as_tensor(p, dtype=torch.float32)
    group = torch.arange(len(p)) if group is None else torch.as_tensor(group)
    given = torch.ones(len(p), 1, dtype=torch.bool) if given is None else torch.as_tensor(given, dtype=torch.bool)
    n = int(group.max()) + 1
    names = tuple(f"g{k}" for k in range(n))
    people = tuple(subjects) if subjects is not None else ("",) * n
    u = 1 - p.amax(1) if uncertainty is None else torch.as_tensor(uncertainty, dtype=torch.float32)
    most = torch.zeros(n, dtype=torch.long).scatter_reduce(0, group, given.sum(1), "amax")
    views, classes = (tuple(map(str, range(count))) for count in (given.shape[1], p.shape[1]))
    complete = given.sum(1) == most[group]
    label = torch.as_tensor(label)
    return HeldOut(Answers(classes, views, names, people, label, group, given, complete, p.log(), u), by)


def drawn(rng, n, k=5):
    p = rng.dirichlet(np.full(k, 0.4), n).clip(1e-6)
    p /= p.sum(1, keepdims=True)
    return p.astype(np.float32), np.array([rng.choice(k, p=row / row.sum()) for row in p.astype(np.float64)])


@pytest.mark.parametrize("level", [0.8, 0.9])
def test_promise__gives_the_sets_of_mapie(level):
    from mapie.classification import SplitConformalClassifier

    rng = np.random.default_rng(2)
    (seen, label), (new, truth) = drawn(rng, 150), drawn(rng, 400)
    rule = held_out(seen, label, by="groups held out").promise([0], level)
    peer = SplitConformalClassifier(Given().fit(seen, label), confidence_level=level, conformity_score="lac", prefit=True)
    _, sets = peer.conformalize(seen, label).predict_set(new)
    theirs = [set(np.flatnonzero(row)) | {int(p.argmax())} for row, p in zip(sets[:, :, 0], new, strict=True)]
    ours = [rule.choose(torch.from_numpy(row)) for row in new]
    assert [set(row) for row in ours] == theirs
    assert all(row[0] == p.argmax() for row, p in zip(ours, new, strict=True))
    assert np.mean([y in row for y, row in zip(truth, ours, strict=True)]) >= level - 0.05


@pytest.mark.parametrize(
    ("n_people", "level", "words"),
    [
        (9, 0.9, ("90 % of performances of new people", "9 held-out ones (90 performances)")),
        (4, 0.9, ("like those of the held-out people (4 people, 90 performances)", "4 people allow at most 80 %")),
        (4, 0.8, ("80 % of performances of new people",)),
        (0, 0.9, ("held-out groups (90 performances; groups held out)",)),
        (3, 0.995, ("every class is in it: 90 performances allow at most 98 %",)),
    ],
)
def test_promise__says_what_it_rests_on(n_people, level, words):
    p, label = drawn(np.random.default_rng(3), 90)
    subjects = [f"p{k % n_people}" for k in range(90)] if n_people else None
    known = held_out(p, label, subjects=subjects, by="people held out" if n_people else "groups held out")
    rule = known.promise([0], level)
    assert all(word in rule.text for word in words)
    if "every class" in rule.text:
        assert len(rule.choose(torch.full((5,), 0.2))) == 5


def test_promise__people_who_perform_together_are_one():
    p, label = drawn(np.random.default_rng(3), 40)
    subjects = [("a", "a+b", "b", "c", "d")[k % 5] for k in range(40)]
    assert "3 people allow at most 75 %" in held_out(p, label, subjects=subjects).promise([0], 0.9).text


def test_promise__rests_on_the_same_cameras():
    p, label = drawn(np.random.default_rng(4), 120)
    given = [(True, False), (False, True), (True, True)] * 40
    known = held_out(p, label[::3], given=given, group=np.arange(120) // 3, by="groups held out")
    for views, rows in (([0], slice(0, None, 3)), ([1], slice(1, None, 3)), ([1, 0], slice(2, None, 3))):
        chosen = held_out(p[rows], label[::3], by="groups held out").promise([0], 0.9)
        assert known.promise(views, 0.9).least == chosen.least
    assert "40 performances from as many cameras" in known.promise([0, 7], 0.9).text
    assert "40 performances from 2 cameras" in known.promise([0, 1, 7], 0.9).text


def test_promise__where_pairs_of_cameras_vary_rests_on_all_pairs():
    rng = np.random.default_rng(4)
    p, label = drawn(rng, 60)
    given = np.zeros((60, 5), bool)
    for row in given:
        row[rng.choice(5, 2, replace=False)] = True
    known = held_out(p, label, given=given, by="groups held out")
    assert known.promise([0, 3], 0.9).least == held_out(p, label, by="groups held out").promise([0], 0.9).least


def test_promise__counts_a_performance_once_however_many_answers_it_has():
    # Twelve performances of three cameras: one answer to all, and one to each camera.
    p, label = drawn(np.random.default_rng(4), 48)
    given, label = [*[[True] * 3] * 12, *[[k == view for k in range(3)] for view in range(3) for _ in range(12)]], label[:12]
    known = held_out(p, label, given=given, group=np.arange(48) % 12, by="groups held out")
    rule = known.promise([0, 1, 2], 0.9)
    assert "performances like those of the held-out groups (12 performances; groups held out)" in rule.text
    assert rule.least == held_out(p[:12], label, by="groups held out").promise([0], 0.9).least
    # A camera that nobody knows: 36 answers, but of twelve performances, of which 92 % are the most that can be promised.
    assert "every class is in it: 12 performances from as many cameras allow at most 92 %" in known.promise([5], 0.95).text


@pytest.mark.parametrize("level", [0.0, 1.0, 90.0, -1.0, float("nan")])
def test_promise__refuses_a_level_that_is_no_share(level):
    p, label = drawn(np.random.default_rng(4), 20)
    with pytest.raises(ConfigError, match=r"--set .*0\.9"):
        held_out(p, label).promise([0], level)


def test_surest_curve__is_the_accuracy_of_the_surest():
    curve = surest_curve(torch.tensor([0.6, 0.9, 0.7, 0.8, 0.5]), torch.tensor([False, True, False, True, True]))
    assert [share for share, _ in curve] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert [accuracy for _, accuracy in curve] == pytest.approx([1, 1, 2 / 3, 1 / 2, 3 / 5])
    assert at_shares(curve, (0.01, 0.4, 0.41, 1.0)) == pytest.approx([1, 1, 2 / 3, 3 / 5])


def test_place__says_who_must_be_looked_at():
    right = np.array([1] * 30 + [0, 1] * 5)
    most = np.linspace(0.99, 0.60, 40)
    p = np.stack([np.where(right, most, 1 - most), np.where(right, 1 - most, most)], 1)
    known = held_out(p, np.zeros(40, int))
    sure, doubtful, worst = (known.place([0], p) for p in (0.895, 0.605, 0.1))
    assert (sure.share, sure.accuracy, sure.look) == (0.25, 1.0, False)
    assert doubtful.look
    assert doubtful.share == pytest.approx(39 / 40)
    assert worst.look
    assert held_out(p[:30], np.zeros(30, int)).place([0], 0.5).look  # less sure than any held-out answer, all of them right
    nothing = known.place([0], 0.999)
    assert (nothing.share, nothing.accuracy, nothing.look) == (0.0, None, False)


@pytest.mark.parametrize("first", [0, 1])
def test_trusted__answers_of_one_probability_count_together(first):
    right = np.array([first] * 20 + [1 - first] * 20)
    p = np.stack([np.where(right, 0.9, 0.1), np.where(right, 0.1, 0.9)], 1)
    known = held_out(p, np.zeros(40, int))
    assert known.trusted([0]) == 1.0
    assert known.place([0], 0.9).look


def rig(n=200, seed=5):
    """Held-out answers of two cameras. Camera 1 is often right alone, and sure where it is; both together are always right."""
    rng = np.random.default_rng(seed)
    sure, rows, given, u = rng.random(n) < 0.7, [], [], []
    for k in range(n):
        rows += [(0.4, 0.6), (0.9, 0.1) if sure[k] or k % 2 else (0.1, 0.9), (0.9, 0.1)]
        given += [(True, False), (False, True), (True, True)]
        u += [0.9, 0.1 if sure[k] else 0.5, 0.05]
    return held_out(rows, np.zeros(n, int), given=given, uncertainty=u, group=np.arange(3 * n) // 3), sure


def test_plan_cameras__opens_the_second_camera_only_in_doubt():
    known, sure = rig()
    plan = plan_cameras(known.answers)
    assert plan.order == (1, 0)
    assert plan.limit == pytest.approx(0.1)
    assert (plan.accuracy, plan.all_accuracy, plan.n_groups) == (1.0, 1.0, 200)
    assert plan.opened == pytest.approx((2 - sure.mean()) / 2)
    lavish, greedy = plan_cameras(known.answers, 0.01), plan_cameras(known.answers, 0.95)
    assert (lavish.opened, lavish.accuracy) == (1.0, 1.0)
    assert greedy.opened == 0.5
    assert greedy.accuracy < 0.95
    # A loss of accuracy is not all: wrong answers would be sure.
    assert plan_cameras(known.answers, loss=0.5).opened == plan.opened

    assert plan.sort([0, 5, 1]) == [2, 0, 1]
    chosen = answers_as_needed(known.answers, plan)
    assert len(chosen.group_R) == 200
    assert chosen.given_RV.sum(1).eq(1).numpy().tolist() == sure.tolist()
    opened = HeldOut(known.answers, known.by, plan)
    assert "200 performances, cameras opened as needed" in opened.promise([0, 1], 0.9).text
    assert opened.surest_line.endswith("100 / 100 / 100 %")
    # Where one camera is there, no other can be opened.
    assert opened.promise([1], 0.9) == known.promise([1], 0.9)
    assert opened.place([1], 0.5) == known.place([1], 0.5)


def test_answers_as_needed__of_a_performance_that_lacks_cameras():
    # Camera 0 is sure where it is right, camera 1 is never sure, and camera 2 is always right.
    u = {(0,): 0.5, (1,): 0.9, (2,): 0.01, (0, 1): 0.4, (0, 2): 0.01, (1, 2): 0.01, (0, 1, 2): 0.01}
    rows = [(0.9, 0.1) if 2 in some or (k + len(some)) % 2 else (0.1, 0.9) for k in range(40) for some in u]
    given = [tuple(view in some for view in range(3)) for _ in range(40) for some in u]
    group = np.arange(40).repeat(len(u))
    known = held_out(rows, np.zeros(40, int), given=given, uncertainty=list(u.values()) * 40, group=group)
    plan = plan_cameras(known.answers, 0.1)
    assert plan.order[0] == 2
    for views, opened in (((0, 1, 2), (2,)), ((0, 2), (2,)), ((0, 1), (0, 1))):
        chosen = answers_as_needed(known.answers, plan, views)
        assert len(chosen.group_R) == 40
        assert {tuple(np.flatnonzero(row).tolist()) for row in chosen.given_RV} == {opened}
    # Of cameras that no performance has together, the answers to all cameras count.
    two = [views for views in u if len(views) < 3 and views != (0, 1)]
    apart = known.answers.rows(torch.tensor([tuple(np.flatnonzero(row)) in two for row in known.answers.given_RV.numpy()]))
    apart = replace(apart, complete_R=apart.given_RV.sum(1) == 2)
    assert HeldOut(apart, "groups held out", plan).rows([0, 1])[0].given_RV.sum(1).tolist() == [1] * 40


def test_plan_cameras__gains_do_not_pay_for_losses():
    # One camera is right in 99 % of the groups, and both are in 98 %. But the wrong ones are others.
    right, rows, given, u = np.ones((2, 100), bool), [], [], []
    right[0, 0] = right[1, 1] = right[1, 2] = False
    for k in range(100):
        p = [(0.6, 0.4) if right[n, k] else (0.4, 0.6) for n in range(2)]
        rows += [p[0], (0.3, 0.7), p[1]]
        given += [(True, False), (False, True), (True, True)]
        u += [0.01 * k + 0.005, 0.9, 0.001]
    answers = held_out(rows, np.zeros(100, int), given=given, uncertainty=u, group=np.arange(300) // 3).answers
    assert plan_cameras(answers, 1.0).accuracy == 0.99
    careful = plan_cameras(answers)
    assert (careful.accuracy, careful.opened) == (0.98, 1.0)  # the surest answer of one camera is the lost one
    assert plan_cameras(answers, loss=0.01).opened == 0.5


def test_plan_cameras__of_groups_with_different_cameras():
    known, sure = rig()
    lacks = (torch.arange(200) < 50)[known.answers.group_R]  # camera 0 is missing in the first 50 groups
    given = known.answers.given_RV
    keep = ~lacks | (given == torch.tensor([False, True])).all(1)
    answers = replace(known.answers.rows(keep), complete_R=(given.all(1) | lacks)[keep])
    plan = plan_cameras(answers)
    assert plan.n_groups == 150
    assert plan.opened == pytest.approx((2 - sure[50:].mean()) / 2)


def test_plan_cameras__of_single_cameras_needs_a_limit():
    p, label = drawn(np.random.default_rng(6), 30)
    with pytest.raises(ConfigError, match="--as-needed auto: no held-out performance"):
        plan_cameras(held_out(p, label).answers)
    assert plan_cameras(held_out(p, label).answers, 0.3).limit == 0.3


CALIBRATION = {"held_out": "people held out", "folds": 2, "n_groups": 40, "accuracy": 0.8, "nll": [1, 1], "ece": [0, 0]}
CALIBRATION |= {"inverse_temperature": 1, "bias": 0, "weights": {}}


@pytest.fixture
def promising(run_copy):
    """A copy of the world's run with answers for 40 held-out groups of four people. Its second camera is the best one."""
    file = run_copy / "last/state.json"
    document = json.loads(file.read_text())
    document["calibration"] = CALIBRATION
    file.write_text(json.dumps(document))
    info, rng = load_checkpoint(run_copy / "last").state.info, np.random.default_rng(7)
    masks = [mask for mask in itertools.product((True, False), repeat=3) if any(mask)]
    p, _ = drawn(rng, 40 * len(masks), len(info.class_names))
    label = rng.integers(len(info.class_names), size=40)
    # The highest probability moves to the label, or next to it.
    for k, row in enumerate(p):
        right = rng.random() < (0.9 if masks[k % len(masks)][1] else 0.3)
        row[:] = np.roll(row, label[k // len(masks)] + (not right) - row.argmax())
    given, group = masks * 40, np.arange(40).repeat(len(masks))
    made = held_out(p, label, given=given, group=group, subjects=[f"p{k % 4}" for k in range(40)]).answers
    write_answers(run_copy / "held_out.safetensors", replace(made, classes=info.class_names, views=info.view_names))
    return run_copy


def test_predict__gives_a_set_and_a_place(dtsf, promising, performance):
    run = api.load(promising)
    plain, asked = run.predict(performance), run.predict(performance, set=0.9)
    rule = run.held_out.promise([0, 1, 2], 0.9)
    assert plain.set == ()
    assert asked.model_copy(update={"set": (), "promise": ""}) == plain
    assert asked.promise == rule.text
    assert set(asked.set) == {name for name, p in asked.probabilities.items() if p >= rule.least} | {asked.label}
    assert asked.opened == run.state.info.view_names
    assert (asked.surest, asked.look) == (run.held_out.place([0, 1, 2], asked.probability).share, True)
    shown = dtsf.json("predict", *performance, "--run", promising, "--set", "0.9", cwd=promising.parent)
    assert (shown["set"], shown["promise"]) == (list(asked.set), asked.promise)
    said = dtsf.said("predict", *performance, "--run", promising, "--set", "0.9", cwd=promising.parent)
    assert "4 people allow at most 80 %" in said
    assert "of 4 held-out people (40 performances), the surest 50 / 80 / 90 % were right in" in said
    assert "look at it" in said
    for words, error in ((("--set", "90"), "--set 90: give a share"), (("--as-needed", "2"), "--as-needed 2: give auto")):
        assert error in dtsf.refusal("predict", *performance, "--run", promising, *words, cwd=promising.parent)


def test_predict__opens_cameras_as_needed(dtsf, promising, performance, tmp_path):
    run = api.load(promising)
    broken = tmp_path / "v03_s02_e00.avi"
    broken.write_bytes(b"no video")
    first = run.predict(performance, as_needed=1.0)
    assert first.opened == ("2",)
    assert first.view_weights[::2] == (0.0, 0.0)
    # A camera that is not opened may even be broken.
    assert run.predict([*performance[:2], broken], as_needed=1.0) == first
    alone = run.predict(performance[1:2], views="2")
    assert (first.label, first.uncertainty) == (alone.label, pytest.approx(alone.uncertainty))
    everything, whole = run.predict(performance, as_needed=0.0), run.predict(performance)
    assert sorted(everything.opened) == ["1", "2", "3"]
    assert everything.opened[0] == "2"
    assert everything.probabilities == pytest.approx(whole.probabilities)
    assert everything.view_weights == pytest.approx(whole.view_weights)
    automatic = dtsf.json("predict", *performance, "--run", promising, "--as-needed", "auto", "--set", "0.8", cwd=promising.parent)
    assert automatic["opened"][0] == "2"
    assert "cameras opened as needed" in automatic["promise"]
    one = run.predict(performance[:1], as_needed="auto", set=0.8)
    assert one == run.predict(performance[:1], set=0.8)
    said = dtsf.said("predict", *performance, "--run", promising, "--as-needed", "1", cwd=promising.parent)
    assert said.count("not opened") == 2
    assert "the next camera is opened above uncertainty 1: on 40 held-out performances 33 % of the cameras" in said
    assert "--as-needed" in dtsf.refusal(
        "predict", *performance, "--run", promising, "--as-needed", "1", "--video", tmp_path / "film.mp4", cwd=promising.parent)


@pytest.mark.slow
def test_watch__opens_as_needed_and_names_whom_to_look_at(dtsf, promising, performance, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "in" / name).mkdir(parents=True)
        for video in performance:
            shutil.copy(video, tmp_path / "in" / name)
    words = ("predict", "--run", promising, "--watch", "in", "--settle", "0.1", "--once", "--as-needed", "1", "--set", "0.8")
    done = dtsf(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("1 of 3 views opened") == 2
    assert "look at 2 of 2, the least sure first:" in done.stderr
    written = json.loads((tmp_path / "in/a/prediction.json").read_text())
    assert written["opened"] == ["2"]
    assert written["set"]


@pytest.mark.slow
def test_timeline__opens_cameras_as_needed(dtsf, promising, performance, tmp_path):
    films = [word for film in performance for word in ("--video", film, "--offset", 0)]
    words = ("timeline", promising, *films, "--windows", "0.8", "--out", tmp_path, "--threshold", "0.05")
    for limit, n in ((1, 1), (0, 3)):
        (one,) = dtsf.json(*words, "--as-needed", limit, cwd=promising.parent)["recordings"]
        assert one["bouts"]
        assert {tuple(bout["opened"]) for bout in one["bouts"]} == {("2",) if n == 1 else ("1", "2", "3")}
        assert one["decoded"] == [0, 1, 0] if n == 1 else min(one["decoded"]) > 0.9
    said = dtsf.said(*words, "--as-needed", "auto", cwd=promising.parent)
    assert "the next camera is opened above uncertainty" in said
    assert "decoded: " in said
    (timeline,) = api.load(promising).timeline(
        (Recording("r", None, tuple(Camera(str(k + 1), (film,), 0.0) for k, film in enumerate(performance))),),
        tmp_path, windows="0.8", as_needed=1)
    assert timeline.decoded == (0, 1, 0)


def test_predict__without_held_out_answers(dtsf, world, performance):
    run = api.load(world / "run")
    assert run.held_out is None
    answer = run.predict(performance)
    assert (answer.set, answer.surest, answer.look) == ((), None, None)
    for words in (("--set", "0.9"), ("--as-needed", "auto")):
        assert "held_out.safetensors): train again" in dtsf.refusal("predict", *performance, "--run", "run", *words, cwd=world)
    assert "need --run" in dtsf.refusal("predict", "a.mp4", "--onnx", "net.onnx", "--set", "0.9", cwd=world)


@pytest.mark.parametrize(
    ("harm", "words"),
    [("classes", "is not of this run"), ("bytes", "has no usable answers"), ("huge", "has 1099511627776 bytes, more than")],
)
def test_predict__refuses_answers_that_are_damaged_or_of_another_run(dtsf, promising, performance, harm, words):
    file = promising / "held_out.safetensors"
    if harm == "classes":
        answers = read_answers(file)
        write_answers(file, replace(answers, classes=tuple(reversed(answers.classes))))
    elif harm == "bytes":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        with file.open("wb") as made:
            made.truncate(1 << 40)
    message = dtsf.refusal("predict", *performance, "--run", promising, cwd=promising.parent)
    assert f"held_out.safetensors {words}" in message


def test_ask_held_out__asks_growing_sets_of_many_views(monkeypatch):
    torch.manual_seed(0)
    names = ("1", "2", "3", "4", "5")
    net = DTSFNet(ModelConfig(width=8, depth=1, frames=3, reduce=4), channels=5, side=6, n_classes=4, n_views=5).eval()
    state = run_state(net)
    state = state.model_copy(update={"info": state.info.model_copy(update={"view_names": names})})
    clips = [clip(f"{g}-{v}", group=f"g{g:02}", view=v, label=g % 4) for g in range(30) for v in range(1, 6) if g or v < 3]
    fold = Fold(train=(), held_out=tuple(clips))

    def load(chosen):
        found, row_GV, label_G = group_clips(chosen, 5)
        return Groups(torch.randn(len(chosen), 3, 6, 6, 5).half(), row_GV, label_G, found)

    answers = ask_held_out([net], state, [fold], load)
    order, sizes = view_order(answers), answers.given_RV[answers.group_R > 0].sum(1).bincount().tolist()
    assert sizes == [0, 29 * 5, 29, 29, 29, 29]
    for n in (2, 3, 4):
        rows = answers.given_RV[(answers.given_RV.sum(1) == n) & (answers.group_R > 0)]
        assert (rows == torch.tensor([view in order[:n] for view in range(5)])).all()
    assert len(plan_cameras(answers).order) == 5
    assert plan_cameras(answers).n_groups == 30  # also the group of two cameras
    monkeypatch.setattr(held_out_answers, "MOST_NUMBERS", 2 * 5 * 4 * 7)
    assert len(ask_held_out([net], state, [fold], load).groups) == 7


def test_ask_held_out__asks_nothing_twice_and_the_same_side_by_side():
    torch.manual_seed(0)
    config = ModelConfig(width=8, depth=1, frames=3, reduce=4)
    nets = [DTSFNet(config, channels=5, side=6, n_classes=4, n_views=3).eval() for _ in range(2)]
    folds = []
    for who in "ab":
        held_out = [clip(f"{who}{g}-{v}", group=f"{who}{g}", view=v) for g in range(5) for v in range(1, 4) if g or v < 3]
        folds.append(Fold(train=(), held_out=tuple(held_out)))
    embeddings = torch.randn(2 * 14, 3, 6, 6, 5).half()
    asked = []
    for net in nets:
        net.register_forward_hook(lambda _, given, __: asked.append(len(given[0])))

    def load(chosen):
        found, row_GV, label_G = group_clips(chosen, 3)
        return Groups(embeddings[:14] if found[0][0] == "a" else embeddings[14:], row_GV, label_G, found)

    state = run_state(nets[0])
    state = state.model_copy(update={"info": state.info.model_copy(update={"view_names": ("1", "2", "3")})})
    answers = ask_held_out(nets, state, folds, load)
    assert sum(asked) == len(answers.group_R) == 2 * (4 * 7 + 3)
    beside = ask_held_out(nets, state, folds, load, workers=2)
    assert all(torch.equal(getattr(answers, name), getattr(beside, name)) for name in ("group_R", "given_RV", "log_p_RK"))


def test_evaluate_and_report__say_what_is_promised(dtsf, world, promising):
    said = dtsf.said("evaluate", promising, "--cache", world / "cache", cwd=promising.parent)
    assert "sets of 80 % (40 held-out performances of 4 people, promised for new people): coverage" in said
    assert "the surest 50 / 80 / 90 % were right in" in said
    dtsf.said("report", promising, cwd=promising.parent)
    page = (promising / "report.html").read_text("utf-8")
    assert "held out of the training" in page
    assert "Of 4 held-out people (40 performances), the surest" in page
