"""Convert annotation lists of other projects to a manifest.

mmaction2 and pyskl have a pickle with ``annotations`` (``frame_dir``, ``label``) and ``split``; DVANet has CSV with
``video_id,subject,action,camera,...`` (NTU) or ``video,subject,action,viewpoint`` (N-UCLA); VideoMamba has lines of ``path label``.
Group and view follow from file names of NTU or N-UCLA. A file with another name is a group of its own.
"""

from __future__ import annotations

import csv
import io
import pickle
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dtsf.errors import DataError
from dtsf.files.read import read_file
from dtsf.files.write import write_atomically
from dtsf.pipeline.datasets.tables import decode_text
from dtsf.pipeline.source import SkippedFiles, is_video, walk_files
from dtsf.settings import Frozen

NTU = re.compile(r"S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})", re.IGNORECASE)
NUCLA = re.compile(r"v(\d{2})_s(\d{2})_e(\d{2})", re.IGNORECASE)
MAX_BYTES = 1 << 30
COLUMNS = ("path", "label", "group", "view", "subject", "split")
# Split in a list -> split in the manifest.
SPLITS = {"train": "train", "val": "test", "test": "test"}
# Separators of path and label as regular expressions. The first is CSV with quotes.
SEPARATORS = ("", "\t", r"\s", ",", ";")
# Names in NumPy's own pickles of arrays and numbers. Any other name could run code.
SAFE = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")} | {
    (f"{base}.multiarray", name) for base in ("numpy.core", "numpy._core") for name in ("_reconstruct", "scalar")
}

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


class _Entry(NamedTuple):
    """A line of a list. ``name``: path, or file name without ending. ``action``: N-UCLA's id, because its file names repeat."""

    name: str
    label: str
    split: str
    subject: str = ""
    action: str = ""


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
    for folder, name in walk_files(root, skipped):
        if is_video(name):
            videos.setdefault(_stem(name), []).append(f"{folder}/{name}".lstrip("/"))
    names = _read_labels(labels) if labels else {}
    rows: list[dict[str, str]] = []
    missing: list[str] = []
    alone = 0
    for file in files:
        data = read_file(file, limit=MAX_BYTES, error=DataError, follow=True)
        is_pickle = file.suffix.lower() in (".pkl", ".pickle") or data[:1] == b"\x80"
        entries = _read_pickle(file, data, split) if is_pickle else _read_text(file, data, videos)
        if not entries:
            raise DataError(f"{file} names no video")
        for entry in entries:
            found = _find(videos, entry.name, entry.action)
            if found is None:
                missing.append(entry.name)
                continue
            if names and entry.label not in names:
                raise DataError(f"{labels} has no name for label {entry.label} of {entry.name} in {file}")
            path, base = root.absolute() / found, out.parent.absolute()
            group, view, person = found, "1", entry.subject
            if match := NTU.search(path.name):
                setup, view, person, repetition, action = match.groups()
                group = f"S{setup}P{person}R{repetition}A{action}"
            elif match := NUCLA.search(path.name):
                view, person, episode = match.groups()
                group = f"{entry.label}_s{person}_e{episode}"
            else:
                alone += 1
            view, person = (str(int(text)) if match else text for text in (view, person))
            written = str(path.relative_to(base) if path.is_relative_to(base) else path)
            label = names.get(entry.label, entry.label)
            rows.append(dict(zip(COLUMNS, (written, label, group, view, person, entry.split), strict=True)))
    if not rows:
        raise DataError(f"none of the {len(missing)} entries has a video under {root}; the first is {missing[0]}")
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    data = stream.getvalue().encode("utf-8", "surrogateescape")
    hint = "choose another file with --out FILE, and give it to dtsf preprocess as --root"
    write_atomically(out, data, parents=False, error=lambda why: DataError(f"cannot write {out}: {why}; {hint}"))
    counts = Counter(row["split"] for row in rows)
    splits = {name or "none": counts[name] for name in ("train", "test", "") if counts[name]}
    groups = len({row["group"] for row in rows})
    texts = {"missing": tuple(missing), "notes": tuple(skipped.notes())}
    return ImportedList(manifest=str(out), rows=len(rows), groups=groups, splits=splits, alone=alone, **texts)


