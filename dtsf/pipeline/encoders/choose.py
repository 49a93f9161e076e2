"""Frame encoders: a frozen image network for each frame, or the pixels. A user may name any encoder and weights. An encoder that
a run, a cache or an ONNX file names is untrusted: it must be built-in or in timm's list, and the hash of the weights must match.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from dtsf.cache.schema import CacheSpec
from dtsf.errors import ConfigError
from dtsf.files.read import first_line
from dtsf.pipeline.encoders import efficientnet_lite as lite
from dtsf.pipeline.encoders import timm_models

if TYPE_CHECKING:
    import numpy as np


LITE = re.compile(rf"({'|'.join(lite.STAGES)})(?::(8|16|32))?")  # with the stride of the feature map
KNOWN_BY_NAME = re.compile(r"timm:[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?")  # in an untrusted file: no path and no hub


@dataclass(frozen=True)
class Identity:
    """All settings that an encoder's numbers depend on, and their shape."""

    name: str  # canonical: two spellings of one encoder have the same name; never a path
    weights_hash: str
    grid: int  # cells along each side of an embedding
    channels: int
    dtype: str


@dataclass(frozen=True)
class Encoder:
    """A loaded frame encoder."""

    identity: Identity
    # Frames of one or several clips, (F, size, size, 3) uint8 RGB -> (F, grid * grid, channels), cells in raster order.
    embed: Callable[[np.ndarray], np.ndarray]
    device: str = "cpu"  # or cuda, which is faster with several clips per call


def _check_weights(name: str, weights: str | Path | None) -> None:
    """Raise ConfigError if the name contains a file, if the encoder takes no weights file, or if the file does not exist."""
    model, at, file = name.partition("@")
    if at:
        raise ConfigError(f"--encoder {name}: pass the weights separately: --encoder {model} --encoder-weights {file}")
    if weights is not None and not name.startswith("timm:"):
        raise ConfigError(f"--encoder-weights {weights}: {name} has built-in weights; use --encoder timm:MODEL")
    if weights is not None and not Path(weights).is_file():
        raise ConfigError(f"--encoder-weights {weights}: no such file")


def _lite(name: str) -> tuple[str, int]:
    """Return network and stride of an EfficientNet-Lite. Raises ConfigError: the name is unknown."""
    match = LITE.fullmatch(name)
    if match is None:
        raise ConfigError(
            f"unknown encoder {name!r}; use {', '.join(lite.STAGES)} (also with :8, :16 or :32), pixels or timm:MODEL"
        )
    return match[1], int(match[2] or lite.DEFAULT_STRIDE)


