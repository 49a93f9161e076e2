"""Answers kept in a file, and their scores against scikit-learn, NumPy and numbers by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from dtsf.errors import CheckpointError, ConfigError
from dtsf.training.answers import Answers, join, read_answers, write_answers
from dtsf.training.scores import METRICS, compare, sum_up, summarise
from dtsf.training.tensor_files import load_state, save_state


def made(people=6, takes=5, classes=4, seed=0, skill=1.5, subjects=None):
    """Answers for ``takes`` groups of each class by each person, with all of two views and with the first alone."""
    generator = torch.Generator().manual_seed(seed)
    label_G = torch.arange(classes).repeat(people * takes)
    names = [f"s{g // (classes * takes)}-{g}" for g in range(len(label_G))]
    persons = [name[1 : name.index("-")] for name in names] if subjects is None else subjects
    group_R = torch.arange(len(label_G)).repeat(2)
    logits_RK = torch.randn(len(group_R), classes, generator=generator)
    logits_RK[torch.arange(len(group_R)), label_G[group_R]] += skill
    complete_R = torch.arange(len(group_R)) < len(label_G)
    return Answers(
        tuple("abcd"[:classes]), ("left", "right"), tuple(names), tuple(persons), label_G, group_R,
        torch.stack([torch.ones_like(complete_R), complete_R], 1), complete_R,
        logits_RK.log_softmax(1), torch.full((len(group_R),), 0.5),
    )  # fmt: skip


def by_hand(p_GK, label_G):
    """Scores of probabilities in NumPy: the calibration error has 15 bins, closed above."""
    p, y = p_GK.numpy().astype(float), label_G.numpy()
    top, right = p.max(1), p.argmax(1) == y
    ece = 0.0
    for k in range(15):
        inside = (top > k / 15) & (top <= (k + 1) / 15)
        ece += abs(right[inside].sum() - top[inside].sum()) / len(y)
    brier = ((p - np.eye(p.shape[1])[y]) ** 2).sum(1).mean()
    return {"top1": right.mean(), "log_loss": log_loss(y, p_GK.numpy(), labels=range(p.shape[1])), "brier": brier, "ece": ece}


def test_scores__are_those_of_scikit_learn_and_by_hand():
    answers = made().complete()
    p_GK = answers.log_p_RK.exp()
    found = sum_up([answers])
    assert found.numbers() == pytest.approx(by_hand(p_GK, answers.label_R), rel=1e-5)
    for person, numbers in found.each().items():
        own = torch.tensor([subject == person for subject in answers.subjects])
        assert numbers.pop("groups") == 20
        assert numbers == pytest.approx(by_hand(p_GK[own], answers.label_G[own]), rel=1e-5)
    alone = made().alone(1)
    assert sum_up([alone]).numbers() == pytest.approx(by_hand(alone.log_p_RK.exp(), alone.label_R), rel=1e-5)
    # Two seeds count equally.
    both = [by_hand(one.complete().log_p_RK.exp(), one.label_G) for one in (made(), made(seed=1))]
    mean = {name: (both[0][name] + both[1][name]) / 2 for name in METRICS}
    assert sum_up([made().complete(), made(seed=1).complete()]).numbers() == pytest.approx(mean, rel=1e-5)


def test_intervals__are_percentiles_over_drawn_people():
    answers = made(people=8, skill=0.8).complete()
    people, p_GK = np.array(answers.subjects), answers.log_p_RK.exp()
    rng, drawn = np.random.default_rng(1), []
    for _ in range(1000):
        chosen = np.concatenate([np.flatnonzero(people == person) for person in rng.choice(np.unique(people), 8)])
        drawn.append(by_hand(p_GK[chosen], answers.label_G[chosen]))
    for name, (low, high) in sum_up([answers]).intervals().items():
        wanted = np.quantile([scores[name] for scores in drawn], [0.025, 0.975])
        # Both are estimates from a thousand drawings or more.
        assert (low, high) == pytest.approx(tuple(wanted), abs=0.3 * (wanted[1] - wanted[0]))
    assert sum_up([answers]).intervals() == sum_up([answers]).intervals()


def test_minus__is_paired_and_says_how_probably_it_is_better():
    worse, better = made(people=8, skill=0.5).complete(), made(people=8, skill=2.5).complete()
    found = sum_up([better]).minus(sum_up([worse]))
    numbers = [by_hand(one.log_p_RK.exp(), one.label_R) for one in (better, worse)]
    for name, difference in found.items():
        assert difference.difference == pytest.approx(numbers[0][name] - numbers[1][name], rel=1e-5)
    assert found["top1"].interval[0] > 0 > found["log_loss"].interval[1]
    assert found["top1"].better == found["log_loss"].better == found["brier"].better == 1
    same = sum_up([worse]).minus(sum_up([worse]))
    assert all((one.difference, one.interval, one.better) == (0, (0, 0), 0.5) for one in same.values())
    right = [one.log_p_RK.argmax(1) == one.label_R for one in (better, worse)]
    shuffled = better.rows(torch.randperm(len(better.group_R), generator=torch.Generator().manual_seed(0)))
    for own in (better, shuffled):
        paired = compare({0: own, 1: better}, {0: worse, 2: worse})
        assert (paired.won, paired.lost) == (int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum()))
        assert paired.scores == found
    with pytest.raises(ConfigError, match="no common seed: 1 and 0"):
        compare({1: better}, {0: worse})
    with pytest.raises(ConfigError, match="1 answer is about performances that only one of both results has"):
        compare({0: better.rows(torch.arange(1, len(better.group_R)))}, {0: worse})


def test_summarise__has_the_spread_of_the_seeds_and_the_auroc():
    one, two = made().complete(), made(seed=1).complete()
    found = summarise([one, two])
    top1 = [sum_up([answers]).numbers()["top1"] for answers in (one, two)]
    assert found.spread["top1"] == pytest.approx(abs(top1[0] - top1[1]))
    assert (found.groups, found.people, found.unit, found.auroc_u) == (120, 6, "people", 0.5)
    assert found.top1 == pytest.approx(sum(top1) / 2)
    assert summarise([one]).spread == {}


@pytest.mark.parametrize(
    ("people", "subjects", "unit", "interval", "words"),
    [
        (1, None, "people", False, "rest on 1 person: too few for an interval"),
        (4, None, "people", False, "rest on 4 people: too few for an interval"),
        (6, None, "people", True, "rest on 6 people: with so few, the true ones are wider"),
        (12, None, "people", True, "the intervals rest on 12 people"),
        (6, ("",) * 120, "performances", True, "rest on 120 performances: they say nothing about new people"),
        # All who perform together are one person.
        (6, tuple("012345")[:4] * 20 + ("0+1", "1+2", "2+3", "3+0") * 5 + ("4", "5") * 10, "people", False, "3 people: too few"),
    ],
)  # fmt: skip
def test_intervals__say_on_how_many_people_they_rest(people, subjects, unit, interval, words):
    found = sum_up([made(people, subjects=subjects).complete()])
    assert found.unit == unit
    assert words in found.doubt()
    assert all((one is not None) == interval for one in found.intervals().values())
    assert all((one.better is not None) == interval for one in found.minus(found).values())


def test_answers__are_read_as_written(tmp_path):
    answers = made(takes=1)
    write_answers(tmp_path / "a", answers)
    again = read_answers(tmp_path / "a")
    both = join([again, made(takes=1, seed=1)])
    for name in ("groups", "subjects", "classes", "views"):
        assert getattr(again, name) == getattr(answers, name)
    assert (again.log_p_RK == answers.log_p_RK).all()
    assert len(both.groups) == 2 * len(answers.groups)
    assert (both.label_R == torch.cat([answers.label_R] * 2)).all()
    assert len(both.complete().label_R) == len(both.alone(1).label_R) == len(both.groups)
    assert len(both.alone(2).label_R) == 0


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda a: replace(a, group_R=a.group_R + 1), "numbers from 1 to 24, where 0 to 23 are possible"),
        (lambda a: replace(a, label_G=-a.label_G), "numbers from -3 to 0"),
        (lambda a: replace(a, subjects=a.subjects[1:]), "23 subjects for 24 groups"),
        (lambda a: replace(a, log_p_RK=a.log_p_RK + 1), "do not add up to 1"),
        (lambda a: replace(a, log_p_RK=a.log_p_RK * float("nan")), "do not add up to 1"),
        (lambda a: replace(a, uncertainty_R=a.uncertainty_R - 1), "uncertainties outside"),
        (lambda a: replace(a, given_RV=a.given_RV[:, :1]), "given_RV has shape"),
        (lambda a: replace(a, label_G=a.label_G.float()), "label_G has shape"),
        (lambda a: replace(a, groups=(1, *a.groups[1:])), "groups are not texts"),
        (lambda a: replace(a, classes=3), "'int' object is not iterable"),
    ],
)  # fmt: skip
def test_read_answers__refuses_parts_that_do_not_fit(tmp_path, change, why):
    write_answers(tmp_path / "a", change(made(takes=1)))
    with pytest.raises(CheckpointError, match=rf"a has no usable answers \(.*{why}.*\): train again"):
        read_answers(tmp_path / "a")


def test_read_answers__refuses_a_damaged_file(tmp_path):
    write_answers(tmp_path / "a", made(takes=1))
    data = (tmp_path / "a").read_bytes()
    state = load_state(data)
    for damaged in (b"", data[:-9], save_state({**state, "more": 1}), save_state([1])):
        (tmp_path / "a").write_bytes(damaged)
        with pytest.raises(CheckpointError, match="train again"):
            read_answers(tmp_path / "a")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_answers(tmp_path / "b")