def _stem(path: str) -> str:
    return Path(path).stem.lower().removesuffix("_rgb")


def _find(videos: Videos, name: str, action: str = "") -> str | None:
    """Return the path of one video: that with the same ending and the most folders in common. None: there are none or several."""
    name = name.replace("\\", "/").lower()
    found = videos.get(_stem(name), [])
    if len(found) > 1 and action.isdecimal():
        found = [path for path in found if f"a{int(action):02d}" in path.lower().split("/")[:-1]]
    if is_video(name):
        found = [path for path in found if path.lower().endswith(Path(name).suffix)] or found
    folders = list(Path(name).parts[:-1])
    while len(found) > 1 and folders:
        found = [path for path in found if path.lower().split("/")[:-1][-len(folders) :] == folders] or found
        folders = folders[1:]
    return found[0] if len(found) == 1 else None


def _read_labels(file: Path) -> dict[str, str]:
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


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in SAFE:
            raise pickle.UnpicklingError(f"it contains {module}.{name}, which is not plain data")
        return super().find_class(module, name)


def _read_pickle(file: Path, data: bytes, prefix: str) -> list[_Entry]:
    try:
        document = _PlainUnpickler(io.BytesIO(data)).load()
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
            entries += [_Entry(_text(stem), labels[_text(stem)], SPLITS.get(word, word)) for stem in ids]
        return entries
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError, OverflowError) as error:
        raise DataError(f"{file} is not a list of mmaction2 or pyskl: {type(error).__name__}: {error}") from error


def _text(value: object) -> str:
    # Other objects are not converted: a pickle of a hundred bytes can have a text form that takes all memory.
    if not isinstance(value, str):
        raise TypeError(f"a name is not text but {type(value).__name__}")
    value.encode()  # raises ValueError for text that cannot be written
    return value


def _read_text(file: Path, data: bytes, videos: Videos) -> list[_Entry]:
    split = next((SPLITS[word] for word in SPLITS if word in file.stem.lower()), "")
    text, _ = decode_text(data, str(file))
    lines = text.splitlines(keepends=True)
    try:
        header = [cell.strip() for cell in next(csv.reader(lines), [])]
        if "action" not in header:
            return _read_lines(file, [line for line in lines if line.strip()], split, videos)
        entries = []
        for cells in list(csv.reader(lines))[1:]:
            row = dict(zip(header, map(str.strip, cells), strict=False))
            if any(row.values()):
                # The label is the action as written: from 1 for NTU, the action id for N-UCLA.
                name = row.get("video_id") or row["video"]
                entries.append(_Entry(name, row["action"], split, row["subject"], row["action"]))
        return entries
    except csv.Error as error:
        raise DataError(f"{file} cannot be read as text: {error}") from error
    except KeyError as error:
        raise DataError(f"{file}: column {error} is missing; it has {', '.join(header)}") from error


def _read_lines(file: Path, lines: list[str], split: str, videos: Videos) -> list[_Entry]:
    """Split lines into path and label, by the separator that finds most of the paths."""

    def cells(line: str, separator: str) -> list[str]:
        if not separator:
            return [cell.strip() for cell in next(csv.reader([line]), [])]
        return [cell.strip() for cell in re.split(f"{separator}+(?=[^{separator}]+$)", line.strip(), maxsplit=1)]

    def count_found(separator: str) -> int:
        pairs = (cells(line, separator) for line in lines)
        return sum(len(pair) == 2 and _find(videos, pair[0]) is not None for pair in pairs)

    best = max(SEPARATORS, key=count_found)
    entries = []
    for number, line in enumerate(lines, 1):
        pair = next((pair for mark in (best, *SEPARATORS) if len(pair := cells(line, mark)) == 2), None)
        if pair is None:
            raise DataError(f"{file}, line {number}: {line.strip()!r} is not a path and a label")
        entries.append(_Entry(pair[0], pair[1], split))
    return entries
