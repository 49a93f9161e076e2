"""Lists that people already have, turned into a manifest: other projects' annotation files.

======================  =====================================================================================
mmaction2, pyskl        pickle: ``annotations`` (``frame_dir``, ``label``) and ``split``; read by a restricted unpickler
DVANet                  CSV: ``video_id,subject,action,camera,...`` (NTU) or ``video,subject,action,viewpoint`` (N-UCLA)
VideoMamba              lines of ``path label``, separated by a comma, a tab or a space; no header
======================  =====================================================================================

Group and camera come from the file's name where it is NTU's or N-UCLA's; a name of another kind is a group of its own.
"""

from __future__ import annotations

import csv
import io
import pickle
import re
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dtsf.cache.records import Frozen
from dtsf.errors import DataError
from dtsf.files.read import read_file
from dtsf.files.write import write_atomically
from dtsf.pipeline.datasets.list_videos import Videos, read_labels, split_lines
from dtsf.pipeline.datasets.tables import decode_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

NTU = re.compile(r"S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})", re.IGNORECASE)
NUCLA = re.compile(r"v(\d{2})_s(\d{2})_e(\d{2})", re.IGNORECASE)
SPLITS = ("train", "val", "test")
LIMIT = 1 << 30
"""Bytes of the largest list that is read."""
COLUMNS = ("path", "label", "group", "view", "subject", "split")
# What NumPy's own pickles of arrays and numbers name; anything else could run code.
SAFE = {
    (module, name)
    for base in ("numpy.core", "numpy._core")
    for module, name in ((f"{base}.multiarray", "_reconstruct"), (f"{base}.multiarray", "scalar"))
} | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}


class ImportedList(Frozen):
    """What became of the lists."""

    manifest: str
    rows: int
    groups: int
    splits: dict[str, int]
    missing: tuple[str, ...]
    """Entries for which no video stands under the root; they are not in the manifest."""
    alone: int
    """Rows whose name says neither group nor camera: each is a group of one view."""
    notes: tuple[str, ...] = ()
    """What could not be looked at under the root."""


class _Entry(Frozen):
    name: str
    """Path or stem, as the list has it."""
    label: str
    split: str
    subject: str = ""
    action: str = ""
    """N-UCLA's raw action, where the name alone is not unique."""


def import_lists(
    files: Sequence[Path], root: Path, out: Path | None = None, split: str = "", labels: Path | None = None
) -> ImportedList:
    """Write a manifest for the videos that lists name. Raises DataError: a list of no known form, a pickle with anything but
    plain data, or no video found for any entry.

    Args:
        files: One or more lists. The split of one that does not say it is the word train, val or test in its name.
        out: The manifest; ``root/manifest.csv`` if left out. Paths in it are relative where the videos are below its
            folder.
        split: For a pickle with several splits: the prefix to take, ``xsub`` for ``xsub_train`` and ``xsub_val``.
        labels: A label map, whose names take the place of the lists' numbers.
    """
    if not root.is_dir():
        raise DataError(f"the root {root} does not exist")
    out = out or root / "manifest.csv"
    if out.exists():
        raise DataError(f"{out} exists: remove it or choose another --out")
    videos = Videos(root)
    names = read_labels(decode_text(_bytes(labels), str(labels))[0], str(labels)) if labels else {}
    rows: list[dict[str, str]] = []
    missing: list[str] = []
    alone = 0
    for file in files:
        for entry in _read(file, split, videos):
            found = videos.find(entry.name, entry.action)
            if found is None:
                missing.append(entry.name)
                continue
            if names and entry.label not in names:
                raise DataError(f"{labels} has no name for label {entry.label}, which {entry.name} of {file} has")
            row = _row(entry, found) | {"label": names.get(entry.label, entry.label)}
            alone += row["group"] == found
            path = root.absolute() / found
            beside = path.is_relative_to(out.parent.absolute())
            row["path"] = (path.relative_to(out.parent.absolute()) if beside else path).as_posix()
            rows.append(row)
    if not rows:
        raise DataError(f"none of the {len(missing)} entries has a video under {root}; the first is {missing[0]}")
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    data = stream.getvalue().encode("utf-8", "surrogateescape")
    hint = "choose another place with --out FILE, and tell dtsf preprocess of it"
    write_atomically(out, data, parents=False, error=lambda why: DataError(f"cannot write {out}: {why}; {hint}"))
    counts = {name: sum(row["split"] == name for row in rows) for name in ("train", "test", "")}
    return ImportedList(
        manifest=str(out),
        rows=len(rows),
        groups=len({row["group"] for row in rows}),
        splits={name or "none": count for name, count in counts.items() if count},
        missing=tuple(missing),
        alone=alone,
        notes=tuple(videos.notes),
    )


