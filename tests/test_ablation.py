"""``dtsf ablate``: real trainings of tiny networks, killed and continued, evaluated on other datasets, and refusals."""

import csv
import errno
import json
import os
import signal
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from helpers import exit_code, forked
from make_cache import draw

import dtsf as package
from dtsf.cache.reader import open_dataset
from dtsf.errors import CacheError, CheckpointError, ConfigError
from dtsf.experiments.ablation import load_table, make_variants
from dtsf.training.recipe import builtin_names

EACH = 'model.branch=[{ input = "motion", weight = 0.67 }, { input = "dynamic", channels = 8, weight = 0.33 }]'
TINY = ["model.width=16", "model.depth=1", "model.state=2", "model.reduce=4", "train.batch_size=3", "train.epochs=2"]
SHORT = [*TINY, "train.epochs=1"]
COMMON = {"dataset": "drawn", "protocol": "cross-subject:2", "recipe": "default", "overrides": TINY, "device": "cpu"}
THREE = (
    'title = "Three"\n[[row]]\nname = "DTSFNet"\n[[row]]\nname = "TMC"\nsource = "Han et al."\nset = ["model.fusion=tmc"]\n'
    'drop = ["all"]\n[[row]]\nname = "SFM"\nset = ["model.fusion=sfm"]\ndrop = ["all"]\n'
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    root = tmp_path_factory.mktemp("ablation")
    draw(root, "drawn")
    draw(root, "aligned", subjects=(3, 2), seed=1)
    draw(root, "conflict", subjects=(1, 3), seed=2)
    draw(root, "wider", classes=4)
    draw(root, "shorter", frames=8)
    return root


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory):
    """An undisturbed table of three rows with two seeds, and its folder."""
    out, done = tmp_path_factory.mktemp("whole"), []
    (out / "three.toml").write_text(THREE)
    options = COMMON | {"seeds": (0, 1), "out": out, "on_epoch": lambda *words: done.append(words)}
    result = package.ablate(cache, table=str(out / "three.toml"), **options)
    assert done[-1][:2] == (done[-1][1], 2 * result.total)
    assert (result.done, result.total, result.reused) == (6, 6, 0)
    return result, out


@pytest.fixture
def three(tmp_path):
    (tmp_path / "three.toml").write_text(THREE)
    return str(tmp_path / "three.toml")


def test_ablate__a_row_with_other_classes_is_not_compared(cache, tmp_path):
    name = open_dataset(cache, "wider").info.class_names[0]
    (tmp_path / "two.toml").write_text(
        f'title = "Two"\n[[row]]\nname = "all"\n[[row]]\nname = "fewer"\nset = ["train.exclude_classes=[\'{name}\']"]\n'
    )
    options = COMMON | {"dataset": "wider", "out": tmp_path / "out", "overrides": SHORT, "seeds": (0,)}
    result = package.ablate(cache, table=str(tmp_path / "two.toml"), **options)
    assert (result.done, result.total) == (2, 2)
    assert not result.rows[1].compared
    assert "row 'fewer' is not compared: " in result.tests[0].note
    assert "row 'fewer' is not compared: " in (tmp_path / "out/two.md").read_text()


def rows_of(file):
    return {(row["variant"], row["test"]): row for row in csv.DictReader(file.read_text().splitlines())}


def folder_of(out, variant, seed):
    (folder,) = out.glob(f"trainings/{variant.lower().replace(' ', '-')}-????????????????-seed{seed}")
    return folder


def killed_at(epoch, cache, **options):

    def die(done, _total, _note):
        if done == epoch:
            os.kill(os.getpid(), signal.SIGKILL)

    assert exit_code(forked(lambda: package.ablate(cache, on_epoch=die, **options))) == -signal.SIGKILL


def test_make_variants__of_one_view_leave_out_what_needs_two():
    for n_views, methods in ((1, {"none", "cir"}), (2, {"none", "cir", "prototypes", "actionmae"})):
        rows = make_variants(load_table("debias"), "default", n_views=n_views)
        found = {settings.debias.method for row, settings in rows if row.variant in ("DTSFNet", "CIR", "prototypes", "ActionMAE")}
        assert found == methods


