"""Probes of the input: twins of clips, and what networks with known habits answer to them."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from make_groups import CLASSES, VIEWS, toy, train

from dtsf.model.config import BranchConfig, ModelConfig
from dtsf.model.network import DTSFNet
from dtsf.training.probes import correlation, probe_inputs
from dtsf.training.twins import OTHER_BACKGROUND, SHUFFLED, TWINS, foreground, make_twins, plan_twins

NAMES, VIEW_NAMES = ("a", "b", "c"), ("1", "2")
QUICK = ("train.lr=0.01", "loss.kl=0.0", "train.epochs=30", "augment.view_drop=0.0", "train.batch_size=6")


@pytest.fixture
def groups():
    """Eighteen groups in which the channel of the class rises; one view is missing."""
    made = toy()
    made.row_GV[3, 1] = -1
    return made


def static(x_NFHWC):
    return x_NFHWC.float().mean(1, keepdim=True)


def test_make_twins__change_time_or_background_alone(groups):
    plan = plan_twins(groups)
    before = groups.embeddings_NFHWC.float()
    rows = groups.row_GV[groups.mask_GV]
    twins = {name: make_twins(groups, name, plan) for name in TWINS}
    for twin in twins.values():
        assert torch.equal(twin.mask_GV, groups.mask_GV)
        assert torch.equal(twin.label_G, groups.label_G)
        assert len(twin.embeddings_NFHWC) == len(rows)
    shuffled = twins[SHUFFLED].embeddings_NFHWC
    torch.testing.assert_close(static(shuffled), static(before[rows]))
    assert not (shuffled == before[rows]).flatten(1).all(1).any(), "each order differs from that of the clip"
    order = plan.order_NF[groups.row_GV[0]]
    assert torch.equal(order[0], order[1]), "the cameras of a group stay synchronous"
    assert torch.equal(twins["backwards"].embeddings_NFHWC, before[rows].flip(1))
    still = twins["one frame"].embeddings_NFHWC
    assert torch.equal(still, before[rows][:, 2:3].expand_as(still))
    behind, weight = plan.behind_N[rows], foreground(before[rows])
    label, view = torch.zeros(len(before), dtype=torch.int64), torch.zeros(len(before), dtype=torch.int64)
    label[rows], view[rows] = groups.label_G.repeat_interleave(2)[groups.mask_GV.flatten()], groups.mask_GV.nonzero()[:, 1]
    assert (label[behind] != label[rows]).all()
    assert (view[behind] == view[rows]).all()
    assert set(behind.tolist()) <= set(rows.tolist()), "an absent view is nobody's background"
    assert ((weight == 0).flatten(1).double().mean(1) >= 0.5).all(), "half of each clip is background"
    assert (weight.flatten(1).amax(1) == 1).all()
    wanted = before[rows] + (1 - weight) * (static(before[behind]) - static(before[rows]))
    torch.testing.assert_close(twins[OTHER_BACKGROUND].embeddings_NFHWC, wanted)
    empty = before[rows].mean((0, 1, 2, 3))
    wanted = before[rows] + (1 - weight) * (empty - static(before[rows]))
    torch.testing.assert_close(twins["empty background"].embeddings_NFHWC, wanted)


def test_plan_twins__takes_a_background_of_another_name(groups):
    background = torch.arange(18 * VIEWS) // VIEWS % 2
    behind = plan_twins(replace(groups, background_N=background)).behind_N
    rows = groups.row_GV[groups.mask_GV]
    assert (background[behind[rows]] != background[rows]).all()


def probed(groups, run, *overrides):
    net = train(run, groups, *QUICK, *overrides)[0].net
    probes = probe_inputs(net, groups, NAMES, VIEW_NAMES)
    assert probes == probe_inputs(net, groups, NAMES, VIEW_NAMES)
    return {one.name: one for one in probes.inputs}, {one.feature: one for one in probes.static_shares}


def test_probe_inputs__of_a_network_that_reads_motion(groups, tmp_path):
    inputs, shares = probed(groups, tmp_path / "run", 'model.branch=[{input="dynamic"}]')
    assert list(inputs) == [*TWINS, "only view 1", "only view 2"]
    assert inputs["only view 2"].n_groups == 17
    assert all(one.top1_unchanged > 0.9 for one in inputs.values())
    assert inputs["empty background"].top1 > 0.9
    assert inputs["one frame"].top1 < 0.6
    assert inputs["one frame"].changed > 0.4
    before, after, count = inputs["one frame"].usual_change
    assert before != after
    assert count <= round(18 * inputs["one frame"].changed)
    assert list(shares) == ["branch 0: dynamic of each view", "all branches, fused"]
    for one in shares.values():
        assert one.static + one.dynamic + one.residual == pytest.approx(1)
        assert one.keeps_background > 0.8


def test_probe_inputs__of_a_network_that_reads_the_background(groups, tmp_path):
    # One cell moves in the same way for all classes, and each class has its own place.
    place = torch.nn.functional.one_hot(groups.label_G.repeat_interleave(VIEWS), 6)[:, None, None, None]
    x = 0.005 * torch.randn(36, 4, 3, 3, 6, generator=torch.Generator().manual_seed(0)) + 2.0 * place
    x[:, :, 1, 1, 5] += torch.linspace(-1, 1, 4)
    placed = replace(groups, embeddings_NFHWC=x.half())
    branch = 'model.branch=[{input="frames"}]'
    inputs, shares = probed(placed, tmp_path / "run", branch, "model.normalise=data")
    assert inputs[SHUFFLED].top1 == inputs["one frame"].top1 == inputs["backwards"].top1 == 1
    assert inputs[OTHER_BACKGROUND].top1 < 0.3
    fused = shares["all branches, fused"]
    assert fused.keeps_shuffled > 0.9 > 0.5 > fused.keeps_background
    assert fused.static > fused.dynamic


@pytest.mark.parametrize(("change", "name", "why"), [
    (lambda g: replace(g, label_G=torch.zeros_like(g.label_G)), OTHER_BACKGROUND, "all groups are of one class"),
    (lambda g: replace(g, background_N=torch.zeros(36, dtype=torch.int64)), OTHER_BACKGROUND, "more than one place"),
    (lambda g: replace(g, embeddings_NFHWC=g.embeddings_NFHWC[:, :1]), SHUFFLED, "one frame of each clip"),
])
def test_probe_inputs__says_why_a_probe_cannot_be_made(groups, change, name, why):
    config = ModelConfig(branch=(BranchConfig(),), width=16, depth=1, frames=1, patch=3, reduce=4)
    net = DTSFNet(config, channels=6, side=3, n_classes=CLASSES, n_views=VIEWS)
    probes = probe_inputs(net, change(groups), NAMES, VIEW_NAMES)
    found = {one.name: one for one in probes.inputs}[name]
    assert why in found.why_not
    assert (found.top1, found.n_groups, probes.static_shares) == (None, 0, ())
    assert why in probes.why_not


def test_probe_inputs__of_a_branch_that_does_not_run_for_these_views(groups):
    branches = (BranchConfig(), BranchConfig(views="all"))
    config = ModelConfig(branch=branches, width=16, depth=1, frames=4, patch=3, reduce=4)
    net = DTSFNet(config, channels=6, side=3, n_classes=CLASSES, n_views=3)
    shares = probe_inputs(net, groups, NAMES, VIEW_NAMES).static_shares
    assert [one.static is None for one in shares] == [False, True, False]


def test_probe_inputs__of_pixels(groups):
    torch.manual_seed(0)
    pixels = replace(groups, embeddings_NFHWC=torch.randint(0, 256, (36, 4, 8, 8, 3), dtype=torch.uint8))
    config = ModelConfig(branch=(BranchConfig(input="pixels"),), width=16, depth=1, frames=4, patch=8, reduce=0)
    net = DTSFNet(config, channels=3, side=8, n_classes=CLASSES, n_views=VIEWS)
    probes = probe_inputs(net, pixels, NAMES, VIEW_NAMES)
    assert all(one.top1 is not None for one in probes.inputs)


def test_correlation__is_that_of_all_numbers_together():
    torch.manual_seed(0)
    x = torch.randn(400, 3, dtype=torch.float64)
    noise = torch.randn(400, 3, dtype=torch.float64)
    assert correlation(x, x) == pytest.approx(1)
    assert correlation(x, -x) == pytest.approx(-1, abs=0.05)
    assert correlation(x, noise) == pytest.approx(0, abs=0.1)
    # A number that hardly varies counts hardly.
    assert correlation(x * torch.tensor([1, 1, 1e-3]), torch.stack([*x.T[:2], 1e-3 * noise.T[2]], 1)) > 0.99
    assert correlation(x[:1], x[:1]) is None


def test_evaluate__probes_are_in_the_json_and_shown(dtsf, world, tmp_path):
    words = ("evaluate", world / "run", "--cache", world / "cache")
    probes = dtsf.json(*words, "--probes", cwd=tmp_path)["probes"]
    page = (Path(__file__).resolve().parents[1] / "docs/output.md").read_text()
    rows = page.split("## Probes of the input\n")[1].split("\n## ")[0].splitlines()
    keys = {key for row in rows if row.startswith("| `") for key in re.findall("`(\\w+)`", row.split("|")[1])}
    assert keys == set().union(*map(set, (*probes["inputs"], *probes["static_shares"])))
    shown = dtsf.said(*words, "--probes", cwd=tmp_path)
    for one in (*TWINS, "without view 3", "same, other background"):
        assert one in shown
    assert "--probes and --adapt exclude each other" in dtsf.refusal(*words, "--probes", "--adapt", cwd=tmp_path)
    words = ("evaluate", world / "run", "--recordings", "r.csv", "--probes")
    assert "--recordings has no clips of a cache" in dtsf.refusal(*words, cwd=tmp_path)
