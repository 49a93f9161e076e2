"""The encoder against VideoMamba's description, and initial weights from its published checkpoints."""

import argparse
import json
import zipfile

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from videomamba_reference import draw, features, shapes

from dtsf.api import load
from dtsf.errors import CheckpointError
from dtsf.model.config import ModelConfig
from dtsf.model.videomamba import VideoMamba
from dtsf.training.init_weights import load_initial_weights, read_initial_weights
from dtsf.training.recipe import Recipe
from dtsf.training.start import fit_recipe, read_start

SMALL = ModelConfig(width=384, depth=24, patch=16, reduce=0, readout="cls", frames=16)
TINY = ModelConfig(width=32, depth=2, patch=4, reduce=0, readout="cls", frames=4)
OPEN = TINY.model_copy(update={"width": 0, "depth": 0})


def encoder(config, side=8, classes=3, channels=3):
    return VideoMamba(config, channels=channels, side=side, n_classes=classes)


def tiny(frames=4, places=4, classes=3, seed=0):
    return draw(shapes(32, 2, places, frames, classes, side=4), seed)


def loaded(file, content, config=TINY, **sizes):
    """An encoder that starts from a file of ``content``, and the report."""
    (save_file if file.suffix == ".safetensors" else torch.save)(content, file)
    net = encoder(config, **sizes)
    return net, load_initial_weights(net, read_initial_weights(file))


def refused(file, content, message, config=TINY):
    """Check that the file is refused."""
    if content is not None:
        torch.save(content, file)
    with pytest.raises(CheckpointError, match=message):
        fit_recipe(read_start(file), Recipe(model=config), None)


