"""Training: steps, averages, early stopping, resumed runs, run folders and checkpoints."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib

import make_groups
import pytest
import torch
import torch.nn.functional as F
from helpers import exit_code, forked, wait_until
from make_cache import clip
from make_groups import CLASSES, SMALL, toy
from safetensors.torch import load_file, save_file

from dtsf import api
from dtsf.errors import CheckpointError, ConfigError
from dtsf.model.config import ModelConfig
from dtsf.model.evidence import dirichlet, uncertainty
from dtsf.model.videomamba import VideoMamba
from dtsf.training import log as record
from dtsf.training.checkpoint import RunState
from dtsf.training.data import Groups
from dtsf.training.distributed import World, epoch_plan
from dtsf.training.loop import held_out_score, update_best
from dtsf.training.losses import uncertain_cross_entropy
from dtsf.training.prepare import decay_groups, schedule, update_average
from dtsf.training.protocols import Split
from dtsf.training.recipe import load_recipe
from dtsf.training.splits import hold_out
from dtsf.training.tensor_files import load_state

PLAIN = ("model.dropout=0.0", "augment.shift=0", "augment.flip=0.0")
# Only the order is drawn at random.
STILL = (*PLAIN, *(f"augment.{name}=0.0" for name in ("view_drop", "crop", "jitter", "noise")), "model.branch.0.paste=none")


def train(run, *overrides, groups=None, base=STILL, **options):
    return make_groups.train(run, toy() if groups is None else groups, *base, *overrides, **options)


def stored(run):
    return load_file(run / "last/model.safetensors")


def optimizer_state(run):
    return load_state((run / "last/optimizer.safetensors").read_bytes())


def assert_equal(first, second):
    assert first.keys() == second.keys()
    assert [name for name, x in first.items() if not torch.equal(x, second[name])] == []


def test_adamw__is_that_of_pytorch_without_its_compiler():
    code = """
import copy, sys, torch
from types import SimpleNamespace
from dtsf.training.prepare import adamw, decay_groups
from dtsf.training.recipe import TrainConfig
torch.manual_seed(0)
ours, config = torch.nn.Linear(5, 7), TrainConfig()
theirs = copy.deepcopy(ours)
def step(net, optimizer):
    for k in range(3):
        optimizer.zero_grad()
        net(torch.full((2, 5), k + 1.0)).square().sum().backward()
        optimizer.step()
on_cpu = SimpleNamespace(device=torch.device("cpu"))
first = adamw(ours, config, on_cpu)
step(ours, first)
second = adamw(ours, config, on_cpu)
second.load_state_dict(first.state_dict())
step(ours, second)
assert "torch._dynamo" not in sys.modules
options = {"lr": config.lr, "betas": (0.9, config.beta2), "fused": True}
optimizer = torch.optim.AdamW(decay_groups(theirs, config.weight_decay), **options)
step(theirs, optimizer)
step(theirs, optimizer)
assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.bias, theirs.bias)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("balance", "expected"), [(0.5, (2 / 3, 1 / 3)), (1.0, (0.5, 0.5))])
def test_epoch_plan__draws_rare_classes_more_often_by_the_balance(balance, expected):
    label = torch.tensor([0] * 16 + [1] * 4)
    share = label.bincount()[label] ** -balance
    total = torch.zeros(20)
    for _ in range(100):
        drawn = [row for step in epoch_plan(20, 4, 1, World(), share) for row in step.shares[0].chosen_B.tolist()]
        assert len(drawn) == 20
        total += torch.tensor(drawn).bincount(minlength=20)
        wanted = share / share.sum() * 20
        # Each group comes the whole number of times below or above its share.
        assert ((torch.tensor(drawn).bincount(minlength=20) - wanted).abs() < 1).all()
    shares = [total[label == k].sum().item() / total.sum().item() for k in (0, 1)]
    assert shares == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize(("groups", "batch", "accumulate"), [(18, 4, 1), (17, 2, 3), (7, 3, 2), (1, 4, 2)])
