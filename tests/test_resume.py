"""Runs: resumed with the same settings, checkpoints that do not fit, other datasets of one cache."""

import json
import shutil
import tomllib

import pytest
from safetensors.torch import load_file, save_file

from dtsf import api
from dtsf.errors import CheckpointError, ConfigError

PROTOCOL = "cross-subject:2"


def test_resume__refuses_another_seed_and_an_absent_run(world, run_copy, tmp_path):
    words = {"protocol": PROTOCOL, "overrides": ["train.epochs=2"], "resume": True}
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
    with pytest.raises(CheckpointError, match="was trained with"):
        api.train(world / "cache", protocol=state.protocol, run=run_copy, resume=True, overrides=["train.lr=0.9"])
    assert file.read_text() == before


def test_load_network__refuses_another_number_of_classes(dtsf, world, run_copy):
    weights = load_file(run_copy / "last/model.safetensors")
    heads = [f"branches.0.encoder.head.{part}" for part in ("weight", "bias")]
    weights |= {name: weights[name][:7].clone() for name in heads}
    save_file(weights, run_copy / "last/model.safetensors")
    refused = dtsf.refusal("evaluate", run_copy, cwd=world)
    assert "weights of the checkpoint have 7 classes, its state.json names 10 classes" in refused


@pytest.mark.parametrize("file", ["model.safetensors", "state.json", "optimizer.pt"])
def test_load_checkpoint__names_a_truncated_file(world, run_copy, file):
    path = run_copy / "last" / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="last"):
        api.train(world / "cache", protocol=PROTOCOL, run=run_copy, overrides=["train.epochs=2"], resume=True)


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
    assert "nucla, nucla-conflict" in dtsf.refusal("train", "--protocol", PROTOCOL, cwd=tmp_path)
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
    with pytest.raises(CheckpointError, match=r"state.json has version 1, and this dtsf reads version 2: train again"):
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
