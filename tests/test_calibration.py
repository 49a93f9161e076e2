"""Calibration of the evidence: order of the classes, fit, folds, and use in a run."""

import shutil
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from make_cache import SMALL_NETWORK, clip, draw
from make_groups import assert_same_outputs
from safetensors.torch import load_file, save_file

from dtsf import api
from dtsf.cache.reader import open_dataset
from dtsf.model.config import ModelConfig
from dtsf.model.evidence import (
    EvidenceCalibrator,
    Fitted,
    Observed,
    clip_statistics,
    dirichlet,
    probabilities,
    uncertainty,
)
from dtsf.model.network import DTSFNet
from dtsf.training.calibrate import calibration_folds, fit_calibrator
from dtsf.training.data import load_groups, share_groups
from dtsf.training.metrics import calibration_error
from dtsf.training.protocols import Split
from dtsf.training.recipe import load_recipe
from dtsf.training.splits import make_folds

WORDS = ["train.epochs=2", *SMALL_NETWORK]
PROTOCOL = "cross-subject:5"


@pytest.mark.parametrize(("held_out", "unit"), [(("3",), "people"), (("3", "2+3"), "groups"), (("3", None), "groups")])
def test_calibration_folds__of_people_who_also_train_are_groups(held_out, unit):
    sides = [[clip(f"{who}{k}", subject=who) for who in people for k in range(6)] for people in (("1", "2"), held_out)]
    split = Split(train=tuple(sides[0]), test=(), held_out=tuple(sides[1]), left_out={}, task="")
    assert calibration_folds(split, load_recipe("default"), "cross-subject")[1] == f"{unit} held out of training"


def calibrator(seed, width=8, classes=5, channels=6, nearness=0.0):
    """A fitted calibrator with random values."""
    torch.manual_seed(seed)
    made = EvidenceCalibrator(width, classes, channels)
    made.set_reference({"centre_D": torch.randn(width), "direction_KD": F.normalize(torch.randn(classes, width))})
    made.set_reference({"clip_mean_S": torch.randn(3 + channels), "clip_deviation_S": torch.rand(3 + channels) + 0.1})
    made.set_parameters(Fitted(4 * torch.rand(()) + 0.1, torch.tensor(nearness), torch.randn(()), 2 * torch.rand(3)))
    return made


@given(st.integers(0, 10**6), st.floats(0.01, 30.0))
def test_calibrator__without_class_means_keeps_the_order_of_the_classes(seed, spread):
    made = calibrator(seed)
    logits, feature, weights = spread * torch.randn(40, 5), 10 * torch.randn(40, 8), torch.rand(40, 3)
    alpha = made(logits, feature, 100 * torch.randn(40, 3, 9), weights / weights.sum(1, keepdim=True))
    assert (alpha >= 1).all()
    assert alpha.isfinite().all()
    p, u = probabilities(alpha), uncertainty(alpha)
    assert ((u > 5e-4) & (u < 0.995)).all()
    torch.testing.assert_close(p.sum(-1), torch.ones(40))
    # The class with most evidence keeps the largest probability. Others may become equal, but never change their order.
    best = logits.argmax(-1, keepdim=True)
    assert torch.equal(p.gather(-1, best).squeeze(-1), p.amax(-1))
    order = logits.argsort(-1)
    assert (p.gather(-1, order).diff(dim=-1) >= 0).all()


