"""One shard, from videos to a commit record: the unit of work, of retry and of checking."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from dtsf.cache.layout import array_shapes
from dtsf.cache.records import Clip, ClipRecord, Source
from dtsf.cache.spec import CacheSpec, ShardRecord
from dtsf.cache.writer import write_shard
from dtsf.errors import SourceError, VideoError
from dtsf.pipeline.encoders.choose import load_encoder
from dtsf.pipeline.gpu import CLIPS_A_CALL, decode_side_by_side, decoders_of_a_worker, embed_batched
from dtsf.pipeline.source import Stat, content_hash, file_stat, trouble
from dtsf.pipeline.video.clip import Span
from dtsf.pipeline.video.decoder_process import DecodeRequest, DecodeSettings, shared_decoders

if TYPE_CHECKING:
    from collections.abc import Callable

    from dtsf.pipeline.settings import PreprocessSettings

T = TypeVar("T")

LOST_IN_A_ROW = 3
"""Files: then it is not the files but what holds them."""
PATIENCE = (1.0, 5.0, 20.0)
"""Seconds before a disk or server that does not answer is asked again."""
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
    """Counts clips and reports them at most every :data:`EVENT_EVERY` seconds; ends with :meth:`report`."""

    def __init__(self, send: Callable[[tuple[int, int]], None]) -> None:
        self._send = send
        self._done = self._bad = 0
        self._sent_at = time.monotonic()

    def count(self, record: ClipRecord) -> None:
        """One more clip."""
        self._done += 1
        self._bad += not record.verdict.usable
        if time.monotonic() - self._sent_at >= EVENT_EVERY:
            self.report()

    def report(self) -> None:
        """Report what was not reported yet."""
        if self._done:
            self._send((self._done, self._bad))
        self._done = self._bad = 0
        self._sent_at = time.monotonic()


def run_shard(task: ShardTask, on_clip: Callable[[ClipRecord], None] | None = None) -> ShardRecord:
    """Decode, embed, write and commit the clips of one shard."""
    spec = task.spec
    rows = {name: np.empty((len(task.clips), *shape), dtype) for name, (shape, dtype) in array_shapes(spec).items()}
    records: list[ClipRecord] = []
    used = 0
    source = _Source(Path(task.root))
    stats = [source.stat(clip) for clip in task.clips]
    requests = [DecodeRequest(Path(task.root) / clip.path, span_of(clip, spec)) for clip in task.clips]
    settings = task.settings
    n = decoders_of_a_worker(settings.encoder)
    decode = DecodeSettings(
        spec.frames, spec.size, settings.deadline, settings.check, crop=spec.crop, decoder=settings.decoder
    )
    with shared_decoders(decode, n) as decoders:
        # Asked for first: the decoders' children start, and decode the first clips, while the encoder loads.
        items = decode_side_by_side(decoders, requests)
        encoder = load_encoder(settings.encoder, spec.size, spec.grid, weights=settings.encoder_weights)
        together = embed_batched(items, encoder.embed, CLIPS_A_CALL if encoder.device == "cuda" else 1)
        for clip, stat, (item, cells) in zip(task.clips, stats, together, strict=True):
            read = source.what_was_read(clip, stat)
            if read is None:
                continue
            if isinstance(item, VideoError):
                record = ClipRecord(source=read, verdict=item.verdict, row=None, reason=str(item))
            else:
                frames_FHWC, facts = item
                rows["embeddings"][used] = cells
                rows["pictures"][used] = _small_pictures(frames_FHWC, spec.picture_size)
                for name in ("frame_index", "frame_time"):
                    rows[name][used] = np.array(facts.pop(name), rows[name].dtype)
                record = ClipRecord(source=read, row=used, **facts)
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
    if not records:
        # Nothing could be read: no shard, and its number is free for the next run.
        return shard
    return write_shard(task.folder, shard, {name: array[:used] for name, array in rows.items()})


def span_of(part: Clip | Source, spec: CacheSpec) -> Span:
    """The part of a file that a clip is."""
    common = spec.align == "group" and part.start is not None and part.end is not None
    return Span(part.start, part.end, part.first, part.last, part.fps, common)


class _Source:
    """What a shard's files were while it was made. A file that cannot be read, or that changed, gets no record."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lost = 0

    def stat(self, clip: Clip) -> Stat | None:
        """Size and time now; None where it cannot be looked at."""
        path = self.root / clip.path
        return self._patiently(path, lambda: file_stat(path))

    def what_was_read(self, clip: Clip, before: Stat | None) -> Source | None:
        """By what the bytes are known that the decoder was given; None where they are not those of ``before`` any more."""
        path = self.root / clip.path
        # Read after decoding, so that the bytes are at hand; and looked at after that, so that they are the bytes decoded.
        content = None if before is None else self._patiently(path, lambda: content_hash(path, before))
        if before is None or content is None or self.stat(clip) != before:
            self._lost += 1
            if self._lost == LOST_IN_A_ROW:
                raise SourceError(
                    f"{LOST_IN_A_ROW} files in a row that were there when the run began cannot be read now; the last is {path}. "
                    "Is the disk or share that holds them still there? What is committed is safe: run the same command again"
                )
            return None
        self._lost = 0
        part = {name: getattr(clip, name) for name in ("path", "start", "end", "first", "last", "fps")}
        return Source(**part, bytes=before.bytes, mtime_ns=before.mtime_ns, listing=before.listing, content=content)

    def _patiently(self, path: Path, look: Callable[[], T]) -> T | None:
        """What ``look`` finds. A server that does not answer is asked again; None where it is a matter of this file."""
        for wait in (*PATIENCE, None):
            try:
                return look()
            except OSError as error:
                try:
                    trouble(path, error)
                except SourceError:
                    if wait is None:
                        raise
                    time.sleep(wait)
                else:
                    return None
        raise AssertionError("unreachable")


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
