"""Marks of annotation tools: which action, from when to when, in which recording.

:mod:`dtsf.recordings.marks` and :mod:`dtsf.recordings.exports` read a file. Here each mark gets its recording and its time on
the recording's clock, whose zero is where the offsets of cameras begin. A tool that names the video it showed counts from that
video's beginning.
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
from dtsf.files.read import parse_json, read_file
from dtsf.names import counted, tidy
from dtsf.pipeline.datasets.tables import decode_text
from dtsf.pipeline.video.decode import probe
from dtsf.recordings.exports import is_task, parse_xml, read_cvat, read_eaf, read_label_studio
from dtsf.recordings.marks import (
    CUE,
    Mark,
    Marks,
    header_names,
    read_boris_aggregated,
    read_boris_tabular,
    read_cues,
    read_plain,
)
from dtsf.recordings.table import Recording, chapters

NOTHING = "nothing"
"""Class of pauses, and of movements that are no event."""
MAX_BYTES = 1 << 28
FORMS = (
    "give BORIS's events (tabular or aggregated, CSV or TSV), ELAN's .eaf, CVAT's XML, Label Studio's JSON, WebVTT, SRT, or a "
    "table with the columns start, stop, label and recording"
)

_Clock = tuple[Path | None, float]


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


def read_marks(path: Path, tier: Sequence[str] = (), fps: float | None = None) -> Marks:
    """Return the marks of a file, whose content shows the format, and notes. Raises DataError: see :func:`read_events`."""
    text, notes = decode_text(read_file(path, limit=MAX_BYTES, error=DataError, follow=True), str(path))
    where, head = str(path), text.lstrip("\ufeff \t\r\n")[:4096]
    names = header_names(text)
    if head.startswith(("<", "{", "[")):
        try:
            marks, more = _read_export(text, where, tier, fps)
        except (ValueError, TypeError, AttributeError, OverflowError) as error:
            raise DataError(f"{path} has a part of a wrong form ({error}): export it again") from error
    elif head.startswith("WEBVTT") or any(CUE.match(line.strip()) for line in head.splitlines()[:3]):
        marks, more = read_cues(text, where)
    elif "behavior" in names and {"start (s)", "stop (s)"} <= names:
        marks, more = read_boris_aggregated(text, where)
    elif "behavior" in names and {"time", "time (s)"} & names and {"behavior type", "status"} & names:
        marks, more = read_boris_tabular(text, where)
    else:
        marks, more = read_plain(text, where)
    if tier and not head.startswith("<"):
        more = [*more, f"{path}: --tier has no effect, because the file has no tiers"]
    if fps and not any(mark.frames for mark in marks):
        more = [*more, f"{path}: --fps has no effect, because the file counts no frames"]
    if not marks:
        raise DataError(f"{path} has no mark: export the events again, or give another file")
    return marks, [*notes, *more]


def _read_export(text: str, where: str, tier: Sequence[str], fps: float | None) -> Marks:
    if not text.lstrip("\ufeff \t\r\n").startswith("<"):
        tasks = parse_json(text, where, error=DataError)
        tasks = tasks if isinstance(tasks, list) else [tasks]
        if not all(map(is_task, tasks)):
            raise DataError(f"{where} is JSON, but no export of Label Studio: {FORMS}")
        return read_label_studio(tasks, where, fps)
    root = parse_xml(text, where)
    readers = {"ANNOTATION_DOCUMENT": read_eaf, "annotations": read_cvat}
    if root.tag not in readers:
        raise DataError(f"{where} is XML of another form (<{root.tag[:40]}>): {FORMS}")
    return readers[root.tag](root, where, tier)


def read_events(
    path: Path, recordings: Sequence[Recording], tier: Sequence[str] = (), fps: float | None = None
) -> tuple[list[Event], list[str]]:
    """Return the marks of a file, in the order of the file, and notes for the user.

    ``recordings``: those that it may mean. ``tier``: tiers of ELAN to use, or attributes of CVAT. ``fps``: frames a second that the
    tool counts, by default those of the video. Raises DataError with the line: the file has no known form, a cell is wrong, or a
    mark may mean several recordings.
    """
    marks, notes = read_marks(path, tier, fps)
    named = {mark.recording for mark in marks}
    several, of_table = len(named) > 1, not named.isdisjoint(one.name for one in recordings)
    events = []
    unknown: dict[str, str] = {}
    shifted: Counter[str] = Counter()
    renamed: Counter[str] = Counter()
    # Most marks of a file mean the same recording and the same video.
    owners: dict[tuple[object, ...], tuple[Recording | None, _Clock]] = {}
    for mark in marks:
        key = (mark.recording, mark.media, mark.origins, mark.exact, mark.frames)
        if key not in owners:
            by_name = mark.exact or (several and of_table)
            owner = _recording_of(mark, path, recordings, by_name=by_name, several=several)
            owners[key] = owner, (None, 0.0) if owner is None else _clock_of(mark, owner)
        recording, (video, begin) = owners[key]
        if recording is None:
            unknown.setdefault(mark.recording, mark.place)
            continue
        start, stop = mark.start, mark.stop
        if mark.frames:
            start, stop = _seconds_of_frames(mark, video, recording, fps)
        if begin:
            start, stop = start + begin, stop + begin
            shifted[f"{video} ({begin:+g} s)"] += 1
        label, subject = tidy(mark.label), tidy(mark.subject) or recording.subject
        if label.casefold() == NOTHING and label != NOTHING:
            renamed[label] += 1
            label = NOTHING
        if not label:
            raise DataError(f"{mark.place}: the label is empty: name the action, or remove the mark")
        events.append(Event(recording.name, round(start, 6), round(stop, 6), label, subject, mark.line, mark.place))
    if unknown and not events:
        names = ", ".join(one.name for one in recordings)
        name, place = next(iter(unknown.items()))
        raise DataError(f"{place}: there is no recording {name!r}; the table of recordings has {names}")
    notes += [
        f"{place}: the table has no recording {name!r}; its marks are left out" for name, place in unknown.items()
    ]
    notes += [f"{path}: {label!r} is read as the class {NOTHING}" for label in renamed]
    notes += [
        f"{path}: {counted(n, 'mark counts', 'marks count')} from the beginning of {name}"
        for name, n in shifted.items()
    ]
    return events, notes


def read_all_events(
    recordings: Sequence[Recording],
    files: Sequence[Path] = (),
    tier: Sequence[str] = (),
    fps: float | None = None,
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
    read = [read_events(path, of_file, tier, fps) for path, of_file in owners.items()]
    order = {recording.name: k for k, recording in enumerate(recordings)}
    events = sorted((e for part, _ in read for e in part), key=lambda e: (order[e.recording], e.start, e.stop, e.label))
    kept: dict[tuple[object, ...], Event] = {}
    notes = [note for _, part in read for note in part]
    for event in events:
        first = kept.setdefault((event.recording, event.start, event.stop, event.label, event.subject), event)
        if first is not event:
            notes.append(f"{event.place}: the same mark as {first.place}; it counts once")
    return list(kept.values()), notes


def _recording_of(
    mark: Mark, path: Path, recordings: Sequence[Recording], *, by_name: bool, several: bool
) -> Recording | None:
    """Return the recording that a mark means, or None if it has a name that the table lacks.

    ``by_name``: the file names recordings of the table. ``several``: it has marks of several recordings, so its place and its name
    say nothing.
    """
    named = next((one for one in recordings if one.name == mark.recording), None)
    if named is not None or by_name:
        return named
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
        lambda _: True,
    )
    for rule in rules[:1] if several else rules:
        found = [one for one in recordings if rule(one)]
        if len(found) == 1:
            return found[0]
        # A name such as cam1.mp4 may be in each recording: the next rule chooses among them.
        recordings = found or recordings
    if several and not most:
        return None
    names = ", ".join(one.name for one in recordings[:5])
    raise DataError(
        f"{mark.place}: it may mean {len(recordings)} recordings ({names}, ...): add a column recording to the marks, "
        "name their file as the recording, or add the column events to the table of recordings"
    )


def _clock_of(mark: Mark, recording: Recording) -> _Clock:
    """Return the video from whose beginning a mark counts, and this beginning on the recording's clock, which counts for None."""
    videos = [(camera, k) for camera in recording.cameras for k in range(len(camera.paths))]
    named = [(name, mark.origins[n] if mark.origins else 0.0) for n, name in enumerate(mark.media)]
    if mark.frames and len(videos) == 1:
        named.append((str(recording.cameras[0].paths[0]), 0.0))
    for name, origin in named:
        alike = {(camera, k): _common(camera.paths[k], name) for camera, k in videos}
        best = max(alike.values())
        found = [video for video, n in alike.items() if n == best > 0]
        if len(found) == 1:
            camera, k = found[0]
            begin = chapters(camera)[k].start if k else camera.offset or 0.0
            return camera.paths[k], round(begin + origin, 6)
    return None, 0.0


def _seconds_of_frames(mark: Mark, video: Path | None, recording: Recording, fps: float | None) -> tuple[float, float]:
    if video is None:
        names = ", ".join(mark.media) or "a video without a name"
        raise DataError(
            f"{mark.place}: it counts the frames of {names}, which is no camera of {recording.name!r}: correct the path in the "
            "table of recordings"
        )
    rate = fps or mark.rate
    if rate:
        return mark.start / rate, mark.stop / rate
    times = _frame_seconds(video)
    if min(mark.start, mark.stop) < 0 or max(mark.start, mark.stop) > len(times):
        raise DataError(
            f"{mark.place}: it is at frames {mark.start:g} to {mark.stop:g}, but {video} has {len(times) - 1}: give the "
            "frames a second that the tool counts as --fps"
        )
    start, stop = (times[min(int(number), len(times) - 1)] for number in (mark.start, mark.stop))
    return float(start), float(stop)


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
    return index.begin + np.append(index.ticks * float(index.tick), index.duration)