def test_epoch_plan__counts_every_group_once_over_all_processes(groups, batch, accumulate, size):
    def plan(rank):
        torch.manual_seed(5)
        return epoch_plan(groups, batch, accumulate, World(size, rank, size))

    seen = []
    for steps in zip(*map(plan, range(size)), strict=True):
        n = steps[0].n_groups
        assert len({len(step.shares) for step in steps}) == 1  # else processes would wait for each other
        shares = [share for step in steps for share in step.shares]
        assert all(0 < len(share.chosen_B) <= batch for share in shares)
        counted = [share for share in shares if share.weight]
        assert sum(len(share.chosen_B) for share in counted) == n <= batch * accumulate * size
        # Means over the processes of weighted means of shares: each group weighs 1 / n.
        for share in counted:
            assert share.weight / size / len(share.chosen_B) == pytest.approx(1 / n)
        seen += [row for share in counted for row in share.chosen_B.tolist()]
    assert sorted(seen) == list(range(groups))


def test_fit__accumulated_gradients_equal_a_larger_batch(tmp_path):
    words = ("train.epochs=3", "train.ema=0.5")
    whole, log = train(tmp_path / "whole", *words, "train.batch_size=8")
    parts, other = train(tmp_path / "parts", *words, "train.batch_size=2", "train.accumulate=4")
    assert [line["step"] for line in other] == list(range(1, 10))  # 8 + 8 + 2 groups, three times
    for line, same in zip(log, other, strict=True):
        assert line == pytest.approx(same, rel=1e-4)
    torch.testing.assert_close(whole.net.state_dict(), parts.net.state_dict(), rtol=1e-3, atol=1e-5)


def test_fit__keeps_the_running_average_of_the_weights(tmp_path):
    net, average, expected = torch.nn.Linear(2, 1), {"weight": torch.zeros(1, 2), "bias": torch.zeros(1)}, 0.0
    for step, value in enumerate((1.0, 3.0, -2.0), 1):
        torch.nn.init.constant_(net.weight, value)
        update_average(average, net, 0.9, step)
        keep = min(0.9, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * value
    torch.testing.assert_close(average["weight"], torch.full((1, 2), expected))
    last, _ = train(tmp_path / "last", "train.epochs=2")
    averaged, _ = train(tmp_path / "averaged", "train.epochs=2", "train.ema=0.9")
    assert_equal(averaged.net.state_dict(), stored(tmp_path / "averaged"))
    assert_equal(last.net.state_dict(), optimizer_state(tmp_path / "averaged")["raw"])
    assert not torch.equal(averaged.net.encoders[0].head.weight, last.net.encoders[0].head.weight)


def test_decay_groups__exempt_norms_biases_positions_and_states():
    config = ModelConfig(patch=2, frames=3, width=8, depth=1, state=2, readout="cls")
    net = VideoMamba(config, channels=2, side=4, n_classes=3)
    decayed, kept = decay_groups(net, 0.05)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    spared, matrices = ({names[id(parameter)] for parameter in group["params"]} for group in (kept, decayed))
    for part in ("norm", "bias", "A_log", "A_b_log", "cls_token", "pos_embed", "temporal_pos_embedding"):
        assert set() < {name for name in names.values() if part in name} <= spared, part
    assert {name for name in names.values() if name.split(".")[-1] in ("D", "D_b")} <= spared
    assert all(names[id(parameter)].endswith("weight") and parameter.ndim > 1 for parameter in decayed["params"])
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.05, 0.0)
    also = {names[id(parameter)] for parameter in decay_groups(net, 0.05, states=True)[0]["params"]}
    assert also - matrices == {name for name in names.values() if name.endswith(("A_log", "A_b_log"))}
    assert len(decayed["params"]) + len(kept["params"]) == len(names)


