"""GPUs in stage 1: one worker per GPU, several decoder processes per worker, several clips per batch.

A GPU embeds a clip in milliseconds; a core needs a third of a second to decode one. So a worker with a GPU has a decoder process
on each of its cores. All of them decode ahead, and the worker embeds the finished clips in one batch.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from dtsf.errors import VideoError
from dtsf.pipeline.video.decoder_process import decode_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dtsf.pipeline.video.decoder_process import Decoder, DecodeRequest

CLIPS_PER_BATCH = 8
"""128 frames at 16 frames a clip: enough to fill a GPU, and decoded in less than a third of a second."""
RESOURCE = "GPU"
"""Name of a GPU among dask's resources: ``dask worker ... --resources GPU=1``, one worker per GPU."""


def visible_gpus(encoder: str) -> tuple[str, ...]:
    """Return the names (as in ``CUDA_VISIBLE_DEVICES``) of the GPUs that the encoder can use on this machine."""
    # Without NVIDIA's device file PyTorch is not imported.
    if encoder == "pixels" or not any(os.path.exists(path) for path in ("/dev/nvidiactl", "/dev/dxg")):
        return ()
    import torch

    count = torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(str(k) for k in range(count)) if names is None else tuple(names.split(",")[:count])


def default_workers(encoder: str) -> int:
    """Return the number of worker processes: one per GPU; without a GPU, one per core."""
    return len(visible_gpus(encoder)) or os.cpu_count() or 1


def decoders_per_worker(encoder: str, workers: int = 1) -> int:
    """Return the number of decoder processes of each of ``workers`` workers: its share of the cores; without a GPU, one."""
    n_gpus = len(visible_gpus(encoder))
    return max(1, (os.cpu_count() or 1) // max(n_gpus, workers)) if n_gpus else 1


def select_gpu(worker: int, gpus: Sequence[str]) -> None:
    """Hide all GPUs but one from this process. ``worker``: its number; workers take the GPUs in turn."""
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus[worker % len(gpus)]


def decode_parallel(decoders: Sequence[Decoder], requests: list[DecodeRequest]) -> Iterator[Any]:
    """Decode clips ahead, every n-th clip by the same of n decoders. Yields in the order of the requests, as :func:`decode_all`."""
    n = len(decoders)
    streams = [decode_all(decoder, requests[k::n]) for k, decoder in enumerate(decoders)]
    return (next(streams[k % n]) for k in range(len(requests)))


def embed_batched(
    items: Iterator[Any], embed: Callable[[np.ndarray], np.ndarray], batch_size: int
) -> Iterator[tuple[Any, np.ndarray | None]]:
    """Yield each decoded clip with its embedding, or each error with None, in order. ``batch_size``: clips per call."""
    batch: list[Any] = []
    frames: list[np.ndarray] = []

    def flush() -> Iterator[tuple[Any, np.ndarray | None]]:
        cells: Iterator[np.ndarray] = iter(())
        if frames:
            embedded = embed(np.concatenate(frames))
            cells = iter(embedded.reshape(len(frames), -1, *embedded.shape[1:]))
        yield from ((item, None if isinstance(item, VideoError) else next(cells)) for item in batch)
        batch.clear()
        frames.clear()

    for item in items:
        if isinstance(item, VideoError):
            batch.append(item)
        else:
            # A copy: the decoder writes its next clip into the same memory.
            frames.append(item[0].copy())
            batch.append((frames[-1], item[1]))
        if not frames or len(frames) == batch_size:
            yield from flush()
    yield from flush()
