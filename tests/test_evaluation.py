"""What a judgement says: its numbers by hand, what it is of, what is not in it, and its keys."""

import itertools
import json
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dtsf import api
from dtsf.cache.reader import open_dataset
from dtsf.cache.schema import BadClip
from dtsf.errors import ConfigError
from dtsf.training.data import Groups
from dtsf.training.evaluate import evaluate
from dtsf.training.frame_sampling import uniform_times
from dtsf.training.metrics import compute_metrics
from dtsf.training.protocols import parse_protocol

DOC = Path(__file__).resolve().parents[1] / "docs/output.md"


def said(probability, label, uncertainty=None):
    n, classes = probability.shape
    groups = Groups(torch.zeros(n, 1, 1, 1, 1), torch.arange(n).view(n, 1), label, tuple(map(str, range(n))))
    uncertainty = torch.linspace(0.1, 0.9, n) if uncertainty is None else uncertainty
    return compute_metrics(
        probability, uncertainty, torch.ones(n, 1), label.view(n, 1), groups, tuple(f"c{k}" for k in range(classes))
    )


def by_brute_force(probability, label):
    """The same error group by group, in exact fractions: no bin is computed by the code under test."""
    top = [(Fraction(round(row.max().item(), 6)).limit_denominator(10**6), int(row.argmax())) for row in probability]
    edges = [Fraction(k, 15) for k in range(16)]
    error = Fraction(0)
    for low, high in itertools.pairwise(edges):
        held = [(p, best == int(y)) for (p, best), y in zip(top, label, strict=True) if low < p <= high]
        error += abs(sum(p for p, _ in held) - sum(right for _, right in held))
    return float(error / len(top))


@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(1, 60), st.booleans())
def test_calibration_error__equals_counting_by_hand(seed, classes, n, knows_nothing):
    torch.manual_seed(seed)
    # Where nothing is known every probability is 1 / K but for rounding: with 3, 5 or 15 classes an edge of two bins.
    spread = 1e-7 if knows_nothing else 4.0
    probability = (spread * torch.rand(n, classes)).softmax(-1)
    label = torch.randint(classes, (n,))
    metrics = said(probability, label)
    assert metrics.ece == pytest.approx(by_brute_force(probability, label), abs=1e-5)
    # And what the reliability table says.
    table = [row for row in metrics.reliability if row.n_groups]
    assert len(metrics.reliability) == 15
    assert sum(row.n_groups for row in table) == n
    assert all(row.low - 1e-6 <= row.probability <= row.high + 1e-6 for row in table)
    assert metrics.ece == pytest.approx(sum(r.n_groups / n * abs(r.accuracy - r.probability) for r in table), abs=1e-5)
    assert metrics.top1 == pytest.approx(sum(row.n_groups / n * row.accuracy for row in table))
    if knows_nothing:
        assert [row.n_groups for row in metrics.reliability if row.n_groups] == [n]
        assert metrics.ece == pytest.approx(abs(metrics.top1 - 1 / classes), abs=1e-5)


def test_compute_metrics__auroc_is_the_share_of_ordered_pairs():
    probability = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    label = torch.tensor([0, 1, 0, 0])  # right, wrong, wrong, right
    metrics = said(probability, label, torch.tensor([0.1, 0.5, 0.2, 0.3]))
    assert metrics.auroc_uncertainty == pytest.approx(3 / 4)
    assert metrics.confusion == ((2, 1), (1, 0))
    assert metrics.per_class == {"c0": pytest.approx(2 / 3), "c1": 0.0}
    assert (metrics.top1, metrics.top5) == (0.5, 1.0)
    assert said(probability, probability.argmax(-1)).auroc_uncertainty is None


def test_evaluate__draws_read_other_frames_and_repeat(world):
    places = torch.cat([uniform_times(4, (k + 0.5) / 3) for k in range(3)])
    assert places.sort().values == pytest.approx(((torch.arange(12) + 0.5) / 12).tolist())
    run = api.load(world / "run")
    one, three = (run.evaluate(world / "cache", draws=n) for n in (1, 3))
    assert (one.draws, three.draws) == (1, 3)
    assert three == run.evaluate(world / "cache", draws=3)
    assert one == run.evaluate(world / "cache")
    differ = [
        a.probability != b.probability for a, b in zip(one.metrics.predictions, three.metrics.predictions, strict=True)
    ]
    assert any(differ)
    for p in three.metrics.predictions:
        assert sum(p.view_weights) == pytest.approx(1.0, abs=1e-5)


