"""Runs: resuming to the same bits, checkpoints that do not fit, other data sets of one cache."""

import json
import shutil
import tomllib

import pytest
from safetensors.torch import load_file, save_file

from dtsf import api
from dtsf.errors import CheckpointError, ConfigError

PROTOCOL = "cross-subject:2"
SMALL = ("model.width=32", "model.state=4", "train.epochs=3", "train.ema=0.9", "model.dropout=0.1")


def _train(world, run, **options):
    return api.train(
        world / "cache", dataset="nucla", protocol=PROTOCOL, run=run, overrides=SMALL, device="cpu", **options
    )


def test_resume_with_another_recipe_is_refused_with_both(world, tmp_path):
    _train(world, tmp_path / "run")
    with pytest.raises(CheckpointError, match="was trained with seed 0, not 1"):
        _train(world, tmp_path / "run", seed=1, resume=True)
    with pytest.raises(CheckpointError, match="nothing to resume"):
        _train(world, tmp_path / "none", resume=True)


def test_what_a_run_was_begun_with_stays_written_when_it_is_resumed(world, tmp_path):
    """Also where the command that resumes it is refused."""
    run = shutil.copytree(world / "run", tmp_path / "run")
    file = run / "config.toml"
    # As it stands there after --init, which a resumed run is not given again.
    file.write_text(file.read_text().replace("[data]\n", '[data]\ninit = "/some/videomamba.pth"\n', 1))
    before, settings = file.read_text(), api.load(run).state
    assert "videomamba" in before
    options = {"dataset": "nucla", "protocol": settings.protocol, "run": run, "resume": True, "device": "cpu"}
    with pytest.raises(CheckpointError, match="was trained with"):
        api.train(world / "cache", **options, overrides=["train.lr=0.9"])
    assert file.read_text() == before


def _copy_of_run(world, tmp_path):
    return shutil.copytree(world / "run", tmp_path / "run")


def test_checkpoint_of_another_class_count_is_refused(dtsf, world, tmp_path):
    run = _copy_of_run(world, tmp_path)
    weights = load_file(run / "last/model.safetensors")
    weights["encoder.head.weight"] = weights["encoder.head.weight"][:7].clone()
    weights["encoder.head.bias"] = weights["encoder.head.bias"][:7].clone()
    save_file(weights, run / "last/model.safetensors")
    done = dtsf("evaluate", run, cwd=world)
    assert done.returncode == 2
    assert "weights hold 7 classes, its state.json names 10 classes" in done.stderr


@pytest.mark.parametrize("file", ["model.safetensors", "state.json", "optimizer.pt"])
def test_cut_checkpoint_is_named(world, tmp_path, file):
    run = _copy_of_run(world, tmp_path)
    path = run / "last" / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="last"):
        api.train(
            world / "cache", dataset="nucla", protocol=PROTOCOL, run=run, overrides=["train.epochs=2"], resume=True
        )


def test_checkpoint_killed_between_its_renames_is_found(world, tmp_path):
    run = _copy_of_run(world, tmp_path)
    (run / "last").rename(run / "last.old")
    assert api.load(run).state.epoch == 2


@pytest.mark.slow
def test_two_data_sets_in_one_cache_and_a_run_judged_on_the_other(dtsf, world, tmp_path):
    shutil.copytree(world / "cache", tmp_path / "cache")
    drawn = dtsf("synth", "nucla", "--out", "biased", "--subjects", 2, "--episodes", 1, "--bias", 0.95, cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    conflict = "biased/multiview_action_videos_conflict"
    assert f"--root {conflict} --name nucla-conflict" in " ".join(drawn.stderr.split())
    made = dtsf("preprocess", "nucla", "--root", conflict, "--name", "nucla-conflict", "--workers", 1, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    unnamed = dtsf("train", "--protocol", PROTOCOL, cwd=tmp_path)
    assert unnamed.returncode == 2
    assert "nucla, nucla-conflict" in " ".join(unnamed.stderr.split())
    judged = dtsf(
        *("evaluate", world / "run", "--dataset", "nucla-conflict", "--protocol", "all", "--json"), cwd=tmp_path
    )
    assert judged.returncode == 0, judged.stderr
    answer = json.loads(judged.stdout)
    assert (answer["dataset"], answer["n_groups"]) == ("nucla-conflict", 10)
    assert answer["task"] == "every clip of another data set, nucla-conflict (trained on nucla)"


def test_data_set_of_other_classes_is_refused(dtsf, world, tmp_path, make_video):
    shutil.copytree(world / "cache", tmp_path / "cache")
    make_video(tmp_path / "v.avi", 20)
    (tmp_path / "mine.csv").write_text("path,label,group,view\nv.avi,jump,g1,1\n")
    made = dtsf("preprocess", "manifest", "--root", "mine.csv", "--workers", 1, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    done = dtsf("evaluate", world / "run", "--dataset", "manifest", "--protocol", "all", cwd=tmp_path)
    assert done.returncode == 2
    assert "trained on 10 classes, manifest has 1" in " ".join(done.stderr.split())


def test_cross_view_gets_the_recipe_for_unseen_cameras_and_refuses_the_other(world, tmp_path):
    with pytest.raises(ConfigError, match='"merged" learns each camera for itself, and cross-view:3 tests one'):
        api.train(
            world / "cache",
            protocol="cross-view:3",
            recipe="thumbnails",
            overrides=["model.views=merged"],
            run=tmp_path / "refused",
        )
    assert not (tmp_path / "refused").exists()
    result = api.train(world / "cache", protocol="cross-view:3", overrides=["train.epochs=1"], run=tmp_path / "run")
    assert tomllib.loads((tmp_path / "run/config.toml").read_text())["model"]["views"] == "apart"
    assert result.evaluation.task.startswith("an unseen view alone")


def test_runs_from_before_energy_had_two_numbers_are_read(world, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(world / "run", tmp_path / "run")
    file = tmp_path / "run/last/model.safetensors"
    weights = load_file(file)
    weights["energy_mean_HW1"] = weights.pop("energy_mean_HWE")
    save_file(weights, file)
    videos = sorted((world / "data/multiview_action_videos/a05").glob("v0*_s02_e00.avi"))
    then, now = api.load(tmp_path / "run"), api.load(world / "run")
    assert then.predict(videos) == now.predict(videos)


def test_two_trainings_in_one_run_folder_are_refused(world, tmp_path, dtsf):
    said = []

    def meanwhile(*_):
        other = dtsf("train", "--cache", world / "cache", "--protocol", "all", "--epochs", 1, "--out", "run", cwd=tmp_path)
        said.append((other.returncode, other.stderr))

    words = {"protocol": "all", "recipe": "default", "overrides": ["train.epochs=1", "model.depth=1"]}
    api.train(world / "cache", **words, run=tmp_path / "run", on_start=meanwhile)
    ((code, message),) = said
    assert code == 2
    assert "another dtsf process trains in run: wait for it, or choose another --out" in " ".join(message.split())
    assert (tmp_path / "run/metrics.json").is_file()
