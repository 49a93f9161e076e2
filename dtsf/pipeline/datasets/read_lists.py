"""Lists of clips as other projects write them: a table with a header, lines of ``path label``, or a pickle of mmaction2 and pyskl.

A list is read or refused. A first line with the name of a column is a header. Without a header, a line has a path and a label;
between them there may be the number of frames, which is compared with the video's.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dtsf.errors import DataError, VideoError
from dtsf.files.pickles import load_plain
from dtsf.files.read import read_file
from dtsf.names import tidy
from dtsf.pipeline.datasets.manifest import OPTIONAL, read_number, read_part
from dtsf.pipeline.datasets.tables import EXCEL_MARK, SEPARATORS, decode_text, parse_table
from dtsf.pipeline.source import is_video
from dtsf.pipeline.video.decode import probe
from dtsf.pipeline.video.image_folder import numbered_images

MAX_BYTES = 1 << 30
# Words for splits in a list and in its file name -> split in the manifest.
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "test", "testing"), "test"),
}
# Columns of the manifest, and their names in lists.
COLUMNS = {
    "path": (
        *("path", "video", "file", "filename", "file_name", "filepath", "file_path"),
        *("video_path", "video_id", "youtube_id", "frame_dir"),
    ),
    "label": ("label", "class", "action", "behavior", "behaviour", "activity"),
    "group": ("group",),
    "view": ("view", "camera", "viewpoint"),
    "subject": ("subject", "person", "participant"),
    "split": ("split", "subset"),
    "start": ("start", "time_start", "start_time", "t_start", "start (s)", "begin"),
    "end": ("end", "time_end", "end_time", "t_end", "end (s)", "stop", "stop (s)"),
    **{name: (name,) for name in OPTIONAL if name not in ("subject", "split", "start", "end")},
}
NAMES = {name: column for column, names in COLUMNS.items() for name in names}
# A column with such a name has a part of a video. It is not left out in silence.
PARTS = re.compile(
    r"(^|[^a-z])(start|stop|begin|end|onset|offset)(frame|time|sec|second)?s?([^a-z]|$)|(frame|time)_?(start|stop|begin|end)$"
    r"|^(time|timestamp|segment|interval)s?$"
)
SEVERAL = re.compile(r"\d+(\s*[,;|]\s*\d+)+")
CHECKED = 20  # lines whose number of frames is compared with the video
HOW = "write a header (path,label,start,end,split) or lines of a path and one label"

Find = Callable[[str], Path | None]


class Entry(NamedTuple):
    """An entry of a list. ``cells``: the other columns of the manifest. ``action``: N-UCLA's id, because its file names repeat."""

    name: str
    label: str
    place: str
    cells: dict[str, str]
    action: str = ""


def read_list(file: Path, split: str, find: Find) -> tuple[list[Entry], list[str]]:
    """Return the entries of a list and notes for the user. ``split``: prefix of the splits to use from a pickle. ``find``: returns
    the video of a name, or None. Raises DataError with the line: a list of an unknown form.
    """
    data = read_file(file, limit=MAX_BYTES, error=DataError, follow=True)
    if file.suffix.lower() in (".pkl", ".pickle") or data[:1] == b"\x80":
        return _read_pickle(file, data, split), []
    text, notes = decode_text(data, str(file))
    _refuse_marks(file, text)
    words = [re.sub("(list|set|split|file)s?$", "", word) for word in re.split(r"[^a-z]+", file.stem.lower())]
    side = next((SPLITS[word] for word in words if word in SPLITS), "")
    read = _read_table if _has_header(file, text, find) else _read_lines
    entries, more = read(file, text, find)
    return [one._replace(cells={"split": side} | one.cells) for one in entries], [*notes, *more]


