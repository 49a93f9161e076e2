"""Runs of earlier versions are read and say what they said: frozen run folders in ``tests/data/frozen/runs``."""

import json
from pathlib import Path

import pytest
from drawn_cache import draw

from dtsf.cache.reader import open_dataset
from dtsf.training.checkpoint import load_checkpoint, load_network
from dtsf.training.data import load_groups
from dtsf.training.evaluate import evaluate_groups

RUNS = Path(__file__).parent / "data/frozen/runs"


@pytest.mark.parametrize("name", sorted(path.name for path in RUNS.iterdir()))
def test_a_run_of_before_says_what_it_said(tmp_path, name):
    checkpoint = load_checkpoint(RUNS / name / "last")
    said = json.loads((RUNS / name / "metrics.json").read_text())
    data = open_dataset(draw(tmp_path))
    groups = load_groups(data, [clip for clip in data.clips if clip.subject == "2"])
    says = evaluate_groups(load_network(checkpoint), groups, data.info.class_names)
    assert len(says.predictions) == len(said["predictions"]) > 0
    for now, before in zip(says.predictions, said["predictions"], strict=True):
        assert now.group == before["group"]
        assert now.predicted == before["predicted"]
        assert now.probability == pytest.approx(before["probability"], abs=1e-4)
        assert now.uncertainty == pytest.approx(before["uncertainty"], abs=1e-4)
        assert list(now.view_weights) == pytest.approx(before["view_weights"], abs=1e-4)