def test_schedule__rises_then_falls_to_zero():
    rates = [schedule(step, 100, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates == sorted(rates[:11]) + sorted(rates[11:], reverse=True)
    assert rates[-1] < 0.001


def test_fit__clips_gradients(tmp_path):
    # The clipped gradients are far below AdamW's epsilon. Without clipping, its steps have full length.
    words = ("train.epochs=2", "train.weight_decay=0.0")
    start, _ = train(tmp_path / "start", "train.epochs=1", "train.lr=1e-30", "train.weight_decay=0.0")
    free, _ = train(tmp_path / "free", *words)
    clipped, _ = train(tmp_path / "clipped", *words, "train.clip_norm=1e-13")
    far, near = (
        sum((x - y).norm().item() for x, y in zip(start.net.parameters(), moved.net.parameters(), strict=True))
        for moved in (free, clipped)
    )
    assert near < 0.01 * far


def test_fit__label_smoothing_softens_the_label(tmp_path):
    logits, label = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, 3.0]]), torch.tensor([0, 1])
    soft = 0.8 * F.one_hot(label, 3) + 0.2 / 3
    expected = (1 + uncertainty(dirichlet(logits))) * -(soft * logits.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(uncertain_cross_entropy(logits, label, label_smoothing=0.2), expected)
    plain, smooth = (train(tmp_path / s, "train.epochs=1", f"loss.label_smoothing={s}")[1][0] for s in ("0.0", "0.2"))
    assert plain["evidence"] == smooth["evidence"]
    assert plain["cross"] != smooth["cross"]


def test_fit__bf16_keeps_float32_weights(tmp_path):
    words = ("train.epochs=25", "train.lr=0.01", "loss.kl=0.0")
    _, log = train(tmp_path / "full", *words)
    mixed, other = train(tmp_path / "mixed", *words, 'train.precision="bf16-mixed"')
    assert {x.dtype for x in mixed.net.state_dict().values()} == {torch.float32}
    assert log[0]["loss"] != other[0]["loss"]
    assert log[0]["loss"] == pytest.approx(other[0]["loss"], rel=0.02)
    assert other[-1]["loss"] < 0.8 * other[0]["loss"]
    assert other[-1]["loss"] == pytest.approx(log[-1]["loss"], rel=0.3)


def test_hold_out__takes_whole_groups_of_the_training_clips():
    everything = tuple(
        clip(f"{s}-{label}-{r}-{view}", label=label, group=f"{s}-{label}-{r}", view=view, subject=s)
        for s in ("1", "2", "3") for label in range(CLASSES) for r in range(4) for view in (1, 2)
    )  # fmt: skip
    train, test = (tuple(c for c in everything if (c.subject == "3") is third) for third in (False, True))
    split = Split(train=train, test=test, left_out={}, task="")

    def held(*overrides, seed=0):
        return hold_out(split, load_recipe("default", overrides).train, seed)

    assert held() is split
    share = held("train.held_out=0.25")
    assert share.test == split.test
    assert {c.id for c in share.train} | {c.id for c in share.held_out} == {c.id for c in split.train}
    assert not {c.group for c in share.train} & {c.group for c in share.held_out}
    assert [sum(c.label == k for c in share.held_out) for k in range(CLASSES)] == [4, 4, 4]  # 2 of 8 groups, 2 views
    assert held("train.held_out=0.25") == share != held("train.held_out=0.25", seed=1)
    assert {c.subject for c in held("train.held_out_subjects=02").held_out} == {"2"}
    for words, message in (
        (["train.held_out_subjects=3"], r"held_out_subjects: 3 is not among the training subjects \(1, 2\)"),
        (["train.held_out_subjects=1,2"], "holds out 24 of 24 training groups"),
        (["train.patience=3"], "patience needs held-out groups"),
        (["train.held_out=0.1", "train.held_out_subjects=1"], "exclude each other"),
    ):
        with pytest.raises(ConfigError, match=message):
            held(*words)


def opposed():
    """Groups to hold out, with the opposite labels: a better fit has a worse score."""
    groups = toy(9)
    return Groups(groups.embeddings_NFHWC, groups.row_GV, (groups.label_G + 1) % CLASSES, groups.names)


def test_fit__early_stop_keeps_the_weights_of_the_best_epoch(tmp_path):
    words = ("train.epochs=40", "train.lr=0.01", "train.held_out=0.2", "train.patience=2", "train.ema=0.3")
    options, reports = {"base": PLAIN, "held_out": opposed()}, []
    fitted, log = train(tmp_path / "run", *words, **options, on_epoch=reports.append)
    losses = [line["held_out_loss"] for line in log if "held_out_loss" in line]
    best = losses.index(min(losses)) + 1
    assert fitted.epochs == len(losses) == best + 2 < 40
    assert fitted.best_epoch == best
    assert [report.held_out[0] for report in reports] == losses
    assert set(reports[0].terms) == {"evidence", "kl", "cross", "views"}
    saved = stored(tmp_path / "run")
    assert_equal(fitted.net.state_dict(), saved)
    assert held_out_score(fitted.net, saved, opposed())[0] == min(losses)
    # A finished run stays finished.
    again, same = train(tmp_path / "run", *words, **options, resume=True)
    assert (again.epochs, same) == (fitted.epochs, log)


def test_update_best__ignores_a_loss_that_is_not_finite():
    state = RunState.model_construct(epoch=1, best_epoch=None, best_loss=None)
    assert update_best(state, float("nan")).best_epoch is None
    assert update_best(state, 2.0).best_epoch == 1
    later = state.model_copy(update={"epoch": 5, "best_epoch": 3, "best_loss": 1.0})
    assert [update_best(later, loss).best_epoch for loss in (float("nan"), 1.0, 0.9)] == [3, 3, 5]


def test_fit__held_out_groups_do_not_change_the_training(tmp_path):
    alone, _ = train(tmp_path / "alone", "train.epochs=3", base=PLAIN)
    watched, _ = train(tmp_path / "watched", "train.epochs=3", "train.held_out=0.2", base=PLAIN, held_out=opposed())
    assert watched.best_epoch is not None
    assert_equal(dict(alone.net.named_parameters()), dict(watched.net.named_parameters()))


EVERYTHING = (
    *("train.epochs=16", "train.batch_size=3", "train.accumulate=2", "train.ema=0.9", "train.held_out=0.2"),
    *("train.patience=50", "model.dropout=0.1", "augment.view_drop=0.3", "augment.jitter=0.5"),
)


@pytest.mark.parametrize(("debias", "kills"), [("hsic", (4, 57)), pytest.param("stillmix", (31,), marks=pytest.mark.slow)])
def test_fit__resumed_after_a_kill_equals_an_undisturbed_run(tmp_path, debias, kills):
    # StillMix needs the still part of a frame.
    words = [*EVERYTHING, f"debias.method={debias}", *(["model.branch.0.input=frames"] if debias == "stillmix" else [])]
    options = {"groups": toy(24), "held_out": opposed(), "base": PLAIN}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(whole, *words, **options)
    log, codes = cut / "log.jsonl", []
    for lines in (*kills, None):
        child = forked(lambda resume=bool(codes): train(cut, *words, **options, resume=resume))
        if lines:
            wait_until(lambda n=lines: log.exists() and log.read_bytes().count(b"\n") >= n)
            os.kill(child, signal.SIGKILL)
        codes.append(exit_code(child))
    assert codes == [*(-signal.SIGKILL for _ in kills), 0]
    assert_equal(stored(whole), stored(cut))
    assert (whole / "log.jsonl").read_text() == log.read_text()
    one, two = (optimizer_state(run) for run in (whole, cut))
    assert one.keys() == two.keys() == {"optimizer", "debiaser", "raw", "average"}
    for part in ("raw", "average", "debiaser"):
        assert_equal(one[part], two[part])


@pytest.mark.slow
def test_train__two_processes_equal_one_with_a_double_batch(dtsf, world, tmp_path):
    words = [
        *("train", "--cache", world / "cache", "--protocol", "cross-subject:2", "--epochs", "3", "--recipe", "thumbnails"),
        *(word for switch in (*SMALL[:2], *STILL, "train.ema=0.5") for word in ("--set", switch)),
        *("--set", "model.drop_path=0.0"),
    ]
    alone = dtsf.json(*words, "--set", "train.batch_size=6", "--out", tmp_path / "one", cwd=tmp_path)
    words += ["--set", "train.batch_size=3", "--out", tmp_path / "two"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "dtsf", *map(str, words)]
    options = {"env": os.environ | {"OMP_NUM_THREADS": "1"}, "capture_output": True, "text": True, "timeout": 300}
    pair = subprocess.run([*command, "--json"], cwd=tmp_path, check=False, **options)
    assert pair.returncode == 0, pair.stderr
    (answer,) = pair.stdout.strip().splitlines()  # one object, of the first process
    assert json.loads(answer)["top1"] == pytest.approx(alone["top1"])
    assert pair.stderr.count("test: all views of unseen subjects (2)") == 1
    logs = [[*map(json.loads, (tmp_path / run / "log.jsonl").read_text().splitlines())] for run in ("one", "two")]
    assert len(logs[0]) == 6  # 10 groups: 6 and 4, three times
    for line, same in zip(*logs, strict=True):
        assert line == pytest.approx(same, rel=1e-3)
    torch.testing.assert_close(stored(tmp_path / "one"), stored(tmp_path / "two"), rtol=1e-3, atol=1e-4)
    assert json.loads((tmp_path / "two/last/state.json").read_text())["processes"] == 2
    assert "was trained with processes 2, not 1" in dtsf.refusal(*words, "--resume", cwd=tmp_path)


def test_log__tensorboard_gets_every_number(tmp_path, monkeypatch):
    noted, opened = [], []

    class Writer:
        def __init__(self, *given):
            opened.append(given)

        def add_scalar(self, *given):
            noted.append(given)

        def close(self):
            opened.append("closed")

    monkeypatch.setattr(record, "summary_writer", Writer)
    _, log = train(tmp_path / "run", "train.epochs=2")
    assert opened == [(tmp_path / "run/tensorboard", 0), "closed"]
    keys = ("step", "epoch")
    expected = [(name, pytest.approx(x), line["step"]) for line in log for name, x in line.items() if name not in keys]
    assert noted == expected
    assert {name for name, *_ in noted} >= {"loss", "evidence", "kl", "cross", "views", "accuracy", "uncertainty", "lr"}


@pytest.mark.parametrize(("tail", "kept"), [
    (b'{"step": 3, "x": 1}\n', 2), (b'{"step": 2', 2), (b"\0\0\0\n", 2), (b"[]\n", 2), (b'{"step": 2}\n', 3), (b"", 2),
])
def test_log__drops_lines_after_the_step_of_the_checkpoint(tmp_path, tail, kept):
    whole = b'{"step": 1}\n{"step": 2}\n'
    (tmp_path / "log.jsonl").write_bytes(whole + tail)
    with record.TrainingLog(tmp_path, 2) as log:
        log.write({"step": 9})
    lines = (tmp_path / "log.jsonl").read_bytes().splitlines()
    assert (len(lines) - 1, lines[-1]) == (kept, b'{"step": 9}')
    with record.TrainingLog(tmp_path, 0):
        assert (tmp_path / "log.jsonl").read_bytes() == b""


def test_resume__refuses_another_seed_and_an_absent_run(world, run_copy, tmp_path):
    words = {"protocol": "cross-subject:2", "overrides": ["train.epochs=2"], "resume": True}
    with pytest.raises(CheckpointError, match="was trained with seed 0, not 1"):
        api.train(world / "cache", run=run_copy, seed=1, **words)
    with pytest.raises(CheckpointError, match="nothing to resume"):
        api.train(world / "cache", run=tmp_path / "none", **words)


def test_resume__keeps_the_first_config_also_of_a_refused_command(world, run_copy):
    file = run_copy / "config.toml"
    # As after --init, which a resumed run does not repeat.
    file.write_text(file.read_text().replace("[data]\n", '[data]\ninit = "/some/videomamba.pth"\n', 1))
    before, state = file.read_text(), api.load(run_copy).state
    assert "videomamba" in before
    with pytest.raises(CheckpointError, match=r"recipe\.train\.epochs 2, not 240; recipe\.train\.lr 0\.0005, not 0\.9: resume"):
        api.train(world / "cache", protocol=state.protocol, run=run_copy, resume=True, overrides=["train.lr=0.9"])
    assert file.read_text() == before


def test_load_network__refuses_another_number_of_classes(dtsf, world, run_copy):
    weights = load_file(run_copy / "last/model.safetensors")
    heads = [f"branches.0.encoder.head.{part}" for part in ("weight", "bias")]
    weights |= {name: weights[name][:7].clone() for name in heads}
    save_file(weights, run_copy / "last/model.safetensors")
    refused = dtsf.refusal("evaluate", run_copy, cwd=world)
    assert "weights of the checkpoint have 7 classes, its state.json names 10 classes" in refused


@pytest.mark.parametrize("file", ["model.safetensors", "state.json", "optimizer.safetensors"])
def test_load_checkpoint__names_a_truncated_file(world, run_copy, file):
    path = run_copy / "last" / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="last"):
        api.train(world / "cache", protocol="cross-subject:2", run=run_copy, overrides=["train.epochs=2"], resume=True)


