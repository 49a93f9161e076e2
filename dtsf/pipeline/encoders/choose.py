"""From frames to embeddings: a frozen image network that looks at every frame by itself, or the pixels themselves.

A person may name any encoder and give weights of their own. What a run, a cache or an ONNX file names was written by somebody
else: :func:`open_encoder` opens only what this installation knows by name, or weights given now, their hash compared first.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from dtsf.errors import ConfigError
from dtsf.pipeline.encoders import efficientnet_lite as lite
from dtsf.pipeline.encoders import timm_models as timm_encoder

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from dtsf.cache.spec import CacheSpec

NAMES = (*lite.STAGES, "pixels", "timm:MODEL")
"""The first ones also with the stride of their map: ``efficientnet-lite1:8``."""

KNOWN_BY_NAME = re.compile(r"timm:[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?")
"""What a file of others may name: a model of timm's own list. No place on a disk, no hub."""


@dataclass(frozen=True)
class Identity:
    """What an encoder's numbers depend on, and their shape."""

    name: str
    """Canonical: two spellings of one encoder have one name. Never a file's place."""
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
    """(F, size, size, 3) uint8 RGB -> (F, grid * grid, channels), cells in raster order. F frames of one clip or of many."""
    device: str = "cpu"
    """``cuda``: several clips a call keep the card busy."""


def split_weights(name: str, weights: str | Path | None = None) -> tuple[str, str | None]:
    """What a person asked for: the encoder's name, and the file of its weights if they gave one. Raises ConfigError: a file for
    an encoder that takes none, two files, or no such file.
    """
    name, at, file = name.partition("@")
    if at and weights is not None:
        raise ConfigError(f"--encoder {name}@{file} and --encoder-weights {weights}: give one file")
    if weights is None and not at:
        return name, None
    given = Path(file if at else str(weights))
    if not name.startswith("timm:"):
        raise ConfigError(f"--encoder {name} has weights of its own: a file of weights goes with timm:MODEL")
    if not given.is_file():
        raise ConfigError(f"--encoder {name}: no weights file {given}")
    return name, str(given)


def encoder_identity(name: str, size: int, grid: int, weights: str | Path | None = None) -> Identity:
    """What an encoder is. Cheap for the built-in ones; timm's are loaded for the hash of their weights. Raises ConfigError:
    unknown name, or a size and grid that do not fit.

    Args:
        name: ``efficientnet-lite0[:STRIDE]``, ``-lite1``, ``-lite2``; ``pixels``, for end-to-end training; ``timm:MODEL``
            with timm's own weights or ``timm:MODEL@FILE``.
        size: Side of the pictures, in pixels.
        grid: Cells along each side; ``pixels`` has a cell a pixel whatever it says.
        weights: File of the weights of a timm model, instead of ``@FILE``.
    """
    name, file = split_weights(name, weights)
    return _identity(name, size, grid, file)


