"""Manifest: a table of the user's own videos, with columns ``path,label,group,view`` and optionally those of :data:`OPTIONAL`.

A row is the video of one camera and one performance. A path is relative to the table's folder (or ``--videos``), or absolute.
``start`` and ``end`` (seconds), or ``first`` and ``last`` (frame numbers), are the part of a longer video. ``fps`` is the frame
rate of a folder of pictures. ``offset`` is the time in seconds at which the camera started, on the clock of the performance.
Views and labels are any text. They are numbered in natural order (cam2 before cam10).
"""

from __future__ import annotations

import os
from pathlib import Path

from dtsf.cache.schema import Clip
from dtsf.errors import DataError
from dtsf.pipeline.datasets.catalog import SourceCatalog, build_catalog, natural_key
from dtsf.pipeline.datasets.tables import FRAME, SECONDS, read_number, read_table

REQUIRED = ("path", "label", "group", "view")
OPTIONAL = ("subject", "split", "start", "end", "first", "last", "fps", "offset", "background")


def catalog_manifest(root: Path, videos: Path | None = None) -> SourceCatalog:
    """List the clips of a manifest. ``root``: the table, or a folder with a ``manifest.csv``. ``videos``: folder of the paths in
    the table; by default the table's folder. Raises DataError: names the file and line of the error.
    """
    file = root / "manifest.csv" if root.is_dir() else root
    if not file.is_file():
        raise DataError(f"no manifest at {file}: give a table, or a folder with a manifest.csv, as --root")
    if videos is not None and not videos.is_dir():
        raise DataError(f"the folder --videos {videos} does not exist")
    rows, notes = read_table(file, REQUIRED, OPTIONAL)
    # Text: Path objects cost seconds for ten thousand rows.
    base = os.path.normpath((videos or file.parent).absolute())
    paths = []
    for line, row in rows:
        text = row["path"]
        if "\\" in text and not os.path.exists(os.path.join(base, text)):
            text = text.replace("\\", "/")
        paths.append(os.path.normpath(os.path.join(base, text)))
        # A table from elsewhere cannot use other files.
        if not os.path.isabs(text) and not _is_below(paths[-1], base):
            raise DataError(
                f"{file}, line {line}: {text} is outside of {base}: give the folder of the videos with --videos, or an "
                "absolute path"
            )
    if not all(_is_below(path, base) for path in paths):
        # Some paths are absolute: use the common folder, so that no record leads out of the data root.
        base = os.path.commonpath([os.path.dirname(path) for path in paths])
    labels, views = (sorted({row[name] for _, row in rows}, key=natural_key) for name in ("label", "view"))
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
            missing.append(f"{relative} (line {line})")
        texts = {name: row.get(name) or None for name in ("subject", "split", "background")}
        clips.append(
            Clip(
                id=f"{group}_v{view:02d}",
                path=relative,
                label=label_of[label],
                raw_label=label,
                group=group,
                view=view,
                offset=read_number(row, "offset", where) or 0.0,
                **texts,
                **_part(row, where),
            )
        )
    if missing:
        notes.append(f"{len(missing)} files of {file.name} do not exist and are left out; the first is {missing[0]}")
    names = {"class_names": labels, "view_names": views}
    return build_catalog("manifest", Path(base), clips, **names, notes=notes, expects="rows in the table")


def _part(row: dict[str, str], where: str) -> dict[str, float | None]:
    """Return the part of the file that a row describes, as fields of a clip."""
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
    return {"start": start, "end": end, "first": first, "last": last, "fps": fps}


def _is_below(path: str, base: str) -> bool:
    return path.startswith(f"{base.rstrip('/')}/")
