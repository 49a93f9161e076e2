"""Rows of clips: the part of the file and of the picture, its frames and their embedding.

Both stages call these functions. So a prediction reads a video exactly as the clips of the training were read.
Letters: F frames, H W pixels, P cells, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dtsf.errors import VideoError
from dtsf.pipeline.video.clip import Span
from dtsf.pipeline.video.decoder_process import Decoder, DecodeRequest, DecodeSettings, decode_all

if TYPE_CHECKING:
    from dtsf.cache.schema import CacheSpec, FilePart
    from dtsf.pipeline.encoders.choose import Encoder

MIN_SECONDS = 1e-3  # shortest time that the views of a group must have in common
CLIPS_PER_BATCH = (
    8  # 128 frames at 16 frames a clip: enough to fill a GPU, and decoded in less than a third of a second
)
Extent = tuple[float, float]  # seconds of a file at which its first picture begins and its last one ends


@dataclass(frozen=True)
class Row:
    """Values of one clip in a cache. ``facts``: as in :meth:`dtsf.pipeline.video.clip.DecodedClip.facts`."""

    frames_FHWC: np.ndarray  # uint8 RGB, the input of the encoder
    embedding_FPC: np.ndarray  # in the type of the cache
    facts: dict[str, Any]


def decoder_kind(spec: CacheSpec) -> str:
    """Return the decoder library of a spec: ``pyav`` or ``decord``."""
    return "decord" if spec.decoder.startswith("decord") else "pyav"


def decode_settings(spec: CacheSpec, deadline: float = 60.0, check: str = "fast") -> DecodeSettings:
    """Return the settings of a decoder process. ``deadline``: seconds for one clip."""
    return DecodeSettings(spec.frames, spec.size, deadline, check, crop=spec.crop, decoder=decoder_kind(spec))


def clip_span(part: FilePart, spec: CacheSpec) -> Span:
    """Return the span of a clip that is aligned already: see :func:`align_spans`."""
    return sampled_span(Span(part.start, part.end, part.first, part.last, part.fps, part.region, part.ignore), spec)


def sampled_span(span: Span, spec: CacheSpec) -> Span:
    """Return the span with its way of sampling: with ``--align group``, the same moments in all views."""
    return replace(span, common=spec.align == "group" and None not in (span.start, span.end))


def can_align(span: Span) -> bool:
    """Return False for a clip that is given in frames."""
    return span.first is None and span.last is None


def align_spans(spans: Sequence[Span], offsets: Sequence[float], extents: Sequence[Extent | None]) -> list[Span] | None:
    """Return the spans of one group, reduced to the time that all views share; None if they share none.

    ``offsets``: start of each file in seconds after time zero of the performance. ``extents``: of each file; a file without one
    (None) and a clip that is given in frames do not change, and do not limit the other views.
    """
    timed = [
        (span, offset, extent)
        for span, offset, extent in zip(spans, offsets, extents, strict=True)
        if extent is not None and can_align(span)
    ]
    if len(spans) < 2 or not timed:
        return list(spans)
    start = max(max(span.start or 0.0, begin) + offset for span, offset, (begin, _) in timed)
    end = min(min(stop if span.end is None else span.end, stop) + offset for span, offset, (_, stop) in timed)
    if end - start < MIN_SECONDS:
        return None
    return [
        replace(span, start=round(max(0.0, start - offset), 6), end=round(end - offset, 6))
        if extent is not None and can_align(span)
        else span
        for span, offset, extent in zip(spans, offsets, extents, strict=True)
    ]


def read_extents(decoder: Decoder, requests: Sequence[DecodeRequest]) -> list[Extent | VideoError | None]:
    """Return the extent of each file, an error, or None for a picture folder without a frame rate."""
    asked = [replace(request, extent_only=True) for request in requests]
    return [
        item
        if isinstance(item, VideoError)
        else (item[1]["extent"][0], stop)
        if (stop := item[1]["extent"][1])
        else None
        for item in decode_all(decoder, asked)
    ]


def embed_clips(
    decoders: Sequence[Decoder], requests: list[DecodeRequest], spec: CacheSpec, load: Callable[[], Encoder]
) -> Iterator[Row | VideoError]:
    """Decode and embed clips, in order: a row for each, or the reason why there is none.

    ``decoders``: of :func:`decode_settings`. They start before ``load`` loads the encoder.
    """
    items = decode_parallel(decoders, requests)
    encoder = load()
    batch_size = CLIPS_PER_BATCH if encoder.device == "cuda" else 1
    for item, cells_FPC in embed_batched(items, encoder.embed, batch_size):
        if isinstance(item, VideoError) or cells_FPC is None:
            yield item
        else:
            yield Row(item[0], cells_FPC.astype(spec.embedding_dtype, copy=False), item[1])


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
