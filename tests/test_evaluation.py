"""Evaluation: metrics, evaluated and omitted clips, draws, keys of the JSON, unknown actions, and adaptation."""

import itertools
import json
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from make_cache import SMALL_NETWORK, draw
from sklearn.metrics import roc_auc_score, roc_curve

from dtsf import api
from dtsf.cache.reader import open_dataset
from dtsf.cache.schema import BadClip
from dtsf.errors import CheckpointError, ConfigError
from dtsf.files.read import json_text
from dtsf.predict.prediction import Prediction
from dtsf.training.data import Groups, evaluation_batches, load_groups
from dtsf.training.evaluate import OnlineAdapter, evaluate
from dtsf.training.frame_sampling import uniform_times
from dtsf.training.metrics import compute_metrics, open_set_metrics
from dtsf.training.protocols import parse_protocol

DOC = Path(__file__).resolve().parents[1] / "docs/output.md"


def computed(probability, label, uncertainty=None):
    n, classes = probability.shape
    groups = Groups(torch.zeros(n, 1, 1, 1, 1), torch.arange(n).view(n, 1), label, tuple(map(str, range(n))))
    uncertainty = torch.linspace(0.1, 0.9, n) if uncertainty is None else uncertainty
    names = tuple(f"c{k}" for k in range(classes))
    return compute_metrics(probability, uncertainty, torch.ones(n, 1), label.view(n, 1), groups, names)


def by_brute_force(probability, label):
    """The same error group by group, in exact fractions."""
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
    # Without knowledge each probability is 1 / K, up to rounding. With 3, 5 or 15 classes this is the edge of two bins.
    spread = 1e-7 if knows_nothing else 4.0
    probability = (spread * torch.rand(n, classes)).softmax(-1)
    label = torch.randint(classes, (n,))
    metrics = computed(probability, label)
    assert metrics.ece == pytest.approx(by_brute_force(probability, label), abs=1e-5)
    table = [row for row in metrics.reliability if row.n_groups]
    assert len(metrics.reliability) == 15
    assert sum(row.n_groups for row in table) == n
    assert all(row.low - 1e-6 <= row.probability <= row.high + 1e-6 for row in table)
    assert metrics.ece == pytest.approx(sum(r.n_groups / n * abs(r.accuracy - r.probability) for r in table), abs=1e-5)
    assert metrics.top1 == pytest.approx(sum(row.n_groups / n * row.accuracy for row in table))
    if knows_nothing:
        assert [row.n_groups for row in metrics.reliability if row.n_groups] == [n]
        assert metrics.ece == pytest.approx(abs(metrics.top1 - 1 / classes), abs=1e-5)


def test_compute_metrics__of_3000_classes_is_a_small_document():
    torch.manual_seed(0)
    label = torch.arange(3000).repeat(2)
    metrics = computed(torch.rand(6000, 3000), label)
    assert metrics.confusion == ()
    assert sum(count for *_, count in metrics.confusion_cells) == 6000
    assert {cell[:2] for cell in metrics.confusion_cells} == {(p.label, p.predicted) for p in metrics.predictions}
    assert len(json_text(metrics.model_dump(mode="json"))) < 2.5e6


def test_compute_metrics__auroc_is_the_share_of_ordered_pairs():
    probability = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    label = torch.tensor([0, 1, 0, 0])  # right, wrong, wrong, right
    metrics = computed(probability, label, torch.tensor([0.1, 0.5, 0.2, 0.3]))
    assert metrics.auroc_uncertainty == pytest.approx(3 / 4)
    assert metrics.confusion == ((2, 1), (1, 0))
    assert metrics.confusion_cells == ((0, 0, 2), (0, 1, 1), (1, 0, 1))
    assert metrics.per_class == {"c0": pytest.approx(2 / 3), "c1": 0.0}
    assert (metrics.top1, metrics.top5) == (0.5, 1.0)
    assert computed(probability, probability.argmax(-1)).auroc_uncertainty is None


def test_evaluate__draws_read_other_frames_and_repeat(world):
    times = torch.cat([uniform_times(4, (k + 0.5) / 3) for k in range(3)])
    assert times.sort().values == pytest.approx(((torch.arange(12) + 0.5) / 12).tolist())
    run = api.load(world / "run")
    one, three = (run.evaluate(world / "cache", draws=n) for n in (1, 3))
    assert (one.draws, three.draws) == (1, 3)
    assert three == run.evaluate(world / "cache", draws=3)
    assert one == run.evaluate(world / "cache")
    pairs = zip(one.metrics.predictions, three.metrics.predictions, strict=True)
    assert any(a.probability != b.probability for a, b in pairs)
    for p in three.metrics.predictions:
        assert sum(p.view_weights) == pytest.approx(1.0, abs=1e-5)


