"""A simple feature extractor, as researchers usually write it, to compare with stage 1.

decord at full size, PyTorch eager, one clip at a time in one process, the same frames and the same features, one .npy each.
PyTorch uses all cores, as by default: ``torch.set_num_threads`` to the number of cores.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from dtsf.pipeline.encoders.efficientnet_lite import build_network
from dtsf.pipeline.video.clip import segment_centres
from dtsf.pipeline.video.crop import size_to_decode

if TYPE_CHECKING:
    from pathlib import Path


def extract(paths: list[Path], out: Path, *, n_frames: int, size: int, grid: int, threads: int) -> float:
    """Extract the features and return the seconds."""
    import decord
    import torch

    torch.set_num_threads(threads)
    begun = time.perf_counter()
    net = build_network("efficientnet-lite0", 16, grid)
    out.mkdir(parents=True, exist_ok=True)
    for k, path in enumerate(paths):
        reader = decord.VideoReader(str(path))
        frames_FHWC = reader.get_batch(segment_centres(len(reader), n_frames)).asnumpy()
        x_FCHW = torch.from_numpy(frames_FHWC).permute(0, 3, 1, 2).float()
        height, width = frames_FHWC.shape[1:3]
        new_width, new_height = size_to_decode(width, height, size, "centre")
        x_FCHW = torch.nn.functional.interpolate(x_FCHW, (new_height, new_width), mode="bilinear", antialias=True)
        top, left = (new_height - size) // 2, (new_width - size) // 2
        x_FCHW = x_FCHW[:, :, top : top + size, left : left + size]
        with torch.inference_mode():
            cells = net(x_FCHW.permute(0, 2, 3, 1).round().clamp(0, 255).to(torch.uint8))
        np.save(out / f"{k:05d}.npy", cells.numpy())
    return time.perf_counter() - begun
