"""Table of recordings: a row is one camera's file, with columns ``recording,view,path`` and optionally ``offset,subject,events``.

Several rows of one recording and view are chapters: files that one camera wrote one after the other.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dtsf.errors import DataError
from dtsf.files.read import read_file
from dtsf.files.write import write_atomically
from dtsf.names import tidy
from dtsf.pipeline.datasets.manifest import read_number, resolve_path
from dtsf.pipeline.datasets.tables import MAX_BYTES, decode_text, parse_table, read_table
from dtsf.pipeline.video.decode import probe

REQUIRED = ("recording", "view", "path")
OPTIONAL = ("offset", "subject", "events")
MAX_OFFSET = 1e7  # seconds: about four months


@dataclass(frozen=True)
class Camera:
    """One camera of a recording. ``paths``: its chapters in order. ``offset``: seconds that it began after time zero of the
    recording; None if the table does not say. ``line``: of its first row in the table.
    """

    view: str
    paths: tuple[Path, ...]
    offset: float | None = None
    line: int = 0


@dataclass(frozen=True)
class Recording:
    """One recording. ``name``: also names its files in an output folder. ``events``: its file of marks, if any."""

    name: str
    subject: str | None
    cameras: tuple[Camera, ...]
    events: Path | None = None


def read_recordings(path: str | Path) -> tuple[Recording, ...]:
    """Read a table of recordings, in the order of its first rows. Relative paths begin at the table's folder.

    Raises DataError with the line: a cell is missing or wrong, a file is missing, a camera's rows have two offsets, a recording has
    two subjects or two files of marks, or one file stands for two cameras. Warns: a column with a name that is nearly right.
    """
    path = Path(path)
    rows, notes, *_ = read_table(path, REQUIRED, OPTIONAL)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    if not rows:
        raise DataError(f"{path} has no row: add one row a camera, with {', '.join(REQUIRED)}")
    base = os.path.normpath(path.parent.absolute())
    by_name: dict[str, list[tuple[int, dict[str, str]]]] = {}
    for line, row in rows:
        by_name.setdefault(_name(row["recording"], f"{path}, line {line}"), []).append((line, row))
    return tuple(_recording(name, of_name, base, path) for name, of_name in by_name.items())


def check_videos(videos: Sequence[Path | str], *, live: bool = False) -> None:
    """Raise DataError: a file is missing, or is given for two cameras. ``live``: they are still written, or are addresses."""
    seen: set[str] = set()
    for video in map(str, videos):
        if not live and (video == "-" or "://" in video):
            raise DataError(f"{video} is no file: dtsf timeline RUN --follow --video {video} reads it while it films")
        is_file = os.path.isfile(video) or (live and os.path.exists(video) and not os.path.isdir(video))
        if not is_file and not (live and (video == "-" or "://" in video)):
            raise DataError(
                f"there is no file {video}: correct the path" + (", or start the camera first" if live else "")
            )
        place = video if "://" in video else os.path.realpath(video)
        if place in seen:
            raise DataError(f"{video} is given for two cameras: give one file per camera")
        seen.add(place)


def recording_of(paths: Sequence[Path], name: str = "recording") -> Recording:
    """Return the recording of videos that are given one per camera. Raises DataError: see :func:`check_videos`."""
    check_videos(paths)
    return Recording(name, None, tuple(Camera(str(k), (path,)) for k, path in enumerate(paths, 1)))


def _recording(name: str, rows: Sequence[tuple[int, dict[str, str]]], base: str, table: Path) -> Recording:
    by_view: dict[str, list[tuple[int, dict[str, str]]]] = {}
    lines: dict[str, tuple[int, str]] = {}
    facts: dict[str, tuple[int, str]] = {}
    for line, row in rows:
        where, view = f"{table}, line {line}", row["view"]
        row["path"] = _existing(row["path"], base, where)
        first, other = lines.setdefault(os.path.realpath(row["path"]), (line, view))
        if first != line:
            raise DataError(f"{where}: {row['path']} is already camera {other!r} of {name!r} on line {first}")
        if row.get("events"):
            row["events"] = _existing(row["events"], base, where)
        for fact in ("subject", "events"):
            first, value = facts.setdefault(fact, (line, row[fact])) if row.get(fact) else (line, row.get(fact))
            if value != row.get(fact):
                raise DataError(f"{where}: {name!r} has {fact} {row[fact]!r} here and {value!r} on line {first}")
        by_view.setdefault(view, []).append((line, row))
    cameras = tuple(_camera(view, of_view, table) for view, of_view in by_view.items())
    subject, events = (facts[fact][1] if fact in facts else None for fact in ("subject", "events"))
    return Recording(name, subject, cameras, Path(events) if events else None)


def _camera(view: str, rows: Sequence[tuple[int, dict[str, str]]], table: Path) -> Camera:
    first, offset = rows[0][0], None
    for line, row in rows:
        value = read_number(row, "offset", f"{table}, line {line}")
        if value is not None and abs(value) > MAX_OFFSET:
            raise DataError(f"{table}, line {line}: offset ({value:g}) is above {MAX_OFFSET:g} seconds: correct it")
        if value is not None and line != first and value != offset:
            raise DataError(
                f"{table}, line {line}: camera {view!r} has another offset on line {first}. The first chapter has the offset of "
                "the camera: leave those of the others empty"
            )
        offset = value if line == first else offset
    return Camera(view, tuple(Path(row["path"]) for _, row in rows), offset, first)


def _existing(text: str, base: str, where: str) -> str:
    path = resolve_path(text, base, where)
    if not os.path.isfile(path):
        raise DataError(f"{where}: there is no file {path}: correct the path, or remove the row")
    return path


def _name(text: str, where: str) -> str:
    """Return the name of a recording, which names files too."""
    if re.search(r"[/\\\x00-\x1f]", text) or text.startswith(".") or len(text.encode()) > 200:
        raise DataError(
            f"{where}: recording ({text!r}) names files: use at most 200 bytes, no /, no \\ and no dot at the beginning"
        )
    return text


@dataclass(frozen=True)
class Chapter:
    """One file of a camera. ``start`` and ``stop``: seconds of the recording's clock. ``pictures``: number of its frames."""

    path: Path
    start: float
    stop: float
    pictures: int


