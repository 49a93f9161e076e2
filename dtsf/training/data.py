"""Training data: clips of a cache in memory, grouped by performance, and batches of them.

Batches are made on the GPU if the embeddings fit there, else on the CPU, and copied through pinned memory. Random numbers are
always drawn on the CPU in the same order, so that a run repeats.
Letters: N clips, G groups, B groups of a batch, V views, F cached frames, T frames of the network, H W grid, C channels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dtsf.cache.reader import CachedDataset
from dtsf.cache.schema import Clip
from dtsf.errors import CacheError
from dtsf.training.augment import (
    AugmentConfig,
    drop_views,
    move_frames,
    move_grid,
    occlude_views,
    sample_times,
    swap_backgrounds,
)
from dtsf.training.frame_sampling import motion_steps, read_frames, uniform_times

logger = logging.getLogger(__name__)

SHARE = 0.4  # maximum share of the free GPU memory for the embeddings; the rest is for the network


class Batch(NamedTuple):
    """Input of the network and of the losses."""

    x_BVTHWC: Tensor
    mask_BV: Tensor
    label_B: Tensor
    row_BV: Tensor  # row of each clip in the embeddings of the groups; undefined where the mask is False


@dataclass(frozen=True)
class Groups:
    """Groups of views, with the embeddings of their clips in memory."""

    embeddings_NFHWC: Tensor  # float16; or the float32 result of prepare.training_source
    row_GV: Tensor  # row in embeddings_NFHWC of each view of each group; -1 if the view is absent
    label_G: Tensor
    names: tuple[str, ...]
    background_N: Tensor | None = None  # number of each clip's background, from 0; None if one has no named background
    subject_N: Tensor | None = None  # number of each clip's person, from 0; None if one has no named person
    # The embeddings and their step_NS, once that is computed.
    motion: list[Tensor] = field(default_factory=list, repr=False, kw_only=True)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def mask_GV(self) -> Tensor:
        """True where a view is present."""
        return self.row_GV >= 0

    @property
    def step_NS(self) -> Tensor:
        """Motion between neighbouring cached frames of each clip, for ``model.motion_sampling``. Parts of the groups share it."""
        if not self.motion or self.motion[0] is not self.embeddings_NFHWC:
            self.motion[:] = self.embeddings_NFHWC, motion_steps(self.embeddings_NFHWC)
        return self.motion[1]

    def with_views(self, views: Iterable[int]) -> Groups:
        """Return the groups with only these views (numbers from 1). Groups without any of them are dropped."""
        keep_V = torch.zeros(self.row_GV.shape[1], dtype=torch.bool)
        keep_V[[view - 1 for view in views]] = True
        row_GV = torch.where(keep_V, self.row_GV, -1)
        return replace(self, row_GV=row_GV).choose((row_GV >= 0).any(1).nonzero().flatten())

    def choose(self, chosen_B: Tensor) -> Groups:
        """Return the groups of these indices."""
        names = tuple(self.names[g] for g in chosen_B.tolist())
        return replace(self, row_GV=self.row_GV[chosen_B], label_G=self.label_G[chosen_B], names=names)


def refuse_not_finite(groups: Groups) -> None:
    """Raise CacheError if an embedding is not finite: then no network can read its group, and no training is to blame."""
    for name, row_V in zip(groups.names, groups.row_GV, strict=True):
        if not groups.embeddings_NFHWC[row_V[row_V >= 0]].isfinite().all():
            raise CacheError(
                f"the cache has embeddings of the group {name} that are not finite: take its clips out of the table and run "
                "dtsf preprocess again, or choose another --encoder"
            )


def group_clips(clips: Sequence[Clip], n_views: int) -> tuple[tuple[str, ...], Tensor, Tensor]:
    """Group clips by performance. Return the sorted names, the row of each view's clip (G, V), -1 if absent, and labels (G,)."""
    names = tuple(sorted({clip.group for clip in clips}))
    number = {name: g for g, name in enumerate(names)}
    row_GV = torch.full((len(names), n_views), -1, dtype=torch.int64)
    label_G = torch.zeros(len(names), dtype=torch.int64)
    for row, clip in enumerate(clips):
        row_GV[number[clip.group], clip.view - 1] = row
        label_G[number[clip.group]] = clip.label
    return names, row_GV, label_G


def load_groups(dataset: CachedDataset, clips: Sequence[Clip]) -> Groups:
    """Read the embeddings of ``clips`` into memory and group them."""
    spec = dataset.spec
    embeddings_NFPC = torch.from_numpy(dataset.embeddings([clip.id for clip in clips]))
    names, row_GV, label_G = group_clips(clips, len(dataset.info.view_names))
    shape = (len(clips), spec.frames, spec.grid, spec.grid, spec.channels)
    numbers = (number_names([getattr(clip, field) for clip in clips]) for field in ("background", "subject"))
    return Groups(embeddings_NFPC.view(shape), row_GV, label_G, names, *numbers)


def share_groups(load: Callable[[Sequence[Clip]], Groups], clips: Sequence[Clip]) -> Callable[[Sequence[Clip]], Groups]:
    """Load clips into memory once. Return a function like ``load`` that reads any part of them there, and loads other clips."""
    whole = load(clips)
    row_of = {clip.id: row for row, clip in enumerate(clips)}

    def load_part(part: Sequence[Clip]) -> Groups:
        if any(clip.id not in row_of for clip in part):
            return load(part)
        names, row_GV, label_G = group_clips(part, whole.row_GV.shape[1])
        row_N = torch.tensor([row_of[clip.id] for clip in part], dtype=torch.int64)
        row_GV = torch.where(row_GV >= 0, row_N[row_GV.clamp(min=0)], -1)
        numbers = []
        for name in ("background", "subject"):
            number_N = number_names([getattr(clip, name) for clip in part])
            if number_N is not None:
                number_N = torch.zeros(len(clips), dtype=torch.int64).index_copy_(0, row_N, number_N)
            numbers.append(number_N)
        return Groups(whole.embeddings_NFHWC, row_GV, label_G, names, *numbers, motion=whole.motion)

    return load_part


