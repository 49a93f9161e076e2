"""A user's own cameras: a table with columns ``path,label,group,view`` and, if wanted, those of :data:`OPTIONAL`.

A row is one camera's video of one performance. Paths are relative to the table's folder, or to ``--videos``, or absolute.
``start`` and ``end`` are times, ``first`` and ``last`` numbers of frames, for untrimmed video; ``fps`` is that of a folder of
pictures; ``offset`` is how many seconds later than the performance's time zero a camera began. Views and labels may be any
words; they are numbered in natural order (cam2 before cam10).
"""

from __future__ import annotations

import os
from pathlib import Path

from dtsf.cache.records import Clip
from dtsf.errors import DataError
from dtsf.pipeline.catalog import Catalog, build_catalog, natural_key
from dtsf.pipeline.datasets.tables import number, read_table, seconds, whole_number

REQUIRED = ("path", "label", "group", "view")
OPTIONAL = ("subject", "split", "start", "end", "first", "last", "fps", "offset", "background")


def catalog_manifest(root: Path, videos: Path | None = None) -> Catalog:
    """List the clips of a manifest. ``root``: the table, or a folder that holds ``manifest.csv``. ``videos``: folder that its
    paths are relative to; the table's own if left out. Raises DataError: with the file and the line number of what is wrong.
    """
    file = root / "manifest.csv" if root.is_dir() else root
    if not file.is_file():
        raise DataError(f"no manifest at {file}: give --root a table, or a folder that holds manifest.csv")
    if videos is not None and not videos.is_dir():
        raise DataError(f"the folder of --videos {videos} does not exist")
    table = read_table(file, REQUIRED, OPTIONAL)
    # Words, not Path objects: of ten thousand rows those cost seconds.
    base = os.path.normpath((videos or file.parent).absolute())
    paths = [_resolve(row["path"], base, f"{file}, line {line}") for line, row in table.rows]
    if not all(_is_below(path, base) for path in paths):
        # Absolute paths elsewhere: their common folder, so that no record ever leads out of the data's own.
        base = os.path.commonpath([os.path.dirname(path) for path in paths])
    labels = sorted({row["label"] for _, row in table.rows}, key=natural_key)
    views = sorted({row["view"] for _, row in table.rows}, key=natural_key)
    label_of, view_of = ({name: k for k, name in enumerate(names)} for names in (labels, views))
    lines: dict[tuple[str, str], int] = {}
    group_labels: dict[str, tuple[int, str]] = {}
    clips: list[Clip] = []
    missing: list[str] = []
    for (line, row), path in zip(table.rows, paths, strict=True):
        where = f"{file}, line {line}"
        _check_group(row, line, where, lines, group_labels)
        relative = path[len(base.rstrip("/")) + 1 :]
        if not os.path.exists(path):
            missing.append(f"{relative} (line {line})")
        view = view_of[row["view"]] + 1
        clips.append(
            Clip(
                id=f"{row['group']}_v{view:02d}",
                path=relative,
                label=label_of[row["label"]],
                raw_label=row["label"],
                group=row["group"],
                view=view,
                subject=row.get("subject") or None,
                split=row.get("split") or None,
                background=row.get("background") or None,
                offset=number(row, "offset", where) or 0.0,
                **_part(row, where),
            )
        )
    notes = list(table.notes)
    if missing:
        notes.append(f"{len(missing)} files of {file.name} do not exist and are left out; first {missing[0]}")
    return build_catalog(
        "manifest",
        Path(base),
        clips,
        class_names=labels,
        view_names=views,
        notes=notes,
        expects="rows in the table",
    )


def _check_group(
    row: dict[str, str],
    line: int,
    where: str,
    lines: dict[tuple[str, str], int],
    group_labels: dict[str, tuple[int, str]],
) -> None:
    key = (row["group"], row["view"])
    if key in lines:
        raise DataError(f"{where}: group {key[0]!r} has view {key[1]!r} already on line {lines[key]}")
    lines[key] = line
    first_line, label = group_labels.setdefault(row["group"], (line, row["label"]))
    if label != row["label"]:
        raise DataError(
            f"{where}: group {row['group']!r} has label {row['label']!r} here and {label!r} on line {first_line}"
        )


def _part(row: dict[str, str], where: str) -> dict[str, float | int | None]:
    """Which part of the file is meant."""
    start, end = seconds(row, "start", where), seconds(row, "end", where)
    first, last = whole_number(row, "first", where), whole_number(row, "last", where)
    fps = number(row, "fps", where)
    if (start, end) != (None, None) and (first, last) != (None, None):
        raise DataError(f"{where}: start and end, or first and last: not both")
    if end is not None and end <= (start or 0.0):
        raise DataError(f"{where}: end ({end:g}) must be after start ({start or 0:g})")
    if last is not None and last < (first or 0):
        raise DataError(f"{where}: last ({last}) must not be before first ({first or 0})")
    if fps is not None and fps <= 0:
        raise DataError(f"{where}: fps ({fps:g}) must be above 0")
    return {"start": start, "end": end, "first": first, "last": last, "fps": fps}


def _resolve(text: str, base: str, where: str) -> str:
    """The file that a cell means. A relative path that leaves ``base`` is refused: a table from elsewhere leads nowhere else."""
    if "\\" in text and not os.path.exists(os.path.join(base, text)):
        text = text.replace("\\", "/")
    path = os.path.normpath(os.path.join(base, text))
    if not os.path.isabs(text) and not _is_below(path, base):
        raise DataError(
            f"{where}: {text} lies outside {base}; name the folder of the videos with --videos, or write it whole"
        )
    return path


def _is_below(path: str, base: str) -> bool:
    return path.startswith(f"{base.rstrip('/')}/")