@pytest.mark.parametrize(("width", "depth", "side", "size", "frames"), [
    (32, 1, 4, 4, 1), (32, 2, 4, 8, 3), (48, 3, 2, 6, 2), (20, 2, 16, 32, 4), (16, 2, 4, 12, 9),
])
def test_encoder__equals_videomamba(width, depth, side, size, frames):
    state = draw(shapes(width, depth, (size // side) ** 2, frames, 5, side), seed=frames)
    net = encoder(TINY.model_copy(update={"patch": side, "frames": frames, "width": width, "depth": depth}), size, 5).eval()
    net.load_state_dict(state)
    torch.manual_seed(0)
    video = torch.randn(2, 3, frames, size, size, dtype=torch.float64)
    wide = {name: x.double() for name, x in state.items()}
    wanted = torch.stack([features(clip, wide, depth) for clip in video])
    with torch.inference_mode():
        narrow, exact = net(video.float()), net.double()(video)
    torch.testing.assert_close(exact, wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(narrow.double(), wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())


def test_load__all_416_tensors_of_videomamba_s(tmp_path):
    state = draw(shapes(384, 24, 196, 16, 10))
    assert len(state) == 416
    assert sum(x.numel() for x in state.values()) == 25_421_578
    net, report = loaded(tmp_path / "videomamba_s16.pth", {"model": state}, SMALL, side=224, classes=10)
    assert (len(report.loaded), report.left, report.missing, report.adapted) == (416, {}, [], {})
    assert all(torch.equal(x, state[name]) for name, x in net.state_dict().items())


@pytest.mark.parametrize("wrap", [
    lambda s: s,
    lambda s: {"model": s, "args": argparse.Namespace(lr=1e-3), "epoch": 3},
    lambda s: {"module": s},
    lambda s: {"model": {f"module.backbone.{name}": x for name, x in s.items()}},
    lambda s: {f"encoder.{name}": x for name, x in s.items()},
    lambda s: {"model": {name: x.half() for name, x in s.items()}},
])
def test_read__wrapped_states_of_published_files(tmp_path, wrap):
    state = tiny()
    net, report = loaded(tmp_path / "weights.pth", wrap(state))
    assert (report.left, report.missing) == ({}, [])
    torch.testing.assert_close(dict(net.state_dict()), dict(state), rtol=1e-3, atol=1e-3)


def test_load__inflates_an_image_checkpoint(tmp_path):
    state = draw(shapes(32, 2, 4, None, 1000, side=4))
    net, report = loaded(tmp_path / "image.safetensors", state)
    assert report.missing == ["temporal_pos_embedding", "head.weight", "head.bias"]
    assert set(report.left) == {"head.weight", "head.bias"}
    assert report.left["head.weight"] == "1000 x 32 in the file, 3 x 32 here"
    assert (net.temporal_pos_embedding == 0).all()
    # The inflated kernel sees one frame as the image model sees its picture.
    picture = torch.randn(1, 3, 8, 8)
    wanted = F.conv2d(picture, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=4)
    torch.testing.assert_close(net.patch_embed(picture.unsqueeze(2))[0, 0].T.unflatten(1, (2, 2)), wanted[0])


def test_load__interpolates_positions_in_space_and_time(tmp_path):
    state = tiny(frames=8, places=9)
    net, report = loaded(tmp_path / "weights.pth", state, side=16)
    assert report.adapted == {
        "pos_embed": "interpolated from 3 x 3 to 4 x 4 positions",
        "temporal_pos_embedding": "interpolated from 8 to 4 frames",
    }
    assert torch.equal(net.pos_embed[:, 0], state["pos_embed"][:, 0])
    grid = state["pos_embed"][0, 1:].T.unflatten(1, (3, 3))
    wanted = F.interpolate(grid[None], size=(4, 4), mode="bicubic", align_corners=False)[0]
    torch.testing.assert_close(net.pos_embed[0, 1:].T.unflatten(1, (4, 4)), wanted)
    # Half as many frames: each new one lies in the middle between two old ones.
    pairs = state["temporal_pos_embedding"][0].unflatten(0, (4, 2)).mean(1)
    torch.testing.assert_close(net.temporal_pos_embedding[0], pairs)
    state["pos_embed"][:, 1:] = 3.0  # constant positions stay constant
    net, _ = loaded(tmp_path / "weights.pth", state, side=20)
    torch.testing.assert_close(net.pos_embed[:, 1:], torch.full_like(net.pos_embed[:, 1:], 3.0))


def test_load__drops_the_class_token_and_its_position(tmp_path):
    state = tiny()
    net, report = loaded(tmp_path / "weights.pth", state, TINY.model_copy(update={"readout": "mean"}))
    assert report.left == {"cls_token": "the network has no such tensor"}
    assert torch.equal(net.pos_embed, state["pos_embed"][:, 1:])


def test_load__reports_a_random_stem_for_embeddings(tmp_path):
    torch.save(tiny(), tmp_path / "weights.pth")
    net = encoder(TINY, channels=24)
    before = net.patch_embed.proj.weight.clone()
    report = load_initial_weights(net, read_initial_weights(tmp_path / "weights.pth"))
    assert report.left["patch_embed.proj.weight"] == "32 x 3 x 1 x 4 x 4 in the file, 32 x 24 x 1 x 4 x 4 here"
    assert report.left["patch_embed.proj.bias"] == "the other half of the layer does not fit"
    assert report.missing == ["patch_embed.proj.weight", "patch_embed.proj.bias"]
    assert torch.equal(net.patch_embed.proj.weight, before)


class Sized:
    def __reduce__(self):
        return bytearray, (1 << 33,)


class Malicious:
    def __reduce__(self):
        return print, ("code in a checkpoint ran",)


def test_read__refuses_files_that_are_not_checkpoints(tmp_path, capsys):
    file, state = tmp_path / "weights.pth", tiny()
    refused(file, None, "no such file")
    file.write_bytes(b"not a checkpoint")
    refused(file, None, "cannot be read as tensors")
    for content, message in (
        ({"model": {"fc.weight": torch.zeros(2)}}, "not a VideoMamba checkpoint"),
        ({"model": {"layers.0.norm.weight": torch.zeros(2)}}, "is not as expected"),
        ([1, 2], "not a VideoMamba checkpoint"),
        ({"model": {"a": Malicious()}}, "cannot be read as tensors"),
        ({name: x for name, x in state.items() if "_b" not in name}, "one direction only"),
        (state | {"norm_f.weight": torch.full((32,), torch.nan)}, r"norm_f.weight has values that are not finite"),
        ({"model": state, "args": Sized()}, "contains __builtin__ bytearray"),
        (state | {"norm_f.weight": torch.zeros(1).expand(1 << 33)}, "norm_f.weight is not a dense tensor, or is larger"),
    ):
        refused(file, content, message)
    with zipfile.ZipFile(file) as plain, zipfile.ZipFile(tmp_path / "deflated.pth", "w", zipfile.ZIP_DEFLATED) as deflated:
        for part in plain.namelist():
            deflated.writestr(part, plain.read(part))
    refused(tmp_path / "deflated.pth", None, "compressed")
    assert "code" not in capsys.readouterr().out


def test_fit_recipe__auto_takes_the_size_of_the_file_unless_impossible(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save({"model": tiny()}, file)
    for fixed in {}, {"width": 32}, {"depth": 2}:
        config = ModelConfig.model_validate(TINY.model_dump() | {"width": "auto", "depth": "auto"} | fixed)
        taken = fit_recipe(read_start(file), Recipe(model=config), None).model
        assert (taken.width, taken.depth, taken.frames) == (32, 2, config.frames)
    refused(file, None, r"the recipe's width 48: --set model.width=32$", config.model_copy(update={"width": 48}))
    refused(file, None, r"width 384, depth 24: --set model.width=32 --set model.depth=2", SMALL)
    refused(file, tiny() | {"layers.9999999.norm.weight": torch.zeros(1)}, "depth 10000000", OPEN)
    refused(file, tiny() | {"layers.0.mixer.in_proj.weight": torch.zeros(0, 0)}, "not a VideoMamba checkpoint", OPEN)


@pytest.mark.slow
def test_train__init_reports_the_use_of_the_tensors(world, dtsf, tmp_path):
    state = draw(shapes(32, 2, 196, 8, 400, side=16, n_state=8))
    torch.save({"model": state}, tmp_path / "videomamba.pth")
    words = ["train", "--cache", world / "cache", "--protocol", "cross-subject:2", "--epochs", 1]
    words += ["--init", "videomamba.pth"]
    wrong = dtsf.refusal(*words, "--set", "model.width=48", "--set", "model.depth=1", "--out", "wrong", cwd=tmp_path)
    assert "width 48, depth 1: --set model.width=32 --set model.depth=2" in wrong
    assert not (tmp_path / "wrong").exists()
    said = dtsf.said(*words, "--set", "train.lr=1e-9", "--out", "run", cwd=tmp_path)
    report = json.loads((tmp_path / "run" / "init.json").read_text())
    assert len(report["loaded"]) == len(state) - 5
    assert "patch_embed.proj.weight" in report["left"]
    assert f"{len(state) - 5} tensors loaded" in said
    found = load(tmp_path / "run").net.encoders[0].layers[0].mixer.in_proj.weight
    torch.testing.assert_close(found, state["layers.0.mixer.in_proj.weight"], rtol=1e-4, atol=1e-6)
    assert "exclude each other" in dtsf.refusal(*words, "--resume", "--out", "run", cwd=tmp_path)
