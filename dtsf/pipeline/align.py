"""``--align group``: the frames of all views of a performance at the same moments, of the time that all of them filmed.

The moment t of a performance is t - ``offset`` in a camera's file: cameras that started together have no offset. The common time
becomes the clips' ``start`` and ``end``, so that everything behind takes them for what they are: a part of a file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dtsf.errors import VideoError
from dtsf.pipeline.source import file_stat
from dtsf.pipeline.video.clip import Span
from dtsf.pipeline.video.decoder_process import Decoder, DecodeRequest, DecodeSettings, decode_all

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from dtsf.cache.records import Clip, ClipRecord
    from dtsf.pipeline.catalog import Catalog

SHORTEST = 1e-3
"""Seconds of common time below which there is none."""


def align_groups(catalog: Catalog, records: Iterable[ClipRecord], deadline: float) -> Catalog:
    """The catalog with the time common to all views of each group as its clips' part of their files.

    A clip whose file cannot be read, or that is counted in frames, counts for no other, and is left as it is. Where views of
    a group have no time in common, their clips begin where their files end, and are listed as unreadable.

    ``records``: what was computed before: files that are as they were are not opened again. ``deadline``: seconds that reading
    one file's packets may take.
    """
    several = [clips for clips in catalog.groups.values() if len(clips) > 1]
    durations = _durations(catalog, [clip for clips in several for clip in clips], records, deadline)
    parts: dict[str, tuple[float, float]] = {}
    apart = 0
    for clips in several:
        timed = [c for c in clips if durations.get(c.path) and c.first is None and c.last is None]
        if not timed:
            continue
        begin = max((c.start or 0.0) + c.offset for c in timed)
        end = min(min(c.end or durations[c.path], durations[c.path]) + c.offset for c in timed)
        apart += end - begin < SHORTEST
        for c in timed:
            alone = (durations[c.path], durations[c.path] + 1.0)
            own = (round(max(0.0, begin - c.offset), 6), round(end - c.offset, 6))
            parts[c.id] = own if end - begin >= SHORTEST else alone
    aligned = [
        clip.model_copy(update=dict(zip(("start", "end"), parts[clip.id], strict=True))) if clip.id in parts else clip
        for clip in catalog.clips
    ]
    apart_note = f"{apart} performances have views that filmed no moment together: not used with --align group"
    notes = (*catalog.notes, *([apart_note] if apart else []))
    return catalog.model_copy(update={"clips": tuple(aligned), "notes": notes})


def _durations(
    catalog: Catalog, clips: Sequence[Clip], records: Iterable[ClipRecord], deadline: float
) -> Mapping[str, float]:
    """Seconds of presentation of every file, by path; none for one that cannot be read."""
    known = {(r.source.path, r.source.bytes, r.source.mtime_ns, r.source.listing): r.duration for r in records}
    found: dict[str, float] = {}
    unknown: dict[str, Clip] = {}
    for clip in clips:
        try:
            stat = file_stat(catalog.root / clip.path)
        except OSError:
            continue
        duration = known.get((clip.path, stat.bytes, stat.mtime_ns, stat.listing))
        if duration:
            found[clip.path] = duration
        else:
            unknown[clip.path] = clip
    if unknown:
        requests = [
            DecodeRequest(catalog.root / clip.path, Span(fps=clip.fps), duration_only=True) for clip in unknown.values()
        ]
        with Decoder(DecodeSettings(1, 32, deadline=deadline)) as decoder:
            for path, item in zip(unknown, decode_all(decoder, requests), strict=True):
                if not isinstance(item, VideoError) and item[1]["duration"]:
                    found[path] = item[1]["duration"]
    return found