def test_make_variants__changes_the_recipe_as_the_rows_say():
    variants = make_variants(load_table("paper"), "default", TINY)
    rows = {row.variant: (row, settled) for row, settled in variants}
    each, frames = ["motion each", "dynamic each"], ["frames each", "frames all"]
    expected = {
        "DTSFNet": (["motion each", "motion all", "dynamic each"], "msf"),
        "MSF alone": (each, "msf"),
        "mean fusion without TSM": (["frames each"], "mean"),
        "TMC": (each, "tmc"),
        "SFM": (each, "sfm"),
        "mean fusion": (each, "mean"),
        **dict.fromkeys(("MSM", "HSIC", "ALBAR", "SOAR", "StillMix", "DTSFNet without TSM"), (frames, "msf")),
    }
    assert expected.keys() <= rows.keys()
    for name, (branches, fusion) in expected.items():
        row, settled = rows[name]
        model, method = settled.model, name.lower() if name in ("HSIC", "StillMix", "ALBAR", "SOAR") else "none"
        assert ([f"{branch.input} {branch.views}" for branch in model.branch], model.fusion) == (branches, fusion)
        assert [branch.msm for branch in model.branch] == [name == "MSM"] * len(branches)
        assert (settled.debias.method, model.width) == (method, 16)
    assert rows["DTSFNet"][0].differs == ()
    assert rows["TMC"][0].differs == ("model.branch motion each 0.67; dynamic each 8 channels 0.33", "model.fusion tmc (msf)")


def test_ablate__writes_the_numbers_of_the_trainings(whole):
    result, out = whole
    table = rows_of(out / "three.csv")
    for row in result.rows:
        config = tomllib.loads((folder_of(out, row.variant, 0) / "config.toml").read_text())
        fusion, branches = config["model"]["fusion"], len(config["model"]["branch"])
        assert (fusion, branches) == {"DTSFNet": ("msf", 3), "TMC": ("tmc", 2), "SFM": ("sfm", 2)}[row.variant]
        line = table[row.variant, "drawn"]
        numbers = [float(line[f"seed {seed}"]) for seed in (0, 1)]
        for seed in (0, 1):
            trained = json.loads((folder_of(out, row.variant, seed) / "metrics.json").read_text())["top1"]
            assert numbers[seed] == pytest.approx(trained, abs=1e-6)
        assert float(line["mean"]) == pytest.approx(sum(numbers) / 2, abs=2e-6)
        assert float(line["spread"]) == pytest.approx(max(numbers) - min(numbers), abs=2e-6)
        assert float(line["seconds"]) > 0
    page = (out / "three.md").read_text()
    assert "Not finished" not in page
    differs = "model.branch motion each 0.67; dynamic each 8 channels 0.33, model.fusion tmc (msf)"
    assert f"| TMC | Han et al. | {differs} |" in page
    assert "--set model.fusion=tmc --set 'model.branch=[" in page
    drawing = ET.parse(out / "three.svg").getroot()
    words = {element.text for element in drawing.iter("{http://www.w3.org/2000/svg}text")}
    assert {row.variant for row in result.rows} <= words
    assert len(list(drawing.iter("{http://www.w3.org/2000/svg}circle"))) == 6


def test_ablate__repeats_no_training_and_shares_them_between_tables(cache, dtsf, whole, tmp_path):
    result, out = whole
    before = {path: path.stat().st_mtime_ns for path in out.glob("trainings/*/last/*")}
    files = {path: path.read_bytes() for path in out.glob("three.*")}
    table, epochs = str(out / "three.toml"), []
    options = COMMON | {"seeds": (0, 1), "out": out, "on_epoch": lambda *words: epochs.append(words)}
    again = package.ablate(cache, table=table, **options)
    assert (again.reused, epochs) == (6, [])
    assert again.rows == result.rows
    assert {path: path.read_bytes() for path in files} == files
    words = ["ablate", "--table", table, "--cache", cache, "--dataset", "drawn", "--protocol", "cross-subject:2"]
    words += ["--recipe", "default", "--seeds", "0,1", "--device", "cpu", "--out", out]
    said = dtsf.json(*words, *(word for change in TINY for word in ("--set", change)), cwd=tmp_path)
    assert said["done"] == said["total"] == 6
    assert said["rows"][1]["tests"]["drawn"]["seeds"] == {str(k): v for k, v in result.rows[1].top1["drawn"].items()}
    assert said["rows"][1]["tests"]["drawn"]["scores"]["people"] == 1
    assert {path: path.read_bytes() for path in files} == files
    # A row of another table with the same settings is the same training.
    (tmp_path / "other.toml").write_text(THREE.replace('"TMC"', '"Dempster"').replace('"SFM"', '"mean"').replace("=sfm", "=mean"))
    other = package.ablate(cache, table=str(tmp_path / "other.toml"), **options)
    assert (other.reused, other.total, sum("loss" in note for *_, note in epochs)) == (4, 6, 4)
    assert (0, 4) in {words[:2] for words in epochs}  # what begins is said before the first epoch
    assert {path: path.stat().st_mtime_ns for path in before} == before
    right, before_right = ({row.variant: row.top1 for row in table.rows} for table in (other, result))
    assert right["Dempster"] == before_right["TMC"]