def test_calibrator__discounts_clips_unlike_the_training_clips():
    torch.manual_seed(0)
    moving = torch.linspace(0, 6, 8).sin().view(1, 8, 1, 1, 1) * torch.randn(20, 1, 3, 3, 6)
    clips = moving + torch.randn(20, 1, 1, 1, 6)
    clips = clips + 0.05 * torch.randn(20, 8, 3, 3, 6)
    made, scale = calibrator(0), torch.ones(6)
    known = clip_statistics(clips, scale)
    made.set_reference({"clip_mean_S": known.mean(0), "clip_deviation_S": known.std(0)})
    made.set_reference({"reference_distance_2": made.distance(known).quantile(0.95, 0), "weight_3": torch.tensor([1.0, 0.0, 0.0])})

    def doubt(x):
        statistics = clip_statistics(x, scale)[:, None]
        return uncertainty(made(*(torch.ones(len(x), n) for n in (5, 8)), statistics, torch.ones(len(x), 1)))

    usual = doubt(clips).median()
    still = clips[:, :1].expand(-1, 8, -1, -1, -1)
    for strange in (still, still + 0.05 * torch.randn_like(clips), 9 * torch.randn_like(clips), clips + 9.0):
        assert (doubt(strange) > 1.5 * usual).all()
    assert doubt(still).min() > 0.9
    assert clip_statistics(clips[:, :1], scale).isfinite().all()


def observed(n, seed, *, flat, means=0.0):
    """Outputs with the true class drawn from ``softmax(logits)``, evidence that is ``flat`` times too flat, and class means that
    are nearer to the true class by ``means``."""
    torch.manual_seed(seed)
    logits = 3 * torch.randn(n, 6, dtype=torch.float64)
    lost = torch.rand(n) < 0.3  # their evidence is random; a feature marks them
    label = torch.where(lost, torch.randint(6, (n,)), torch.multinomial(logits.softmax(-1), 1).squeeze(1))
    signs = torch.stack([logits.exp().sum(-1).log(), torch.zeros(n), torch.where(lost, -1.0, 1.0)], -1)
    near = torch.rand(n, 6, dtype=torch.float64) - 0.5 + means * F.one_hot(label, 6)
    return Observed((logits / flat).exp(), near, signs.double(), torch.ones(n).double()), label, lost


def test_fit_calibrator__calibrates_new_groups():
    seen, label, _ = observed(1500, 0, flat=2.0)
    new, new_label, lost = observed(4000, 1, flat=2.0)
    fitted = fit_calibrator(seen, label)
    weight = fitted.weight_3
    assert 1.7 < fitted.inverse_temperature < 2.3
    assert fitted.nearness < 0.3  # class means without information
    assert weight[2] > 5 * weight[1]
    assert (weight >= 0).all()
    alpha = new.calibrated(fitted)
    assert calibration_error(probabilities(new.evidence_BK + 1), new_label) > 0.1
    assert calibration_error(probabilities(alpha), new_label) < 0.04
    u = uncertainty(alpha)
    assert u[lost].mean() > 2 * u[~lost].mean()


def test_fit_calibrator__class_means_correct_the_evidence():
    seen, label, _ = observed(1500, 0, flat=2.0, means=0.5)
    new, new_label, _ = observed(4000, 1, flat=2.0, means=0.5)
    fitted = fit_calibrator(seen, label)
    assert fitted.nearness > 3
    before, after = (alpha.argmax(-1) == new_label for alpha in (new.evidence_BK, new.calibrated(fitted)))
    assert after.double().mean() > before.double().mean() + 0.1
    assert calibration_error(probabilities(new.calibrated(fitted)), new_label) < 0.06


def test_calibrator__class_without_training_groups_gains_nothing():
    made = calibrator(0, nearness=20.0)
    made.direction_KD[2] = 0.0
    logits, feature = torch.zeros(50, 5), 10 * torch.randn(50, 8)
    p = probabilities(made(logits, feature, torch.randn(50, 1, 9), torch.ones(50, 1)))
    torch.testing.assert_close(p[:, 2], p.amin(-1))


def test_fit_calibrator__few_groups_stay_near_the_prior():
    few, label, _ = observed(3, 0, flat=1.0)
    fitted = fit_calibrator(few, label)
    assert fitted.weight_3.tolist() == pytest.approx([1.0, 0.0, 0.0], abs=0.6)
    assert fitted.nearness < 5  # the unit of its prior


