"""Groups of views from a cache as a PyTorch dataset, for other training loops (example: docs/cache.md).

Letters: B groups of a batch, G groups, V views, F frames, P cells, H W grid, C channels, M B x V.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dtsf.cache.reader import CachedDataset
from dtsf.cache.schema import Clip
from dtsf.errors import ConfigError
from dtsf.training.data import fits_on_gpu, group_clips


class GroupSample(NamedTuple):
    """One group. Values are zero where the mask is False: the view is absent."""

    x_VFHWC: Tensor
    mask_V: Tensor
    label: int


class GroupBatch(NamedTuple):
    """Several groups. ``x_BVFHWC`` is a buffer that the batch after the next one uses again."""

    x_BVFHWC: Tensor
    mask_BV: Tensor
    label_B: Tensor


class CacheDataset(Dataset[GroupSample]):
    """Groups of views of a cache, in the order of their names.

    ``clips``: for example one side of a split; all by default. ``device``: of the batches. ``hold``: ``auto`` keeps the embeddings
    on ``device`` if it is a GPU with enough free memory, else in memory if they take at most half of it, else reads the files.
    ``never`` reads the files. See :attr:`where`.
    """

    def __init__(
        self,
        data: CachedDataset,
        clips: Sequence[Clip] | None = None,
        *,
        hold: str = "auto",
        device: str | torch.device = "cpu",
    ) -> None:
        if hold not in ("auto", "never"):
            raise ConfigError(f"hold={hold!r} must be auto or never")
        self.data, self.device, spec = data, torch.device(device), data.spec
        chosen = data.clips if clips is None else tuple(clips)
        self.names, self.row_GV, self.label_G = group_clips(chosen, len(data.info.view_names))
        self.mask_GV = self.row_GV >= 0
        self._ids = [clip.id for clip in chosen]
        self._dtype: torch.dtype = getattr(torch, spec.embedding_dtype)
        self._row = (spec.frames, spec.grid, spec.grid, spec.channels)
        self._buffers = [torch.empty(0, dtype=self._dtype)] * 2
        self._on_gpu: Tensor | None = None
        if hold == "auto" and fits_on_gpu(len(self._ids) * data.row_bytes(), self.device):
            self._on_gpu = torch.empty((len(self._ids), *self._row), dtype=self._dtype, device=self.device)
            for rows_N in torch.arange(len(self._ids)).split(256):
                read = data.embeddings([self._ids[row] for row in rows_N.tolist()])
                self._on_gpu[rows_N.to(self.device)] = torch.from_numpy(read).view(-1, *self._row).to(self.device)
        elif hold == "auto":
            data.hold()

    def __getstate__(self) -> dict[str, Any]:
        # A worker process maps the files itself and shares their pages.
        return {**self.__dict__, "_buffers": [torch.empty(0, dtype=self._dtype)] * 2, "_on_gpu": None}

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> GroupSample:
        """Return one group in new tensors. Raises IndexError beyond the last, so that a plain ``for`` ends."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"group {i} of {len(self)}")
        x_VFHWC = self._gather(self.row_GV[i], torch.empty((self.row_GV.shape[1], *self._row), dtype=self._dtype))
        return GroupSample(x_VFHWC, self.mask_GV[i], int(self.label_G[i]))

    @property
    def where(self) -> str:
        """Source of the rows: ``cuda:0``, ``memory``, ``mapped files`` or ``decompressed shards``."""
        return str(self._on_gpu.device) if self._on_gpu is not None else self.data.where

    def batch(self, indices: Sequence[int]) -> GroupBatch:
        """Gather several groups on the device, through one of two buffers (pinned if the device is a GPU)."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        row_BV, mask_BV = self.row_GV[chosen], self.mask_GV[chosen]
        if self._on_gpu is not None:
            x_BVFHWC = self._on_gpu[row_BV.to(self.device)] * mask_BV.to(self.device).view(*row_BV.shape, 1, 1, 1, 1)
        else:
            # The other buffer may still be in transfer to the GPU.
            self._buffers.reverse()
            if len(self._buffers[0]) < row_BV.numel():
                pinned = self.device.type == "cuda"
                self._buffers[0] = torch.empty((row_BV.numel(), *self._row), dtype=self._dtype, pin_memory=pinned)
            x_MFHWC = self._gather(row_BV.flatten(), self._buffers[0][: row_BV.numel()])
            x_BVFHWC = x_MFHWC.view(*row_BV.shape, *self._row).to(self.device, non_blocking=True)
        return GroupBatch(x_BVFHWC, mask_BV.to(self.device), self.label_G[chosen].to(self.device))

    def _gather(self, row_M: Tensor, x_MFHWC: Tensor) -> Tensor:
        """Read clips into ``x_MFHWC``; row -1 gives zeros."""
        ids = [self._ids[row] for row in row_M.tolist() if row >= 0]
        if len(ids) == len(row_M):
            self.data.embeddings(ids, x_MFHWC.flatten(2, 3).numpy())
        else:
            x_MFHWC.zero_()[row_M >= 0] = torch.from_numpy(self.data.embeddings(ids)).view(-1, *self._row)
        return x_MFHWC