def test_check_draws__refuses_equal_draws(world, tmp_path):
    def train(*words):
        words = ["model.motion_sampling=0.0", "train.epochs=1", "model.depth=1", *words]
        return api.train(world / "cache", overrides=words, protocol="cross-subject:2", run=tmp_path / "run")

    with pytest.raises(ConfigError, match="all 3 draws of frames would be the same: .* each of the 16 cached frames"):
        train("train.draws=3")
    trained = train("model.frames=8", "train.draws=2")
    assert trained.evaluation.draws == 2
    assert json.loads((tmp_path / "run/metrics.json").read_text())["draws"] == 2
    assert api.load(tmp_path / "run").evaluate(world / "cache") == trained.evaluation


def test_evaluate__dataset_with_test_subjects_only(world):
    run, data = api.load(world / "run"), open_dataset(world / "cache")
    listed = tuple(entry for entry in data.catalog.clips if entry.clip.subject == "2")
    alone = replace(data, catalog=data.catalog.model_copy(update={"clips": listed}))
    rule = parse_protocol("cross-subject:2", "nucla")
    assert evaluate(run.net, alone, rule, seed=0).metrics == evaluate(run.net, data, rule, seed=0).metrics
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
    assert alone.task == "an unseen view alone (view 3) of performances seen from others" + (
        "; given only view 3; 10 of 20 test clips show recordings of the training"
    )
    assert alone.left_out == {}
    with pytest.raises(ConfigError, match="--views 1: no test group of nucla has such a view"):
        run.evaluate(world / "cache", protocol="cross-view:3", views="1")
    shown = dtsf.said("evaluate", "run", "--views", "1,3", "--draws", 2, cwd=world)
    assert "on 10 groups (20 clips) of nucla: all views of unseen subjects (2); given only views 1, 3" in shown
    assert "mean of 2 draws of frames" in shown
    assert "10 clips of other views than --views" in shown


def test_prediction__json_keys_are_documented():
    assert set(Prediction.model_fields) == documented("dtsf predict --json")


def documented(title):
    """Keys in the first column of the table under a heading."""
    part = DOC.read_text().split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    return set(re.findall(r"^\| `(\w+)`", part, re.MULTILINE))