@lru_cache(maxsize=8)
def encoder_identity(name: str, size: int, grid: int, weights: str | Path | None = None) -> Identity:
    """Return an encoder's identity; a timm model is loaded to hash its weights. ``name``: ``efficientnet-lite0``, ``-lite1`` or
    ``-lite2``, also with a stride (``:8``, ``:16``, ``:32``); ``pixels`` (one cell per pixel); or ``timm:MODEL``. ``weights``:
    file for timm. Raises ConfigError: an unknown name, size and grid that do not fit, or a refused weights file.
    """
    _check_weights(name, weights)
    if name == "pixels":
        return Identity("pixels", "none", size, 3, "uint8")
    if grid % 3 or grid < 3:
        raise ConfigError(f"--grid {grid} is not divisible by 3: a thumbnail fills one cell of a 3 x 3 division")
    if name.startswith("timm:"):
        weights_hash, channels = timm_models.describe(name.removeprefix("timm:"), size, weights)
        return Identity(name, weights_hash, grid, channels, "float16")
    net, stride = _lite(name)
    if size % 32 or (size // stride) % grid:
        raise ConfigError(
            f"--size {size} does not fit {name}: it must be a multiple of 32, and its map of "
            f"{size / stride:g} x {size / stride:g} a multiple of --grid {grid}; for example --size 192 --grid 6"
        )
    weights_hash, channels = lite.file_hash(lite.weights_file(net)), lite.STAGES[net][stride][1]
    return Identity(f"{net}:{stride}", weights_hash, grid, channels, "float16")


@lru_cache(maxsize=2)
def load_encoder(name: str, size: int, grid: int, device: str = "auto", weights: str | Path | None = None) -> Encoder:
    """Load an encoder that the user chose; arguments and errors as :func:`encoder_identity`. ``device``: on ``cpu``
    EfficientNet-Lite runs in ONNX Runtime, on ``torch-cpu`` in PyTorch, to compare. ``cuda`` raises ConfigError without a GPU.
    """
    identity = encoder_identity(name, size, grid, weights)
    if name == "pixels":
        return Encoder(identity, lambda frames_FHWC: frames_FHWC.reshape(len(frames_FHWC), -1, 3))
    found = _device(device)
    if name.startswith("timm:"):
        embed = timm_models.embed_with_timm(name.removeprefix("timm:"), size, grid, found, weights)
    elif found == "cpu" and device != "torch-cpu":
        embed = lite.embed_with_onnx(*_lite(name), size, grid)
    else:
        embed = lite.embed_with_torch(*_lite(name), grid, found)
    return Encoder(identity, embed, found)


def open_encoder(spec: CacheSpec, weights: str | Path | None = None, device: str = "auto") -> Encoder:
    """Load the encoder that a run, a cache or an ONNX file names. ``weights``: file of the user. Raises as
    :func:`check_encoder`.
    """
    check_encoder(spec, weights)
    return load_encoder(spec.encoder, spec.size, spec.grid, device, weights)


def check_encoder(spec: CacheSpec, weights: str | Path | None = None) -> None:
    """Raise ConfigError before weights are loaded: the name refers to a file, folder or hub, or the weights have another hash."""
    name = spec.encoder
    is_timm = name.startswith("timm:")
    if is_timm and KNOWN_BY_NAME.fullmatch(name) is None:
        raise ConfigError(
            f"the encoder {name!r} is from a file, folder or hub that dtsf does not load for security reasons: preprocess and "
            "train again with an encoder that you choose"
        )
    _check_weights(name, weights)
    if weights is None:
        found = encoder_identity(name, spec.size, spec.grid).weights_hash
        owner, hint = f"encoder {name}", "install the same version"
        hint = f"pass the file with --encoder-weights, or {hint}" if is_timm else hint
    else:
        found, owner, hint = lite.file_hash(weights), f"--encoder-weights {weights}", "pass the file used for the cache"
    if found != spec.weights_hash:
        raise ConfigError(f"{owner}: its weights have the hash {found} instead of {spec.weights_hash}: {hint}")


def encoder_onnx(spec: CacheSpec, weights: str | Path | None = None) -> bytes:
    """Return the encoder of a run as ONNX; see :func:`.efficientnet_lite.onnx_bytes`. Raises as :func:`open_encoder`, and
    ConfigError: ``pixels`` has no network.
    """
    if spec.encoder == "pixels":
        raise ConfigError("the encoder pixels has no network: the frames themselves are the cells; leave out --encoder")
    check_encoder(spec, weights)
    if not spec.encoder.startswith("timm:"):
        return lite.exported_file(*_lite(spec.encoder), spec.size, spec.grid).read_bytes()
    network = timm_models.build_network(spec.encoder.removeprefix("timm:"), spec.size, spec.grid, weights)
    try:
        return lite.onnx_bytes(network, spec.size)
    except Exception as error:  # noqa: BLE001  the exporter's errors share only this base
        raise ConfigError(f"PyTorch cannot export the encoder {spec.encoder} to ONNX: {first_line(error)}") from error


def prepare_encoder(name: str, size: int, grid: int, weights: str | Path | None = None) -> None:
    """Export the network or download its weights once, before many workers load the encoder. Raises as :func:`load_encoder`."""
    if name.startswith("efficientnet-lite") and _device("auto") == "cpu":
        lite.exported_file(*_lite(name), size, grid)
    else:
        load_encoder(name, size, grid, weights=weights)


def _device(device: str) -> str:
    if device in ("cpu", "torch-cpu"):
        return "cpu"
    # Without NVIDIA's device file there is no CUDA, and no need to import torch: seconds and 200 MB per worker.
    if device == "cuda" or any(os.path.exists(path) for path in ("/dev/nvidiactl", "/dev/dxg")):
        import torch

        if torch.cuda.is_available():
            return "cuda"
    if device == "auto":
        return "cpu"
    raise ConfigError("device cuda: PyTorch finds no CUDA device; use cpu or auto")