def chapters(camera: Camera) -> tuple[Chapter, ...]:
    """Return the files of a camera with their times. Each begins where the one before ends. Without an offset the first begins
    at 0. It reads the packets of each file. Raises VideoError: a file cannot be read.
    """
    made: list[Chapter] = []
    start = camera.offset or 0.0
    for path in camera.paths:
        index = probe(path)
        made.append(Chapter(path, start, start + index.begin + index.duration, index.n_frames))
        start = made[-1].stop
    return tuple(made)


def check_offsets(recording: Recording, table: Path) -> None:
    """Check that all cameras have one clock. Raises DataError: of several cameras one has no offset, or one is no number."""
    for camera in recording.cameras:
        if camera.offset is not None and not abs(camera.offset) <= MAX_OFFSET:
            raise DataError(
                f"camera {camera.view!r} of {recording.name!r} has the offset {camera.offset}: give seconds"
            )
    for camera in recording.cameras if len(recording.cameras) > 1 else ():
        if camera.offset is None:
            raise DataError(
                f"{table}, line {camera.line}: camera {camera.view!r} of {recording.name!r} has no offset: "
                f"dtsf sync --recordings {table} --write"
            )


def write_offsets(path: Path, offsets: Mapping[tuple[str, str], float]) -> None:
    """Write the offset of cameras, by recording and view, into a table of recordings. Nothing else changes. Of a camera
    with chapters, the first row gets it. Raises DataError: the table cannot be read or written.
    """
    data = read_file(path, limit=MAX_BYTES, error=DataError, follow=True)
    text, _ = decode_text(data, str(path))
    table = parse_table(text, str(path), REQUIRED, OPTIONAL)
    by_line: dict[int, str] = {}
    seen: set[tuple[str, str]] = set()
    for line, row in table.rows:
        key = row["recording"], row["view"]
        if key in offsets:
            by_line[line] = "" if key in seen else f"{offsets[key]:.3f}".rstrip("0").rstrip(".")
            seen.add(key)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=table.separator)
    rows = [(reader.line_num, cells) for cells in reader]
    heads = ([tidy(cell).casefold() for cell in cells] for _, cells in rows)
    top, header = next((k, cells) for k, cells in enumerate(heads) if set(REQUIRED) <= set(cells))
    column = header.index("offset") if "offset" in header else len(header)
    if column == len(header):
        rows[top][1].append("offset")
    for line, cells in rows[1:]:
        if line in by_line:
            cells += [""] * (column + 1 - len(cells))
            cells[column] = by_line[line]
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=table.separator, lineterminator="\r\n" if "\r\n" in text else "\n").writerows(
        cells for _, cells in rows
    )
    # Spreadsheets read the mark at the beginning as UTF-8.
    mark = codecs.BOM_UTF8 if data.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else b""
    hint = "copy it to a folder that you may write to"
    written = mark + stream.getvalue().encode()
    write_atomically(path, written, parents=False, error=lambda why: DataError(f"cannot write {path}: {why}; {hint}"))
