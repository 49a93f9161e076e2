"""A training that starts from another run: what is taken, what is new, and what is refused."""

import re
import shlex
from dataclasses import replace

import make_groups
import pytest
import torch
from make_cache import clip
from make_groups import INFO, SMALL, SPEC, toy

from dtsf.errors import CheckpointError, ConfigError
from dtsf.training.checkpoint import build_network, load_checkpoint
from dtsf.training.protocols import Split
from dtsf.training.recipe import load_recipe
from dtsf.training.start import Start, check_start, fit_recipe, read_start

TWO_BRANCHES = 'model.branch=[{input="dynamic"}, {input="dynamic", views="all", weight=0.5}]'
OVERRIDES = (*SMALL, TWO_BRANCHES, "train.epochs=2", "train.batch_size=6", "model.principal=5", "train.ema=0.5")


def train(run, groups, *overrides, **options):
    return make_groups.train(run, groups, *OVERRIDES[len(SMALL) :], *overrides, **options)[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two branches, with principal directions."""
    folder = tmp_path_factory.mktemp("start") / "run"
    train(folder, toy())
    return folder


@pytest.fixture
def recipe():
    return load_recipe("thumbnails", OVERRIDES)


def split_of(train, test):
    sides = (tuple(clip(f"{name}{k}", subject=name) for k, name in enumerate(names)) for names in (train, test))
    return Split(train=next(sides), test=next(sides), left_out={}, task="")


def other(names=("a", "b", "c"), views=("1", "2")):
    return INFO.model_copy(update={"class_names": names, "view_names": views})


def test_read_start__takes_all_weights_of_a_run_with_the_same_classes(run, recipe):
    start = read_start(run)
    found = fit_recipe(start, recipe, SPEC)
    assert found == recipe
    torch.manual_seed(9)
    net = build_network(recipe.model, SPEC, INFO)
    report = start.load_into(net, INFO)
    weights = load_checkpoint(run / "last").weights
    for name, x in net.state_dict().items():
        if not name.startswith(("calibrator.", "feature_stats.")):
            assert torch.equal(x, weights[name]), name
    assert report.summary.endswith("tensors of a run of toy (3 classes); new: calibration")


@pytest.mark.parametrize(("info", "new", "words"), [
    (other(("a", "b")), ".head.", "new: heads (2 classes here, 3 other ones in the run)"),
    (other(("b", "a", "c")), ".head.", "new: heads (3 classes here, 3 other ones in the run)"),
    (other(views=("1", "2", "3")), "branches.1.encoder.patch_embed.proj.", "patch_embed.proj.weight (3 views here, 2 in the run)"),
])
def test_read_start__makes_new_what_other_classes_or_views_need(run, recipe, info, new, words):
    start = read_start(run)
    net = build_network(recipe.model, SPEC, info)
    before = {name: x.clone() for name, x in net.state_dict().items()}
    report = start.load_into(net, info)
    for name, x in net.state_dict().items():
        own = new in name or name.startswith(("calibrator.", "feature_stats."))
        assert torch.equal(x, before[name] if own else start.weights[name]), name
        assert (name in report.missing) == own
    assert words in report.summary


def test_fit__keeps_the_inputs_of_the_run_and_resumes_to_the_same_weights(run, recipe, tmp_path):
    # Other data: other scales and other principal directions.
    groups = replace(toy(), embeddings_NFHWC=toy().embeddings_NFHWC.flip(-1) * 3)
    start = read_start(run)
    whole = train(tmp_path / "whole", groups, initial=start)
    for name in ("channel_scale_C", "basis_CR"):
        assert torch.equal(getattr(whole.net.inputs, name), start.weights[f"inputs.{name}"])
    (tmp_path / "killed").mkdir()

    def stop(report):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", groups, initial=start, on_epoch=stop)
    resumed = train(tmp_path / "killed", groups, resume=True)
    for name, x in whole.net.state_dict().items():
        assert torch.equal(x, resumed.net.state_dict()[name]), name


def test_fit_recipe__refuses_other_embeddings_with_the_command(run, recipe):
    spec = SPEC.model_copy(update={"grid": 6, "encoder": "other", "weights_hash": "1"})
    with pytest.raises(CheckpointError) as error:
        fit_recipe(read_start(run), recipe, spec)
    assert "encoder none, not other; weights_hash 0, not 1; grid 3, not 6" in str(error.value)
    assert "dtsf preprocess ... --encoder none --grid 3 --overwrite" in str(error.value)


@pytest.mark.parametrize("changes", [
    ["model.width=32"], ["model.state=8", "model.readout=flatten"], ["model.lags=1,3"], ["model.branch.1.input=frames"],
    ['model.branch=[{input="motion"}]'],
])
def test_fit_recipe__refuses_another_network_and_names_what_fits(run, recipe, changes):
    wrong = load_recipe("thumbnails", [*OVERRIDES, *changes])
    with pytest.raises(CheckpointError, match=f"--init {re.escape(str(run))}: the run has") as error:
        fit_recipe(read_start(run), wrong, SPEC)
    words = shlex.split(str(error.value).partition(": the run has ")[2])
    given = [word for before, word in zip(words, words[1:], strict=False) if before == "--set"]
    fitting = load_recipe("thumbnails", [*OVERRIDES, *changes, *given])
    fit_recipe(read_start(run), fitting, SPEC)


def test_fit_recipe__auto_takes_the_size_of_the_run(run):
    recipe = load_recipe("thumbnails", [*OVERRIDES, "model.width=auto", "model.depth=auto", "model.branch.0.weight=3"])
    assert (fit_recipe(read_start(run), recipe, SPEC).model.width, recipe.model.width) == (16, 0)


def test_read_start__names_a_folder_that_is_no_run(recipe, tmp_path):
    with pytest.raises(CheckpointError, match="the folder is no run"):
        fit_recipe(read_start(tmp_path), recipe, SPEC)
    with pytest.raises(CheckpointError, match="no such file or run"):
        fit_recipe(read_start(tmp_path / "gone"), recipe, SPEC)


@pytest.mark.parametrize(("subjects", "name", "protocol", "train", "found"), [
    (("carla",), "toy", "split", ("carla",), "may have seen clips of this test"),
    (("anna", "carla"), "toy", "split", ("carla",), "it has seen people of this test (anna)"),
    ((), "toy", "split", ("carla",), "nobody knows which people"),
    (("carla",), "toy", "all", ("carla",), ""),  # the same protocol: the same training clips
    (("anna", "carla"), "toy", "all", ("carla",), "it has seen people of this test (anna)"),  # of another table
    (("anna", "ben"), "toy", "cross-view:2", ("anna", "ben"), "may have seen clips of this test"),
    (("ben",), "elsewhere", "split", ("carla",), "people there have names of this test: ben"),
    ((), "elsewhere", "split", ("carla",), ""),
])
def test_check_start__refuses_or_notes_a_run_that_has_seen_the_test(run, subjects, name, protocol, train, found):
    state = load_checkpoint(run / "last").state
    info = state.info.model_copy(update={"subjects": subjects, "name": name})
    start, split = Start(run, {}, state.model_copy(update={"info": info})), split_of(train, ("anna", "ben"))
    refused = "seen people" in found or "nobody" in found
    if refused:
        with pytest.raises(ConfigError, match=re.escape(found) + ".*--allow-leak"):
            check_start(start, split, INFO, protocol, allow_leak=False)
    notes = check_start(start, split, INFO, protocol, allow_leak=refused)
    assert len(notes) == bool(found)
    assert found in notes[0] if found and not refused else True


def test_check_start__refuses_a_run_that_started_from_one_that_has_seen_the_test(run, recipe, tmp_path):
    state = load_checkpoint(run / "last").state
    mine = state.model_copy(update={"info": INFO.model_copy(update={"subjects": ("anna",)}), "protocol": "split"})
    elsewhere = INFO.model_copy(update={"name": "elsewhere", "subjects": ("dora",)})
    train(tmp_path / "second", toy(), initial=replace(read_start(run), run=mine))
    train(tmp_path / "third", toy(), initial=read_start(tmp_path / "second"))
    start = read_start(tmp_path / "third")
    assert [(one.name, one.subjects) for one in start.seen] == [("toy", ()), ("toy", ()), ("toy", ("anna",))]
    start = replace(start, run=state.model_copy(update={"info": elsewhere}), before=start.before[1:])
    words = "started from a run that was trained on toy by split: it has seen people of this test (anna)"
    with pytest.raises(ConfigError, match=re.escape(words)):
        check_start(start, split_of(("carla",), ("anna",)), INFO, "cross-subject:anna", allow_leak=False)
    (tmp_path / "third/init.json").write_text('{"seen": [1]}')
    with pytest.raises(CheckpointError, match="init.json is damaged"):
        fit_recipe(read_start(tmp_path / "third"), recipe, SPEC)


def test_train__init_of_a_run_says_what_is_taken(world, dtsf, tmp_path):
    words = ("train", "--cache", world / "cache", "--init", world / "run", "--epochs", 1, "--set", "train.calibrate=0")
    said = dtsf.said(*words, "--protocol", "cross-subject:2", "--out", "run", cwd=tmp_path)
    assert "tensors of a run of nucla (10 classes, 1 people); new: calibration" in said
    leak = dtsf.refusal(*words, "--protocol", "cross-subject:1", "--out", "leak", cwd=tmp_path)
    assert "it has seen people of this test (1)" in leak
    assert not (tmp_path / "leak").exists()
