"""Manifest: a table of the user's own videos, with columns ``path,label,group,view`` and optionally those of :data:`OPTIONAL`.

A row is the video of one camera and one performance. ``start`` and ``end`` (seconds), or ``first`` and ``last`` (frames), are the
part of a longer video; see :class:`dtsf.cache.schema.Clip`. Views and labels are any text, numbered in natural order.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dtsf.cache.schema import MAX_VIEWS, Clip
from dtsf.errors import DataError
from dtsf.names import counted, find_path, local_path, user_path
from dtsf.pipeline.datasets.catalog import SourceCatalog, build_catalog, natural_key
from dtsf.pipeline.datasets.tables import read_table
from dtsf.pipeline.settings import read_boxes, read_region
from dtsf.settings import explain

REQUIRED = ("path", "label", "group", "view")
OPTIONAL = ("subject", "split", "start", "end", "first", "last", "fps", "region", "ignore", "offset", "background")
# Pattern of a cell and its description. Each group is 60 times as much as the next one. Spreadsheets write 12 as 12.0.
SECONDS = (
    r"(?:(?:(\d+):)?(\d{1,2}):(?=0*[0-5]?\d?(?!\d)))?(\d+(?:[.,]\d*)?|[.,]\d+)",
    "seconds (a number of at least 0) or h:mm:ss.s",
)
FRAME = (r"(\d{1,9})(?:[.,]0*)?", "a frame number, from 0")
MAX_NUMBER = 1e9  # seconds: thirty years
NUMBER = (r"([+-]?(?:\d+(?:[.,]\d*)?|[.,]\d+))", "a number")


def catalog_manifest(root: Path, videos: Path | None = None) -> SourceCatalog:
    """List the clips of a table, or of ``root/manifest.csv``. ``videos``: folder of its paths; default: the table's folder."""
    file = root / "manifest.csv" if root.is_dir() else root
    if not file.is_file():
        raise DataError(f"no manifest at {file}: give a table, or a folder with a manifest.csv, as --root")
    videos = videos and user_path(videos)
    if videos is not None and not videos.is_dir():
        raise DataError(f"the folder --videos {videos} does not exist")
    rows, notes, *_ = read_table(file, REQUIRED, OPTIONAL)
    # Text: Path objects cost seconds for ten thousand rows.
    base = os.path.normpath((videos or file.parent).absolute())
    listings: dict[str, dict[str, str]] = {}
    advice = "give the folder of the videos with --videos, or an absolute path"
    paths = [resolve_path(row["path"], base, f"{file}, line {line}", listings, advice) for line, row in rows]
    if not all(_is_below(path, base) for path in paths):
        # Some paths are absolute: use the common folder, so that no record leads out of the data root.
        base = os.path.commonpath([os.path.dirname(path) for path in paths])
    labels, views = (sorted({row[name] for _, row in rows}, key=natural_key) for name in ("label", "view"))
    if len(views) > MAX_VIEWS:
        raise DataError(
            f"{file} has {len(views)} views, more than {MAX_VIEWS}: is {views[0]!r} in column view a camera?"
        )
    label_of, view_of = ({name: k for k, name in enumerate(names)} for names in (labels, views))
    view_lines: dict[tuple[str, str], int] = {}
    group_labels: dict[str, tuple[int, str]] = {}
    clips: list[Clip] = []
    missing: list[str] = []
    for (line, row), path in zip(rows, paths, strict=True):
        where, group, view = f"{file}, line {line}", row["group"], view_of[row["view"]] + 1
        first_line = view_lines.setdefault((group, row["view"]), line)
        if first_line != line:
            raise DataError(f"{where}: group {group!r} has view {row['view']!r} already on line {first_line}")
        first_line, label = group_labels.setdefault(group, (line, row["label"]))
        if label != row["label"]:
            raise DataError(
                f"{where}: group {group!r} has label {row['label']!r} here and {label!r} on line {first_line}"
            )
        relative = path[len(base.rstrip("/")) + 1 :]
        if not os.path.exists(path):
            missing.append(f"{row['path']} (line {line})")
        facts: dict[str, Any] = {name: row.get(name) or None for name in ("subject", "split", "background")}
        facts |= {"path": relative, "group": group, "raw_label": label, "id": f"{group}_v{view:02d}"}
        offset = read_number(row, "offset", where) or 0.0
        facts |= {"label": label_of[label], "view": view, "offset": offset, "line": line}
        try:
            clips.append(Clip(**facts, **read_part(row, where)))
        except ValidationError as error:
            raise DataError(f"{where}: {explain(error, most=3)}") from error
    if missing:
        who = counted(len(missing), "file does not exist and is", "files do not exist and are")
        notes.append(f"{who} left out, of those in {file.name}; the first is {missing[0]}")
    names = {"class_names": labels, "view_names": views}
    return build_catalog("manifest", Path(base), clips, **names, notes=notes, expects="rows in the table")


