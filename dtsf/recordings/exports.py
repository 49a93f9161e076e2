"""Marks in exports without lines: ELAN's .eaf, CVAT's XML, Label Studio's JSON. Their marks are counted."""

from __future__ import annotations

import itertools
import re
import urllib.parse
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np

from dtsf.errors import DataError
from dtsf.names import counted
from dtsf.pipeline.source import is_video
from dtsf.recordings.marks import Mark, Marks

# Label Studio writes eight letters before the name of a file that was uploaded.
UPLOADED = re.compile(r"^[0-9a-f]{8}-")

# From so many annotations, of which this share is different, a tier of ELAN has remarks. Labels have at most so many words.
LEAST_REMARKS, DIFFERENT, LABEL_WORDS = 5, 0.8, 5
DEEPEST = 20  # tiers of ELAN above one another


def parse_xml(text: str, where: str) -> ElementTree.Element:
    """Return the root of an XML text. Raises DataError: it is not whole, or it defines entities, which may fill the memory."""
    if "<!ENTITY" in text:
        raise DataError(f"{where} defines entities, which no annotation tool writes: it is not read")
    try:
        # A declaration of an encoding is not for decoded text.
        return ElementTree.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", text))
    except ElementTree.ParseError as error:
        raise DataError(f"{where} is not valid XML ({error}): export it again") from error


def read_eaf(root: ElementTree.Element, where: str, tier: Sequence[str]) -> Marks:
    """Read ELAN's annotations. The label is the text, or the tier's name where the text is empty; the subject is the participant.

    Without ``tier``, all tiers without a parent are used. Time slots without a time lie evenly between those that have one.
    Raises DataError: without ``tier``, one has remarks and not labels.
    """
    tiers = {one.get("TIER_ID", ""): one for one in root.iter("TIER")}
    unknown = [name for name in tier if name not in tiers]
    if unknown:
        raise DataError(f"{where} has no tier {unknown[0]!r}; it has {', '.join(tiers)}")
    spans = _eaf_spans(root, where)
    # The time of ELAN is that of its first medium; others begin earlier by their origin.
    media = [
        (one.get("RELATIVE_MEDIA_URL") or one.get("MEDIA_URL") or "", one) for one in root.iter("MEDIA_DESCRIPTOR")
    ]
    names = tuple(urllib.parse.unquote(name) for name, _ in media)
    origins = tuple(float(one.get("TIME_ORIGIN") or 0) / 1000 for _, one in media)
    lists = {
        kind.get("LINGUISTIC_TYPE_ID") for kind in root.iter("LINGUISTIC_TYPE") if kind.get("CONTROLLED_VOCABULARY_REF")
    }
    marks: list[Mark] = []
    left: list[str] = []
    used: dict[str, list[str]] = {}
    for name, one in tiers.items():
        if name not in tier if tier else one.get("PARENT_REF"):
            left += [name] if one.find("ANNOTATION") is not None else []
            continue
        for annotation in itertools.chain.from_iterable(one.iter("ANNOTATION")):
            number = annotation.get("ANNOTATION_ID", "")
            if number not in spans:
                parent = annotation.get("ANNOTATION_REF", "")
                raise DataError(
                    f"{where}, annotation {number}: its annotation {parent!r} is missing: save it again in ELAN"
                )
            label = " ".join((annotation.findtext("ANNOTATION_VALUE") or "").split()) or name
            subject = one.get("PARTICIPANT", "").strip()
            place = f"{where}, tier {name}, annotation {number}"
            marks.append(Mark(*spans[number], label, len(marks) + 1, place, "", subject, names, origins))
            used.setdefault(name, []).append(label.casefold())
    for name, texts in used.items() if not tier else ():
        others = [set(of_tier) for other, of_tier in used.items() if other != name]
        if tiers[name].get("LINGUISTIC_TYPE_REF") not in lists and _are_remarks(texts, others):
            raise DataError(
                f"{where}: tier {name!r} has remarks and not labels ({len(set(texts))} of {len(texts)} annotations are different): "
                f"choose the tiers of labels with --tier; the file has {', '.join(tiers)}"
            )
    notes = [f"{where}: tiers without use: {', '.join(left)}: choose with --tier"] if left else []
    if len(used) > 1 and not tier:
        numbers = ", ".join(f"{name} ({counted(len(set(texts)), 'label')})" for name, texts in used.items())
        notes.append(f"{where}: marks are those of the tiers {numbers}: choose others with --tier")
    return marks, notes


