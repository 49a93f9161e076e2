"""Settings and recipes: checks before a training, overrides, inheritance, the default; each recipe trains on its cache."""

import math
import re

import pytest
import torch
import typer.main
from make_cache import draw

from dtsf import api
from dtsf.cache.schema import DatasetInfo
from dtsf.cli.app import app
from dtsf.errors import ConfigError
from dtsf.model.config import BranchConfig, ModelConfig
from dtsf.model.network import DTSFNet
from dtsf.pipeline.settings import PreprocessSettings
from dtsf.training.recipe import builtin_names, default_recipe, load_recipe, resolve_auto
from dtsf.training.settings import TrainSettings

KINDS = {"ntu60": "ntu", "ntu120": "ntu", "nucla-paper": "nucla", "demo": "nucla"}


@pytest.mark.parametrize(("command", "model"), [("preprocess", PreprocessSettings), ("train", TrainSettings)])
def test_settings__every_field_is_an_option(command, model):
    options = {p.opts[0]: p for p in typer.main.get_command(app).commands[command].params if p.opts}
    for name, field in model.model_fields.items():
        option = options[model.option(name)]
        assert option.help == field.description
        assert option.secondary_opts == []
        if isinstance(field.default, int | float):
            assert float(option.default) == field.default


def test_train_settings__epochs_is_a_key_of_the_recipe():
    assert TrainSettings.of(overrides=["model.depth=2"], epochs=3).changes() == ("model.depth=2", "train.epochs=3")


