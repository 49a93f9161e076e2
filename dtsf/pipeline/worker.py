"""One shard, from videos to a commit record: the unit of work, of retry and of checking."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dtsf.cache.layout import array_shapes
from dtsf.cache.records import Clip, ClipRecord
from dtsf.cache.spec import CacheSpec, ShardRecord
from dtsf.cache.store import write_shard
from dtsf.errors import VideoError
from dtsf.pipeline.encoders.choose import load_encoder
from dtsf.pipeline.video.child import DecodeRequest, borrow_decoder, decode_all
from dtsf.pipeline.video.clip import Span

if TYPE_CHECKING:
    from collections.abc import Callable

    from dtsf.pipeline.settings import PreprocessSettings

__all__ = ["Counter", "ShardTask", "run_shard", "source_stat"]

EVENT_EVERY = 1.0
"""Seconds between two progress events of a shard: what a scheduler must bear is workers, not clips, a second."""


@dataclass(frozen=True)
class ShardTask:
    """Everything a worker needs, small enough to send to another machine."""

    folder: str
    """Of the data set in the cache; or its URL."""
    root: str
    """Of the videos."""
    shard: int
    clips: tuple[Clip, ...]
    spec: CacheSpec
    settings: PreprocessSettings


class Counter:
    """Counts clips and tells of them at most every :data:`EVENT_EVERY` seconds; ends with :meth:`tell`."""

    def __init__(self, send: Callable[[tuple[int, int]], None]) -> None:
        self._send = send
        self._done = self._bad = 0
        self._told = time.monotonic()

    def count(self, record: ClipRecord) -> None:
        """One more clip."""
        self._done += 1
        self._bad += not record.verdict.usable
        if time.monotonic() - self._told >= EVENT_EVERY:
            self.tell()

    def tell(self) -> None:
        """Tell of what was not told yet."""
        if self._done:
            self._send((self._done, self._bad))
        self._done = self._bad = 0
        self._told = time.monotonic()


def run_shard(task: ShardTask, on_clip: Callable[[ClipRecord], None] | None = None) -> ShardRecord:
    """Decode, embed, write and commit the clips of one shard.

    Args:
        task: What to do.
        on_clip: Called after each clip, for progress.

    """
    spec = task.spec
    rows = {name: np.empty((len(task.clips), *shape), dtype) for name, (shape, dtype) in array_shapes(spec).items()}
    records: list[ClipRecord] = []
    used = 0
    sources = [source_stat(Path(task.root) / clip.path) for clip in task.clips]
    requests = [DecodeRequest(Path(task.root) / clip.path, Span(start=clip.start, end=clip.end)) for clip in task.clips]
    settings = task.settings
    with borrow_decoder(spec.frames, spec.size, settings.deadline, settings.check, crop=spec.crop) as decoder:
        # Asked for first: the decoder's child starts, and decodes the first clip, while the encoder loads.
        items = decode_all(decoder, requests)
        encoder = load_encoder(spec.encoder, spec.size, spec.grid)
        for clip, (n_bytes, mtime_ns), item in zip(task.clips, sources, items, strict=True):
            source = {"source_bytes": n_bytes, "source_mtime_ns": mtime_ns}
            if isinstance(item, VideoError):
                record = ClipRecord(clip=clip, verdict=item.verdict, row=None, reason=str(item), **source)
            else:
                frames_FHWC, facts = item
                rows["embeddings"][used] = encoder.embed(frames_FHWC)
                rows["pictures"][used] = _small_pictures(frames_FHWC, spec.picture_size)
                for name in ("frame_index", "frame_time"):
                    values = facts.pop(name)
                    if name in rows:
                        rows[name][used] = values
                held = {name: value for name, value in facts.items() if name in ClipRecord.model_fields}
                record = ClipRecord(clip=clip, row=used, **held, **source)
                used += 1
            records.append(record)
            if on_clip is not None:
                on_clip(record)
    shard = ShardRecord(
        shard=task.shard,
        fingerprint=spec.fingerprint(),
        rows=used,
        clips=tuple(records),
        files={},
    )
    used_rows = {name: array[:used] for name, array in rows.items()}
    return write_shard(task.folder, shard, used_rows)


def source_stat(path: Path) -> tuple[int, int]:
    """Size in bytes and modification time of a source file, or (0, 0) where it is missing."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def _small_pictures(frames_FHWC: np.ndarray, size: int) -> np.ndarray:
    """Shrink by area. (F, H, H, 3) uint8 -> (F, size, size, 3) uint8."""
    from PIL import Image

    factor, rest = divmod(frames_FHWC.shape[1], size)
    if rest == 0:
        # All frames as one tall picture, by a whole factor: a third of the time (measured: 1.4 ms a clip, not 4.1).
        tall = Image.fromarray(np.ascontiguousarray(frames_FHWC).reshape(-1, *frames_FHWC.shape[2:]))
        return np.asarray(tall.reduce(factor)).reshape(-1, size, size, 3)
    small = [Image.fromarray(frame).resize((size, size), Image.Resampling.BOX) for frame in frames_FHWC]
    return np.stack([np.asarray(picture) for picture in small])