def test_load_checkpoint__finds_one_killed_between_two_renames(run_copy):
    (run_copy / "last").rename(run_copy / "last.old")
    assert api.load(run_copy).state.epoch == 2


@pytest.mark.slow
def test_evaluate__on_another_dataset_of_the_cache(dtsf, world, tmp_path):
    shutil.copytree(world / "cache", tmp_path / "cache")
    said = dtsf.said("synth", "nucla", "--out", "biased", "--subjects", 2, "--episodes", 1, "--bias", 0.95, cwd=tmp_path)
    conflict = "biased/multiview_action_videos_conflict"
    assert f"--root {conflict} --name nucla-conflict" in said
    dtsf.said("preprocess", "nucla", "--root", conflict, "--name", "nucla-conflict", "--workers", 1, cwd=tmp_path)
    assert "nucla, nucla-conflict" in dtsf.refusal("train", "--protocol", "cross-subject:2", cwd=tmp_path)
    answer = dtsf.json("evaluate", world / "run", "--dataset", "nucla-conflict", "--protocol", "all", cwd=tmp_path)
    assert (answer["dataset"], answer["n_groups"]) == ("nucla-conflict", 10)
    assert answer["task"] == "every clip of another dataset, nucla-conflict (trained on nucla)"


def test_train__cross_view_takes_the_recipe_for_unseen_views(world, tmp_path):
    with pytest.raises(ConfigError, match=r'branch.1.views "all" needs the same views .* cross-view:3 tests an unseen one'):
        api.train(world / "cache", protocol="cross-view:3", run=tmp_path / "refused", recipe="default")
    assert not (tmp_path / "refused").exists()
    result = api.train(world / "cache", protocol="cross-view:3", overrides=["train.epochs=1"], run=tmp_path / "run")
    assert tomllib.loads((tmp_path / "run/config.toml").read_text())["model"]["branch"][0]["views"] == "each"
    assert result.evaluation.task.startswith("an unseen view alone")


def test_load__a_run_of_an_earlier_version_is_refused(run_copy):
    file = run_copy / "last/state.json"
    state = json.loads(file.read_text())
    del state["version"]
    file.write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=r"state.json has version 1, and this dtsf reads version 3: train again"):
        api.load(run_copy)


def test_train__refuses_a_run_folder_in_use(world, tmp_path, dtsf):
    refusals = []

    def meanwhile(*_):
        words = ("train", "--cache", world / "cache", "--protocol", "all", "--epochs", 1, "--out", "run")
        refusals.append(dtsf.refusal(*words, cwd=tmp_path))

    words = {"protocol": "all", "recipe": "default", "overrides": ["train.epochs=1", "model.depth=1"]}
    api.train(world / "cache", **words, run=tmp_path / "run", on_start=meanwhile)
    (message,) = refusals
    assert "another dtsf process trains in run: wait for it, or choose another --out" in message
    assert (tmp_path / "run/metrics.json").is_file()
