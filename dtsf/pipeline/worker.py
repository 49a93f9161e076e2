"""Process one shard: decode, embed, write and commit its clips. Also decode clips again to check a cache.

A GPU embeds a clip in milliseconds; a core needs a third of a second to decode one. So there is one worker per GPU, with a decoder
process on each of its cores. All of them decode ahead, and the worker embeds several finished clips in one batch.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import xxhash

from dtsf.cache.documents import DatasetHandle
from dtsf.cache.formats import array_shapes
from dtsf.cache.reader import CachedDataset
from dtsf.cache.schema import Clip, ClipRecord, FilePart, ShardRecord, Source
from dtsf.cache.writer import write_shard
from dtsf.errors import ConfigError, SourceError, VideoError
from dtsf.pipeline.encoders.choose import load_encoder
from dtsf.pipeline.rows import clip_span, decode_settings, decoder_kind, embed_clips
from dtsf.pipeline.settings import PreprocessSettings
from dtsf.pipeline.source import classify_error, content_hash, file_stat
from dtsf.pipeline.video.decode import decoder_name
from dtsf.pipeline.video.decoder_process import Decoder, DecodeRequest, decode_all, shared_decoders
from dtsf.settings import Frozen

T = TypeVar("T")

# Lost files in a row after which the disk, not a file, is the likely cause.
MAX_LOST_IN_A_ROW = 3
# Seconds to wait before each new try when a disk or server does not respond.
RETRY_AFTER = (1.0, 5.0, 20.0)


@dataclass(frozen=True)
class ShardTask:
    """Input of a worker, small enough to send to another machine. ``root``: folder of the videos."""

    dataset: DatasetHandle
    root: str
    shard: int
    clips: tuple[Clip, ...]
    settings: PreprocessSettings


class Mismatch(Frozen):
    """A clip whose source no longer gives the pictures in the cache."""

    clip: str
    path: str
    line: int | None  # of the table
    reason: str


class SourceCheck(Frozen):
    """Result of :func:`check_source`. Another ``decoder`` than the cache's may round differently: every clip is a mismatch."""

    checked: int
    mismatches: tuple[Mismatch, ...]
    decoder: str

    @property
    def ok(self) -> bool:
        """True if all clips give the same pictures."""
        return not self.mismatches


def run_shard(task: ShardTask, on_clip: Callable[[ClipRecord], None] | None = None, *, workers: int = 1) -> ShardRecord:
    """Decode, embed, write and commit the clips of one shard. ``workers``: processes that share this machine's cores."""
    spec, settings = task.dataset.spec, task.settings
    rows = {name: np.empty((len(task.clips), *shape), dtype) for name, (shape, dtype) in array_shapes(spec).items()}
    records: list[ClipRecord] = []
    used = lost = 0
    paths = [Path(task.root) / clip.path for clip in task.clips]
    stats = [_retry(file_stat, path) for path in paths]
    requests = [DecodeRequest(path, clip_span(clip, spec)) for path, clip in zip(paths, task.clips, strict=True)]
    decode = decode_settings(spec, settings.deadline, settings.check)
    load = partial(load_encoder, settings.encoder, spec.size, spec.grid, weights=settings.encoder_weights)
    with shared_decoders(decode, decoders_per_worker(settings.encoder, workers)) as decoders:
        embedded = embed_clips(decoders, requests, spec, load)
        for clip, path, stat, item in zip(task.clips, paths, stats, embedded, strict=True):
            # Hash after decoding, when the bytes are in memory. Then stat again: the hashed bytes are the decoded ones.
            content = _retry(content_hash, path, stat) if stat else None
            if stat is None or content is None or _retry(file_stat, path) != stat:
                lost += 1
                if lost == MAX_LOST_IN_A_ROW:
                    raise SourceError(
                        f"{MAX_LOST_IN_A_ROW} files in a row became unreadable during the run; the last is {path}. "
                        "Check the disk or share. Finished work is safe: run the same command again"
                    )
                continue
            lost = 0
            part = {name: getattr(clip, name) for name in FilePart.model_fields}
            source = Source(**part, **vars(stat), content_hash=content)
            if isinstance(item, VideoError):
                record = ClipRecord(
                    source=source, status=item.status, row=None, reason=str(item).replace(str(path), clip.path)
                )
            else:
                rows["embeddings"][used] = item.embedding_FPC
                rows["pictures"][used] = _small_pictures(item.frames_FHWC, spec.picture_size)
                facts = dict(item.facts)
                facts.pop("damaged", None)  # a cache keeps no doubts: --check full refuses such clips
                for name in ("frame_index", "frame_time"):
                    rows[name][used] = np.array(facts.pop(name), rows[name].dtype)
                record = ClipRecord(source=source, row=used, **facts)
                used += 1
            records.append(record)
            if on_clip is not None:
                on_clip(record)
    fingerprint = spec.fingerprint()
    shard = ShardRecord(shard=task.shard, fingerprint=fingerprint, rows=used, clips=tuple(records), files={})
    # If no file could be read, write no shard, so that the next run can use its number.
    return write_shard(task.dataset, shard, {name: array[:used] for name, array in rows.items()}) if records else shard


