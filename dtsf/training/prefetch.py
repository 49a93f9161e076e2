"""Training's batches on the card: made there of embeddings that stay there, or made on the CPU and sent while it computes.

Embeddings stay on a card that has the room: a batch is then chosen and varied there, and no bus and no core is waited for. Else the
next batch is gathered on the CPU and put into pinned memory (PyTorch keeps it and gives it out again: a ring). Either way it is
made one ahead, on a stream of its own: a step's kernels are only queued when Python goes on, so nothing runs beside the training.
Random numbers are drawn on the CPU and in one order, whichever it is, so a run repeats. On a CPU a batch is made when it is asked
for, as there is nothing to overlap.
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
"""Of the free memory of a card: the rest is the network's."""


def fits_on_gpu(n_bytes: int, device: torch.device) -> bool:
    """Whether ``device`` is a card, and so many bytes are at most :data:`SHARE` of what is free on it.

    What PyTorch keeps from an earlier training in this process and nobody uses is free too.
    """
    if device.type != "cuda":
        return False
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return n_bytes <= SHARE * (torch.cuda.mem_get_info(device)[0] + unused)


def to_device_if_fits(groups: Groups, device: torch.device) -> Groups:
    """The groups with their embeddings on ``device`` if it is a card where they fit, else as they are."""
    x_NFHWC = groups.embeddings_NFHWC
    if not fits_on_gpu(x_NFHWC.nbytes, device):
        return groups
    logger.info("%.2f GB of embeddings stay on %s", x_NFHWC.nbytes / 1e9, device)
    return replace(groups, embeddings_NFHWC=x_NFHWC.to(device))


@lru_cache(maxsize=16)
def _side_stream(device: torch.device) -> Any:
    """One a card: PyTorch keeps the memory of every stream apart, and a new one each epoch would hoard it."""
    return torch.cuda.Stream(device)


class Prefetcher:
    """Batches on a device, one of them ahead of time. ``batches``: on the CPU, or with embeddings on the device already."""

    def __init__(self, batches: Iterator[Batch], device: torch.device) -> None:
        self._batches, self._device = batches, device
        self._stream: Any = _side_stream(device) if device.type == "cuda" else None
        self._staged: Batch | None = None
        if self._stream is not None:
            # What batches are made of may still be on its way.
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def prepare(self) -> None:
        """Send the next batch on its way, where that does not wait for the device. Call it once a step's work is queued."""
        if self._stream is None or self._staged is not None:
            return
        with torch.cuda.stream(self._stream):
            batch = next(self._batches, None)
            self._staged = None if batch is None else Batch(*(self._send(x) for x in _parts(batch)))

    def _send(self, x: torch.Tensor) -> torch.Tensor:
        return x.pin_memory().to(self._device, non_blocking=True) if x.device.type == "cpu" else x

    def next(self) -> Batch:
        """The next batch, on the device."""
        if self._stream is None:
            return next(self._batches).to(self._device)
        self.prepare()
        batch, self._staged = self._staged, None
        if batch is None:
            raise StopIteration
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._stream)
        for x in _parts(batch):
            # Its memory is not given to the next copy before the step that reads it is done.
            x.record_stream(computing)
        return batch


def _parts(batch: Batch) -> tuple[torch.Tensor, ...]:
    return batch.x_BVTHWC, batch.mask_BV, batch.label_B, batch.row_BV
