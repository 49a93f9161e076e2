"""Marks in text that people read: tables (plain or BORIS's), WebVTT and SRT."""

from __future__ import annotations

import csv
import html
import io
import re
from typing import NamedTuple

from dtsf.errors import DataError
from dtsf.names import tidy
from dtsf.pipeline.datasets.manifest import SECONDS, read_number
from dtsf.pipeline.datasets.tables import SEPARATORS, parse_table

PREAMBLE = 200  # rows before the header that BORIS writes about an observation
PLAIN = {
    "start": ("start", "time_start", "start_time", "start (s)", "begin", "onset"),
    "stop": ("stop", "end", "stop (s)", "end (s)", "time_end", "end_time", "stop_time", "offset"),
    "label": ("label", "class", "action", "behavior", "behaviour", "activity", "event", "event_label"),
    "recording": ("recording", "session", "observation id", "observation"),
    "subject": ("subject", "person", "participant", "actor"),
    "media": ("media", "video", "path", "file", "filename", "media file", "media file name", "source"),
}
# BORIS's own names alone: an independent variable may be called start time.
BORIS = {
    "recording": ("observation id",),
    "label": ("behavior",),
    "subject": ("subject",),
    "media": ("media file name", "media file", "media file path"),
    "source": ("source",),
    "shift": ("time offset (s)",),
}
AGGREGATED = {**BORIS, "start": ("start (s)",), "stop": ("stop (s)",)}
# An observation may have the same behaviour twice at once, with other modifiers.
MODIFIERS = {"modifiers": ("modifiers",), "modifier": ("modifier #1",)}
TABULAR = {**BORIS, **MODIFIERS, "time": ("time", "time (s)"), "status": ("behavior type", "status")}
NO_SUBJECT = "no focal subject"
CLOCK = r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:[.,]\d+)?)"
VOICE = re.compile(r"<v(?:\.[^ >]*)?\s+([^>]+)>")
CUE = re.compile(rf"{CLOCK}\s*-->\s*{CLOCK}")


class Mark(NamedTuple):
    """A mark as its file has it. ``media``: paths of the video from whose beginning it counts, best first; empty: the recording's
    clock. ``origins``: seconds to add for each of them. ``frames``: start and stop are numbers of frames, from 0, at ``rate`` or at
    the times of the video. ``exact``: the file names recordings.
    """

    start: float
    stop: float
    label: str
    line: int
    place: str
    recording: str = ""
    subject: str = ""
    media: tuple[str, ...] = ()
    origins: tuple[float, ...] = ()
    frames: bool = False
    rate: float | None = None
    exact: bool = False


Marks = tuple[list[Mark], list[str]]


def read_plain(text: str, where: str) -> Marks:
    """Read a table with the columns ``start,stop,label`` and optionally ``recording,subject,media``, or their usual other names."""
    required, optional = ("start", "stop", "label"), ("recording", "subject", "media")
    table = parse_table(text, where, required, optional, names=_names(PLAIN))
    notes = [*table.notes]
    if table.unused:
        notes.append(f"{where}: columns without use: {', '.join(table.unused)}")
    marks = []
    for line, row in table.rows:
        place = f"{where}, line {line}"
        start, stop = _seconds(row, "start", place), _seconds(row, "stop", place)
        media, subject = tuple(filter(None, [row.get("media")])), _subject(row)
        recording = row.get("recording", "")
        marks.append(Mark(start, stop, row["label"], line, place, recording, subject, media, exact=bool(recording)))
    return marks, notes


def read_boris_aggregated(text: str, where: str) -> Marks:
    """Read BORIS's aggregated events: a row an event, point events with the same start and stop."""
    table = parse_table(
        text, where, ("label", "start", "stop"), tuple(BORIS), names=_names(AGGREGATED), preamble=PREAMBLE
    )
    marks = []
    for line, row in table.rows:
        place = f"{where}, line {line}"
        marks.append(_boris(row, _seconds(row, "start", place), _seconds(row, "stop", place), line, place))
    return marks, []


