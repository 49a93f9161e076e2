"""Evaluation of a run on recordings: its timelines against the marks, for people who did not train."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtsf.errors import DataError, VideoError
from dtsf.names import counted, persons, similar_names
from dtsf.predict.recordings import find_timelines
from dtsf.recordings.events import NOTHING, Event, read_all_events
from dtsf.recordings.metrics import Scored, Segment, TimelineMetrics, measure
from dtsf.recordings.settings import TimelineSettings
from dtsf.recordings.table import Recording, check_offsets, read_recordings

if TYPE_CHECKING:
    from dtsf.predict.run import Run
    from dtsf.recordings.bouts import Timeline
    from dtsf.recordings.timeline import Progress

TRAINED = "of people who trained"
NO_MARKS = "without marks"
UNREADABLE = "that cannot be read"


class RecordingsEvaluation(TimelineMetrics):
    """Metrics of a run on recordings. ``left_out``: number of recordings by reason."""

    n_events: int
    n_bouts: int
    recordings: tuple[str, ...]
    subjects: tuple[str, ...]
    left_out: dict[str, int]
    notes: tuple[str, ...] = ()


def evaluate_recordings(
    run: Run,
    table: Path,
    out: Path,
    *,
    settings: TimelineSettings | None = None,
    allow_leak: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> RecordingsEvaluation:
    """Make the timelines of recordings in ``out`` and compare them with their marks. ``allow_leak``: also of people who trained.

    Recordings that cannot be read are left out. Raises DataError: no recording is left. Other errors:
    :meth:`dtsf.api.Run.timeline`.
    """
    given = read_recordings(table)
    notes: list[str] = []
    with_marks = [one for one in given if one.events is not None]
    settings = settings or TimelineSettings()
    events, more = read_all_events(with_marks, (), settings.tier, settings.fps) if with_marks else ([], [])
    chosen, left_out = _unseen(given, events, run.state.info.subjects, notes, allow_leak=allow_leak)
    notes += more
    names = {one.name for one in chosen}
    events = [event for event in events if event.recording in names]
    marked = {event.recording for event in events}
    left_out[NO_MARKS] = sum(one.name not in marked for one in chosen)
    chosen = [one for one in chosen if one.name in marked]
    if not chosen:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
        raise DataError(
            f"{table}: no recording can be evaluated: {reasons}. Give recordings of other people with their marks (column events), "
            "or --allow-leak for people who trained"
        )
    for one in chosen:
        check_offsets(one, table)
    known = set(run.state.info.class_names) - {NOTHING, "unknown"}
    unknown = Counter(event.label for event in events if event.label not in known | {NOTHING})
    if unknown:
        listed = ", ".join(f"{count} {label}" for label, count in unknown.most_common())
        notes.append(f"marks of classes that the run does not know are left out: {listed}")
    if not any(event.label in known for event in events):
        listed = ", ".join(sorted({event.label for event in events})[:5])
        raise DataError(
            f"{table}: no mark is of a class of {run.folder}: the marks have {listed}, the run has {', '.join(sorted(known))}"
        )
    scored = []
    n_outside = 0
    found: list[Timeline] = []
    try:
        options: dict[str, Any] = {"marks": (events, more), "on_progress": on_progress}
        for timeline in find_timelines(run, chosen, out, settings=settings, **options):
            found.append(timeline)
    except VideoError as error:
        if not found:
            raise
        notes.append(str(error))
        left_out[UNREADABLE] = len(chosen) - len(found)
    for timeline in found:
        notes += [note for note in timeline.notes if note not in notes]
        marks = [
            Segment(max(event.start, timeline.start), min(event.stop, timeline.stop), event.label)
            for event in events
            if event.recording == timeline.recording and event.label in known
        ]
        filmed = [(file.start, file.stop) for camera in timeline.media for file in camera.files]
        inside = tuple(mark for mark in marks if any(mark.start < stop and mark.stop > start for start, stop in filmed))
        n_outside += len(marks) - len(inside)
        bouts = tuple(Segment(bout.start, bout.stop, bout.label, bout.probability) for bout in timeline.bouts)
        scored.append(Scored(timeline.recording, timeline.start, timeline.stop, inside, bouts))
    if not any(one.marks for one in scored):
        raise DataError(f"{table}: no mark lies in the time that a camera films: check the offsets (dtsf sync)")
    ordered = [sorted((mark.start, mark.stop) for mark in one.marks) for one in scored]
    ends = [list(accumulate((stop for _, stop in one), max)) for one in ordered]
    n_over = sum(
        b[0] < stop for one, end in zip(ordered, ends, strict=True) for b, stop in zip(one[1:], end, strict=False)
    )
    if n_over:
        notes.append(
            f"{counted(n_over, 'mark begins', 'marks begin')} before another one ends; a timeline has one action at a time"
        )
    if n_outside:
        notes.append(f"{counted(n_outside, 'mark is', 'marks are')} left out: no camera films at that time")
    return RecordingsEvaluation(
        **measure(scored, NOTHING).model_dump(),
        n_events=sum(len(one.marks) for one in scored),
        n_bouts=sum(len(one.bouts) for one in scored),
        recordings=tuple(one.recording for one in found),
        subjects=tuple(sorted({one.subject for one in found if one.subject})),
        left_out={reason: count for reason, count in left_out.items() if count},
        notes=tuple(notes),
    )


def _unseen(
    given: Sequence[Recording], events: Sequence[Event], trained: Sequence[str], notes: list[str], *, allow_leak: bool
) -> tuple[list[Recording], dict[str, int]]:
    """Return the recordings of people who did not train, and how many are left out. Recordings without a subject are kept.

    A person trained if the recording or its marks name them as a training person, or alike: 05 is 5.
    """
    subjects = {one.name: persons(one.subject) for one in given}
    for event in events:
        subjects[event.recording] += persons(event.subject)
    people = {person for named in subjects.values() for person in named}
    known = {person for person in people if person in trained or any(similar_names((person, x)) for x in trained)}
    leaks = [one for one in given if known & set(subjects[one.name])]
    if leaks and allow_leak:
        who = f"{counted(len(leaks), 'recording is', 'recordings are')} of people who trained"
        notes.append(f"{who}: the numbers say nothing about other people")
        return list(given), {}
    nameless = sum(not subjects[one.name] for one in given)
    if nameless or not trained:
        which = (
            f"{counted(nameless, 'recording has', 'recordings have')} no subject"
            if trained
            else "the run does not know who trained"
        )
        notes.append(f"{which}: nothing says that these people did not train")
    return [one for one in given if one not in leaks], {TRAINED: len(leaks)}
