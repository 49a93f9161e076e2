"""Promises of held-out answers: sets of classes, the surest share, and cameras as needed."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, ClassifierMixin

from dtsf.errors import ConfigError
from dtsf.training.answers import Answers
from dtsf.training.as_needed import answers_as_needed, plan_cameras
from dtsf.training.held_out import HeldOut
from dtsf.training.promises import at_shares, person_limit, split_limit, surest_curve


def draw_scores(rng, *shape):
    return rng.normal(size=shape)


@pytest.mark.parametrize("level", [0.8, 0.9])
def test_split_limit__holds_a_new_score_as_often_as_promised(level):
    scores = draw_scores(np.random.default_rng(0), 4000, 20)
    limits = np.array([split_limit(row[:-1], level) for row in scores])
    rank = math.ceil(20 * level)
    assert np.mean(scores[:, -1] <= limits) == pytest.approx(rank / 20, abs=0.02)
    assert split_limit(np.arange(8.0), 0.9) == math.inf
    assert split_limit(np.arange(9.0), 0.9) == 8.0


def test_person_limit__holds_scores_of_new_people_as_often_as_promised():
    rng, level = np.random.default_rng(0), 0.8
    held, pooled = [], []
    for _ in range(1500):
        # Ten people of different difficulty; one of them has most of the performances.
        people = np.repeat(np.arange(11), [60, *[4] * 10])
        scores = rng.normal(size=11)[people] * 3 + rng.normal(size=len(people))
        order = rng.permutation(11)  # the new person is any of them
        new = people == order[0]
        limit = person_limit(scores[~new], people[~new], level)
        held.append(np.mean(scores[new] <= limit))
        pooled.append(np.mean(scores[new] <= split_limit(scores[~new], level)))
    assert np.mean(held) >= level - 0.02
    assert np.mean(pooled) < np.mean(held)


def test_person_limit__equals_the_plain_quantile_of_one_score_each():
    rng = np.random.default_rng(1)
    for n in (4, 9, 30):
        scores = rng.normal(size=n)
        for level in (0.5, 0.8, 0.9):
            assert person_limit(scores, np.arange(n), level) == split_limit(scores, level)
    assert person_limit(scores[:8], np.arange(4).repeat(2), 0.81) == math.inf


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


@pytest.mark.parametrize("level", [0.0, 1.0, 90.0, -1.0, float("nan")])
def test_promise__refuses_a_level_that_is_no_share(level):
    p, label = drawn(np.random.default_rng(4), 20)
    with pytest.raises(ConfigError, match=r"--set .*0\.9"):
        held_out(p, label).promise([0], level)


def test_surest_curve__is_the_accuracy_of_the_surest():
    curve = surest_curve(torch.tensor([0.4, 0.1, 0.3, 0.2, 0.5]), torch.tensor([False, True, False, True, True]))
    assert [share for share, _ in curve] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert [accuracy for _, accuracy in curve] == pytest.approx([1, 1, 2 / 3, 1 / 2, 3 / 5])
    assert at_shares(curve, (0.01, 0.4, 0.41, 1.0)) == pytest.approx([1, 1, 2 / 3, 3 / 5])


def test_place__says_who_must_be_looked_at():
    right = np.array([1] * 30 + [0, 1] * 5)
    p = np.where(right[:, None] == 1, [0.9, 0.1], [0.1, 0.9])
    known = held_out(p, np.zeros(40, int), uncertainty=np.linspace(0.01, 0.4, 40))
    sure, doubtful, worst = (known.place([0], u) for u in (0.105, 0.395, 0.9))
    assert (sure.share, sure.accuracy, sure.look) == (0.25, 1.0, False)
    assert doubtful.look
    assert doubtful.share == pytest.approx(39 / 40)
    assert worst.look
    nothing = known.place([0], 0.001)
    assert (nothing.share, nothing.accuracy, nothing.look) == (0.0, None, False)


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
    assert plan_cameras(known.answers, loss=0.5).opened == 0.5
    assert plan.sort([0, 5, 1]) == [2, 0, 1]
    chosen = answers_as_needed(known.answers, plan)
    assert len(chosen.group_R) == 200
    assert chosen.given_RV.sum(1).eq(1).numpy().tolist() == sure.tolist()
    assert "200 performances, cameras as needed" in HeldOut(chosen, "groups held out", "cameras as needed").promise([1], 0.9).text


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
