"""Training batches on a GPU, one batch ahead of the computation.

If the embeddings fit on the GPU, they stay there and batches are gathered and augmented on the GPU. Otherwise a batch is made on
the CPU and copied through pinned memory, which PyTorch reuses. Both use a separate CUDA stream, while the GPU computes the queued
step. Random numbers are always drawn on the CPU in the same order, so that a run repeats. On a CPU, batches are made on request.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from dtsf.training.data import Batch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dtsf.training.data import Groups

logger = logging.getLogger(__name__)

SHARE = 0.4
"""Maximum share of the free GPU memory for the embeddings; the rest is for the network."""


def fits_on_gpu(n_bytes: int, device: torch.device) -> bool:
    """Return True if ``device`` is a GPU and ``n_bytes`` is at most :data:`SHARE` of its free memory.

    Memory that PyTorch has reserved but does not use counts as free.
    """
    if device.type != "cuda":
        return False
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return n_bytes <= SHARE * (torch.cuda.mem_get_info(device)[0] + unused)


def to_device_if_fits(groups: Groups, device: torch.device) -> Groups:
    """Return the groups with their embeddings on ``device`` if it is a GPU where they fit, else unchanged."""
    x_NFHWC = groups.embeddings_NFHWC
    if not fits_on_gpu(x_NFHWC.nbytes, device):
        return groups
    logger.info("%.2f GB of embeddings are kept on %s", x_NFHWC.nbytes / 1e9, device)
    return replace(groups, embeddings_NFHWC=x_NFHWC.to(device))


@lru_cache(maxsize=16)
def _side_stream(device: torch.device) -> Any:
    """Return one stream for each GPU: PyTorch does not share memory between streams, so new streams would waste it."""
    return torch.cuda.Stream(device)


class Prefetcher:
    """Batches on a device, with one batch ahead. ``batches`` may be on the CPU or on the device."""

    def __init__(self, batches: Iterator[Batch], device: torch.device) -> None:
        self._batches, self._device = batches, device
        self._stream: Any = _side_stream(device) if device.type == "cuda" else None
        self._staged: Batch | None = None
        if self._stream is not None:
            # Embeddings may still be in transfer to the device.
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def prepare(self) -> None:
        """Start to make the next batch. Call it after the work of a step is queued."""
        if self._stream is None or self._staged is not None:
            return
        with torch.cuda.stream(self._stream):
            batch = next(self._batches, None)
            self._staged = None if batch is None else Batch(*(self._send(x) for x in _parts(batch)))

    def _send(self, x: torch.Tensor) -> torch.Tensor:
        return x.pin_memory().to(self._device, non_blocking=True) if x.device.type == "cpu" else x

    def next(self) -> Batch:
        """Return the next batch, on the device. Raises StopIteration after the last one."""
        if self._stream is None:
            return next(self._batches).to(self._device)
        self.prepare()
        batch, self._staged = self._staged, None
        if batch is None:
            raise StopIteration
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._stream)
        for x in _parts(batch):
            # Keeps the memory of the batch until the step that reads it is done.
            x.record_stream(computing)
        return batch


def _parts(batch: Batch) -> tuple[torch.Tensor, ...]:
    return batch.x_BVTHWC, batch.mask_BV, batch.label_B, batch.row_BV