@lru_cache(maxsize=8)
def _identity(name: str, size: int, grid: int, file: str | None) -> Identity:
    if name == "pixels":
        return Identity("pixels", "none", size, 3, "uint8")
    if grid % 3 or grid < 3:
        raise ConfigError(f"--grid {grid} is not divisible by 3: a snapshot takes one cell of a 3 x 3 division")
    if name.startswith("timm:"):
        model = name.removeprefix("timm:")
        digest = timm_encoder.timm_identity(model, size) if file is None else _hash_file(file)
        return Identity(name, digest, grid, timm_encoder.timm_channels(model, size, file), "float16")
    net, stride = _lite(name)
    if size % 32 or (size // stride) % grid:
        raise ConfigError(
            f"--size {size} does not fit {name}: it must be a multiple of 32, and its map of "
            f"{size / stride:g} x {size / stride:g} a multiple of --grid {grid}; for example --size 192 --grid 6"
        )
    return Identity(f"{net}:{stride}", lite.weights_hash(net), grid, lite.STAGES[net][stride][1], "float16")


def _lite(name: str) -> tuple[str, int]:
    """Network and stride of an EfficientNet-Lite's name."""
    net, colon, stride = name.partition(":")
    strides = {"" if not colon else str(lite.DEFAULT_STRIDE): lite.DEFAULT_STRIDE, **{str(s): s for s in (8, 16, 32)}}
    if net not in lite.STAGES or (colon and not stride) or stride not in strides:
        raise ConfigError(
            f"unknown encoder {name!r}; there are {', '.join(NAMES)}; the first three also with :8, :16 or :32"
        )
    return net, strides[stride]


def load_encoder(name: str, size: int, grid: int, device: str = "auto", weights: str | Path | None = None) -> Encoder:
    """Load an encoder that the person asked for.

    ``device``: ``auto`` takes CUDA where there is one. ``cpu`` is ONNX Runtime for EfficientNet-Lite; ``torch-cpu`` is PyTorch:
    choose it to compare the two. Raises ConfigError: as :func:`encoder_identity`; or CUDA asked for and not there.
    """
    name, file = split_weights(name, weights)
    return _load(name, size, grid, device, file)


@lru_cache(maxsize=2)
def _load(name: str, size: int, grid: int, device: str, file: str | None) -> Encoder:
    identity = _identity(name, size, grid, file)
    if name == "pixels":
        return Encoder(identity, lambda frames_FHWC: frames_FHWC.reshape(len(frames_FHWC), -1, 3))
    where = _device(device)
    if name.startswith("timm:"):
        model = name.removeprefix("timm:")
        return Encoder(identity, timm_encoder.embed_with_timm(model, size, grid, where, file), where)
    net, stride = _lite(name)
    if where == "cpu" and device != "torch-cpu":
        return Encoder(identity, lite.embed_with_onnx(net, stride, size, grid))
    return Encoder(identity, lite.embed_with_torch(net, stride, grid, where), where)


def open_encoder(spec: CacheSpec, weights: str | Path | None = None, device: str = "auto") -> Encoder:
    """Load the encoder that a run, a cache or an ONNX file names: nothing is opened because they say so.

    ``weights``: file of the weights, given by the person now (``--encoder-weights``); its hash must be the spec's. Raises
    ConfigError: it names a file or a hub, and no weights are given; or the weights are others.
    """
    name, at, named_file = spec.encoder.partition("@")
    timm_name = name.startswith("timm:")
    if timm_name and KNOWN_BY_NAME.fullmatch(name) is None:
        raise ConfigError(
            f"it was made with the encoder {spec.encoder!r}, which comes from a hub or a folder: dtsf opens no such thing because "
            "a file says so; preprocess and train anew with an encoder that you choose"
        )
    if weights is not None:
        name, file = split_weights(name, weights)
        assert file is not None
        found = _hash_file(file)
        if found != spec.weights_hash:
            raise ConfigError(
                f"--encoder-weights {file} has the hash {found}, {spec.weights_hash} is what it was made with: not opened"
            )
        return _load(name, spec.size, spec.grid, device, file)
    if at:
        raise ConfigError(
            f"it was made with weights from the file {named_file!r}, which is not opened because it says so: give yours with "
            f"--encoder-weights FILE (hash {spec.weights_hash})"
        )
    encoder = _load(name, spec.size, spec.grid, device, None)
    if encoder.identity.weights_hash != spec.weights_hash:
        how = "give the file with --encoder-weights, or install" if timm_name else "install"
        raise ConfigError(
            f"the encoder {spec.encoder} has weights {encoder.identity.weights_hash} here, {spec.weights_hash} when the run "
            f"was trained: {how} the same version"
        )
    return encoder


def prepare_encoder(name: str, size: int, grid: int, weights: str | Path | None = None) -> None:
    """Do once what every worker would do when it loads the encoder: export the network, fetch the weights. Raises ConfigError:
    as :func:`load_encoder`.
    """
    if name.startswith("efficientnet-lite") and _device("auto") == "cpu":
        lite.exported_file(*_lite(name), size, grid)
    else:
        load_encoder(name, size, grid, weights=weights)


@lru_cache(maxsize=4)
def _hash_file(file: str) -> str:
    digest = xxhash.xxh3_64()
    with open(file, "rb") as stream:
        while block := stream.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


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