@pytest.mark.parametrize("name", ["motion", "debias"])
def test_ablate__trains_every_table(cache, tmp_path, name):
    options = COMMON | {"overrides": [*SHORT, EACH], "seeds": (0,), "out": tmp_path}
    result = package.ablate(cache, table=name, **options)
    assert result.done == result.total
    # The recipe has no branch of all views together, so this row is the recipe.
    same = {"each view separately": "DTSFNet", "motion of each view": "motion alone"} if name == "motion" else {}
    assert {row.variant: row.same_as for row in result.rows if row.same_as} == same
    assert not same or "the same settings as DTSFNet, one training for both" in (tmp_path / "motion.md").read_text()
    assert all(len(row.top1["drawn"]) == 1 for row in result.rows)


def test_ablate__gives_the_same_table_after_a_kill(cache, whole, three, tmp_path):
    options = COMMON | {"table": three, "seeds": (0, 1), "out": tmp_path, "workers": 1}
    killed_at(5, cache, **options)
    assert "**Not finished: 2 of 6 trainings.**" in (tmp_path / "three.md").read_text()
    assert "not yet" in (tmp_path / "three.svg").read_text()
    assert json.loads((folder_of(tmp_path, "TMC", 0) / "result.json").read_text())["trained"] is False
    broken, finished = sorted(tmp_path.glob("trainings/dtsfnet-????????????????-seed?/result.json"))
    broken.write_text(broken.read_text()[:9])
    before = finished.with_name("metrics.json").stat().st_mtime_ns
    epochs = []
    package.ablate(cache, on_epoch=lambda *words: epochs.append(words), **options)
    assert finished.with_name("metrics.json").stat().st_mtime_ns == before
    # Two epochs of the training that was cut off before its second checkpoint, and of each that was not started.
    assert sum("loss" in note for *_, note in epochs) == 2 * 4
    wanted, found = rows_of(whole[1] / "three.csv"), rows_of(tmp_path / "three.csv")
    assert len(found) == 3
    for name, row in found.items():
        columns = ("mean", "spread", "seed 0", "seed 1", "differs")
        assert [row[column] for column in columns] == [wanted[name][column] for column in columns]


def test_ablate__evaluates_on_other_datasets_and_shows_the_gap(cache, three, tmp_path):
    other, epochs = "conflict@cross-subject:3", []
    options = COMMON | {"seeds": (0, 1), "table": three, "out": tmp_path, "overrides": SHORT}
    result = package.ablate(cache, tests=["aligned", other], gap=("aligned", other), **options)
    assert [(one.name, one.n_groups, one.note) for one in result.tests] == [("drawn", 6, ""), ("aligned", 12, ""), (other, 6, "")]
    assert result.tests[2].task == "test clips of conflict by cross-subject:3"
    table = rows_of(tmp_path / "three.csv")
    for row in result.rows:
        gap = table[row.variant, "aligned - conflict@cross-subject:3"]
        for seed in (0, 1):
            run = package.load(folder_of(tmp_path, row.variant, seed))
            aligned = run.evaluate(cache, dataset="aligned", protocol="all").metrics.top1
            conflict = run.evaluate(cache, dataset="conflict", protocol="cross-subject:3").metrics.top1
            assert row.top1["aligned"][seed] == pytest.approx(aligned)
            assert float(gap[f"seed {seed}"]) == pytest.approx(aligned - conflict, abs=1e-6)
    # A further test needs no training. Clips that were trained on are reported.
    options |= {"tests": ["drawn@all", "conflict"], "on_epoch": lambda *words: epochs.append(words)}
    more = package.ablate(cache, **options)
    assert (epochs, more.done) == ([], 6)
    notes = {test.name: test.note for test in more.tests}
    assert notes["drawn@all"] == "18 of 36 test clips show recordings of the training"
    assert notes["conflict"] == "18 of its 36 clips are of subjects (by number) that were trained on"
    assert "**conflict: 18 of its 36 clips are of subjects" in (tmp_path / "three.md").read_text()


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"table": "fusions"}, ConfigError, "unknown table 'fusions'; there are debias, fusion, motion, paper"),
        ({"table": "gone.toml"}, ConfigError, "gone.toml cannot be read"),
        ({"seeds": (0, 0)}, ConfigError, "must be different numbers"),
        ({"seeds": ()}, ConfigError, "must be different numbers"),
        ({"seeds": (2**40,)}, ConfigError, "must be different numbers"),
        ({"device": "tpu"}, ConfigError, "--device 'tpu'"),
        ({"gap": ("drawn", "aligned")}, ConfigError, "must name two of the tests: drawn; add others by --test"),
        ({"tests": ["nowhere"]}, CacheError, "no dataset 'nowhere'"),
        ({"tests": ["wider"]}, CheckpointError, r"wider has other classes \(4\) than drawn \(3\)"),
        ({"tests": ["shorter"]}, CacheError, "frames: 8 in the cache, 16 requested"),
        ({"tests": ["aligned", "aligned"]}, ConfigError, "named twice"),
        ({"overrides": ["model.widht=3"]}, ConfigError, "did you mean 'model.width'"),
        ({"init": Path("gone.pth")}, CheckpointError, "gone.pth: no such file"),
    ],
)
def test_ablate__refuses_wrong_settings_before_the_first_training(cache, tmp_path, changed, error, message):
    with pytest.raises(error, match=message):
        package.ablate(cache, out=tmp_path / "out", **COMMON | {"table": "paper"} | changed)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--table", "fusion", "--seeds", "0,x"), "--seeds '0,x': must be different numbers from 0"),
        (("--table", "fusion", "--gap", "aligned"), "--gap 'aligned': must be two names joined by a comma"),
        (("--table", "fusion", "--epochs", "0"), "--epochs 0: "),
        ((), "Missing option '--table'"),
    ],
)
def test_ablate_command__exits_2_for_wrong_options(dtsf, cache, tmp_path, words, message):
    assert message in dtsf.refusal("ablate", "--cache", cache, "--dataset", "drawn", *words, cwd=tmp_path)