def read_labels(file: Path) -> dict[str, str]:
    """Read a label map: lines of ``0 name`` or ``0,name``, or names alone, from label 0."""
    text, _ = decode_text(read_file(file, limit=MAX_BYTES, error=DataError, follow=True), str(file))
    names: dict[str, str] = {}
    for number, line in enumerate(filter(None, map(str.strip, text.splitlines()))):
        match = re.fullmatch(r"(\d+)[\s,;]+(.+)", line)
        label, name = match.groups() if match else (str(number), line)
        if label in names:
            raise DataError(f"{file}: label {label} has two names: {names[label]} and {name}")
        names[label] = name.strip()
    return names


def _refuse_marks(file: Path, text: str) -> None:
    head = text.lstrip()[:4096]
    kinds = {"{": "JSON", "[": "JSON", "<": "XML", "WEBVTT": "WebVTT"}
    kind = next((kind for mark, kind in kinds.items() if head.startswith(mark)), "SRT" if "-->" in head else "")
    if kind:
        raise DataError(
            f"{file} is {kind}, not a list of clips: give marks in long videos with dtsf import {file.name} --recordings FILE, or "
            "export a table (CSV)"
        )


def _cells(line: str, separator: str) -> list[str]:
    return next(
        csv.reader([line.strip("\r\n").replace("\t", " ") if separator == " " else line], delimiter=separator), []
    )


def _has_header(file: Path, text: str, find: Find) -> bool:
    """Return whether the first line has a name of a column, and no video."""
    lines = io.StringIO(text, newline="")
    first = next((line for line in lines if line.strip() and not EXCEL_MARK.fullmatch(line)), "")
    for separator in (*SEPARATORS, " "):
        try:
            cells = [tidy(cell) for cell in _cells(first, separator)]
        except csv.Error:
            continue
        known = [cell for cell in cells if cell.casefold() in NAMES]
        if known and not any(is_video(cell) or find(cell) for cell in cells):
            if separator == " " and len(cells) > 1:
                raise DataError(
                    f"{file}, line 1: the header has blanks between {' and '.join(map(repr, cells))}: use commas"
                )
            return True
    return False


def _read_table(file: Path, text: str, find: Find) -> tuple[list[Entry], list[str]]:
    table = parse_table(text, str(file), ("path", "label"), tuple(COLUMNS), names=NAMES)
    used = {name for _, row in table.rows for name in row}
    for name in table.unused:
        if PARTS.search(name) or (name == "duration" and "start" in used and "end" not in used):
            raise DataError(
                f"{file}: column {name!r} may be a part of the video: name it start or end (seconds), first or last (frames), or "
                "remove it"
            )
    notes = list(table.notes)
    if table.unused:
        notes.append(f"{file}: columns without use: {', '.join(table.unused)}")
    by_action = "action" in re.split(r"[\s,;\"]+", text.lstrip().partition("\n")[0].casefold())
    entries = []
    for line, row in table.rows:
        place, split = f"{file}, line {line}", row.get("split", "")
        if SEVERAL.fullmatch(row["label"]):
            raise DataError(
                f"{place}: {row['label']!r} is several labels: write one, or a row for each part of the video"
            )
        read_part(row, place)
        read_number(row, "offset", place)
        cells = {name: text for name, text in row.items() if name not in ("path", "label") and text}
        if split:
            cells["split"] = SPLITS.get(split.casefold(), split)
        # The label is the action as written: from 1 for NTU, the action id for N-UCLA.
        entries.append(Entry(row["path"], row["label"], place, cells, row["label"] if by_action else ""))
    return entries, notes


