"""From frames to embeddings: a frozen image network that looks at every frame by itself, or the pixels themselves."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from dtsf.errors import ConfigError
from dtsf.pipeline.encoders import lite as lite0
from dtsf.pipeline.encoders import timm as timm_encoder

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

__all__ = ["Encoder", "Identity", "encoder_identity", "load_encoder", "prepare_encoder"]

LITE0 = {
    "efficientnet-lite0": 16,
    "efficientnet-lite0:8": 8,
    "efficientnet-lite0:16": 16,
    "efficientnet-lite0:32": 32,
}
"""Name -> stride of the map that is kept. Stride 16 carries the most about motion (docs/results.md), 8 is finer and
weaker, 32 three times as large and no better."""
NAMES = (*LITE0, "pixels", "timm:MODEL")


@dataclass(frozen=True)
class Identity:
    """What an encoder's numbers depend on, and their shape."""

    name: str
    """Canonical: two spellings of one encoder have one name."""
    weights_hash: str
    grid: int
    """Cells along each side of an embedding."""
    channels: int
    dtype: str


@dataclass(frozen=True)
class Encoder:
    """A frame encoder, loaded."""

    identity: Identity
    embed: Callable[[np.ndarray], np.ndarray]
    """(F, size, size, 3) uint8 RGB -> (F, grid * grid, channels), cells in raster order."""


@lru_cache(maxsize=8)
def encoder_identity(name: str, size: int, grid: int) -> Identity:
    """What an encoder is. Cheap for the built-in ones; timm's are loaded for the hash of their weights.

    Args:
        name: ``efficientnet-lite0[:STRIDE]``; ``pixels``, for end-to-end training; ``timm:MODEL`` with timm's own weights
            or ``timm:MODEL@FILE``.
        size: Side of the pictures, in pixels.
        grid: Cells along each side; ``pixels`` has a cell a pixel whatever it says.

    Raises:
        ConfigError: Unknown name, or a size and grid that do not fit.

    """
    if name == "pixels":
        return Identity("pixels", "none", size, 3, "uint8")
    if grid % 3 or grid < 3:
        raise ConfigError(f"--grid {grid} is not divisible by 3: a snapshot takes one cell of a 3 x 3 division")
    if name.startswith("timm:"):
        model = name.removeprefix("timm:")
        return Identity(
            name,
            timm_encoder.timm_identity(model, size),
            grid,
            timm_encoder.timm_channels(model, size),
            "float16",
        )
    if name not in LITE0:
        raise ConfigError(f"unknown encoder {name!r}; there are {', '.join(NAMES)}")
    stride = LITE0[name]
    if size % 32 or (size // stride) % grid:
        raise ConfigError(
            f"--size {size} does not fit {name}: it must be a multiple of 32, and its map of "
            f"{size / stride:g} x {size / stride:g} a multiple of --grid {grid}; for example --size 192 --grid 6"
        )
    return Identity(f"efficientnet-lite0:{stride}", lite0.weights_hash(), grid, lite0.STAGES[stride][1], "float16")


@lru_cache(maxsize=2)
def load_encoder(name: str, size: int, grid: int, device: str = "auto") -> Encoder:
    """Load an encoder.

    Args:
        name: As for :func:`encoder_identity`.
        size: Side of the pictures, in pixels.
        grid: Cells along each side of the embedding.
        device: ``auto`` takes CUDA where there is one. ``cpu`` is ONNX Runtime for EfficientNet-Lite0; ``torch-cpu`` is
            PyTorch: choose it to compare the two.

    Raises:
        ConfigError: As :func:`encoder_identity`; or CUDA asked for and not there.

    """
    identity = encoder_identity(name, size, grid)
    if name == "pixels":
        return Encoder(identity, lambda frames_FHWC: frames_FHWC.reshape(len(frames_FHWC), -1, 3))
    where = _device(device)
    if name.startswith("timm:"):
        return Encoder(identity, timm_encoder.embed_with_timm(name.removeprefix("timm:"), size, grid, where))
    if where == "cpu" and device != "torch-cpu":
        return Encoder(identity, lite0.embed_with_onnx(LITE0[name], size, grid))
    return Encoder(identity, lite0.embed_with_torch(LITE0[name], grid, where))


def prepare_encoder(name: str, size: int, grid: int) -> None:
    """Do once what every worker would do when it loads the encoder: export the network, fetch the weights.

    Raises:
        ConfigError: As :func:`load_encoder`.

    """
    if name in LITE0 and _device("auto") == "cpu":
        lite0.exported_file(LITE0[name], size, grid)
    else:
        load_encoder(name, size, grid)


def _device(device: str) -> str:
    if device in ("cpu", "torch-cpu"):
        return "cpu"
    # Importing torch takes seconds and 200 MB a worker; without NVIDIA's device file there is nothing to ask it.
    driver = any(os.path.exists(path) for path in ("/dev/nvidiactl", "/dev/dxg"))
    if device == "auto" and not driver:
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if device == "auto":
        return "cpu"
    raise ConfigError("device cuda: PyTorch sees no CUDA device here; use cpu or auto")