def test_ablate__gives_rows_the_sizes_of_a_checkpoint_also_after_a_kill(cache, videomamba, tmp_path):
    (tmp_path / "one.toml").write_text('title = "One"\n[[row]]\nname = "one"\n')
    options = COMMON | {"table": str(tmp_path / "one.toml"), "seeds": (0,), "init": videomamba, "out": tmp_path / "out"}
    with pytest.raises(CheckpointError, match="does not fit the recipe's width 8"):
        package.ablate(cache, **options | {"overrides": [*TINY, "model.width=8"]})
    assert not (tmp_path / "out").exists()
    sizes = ("model.width", "model.depth")
    options["overrides"] = [*(word for word in TINY if not word.startswith(sizes)), "model.state=4"]
    killed_at(1, cache, **options)
    assert package.ablate(cache, **options).done == 1
    (last,) = (tmp_path / "out/trainings").glob("*/last")
    assert package.load(last.parent).net.config.width == 16


def test_ablate__reads_custom_tables_and_refuses_invalid_ones(cache, tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text(
        'title = "Width <b>|"\n[[row]]\nname = "16"\n[[row]]\nname = "8 | <i>"\nset = ["model.width=8"]\n'
        '[[row]]\nname = "16 again"\nset = ["model.width=16"]\n'
    )
    options = COMMON | {"seeds": (3,), "out": tmp_path / "out", "overrides": SHORT, "table": str(mine)}
    result = package.ablate(cache, **options)
    assert (result.table, result.total, result.rows[2].same_as) == ("mine", 2, "16")
    for changed in ({"overrides": [*SHORT, "loss.kl=0.5"]}, {"protocol": "cross-subject:1"}, {"seeds": (4,)}):
        assert package.ablate(cache, **options | changed).reused == 0
    assert package.ablate(cache, **options).reused == 2
    assert "| 8 \\| \\<i\\> |" in (tmp_path / "out/mine.md").read_text()
    ET.parse(tmp_path / "out/mine.svg")
    for text, message in (
        ('title = "x"\n[[row]]\nname = "a"\nsets = []\n', r"row.0.sets: Extra inputs"),
        ('title = "x"\nrow = []\n', "row: "),
        ('title = "x"\n[[row]]\nname = "a"\n[[row]]\nname = "a"\n', "two rows are called 'a'"),
        ("title = ", "is not valid TOML"),
    ):
        mine.write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_table(str(mine))


def refuse_as_full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_ablate__refuses_a_second_process_and_names_a_damaged_checkpoint(cache, tmp_path, monkeypatch):
    options = COMMON | {"table": "debias", "seeds": (0,), "out": tmp_path, "workers": 1}

    def another(_result):
        with pytest.raises(ConfigError, match=f"another dtsf ablate works in {tmp_path}"):
            package.ablate(cache, **options)

    def stop(done, _total, _note):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        package.ablate(cache, on_result=another, on_epoch=stop, **options)
    (file,) = tmp_path.glob("trainings/*/last/model.safetensors")
    monkeypatch.setattr("dtsf.training.checkpoint.fresh_folder", refuse_as_full)
    with pytest.raises(CheckpointError, match="free disk space and run the same command again") as caught:
        package.ablate(cache, **options)
    assert "remove" not in str(caught.value)
    monkeypatch.undo()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=f"last is damaged: .* To train it again, remove {file.parents[1]} and run"):
        package.ablate(cache, **options)


@pytest.mark.parametrize("recipe", builtin_names("recipe"))
@pytest.mark.parametrize("table", builtin_names("table"))
def test_make_variants__fits_every_table_to_every_recipe(recipe, table):
    assert all(settings.model_dump() for _, settings in make_variants(load_table(table), recipe))