def _eaf_spans(root: ElementTree.Element, where: str) -> dict[str, tuple[float, float]]:
    """Return the start and stop of each annotation by its id. Those of a child tier have the times of their parents."""
    slots = [(slot.get("TIME_SLOT_ID", ""), slot.get("TIME_VALUE")) for slot in root.iter("TIME_SLOT")]
    known = [(k, float(time)) for k, (_, time) in enumerate(slots) if time]
    if not known:
        raise DataError(f"{where} has no time slot: annotate in ELAN and save")
    times = np.interp(np.arange(len(slots)), [k for k, _ in known], [time for _, time in known]) / 1000
    seconds = dict(zip((name for name, _ in slots), map(float, times), strict=True))
    spans: dict[str, tuple[float, float]] = {}
    for one in root.iter("ALIGNABLE_ANNOTATION"):
        ends = [seconds.get(one.get(f"TIME_SLOT_REF{k}", "")) for k in (1, 2)]
        if None in ends:
            raise DataError(
                f"{where}, annotation {one.get('ANNOTATION_ID')}: its time slot is missing: save it again in ELAN"
            )
        spans[one.get("ANNOTATION_ID", "")] = ends[0], ends[1]  # type: ignore[assignment]
    refs = {one.get("ANNOTATION_ID", ""): one.get("ANNOTATION_REF", "") for one in root.iter("REF_ANNOTATION")}
    for number in refs:
        parent = number
        for _ in range(DEEPEST):
            parent = refs.get(parent, parent)
        if parent in spans:
            spans[number] = spans[parent]
    return spans


def _are_remarks(texts: Sequence[str], others: Sequence[set[str]]) -> bool:
    """Return whether the annotations of a tier are free text: nearly all are different, and not those of ``others``.

    A tier alone may have each action once, so its annotations must also be long.
    """
    different = set(texts).difference(*others)
    if len(texts) < LEAST_REMARKS or len(different) < DIFFERENT * len(texts):
        return False
    return bool(others) or float(np.median([len(text.split()) for text in texts])) > LABEL_WORDS


def read_cvat(root: ElementTree.Element, where: str, tier: Sequence[str]) -> Marks:
    """Read CVAT's tracks and tags: a mark for each run of frames that have a label. ``tier``: names of attributes whose value is
    the label; default: the label of the track or tag.
    """
    tasks = {one.findtext("id", ""): one for one in (*root.iter("task"), *root.iter("job"))}
    attributes: set[str] = set()
    frames: dict[tuple[str, str, str], list[tuple[int, bool]]] = defaultdict(list)

    def labels(shape: ElementTree.Element, label: str) -> list[str]:
        values = {one.get("name", ""): (one.text or "").strip() for one in shape.iter("attribute")}
        attributes.update(values)
        return [values[name] for name in tier if values.get(name)] if tier else [label]

    for track in root.iter("track"):
        shown: dict[str, list[tuple[int, bool]]] = defaultdict(list)
        for shape in sorted((one for one in track if one.get("frame")), key=lambda one: int(one.get("frame", "0"))):
            number, outside = int(shape.get("frame", "0")), shape.get("outside") == "1"
            now = [] if outside else labels(shape, track.get("label", ""))
            for label in dict.fromkeys((*shown, *now)):
                shown[label].append((number, label in now))
        for label, states in shown.items():
            frames[track.get("task_id", ""), f"track {track.get('id', '')}", label] = states
    for image in root.iter("image"):
        number = int(image.get("id", "0"))
        for shape in image:
            for label in labels(shape, shape.get("label", "")):
                frames[image.get("task_id", ""), shape.tag, label].append((number, True))
    marks: list[Mark] = []
    for (task_id, place, label), states in frames.items():
        task = tasks.get(task_id) if task_id else next(iter(tasks.values()), None)
        source = (task.findtext("source") or task.findtext("name") or "") if task is not None else ""
        first = int((task.findtext("start_frame") or 0) if task is not None else 0)
        step = re.search(r"step\s*=\s*(\d+)", (task.findtext("frame_filter") or "") if task is not None else "")
        every = int(step[1]) if step else 1
        for start, stop in _runs(states, is_track=place.startswith("track")):
            where_ = f"{where}, {place}, frame {start}"
            low, high = first + every * start, first + every * stop
            marks.append(Mark(low, high, label, len(marks) + 1, where_, "", "", (source,), frames=True))
    notes = []
    if attributes and not tier:
        names = ", ".join(sorted(attributes))
        notes.append(
            f"{where}: the label is that of the track or tag; for the value of an attribute give --tier ({names})"
        )
    if tier and not marks:
        raise DataError(f"{where} has no attribute {', '.join(tier)}; it has {', '.join(sorted(attributes)) or 'none'}")
    return marks, notes


def _runs(states: Sequence[tuple[int, bool]], *, is_track: bool) -> Iterator[tuple[int, int]]:
    """Yield the first frame of each run, and the one after its last. A track is there until a shape is outside."""
    start: int | None = None
    last = 0
    for number, there in sorted(states):
        if start is not None and (not there or (not is_track and number > last + 1)):
            yield start, number if is_track else last + 1
            start = None
        if there and start is None:
            start = number
        last = number
    if start is not None:
        yield start, last + 1