def number_names(names: Sequence[str | None]) -> Tensor | None:
    """Number names from 0, in their order: (N,). None if one is missing."""
    named = [name for name in names if name is not None]
    if not names or len(named) < len(names):
        return None
    numbers = {name: k for k, name in enumerate(sorted(set(named)))}
    return torch.tensor([numbers[name] for name in named], dtype=torch.int64)


def training_batches(
    groups: Groups,
    batch_size: int,
    n_frames: int,
    motion_sampling: float,
    augment: AugmentConfig,
    scale_C: Tensor,
    order: Iterable[Tensor] | None = None,
) -> Iterator[Batch]:
    """Yield the augmented batches of one epoch. Draws from PyTorch's global generator.

    ``scale_C``: unit of the noise. ``order``: indices of the groups of each batch, (B,) each; a random order by default.
    """
    for chosen_B in torch.randperm(len(groups)).split(batch_size) if order is None else order:
        row_BV = groups.row_GV[chosen_B]
        mask_BV = row_BV >= 0
        time_BVT = sample_times((len(chosen_B), row_BV.shape[1]), n_frames, augment)
        x_BVTHWC = _read_views(groups, row_BV, time_BVT, motion_sampling)
        if augment.swap_background:
            x_BVTHWC = swap_backgrounds(x_BVTHWC, mask_BV, augment.swap_background)
        if augment.occlude:
            x_BVTHWC = occlude_views(x_BVTHWC, mask_BV, augment.occlude)
        x_BVTHWC = move_grid(move_frames(x_BVTHWC, augment), augment)
        if augment.noise:
            drawn_BVTHWC = torch.randn_like(x_BVTHWC, device="cpu")
            x_BVTHWC = x_BVTHWC + augment.noise * (scale_C * drawn_BVTHWC).to(x_BVTHWC.device)
        if augment.view_drop:
            mask_BV = drop_views(mask_BV, augment.view_drop)
        yield Batch(x_BVTHWC, mask_BV, groups.label_G[chosen_B], row_BV)


def evaluation_batches(
    groups: Groups, batch_size: int, n_frames: int, motion_sampling: float, draw: int = 0, draws: int = 1
) -> Iterator[Batch]:
    """Yield all groups in order, without augmentation. The frames are set ``draw`` of ``draws``."""
    for chosen_B in torch.arange(len(groups)).split(batch_size):
        row_BV = groups.row_GV[chosen_B]
        time_BVT = uniform_times(n_frames, (draw + 0.5) / draws).expand(*row_BV.shape, n_frames)
        x_BVTHWC = _read_views(groups, row_BV, time_BVT, motion_sampling)
        yield Batch(x_BVTHWC, row_BV >= 0, groups.label_G[chosen_B], row_BV)


def _read_views(groups: Groups, row_BV: Tensor, time_BVT: Tensor, motion_sampling: float) -> Tensor:
    # An absent view (row -1) gets the values of another clip; the mask excludes them.
    device = groups.embeddings_NFHWC.device
    row_M, time_MT = row_BV.flatten().clamp(min=0).to(device), time_BVT.flatten(0, 1).to(device)
    step_NS = groups.step_NS if motion_sampling else None
    x_MTHWC = read_frames(groups.embeddings_NFHWC, row_M, time_MT, motion_sampling, step_NS)
    return x_MTHWC.reshape(*row_BV.shape, *x_MTHWC.shape[1:])


def fits_on_gpu(n_bytes: int, device: torch.device) -> bool:
    """Return True if ``device`` is a GPU and ``n_bytes`` is at most :data:`SHARE` of its free memory."""
    if device.type != "cuda":
        return False
    # Memory that PyTorch has reserved but does not use counts as free.
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
    """Batches on a device. On a GPU, the next batch is made in a separate stream while the GPU computes the queued step."""

    def __init__(self, batches: Iterator[Batch], device: torch.device) -> None:
        self._batches, self._device = batches, device
        self._stream: Any = _side_stream(device) if device.type == "cuda" else None
        self._staged: Batch | None = None
        if self._stream is not None:  # embeddings may still be in transfer to the device
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def prepare(self) -> None:
        """Start to make the next batch. Call it after the work of a step is queued."""
        if self._stream is None or self._staged is not None:
            return
        with torch.cuda.stream(self._stream):
            batch = next(self._batches, None)
            if batch is not None:
                pinned = (x.pin_memory() if x.device.type == "cpu" else x for x in batch)
                self._staged = Batch(*(x.to(self._device, non_blocking=True) for x in pinned))

    def next(self) -> Batch:
        """Return the next batch, on the device. Raises StopIteration after the last one."""
        if self._stream is None:
            return Batch(*(x.to(self._device) for x in next(self._batches)))
        self.prepare()
        batch, self._staged = self._staged, None
        if batch is None:
            raise StopIteration
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._stream)
        for x in batch:
            x.record_stream(computing)  # keeps the memory of the batch until the step that reads it is done
        return batch
