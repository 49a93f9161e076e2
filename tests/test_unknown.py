"""Unknown actions and adaptation: what is measured is what the textbook formula gives, and nothing of either leaks into the run."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from make_cache import draw
from sklearn.metrics import roc_auc_score, roc_curve

from dtsf import api
from dtsf.cache.reader import open_dataset
from dtsf.errors import CheckpointError, ConfigError
from dtsf.training.calibrate import feature_statistics
from dtsf.training.data import evaluation_batches, load_groups
from dtsf.training.evaluate import OnlineAdapter
from dtsf.training.metrics import open_set_metrics

EACH = 'model.branch=[{input="motion", weight=0.67}, {input="dynamic", channels=8, weight=0.33}]'
WORDS = ["train.epochs=8", "model.width=16", "model.depth=1", EACH, "model.occlusion_threshold=0.0", "train.lr=0.01"]
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
    """A cache with two data sets, and a run that learnt three of four classes of one."""
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
    assert plain.left_out == {"of classes that the network does not know": 6}
    assert plain.unknown is None
    assert plain.metrics.top1 > 0.6  # its three classes by their own numbers: label 2 is "class 3"
    assert set(plain.metrics.per_class) == set(run.state.info.class_names)
    asked = run.evaluate(trained / "cache", dataset="drawn", unknown="excluded")
    assert asked.metrics == plain.metrics
    assert (asked.unknown.n_groups, asked.unknown.name) == (2, "excluded")
    assert asked.unknown.description == "classes excluded from training: class 1"
    others = run.evaluate(trained / "cache", dataset="drawn", unknown="other")
    assert others.unknown.n_groups == 4  # class 1 by two people: the run knows class 0
    metrics = json.loads((trained / "run/metrics.json").read_text())
    assert metrics["unknown"] is None
    assert metrics["top1"] == plain.metrics.top1


def test_exclude_classes__refuses_impossible_requests(trained, tmp_path):
    def train(*words):
        api.train(
            trained / "cache", dataset="drawn", protocol=PROTOCOL, overrides=[*WORDS, *words], run=tmp_path / "run"
        )

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
    answer = dtsf.json(*words, cwd=tmp_path)
    assert set(answer["unknown"]) == {"name", "description", "n_groups", "auroc", "fpr95", "uncertainty"}
    assert answer["adapted"] is True
    shown = dtsf.said(*words, cwd=tmp_path)
    assert "unknown actions (2 groups: classes excluded from training: class 1)" in shown
    assert "adapted to the test clips" in shown


def test_feature_statistics__cover_all_tokens(trained):
    run, data = api.load(trained / "run"), open_dataset(trained / "cache", "drawn")
    groups = load_groups(data, [clip for clip in data.clips if clip.label != 1 and clip.subject != "5"])
    kept = run.net.feature_stats.mean_var_N2D
    torch.testing.assert_close(kept, feature_statistics(run.net, groups).float(), rtol=1e-3, atol=1e-4)
    seen = []
    run.net.encoders[0].norm_f.register_forward_hook(lambda *given: seen.append(given[2].flatten(0, -2)))
    with torch.inference_mode():
        for batch in evaluation_batches(groups, 7, run.net.config.frames, run.net.config.motion_sampling):
            run.net(batch.x_BVTHWC, batch.mask_BV)
    tokens = torch.cat(seen)
    torch.testing.assert_close(
        kept[run.net.config.depth], torch.stack([tokens.mean(0), tokens.var(0, correction=0)]), rtol=1e-3, atol=1e-4
    )


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
