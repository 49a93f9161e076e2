"""The next batch on its way to the card while the card computes.

Nothing runs beside the training: a step's kernels are only queued when Python goes on, so the next batch is gathered then, put
into pinned memory (PyTorch keeps it and gives it out again: a ring) and copied on a stream of its own. Random numbers are drawn
in one order, so a run repeats. On a CPU a batch is made when it is asked for, as there is nothing to overlap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dtsf.model.training.data import Batch

if TYPE_CHECKING:
    from collections.abc import Iterator


class Ahead:
    """Batches on a device, one of them ahead of time. ``batches``: on the CPU."""

    def __init__(self, batches: Iterator[Batch], device: torch.device) -> None:
        self._batches, self._device = batches, device
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._staged: Batch | None = None

    def prepare(self) -> None:
        """Send the next batch on its way, where that does not wait for the device. Call it once a step's work is queued."""
        if self._stream is None or self._staged is not None:
            return
        batch = next(self._batches, None)
        if batch is None:
            return
        with torch.cuda.stream(self._stream):
            self._staged = Batch(*(x.pin_memory().to(self._device, non_blocking=True) for x in _parts(batch)))

    def take(self) -> Batch:
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
