"""One HTML page for a timeline: lanes of bouts and marks, the doubtful bouts first, and the video that plays beside them."""

from __future__ import annotations

import base64
import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np

from dtsf.recordings.bouts import Bout, Timeline
from dtsf.recordings.events import NOTHING, Event
from dtsf.report.page import embed_json, render

PICTURES, POINTS = 4, 3000  # pictures of a bout, and points of the curves
MOST_SHOWN = 1000  # bouts and missed marks with pictures, the most doubtful first: a picture takes 3 kB of the page
DOUBTFUL = 0.5  # uncertainty, or missing probability, above which a bout is doubtful if the run has no held-out answers
T = TypeVar("T", Bout, Event)
MEDIA = "file: 'self'"  # the page may show files, and nothing from a network


def render_page(
    timeline: Timeline,
    marks: Sequence[Event],
    pictures: Callable[[set[float]], dict[float, bytes]],
    file: Path,
    run: str,
) -> str:
    """Return the page. ``marks``: to show beside the bouts. ``pictures``: JPEG pictures near the given seconds. ``file``: of the
    page, to which the paths of the videos are relative.
    """
    labels = sorted({bout.label for bout in timeline.bouts} | {mark.label for mark in marks})
    row = {label: k for k, label in enumerate(labels)}
    bouts_near, marks_near = _finder(timeline.bouts), _finder(marks)
    misses = {mark: reason for mark in marks if (reason := _miss(mark, timeline, bouts_near(mark)))}
    listed: list[Bout | Event] = [*misses, *sorted(timeline.bouts, key=doubt, reverse=True)]
    moments = {id(one): _moments(one) for one in listed[:MOST_SHOWN]}
    found = pictures({moment for of_one in moments.values() for moment in of_one})

    def facts(one: Bout | Event) -> dict[str, Any]:
        jpegs = [found[moment] for moment in moments.get(id(one), ()) if moment in found]
        stills = [f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" for jpeg in jpegs]
        return {"label": row[one.label], "start": one.start, "stop": one.stop, "pictures": stills}

    curve = timeline.curve
    some = np.unique(np.linspace(0, len(curve.times) - 1, min(len(curve.times), POINTS)).round().astype(int)).tolist()
    data = {
        "start": timeline.start,
        "stop": timeline.stop,
        "labels": labels,
        "bouts": [
            {
                **facts(bout),
                "probability": bout.probability,
                "uncertainty": bout.uncertainty,
                "weights": bout.view_weights,
                "doubt": doubt(bout),
                "doubtful": doubt(bout) > DOUBTFUL if timeline.trusted is None else bout.probability < timeline.trusted,
                "mark": _mark_of(bout, marks_near(bout)) if marks else "",
            }
            for bout in timeline.bouts
        ],
        "marks": [facts(mark) | {"missed": misses.get(mark, "")} for mark in marks],
        "times": [curve.times[k] for k in some],
        "probability": [curve.probability[k] for k in some],
        "uncertainty": [curve.uncertainty[k] for k in some],
        "media": [
            {
                "view": media.view,
                "files": [part.model_dump() | {"url": _relative_url(Path(part.path), file)} for part in media.files],
            }
            for media in timeline.media
        ],
    }
    return render(
        "timeline.html",
        "timeline.js",
        MEDIA,
        title=timeline.recording,
        t=timeline,
        run=run,
        labels=labels,
        n_marks=len(marks),
        n_missed=len(misses),
        clock=clock,
        data=embed_json(data),
    )


def doubt(bout: Bout) -> float:
    """Return how doubtful a bout is, from 0 to 1: the larger one of its uncertainty and of what its probability lacks."""
    return max(bout.uncertainty, 1 - bout.probability)


def clock(seconds: float) -> str:
    """Return h:mm:ss or m:ss, with a minus before zero."""
    minutes, rest = divmod(abs(round(seconds)), 60)
    text = f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
    return f"\u2212{text}" if round(seconds) < 0 else text


def overlap(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Return the share of two intervals that both cover."""
    both = min(a[1], b[1]) - max(a[0], b[0])
    return max(0.0, both) / max(1e-9, max(a[1], b[1]) - min(a[0], b[0]))


def _finder(given: Sequence[T]) -> Callable[[Bout | Event], list[T]]:
    """Return a function that finds those that share time with a bout or mark; a recording may have ten thousands of both."""
    ordered = sorted(given, key=lambda one: one.start)
    starts, ends = [one.start for one in ordered], list(accumulate((one.stop for one in ordered), max))

    def near(other: Bout | Event) -> list[T]:
        some = ordered[bisect_right(ends, other.start) : bisect_left(starts, other.stop)]
        return [one for one in some if one.stop > other.start]

    return near


def _mark_of(bout: Bout, near: Sequence[Event]) -> str:
    """Return what the marks of its time say about a bout."""
    shared = {mark: overlap((bout.start, bout.stop), (mark.start, mark.stop)) for mark in near}
    best = max(shared, key=lambda mark: (mark.label == bout.label and shared[mark] > 0, shared[mark]), default=None)
    if best is None or not shared[best]:
        return "no mark here"
    return f"marked {best.label}" if best.label != bout.label else f"marked too, {shared[best]:.0%} in common"


def _miss(mark: Event, timeline: Timeline, near: Sequence[Bout]) -> str:
    """Return why a mark is missed, empty if one of the bouts of its time is of its class."""
    if mark.label in (NOTHING, *(bout.label for bout in near)):
        return ""
    if mark.stop <= timeline.start or mark.start >= timeline.stop:
        return "outside of the timeline"
    if timeline.classes and mark.label not in timeline.classes:
        return "the run does not know this class"
    if not near:
        return "no bout here"
    best = max(near, key=lambda bout: overlap((bout.start, bout.stop), (mark.start, mark.stop)))
    return f"found as {best.label}"


def _moments(one: Bout | Event) -> list[float]:
    """Return the seconds at which a bout or a mark is shown: whole halves, at which pictures are kept."""
    times = one.start + (np.arange(PICTURES) + 0.5) * (one.stop - one.start) / PICTURES
    return sorted({round(2 * time) / 2 for time in times.tolist()})


def _relative_url(path: Path, page: Path) -> str:
    relative = os.path.relpath(path.absolute(), page.absolute().parent)
    return quote(relative.replace(os.sep, "/"), errors="surrogatepass" if os.name == "nt" else "surrogateescape")
