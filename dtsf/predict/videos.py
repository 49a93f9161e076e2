"""The videos of one performance as rows of the cache that a run was trained from.

Letters: V views, F frames, P cells, C channels.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from dtsf.errors import ConfigError, DataError, VideoError
from dtsf.names import counted, user_path
from dtsf.predict.views import trained_region

if TYPE_CHECKING:
    import numpy as np

    from dtsf.cache.schema import Box, CacheSpec, DatasetInfo
    from dtsf.pipeline.rows import Row
    from dtsf.pipeline.video.clip import Span
    from dtsf.pipeline.video.decoder_process import Decoder

logger = logging.getLogger(__name__)

DEADLINE = 60.0  # maximum time to decode one video, in seconds
LATE = 0.5  # seconds that --end may be behind the end of a file without a remark
MAX_VIEWS, MAX_BYTES = 64, 1 << 32  # videos, and bytes of one; an external run may request any size
Seconds = float | str | Sequence[float | str | None] | None


class VideoOptions(TypedDict, total=False):
    """Used part of each video: one value for all videos, or a sequence with one for each. Texts are as in a manifest.

    ``start``, ``end``: part of the file in seconds; default: the whole file. ``offset``: seconds that the file begins after time
    zero of the performance, for a run that was trained with ``--align group``; default: that of its view in the training clips.
    ``fps``: frame rate of a frame folder. ``region``: part of the picture; default: that of its view in the training clips.
    ``ignore``: parts of the picture in which no movement is searched; default: likewise. ``encoder_weights``: file of the
    encoder's weights, required if the run was trained with custom weights. ``deadline``: maximum seconds to decode one video,
    60 by default.
    """

    start: Seconds
    end: Seconds
    offset: Seconds
    fps: Seconds
    region: str | Box | Sequence[str | Box | None]
    ignore: str | Sequence[str | Sequence[Box]]
    encoder_weights: str | Path | None
    deadline: float | None


@dataclass(frozen=True)
class EmbeddedVideos:
    """Rows of the opened videos, the span of each video, and what must be said about them."""

    rows: tuple[Row, ...]
    opened: tuple[int, ...]
    """Number of the video of each row, from 0, in the order of opening."""
    spans: tuple[Span, ...]
    notes: tuple[str, ...]

    @property
    def embeddings_VFPC(self) -> np.ndarray:
        """Embeddings of the opened videos."""
        import numpy as np

        return np.stack([row.embedding_FPC for row in self.rows])


def embed_videos(
    videos: Sequence[str | Path],
    numbers: Sequence[int],
    info: DatasetInfo,
    spec: CacheSpec,
    options: VideoOptions,
    threads: int = 1,
    *,
    order: Sequence[int] = (),
    enough: Callable[[list[int], list[Row]], bool] | None = None,
) -> EmbeddedVideos:
    """Decode and embed one video per view, as the clips of the training. ``numbers``: their views, from 0.

    ``enough``: called with the videos opened so far, in the order ``order``, and their rows. True leaves the rest unopened.
    Raises VideoError: a video cannot be used. Raises ConfigError: a wrong option, or another encoder than that of the training.
    """
    import torch

    from dtsf.pipeline.encoders.choose import open_encoder
    from dtsf.pipeline.rows import decode_settings, embed_clips
    from dtsf.pipeline.video.decode import decoder_name
    from dtsf.pipeline.video.decoder_process import DecodeRequest, shared_decoders

    paths = [Path(video) for video in videos]
    given = video_spans(paths, numbers, info, spec, options)
    offsets, notes = _offsets(paths, numbers, info, spec, options)
    torch.set_num_threads(threads)
    n_bytes = spec.frames * max(spec.size**2 * 3, spec.grid**2 * spec.channels * 4)
    if n_bytes > MAX_BYTES:
        size = f"{spec.frames} frames of {spec.size} px with {spec.grid} x {spec.grid} cells x {spec.channels} channels"
        raise ConfigError(f"{size} need {n_bytes} bytes a video, more than {MAX_BYTES}: train with a smaller input")
    encoder = open_encoder(spec, options.get("encoder_weights"))
    found = encoder.identity.channels
    if found != spec.channels:
        raise ConfigError(f"the encoder {spec.encoder} has {found} channels, the run {spec.channels}")
    settings = decode_settings(spec, options.get("deadline") or DEADLINE)
    if (own := decoder_name(settings.decoder)) != spec.decoder:
        notes.append(f"the training clips were decoded by {spec.decoder}, these by {own}: pictures may differ a little")
    logger.info("encoder %s, weights %s", spec.encoder, spec.weights_hash)
    rows: list[Row] = []
    opened: list[int] = []
    # Without ``enough``, the next video is decoded while this one is embedded.
    turns = [[k] for k in order] if enough is not None else [list(range(len(paths)))]
    # A process decodes, so that a broken video cannot end a program that watches a folder. It stays for the next performance.
    with shared_decoders(settings) as decoders:
        spans = _align(decoders[0], paths, given, offsets) if spec.align == "group" else given
        requests = [DecodeRequest(path.absolute(), span) for path, span in zip(paths, spans, strict=True)]
        for turn in turns:
            wanted = [requests[k] for k in turn]
            for k, item in zip(turn, embed_clips(decoders, wanted, spec, lambda: encoder), strict=True):
                if isinstance(item, VideoError):
                    raise item
                rows.append(item)
                opened.append(k)
                logger.info("%s: %d frames", paths[k], item.facts["decoded_frames"])
            if enough is not None and enough(opened, rows):
                break
    shown = [(paths[k], given[k]) for k in opened]
    remarks = _remarks([path for path, _ in shown], [span for _, span in shown], rows)
    return EmbeddedVideos(tuple(rows), tuple(opened), tuple(spans), (*notes, *remarks))


def check_videos(videos: Sequence[str | Path]) -> list[Path]:
    """Return the paths of the videos. Raises DataError: none, or too many. Raises VideoError: one does not exist."""
    paths = [user_path(video) for video in videos]
    if not 1 <= len(paths) <= MAX_VIEWS:
        raise DataError(f"{len(paths) or 'no'} videos given: give 1 to {MAX_VIEWS}, one file per view")
    for path in paths:
        if not path.exists():
            raise VideoError(f"{path} does not exist")
        if not path.is_file() and not path.is_dir():
            raise VideoError(f"{path} is a pipe, socket or device: give a regular file")
        if path.is_file() and not path.stat().st_size:
            raise VideoError(f"{path} has 0 bytes, as an empty file or one of /proc: give a video")
    return paths


def _remarks(videos: Sequence[Path], spans: Sequence[Span], rows: Sequence[Row]) -> Iterator[str]:
    """Yield what must be said about the decoded videos: a late end, few frames, damage, and one recording as two views."""
    first: dict[str, int] = {}
    for k, (video, span, row) in enumerate(zip(videos, spans, rows, strict=True)):
        stop = row.facts["begin"] + row.facts["duration"]
        if span.end is not None and row.facts["duration"] and span.end > stop + LATE:
            yield f"{video} ends at {stop:.1f} s, before --end {span.end:g}: the rest is used"
        if row.facts["reason"]:
            yield f"{video}: {row.facts['reason']}"
        if damaged := row.facts["damaged"]:
            yield f"{video} is damaged from {damaged[0]:.1f} to {damaged[1]:.1f} s: copy it again, or look at the film there"
        other = first.setdefault(row.facts["frames_hash"], k)
        if other != k:
            yield f"{videos[other]} and {video} show the same pictures: one recording is taken as two views"


def video_spans(
    videos: Sequence[Path], numbers: Sequence[int], info: DatasetInfo, spec: CacheSpec, options: VideoOptions
) -> list[Span]:
    """Return the part of each video: as given, else its region as in the training clips of its view.

    Raises ConfigError: a wrong box, or none although the training clips of a view have different ones.
    """
    from dtsf.pipeline.datasets.manifest import NUMBER, SECONDS
    from dtsf.pipeline.settings import read_boxes, read_region
    from dtsf.pipeline.video.clip import Span

    starts = _seconds("--start", options.get("start"), videos, SECONDS)
    ends = _seconds("--end", options.get("end"), videos, SECONDS)
    rates = _seconds("--fps", options.get("fps"), videos, NUMBER)
    region, ignore = options.get("region") or (), options.get("ignore") or ()
    if isinstance(region, tuple) and all(isinstance(number, int | float) for number in region):
        region = [region] if region else []
    regions = _per_video("--region", region, len(videos), read_region)
    ignored = _per_video("--ignore", ignore, len(videos), read_boxes)
    if spec.crop == "centre" and any(ignored):
        raise ConfigError("--ignore has no effect, because the run was trained with --crop centre: leave it out")
    spans = []
    for k, (video, number, start, end, fps) in enumerate(zip(videos, numbers, starts, ends, rates, strict=True)):
        if end is not None and end <= (start or 0.0):
            raise ConfigError(f"{video}: --end {end:g} must be after --start {start or 0:g}")
        if fps is not None and fps <= 0:
            raise ConfigError(f"{video}: --fps {fps:g} must be above 0")
        hint = "" if regions or ignored else 'give --region ("0 0 1 1" is the whole picture)'
        region_, ignore_ = trained_region(info, number, hint)
        box, boxes = regions[k] if regions else region_, ignored[k] if ignored else ignore_
        spans.append(Span(start, end, fps=fps, region=box, ignore=tuple(boxes or ())))
    return spans


def _offsets(
    videos: Sequence[Path], numbers: Sequence[int], info: DatasetInfo, spec: CacheSpec, options: VideoOptions
) -> tuple[list[float], list[str]]:
    """Return the offset of each video, and what must be said about it."""
    from dtsf.pipeline.datasets.manifest import NUMBER

    given = _seconds("--offset", options.get("offset"), videos, NUMBER)
    offsets = [offset or 0.0 for offset in given]
    if spec.align == "own":
        if any(offsets):
            raise ConfigError(
                "--offset has no effect, because the run was trained with --align own: leave it out, or preprocess with "
                "--align group and train again"
            )
        return offsets, []
    if len(videos) == 1:
        note = "the run was trained with --align group, on the time that all views share; this is the time of one video alone"
        return offsets, [] if options.get("start") or options.get("end") else [note]
    if any(offset is not None for offset in given):
        return offsets, []
    trained = (
        [info.view_offsets[n] if n < len(info.view_offsets) else None for n in numbers]
        if info.view_offsets
        else offsets
    )
    if None in trained:
        raise ConfigError(
            "the run was trained on views that are aligned by their offsets: give --offset for each video (seconds that it begins "
            "after time zero of the performance; 0 for all if they begin together)"
        )
    known = [offset or 0.0 for offset in trained]
    how = (
        "as if they begin together" if not any(known) else f"with the offsets of the training clips ({_list(known)} s)"
    )
    return known, [f"the videos are read at the same moments, {how}: --offset gives other ones"]


def _align(decoder: Decoder, videos: Sequence[Path], spans: Sequence[Span], offsets: Sequence[float]) -> list[Span]:
    from dtsf.pipeline.rows import align_spans, read_extents
    from dtsf.pipeline.video.decoder_process import DecodeRequest

    if len(videos) < 2:
        return list(spans)
    requests = [DecodeRequest(video.absolute(), span) for video, span in zip(videos, spans, strict=True)]
    extents = read_extents(decoder, requests)
    for extent in extents:
        if isinstance(extent, VideoError):
            raise extent
    known = [extent for extent in extents if not isinstance(extent, VideoError)]
    aligned = align_spans(spans, offsets, known)
    if aligned is None:
        raise VideoError(
            f"{', '.join(map(str, videos))} have no common time with the offsets {_list(offsets)} s: check --offset, --start and "
            "--end"
        )
    return aligned


def _list(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def _seconds(name: str, values: Seconds, videos: Sequence[Path], kind: tuple[str, str]) -> list[float | None]:
    """Return the number of each video, or None. ``kind``: as for :func:`~dtsf.pipeline.datasets.manifest.read_number`."""
    from dtsf.pipeline.datasets.manifest import NUMBER, read_number

    def read(value: float | str | None) -> float | None:
        if value is None or isinstance(value, str):
            number = read_number({name: (value or "").strip()}, name, "predict", kind)
        else:
            number = float(value)
        if number is not None and not (math.isfinite(number) and (kind is NUMBER or number >= 0)):
            raise ValueError(f"must be {kind[1]}, not {str(value)[:40]}")
        return number

    given = [values] if values is None or isinstance(values, str | int | float) else values
    return _per_video(name, given, len(videos), read) or [None] * len(videos)


def _per_video(option: str, values: str | Sequence[Any], n_videos: int, read: Callable[[Any], Any]) -> list[Any]:
    """Return the value of each video: one for all, or one for each. Empty if there is none."""
    values = [values] if isinstance(values, str) else values
    if len(values) not in (0, 1, n_videos):
        # Wrong data: with --watch, another performance may have another number of videos.
        raise DataError(
            f"{option}: {len(values)} given for {counted(n_videos, 'video')}: give one for all or one for each"
        )
    try:
        return [read(value) for value in values] * (n_videos if len(values) == 1 else 1)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{option} {error}") from error
