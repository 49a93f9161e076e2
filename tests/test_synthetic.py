"""The drawn dataset: pairs of actions, seeds, collections and refusals."""

import csv
from unittest.mock import Mock

import numpy as np
import pytest
from make_cache import snapshot

from dtsf.errors import ConfigError, DataError
from dtsf.pipeline.datasets import synthetic
from dtsf.pipeline.datasets.synthetic import synthesize_nucla
from dtsf.pipeline.datasets.synthetic_scene import ACTIONS, Style, trajectory


@pytest.fixture
def three_actions(monkeypatch):
    """Fewer videos to draw; these tests work with any actions."""
    monkeypatch.setattr(synthetic, "ACTIONS", {action: ACTIONS[action] for action in (1, 5, 12)})


def test_trajectory__actions_of_a_pair_are_reversed_in_time():
    style = Style(np.random.default_rng(0), np.random.default_rng(1))
    for forward, backward in ((1, 2), (3, 4), (5, 6), (8, 9), (11, 12)):
        assert ACTIONS[forward][1] == ACTIONS[backward][1], "both have the same motion"
        np.testing.assert_array_equal(trajectory(forward, style, 50), trajectory(backward, style, 50)[::-1])


def read_labels(folder):
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_synthesize__same_seed_gives_the_same_files(tmp_path, three_actions):
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        synthesize_nucla(tmp_path / name, subjects=2, episodes=1, seed=seed)
    one, two, three = (snapshot(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two
    assert one.keys() == three.keys()
    assert all(one[key] != three[key] for key in one if key.endswith(".avi"))


def test_synthesize__bias_and_occlude_add_collections(tmp_path, three_actions):
    synthesize_nucla(tmp_path / "data", subjects=3, episodes=1, bias=1.0, occlude=True)
    rows = read_labels(tmp_path / "data")
    main = "multiview_action_videos"
    by_collection = {
        name: [r for r in rows if r["path"].startswith(name + "/")]
        for name in (main, main + "_aligned", main + "_conflict", main + "_occluded")
    }
    own_room = {r["action"]: r["background"] for r in by_collection[main + "_aligned"]}
    assert len(set(own_room.values())) == 3
    assert {r["subject"] for r in by_collection[main]} == {"1", "2"}
    assert all(r["background"] == own_room[r["action"]] for r in by_collection[main])
    assert all(r["background"] != own_room[r["action"]] for r in by_collection[main + "_conflict"])
    hidden = by_collection[main + "_occluded"]
    assert len(hidden) == 9
    for action in own_room:
        assert sum(int(r["occluded"]) for r in hidden if r["action"] == action) == 1


def test_synthesize__refusals_leave_no_file(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        synthesize_nucla(tmp_path / "full")
    for name, value in (("subjects", 1), ("bias", 2)):
        with pytest.raises(ConfigError, match=f"--{name} {value}"):
            synthesize_nucla(tmp_path / "new", **{name: value})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_synthesize__interrupt_leaves_no_file(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        synthesize_nucla(tmp_path / "data", subjects=2, episodes=1, on_progress=Mock(side_effect=KeyboardInterrupt))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_synth_sessions__is_the_same_again_and_sync_finds_its_offsets(dtsf, tmp_path):
    first, again = (dtsf.json("synth", "sessions", "--out", name, "--subjects", 1, "--seconds", 30, cwd=tmp_path) for name in "ab")
    assert first["events"] == again["events"] >= 4
    names = ["s01/cam1.mp4", "s01/cam3.mp4", "s01/events.csv", "cameras.csv", "recordings.csv"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)
    (found,) = dtsf.json("sync", "--recordings", first["table"], "--write", cwd=tmp_path)["recordings"]
    with (tmp_path / "a/cameras.csv").open() as file:
        truth = [float(row["offset"]) for row in csv.DictReader(file)]
    assert [camera["offset"] for camera in found["cameras"]] == pytest.approx(truth, abs=0.1)
    assert "exists and is not empty" in dtsf.refusal("synth", "sessions", "--out", "a", cwd=tmp_path)