@pytest.mark.parametrize(("changes", "message"), [
    ({"init": "weights.pth", "resume": True}, "--init and --resume exclude each other"),
    ({"epoch": 3}, "unknown --epoch; did you mean --epochs"),
    ({"run": 3}, "--out 3"),
    ({"device": "tpu"}, "--device 'tpu'"),
    ({"epochs": 0}, "--epochs 0"),
])
def test_train__refuses_a_setting_before_it_opens_the_cache(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        api.train(tmp_path / "no cache", **changes)


@pytest.mark.parametrize("name", builtin_names("recipe"))
def test_recipe__trains_one_step_on_a_cache_that_it_is_for(tmp_path, name):
    # 48 pixels instead of 224: only the positions of the network differ.
    pixels = 48 if name == "nucla-paper" else 0
    draw(tmp_path, kind=KINDS.get(name, "manifest"), classes=2, takes=1, pixels=pixels)
    protocol = "cross-view:3" if name == "unseen-cameras" else "cross-subject:2"
    # Two blocks instead of 24 or 8: only their number differs. bf16 takes minutes on a CPU without bf16 units.
    small = ["model.depth=2"] if name.startswith(("nu", "nt")) else []
    precision = ["train.precision=32-true"] if pixels else []
    losses = []
    result = api.train(
        tmp_path, protocol=protocol, recipe=name, overrides=["train.epochs=1", "train.warmup=0", *small, *precision], device="cpu",
        run=tmp_path / "run", on_epoch=lambda report: losses.append(report.loss),
    )  # fmt: skip
    assert all(map(math.isfinite, losses))
    assert len((tmp_path / "run/log.jsonl").read_text().splitlines()) == 1
    weights = api.load(tmp_path / "run").net.state_dict()
    assert all(x.isfinite().all() for x in weights.values() if x.is_floating_point())
    assert result.evaluation.metrics.n_groups == (4 if protocol == "cross-view:3" else 2)


@pytest.mark.parametrize(
    ("name", "classes", "channels", "side", "millions"),
    [("ntu60", 60, 112, 6, 2.3), ("ntu120", 120, 112, 6, 4.0), ("nucla-paper", 10, 3, 224, 25.421578)],
)
def test_recipe__has_the_size_in_its_comment(name, classes, channels, side, millions):
    net = DTSFNet(load_recipe(name).model, channels=channels, side=side, n_classes=classes)
    n = sum(parameter.numel() for parameter in net.parameters()) / 1e6
    assert (n if name == "nucla-paper" else round(n, 1)) == millions


def test_nucla_paper__is_the_network_of_the_paper():
    model = load_recipe("nucla-paper").model
    assert (model.frames, model.patch, model.readout, model.fusion) == (16, 16, "cls", "msf")
    assert model.branch == (BranchConfig(input="pixels", views="each", paste="thumbnails"),)


def test_pixels__are_normalised_as_for_videomamba():
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


@pytest.mark.parametrize(("kind", "classes", "encoder", "protocol", "name"), [
    ("manifest", 5, "efficientnet-lite0:16", "split", "default"),
    ("manifest", 5, "efficientnet-lite0:16", "cross-view", "unseen-cameras"),
    ("manifest", 5, "pixels", "split", "nucla-paper"),
    ("nucla", 10, "efficientnet-lite0:16", "cross-subject", "default"),
    ("nucla", 10, "pixels", "cross-view", "nucla-paper"),
    ("casia", 15, "timm:x", "cross-view", "unseen-cameras"),
    ("ntu", 60, "efficientnet-lite0:16", "cross-subject", "ntu60"),
    ("ntu", 60, "efficientnet-lite0:16", "cross-view", "ntu60"),
    ("ntu", 120, "efficientnet-lite0:16", "cross-setup", "ntu120"),
])
def test_default_recipe__follows_kind_encoder_and_protocol(tmp_path, kind, classes, encoder, protocol, name):
    names = tuple(map(str, range(classes)))
    spec = api.open_cache(draw(tmp_path)).spec.model_copy(update={"encoder": encoder})
    info = DatasetInfo(kind=kind, name="x", class_names=names, view_names=("1", "2"))
    chosen, why = default_recipe(info, spec, protocol)
    assert chosen == name
    assert why
    # A branch of all views would be refused for an unseen view.
    assert protocol != "cross-view" or all(branch.views != "all" for branch in load_recipe(chosen).model.branch)


def test_train__prints_and_stores_the_recipe(dtsf, tmp_path):
    draw(tmp_path / "cache", kind="nucla", classes=2, takes=1)
    small = ("--set", "model.width=8", "--epochs", 1)
    said = dtsf.said("train", "--protocol", "cross-view:3", *small, "--out", "one", cwd=tmp_path)
    assert "recipe unseen-cameras: the protocol tests a view" in said
    assert 'recipe = "unseen-cameras"' in (tmp_path / "one/config.toml").read_text()
    words = ("--protocol", "cross-subject:2", "--recipe", "unseen-cameras", "--out", "two")
    assert "recipe unseen-cameras: chosen by the user" in dtsf.said("train", *words, *small, cwd=tmp_path)


def test_train__refuses_the_pixel_recipe_on_embeddings(tmp_path):
    draw(tmp_path)
    with pytest.raises(ConfigError, match='input "pixels", and .* has embeddings of e: dtsf preprocess ... --encoder pixels'):
        api.train(tmp_path, protocol="cross-subject:2", recipe="nucla-paper", run=tmp_path / "run")


@pytest.mark.parametrize(("override", "words"), [
    ("model.branch.0.wieght=2", "unknown 'model.branch.0.wieght'; did you mean 'model.branch.0.weight'"),
    ("model.branch.3.weight=2", "there is no model.branch.3; model.branch has 3 entries, from 0"),
    ("model.branch.weight=2", "name an entry and its key, for example model.branch.0.weight=0.5"),
    ("model.width.x=2", "'model.width' is not a section of the recipe"),
    ("model.pasted=none", "unknown 'model.pasted'"),
    ("model.branch.0.input=pixels", 'branch.0.input "pixels" needs model.principal = 0'),
    ("model.branch.1.paste=tokens", "recipe default: 'model': model.branch.1.paste \"tokens\" needs"),
])
def test_load_recipe__names_the_wrong_key_of_an_override(override, words):
    with pytest.raises(ConfigError, match=re.escape(words)) as refused:
        load_recipe("default", [override])
    assert "occlusion_threshold" not in str(refused.value), "only the key, not its section"


def test_load_recipe__overrides_one_key_of_a_branch_or_all_branches():
    usual = load_recipe("default").model.branch
    changed = load_recipe("default", ["model.branch.2.weight=0.5"]).model.branch
    assert changed == (*usual[:2], usual[2].model_copy(update={"weight": 0.5}))
    one = load_recipe("default", ['model.branch=[{ input = "frames" }]']).model.branch
    assert one == (BranchConfig(input="frames"),)


def test_load_recipe__inherits_the_keys_of_the_extended_recipe(tmp_path):
    mine, yours = tmp_path / "mine.toml", tmp_path / "yours.toml"
    mine.write_text('extends = "default"\n[model]\nwidth = 64\n[train]\nlr = 2e-3\n')
    yours.write_text('extends = "mine.toml"\n[train]\nepochs = 7\n')
    usual, found = load_recipe("default"), load_recipe(str(yours))
    assert (found.model.width, found.train.lr, found.train.epochs) == (64, 2e-3, 7)
    assert found.model.model_copy(update={"width": usual.model.width}) == usual.model
    assert found.augment == usual.augment
    for base, message in (("magic", "unknown recipe 'magic'"), ("yours.toml", "in a circle")):
        mine.write_text(f'extends = "{base}"\n')
        with pytest.raises(ConfigError, match=message):
            load_recipe(str(yours))


def test_resolve_auto__sizes_follow_the_clips_if_the_recipe_leaves_them():
    auto = load_recipe("default", ["model.width=auto", "model.depth=auto", "train.epochs=auto"])
    sizes = [resolve_auto(auto, clips) for clips in (1, 60, 333, 900, 2000, 40_000)]
    widths, depths = [r.model.width for r in sizes], [r.model.depth for r in sizes]
    epochs = [r.train.epochs for r in sizes]
    assert widths == sorted(widths)
    assert depths == sorted(depths)
    assert epochs == sorted(epochs, reverse=True)
    assert all(width % 32 == 0 for width in widths)
    assert resolve_auto(sizes[0], 40_000) == sizes[0]
    fixed = load_recipe("default", ["model.width=48", "model.depth=3", "train.epochs=5", "augment.flip=0"])
    assert resolve_auto(fixed, 9) == fixed


@pytest.mark.parametrize(
    ("n_groups", "class_names", "flip"),
    [
        (40, ("wave", "sit upright"), 0.5),
        (20, ("wave", "point"), 0.0),
        (40, ("turn left", "turn around"), 0.0),
        (40, ("wave", "Right_hand"), 0.0),
    ],
)
def test_resolve_auto__mirrors_groups_of_one_view_without_classes_of_a_side(n_groups, class_names, flip):
    assert resolve_auto(load_recipe("default"), 40, n_groups, class_names).augment.flip == flip
    chosen = load_recipe("default", ["augment.flip=0.2"])
    assert resolve_auto(chosen, 40, n_groups, class_names).augment.flip == 0.2
