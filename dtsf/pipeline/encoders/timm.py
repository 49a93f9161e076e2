"""Any timm model as the frame encoder: ``timm:<model>``, or ``timm:<model>@FILE`` with weights from a local file.

timm is an optional extra (``pip install 'dtsf[timm]'``), imported only here. Convolutional networks give their last map,
vision transformers their patch tokens (class and register tokens left out); both are pooled to the grid.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from dtsf.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["embed_with_timm", "timm_channels", "timm_identity"]


def timm_identity(name: str, size: int) -> str:
    """xxh3-64 of all weights, in the order of their names. Loads the model (once a process)."""
    state = _model(name, size).state_dict()
    digest = xxhash.xxh3_64()
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(np.ascontiguousarray(state[key].cpu().numpy()).view(np.uint8).data)
    return digest.hexdigest()


def timm_channels(name: str, size: int) -> int:
    """Channels of a cell."""
    return int(_model(name, size).num_features)


def embed_with_timm(name: str, size: int, grid: int, device: str) -> Callable[[np.ndarray], np.ndarray]:
    """(F, size, size, 3) uint8 -> (F, grid * grid, channels) float16.

    Raises:
        ConfigError: The model's map cannot be laid out as a square, or is coarser than the grid.

    """
    import torch

    model = _model(name, size).to(device)
    settings = model.pretrained_cfg
    mean_311, std_311 = (torch.tensor(settings[key], device=device).view(3, 1, 1) * 255.0 for key in ("mean", "std"))
    step = 4 if device == "cpu" else 64

    def embed(frames_FHWC: np.ndarray) -> np.ndarray:
        parts = []
        with torch.inference_mode():
            for k in range(0, len(frames_FHWC), step):
                x_FCHW = torch.from_numpy(frames_FHWC[k : k + step]).to(device).permute(0, 3, 1, 2).float()
                map_FCHW = _as_map(name, model, model.forward_features((x_FCHW - mean_311) / std_311), grid)
                cells_FCGG = torch.nn.functional.adaptive_avg_pool2d(map_FCHW, grid)
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
def _model(name: str, size: int) -> Any:
    """The model in evaluation mode. The only place that calls timm."""
    model, at, file = name.partition("@")
    if at and not Path(file).is_file():
        raise ConfigError(f"--encoder timm:{name}: no weights file {file}")
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # torchvision raises RuntimeError beside another build of torch
        raise ConfigError(
            f"--encoder timm:{name} needs timm, which cannot be imported here ({error}): pip install 'dtsf[timm]' with a "
            "torchvision that matches torch"
        ) from error
    # Transformers are told the size of their pictures; convolutional networks neither need nor take it.
    sizes: list[dict[str, Any]] = [{"img_size": size}, {}]
    for k, extra in enumerate(sizes):
        try:
            made = timm.create_model(model, pretrained=not at, checkpoint_path=file, num_classes=0, **extra)
        except TypeError:
            if k + 1 == len(sizes):
                raise
        except Exception as error:  # noqa: BLE001 - timm raises whatever its hub, its files and its names raise
            raise ConfigError(
                f"--encoder timm:{name}: timm cannot make it: {error}. With weights from a file: timm:{model}@FILE"
            ) from error
        else:
            return made.eval()
    raise AssertionError("unreachable")
