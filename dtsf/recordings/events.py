"""Marks of annotation tools: which action, from when to when, in which recording.

:mod:`dtsf.recordings.formats` reads a file of marks. Here each gets its recording and its time on the recording's
clock, whose zero is where the offsets of cameras begin. A tool that names the video it showed counts from that video's beginning.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np

from dtsf.errors import DataError
from dtsf.pipeline.video.decode import probe
from dtsf.recordings.formats import Mark, read_marks
from dtsf.recordings.table import Camera, Recording, chapters


@dataclass(frozen=True)
class Event:
    """A mark in seconds of the recording's clock. ``line``: its line, or its number where a file has no lines. ``place``: file and
    line, for messages. ``subject``: as the file of marks says, else that of the recording.
    """

    recording: str
    start: float
    stop: float
    label: str
    subject: str | None
    line: int
    place: str


def read_events(path: Path, recordings: Sequence[Recording], tier: Sequence[str] = ()) -> tuple[list[Event], list[str]]:
    """Return the marks of a file, in the order of the file, and notes for the user. The content shows the format.

    ``recordings``: those that it may mean. ``tier``: names of the tiers or tracks to use, all if empty. Raises DataError with the
    line: the file has no known form, a cell is wrong, or a mark may mean several recordings.
    """
    marks, notes = read_marks(path, tier)
    events = []
    unknown: dict[str, str] = {}
    shifted: Counter[str] = Counter()
    for mark in marks:
        recording = _recording_of(mark, path, recordings)
        if recording is None:
            unknown.setdefault(mark.recording, mark.place)
            continue
        camera, chapter = _camera_of(mark, recording)
        start, stop = mark.start, mark.stop
        if mark.frames:
            if camera is None:
                raise DataError(
                    f"{mark.place}: frames of {', '.join(mark.media) or 'no video'}, which is no camera of "
                    f"{recording.name!r}: correct the path in the table of recordings"
                )
            times = _frame_seconds(camera.paths[chapter])
            start, stop = (times[min(max(0, int(number)), len(times) - 1)] for number in (start, stop))
        if camera is not None:
            begin = chapters(camera)[chapter].start if chapter else camera.offset or 0.0
            shift = begin + mark.origin
            start, stop = start + shift, stop + shift
            if shift:
                shifted[f"{camera.paths[chapter]} ({shift:+g} s)"] += 1
        label, subject = mark.label, mark.subject or recording.subject
        events.append(Event(recording.name, round(start, 6), round(stop, 6), label, subject, mark.line, mark.place))
    if unknown and not events:
        names = ", ".join(one.name for one in recordings)
        name, place = next(iter(unknown.items()))
        raise DataError(f"{place}: there is no recording {name!r}; the table of recordings has {names}")
    notes += [
        f"{place}: the table has no recording {name!r}; its marks are left out" for name, place in unknown.items()
    ]
    notes += [f"{path}: {count} marks count from the beginning of {name}" for name, count in shifted.items()]
    return events, notes


def read_all_events(
    recordings: Sequence[Recording], files: Sequence[Path] = (), tier: Sequence[str] = ()
) -> tuple[list[Event], list[str]]:
    """Return the marks of all recordings, by recording and time: from ``files``, else from the table's column ``events``.

    Raises DataError: there is no file of marks, or see :func:`read_events`.
    """
    owners: dict[Path, list[Recording]] = {path: list(recordings) for path in files}
    for recording in recordings:
        if not files and recording.events is not None:
            owners.setdefault(recording.events, []).append(recording)
    if not owners:
        raise DataError("there are no marks: name a file of marks, or add the column events to the table of recordings")
    read = [read_events(path, of_file, tier) for path, of_file in owners.items()]
    order = {recording.name: k for k, recording in enumerate(recordings)}
    events = sorted((e for part, _ in read for e in part), key=lambda e: (order[e.recording], e.start, e.stop, e.label))
    kept: dict[tuple[object, ...], Event] = {}
    notes = [note for _, part in read for note in part]
    for event in events:
        first = kept.setdefault((event.recording, event.start, event.stop, event.label, event.subject), event)
        if first is not event:
            notes.append(f"{event.place}: the same mark as {first.place}; it counts once")
    return list(kept.values()), notes


def _recording_of(mark: Mark, path: Path, recordings: Sequence[Recording]) -> Recording | None:
    """Return the recording that a mark means, or None if it has a name that the table lacks."""
    by_name = [one for one in recordings if one.name == mark.recording]
    if by_name:
        return by_name[0]
    real = os.path.realpath(path)
    videos = {one.name: [video for camera in one.cameras for video in camera.paths] for one in recordings}
    alike = {
        name: max((_common(video, media) for media in mark.media for video in paths), default=0)
        for name, paths in videos.items()
    }
    most = max(alike.values(), default=0)
    stem = path.stem.casefold()
    rules: tuple[Callable[[Recording], bool], ...] = (
        lambda one: most > 0 and alike[one.name] == most,
        lambda one: one.events is not None and os.path.realpath(one.events) == real,
        lambda one: stem == one.name.casefold() or stem in (video.stem.casefold() for video in videos[one.name]),
        lambda one: path.parent.name.casefold() == one.name.casefold(),
        lambda one: not mark.exact,
    )
    for rule in rules:
        found = [one for one in recordings if rule(one)]
        if len(found) == 1:
            return found[0]
        # A name such as cam1.mp4 may be in each recording: the next rule chooses among them.
        recordings = found or recordings
    if mark.exact:
        return None
    names = ", ".join(one.name for one in recordings[:5])
    raise DataError(
        f"{mark.place}: it may mean {len(recordings)} recordings ({names}, ...): add a column recording to the marks, or the "
        "column events to the table of recordings"
    )


def _camera_of(mark: Mark, recording: Recording) -> tuple[Camera | None, int]:
    """Return the camera, and the number of its chapter, whose beginning is the zero of a mark. None: that of the recording."""
    for name in mark.media:
        alike = {(c, k): _common(video, name) for c in recording.cameras for k, video in enumerate(c.paths)}
        best = max(alike.values())
        found = [place for place, n in alike.items() if n == best > 0]
        if len(found) == 1:
            return found[0]
    if mark.frames and len(recording.cameras) == 1 and len(recording.cameras[0].paths) == 1:
        return recording.cameras[0], 0
    return None, 0


def _common(video: Path, name: str) -> int:
    """Return how many last parts a file has in common with a tool's path of it, which may be from another machine."""
    parts = PurePosixPath(name.replace("\\", "/").casefold()).parts[::-1]
    own = [part.casefold() for part in video.parts[::-1]]
    return next(
        (k for k, pair in enumerate(zip(own, parts, strict=False)) if pair[0] != pair[1]), min(len(own), len(parts))
    )


@lru_cache(maxsize=64)
def _frame_seconds(path: Path) -> np.ndarray:
    """Return (frames + 1,) the time of each frame of a file, and the end of the last one."""
    index = probe(path)
    return np.append(index.ticks * float(index.tick), index.duration)