def test_make_folds__divide_by_the_unit_of_the_protocol(tmp_path):
    data = open_dataset(draw(tmp_path, subjects=(1, 2, 3, 4, 5)))
    for rule, of, n in (("cross-subject", "subject", 2), ("split", "subject", 3), ("cross-view", "view", 2), ("all", "subject", 9)):
        parts, what = make_folds(data.clips, rule, n)
        assert what == ("views held out" if rule == "cross-view" else "people held out")
        assert len(parts) == min(n, 5)
        held = [clip.id for part in parts for clip in part.held_out]
        assert sorted(held) == sorted(clip.id for clip in data.clips)
        for part in parts:
            assert len(part.train) + len(part.held_out) == len(data.clips)
            assert not {getattr(clip, of) for clip in part.train} & {getattr(clip, of) for clip in part.held_out}
    nobody = [clip.model_copy(update={"subject": None}) for clip in data.clips]
    parts, what = make_folds(nobody, "cross-subject", 2)
    assert what == "groups held out"
    for part in parts:
        assert not {clip.group for clip in part.train} & {clip.group for clip in part.held_out}
        assert {clip.label for clip in part.train} == {clip.label for clip in part.held_out} == {0, 1, 2}
    pairs = {"1": "1+2", "2": "2+3", "3": "3", "4": "4+5", "5": "5"}
    together, _ = make_folds([clip.model_copy(update={"subject": pairs[clip.subject]}) for clip in data.clips], "all", 2)
    held = sorted(sorted({clip.id.split("_")[1] for clip in part.held_out}) for part in together)
    assert held == [["s1", "s2", "s3"], ["s4", "s5"]]
    assert make_folds([clip for clip in data.clips if clip.group == data.clips[0].group], "all", 2)[0] == []


