"""The paper's own run beside the one from embeddings: taken by itself where there is a card and a checkpoint."""

import json
import subprocess

import pytest
import torch

from dtsf.errors import ConfigError
from dtsf.experiments.reproduce import paper_run
from dtsf.experiments.reproduce.paper_run import reproduce_both
from dtsf.experiments.reproduce.settings import Settings
from dtsf.model.videomamba import VideoMamba

TINY = ("model.width=16", "model.depth=1", "model.state=4", "model.frames=2", "train.epochs=1", "train.precision=32-true")


@pytest.fixture
def checkpoint(tmp_path):
    encoder = VideoMamba(channels=3, canvas=224, patch=16, frames=2, n_classes=400, width=16, depth=1, state=4)
    torch.save({"model": encoder.state_dict()}, tmp_path / "videomamba.pth")
    return tmp_path / "videomamba.pth"


def test_a_checkpoint_that_is_not_there_is_said_before_any_work(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        reproduce_both(tmp_path, tmp_path / "out", tmp_path / "gone.pth")
    assert not (tmp_path / "out").exists()


def test_without_a_card_the_embeddings_run_alone(monkeypatch, tmp_path, checkpoint):
    asked, said = [], []
    monkeypatch.setattr(paper_run, "reproduce_nucla", lambda root, out, **options: asked.append((out, options)) or "first")
    assert reproduce_both(tmp_path, tmp_path / "out", checkpoint, settings=Settings(), device="cpu", say=said.append) == "first"
    assert [out for out, _ in asked] == [tmp_path / "out"]
    assert asked[0][1]["settings"].init is None, "embeddings do not start from weights of pixels"
    assert "no card" in said[-1]


def test_make_hands_the_checkpoint_on(tmp_path):
    makefile = paper_run.__file__.split("/dtsf/")[0] + "/Makefile"
    command = ["make", "-n", "-f", makefile, "-o", "setup", "reproduce-nucla", "DATA=a", "INIT=b c.pth"]
    said = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True).stdout
    assert '--root "a"' in said
    assert '--init "b c.pth"' in said


@pytest.mark.slow
def test_both_rows_stand_in_one_table(monkeypatch, tmp_path, checkpoint, dtsf):
    """The whole way from videos, tiny, with the CPU in the place of the card."""
    dtsf.said("synth", "nucla", "--out", "data", "--subjects", 2, "--episodes", 1, cwd=tmp_path)
    monkeypatch.setattr(paper_run, "has_card", lambda device: True)
    small = Settings(overrides=("model.width=16", "model.state=4", "train.epochs=1"))
    options = {"seeds": (0,), "protocols": ("cross-subject:2",), "settings": small, "device": "cpu", "workers": 1}
    result = reproduce_both(tmp_path / "data", tmp_path / "out", checkpoint, paper_overrides=TINY, **options)
    assert [row.recipe for row in result.rows][-1] in ("nucla-paper", "custom")
    assert len(result.rows) == len(result.runs) == result.planned == 2
    assert result.runs[1].settings["model"]["patch"] == 16
    loaded = json.loads((tmp_path / "out/paper/runs/cross-subject-2-seed0/init.json").read_text())
    assert loaded["loaded"]
    assert json.loads((tmp_path / "out/results.json").read_text())["runs"][1]["run"].startswith("paper/runs/")
    page = (tmp_path / "out/results.md").read_text()
    assert page.count("| cross-subject:2 |") == 2
    assert "paper: preprocess" in page
    again = reproduce_both(tmp_path / "data", tmp_path / "out", checkpoint, paper_overrides=TINY, **options)
    assert [run.seconds for run in again.runs] == [run.seconds for run in result.runs], "nothing is done twice"
