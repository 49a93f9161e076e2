"""Convert annotation lists of other projects to a manifest.

:mod:`dtsf.pipeline.datasets.read_lists` reads them. Group and view follow from file names of NTU or N-UCLA. A file with another
name is a group of its own, and so is each part of it.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dtsf.errors import DataError
from dtsf.files.write import write_atomically
from dtsf.names import counted, tidy
from dtsf.pipeline.datasets.manifest import OPTIONAL
from dtsf.pipeline.datasets.read_lists import Find, read_labels, read_list
from dtsf.pipeline.source import PICTURE_ENDINGS, SkippedFiles, is_video, walk_files
from dtsf.settings import Frozen

NTU = re.compile(r"S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})", re.IGNORECASE)
NUCLA = re.compile(r"v(\d{2})_s(\d{2})_e(\d{2})", re.IGNORECASE)
COLUMNS = ("path", "label", "group", "view", *OPTIONAL)
# Paths of videos below the root, by file name without ending.
Videos = dict[str, list[str]]


class ImportedList(Frozen):
    """Result of :func:`import_lists`. ``missing``: entries without a video under the root, which are not in the manifest.
    ``alone``: rows without group and view in the file name; each is a group of one view.
    """

    manifest: str
    rows: int
    groups: int
    splits: dict[str, int]
    missing: tuple[str, ...]
    alone: int
    notes: tuple[str, ...] = ()


def import_lists(
    files: Sequence[Path], root: Path, out: Path | None = None, split: str = "", labels: Path | None = None
) -> ImportedList:
    """Write a manifest of the videos in one or more lists.

    Without splits inside a list, the split is the word train, val or test in the file name. ``out``: by default
    ``root/manifest.csv``; its paths are relative if the videos are below its folder. ``split``: prefix of the splits to use from a
    pickle: ``xsub`` for ``xsub_train`` and ``xsub_val``. ``labels``: a label map, whose names replace the numbers in the lists.

    Raises DataError: a list has an unknown form, a pickle has more than plain data, or no entry has a video.
    """
    if not root.is_dir():
        raise DataError(f"the root {root} does not exist")
    out = out or root / "manifest.csv"
    if out.exists():
        raise DataError(f"{out} exists: remove it or choose another --out")
    skipped = SkippedFiles()
    videos: Videos = {}
    folders: Videos = {}
    for folder, name in walk_files(root, skipped):
        if is_video(name):
            videos.setdefault(_stem(name), []).append(f"{folder}/{name}".lstrip("/"))
        elif folder and name.lower().endswith(PICTURE_ENDINGS):
            same = folders.setdefault(_stem(folder), [])
            same += [] if same[-1:] == [folder] else [folder]

    def find(name: str, action: str = "") -> Path | None:
        found = _find(videos, name, action) or _find(folders, name, action)
        return root.absolute() / found if found else None

    names = read_labels(labels) if labels else {}
    rows: dict[tuple[str, str], tuple[str, dict[str, str]]] = {}
    group_labels: dict[str, tuple[str, str]] = {}
    missing: list[str] = []
    notes = skipped.notes()
    alone = 0
    for file in files:
        entries, more = read_list(file, split, find)
        notes += more
        if not entries:
            raise DataError(f"{file} names no video")
        for entry in entries:
            cells = dict(entry.cells)
            path = find(entry.name, entry.action) or _find_part(find, entry.name, cells)
            if path is None:
                missing.append(f"{entry.name} ({entry.place})")
                continue
            if names and entry.label not in names:
                raise DataError(f"{labels} has no name for label {entry.label} of {entry.name} in {file}")
            base = out.parent.absolute()
            written = str(path.relative_to(base) if path.is_relative_to(base) else path)
            if "group" not in cells:
                group, view, person = _performance(path.name, entry.label)
                alone += not group
                cells["subject"] = person or cells.get("subject", "")
                cells["view"] = view or cells.get("view", "1")
                part = "-".join(cells[name] for name in ("start", "end", "first", "last") if cells.get(name))
                cells["group"] = "_".join(filter(None, (group or written, part)))
            cells |= {"path": written, "label": names.get(entry.label, entry.label)}
            cells.setdefault("view", "1")
            place, before = rows.setdefault((cells["group"], cells["view"]), (entry.place, cells))
            if before != cells:
                name = next(one for one in (*before, *cells) if before.get(one) != cells.get(one))
                two = f"{name} {before.get(name, '')!r} there and {cells.get(name, '')!r} here"
                raise DataError(f"{entry.place}: {written} is in {place} already, with {two}: remove one")
            first, label = group_labels.setdefault(cells["group"], (entry.place, cells["label"]))
            if label != cells["label"]:
                raise DataError(
                    f"{entry.place}: group {cells['group']!r} has label {cells['label']!r} here and {label!r} in {first}"
                )
            if place != entry.place:
                notes.append(f"{entry.place}: the same as {place}; it counts once")
    if not rows:
        raise DataError(
            f"no video under {root} for {counted(len(missing), 'entry', 'entries')}; the first is {missing[0]}"
        )
    written_rows = [row for _, row in rows.values()]
    write_manifest(out, [name for name in COLUMNS if any(row.get(name) for row in written_rows)], written_rows)
    counts = Counter(row.get("split", "") for row in written_rows)
    splits = {
        name or "none": counts[name] for name in sorted(counts, key=lambda name: (name != "train", not name, name))
    }
    groups = len({row["group"] for row in written_rows})
    texts = {"missing": tuple(missing), "notes": tuple(notes)}
    return ImportedList(manifest=str(out), rows=len(rows), groups=groups, splits=splits, alone=alone, **texts)


def _performance(name: str, label: str) -> tuple[str, str, str]:
    """Return group, view and subject in a file name of NTU or N-UCLA; empty texts for other names."""
    if match := NTU.search(name):
        setup, view, person, repetition, action = match.groups()
        return f"S{setup}P{person}R{repetition}A{action}", str(int(view)), str(int(person))
    if match := NUCLA.search(name):
        view, person, episode = match.groups()
        return f"{label}_s{person}_e{episode}", str(int(view)), str(int(person))
    return "", "", ""


def _find_part(find: Find, name: str, cells: dict[str, str]) -> Path | None:
    """Return the video that was cut out already and has its times in its name, as of Kinetics. Its times leave ``cells``."""
    try:
        start, end = (int(float(cells[name])) for name in ("start", "end"))
    except (KeyError, ValueError):
        return None
    path = find(f"{name}_{start:06d}_{end:06d}")
    if path is not None:
        del cells["start"], cells["end"]
    return path


def write_manifest(out: Path, columns: Sequence[str], rows: Sequence[dict[str, str]]) -> None:
    """Write a manifest. Raises DataError: the file cannot be written."""
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, columns, restval="", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    data = stream.getvalue().encode("utf-8", "surrogateescape")
    hint = "choose another file with --out FILE, and give it to dtsf preprocess as --root"
    write_atomically(out, data, parents=False, error=lambda why: DataError(f"cannot write {out}: {why}; {hint}"))


def _stem(path: str) -> str:
    """Return the name that a video has in lists: in small letters, without folder and ending."""
    name = tidy(path.rpartition("/")[2]).lower()
    return (Path(name).stem if is_video(name) else name).removesuffix("_rgb")


def _find(videos: Videos, name: str, action: str = "") -> str | None:
    """Return the path of one video: that with the same ending and the most folders in common. None: there are none or several."""
    name = tidy(name.replace("\\", "/")).lower().rstrip("/")
    found = videos.get(_stem(name), [])
    if len(found) > 1 and action.isdecimal():
        found = [path for path in found if f"a{int(action):02d}" in path.lower().split("/")[:-1]]
    if is_video(name):
        found = [path for path in found if path.lower().endswith(Path(name).suffix)] or found
    folders = list(Path(name).parts[:-1])
    while len(found) > 1 and folders:
        found = [path for path in found if tidy(path).lower().split("/")[:-1][-len(folders) :] == folders] or found
        folders = folders[1:]
    return found[0] if len(found) == 1 else None