def read_number(row: dict[str, str], name: str, where: str, kind: tuple[str, str] = NUMBER) -> float | None:
    """Return the number in a cell, or None for an empty cell. Raises DataError: it is no number of this kind."""
    text = row.get(name, "")
    match = re.fullmatch(kind[0], text)
    if text and match is None:
        raise DataError(f"{where}: {name} ({text!r}) must be {kind[1]}")
    total = 0.0
    for part in match.groups(default="0") if match else ():
        total = 60 * total + float(part.replace(",", "."))
    if abs(total) > MAX_NUMBER or 0 < abs(total) < 1 / MAX_NUMBER:
        raise DataError(f"{where}: {name} ({text[:20]}) is too {'large' if abs(total) > 1 else 'small'}")
    return total if match else None


def read_part(row: dict[str, str], where: str) -> dict[str, Any]:
    """Return the part of the file that a row describes, as fields of a clip. Raises DataError: it is no part."""
    start, end = (read_number(row, name, where, SECONDS) for name in ("start", "end"))
    first, last = (read_number(row, name, where, FRAME) for name in ("first", "last"))
    fps = read_number(row, "fps", where)
    if (start, end) != (None, None) and (first, last) != (None, None):
        raise DataError(f"{where}: give start and end, or first and last, not both")
    if end is not None and end <= (start or 0.0):
        raise DataError(f"{where}: end ({end:g}) must be after start ({start or 0:g})")
    if last is not None and last < (first or 0):
        raise DataError(f"{where}: last ({last:.0f}) must not be before first ({first or 0:.0f})")
    if fps is not None and fps <= 0:
        raise DataError(f"{where}: fps ({fps:g}) must be above 0")
    boxes: dict[str, Any] = {}
    for name, read in (("region", read_region), ("ignore", read_boxes)):
        try:
            boxes[name] = read(row.get(name, ""))
        except ValueError as error:
            raise DataError(f"{where}: {name} {error}") from error
    return {"start": start, "end": end, "first": first, "last": last, "fps": fps, **boxes}


def resolve_path(
    text: str,
    base: str,
    where: str,
    listings: dict[str, dict[str, str]] | None = None,
    advice: str = "give an absolute path",
) -> str:
    """Return the file of a cell. A relative path out of ``base`` is refused, so that a table from elsewhere cannot use it.

    ``listings``: see :func:`dtsf.names.find_path`. Raises DataError also for an address; see :func:`dtsf.names.local_path`.
    """
    text = text if os.path.lexists(os.path.join(base, text)) else local_path(text, f"{where}: ")
    if "\\" in text and not os.path.exists(os.path.join(base, text)):
        text = text.replace("\\", "/")
    path = os.path.normpath(os.path.join(base, text))
    if not os.path.isabs(text) and not _is_below(path, base):
        raise DataError(f"{where}: {text} is outside of {base}: {advice}")
    return find_path(path, listings)


def _is_below(path: str, base: str) -> bool:
    return path.startswith(f"{base.rstrip('/')}/")