def _bytes(file: Path) -> bytes:
    if not file.is_file():
        raise DataError(f"no list at {file}")
    return read_file(file, limit=LIMIT, error=DataError, follow=True)


def _read(file: Path, split: str, videos: Videos) -> list[_Entry]:
    data = _bytes(file)
    is_pickle = file.suffix.lower() in (".pkl", ".pickle") or data[:1] == b"\x80"
    entries = list(_read_pickle(file, data, split) if is_pickle else _read_text(file, data, videos))
    if not entries:
        raise DataError(f"{file} names no video")
    return entries


class _PlainUnpickler(pickle.Unpickler):
    """Refuses every class and function but those that NumPy's arrays are made of."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in SAFE:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is not plain data")
        return super().find_class(module, name)


def _read_pickle(file: Path, data: bytes, prefix: str) -> Iterable[_Entry]:
    document = _load(io.BytesIO(data), file)
    try:
        splits: dict[str, list[str]] = document["split"]
        # A pickle can say in a hundred bytes what would take all memory to write out: nothing but words is turned into words.
        labels = {_word(a["frame_dir"]): str(int(a["label"])) for a in document["annotations"]}
        chosen = {name: ids for name, ids in splits.items() if name.startswith(prefix)}
        prefixes = sorted({name.rpartition("_")[0] for name in chosen})
        if len(prefixes) != 1:
            raise DataError(f"{file} has the splits {', '.join(sorted(splits))}: say which with --split xsub")
        return [
            _Entry(name=_word(stem), label=labels[_word(stem)], split=_split_word(name.rpartition("_")[2]))
            for name, ids in chosen.items()
            for stem in ids
        ]
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError, OverflowError) as error:
        raise DataError(f"{file} is not mmaction2's or pyskl's: {type(error).__name__}: {error}") from error


def _word(given: object) -> str:
    if not isinstance(given, str):
        raise TypeError(f"a name is no text but {type(given).__name__}")
    return given


def _load(stream: IO[bytes], file: Path) -> Any:
    try:
        return _PlainUnpickler(stream).load()
    # A pickle is a program: a broken or hostile one can raise anything.
    except Exception as error:  # noqa: BLE001
        raise DataError(f"{file} cannot be read as a pickle of plain data: {error}") from error


def _read_text(file: Path, data: bytes, videos: Videos) -> Iterable[_Entry]:
    split = _split_word(next((word for word in SPLITS if word in file.stem.lower()), ""))
    text, _ = decode_text(data, str(file))
    lines = text.splitlines(keepends=True)
    try:
        header = [cell.strip() for cell in next(csv.reader(lines), [])]
        if "action" in header:
            rows = [[cell.strip() for cell in row] for row in csv.reader(lines)]
            return [_dvanet(file, dict(zip(header, row, strict=False)), split) for row in rows[1:] if any(row)]
        entries = split_lines([line for line in lines if line.strip()], videos.find, str(file))
    except csv.Error as error:
        raise DataError(f"{file} cannot be read as text: {error}") from error
    return [_Entry(name=name, label=label, split=split) for name, label in entries]


def _dvanet(file: Path, row: dict[str, str], split: str) -> _Entry:
    try:
        name = row.get("video_id") or row["video"]
        # NTU's actions are counted from 1, N-UCLA's are the raw ids: both are kept as they are.
        return _Entry(name=name, label=row["action"], split=split, subject=row["subject"], action=row["action"])
    except KeyError as error:
        raise DataError(f"{file}: the column {error} is missing; it has {', '.join(row)}") from error


def _split_word(word: str) -> str:
    return {"val": "test"}.get(word, word)


def _row(entry: _Entry, path: str) -> dict[str, str]:
    row = {"label": entry.label, "subject": entry.subject, "split": entry.split}
    if ntu := NTU.search(Path(path).name):
        setup, camera, person, repetition, action = ntu.groups()
        named = {
            "group": f"S{setup}P{person}R{repetition}A{action}",
            "view": str(int(camera)),
            "subject": str(int(person)),
        }
    elif nucla := NUCLA.search(Path(path).name):
        view, person, episode = nucla.groups()
        named = {"group": f"{entry.label}_s{person}_e{episode}", "view": str(int(view)), "subject": str(int(person))}
    else:
        named = {"group": path, "view": "1"}
    return row | named
