"""Metrics of timelines against marks: by frames, by segments, and by detections. All are fractions.

Frames: accuracy, and macro F1 over the classes that occur, ``nothing`` included. Segments (Lea et al., 2017): F1 at three overlaps
(intersection over union, IoU), and the edit score of the order of labels. Detections (ActivityNet): average precision over the
probability of bouts, at IoU 0.3 to 0.7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dtsf.settings import Frozen

FRAME_RATE = 25  # frames a second that are compared
OVERLAPS = (0.1, 0.25, 0.5)
DETECTION_OVERLAPS = (0.3, 0.4, 0.5, 0.6, 0.7)


@dataclass(frozen=True)
class Segment:
    """A mark or a bout, in seconds. ``probability``: of a bout."""

    start: float
    stop: float
    label: str
    probability: float = 1.0


@dataclass(frozen=True)
class Scored:
    """One recording between ``start`` and ``stop``, with its marks and its bouts. A class without bouts is in neither."""

    name: str
    start: float
    stop: float
    marks: tuple[Segment, ...]
    bouts: tuple[Segment, ...]


class TimelineMetrics(Frozen):
    """Metrics over all recordings. ``map``: mean average precision by overlap, and ``mean`` over the overlaps."""

    frame_accuracy: float
    frame_f1: float
    f1_10: float
    f1_25: float
    f1_50: float
    edit: float
    map: dict[str, float]


def measure(recordings: Sequence[Scored], no_event: str) -> TimelineMetrics:
    """Return the metrics of one or more recordings. ``no_event``: label of the frames between marks, and between bouts.

    Frames, segments and detections of all recordings count together; the edit score is the mean over recordings.
    """
    marked, found = (
        np.concatenate([frame_labels(one, segments, no_event) for one, segments in pairs])
        for pairs in ([(one, one.marks) for one in recordings], [(one, one.bouts) for one in recordings])
    )
    f1_10, f1_25, f1_50 = (segment_f1(recordings, overlap) for overlap in OVERLAPS)
    precision = {f"{overlap:g}": mean_average_precision(recordings, overlap) for overlap in DETECTION_OVERLAPS}
    return TimelineMetrics(
        frame_accuracy=float((marked == found).mean()) if len(marked) else 0.0,
        frame_f1=macro_f1(marked, found),
        f1_10=f1_10,
        f1_25=f1_25,
        f1_50=f1_50,
        edit=float(np.mean([edit_score(one) for one in recordings])),
        map=precision | {"mean": float(np.mean(list(precision.values())))},
    )


def frame_labels(one: Scored, segments: Sequence[Segment], no_event: str) -> np.ndarray:
    """Return the label at the centre of each frame, (frames,) str. Of two segments at one time, the later one counts."""
    times = one.start + (np.arange(int((one.stop - one.start) * FRAME_RATE + 1e-6)) + 0.5) / FRAME_RATE
    labels = np.full(len(times), no_event, object)
    for segment in sorted(segments, key=lambda segment: segment.start):
        labels[(times >= segment.start) & (times < segment.stop)] = segment.label
    return labels.astype(str)


def macro_f1(marked: np.ndarray, found: np.ndarray) -> float:
    """Return the mean over the classes that occur of F1 = 2 TP / (2 TP + FP + FN)."""
    scores = []
    for label in np.unique(np.concatenate([marked, found])):
        a, b = marked == label, found == label
        scores.append(2 * (a & b).sum() / (a.sum() + b.sum()))
    return float(np.mean(scores)) if scores else 0.0


def segment_f1(recordings: Sequence[Scored], overlap: float) -> float:
    """Return F1 of the bouts. A bout is right if its best mark of the same class has this IoU and is not taken yet."""
    right = n_bouts = n_marks = 0
    for one in recordings:
        n_bouts, n_marks = n_bouts + len(one.bouts), n_marks + len(one.marks)
        taken: set[int] = set()
        for bout in sorted(one.bouts, key=lambda bout: bout.start):
            same = [k for k, mark in enumerate(one.marks) if mark.label == bout.label]
            best = max(same, key=lambda k: iou(bout, one.marks[k]), default=None)
            if best is not None and best not in taken and iou(bout, one.marks[best]) >= overlap:
                taken.add(best)
                right += 1
    return 2 * right / (n_bouts + n_marks) if n_bouts + n_marks else 1.0


def edit_score(one: Scored) -> float:
    """Return 1 minus the edit distance of the orders of labels, over the length of the longer one."""
    marks, bouts = (
        [segment.label for segment in sorted(segments, key=lambda s: s.start)] for segments in (one.marks, one.bouts)
    )
    row = list(range(len(bouts) + 1))
    for i, mark in enumerate(marks, 1):
        previous, row = row, [i]
        for j, bout in enumerate(bouts, 1):
            row.append(min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (mark != bout)))
    return 1 - row[-1] / max(len(marks), len(bouts), 1)


def mean_average_precision(recordings: Sequence[Scored], overlap: float) -> float:
    """Return the mean over the classes with marks of the area under the interpolated precision-recall curve."""
    labels = {mark.label for one in recordings for mark in one.marks}
    scores = [average_precision(recordings, label, overlap) for label in sorted(labels)]
    return float(np.mean(scores)) if scores else 0.0


def average_precision(recordings: Sequence[Scored], label: str, overlap: float) -> float:
    """Return the average precision of one class. Bouts choose, the most probable first, the free mark of the highest IoU."""
    marks = [[mark for mark in one.marks if mark.label == label] for one in recordings]
    bouts = [(bout, k) for k, one in enumerate(recordings) for bout in one.bouts if bout.label == label]
    taken: set[tuple[int, int]] = set()
    right = []
    for bout, k in sorted(bouts, key=lambda pair: -pair[0].probability):
        free = [n for n in range(len(marks[k])) if (k, n) not in taken]
        best = max(free, key=lambda n: iou(bout, marks[k][n]), default=None)
        is_right = best is not None and iou(bout, marks[k][best]) >= overlap
        if best is not None and is_right:
            taken.add((k, best))
        right.append(is_right)
    found = np.cumsum(right)
    precision = found / np.arange(1, len(found) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((envelope * right).sum() / sum(map(len, marks))) if right else 0.0


def iou(a: Segment, b: Segment) -> float:
    """Return the intersection over the union of two segments."""
    common = min(a.stop, b.stop) - max(a.start, b.start)
    return max(0.0, common) / (max(a.stop, b.stop) - min(a.start, b.start)) if common > 0 else 0.0