@pytest.mark.parametrize("rule", ["cross-subject", "cross-view"])
def test_share_groups__reads_parts_as_load_groups_does(tmp_path, rule):
    data = open_dataset(draw(tmp_path, subjects=(1, 2, 3)))
    clips = [clip.model_copy(update={"background": f"room {clip.subject}"}) for clip in data.clips]
    load = partial(load_groups, data)
    shared, used = share_groups(load, clips[1:]), set()
    for part in [one for fold in make_folds(clips[1:], rule, 2)[0] for one in (fold.train, fold.held_out)] + [clips[:4]]:
        ours, wanted = shared(part), load(part)
        assert (ours.names, ours.label_G.tolist()) == (wanted.names, wanted.label_G.tolist())
        assert torch.equal(ours.mask_GV, wanted.mask_GV)
        for field in ("embeddings_NFHWC", "background_N", "subject_N"):
            x, y = (getattr(one, field)[one.row_GV[one.mask_GV]] for one in (ours, wanted))
            assert torch.equal(x, y)
        used.add(ours.embeddings_NFHWC.data_ptr())
    # One copy, and another of the clip that was not loaded before.
    assert len(used) == 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A cache, and a calibrated run."""
    root = tmp_path_factory.mktemp("calibrated")
    draw(root / "cache", subjects=(1, 2, 3, 4, 5))
    result = api.train(root / "cache", protocol=PROTOCOL, overrides=WORDS, run=root / "run")
    return root, result


def test_load__run_without_a_weight_of_class_means(trained, tmp_path):
    shutil.copytree(trained[0] / "run", tmp_path / "run")
    file = tmp_path / "run/last/model.safetensors"
    weights = load_file(file)
    del weights["calibrator.nearness"]
    save_file(weights, file)
    assert api.load(tmp_path / "run").net.calibrator.nearness == 0


def test_calibrate__holds_out_people_and_stores_it(trained):
    root, result = trained
    run = api.load(root / "run")
    fitted = run.state.calibration
    assert (fitted.held_out, fitted.folds, fitted.n_groups) == ("people held out", 2, 4 * 3 * 2)
    assert fitted.nll[1] <= fitted.nll[0] + 1e-6
    assert run.net.calibrator.fitted
    assert not (root / "run/calibration").exists()
    again = run.evaluate(root / "cache")
    assert again == result.evaluation
    answers = run.held_out.answers
    assert (root / "run/held_out.safetensors").stat().st_size < 30_000
    assert sorted(answers.subjects) == sorted("1234" * 6)
    assert len(answers.group_R) == 24 * 7  # each set of three views
    p, label = answers.complete().log_p_RK.exp(), answers.complete().label_R
    assert -p.gather(1, label[:, None]).log().mean().item() == pytest.approx(fitted.nll[1], rel=1e-4)
    eighty, ninety = again.sets
    assert (eighty.by, eighty.n_people, eighty.n_held_out, ninety.by) == ("people", 4, 24, "groups")
    assert 0 <= eighty.coverage <= 1 <= eighty.mean_size <= 3
    assert ninety.worst_subject is None  # the test has one person
    assert [row.share for row in again.surest] == [0.5, 0.8, 0.9]
    raw = api.load(root / "run")
    raw.net.calibrator.fitted = False
    pairs = list(zip(again.metrics.predictions, raw.evaluate(root / "cache").metrics.predictions, strict=True))
    assert all(one.predicted == other.predicted for one, other in pairs)
    assert any(one.uncertainty != other.uncertainty for one, other in pairs)


def test_calibrate__resumed_after_a_kill_gives_the_same_run(trained, tmp_path):
    root, result = trained

    def kill(report):
        if report.part.endswith("fold 2 of 2") and report.epoch == 1:
            raise KeyboardInterrupt

    words = {"protocol": PROTOCOL, "overrides": WORDS, "run": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        api.train(root / "cache", **words, on_epoch=kill)
    assert not api.load(tmp_path / "run").net.calibrator.fitted  # usable, uncalibrated
    done = api.train(root / "cache", **words, resume=True, workers=1)  # one after another, with the same numbers
    assert done.evaluation == result.evaluation
    ours, theirs = (load_file(at / "run/last/model.safetensors") for at in (tmp_path, root))
    assert all(torch.equal(x, theirs[name]) for name, x in ours.items())
    assert api.train(root / "cache", **words, resume=True).evaluation == result.evaluation


def test_calibrate__held_out_groups_need_no_more_training(trained, tmp_path):
    root, _ = trained
    words, reports = [*WORDS, "train.held_out_subjects=1,2"], []
    api.train(root / "cache", protocol=PROTOCOL, overrides=words, run=tmp_path / "run", on_epoch=reports.append)
    fitted = api.load(tmp_path / "run").state.calibration
    assert (fitted.held_out, fitted.folds, fitted.n_groups) == ("people held out of training", 1, 12)
    assert [report.part for report in reports] == ["", ""]
    api.train(root / "cache", protocol=PROTOCOL, overrides=[*WORDS, "train.calibrate=0"], run=tmp_path / "none")
    assert api.load(tmp_path / "none").state.calibration is None


@pytest.mark.slow
def test_export__onnx_equals_the_calibrated_network(trained, tmp_path):
    run = api.load(trained[0] / "run")
    assert run.net.calibrator.fitted
    api.export(trained[0] / "run", tmp_path / "net.onnx")
    torch.manual_seed(1)
    for x in (torch.randn(5, 3, 16, 6, 6, 8), torch.randn(4, 3, 1, 6, 6, 8) + 0.1 * torch.randn(4, 3, 16, 6, 6, 8)):
        assert_same_outputs(tmp_path / "net.onnx", run.net, x, rtol=1e-3, atol=1e-4)


def test_network__uncalibrated_evidence_is_unchanged():
    torch.manual_seed(0)
    net = DTSFNet(ModelConfig(width=8, depth=1, frames=3, reduce=4), channels=5, side=6, n_classes=4)
    x = torch.randn(2, 3, 3, 6, 6, 5)
    assert torch.equal((output := net.eval()(x)).alpha_BK, dirichlet(output.logits_BK))
    net.calibrator.set_parameters(Fitted(torch.tensor(2.0), torch.tensor(0.0), torch.tensor(0.0), torch.ones(3)))
    assert torch.equal((output := net.train()(x)).alpha_BK, dirichlet(output.logits_BK))
    assert not torch.equal((output := net.eval()(x)).alpha_BK, dirichlet(output.logits_BK))