def visible_gpus(encoder: str) -> tuple[str, ...]:
    """Return the names (as in ``CUDA_VISIBLE_DEVICES``) of the GPUs that the encoder can use on this machine."""
    # Without NVIDIA's device file PyTorch is not imported.
    if encoder == "pixels" or not any(os.path.exists(path) for path in ("/dev/nvidiactl", "/dev/dxg")):
        return ()
    import torch

    count = torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(str(k) for k in range(count)) if names is None else tuple(names.split(",")[:count])


def decoders_per_worker(encoder: str, workers: int = 1) -> int:
    """Return the number of decoder processes of each of ``workers`` workers: its share of the cores; without a GPU, one."""
    n_gpus = len(visible_gpus(encoder))
    return max(1, (os.cpu_count() or 1) // max(n_gpus, workers)) if n_gpus else 1


def select_gpu(worker: int, gpus: Sequence[str]) -> None:
    """Hide all GPUs but one from this process. ``worker``: its number; workers take the GPUs in turn."""
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus[worker % len(gpus)]


def check_source(
    data: CachedDataset, root: Path, *, sample: float = 1.0, on_progress: Callable[[int, int], None] | None = None
) -> SourceCheck:
    """Decode clips again and compare the checksum of their pictures with the cache. ``sample``: fraction of the clips to decode.
    Raises ConfigError: the fraction is out of range, or the cache needs decord, which is not installed.
    """
    if not 0 < sample <= 1:
        raise ConfigError(f"--sample ({sample:g}) must be a share above 0 and up to 100%")
    spec = data.spec
    count = math.ceil(sample * len(data.clips))
    clips = [data.clips[k * len(data.clips) // count] for k in range(count)]
    records = [data.records[clip.id][1] for clip in clips]
    requests = [
        DecodeRequest(root / clip.path, clip_span(record.source, spec))
        for clip, record in zip(clips, records, strict=True)
    ]
    mismatches: list[Mismatch] = []
    with Decoder(decode_settings(spec)) as decoder:
        items = decode_all(decoder, requests)
        for k, (clip, record, item) in enumerate(zip(clips, records, items, strict=True), 1):
            reason = ""
            if isinstance(item, VideoError):
                reason = f"{item.status}: {item}"
            elif xxhash.xxh3_64_hexdigest(item[0].tobytes()) != record.frames_hash:
                reason = "different pictures"
            if reason:
                mismatches.append(Mismatch(clip=clip.id, path=clip.path, line=clip.line, reason=reason))
            if on_progress is not None:
                on_progress(k, count)
    return SourceCheck(checked=count, mismatches=tuple(mismatches), decoder=decoder_name(decoder_kind(spec)))


def _retry(read: Callable[..., T], path: Path, *arguments: object) -> T | None:
    """Read a file, again after a while if the server does not respond. Return None for an error of this file alone."""
    for wait in (*RETRY_AFTER, None):
        try:
            return read(path, *arguments)
        except OSError as error:
            try:
                classify_error(path, error)
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
        # All frames as one tall picture, by a whole factor: three times as fast (1.4 ms a clip instead of 4.1).
        tall = Image.fromarray(np.ascontiguousarray(frames_FHWC).reshape(-1, *frames_FHWC.shape[2:]))
        return np.asarray(tall.reduce(factor)).reshape(-1, size, size, 3)
    small = [Image.fromarray(frame).resize((size, size), Image.Resampling.BOX) for frame in frames_FHWC]
    return np.stack([np.asarray(picture) for picture in small])