def read_boris_tabular(text: str, where: str) -> Marks:
    """Read BORIS's tabular events: rows START and STOP of a behaviour and subject, and POINT. Old ones have a part about the
    observation above the header.
    """
    table = parse_table(
        text, where, ("label", "time", "status"), (*BORIS, *MODIFIERS), names=_names(TABULAR), preamble=PREAMBLE
    )
    facts: dict[str, str] = {}
    for _, cells in _rows(text, PREAMBLE):
        facts.setdefault(*(tidy(cell) if k else tidy(cell).casefold() for k, cell in enumerate((*cells, "", "")[:2])))
    marks = []
    open_: dict[tuple[str, ...], tuple[float, int]] = {}
    for line, row in table.rows:
        place, status, time = f"{where}, line {line}", row["status"].upper(), 0.0
        for name, fact in (("recording", "observation id"), ("shift", "time offset (s)"), ("source", "player #1")):
            row.setdefault(name, facts.get(fact, ""))
        time = _seconds(row, "time", place)
        key = tuple(row.get(name, "") for name in ("recording", "subject", *MODIFIERS, "label"))
        if status == "START":
            if key in open_:
                raise DataError(
                    f"{place}: {row['label']!r} starts, but it runs since line {open_[key][1]}: check it in BORIS"
                )
            open_[key] = time, line
        elif status == "STOP":
            if key not in open_:
                raise DataError(f"{place}: {row['label']!r} stops but did not start: check it in BORIS")
            start, first = open_.pop(key)
            marks.append(_boris(row, start, time, first, f"{where}, line {first}"))
        elif status == "POINT":
            marks.append(_boris(row, time, time, line, place))
        else:
            raise DataError(f"{place}: {row['status']!r} is no START, STOP or POINT")
    for key, (_, line) in open_.items():
        raise DataError(f"{where}, line {line}: {key[-1]!r} starts and does not stop: check it in BORIS")
    return marks, []


def _boris(row: dict[str, str], start: float, stop: float, line: int, place: str) -> Mark:
    # "player #1:a.mp4;player #2:b.mp4": the time is that of the first player, from its first file.
    sources = [
        name.strip() for name in re.split(r"[;|]?\s*player #\d+\s*:|;|\|", row.get("source", ""), flags=re.IGNORECASE)
    ]
    media = (*filter(None, sources), *filter(None, [row.get("media")]))
    # BORIS adds the time offset of an observation to the time of its media.
    shift = read_signed(row, "shift", place)
    return Mark(start - shift, stop - shift, row["label"], line, place, row.get("recording", ""), _subject(row), media)


def read_cues(text: str, where: str) -> Marks:
    """Read WebVTT or SRT: the text of a cue is the label, and a voice (``<v NAME>``) the subject."""
    marks: list[Mark] = []
    lines = text.splitlines()
    is_vtt = text.lstrip("\ufeff").startswith("WEBVTT")
    for k, line in enumerate(lines):
        match = CUE.match(line.strip())
        if match is None:
            if "-->" in line and not lines[k].startswith("NOTE"):
                raise DataError(
                    f"{where}, line {k + 1}: {line.strip()!r} is no time of a cue such as 00:01:02.500 --> 00:01:04.000"
                )
            continue
        words = match.groups(default="0")
        start, stop = (
            60 * (60 * float(h) + float(m)) + float(s.replace(",", ".")) for h, m, s in (words[:3], words[3:])
        )
        body = []
        for below in lines[k + 1 :]:
            if not below.strip():
                break
            body.append(below.strip())
        # A cue may have several voices, and SRT's tags of a place: {\an8}.
        parts = VOICE.split(" ".join(body))
        for subject, spoken in zip(("", *parts[1::2]), parts[::2], strict=True):
            label = re.sub(r"<[^>]*>|\{\\[^}]*\}", "", spoken).strip()
            label = html.unescape(label) if is_vtt else label
            if not label and (subject or len(parts) == 1):
                raise DataError(f"{where}, line {k + 1}: the cue has no text: its text is the label")
            if label:
                place = f"{where}, line {k + 1}"
                marks.append(Mark(start, stop, label, k + 1, place, subject=subject.strip()))
    return marks, []


def read_signed(row: dict[str, str], name: str, place: str) -> float:
    """Return the seconds of a cell, 0 if it is empty. A minus is allowed: BORIS's offsets have it."""
    text = row.get(name, "")
    sign = -1.0 if text.startswith(("-", "\u2212")) else 1.0
    return sign * (read_number({name: text.lstrip("-\u2212+")}, name, place, SECONDS) or 0.0)


def _seconds(row: dict[str, str], name: str, place: str) -> float:
    if not row.get(name, "").strip("-+"):
        raise DataError(f"{place}: {name} is empty")
    return read_signed(row, name, place)


def _subject(row: dict[str, str]) -> str:
    subject = row.get("subject", "")
    return "" if subject.casefold() == NO_SUBJECT else subject


def _names(columns: dict[str, tuple[str, ...]]) -> dict[str, str]:
    return {name: column for column, names in columns.items() for name in names}


def _rows(text: str, most: int) -> list[tuple[int, list[str]]]:
    """Return the first rows, by the separator that makes most cells."""
    heads = list(io.StringIO(text, newline=""))[:most]
    tables = [list(enumerate(csv.reader(heads, delimiter=separator), 1)) for separator in SEPARATORS]
    return max(tables, key=lambda rows: max((len(cells) for _, cells in rows), default=0))


def header_names(text: str) -> set[str]:
    """Return the cells of the first rows in small letters."""
    try:
        return {cell.strip().casefold() for _, cells in _rows(text, PREAMBLE) for cell in cells}
    except csv.Error:
        return set()