def read_label_studio(tasks: Sequence[dict[str, Any]], where: str, fps: float | None) -> Marks:
    """Read Label Studio's export (JSON or JSON-MIN): ranges of frames on a timeline, spans in seconds, and boxes in a video.

    Frames count from 1, at the rate of the project: ``fps``, or that in the file, or that of the video.
    """
    marks: list[Mark] = []
    notes: list[str] = []
    others: Counter[str] = Counter()
    guessed = False
    for name, count in Counter(str(task.get("id")) for task in tasks if "id" in task).items():
        if count > 1:
            raise DataError(
                f"{where}: {count} entries are of task {name}: keep the annotation of one person, and export again"
            )
    for number, task in enumerate(tasks, 1):
        place = f"{where}, task {task.get('id', number)}"
        media = tuple(_media(task.get("data", task)))
        regions = _regions(task, place, notes)
        rates = (_ratio(region.get("value", region)) for region in regions)
        rate = fps or next(filter(None, rates), None)
        for region in regions:
            value = region.get("value", region)
            kind = str(region.get("type", ""))
            spans, in_frames = _spans(value, kind)
            names: list[Any] = next(
                (value[key] for key in (kind, "timelinelabels", "labels") if isinstance(value.get(key), list)), []
            )
            if not spans or not names:
                others[kind or "other"] += 1
                continue
            guessed |= in_frames and rate is None
            for (start, stop), label in itertools.product(spans, names):
                line = len(marks) + 1
                where_ = f"{place}, mark {line}"
                marks.append(Mark(start, stop, str(label), line, where_, media=media, frames=in_frames, rate=rate))
    if others:
        notes.append(
            f"{where}: without a span of time and not used: {', '.join(f'{n} {kind}' for kind, n in others.items())}"
        )
    if guessed:
        notes.append(
            f"{where}: frames are those of the videos; if frameRate of the Label Studio project differs, give it as --fps"
        )
    return marks, notes


def is_task(task: object) -> bool:
    """Return whether a JSON value is a task of Label Studio."""
    if not isinstance(task, dict):
        return False
    annotations = task.get("annotations", task.get("completions"))
    if annotations is None:
        return "id" in task
    return isinstance(annotations, list) and all(isinstance(one, dict) and "result" in one for one in annotations)


def _regions(task: dict[str, Any], place: str, notes: list[str]) -> list[dict[str, Any]]:
    """Return the regions of a task's one annotation, or those of a JSON-MIN task."""
    annotations = task.get("annotations", task.get("completions"))
    if annotations is None:
        lists = (value for value in task.values() if isinstance(value, list))
        return [one for value in lists for one in value if isinstance(one, dict)]
    done = [one for one in annotations if not one.get("was_cancelled")]
    chosen = [one for one in done if one.get("ground_truth")] or done
    if len(chosen) > 1:
        raise DataError(
            f"{place}: it has {len(chosen)} annotations: mark one as ground truth in Label Studio, and export again"
        )
    if not chosen:
        notes.append(f"{place}: it has no annotation")
        return []
    return [one for one in chosen[0].get("result", []) if isinstance(one, dict) and isinstance(one.get("value"), dict)]


def _spans(value: dict[str, Any], kind: str) -> tuple[list[tuple[float, float]], bool]:
    """Return the spans of a region, and whether they are in frames (from 0, the end after the last one) and not in seconds."""
    try:
        if isinstance(value.get("ranges"), list):
            return [(float(one["start"]) - 1, float(one["end"])) for one in value["ranges"]], True
        if isinstance(value.get("sequence"), list):
            states = [(int(one["frame"]) - 1, bool(one.get("enabled", True))) for one in value["sequence"]]
            return [(float(start), float(stop)) for start, stop in _runs(states, is_track=True)], True
        # The times of a series of measurements may be dates.
        if "start" in value and "end" in value and kind != "timeserieslabels":
            return [(float(value["start"]), float(value["end"]))], False
    except (KeyError, TypeError, ValueError):
        pass
    return [], False


def _ratio(value: dict[str, Any]) -> float | None:
    """Return the frames a second that Label Studio wrote beside a box."""
    count, duration = value.get("framesCount"), value.get("duration")
    if isinstance(count, int | float) and isinstance(duration, int | float) and count > 0 and duration > 0:
        return count / duration
    return None


def _media(data: object) -> Iterator[str]:
    """Yield the paths of videos in the data of a task, also as they were before the upload."""
    for text in data.values() if isinstance(data, dict) else ():
        name = urllib.parse.unquote(str(text).rpartition("?d=")[2]) if isinstance(text, str) else ""
        if is_video(name):
            yield name
            folder, _, last = name.rpartition("/")
            if UPLOADED.match(last):
                yield f"{folder}/{UPLOADED.sub('', last)}"