def test_evaluate__json_keys_are_documented(world, dtsf, tmp_path):
    metrics = documented("metrics.json")
    assert set(json.loads((world / "run/metrics.json").read_text())) == metrics
    assert set(dtsf.json("evaluate", world / "run", "--cache", world / "cache", cwd=tmp_path)) == metrics - {"predictions"}
    words = ("train", "--cache", world / "cache", "--protocol", "all", "--epochs", 1, "--json")
    trained = dtsf(*words, "--set", "train.held_out=0.3", "--out", "run", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    answer = json.loads(trained.stdout)
    assert set(answer) == metrics - {"predictions"} | documented("dtsf train --json")
    assert (answer["epochs"], answer["best_epoch"]) == (1, 1)
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert set().union(*lines) == documented("log.jsonl")
    shown = " ".join(trained.stderr.split())
    for words in ("nucla, test: the training clips themselves: no generalisation is measured", "training", "held out", "test "):
        assert words in shown


WORDS = ["train.epochs=8", *SMALL_NETWORK]
PROTOCOL = "cross-subject:5"


@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 60), st.booleans())
def test_open_set_metrics__equal_scikit_learn(seed, n_known, n_unknown, ties):
    rng = np.random.default_rng(seed)
    known, unknown = rng.random(n_known), (rng.random(n_unknown) + 0.2).clip(max=1)
    if ties:
        known, unknown = known.round(1), unknown.round(1)
    found = open_set_metrics("x", "x", torch.tensor(known), torch.tensor(unknown))
    is_known = np.r_[np.ones(n_known), np.zeros(n_unknown)]
    certainty = -np.r_[known, unknown]
    assert found.auroc == pytest.approx(roc_auc_score(is_known, certainty), abs=1e-6)
    passed, accepted, _ = roc_curve(is_known, certainty, drop_intermediate=False)
    assert found.fpr95 == pytest.approx(passed[accepted >= 0.95 - 1e-12].min(), abs=1e-9)
    assert (found.n_groups, found.uncertainty) == (n_unknown, pytest.approx(unknown.mean()))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A cache with two datasets, and a run trained on three of the four classes of one."""
    root = tmp_path_factory.mktemp("unknown")
    draw(root / "cache", classes=4, subjects=(1, 2, 3, 4, 5))
    draw(root / "cache", name="other", classes=2, seed=1)
    words = [*WORDS, "train.exclude_classes=class 1"]
    api.train(root / "cache", dataset="drawn", protocol=PROTOCOL, overrides=words, run=root / "run")
    return root


def test_exclude_classes__neither_trained_nor_tested(trained):
    run = api.load(trained / "run")
    assert run.state.info.class_names == ("class 0", "class 2", "class 3")
    plain = run.evaluate(trained / "cache", dataset="drawn")
    assert plain.metrics.n_groups == 3 * 2
    assert (plain.left_out, plain.unknown) == ({"of classes that the network does not know": 6}, None)
    assert plain.metrics.top1 > 0.6  # its three classes by their own numbers: label 2 is "class 3"
    assert set(plain.metrics.per_class) == set(run.state.info.class_names)
    excluded = run.evaluate(trained / "cache", dataset="drawn", unknown="excluded")
    assert excluded.metrics == plain.metrics
    assert (excluded.unknown.n_groups, excluded.unknown.name) == (2, "excluded")
    assert excluded.unknown.description == "classes excluded from training: class 1"
    others = run.evaluate(trained / "cache", dataset="drawn", unknown="other")
    assert others.unknown.n_groups == 4  # class 1 by two people: the run knows class 0
    metrics = json.loads((trained / "run/metrics.json").read_text())
    assert (metrics["unknown"], metrics["top1"]) == (None, plain.metrics.top1)


def test_exclude_classes__refuses_impossible_requests(trained, tmp_path):
    def train(*words):
        options = {"protocol": PROTOCOL, "overrides": [*WORDS, *words], "run": tmp_path / "run"}
        api.train(trained / "cache", dataset="drawn", **options)

    with pytest.raises(ConfigError, match="no class nod; drawn has class 0, class 1"):
        train("train.exclude_classes=nod")
    with pytest.raises(ConfigError, match="leaves 1 of 4 classes"):
        train("train.exclude_classes=class 0,class 1,class 2")
    train("train.epochs=1", "train.calibrate=0")
    run = api.load(tmp_path / "run")
    with pytest.raises(ConfigError, match="the network knows every class of drawn: train with --set train.exclude_classes"):
        run.evaluate(trained / "cache", dataset="drawn", unknown="excluded")
    with pytest.raises(CheckpointError, match="trained on 4 classes .*, other has 2 .*: evaluate on a dataset with the same"):
        run.evaluate(trained / "cache", dataset="other")


def test_evaluate_command__unknown_and_adapt(trained, dtsf, tmp_path):
    words = ("evaluate", trained / "run", "--cache", trained / "cache", "--unknown", "excluded", "--adapt")
    answer, shown = dtsf.json(*words, cwd=tmp_path), dtsf.said(*words, cwd=tmp_path)
    keys = {"name", "description", "n_groups", "auroc", "fpr95", "uncertainty"}
    assert (set(answer["unknown"]), answer["adapted"]) == (keys, True)
    assert "unknown actions (2 groups: classes excluded from training: class 1)" in shown
    assert "adapted to the test clips" in shown


def test_train__keeps_statistics_of_all_tokens(trained):
    run, data = api.load(trained / "run"), open_dataset(trained / "cache", "drawn")
    groups = load_groups(data, [clip for clip in data.clips if clip.label != 1 and clip.subject != "5"])
    kept = run.net.feature_stats.mean_var_N2D
    seen = []
    run.net.encoders[0].norm_f.register_forward_hook(lambda *given: seen.append(given[2].flatten(0, -2)))
    with torch.inference_mode():
        for batch in evaluation_batches(groups, 7, run.net.config.frames, run.net.config.motion_sampling):
            run.net(batch.x_BVTHWC, batch.mask_BV)
    var, mean = torch.var_mean(torch.cat(seen), 0, correction=0)
    torch.testing.assert_close(kept[run.net.config.depth], torch.stack([mean, var]), rtol=1e-3, atol=1e-4)


def test_online_adapter__aligns_a_shifted_stream(trained):
    run, data = api.load(trained / "run"), open_dataset(trained / "cache", "drawn")
    groups = load_groups(data, [clip for clip in data.clips if clip.label != 1])
    before = {name: x.clone() for name, x in run.net.state_dict().items()}
    torch.manual_seed(0)
    other = [
        (batch.x_BVTHWC.float().cumsum(2) + torch.randn(8), batch.mask_BV)
        for batch in evaluation_batches(groups, 1, run.net.config.frames, run.net.config.motion_sampling)
    ]

    def stream(rate):
        adapted = OnlineAdapter(run.net, rate=rate)
        for _ in range(2):
            for sample in other:
                adapted([sample, sample])
        return adapted, (adapted.running_N2D - run.net.feature_stats.mean_var_N2D).abs().mean().item()

    (adapted, apart), (_, apart_without) = stream(0.2), stream(0.0)
    assert apart < 0.8 * apart_without
    assert all(torch.equal(x, before[name]) for name, x in run.net.state_dict().items())
    head = {name: x for name, x in adapted.net.state_dict().items() if "head" in name or name.startswith("calibrator")}
    assert all(torch.equal(x, before[name]) for name, x in head.items())
    same, again = (run.evaluate(trained / "cache", dataset="drawn", adapt=True) for _ in range(2))
    assert same == again
    assert same.adapted
    run.net.feature_stats.mean_var_N2D.zero_()
    with pytest.raises(ConfigError, match="has no statistics of its training clips"):
        run.evaluate(trained / "cache", dataset="drawn", adapt=True)
