"""A user's own cameras: a CSV with columns ``path,label,group,view`` and, if wanted, ``subject,split,start,end,background``.

A row is one camera's video of one performance. Paths are relative to the CSV's folder. ``start`` and ``end`` are seconds,
for untrimmed video. Views and labels may be any words; they are numbered in natural order (cam2 before cam10).
"""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path

from dtsf.cache.records import Clip
from dtsf.errors import DataError
from dtsf.pipeline.catalog import Catalog, build_catalog, natural_key

__all__ = ["catalog_manifest"]

REQUIRED = ("path", "label", "group", "view")
OPTIONAL = ("subject", "split", "start", "end", "background")


def catalog_manifest(root: Path) -> Catalog:
    """List the clips of a manifest.

    Args:
        root: The CSV file, or a folder that holds ``manifest.csv``.

    Raises:
        DataError: With the file and the line number of what is wrong.

    """
    file = root / "manifest.csv" if root.is_dir() else root
    if not file.is_file():
        raise DataError(f"no manifest at {file}: give --root a CSV file, or a folder that holds manifest.csv")
    base = file.parent.absolute()
    rows = _read_rows(file)
    labels = sorted({row["label"] for _, row in rows}, key=natural_key)
    views = sorted({row["view"] for _, row in rows}, key=natural_key)
    clips: list[Clip] = []
    lines: dict[tuple[str, str], int] = {}
    group_labels: dict[str, tuple[int, str]] = {}
    missing: list[str] = []
    for line, row in rows:
        where = f"{file}, line {line}"
        key = (row["group"], row["view"])
        if key in lines:
            raise DataError(f"{where}: group {key[0]!r} has view {key[1]!r} already on line {lines[key]}")
        lines[key] = line
        first_line, label = group_labels.setdefault(row["group"], (line, row["label"]))
        if label != row["label"]:
            raise DataError(
                f"{where}: group {row['group']!r} has label {row['label']!r} here and {label!r} on line {first_line}"
            )
        path = _relative_path(row["path"], base, where)
        if not (base / path).exists():
            missing.append(f"{path} (line {line})")
        start, end = _seconds(row, "start", where), _seconds(row, "end", where)
        if end is not None and end <= (start or 0.0):
            raise DataError(f"{where}: end ({end:g}) must be after start ({start or 0:g})")
        view = views.index(row["view"]) + 1
        clips.append(
            Clip(
                id=f"{row['group']}_v{view:02d}",
                path=path,
                label=labels.index(row["label"]),
                raw_label=row["label"],
                group=row["group"],
                view=view,
                subject=row.get("subject") or None,
                split=row.get("split") or None,
                background=row.get("background") or None,
                start=start,
                end=end,
            )
        )
    notes = []
    if missing:
        notes.append(
            f"{len(missing)} files of {file.name} do not exist and will be listed as unreadable; first {missing[0]}"
        )
    return build_catalog(
        "manifest",
        base,
        clips,
        class_names=labels,
        view_names=views,
        notes=notes,
        expects="rows in the CSV",
    )


def _read_rows(file: Path) -> list[tuple[int, dict[str, str]]]:
    """Rows with the number of the line on which each ends; all cells stripped."""
    rows = []
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            header = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = header
            absent = [name for name in REQUIRED if name not in header]
            if absent:
                raise DataError(
                    f"{file}, line 1: column {absent[0]!r} is missing; the header must name {', '.join(REQUIRED)} and may "
                    f"name {', '.join(OPTIONAL)}; it has {', '.join(header) or 'nothing'}"
                )
            for raw in reader:
                if raw.get(None):
                    raise DataError(f"{file}, line {reader.line_num}: more cells than the header has columns")
                row = {name: (raw[name] or "").strip() for name in header}
                if not any(row.values()):
                    continue
                for name in REQUIRED:
                    if not row[name]:
                        raise DataError(f"{file}, line {reader.line_num}: {name} is empty")
                rows.append((reader.line_num, row))
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{file} cannot be read as CSV in UTF-8: {error}") from error
    return rows


def _relative_path(text: str, base: Path, where: str) -> str:
    """The path relative to the CSV's folder; one that leaves it is refused, so that a cache's records never do."""
    joined = Path(os.path.normpath(base / text))
    if not joined.is_relative_to(base):
        raise DataError(f"{where}: {text} lies outside {base}; put the CSV into a folder above all videos")
    return joined.relative_to(base).as_posix()


def _seconds(row: dict[str, str], name: str, where: str) -> float | None:
    text = row.get(name, "")
    if not text:
        return None
    if not re.fullmatch(r"\d+(\.\d*)?|\.\d+", text):
        raise DataError(f"{where}: {name} ({text!r}) must be seconds, a number of at least 0")
    return float(text)
