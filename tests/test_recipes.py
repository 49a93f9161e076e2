"""Every recipe that comes with dtsf: it trains on the cache it is meant for, and it is chosen where it says."""

import math
import re

import pytest
import torch
from make_cache import draw

from dtsf import api
from dtsf.cache.schema import DatasetInfo
from dtsf.errors import ConfigError
from dtsf.model.config import BranchConfig, ModelConfig
from dtsf.model.network import DTSFNet
from dtsf.training.recipe import builtin_names, default_recipe, load_recipe, resolve_auto

KINDS = {"ntu60": "ntu", "ntu120": "ntu", "nucla-paper": "nucla", "demo": "nucla"}


@pytest.mark.parametrize("name", builtin_names("recipe"))
def test_recipe_trains_one_step_on_a_cache_it_is_meant_for(tmp_path, name):
    # 48 pixels instead of 224: the network is whole but for its table of places.
    pixels = 48 if name == "nucla-paper" else 0
    draw(tmp_path, kind=KINDS.get(name, "manifest"), classes=2, takes=1, pixels=pixels)
    protocol = "cross-view:3" if name == "unseen-cameras" else "cross-subject:2"
    # A CPU without bf16 units takes minutes for what a GPU does in bf16; the recipes for small nets are tried as they are.
    precision = ["train.precision=32-true"] if pixels else []

    def look(report):
        assert math.isfinite(report.loss)

    result = api.train(
        tmp_path, protocol=protocol, recipe=name, overrides=["train.epochs=1", "train.warmup=0", *precision], device="cpu",
        run=tmp_path / "run", on_epoch=look,
    )  # fmt: skip
    lines = (tmp_path / "run/log.jsonl").read_text().splitlines()
    assert len(lines) == 1
    weights = api.load(tmp_path / "run").net.state_dict()
    assert all(x.isfinite().all() for x in weights.values() if x.is_floating_point())
    assert result.evaluation.metrics.n_groups == (4 if protocol == "cross-view:3" else 2)


def test_nucla_paper_is_the_papers_network_and_says_what_the_figure_says():
    recipe = load_recipe("nucla-paper")
    model = recipe.model
    net = DTSFNet(model, channels=3, side=224, n_classes=10)
    assert sum(parameter.numel() for parameter in net.parameters()) == 25_421_578
    assert (model.frames, model.patch, model.readout, model.fusion) == (16, 16, "cls", "msf")
    assert model.branch == (BranchConfig(input="pixels", views="each", paste="thumbnails"),)


@pytest.mark.parametrize(
    ("name", "classes", "millions"), [("ntu60", 60, 2.3), ("ntu120", 120, 4.0)]
)  # fmt: skip
def test_sizes_in_the_comments_are_true(name, classes, millions):
    net = DTSFNet(load_recipe(name).model, channels=112, side=6, n_classes=classes)
    assert round(sum(parameter.numel() for parameter in net.parameters()) / 1e6, 1) == millions


def test_pixels_reach_the_encoder_as_videomamba_takes_them():
    torch.manual_seed(0)
    branch = (BranchConfig(input="pixels"),)
    config = ModelConfig(branch=branch, width=16, depth=1, patch=4, reduce=0, frames=2, readout="cls")
    net = DTSFNet(config, channels=3, side=12, n_classes=2).eval()
    net.inputs.channel_scale_C.fill_(7.0)  # of the training clips; not used
    x = torch.randint(0, 256, (2, 3, 2, 12, 12, 3)).float()
    mask = torch.tensor([[True, True, True], [True, False, True]])
    wanted = (x / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        found = net(x, mask).view_feature_BVD[mask]
        assert torch.allclose(found, net.encoders[0](wanted[mask].permute(0, 4, 1, 2, 3)), atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "classes", "encoder", "protocol", "name"),
    [
        ("manifest", 5, "efficientnet-lite0:16", "split", "default"),
        ("manifest", 5, "efficientnet-lite0:16", "cross-view", "unseen-cameras"),
        ("manifest", 5, "pixels", "split", "nucla-paper"),
        ("nucla", 10, "efficientnet-lite0:16", "cross-subject", "default"),
        ("nucla", 10, "efficientnet-lite0:16", "cross-view", "unseen-cameras"),
        ("nucla", 10, "pixels", "cross-view", "nucla-paper"),
        ("casia", 15, "timm:x", "cross-view", "unseen-cameras"),
        ("casia", 15, "timm:x", "cross-subject", "default"),
        ("ntu", 60, "efficientnet-lite0:16", "cross-subject", "ntu60"),
        ("ntu", 60, "efficientnet-lite0:16", "cross-view", "ntu60"),
        ("ntu", 120, "efficientnet-lite0:16", "cross-setup", "ntu120"),
    ],
)
def test_usual_recipe(tmp_path, kind, classes, encoder, protocol, name):
    names = tuple(map(str, range(classes)))
    spec = api.open_cache(draw(tmp_path)).spec.model_copy(update={"encoder": encoder})
    info = DatasetInfo(kind=kind, name="x", class_names=names, view_names=("1", "2"))
    chosen, why = default_recipe(info, spec, protocol)
    assert chosen == name
    assert why
    # What is chosen must not be refused by the protocol it was chosen for.
    assert protocol != "cross-view" or all(branch.views != "all" for branch in load_recipe(chosen).model.branch)