def test_check_draws__refuses_equal_draws(world, tmp_path):
    words = ["model.motion_sampling=0.0", "train.epochs=1", "model.depth=1"]
    with pytest.raises(ConfigError, match="all 3 draws of frames would be the same: .* each of the 16 cached frames"):
        api.train(world / "cache", overrides=[*words, "train.draws=3"], protocol="cross-subject:2", run=tmp_path / "no")
    fewer = [*words, "model.frames=8", "train.draws=2"]
    trained = api.train(world / "cache", overrides=fewer, protocol="cross-subject:2", run=tmp_path / "run")
    assert trained.evaluation.draws == 2
    assert json.loads((tmp_path / "run/metrics.json").read_text())["draws"] == 2
    assert api.load(tmp_path / "run").evaluate(world / "cache") == trained.evaluation


def test_evaluate__dataset_with_test_subjects_only(world):
    run, data = api.load(world / "run"), open_dataset(world / "cache")
    listed = tuple(entry for entry in data.catalog.clips if entry.clip.subject == "2")
    alone = replace(data, catalog=data.catalog.model_copy(update={"clips": listed}))
    rule = parse_protocol("cross-subject:2", "nucla")
    both, one = (evaluate(run.net, some, rule, seed=0) for some in (data, alone))
    assert one.metrics == both.metrics
    with pytest.raises(ConfigError, match="leaves no training clip"):
        evaluate(run.net, alone, rule, seed=0, split="train")


def test_evaluate__counts_unusable_clips_of_its_side(world):
    run, data = api.load(world / "run"), open_dataset(world / "cache")
    broken = [[clip for clip in data.clips if clip.subject == person][:n] for person, n in (("1", 3), ("2", 1))]
    bad = tuple(BadClip(clip=clip, status="unreadable", reason="") for clips in broken for clip in clips)
    damaged = replace(data, bad=bad)
    rule = parse_protocol("cross-subject:2", "nucla")
    test, train = (evaluate(run.net, damaged, rule, seed=0, split=side) for side in ("test", "train"))
    assert (test.left_out, test.n_clips) == ({"unreadable": 1}, 29)
    assert (train.left_out, train.n_clips) == ({"unreadable": 3}, 27)


def test_evaluate__subset_of_views_counts_the_others(world, dtsf):
    run = api.load(world / "run")
    both, one = (run.evaluate(world / "cache", views=views) for views in ("all", "1,3"))
    assert (both.n_clips, both.left_out, both.groups_left_out) == (30, {}, {})
    assert both.task == "all views of unseen subjects (2)"
    assert one.task == "all views of unseen subjects (2); given only views 1, 3"
    assert (one.n_clips, one.left_out) == (20, {"of other views than --views": 10})
    assert one.metrics.view_weights[1] == 0.0
    alone = run.evaluate(world / "cache", protocol="cross-view:3", views="3")
    assert alone.task == "an unseen view alone (view 3) of performances seen from others; given only view 3"
    assert alone.left_out == {}
    with pytest.raises(ConfigError, match="--views 1: no test group of nucla has such a view"):
        run.evaluate(world / "cache", protocol="cross-view:3", views="1")
    told = dtsf.said("evaluate", "run", "--views", "1,3", "--draws", 2, cwd=world)
    assert "on 10 groups (20 clips) of nucla: all views of unseen subjects (2); given only views 1, 3" in told
    assert "mean of 2 draws of frames" in told
    assert "10 clips of other views than --views" in told


def documented(title):
    """Keys in the first column of the table under a heading."""
    part = DOC.read_text().split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    return set(re.findall(r"^\| `(\w+)`", part, re.MULTILINE))


def test_evaluate__json_keys_are_documented(world, dtsf, tmp_path):
    metrics = documented("metrics.json")
    assert set(json.loads((world / "run/metrics.json").read_text())) == metrics
    answer = dtsf.json("evaluate", world / "run", "--cache", world / "cache", cwd=tmp_path)
    assert set(answer) == metrics - {"predictions"}
    words = ("train", "--cache", world / "cache", "--protocol", "all", "--epochs", 1, "--json")
    trained = dtsf(*words, "--set", "train.held_out=0.3", "--out", "run", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    answer = json.loads(trained.stdout)
    assert set(answer) == metrics - {"predictions"} | documented("dtsf train --json")
    assert (answer["epochs"], answer["best_epoch"]) == (1, 1)
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert set().union(*lines) == documented("log.jsonl")
    told = " ".join(trained.stderr.split())
    assert "nucla, test: the training clips themselves: no generalisation is measured" in told
    for what in ("training", "held out", "test "):
        assert what in told
