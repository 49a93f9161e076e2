"""timm models as frame encoders; timm is an optional extra. The last feature map, or the patch tokens without class and register
tokens, are pooled to the grid. Weights are safetensors, or ``torch.load(weights_only=True)`` reads them: no pickle runs code.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from dtsf.errors import ConfigError
from dtsf.files.read import first_line
from dtsf.pipeline.encoders.efficientnet_lite import CPU_BATCH, GPU_BATCH, file_hash, in_batches

SAFE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # makes torch.load safe also for timm, which passes weights_only=False


def describe(name: str, size: int, file: str | Path | None = None) -> tuple[str, int]:
    """Load a model. Return the xxh3-64 of the file, or of all weights in the order of their names; and the channels."""
    model = load_model(name, size, file)
    if file is not None:
        return file_hash(file), int(model.num_features)
    digest = xxhash.xxh3_64()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(np.ascontiguousarray(value.cpu().numpy()).view(np.uint8).data)
    return digest.hexdigest(), int(model.num_features)


def embed_with_timm(
    name: str, size: int, grid: int, device: str, file: str | Path | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    """Return the encoder: (F, size, size, 3) uint8 -> (F, grid * grid, channels) float16. Raises ConfigError: a coarse map."""
    import torch

    network = build_network(name, size, grid, file).to(device)
    if device != "cpu":
        network = network.to(memory_format=torch.channels_last)
    # bfloat16, because some transformers exceed the range of float16. Autocast keeps the norms in float32.
    autocast = torch.autocast(device, torch.bfloat16, enabled=device != "cpu")

    def embed(frames_FHWC: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), autocast:
            return np.asarray(network(torch.from_numpy(frames_FHWC).to(device)).cpu().numpy())

    return in_batches(embed, CPU_BATCH if device == "cpu" else GPU_BATCH)


def build_network(name: str, size: int, grid: int, file: str | Path | None = None) -> Any:
    """Return the encoder as a PyTorch module; input, output and errors as :func:`embed_with_timm`."""
    import torch

    class Cells(torch.nn.Module):
        mean: torch.Tensor
        std: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.model = load_model(name, size, file)
            for key in ("mean", "std"):
                values_3 = torch.tensor(self.model.pretrained_cfg[key])
                self.register_buffer(key, values_3.view(3, 1, 1) * 255.0)

        def forward(self, frames_FHWC: torch.Tensor) -> torch.Tensor:
            x_FCHW = frames_FHWC.permute(0, 3, 1, 2).float()
            features = self.model.forward_features((x_FCHW - self.mean) / self.std)
            map_FCHW = _as_map(name, self.model, features, grid)
            cells_FCGG = torch.nn.functional.adaptive_avg_pool2d(map_FCHW.float(), grid)
            return cells_FCGG.flatten(2).transpose(1, 2).half()

    return Cells().eval()


def _as_map(name: str, model: Any, features: Any, grid: int) -> Any:
    """Return the output of ``forward_features`` as (F, C, H, W)."""
    if features.ndim == 3:  # tokens of a transformer: (F, N, C)
        features = features[:, getattr(model, "num_prefix_tokens", 0) :]
        side = round(features.shape[1] ** 0.5)
        if side * side == features.shape[1]:
            features = features.transpose(1, 2).unflatten(2, (side, side))
    elif features.ndim == 4 and features.shape[1] != model.num_features:  # channels last, as in Swin: (F, H, W, C)
        features = features.permute(0, 3, 1, 2)
    if features.ndim != 4 or features.shape[1] != model.num_features:
        shape = tuple(features.shape)
        raise ConfigError(f"--encoder timm:{name} returns features of shape {shape}, which are not a square map")
    side = features.shape[-1]
    if side < grid:
        raise ConfigError(
            f"--encoder timm:{name}: its map of {side} x {side} is coarser than --grid {grid}: increase --size or reduce --grid"
        )
    return features


@lru_cache(maxsize=2)
def load_model(name: str, size: int, file: str | Path | None = None) -> Any:
    """Load a timm model in evaluation mode, without its classifier. Raises ConfigError: timm or the file cannot be loaded."""
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # torchvision raises RuntimeError if it does not match torch
        raise ConfigError(
            f"--encoder timm:{name} needs timm, which cannot be imported ({error}): pip install 'dtsf[timm]' with a "
            "torchvision that matches torch"
        ) from error
    # Before the model, so that an unsafe file is refused whatever the name.
    weights = None if file is None else _read_weights(Path(file))
    options = {"pretrained": weights is None, "num_classes": 0}
    before = os.environ.get(SAFE)
    os.environ[SAFE] = "1"
    try:
        try:
            model = timm.create_model(name, img_size=size, **options)
        except TypeError:  # convolutional networks have no input size
            model = timm.create_model(name, **options)
    except Exception as error:  # noqa: BLE001 - timm has no common base of its errors
        raise ConfigError(
            f"--encoder timm:{name}: timm cannot create it: {error}; for your own weights use --encoder-weights FILE"
        ) from error
    finally:
        del os.environ[SAFE]
        if before is not None:
            os.environ[SAFE] = before
    if weights is not None:
        # The encoder has no classifier.
        heads = model.pretrained_cfg.get("classifier") or ()
        prefixes = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
        try:
            model.load_state_dict({key: value for key, value in weights.items() if not key.startswith(prefixes)})
        except RuntimeError as error:
            lines = " ".join(str(error).split())
            raise ConfigError(f"--encoder-weights {file} does not fit timm:{name}: {lines[:300]}") from error
    return model.eval()


def _read_weights(file: Path) -> dict[str, Any]:
    """Read tensors by name, also from the dictionaries in which training programs store them."""
    import torch
    from safetensors.torch import load_file

    try:
        is_safetensors = file.suffix == ".safetensors"
        state: Any = load_file(file) if is_safetensors else torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - the errors of a damaged or unsafe file have no common base
        raise ConfigError(
            f"--encoder-weights {file}: it cannot be read safely as weights: {first_line(error)}"
        ) from error
    for wrapper in ("state_dict_ema", "state_dict", "model_ema", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ConfigError(f"--encoder-weights {file}: it contains no tensors by name")
    return {str(key).removeprefix("module."): value for key, value in state.items()}
