"""Align views in time (``--align group``): sample all views of a performance at the same times, when all cameras were filming.

Time t of a performance is time t - ``offset`` of a camera's file. Cameras that started together have no offset. The common time
becomes ``start`` and ``end`` of the clips, so that later steps see an ordinary part of a file.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from dtsf.errors import VideoError
from dtsf.pipeline.source import FileStat, file_stat
from dtsf.pipeline.video.clip import Span
from dtsf.pipeline.video.decoder_process import Decoder, DecodeRequest, DecodeSettings, decode_all

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dtsf.cache.schema import ClipRecord
    from dtsf.pipeline.datasets.catalog import SourceCatalog

MIN_SECONDS = 1e-3
"""Shortest common time, in seconds."""


def align_groups(catalog: SourceCatalog, records: Iterable[ClipRecord], deadline: float) -> SourceCatalog:
    """Return the catalog with the time common to all views of a group as ``start`` and ``end`` of its clips.

    Clips in unreadable files and clips given in frames do not change, and do not limit the other views. If the views of a group
    have no common time, their ``start`` is the end of their file, so that they are listed as unreadable.

    ``records``: results of earlier runs; unchanged files in them are not opened. ``deadline``: seconds to read one file.
    """
    groups = [clips for clips in catalog.groups.values() if len(clips) > 1]
    sources = ((record.source, record.duration) for record in records)
    known = {(s.path, FileStat(s.bytes, s.mtime_ns, s.listing)): duration for s, duration in sources}
    # Duration in seconds of each readable file, by path.
    durations: dict[str, float] = {}
    unknown: dict[str, DecodeRequest] = {}
    for clip in (clip for clips in groups for clip in clips):
        with contextlib.suppress(OSError):
            duration = known.get((clip.path, file_stat(catalog.root / clip.path)))
            if duration:
                durations[clip.path] = duration
            else:
                unknown[clip.path] = DecodeRequest(catalog.root / clip.path, Span(fps=clip.fps), duration_only=True)
    if unknown:
        with Decoder(DecodeSettings(1, 32, deadline=deadline)) as decoder:
            for path, item in zip(unknown, decode_all(decoder, list(unknown.values())), strict=True):
                if not isinstance(item, VideoError) and item[1]["duration"]:
                    durations[path] = item[1]["duration"]
    parts: dict[str, dict[str, float]] = {}
    n_apart = 0
    for clips in groups:
        timed = [c for c in clips if durations.get(c.path) and c.first is None and c.last is None]
        if not timed:
            continue
        start = max((c.start or 0.0) + c.offset for c in timed)
        end = min(min(c.end or durations[c.path], durations[c.path]) + c.offset for c in timed)
        overlap = end - start >= MIN_SECONDS
        n_apart += not overlap
        for c in timed:
            if overlap:
                parts[c.id] = {"start": round(max(0.0, start - c.offset), 6), "end": round(end - c.offset, 6)}
            else:
                parts[c.id] = {"start": durations[c.path], "end": durations[c.path] + 1.0}
    aligned = tuple(clip.model_copy(update=parts.get(clip.id, {})) for clip in catalog.clips)
    note = f"{n_apart} performances have views without a common time: not used with --align group"
    return catalog.model_copy(update={"clips": aligned, "notes": (*catalog.notes, *([note] if n_apart else []))})