def test_recipe_that_was_taken_is_said_and_kept(dtsf, tmp_path):
    draw(tmp_path / "cache", kind="nucla", classes=2, takes=1)
    small = ("--set", "model.width=8", "--epochs", 1)
    said = dtsf.said("train", "--protocol", "cross-view:3", *small, "--out", "one", cwd=tmp_path)
    assert "recipe unseen-cameras: the protocol tests a view" in said
    assert 'recipe = "unseen-cameras"' in (tmp_path / "one/config.toml").read_text()
    words = ("--protocol", "cross-subject:2", "--recipe", "unseen-cameras", "--out", "two")
    assert "recipe unseen-cameras: chosen by the user" in dtsf.said("train", *words, *small, cwd=tmp_path)


def test_pixel_recipe_on_embeddings_is_refused_with_the_way(tmp_path):
    draw(tmp_path)
    with pytest.raises(ConfigError, match='input "pixels", and .* has embeddings of e: dtsf preprocess ... --encoder pixels'):
        api.train(tmp_path, protocol="cross-subject:2", recipe="nucla-paper", run=tmp_path / "run")
    with pytest.raises(ConfigError, match=r'branch.0.input "pixels" needs model.principal = 0'):
        load_recipe("default", ["model.branch.0.input=pixels"])


def test_keys_that_do_not_go_together_are_said_without_the_whole_section():
    with pytest.raises(ConfigError, match=r"^recipe default: 'model': model.branch.1.paste .tokens. needs") as refused:
        load_recipe("default", ["model.branch.1.paste=tokens"])
    assert "principal" not in str(refused.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.branch.0.wieght=2", "unknown 'model.branch.0.wieght'; did you mean 'model.branch.0.weight'"),
        ("model.branch.3.weight=2", "there is no model.branch.3; model.branch has 3 entries, from 0"),
        ("model.branch.weight=2", "name an entry and its key, for example model.branch.0.weight=0.5"),
        ("model.width.x=2", "'model.width' is not a section of the recipe"),
        ("model.pasted=none", "unknown 'model.pasted'"),
    ],
)
def test_set__wrong_keys_of_branches_are_named(override, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        load_recipe("default", [override])


def test_set__changes_one_key_of_a_branch_or_all_branches():
    usual = load_recipe("default").model.branch
    changed = load_recipe("default", ["model.branch.2.weight=0.5"]).model.branch
    assert changed == (*usual[:2], usual[2].model_copy(update={"weight": 0.5}))
    one = load_recipe("default", ['model.branch=[{ input = "frames" }]']).model.branch
    assert one == (BranchConfig(input="frames"),)


def test_a_recipe_takes_what_it_extends_and_changes_what_it_says(tmp_path):
    (tmp_path / "mine.toml").write_text('extends = "default"\n[model]\nwidth = 64\n[train]\nlr = 2e-3\n')
    (tmp_path / "yours.toml").write_text('extends = "mine.toml"\n[train]\nepochs = 7\n')
    usual, yours = load_recipe("default"), load_recipe(str(tmp_path / "yours.toml"))
    assert (yours.model.width, yours.train.lr, yours.train.epochs) == (64, 2e-3, 7)
    assert yours.model.model_copy(update={"width": usual.model.width}) == usual.model
    assert yours.augment == usual.augment
    (tmp_path / "other.toml").write_text('extends = "magic"\n')
    with pytest.raises(ConfigError, match="unknown recipe 'magic'"):
        load_recipe(str(tmp_path / "other.toml"))
    (tmp_path / "mine.toml").write_text('extends = "yours.toml"\n')
    with pytest.raises(ConfigError, match="in a circle"):
        load_recipe(str(tmp_path / "yours.toml"))


def test_size_follows_the_clips_where_the_recipe_leaves_it_and_not_where_it_says():
    auto = load_recipe("default", ["model.width=auto", "model.depth=auto", "train.epochs=auto"])
    sizes = [resolve_auto(auto, clips) for clips in (1, 60, 333, 900, 2000, 40_000)]
    widths, epochs = [r.model.width for r in sizes], [r.train.epochs for r in sizes]
    assert widths == sorted(widths)
    assert epochs == sorted(epochs, reverse=True)
    assert all(width % 32 == 0 for width in widths)
    assert [r.model.depth for r in sizes] == sorted(r.model.depth for r in sizes)
    assert resolve_auto(sizes[0], 40_000) == sizes[0]
    fixed = load_recipe("default", ["model.width=48", "model.depth=3", "train.epochs=5"])
    assert resolve_auto(fixed, 9) == fixed