def _read_lines(file: Path, text: str, find: Find) -> tuple[list[Entry], list[str]]:
    """Split lines into path and label, by the separator that finds most of the paths."""
    lines = [(n, line) for n, line in enumerate(io.StringIO(text, newline=""), 1) if line.strip()]
    found: dict[str, list[_Line | None]] = {}
    for separator in (*SEPARATORS, " "):
        try:
            found[separator] = [_split_line(line, separator, find) for _, line in lines]
        except csv.Error:
            continue
    if not found:
        raise DataError(f"{file} cannot be read as text")
    best = max(
        found, key=lambda mark: (sum(bool(one and one.found) for one in found[mark]), sum(map(bool, found[mark])))
    )
    entries = []
    to_check, doubtful = CHECKED, ""
    for (number, line), one in zip(lines, found[best], strict=True):
        place, shown = f"{file}, line {number}", line.strip()[:200]
        if one is None or not tidy(one.label) or SEVERAL.fullmatch(one.label):
            raise DataError(f"{place}: {shown!r} is not a path and one label: {HOW}")
        first = next(filter(None, found[best]))
        if bool(one.frames) != bool(first.frames):
            raise DataError(f"{place}: {shown!r} has not as many cells as the first line: {HOW}")
        if one.found and one.frames and to_check:
            counted = _count_frames(one.found)
            if counted is None:
                doubtful = (
                    doubtful or f"{place}: {shown!r} has a number that is not known to be that of the frames: {HOW}"
                )
            elif abs(counted - int(one.frames)) > max(2, counted // 100):
                raise DataError(
                    f"{place}: {shown!r} has {one.frames} between path and label, but the video has {counted} frames: {HOW}"
                )
            else:
                to_check -= 1
        entries.append(Entry(one.path, tidy(one.label), place, {}))
    if doubtful and to_check == CHECKED:
        raise DataError(doubtful)
    return entries, []


class _Line(NamedTuple):
    path: str
    label: str
    frames: str
    found: Path | None


def _split_line(line: str, separator: str, find: Find) -> _Line | None:
    """Return the parts of a line, or None if it has more or fewer. A path may contain the separator: then it is a known video."""
    cells = _cells(line, separator)
    while cells and not cells[-1].strip():
        cells.pop()
    # One path and at most two more cells; in a path with blanks all of them count.
    ends = range(len(cells) - 1, max(0, len(cells) - 3), -1)
    paths = {end: separator.join(cells[:end]).strip() for end in ends}
    known = {end: find(path) for end, path in paths.items()}
    end = next((end for end in ends if known[end]), None) or next(
        (e for e in reversed(ends) if is_video(paths[e])), None
    )
    if end is None and (len(cells) == 2 or (len(cells) == 3 and cells[1].strip().isdecimal())):
        end = 1
    if end is None or not paths[end]:
        return None
    rest = [cell.strip() for cell in cells[end:] if cell.strip()]
    frames = rest[0] if len(rest) == 2 else ""
    if len(rest) not in (1, 2) or is_video(rest[-1]) or (frames and not re.fullmatch(r"\d{1,9}", frames)):
        return None
    return _Line(paths[end], rest[-1], frames, known[end])


def _count_frames(path: Path) -> int | None:
    try:
        return len(numbered_images(path)) if path.is_dir() else probe(path).n_frames
    except VideoError:
        return None


def _read_pickle(file: Path, data: bytes, prefix: str) -> list[Entry]:
    try:
        document = load_plain(data)
    # A pickle is a program: a broken or hostile one can raise any error.
    except Exception as error:  # noqa: BLE001
        raise DataError(f"{file} cannot be read as a pickle of plain data: {error}") from error
    entries = []
    try:
        splits: dict[str, list[str]] = document["split"]
        labels = {_text(a["frame_dir"]): str(int(a["label"])) for a in document["annotations"]}
        chosen = {name: ids for name, ids in splits.items() if name.startswith(prefix)}
        if len({name.rpartition("_")[0] for name in chosen}) != 1:
            raise DataError(f"{file} has the splits {', '.join(sorted(splits))}: choose with --split, for example xsub")
        for name, ids in chosen.items():
            word = name.rpartition("_")[2]
            cells = {"split": SPLITS.get(word, word)}
            entries += [Entry(_text(stem), labels[_text(stem)], f"{file}, {name}", cells) for stem in ids]
        return entries
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError, OverflowError) as error:
        raise DataError(f"{file} is not a list of mmaction2 or pyskl: {type(error).__name__}: {error}") from error


def _text(value: object) -> str:
    # Other objects are not converted: a pickle of a hundred bytes can have a text form that takes all memory.
    if not isinstance(value, str):
        raise TypeError(f"a name is not text but {type(value).__name__}")
    value.encode()  # raises ValueError for text that cannot be written
    return value
