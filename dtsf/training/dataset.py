"""Groups of views straight from the cache, for people who bring their own training loop.

```python
groups = CacheDataset(open_cache("cache"))
x_VFHWC, mask_V, label = groups[0]                 # one performance, all its views
for batch in DataLoader(groups, 16, shuffle=True): ...
batch = groups.batch([0, 5, 7])                    # faster: one gather into one buffer
```

Letters: B groups of a batch, V views, F frames, H W grid, C channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils.data import Dataset

from dtsf.errors import ConfigError
from dtsf.training.prefetch import fits_on_gpu

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dtsf.cache.reader import CachedDataset
    from dtsf.cache.schema import Clip


class GroupSample(NamedTuple):
    """One performance."""

    x_VFHWC: Tensor
    """Zero where a view is absent: ask the mask."""
    mask_V: Tensor
    """True where the view was filmed and could be used."""
    label: int


class GroupBatch(NamedTuple):
    """Several performances."""

    x_BVFHWC: Tensor
    """Zero where a view is absent: ask the mask. The next but one batch overwrites it."""
    mask_BV: Tensor
    label_B: Tensor


class CacheDataset(Dataset[GroupSample]):
    """Groups of views of a cache; ``len(groups)`` of them, in the order of their names.

    Args:
        data: From :func:`dtsf.api.open_cache`.
        clips: Those that take part, for example one side of a split; all if left out.
        hold: ``auto`` holds the embeddings on ``device`` if that is a GPU and they take no more than 0.4 of its free memory,
            else in memory if they take no more than half of it, else reads them from the files; ``never`` reads from the
            files. What became of it is in :attr:`where`.
        device: Where batches go.
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
        self.data = data
        self.device = torch.device(device)
        chosen = data.clips if clips is None else tuple(clips)
        by_group: dict[str, dict[int, str]] = {}
        labels: dict[str, int] = {}
        for clip in chosen:
            by_group.setdefault(clip.group, {})[clip.view] = clip.id
            labels[clip.group] = clip.label
        self.names = tuple(sorted(by_group))
        self.label_G = torch.tensor([labels[name] for name in self.names], dtype=torch.int64)
        n_views = len(data.info.view_names)
        self._ids = [[by_group[name].get(view) for view in range(1, n_views + 1)] for name in self.names]
        self.mask_GV = torch.tensor([[key is not None for key in row] for row in self._ids], dtype=torch.bool)
        self._buffers: list[Tensor] = []
        self._turn = 0
        self._on_gpu: Tensor | None = None
        self._row_GV = torch.empty(0, dtype=torch.int64)
        if hold == "auto" and not self._hold_on_gpu():
            data.hold()

    def __getstate__(self) -> dict[str, Any]:
        # A worker process reads the files itself: it shares their pages with all others.
        return {**self.__dict__, "_buffers": [], "_on_gpu": None}

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> GroupSample:
        """One group, in tensors of its own, in memory. IndexError beyond the last, so that a plain ``for`` ends."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"group {i} of {len(self)}")
        x_BVFHWC = self._gather([i], torch.empty(self._shape(1), dtype=self._dtype))
        return GroupSample(x_BVFHWC[0], self.mask_GV[i], int(self.label_G[i]))

    @property
    def where(self) -> str:
        """Where rows come from: ``cuda:0``, ``memory``, ``mapped files`` or ``decompressed shards``."""
        return str(self._on_gpu.device) if self._on_gpu is not None else self.data.where

    def batch(self, indices: Sequence[int]) -> GroupBatch:
        """Several groups on the device, gathered into a buffer that is kept (pinned where the device is a GPU)."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        mask_BV, label_B = self.mask_GV[chosen], self.label_G[chosen]
        if self._on_gpu is not None:
            row_BV = self._row_GV[chosen].to(self.device)
            x_BVFHWC = self._on_gpu[row_BV] * (row_BV >= 0).view(*row_BV.shape, 1, 1, 1, 1)
        else:
            x_BVFHWC = self._gather(chosen.tolist(), self._buffer(len(chosen))).to(self.device, non_blocking=True)
        return GroupBatch(x_BVFHWC, mask_BV.to(self.device), label_B.to(self.device))

    def _gather(self, indices: list[int], x_BVFHWC: Tensor) -> Tensor:
        flat_MFPC = x_BVFHWC.view(-1, self.data.spec.frames, self.data.spec.grid**2, self.data.spec.channels)
        ids = [clip_id for i in indices for clip_id in self._ids[i]]
        if None not in ids:
            self.data.embeddings(ids, flat_MFPC.numpy())  # type: ignore[arg-type]
            return x_BVFHWC
        out = flat_MFPC.numpy()
        for position, clip_id in enumerate(ids):
            if clip_id is None:
                out[position] = 0
            else:
                self.data.embeddings([clip_id], out[position : position + 1])
        return x_BVFHWC

    def _buffer(self, n_groups: int) -> Tensor:
        """One of two that take turns: while one is copied to the GPU the next batch goes into the other."""
        self._turn ^= 1
        while len(self._buffers) < 2:
            self._buffers.append(torch.empty(0, dtype=self._dtype))
        shape = self._shape(n_groups)
        if self._buffers[self._turn].shape[0] < n_groups:
            pinned = self.device.type == "cuda"
            self._buffers[self._turn] = torch.empty(shape, dtype=self._dtype, pin_memory=pinned)
        return self._buffers[self._turn][:n_groups]

    @property
    def _dtype(self) -> torch.dtype:
        name: torch.dtype = getattr(torch, self.data.spec.embedding_dtype)
        return name

    def _shape(self, n_groups: int) -> tuple[int, ...]:
        spec = self.data.spec
        return n_groups, self.mask_GV.shape[1], spec.frames, spec.grid, spec.grid, spec.channels

    def _hold_on_gpu(self) -> bool:
        ids = [clip_id for row in self._ids for clip_id in row if clip_id is not None]
        if not fits_on_gpu(len(ids) * self.data.row_bytes(), self.device):
            return False
        spec = self.data.spec
        held = torch.empty((len(ids), *self._shape(1)[2:]), dtype=self._dtype, device=self.device)
        for start in range(0, len(ids), 256):
            part = torch.from_numpy(self.data.embeddings(ids[start : start + 256]))
            held[start : start + len(part)] = part.view(-1, spec.frames, spec.grid, spec.grid, spec.channels)
        self._row_GV = torch.full(self.mask_GV.shape, -1, dtype=torch.int64)
        self._row_GV[self.mask_GV] = torch.arange(len(ids))
        self._on_gpu = held
        return True
