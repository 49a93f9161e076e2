"""Marks -> manifest: the clips of each event in each camera, and clips of the class ``nothing`` from the gaps between events."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dtsf.errors import ConfigError, DataError, VideoError
from dtsf.names import counted
from dtsf.pipeline.datasets.import_lists import write_manifest
from dtsf.pipeline.video.container import open_video
from dtsf.recordings.events import NOTHING, Event, read_all_events
from dtsf.recordings.movements import LONGEST, find_movements, rest_level, strength
from dtsf.recordings.settings import ClipSettings
from dtsf.recordings.table import Chapter, Recording, chapters, check_offsets, read_recordings
from dtsf.recordings.tracks import RATE, read_track
from dtsf.settings import Frozen

COLUMNS = ("path", "label", "group", "view", "subject", "start", "end", "offset")
COMMON = 0.5  # share of a recording that all cameras must film, so that clips of nothing are of this time alone
COVERED = 0.9  # share of an event that a camera must have filmed
GOLDEN = 0.6180339887498949


class ImportedEvents(Frozen):
    """Result of :func:`import_events`. ``events``: those with clips. ``nothing``: clips of this class, in number of groups.
    ``left_out``: a line for each event without a clip. ``overlaps``: a line for each that begins before another ends.
    ``labels``: groups by class.
    """

    manifest: str
    recordings: int
    events: int
    nothing: int
    rows: int
    labels: dict[str, int]
    left_out: tuple[str, ...]
    overlaps: tuple[str, ...]
    notes: tuple[str, ...]


def import_events(
    files: Sequence[str | Path],
    recordings: str | Path,
    out: str | Path | None = None,
    settings: ClipSettings | None = None,
) -> ImportedEvents:
    """Write the manifest of the clips of all events, one group an event.

    ``files``: marks; empty: those of the table's column ``events``. ``recordings``: the table of recordings. ``out``: by default
    ``manifest.csv`` beside it. Raises DataError: a camera has no offset, marks cannot be read, or no event has a clip.
    """
    settings, recordings = settings or ClipSettings(), Path(recordings)
    out = Path(out) if out else recordings.parent / "manifest.csv"
    if out.exists():
        raise DataError(f"{out} exists: remove it or choose another --out")
    table = read_recordings(recordings)
    for recording in table:
        check_offsets(recording, recordings)
    events, notes = read_all_events(table, [*map(Path, files)], settings.tier, settings.fps)
    by_recording: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        by_recording[event.recording].append(event)
    films = {one.name: _Film(one) for one in table if one.name in by_recording}
    rows: list[dict[str, str]] = []
    left_out: list[str] = []
    overlaps: list[str] = []
    used: dict[str, list[Event]] = {}
    for name, film in films.items():
        used[name] = []
        if film.stop <= film.start:
            notes.append(
                f"the cameras of {name!r} share no time: check the offsets (dtsf sync --recordings {recordings})"
            )
        if (settings.nothing_seconds or film.frame) < film.frame:
            raise ConfigError(
                f"--nothing-seconds {settings.nothing_seconds:g} is less than a frame of {name!r} ({film.frame:.3f} s)"
            )
        overlaps += _overlaps(by_recording[name], film.frame)
        for event in by_recording[name]:
            made, reason = film.clips(event, out)
            rows += made
            if made:
                used[name].append(event)
            if reason:
                (notes if made else left_out).append(f"{event.place}: {event.label!r} {reason}")
    n_events = sum(map(len, used.values()))
    if not n_events:
        raise DataError(f"no clip for {counted(len(events), 'event')}; the first: {left_out[0]}")
    acts = {name: [event for event in of_film if event.label != NOTHING] for name, of_film in used.items()}
    lengths = np.sort([event.stop - event.start for of_film in acts.values() for event in of_film])
    n_nothing = wanted = 0
    for name, film in films.items():
        count = round(settings.nothing * len(acts[name]))
        for event in film.nothing(by_recording[name], count, lengths, settings):
            made, _ = film.clips(event, out)
            rows += made
            n_nothing += bool(made)
        wanted += count
    if n_nothing < wanted:
        notes.append(
            f"{counted(n_nothing, 'clip')} of {NOTHING} between the events, not {wanted}: all movements there that fit, and pauses"
        )
    without = [one.name for one in table if one.name not in by_recording]
    if without:
        notes.append(f"{counted(len(without), 'recording has', 'recordings have')} no mark: {', '.join(without[:10])}")
    write_manifest(out, COLUMNS, rows)
    labels = Counter(row["label"] for row in {row["group"]: row for row in rows}.values())
    return ImportedEvents(
        manifest=str(out),
        recordings=len(films),
        events=n_events,
        nothing=n_nothing,
        rows=len(rows),
        labels=dict(sorted(labels.items())),
        left_out=tuple(left_out),
        overlaps=tuple(overlaps),
        notes=tuple(notes),
    )


class _Film:
    """The files of one recording with their times on its clock."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.cameras = {camera.view: chapters(camera) for camera in recording.cameras}
        self.frame = max(_frame_seconds(path) for camera in recording.cameras for path in camera.paths)
        # The time that all cameras film, and that one of them films.
        self.start = max(parts[0].start for parts in self.cameras.values())
        self.stop = min(parts[-1].stop for parts in self.cameras.values())
        self.begin = min(parts[0].start for parts in self.cameras.values())
        self.end = max(parts[-1].stop for parts in self.cameras.values())
        self.names: Counter[str] = Counter()

    def clips(self, event: Event, out: Path) -> tuple[list[dict[str, str]], str]:
        """Return the rows of an event, one for each camera that filmed it, and the reason why cameras or all of it are missing."""
        span = f"({event.start:g} to {event.stop:g} s)"
        if event.stop < event.start:
            return [], f"{span} stops before it starts"
        if event.stop - event.start < self.frame:
            return [], f"{span} is shorter than a frame ({self.frame:.3f} s)"
        found = {view: _chapter(parts, event) for view, parts in self.cameras.items()}
        absent = [view for view, part in found.items() if part is None]
        if len(absent) == len(found):
            inside = self.begin <= event.start and event.stop <= self.end
            where = "where no single file has all of it" if inside else "outside of its recording"
            return [], f"{span} lies {where} ({self.begin:g} to {self.end:g} s)"
        group = f"{self.recording.name}_{event.start:.2f}-{event.stop:.2f}"
        self.names[group] += 1
        group += f"_{self.names[group]}" if self.names[group] > 1 else ""
        rows = []
        for view, part in found.items():
            if part is None:
                continue
            start, stop = max(event.start, part.start) - part.start, min(event.stop, part.stop) - part.start
            base = out.parent.absolute()
            path = part.path.relative_to(base) if part.path.is_relative_to(base) else part.path
            cells = (str(path), event.label, group, view, self.recording.subject or event.subject or "")
            times = (f"{number:.6f}".rstrip("0").rstrip(".") for number in (start, stop, part.start))
            rows.append(dict(zip(COLUMNS, (*cells, *times), strict=True)))
        return rows, f"is not filmed by camera {', '.join(absent)}, only by the others" if absent else ""

    def nothing(self, events: Sequence[Event], count: int, lengths: np.ndarray, settings: ClipSettings) -> list[Event]:
        """Return at most ``count`` marks of nothing from the gaps: first what moves there from rest to rest, then pauses.

        ``lengths``: sorted lengths of all events: the marks of pauses are as long, so that length tells nothing.
        """
        if not (count and len(lengths)):
            return []
        start, stop = self.start, self.stop
        if stop - start < COMMON * (self.end - self.begin):
            # A camera that ended early, or began late, does not take the pauses of the others.
            start, stop = self.begin, self.end
        if settings.nothing_from == "between":
            start, stop = max(start, events[0].start), min(stop, max(event.stop for event in events))
        margin = settings.nothing_margin
        busy = [(event.start - margin, event.stop + margin) for event in events]
        free = gaps(busy, start, stop)
        moved = [] if settings.nothing_seconds else self.movements(lengths)
        moved = [one for one in moved if any(low <= one[0] and one[1] <= high for low, high in free)]
        spans = evenly(moved, count)
        still = gaps(sorted(busy + [(low - margin, high + margin) for low, high in moved]), start, stop)
        shortest = settings.nothing_seconds or float(np.quantile(lengths, 0.1))
        pauses: list[tuple[float, float]] = []
        for low, high in still:
            time = low
            while high - time >= shortest:
                share = (GOLDEN * (len(pauses) + 1)) % 1
                length = settings.nothing_seconds or min(float(np.quantile(lengths, share)), high - time)
                pauses.append((time, time + length))
                time += length
        # A pause is unlike every event, another movement is not: more pauses would hide the movements.
        spans += evenly(pauses, min(count - len(spans), max(len(spans), count // 4) if spans else count))
        # One person with every name that acts in the recording: it is not split between training and test.
        subject = "+".join(sorted({event.subject for event in events if event.subject})) or None
        name = self.recording.name
        return [Event(name, round(a, 3), round(b, 3), NOTHING, subject, 0, NOTHING) for a, b in sorted(spans)]

    def movements(self, lengths: np.ndarray) -> list[tuple[float, float]]:
        """Return what moves from rest to rest, and is as long as an event can be, in seconds of the recording's clock."""
        usual = float(np.median(lengths)) * RATE
        origin = min(0, math.floor(self.begin * RATE))
        n_moments = math.ceil(self.end * RATE) - origin
        moved_VT = np.full((len(self.cameras), n_moments), np.nan)
        for row_T, (view, parts) in zip(moved_VT, self.cameras.items(), strict=True):
            camera = next(one for one in self.recording.cameras if one.view == view)
            try:
                moved_T = read_track(camera.paths, sound=False).moved
            except VideoError:
                continue  # too few pictures
            assert moved_T is not None
            first = round(parts[0].start * RATE) - origin
            row = slice(max(0, first), first + len(moved_T))
            row_T[row] = np.log(moved_T + 1e-3)[max(0, -first) : n_moments - first]
        level = rest_level(whole_T := strength(moved_VT), usual)
        found = [] if level is None else find_movements(whole_T, level, usual)
        low, high = lengths[0] / 2 * RATE, LONGEST * lengths[-1] * RATE
        return [((origin + a) / RATE, (origin + b) / RATE) for a, b in found if low <= b - a <= high]


def evenly(items: list[tuple[float, float]], count: int) -> list[tuple[float, float]]:
    """Return ``count`` items, evenly spread; all if there are fewer."""
    return items if count >= len(items) else [items[int((k + 0.5) * len(items) / count)] for k in range(count)]


def gaps(busy: Sequence[tuple[float, float]], start: float, stop: float) -> list[tuple[float, float]]:
    """Return the parts of ``start`` to ``stop`` that no interval of ``busy``, sorted by its start, covers."""
    found = []
    for low, high in busy:
        if low > start:
            found.append((start, min(low, stop)))
        start = max(start, high)
    return [(low, high) for low, high in (*found, (start, stop)) if high > low]


def _frame_seconds(path: Path) -> float:
    """Return the length of a frame by the header of a file; the chapters have read its packets."""
    with open_video(path) as container:
        rates = [float(stream.guessed_rate or stream.average_rate or 0) for stream in container.streams.video]
    return 1 / min((rate for rate in rates if rate > 0), default=25.0)


def _chapter(parts: Sequence[Chapter], event: Event) -> Chapter | None:
    """Return the file that has most of an event, if it has nearly all of it."""
    length = event.stop - event.start
    best = max(parts, key=lambda part: min(event.stop, part.stop) - max(event.start, part.start))
    return best if min(event.stop, best.stop) - max(event.start, best.start) >= COVERED * length else None


def _overlaps(events: Sequence[Event], frame: float) -> list[str]:
    """Return a line for each event that begins before another one ends, by more than a frame."""
    lines = []
    latest = events[0]
    for event in events[1:]:
        shared = min(latest.stop, event.stop) - event.start
        if shared > 1.5 * frame:
            lines.append(f"{event.place}: {event.label!r} overlaps {latest.label!r} ({latest.place}) by {shared:.2f} s")
        latest = max(latest, event, key=lambda one: one.stop)
    return lines
