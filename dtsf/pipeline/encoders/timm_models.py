"""Any timm model as the frame encoder: ``timm:<model>``, or ``timm:<model>@FILE`` with weights from a local file.

timm is an optional extra (``pip install 'dtsf[timm]'``), imported only here. Convolutional networks give their last map,
vision transformers their patch tokens (class and register tokens left out); both are pooled to the grid.

Weights are numbers: a file is read as safetensors or by ``torch.load(weights_only=True)``, never by a pickle that may run code,
whether it is the person's own or fetched by timm.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from dtsf.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def timm_identity(name: str, size: int) -> str:
    """xxh3-64 of all weights, in the order of their names. Loads the model (once a process)."""
    state = _model(name, size).state_dict()
    digest = xxhash.xxh3_64()
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(np.ascontiguousarray(state[key].cpu().numpy()).view(np.uint8).data)
    return digest.hexdigest()


def timm_channels(name: str, size: int, file: str | None = None) -> int:
    """Channels of a cell."""
    return int(_model(name, size, file).num_features)


def embed_with_timm(
    name: str, size: int, grid: int, device: str, file: str | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    """The timm model ``name``, with weights from ``file`` if given: float32 on a CPU, bfloat16 and channels last on a card.

    Returns (F, size, size, 3) uint8 -> (F, grid * grid, channels) float16.

    Raises ConfigError: the model's map cannot be laid out as a square, or is coarser than the grid.
    """
    import torch

    model = _model(name, size, file).to(device)
    if device != "cpu":
        model = model.to(memory_format=torch.channels_last)
    settings = model.pretrained_cfg
    mean_311, std_311 = (torch.tensor(settings[key], device=device).view(3, 1, 1) * 255.0 for key in ("mean", "std"))
    step = 4 if device == "cpu" else 128
    # bfloat16, not float16: some transformers leave float16's range, and float32 weights under autocast keep the norms exact.
    fast = torch.autocast(device, torch.bfloat16, enabled=device != "cpu")

    def embed(frames_FHWC: np.ndarray) -> np.ndarray:
        parts = []
        with torch.inference_mode(), fast:
            for k in range(0, len(frames_FHWC), step):
                x_FCHW = torch.from_numpy(frames_FHWC[k : k + step]).to(device).permute(0, 3, 1, 2).float()
                map_FCHW = _as_map(name, model, model.forward_features((x_FCHW - mean_311) / std_311), grid)
                cells_FCGG = torch.nn.functional.adaptive_avg_pool2d(map_FCHW.float(), grid)
                parts.append(cells_FCGG.flatten(2).transpose(1, 2).half().cpu())
        return np.asarray(torch.cat(parts).numpy())

    return embed


def _as_map(name: str, model: Any, features: Any, grid: int) -> Any:
    """Whatever ``forward_features`` gave, as (F, C, H, W)."""
    if features.ndim == 3:  # a transformer's tokens (F, N, C)
        features = features[:, getattr(model, "num_prefix_tokens", 0) :]
        side = round(features.shape[1] ** 0.5)
        if side * side != features.shape[1]:
            raise ConfigError(f"--encoder timm:{name}: its {features.shape[1]} tokens are not a square")
        features = features.transpose(1, 2).unflatten(2, (side, side))
    elif features.ndim == 4 and features.shape[1] != model.num_features:  # Swin and others: (F, H, W, C)
        features = features.permute(0, 3, 1, 2)
    if features.ndim != 4 or features.shape[1] != model.num_features:
        raise ConfigError(f"--encoder timm:{name} gives features of shape {tuple(features.shape)}, not a map")
    if features.shape[-1] < grid:
        raise ConfigError(
            f"--encoder timm:{name}: its map is {features.shape[-1]} x {features.shape[-1]}, coarser than --grid {grid}: "
            "choose a larger --size or a smaller --grid"
        )
    return features


@lru_cache(maxsize=2)
def _model(name: str, size: int, file: str | None = None) -> Any:
    """The model in evaluation mode. The only place that calls timm."""
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # torchvision raises RuntimeError beside another build of torch
        raise ConfigError(
            f"--encoder timm:{name} needs timm, which cannot be imported here ({error}): pip install 'dtsf[timm]' with a "
            "torchvision that matches torch"
        ) from error
    # Read before the model is made: a file that is no weights is refused whatever the name.
    weights = None if file is None else _read_weights(name, file)
    # Transformers get the size of their pictures; convolutional networks neither need nor take it.
    sizes: list[dict[str, Any]] = [{"img_size": size}, {}]
    for k, extra in enumerate(sizes):
        try:
            with _weights_only():
                made = timm.create_model(name, pretrained=weights is None, num_classes=0, **extra)
        except TypeError:
            if k + 1 == len(sizes):
                raise
        except Exception as error:  # noqa: BLE001 - timm raises whatever its hub, its files and its names raise
            raise ConfigError(
                f"--encoder timm:{name}: timm cannot make it: {error}. With weights from a file: timm:{name}@FILE"
            ) from error
        else:
            if weights is not None:
                _fill(name, made, weights, str(file))
            return made.eval()
    raise AssertionError("unreachable")


@contextmanager
def _weights_only() -> Iterator[None]:
    """Within, ``torch.load`` unpickles nothing but tensors, whatever its caller says: timm itself asks for the other."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _read_weights(name: str, file: str) -> dict[str, Any]:
    """Tensors by name, out of the wrappers that training programs put around them."""
    import torch
    from safetensors.torch import load_file

    try:
        if file.endswith(".safetensors"):
            state: Any = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    # What is no checkpoint, or a pickle that would run code, raises whatever its first odd byte leads to.
    except Exception as error:  # noqa: BLE001
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"--encoder timm:{name}: {file} holds no weights that can be read safely: {first}") from error
    for wrapper in ("state_dict_ema", "state_dict", "model_ema", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ConfigError(f"--encoder timm:{name}: {file} holds no tensors by name")
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def _fill(name: str, model: Any, weights: dict[str, Any], file: str) -> None:
    """Load, the classifier left out: the encoder has none."""
    classifiers = model.pretrained_cfg.get("classifier") or ()
    heads = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    kept = {key: value for key, value in weights.items() if not key.startswith(tuple(f"{head}." for head in heads))}
    try:
        model.load_state_dict(kept)
    except RuntimeError as error:
        lines = " ".join(str(error).split())
        raise ConfigError(f"--encoder timm:{name}: the weights in {file} are another model's: {lines[:300]}") from error
