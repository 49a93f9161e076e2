"""The run from pixels, as in the paper: it follows the run from embeddings with a GPU and a checkpoint."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from dtsf.errors import ConfigError
from dtsf.experiments import nucla
from dtsf.experiments.nucla import reproduce_nucla
from dtsf.model.config import ModelConfig
from dtsf.model.videomamba import VideoMamba

TINY = ("model.width=16", "model.depth=1", "model.state=4", "model.frames=2", "train.epochs=1", "train.precision=32-true")
SMALL = {
    "overrides": ("model.width=16", "model.state=4", "train.epochs=1"),
    "seeds": (0,),
    "protocols": ("cross-subject:2",),
    "device": "cpu",
    "workers": 1,
}


@pytest.fixture
def checkpoint(tmp_path):
    encoder = VideoMamba(
        ModelConfig(patch=16, frames=2, width=16, depth=1, state=4, readout="cls"), channels=3, side=224, n_classes=400
    )
    torch.save({"model": encoder.state_dict()}, tmp_path / "videomamba.pth")
    return tmp_path / "videomamba.pth"


def test_paper_run__refuses_a_missing_checkpoint(world, tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        reproduce_nucla(world / "data", tmp_path / "out", init=tmp_path / "gone.pth")
    assert not (tmp_path / "out").exists()


def test_make__passes_the_checkpoint_to_the_command(tmp_path):
    makefile = Path(nucla.__file__).parents[2] / "Makefile"
    command = ["make", "-n", "-f", makefile, "-o", "setup", "reproduce-nucla", "DATA=a", "INIT=b c.pth"]
    printed = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True).stdout
    assert '--root "a"' in printed
    assert '--init "b c.pth"' in printed


def test_paper_run__is_skipped_without_a_gpu(world, checkpoint, tmp_path):
    lines, options = [], SMALL | {"cache": world / "cache", "init": checkpoint}
    result = reproduce_nucla(world / "data", tmp_path / "out", say=lines.append, **options)
    assert (result.planned, len(result.runs)) == (1, 1)
    assert result.runs[0].run == "runs/cross-subject-2-seed0"
    assert f"--init {checkpoint}" in result.command
    assert any("no GPU" in line for line in lines)
    config = (tmp_path / "out/runs/cross-subject-2-seed0/config.toml").read_text()
    assert "init" not in config.split("[", 2)[1], "embeddings do not start from weights of pixels"
    assert not (tmp_path / "out/paper").exists()


@pytest.mark.slow
def test_paper_run__is_in_the_table_below_the_run_from_embeddings(monkeypatch, tmp_path, checkpoint, dtsf):
    """The whole way from videos, tiny, on the CPU."""
    dtsf.said("synth", "nucla", "--out", "data", "--subjects", 2, "--episodes", 1, cwd=tmp_path)
    monkeypatch.setattr(nucla, "has_gpu", lambda device: True)
    monkeypatch.setitem(nucla.PAPER, "overrides", TINY)
    options = SMALL | {"init": checkpoint}
    result = reproduce_nucla(tmp_path / "data", tmp_path / "out", **options)
    assert [row.recipe for row in result.rows][-1] == "nucla-paper"
    assert len(result.rows) == len(result.runs) == result.planned == 2
    assert result.runs[1].settings["model"]["patch"] == 16
    loaded = json.loads((tmp_path / "out/paper/runs/cross-subject-2-seed0/init.json").read_text())
    assert loaded["loaded"]
    assert json.loads((tmp_path / "out/results.json").read_text())["runs"][1]["run"].startswith("paper/runs/")
    page = (tmp_path / "out/results.md").read_text()
    assert page.count("| cross-subject:2 |") == 2
    assert "paper: preprocess" in page
    again = reproduce_nucla(tmp_path / "data", tmp_path / "out", **options)
    assert [run.seconds for run in again.runs] == [run.seconds for run in result.runs], "nothing is done twice"
