"""``dtsf reproduce nucla`` and its make target: complete and partial data, one table, no work repeated, and the run from pixels."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from helpers import touch, wait_until
from safetensors.torch import load_file

from dtsf.cache.reader import open_dataset
from dtsf.errors import CheckpointError, ConfigError, DataError
from dtsf.experiments import nucla
from dtsf.experiments.grid import locked
from dtsf.experiments.nucla import choose_protocols, reproduce_nucla
from dtsf.experiments.results import RunRecord, rows_of
from dtsf.experiments.tables import duration
from dtsf.pipeline.datasets import scan_source
from dtsf.pipeline.datasets.catalog import SourceCatalog
from dtsf.pipeline.datasets.nucla import CLASSES, nucla_clip
from dtsf.pipeline.datasets.nucla_check import SOURCE, check_nucla, listed_clips
from dtsf.training.recipe import builtin_names

ROOT = Path(__file__).resolve().parents[1]
SMALL = ("model.width=32", "model.state=4", "train.epochs=3")
TINY = ("model.width=16", "model.depth=1", "model.state=4", "model.frames=2", "train.epochs=1", "train.precision=32-true")


def _make(cwd, *words):
    """Start the target, with the tools of this environment instead of those of a .venv."""
    command = ["make", "-s", "-f", ROOT / "Makefile", "-o", "setup", f"BIN={Path(sys.executable).parent}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    return subprocess.Popen([*map(str, command), "reproduce-nucla", *words], cwd=cwd, env=environment, **pipes)


def _touch(root, clips):
    words = (clip.split("_") for clip in clips)
    return touch(root, *(f"multiview_action_videos/{a}/{v}_{s}_{e}.avi" for a, s, e, v in words))


def _catalog(clips):
    numbers = [[int(word[1:]) for word in clip.split("_")] for clip in sorted(clips)]
    return SourceCatalog(
        kind="nucla",
        root=Path("/data"),
        clips=tuple(nucla_clip(f"{a}/{s}/{e}/{v}.avi", a, s, e, v) for a, s, e, v in numbers),
        class_names=tuple(CLASSES[action] for action in sorted(CLASSES)),
        view_names=("1", "2", "3"),
    )


def _reproduce(data, out, **changes):
    """Reproduce one protocol. Return the result and the messages."""
    lines = []
    options = {"seeds": (0, 1), "protocols": ("cross-subject:2",), "overrides": SMALL, "device": "cpu", "workers": 1}
    return reproduce_nucla(data, out, say=lines.append, **options | changes), lines


def _times(folder, pattern="**/*"):
    return {file: file.stat().st_mtime_ns for file in folder.glob(pattern) if file.is_file()}


@pytest.fixture(scope="module")
def reproduced(world, tmp_path_factory):
    """An undisturbed reproduction on the drawn data, two seeds of one protocol."""
    out = tmp_path_factory.mktemp("reproduced") / "out"
    return out, _reproduce(world / "data", out, cache=world / "cache")[0]


def test_make__shows_one_screen_without_data_and_passes_the_checkpoint(tmp_path):
    made = _make(tmp_path, "DATA=nowhere")
    said, _ = made.communicate(timeout=60)
    assert made.returncode == 2
    assert "nothing to reproduce: the root nowhere does not exist" in said
    assert SOURCE in said
    assert "make reproduce-nucla DATA=DIR" in said
    assert "Traceback" not in said
    assert len(said.splitlines()) <= 10
    printed, _ = _make(tmp_path, "-n", "DATA=a", "INIT=b c.pth").communicate(timeout=60)
    assert '--root "a"' in printed
    assert '--init "b c.pth"' in printed
    assert list(tmp_path.iterdir()) == []


def test_reproduce_command__shows_one_screen_for_a_folder_without_videos(dtsf, tmp_path):
    touch(tmp_path, "downloads/multiview_action_videos.tgz")
    for words, why in (
        (("--root", "downloads"), "found 1 .tgz; the first is multiview_action_videos.tgz"),
        ((), "no nucla data at data/nucla"),
    ):
        refused = dtsf.refusal("reproduce", "nucla", *words, cwd=tmp_path)
        assert why in refused
        assert "tar xzf multiview_action_videos.tgz" in refused
    assert not (tmp_path / "reproduce-nucla").exists()


def test_check_nucla__counts_the_clips_of_all_lists(world):
    listed = listed_clips()
    assert len(listed) == 1492
    assert [sum(in_lists[k] for in_lists, _ in listed.values()) for k in range(3)] == [1484, 1483, 1475]
    check = check_nucla(_catalog(listed))
    assert {view: count.listed for view, count in check.views.items()} == {"v01": 516, "v02": 504, "v03": 472}
    assert sum(count.listed for count in check.subjects.values()) == 1492
    assert "a02_s09_e04_v02" in check.very_short
    agreed = {clip for clip, (in_lists, _) in listed.items() if all(in_lists)}
    check = check_nucla(_catalog(agreed))
    assert (check.complete, check.missing, len(check.missing_disputed)) == (True, (), 26)
    lost = sorted(agreed)[5]
    check = check_nucla(_catalog((agreed - {lost}) | {"a01_s11_e00_v01"}))
    assert (check.complete, check.missing, check.unlisted) == (False, (lost,), ("a01_s11_e00_v01",))
    assert "1 of the 1,466" in check.summary
    check = check_nucla(scan_source("nucla", world / "data"))
    assert (check.is_nucla, check.complete) == (False, False)
    assert check.summary.startswith("this is not N-UCLA: 60 videos")


def test_reproduce_command__reports_partial_data_and_strict_refuses_them(dtsf, tmp_path):
    _touch(tmp_path / "data", [clip for clip in listed_clips() if clip[12:] != "v03" and clip[4:7] != "s10"])
    done = dtsf("reproduce", "nucla", "--root", "data", "--check", "--json", cwd=tmp_path)
    assert done.returncode == 2
    found = json.loads(done.stdout)
    assert found["views"]["v03"] == {"found": 0, "listed": 472}
    assert found["subjects"]["s10"] == {"found": 0, "listed": 150}
    assert found["subjects"]["s01"]["found"] < found["subjects"]["s01"]["listed"]
    assert found["lists"]["VPN"]["found"] == found["found"] == 920
    assert "N-UCLA is incomplete" in done.stderr
    assert "a01_s01_e00_v03" in done.stderr
    assert "Refused because of --strict" in dtsf.refusal("reproduce", "nucla", "--root", "data", "--strict", cwd=tmp_path)
    catalog = scan_source("nucla", tmp_path / "data")
    chosen, notes = choose_protocols(catalog, ())
    assert chosen == ["cross-view:1", "cross-view:2", "cross-subject:7,8,9"]
    assert "cross-view:3 is left out: no clip of view 3" in notes
    with pytest.raises(ConfigError, match="no subject 10"):
        choose_protocols(catalog, ("cross-subject:10",))


def test_reproduce_command__accepts_complete_data_and_refuses_data_of_one_view(dtsf, tmp_path):
    _touch(tmp_path, listed_clips())
    assert "N-UCLA is complete" in dtsf.said("reproduce", "nucla", "--root", ".", "--check", cwd=tmp_path)
    assert choose_protocols(scan_source("nucla", tmp_path), ())[0][-1] == "cross-subject:10"
    with pytest.raises(DataError, match="one view of one subject"):
        choose_protocols(_catalog(["a01_s01_e00_v01", "a02_s01_e00_v01"]), ())


def test_rows_of__averages_rotations_seed_by_seed():
    def record(protocol, seed, top1):
        sizes = {"train_clips": 20, "train_groups": 10, "test_clips": 4, "test_groups": 4, "top1": top1}
        trained = {"recipe": "default", "settings": {}, "fingerprint": "f", "seconds": 30.0, "task": "a test"}
        return RunRecord(protocol=protocol, seed=seed, run=f"runs/{protocol}-{seed}", **sizes, **trained)

    numbers = {("cross-view:1", 0): 0.5, ("cross-view:1", 1): 0.7, ("cross-view:2", 0): 0.9, ("cross-view:2", 1): 0.7}
    runs = [record(*job, top1) for job, top1 in numbers.items()]
    rows = rows_of([*runs, record("cross-subject:10", 0, 0.25)], ["cross-view:1", "cross-view:2"])
    assert [row.protocol for row in rows] == ["cross-view:1", "cross-view:2", "mean of 2 rotations", "cross-subject:10"]
    assert rows[0].mean == pytest.approx(0.6)
    assert rows[0].spread == pytest.approx(0.1414, abs=1e-4)
    # Each seed reaches 0.7 over its rotations: what differs between rotations is no spread of seeds.
    assert rows[2].top1 == pytest.approx((0.7, 0.7))
    assert rows[2].spread == pytest.approx(0)
    assert rows[3].spread is None
    assert [row.protocol for row in rows_of(runs[:2], ["cross-view:1", "cross-view:2"])] == ["cross-view:1"]


def test_duration__is_readable():
    assert [duration(s) for s in (0.04, 59.7, 60, 3599.6, 7265)] == ["0.0 s", "60 s", "1 min 00 s", "1 h 00 min", "2 h 01 min"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"overrides": ("model.dept=4",)}, "did you mean 'model.depth'"),
        ({"recipe": "magic"}, "unknown recipe 'magic'"),
        ({"init": Path("gone.pth")}, "gone.pth: no such file"),
    ],
)
def test_reproduce__refuses_wrong_settings_before_stage_1(world, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        reproduce_nucla(world / "data", tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seeds", ["\u00b2", "-1", "0,,1", "one"])
def test_reproduce_command__refuses_seeds_that_are_not_numbers(dtsf, tmp_path, seeds):
    refused = dtsf.refusal("reproduce", "nucla", "--root", tmp_path, "--seeds", seeds, cwd=tmp_path)
    assert "must be different numbers from 0, as in 0,1,2" in refused


def test_reproduce__writes_results_for_people_and_programs(reproduced):
    out, result = reproduced
    document = json.loads((out / "results.json").read_text())
    assert document == result.model_dump(mode="json")
    assert not document["comparable"]
    lines = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert [(line["protocol"], line["seed"]) for line in lines] == [("cross-subject:2", "0"), ("cross-subject:2", "1")]
    for line, run in zip(lines, document["runs"], strict=True):
        metrics = json.loads((out / line["run"] / "metrics.json").read_text())
        assert float(line["top1"]) == run["top1"] == metrics["top1"]
        # The first seed is calibrated.
        assert (line["ece"], run["ece"]) == ((str(metrics["ece"]), metrics["ece"]) if run["seed"] == 0 else ("", None))
    page = (out / "results.md").read_text()
    assert page.startswith("# Not N-UCLA")
    (row,) = [line for line in page.splitlines() if line.startswith("| cross-subject:2 ")]
    assert f"{50 * sum(float(line['top1']) for line in lines):.1f} ± " in row
    assert "| (97.0) |" in row
    assert "does not say for which protocol" in page
    assert "| train and evaluate |" in page
    (recipe,) = {run.recipe for run in result.runs}
    assert recipe in builtin_names("recipe")
    assert document["versions"]["torch"] == torch.__version__


def test_reproduce__repeats_nothing_in_a_second_call(world, reproduced):
    out, first = reproduced
    before = _times(out / "runs")
    again, lines = _reproduce(world / "data", out, cache=world / "cache")
    assert _times(out / "runs") == before
    assert (again.runs, again.rows) == (first.runs, first.rows)
    assert "2 of 2 runs were finished before" in lines
    assert [stage.seconds for stage in again.stages[1:3]] == [stage.seconds for stage in first.stages[1:3]]


def test_reproduce__resumes_an_interrupted_run_to_the_same_bits(world, reproduced, tmp_path):
    whole, first = reproduced

    @contextmanager
    def interrupt(title, unit):
        def update(done, total, note=""):
            if "seed 1" in note:
                raise KeyboardInterrupt

        yield update

    out, options = tmp_path / "out", {"cache": world / "cache", "workers": 1}
    with pytest.raises(KeyboardInterrupt):
        _reproduce(world / "data", out, show=interrupt, **options)
    partial = json.loads((out / "results.json").read_text())
    assert (len(partial["runs"]), partial["planned"]) == (1, 2)
    assert "**Not finished: 1 of 2 runs.**" in (out / "results.md").read_text()
    # As a kill before the first checkpoint leaves it: a folder that cannot be continued.
    touch(out, "runs/cross-subject-2-seed2/config.toml")
    # And as a kill between the last epoch and the record of the run: only the record is missing.
    (out / "runs/cross-subject-2-seed0/result.json").rename(tmp_path / "result.json")
    trained = _times(out, "runs/cross-subject-2-seed0/last/model.safetensors")
    result, lines = _reproduce(world / "data", out, **options)
    assert _times(out, "runs/cross-subject-2-seed0/last/model.safetensors") == trained
    assert not any("finished before" in line for line in lines)
    assert result.runs[0].top1 == json.loads((tmp_path / "result.json").read_text())["top1"]
    (out / "runs/cross-subject-2-seed1/result.json").unlink()
    result, lines = _reproduce(world / "data", out, seeds=(0, 1, 2), **options)
    assert "1 of 3 runs were finished before" in lines
    assert [run.top1 for run in result.runs[:2]] == [run.top1 for run in first.runs]
    name = "runs/cross-subject-2-seed1/last/model.safetensors"
    mine, theirs = load_file(out / name), load_file(whole / name)
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_reproduce__refuses_other_settings_and_other_folders(world, reproduced, tmp_path):
    out, _ = reproduced
    with pytest.raises(ConfigError, match="was started with overrides"):
        _reproduce(world / "data", out, overrides=("train.epochs=4",), cache=world / "cache")
    with locked(out, "reproduce"), pytest.raises(ConfigError, match="another dtsf reproduce works in"):
        _reproduce(world / "data", out)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="contains something else"):
        _reproduce(world / "data", tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_reproduce__refuses_a_seed_with_another_recipe(world, reproduced, tmp_path):
    """As after an update of dtsf that has another default recipe."""
    out = shutil.copytree(reproduced[0], tmp_path / "out")
    file = out / "runs/cross-subject-2-seed0/result.json"
    document = json.loads(file.read_text())
    document["settings"]["train"]["lr"] = 0.5
    file.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=r"train.lr 0\.\d+ \(0.5\)\. Choose another --out"):
        _reproduce(world / "data", out, seeds=(0, 7), cache=world / "cache")
    file.write_text("{}")
    with pytest.raises(CheckpointError, match=r"result\.json is not a result of this version"):
        _reproduce(world / "data", out, cache=world / "cache")


def test_reproduce__overwrite_keeps_an_external_cache(world, reproduced, tmp_path):
    out = shutil.copytree(reproduced[0], tmp_path / "out")
    options = {"seeds": (0,), "overrides": (*SMALL, "train.epochs=1"), "cache": world / "cache", "overwrite": True}
    result, lines = _reproduce(world / "data", out, **options)
    assert not any("finished before" in line for line in lines)
    assert [run.epochs for run in result.runs] == [1]
    assert not (out / "runs/cross-subject-2-seed1").exists()
    assert (world / "cache/nucla").is_dir()


def _two_actions(world, folder):
    for file in (world / "data/multiview_action_videos").glob("a0[15]/*"):
        (folder / file.parent.name).mkdir(parents=True, exist_ok=True)
        (folder / file.parent.name / file.name).symlink_to(file)


def test_reproduce__does_not_use_other_clips_in_the_cache(world, tmp_path):
    _two_actions(world, tmp_path / "part/multiview_action_videos")
    shutil.copy(world / "data/labels.csv", tmp_path / "part")
    cache = shutil.copytree(world / "cache", tmp_path / "cache")
    before = len(open_dataset(cache, "nucla").clips)
    result, _ = _reproduce(tmp_path / "part", tmp_path / "out", seeds=(0,), cache=cache)
    data = open_dataset(cache, "nucla")
    assert {clip.raw_label for clip in data.clips} == {"1", "5"}
    assert len(data.clips) < before
    (run,) = {(run.train_clips, run.test_clips) for run in result.runs}
    assert sum(run) == len(data.clips)


def test_reproduce_command__counts_unusable_clips_and_exits_1(dtsf, world, cut_file, tmp_path):
    _two_actions(world, tmp_path / "data")
    # A clip of a test subject: it is missing in the test only.
    broken = tmp_path / "data/a05/v02_s02_e00.avi"
    source = broken.resolve()
    broken.unlink()
    cut_file(source, broken, 0.5)
    words = ("reproduce", "nucla", "--root", "data", "--seeds", "0", "--epochs", "1", "--workers", "1")
    done = dtsf(*words, "--protocol", "cross-subject:2", "--json", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    assert document["bad_clips"] == {"truncated": 1}
    assert document["rows"][0]["left_out"] == {"truncated": 1}
    assert document["rows"][0]["train"] == "6 clips, 2 groups"
    assert "| 1 truncated |" in (tmp_path / "reproduce-nucla/results.md").read_text()


def test_paper_run__is_skipped_without_a_gpu(world, videomamba, tmp_path):
    options = {"seeds": (0,), "overrides": ("model.width=16", "model.state=4", "train.epochs=1"), "init": videomamba}
    result, lines = _reproduce(world / "data", tmp_path / "out", cache=world / "cache", **options)
    assert (result.planned, len(result.runs)) == (1, 1)
    assert result.runs[0].run == "runs/cross-subject-2-seed0"
    assert f"--init {videomamba}" in result.command
    assert any("no GPU" in line for line in lines)
    config = (tmp_path / "out/runs/cross-subject-2-seed0/config.toml").read_text()
    assert "init" not in config.split("[", 2)[1], "embeddings do not start from weights of pixels"
    assert not (tmp_path / "out/paper").exists()


@pytest.mark.slow
def test_paper_run__is_in_the_table_below_the_run_from_embeddings(monkeypatch, world, tmp_path, videomamba):
    monkeypatch.setattr(nucla, "has_gpu", lambda device: True)
    monkeypatch.setitem(nucla.PAPER, "overrides", TINY)
    options = {"seeds": (0,), "overrides": ("model.width=16", "model.state=4", "train.epochs=1"), "init": videomamba}
    result, _ = _reproduce(world / "data", tmp_path / "out", **options)
    assert [row.recipe for row in result.rows][-1] == "nucla-paper"
    assert len(result.rows) == len(result.runs) == result.planned == 2
    assert result.runs[1].settings["model"]["patch"] == 16
    assert json.loads((tmp_path / "out/paper/runs/cross-subject-2-seed0/init.json").read_text())["loaded"]
    assert json.loads((tmp_path / "out/results.json").read_text())["runs"][1]["run"].startswith("paper/runs/")
    page = (tmp_path / "out/results.md").read_text()
    assert page.count("| cross-subject:2 |") == 2
    assert "paper: preprocess" in page
    again, _ = _reproduce(world / "data", tmp_path / "out", **options)
    assert [run.seconds for run in again.runs] == [run.seconds for run in result.runs], "nothing is done twice"


@pytest.mark.slow
def test_make__reproduces_on_motion_after_two_kills(shared_data, tmp_path):
    words = (f"DATA={shared_data / 'motion/iid'}", "OUT=out", "SEEDS=0", "EPOCHS=2")

    def kill_when(reached):
        process = _make(tmp_path, *words)
        wait_until(reached, process, 600)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()

    shards, runs = tmp_path / "out/cache/nucla/shards", tmp_path / "out/runs"
    first = runs / "cross-view-1-seed0/result.json"
    kill_when(lambda: list(shards.glob("*.json")))
    kept = _times(shards, "*.json")
    assert 1 <= len(kept) < 8
    # It trains beside the second one.
    kill_when(lambda: first.exists() and json.loads(first.read_text())["scores"])
    assert kept.items() <= _times(shards, "*.json").items()
    finished = _times(runs, "cross-view-1-seed0/result.json")
    process = _make(tmp_path, *words)
    said, _ = process.communicate(timeout=1200)
    assert process.returncode == 0, said
    assert "this is not N-UCLA: 510 videos" in said
    assert re.search("[1-3] of 4 runs were finished before", said)
    assert _times(runs, "cross-view-1-seed0/result.json") == finished
    document = json.loads((tmp_path / "out/results.json").read_text())
    protocols = ["cross-view:1", "cross-view:2", "cross-view:3", "mean of 3 rotations", "cross-subject:5,6"]
    assert [row["protocol"] for row in document["rows"]] == protocols
    assert [run["test_groups"] for run in document["runs"]] == [170, 170, 170, 59]
    assert {run["recipe"] for run in document["runs"]} <= set(builtin_names("recipe"))
    assert document["rows"][-1]["mean"] > 0.2
    assert all(stage["seconds"] > 0 for stage in document["stages"])
