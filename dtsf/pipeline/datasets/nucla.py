"""Northwestern-UCLA Multiview Action 3D (Wang et al. 2014), in three layouts: ``multiview_action_videos/a02/v01_s03_e00.avi``
(names repeat in every folder), ``multiview_action/view_1/a02_s03_e00/*rgb.jpg``, and ``view1/v01_s03_e00_a02.avi``.

Action ids skip 7 and 10. Labels follow the numeric order of the ids; as text, 11 and 12 would come before 2.
A group is (action, subject, episode). A fifth of the groups lack a view, which is normal.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import TypeVar

from dtsf.cache.schema import Clip
from dtsf.errors import DataError
from dtsf.names import tidy
from dtsf.pipeline.datasets.catalog import SourceCatalog, build_catalog
from dtsf.pipeline.source import SkippedFiles, is_video, walk_files

K = TypeVar("K")

CLASSES = {
    1: "pick up with one hand",
    2: "pick up with two hands",
    3: "drop trash",
    4: "walk around",
    5: "sit down",
    6: "stand up",
    8: "donning",
    9: "doffing",
    11: "throw",
    12: "carry",
}
LABELS = {action: label for label, action in enumerate(sorted(CLASSES))}
VIEWS = ("1", "2", "3")

NUMBERS = r"_s(?P<subject>\d{2})_e(?P<episode>\d{2})"
VIDEO = re.compile(rf"(?:^|/)a(?P<action>\d{{2}})/v(?P<view>\d{{2}}){NUMBERS}$", re.IGNORECASE)
RENAMED = re.compile(rf"(?:^|/)v(?P<view>\d{{2}}){NUMBERS}_a(?P<action>\d{{2}})$", re.IGNORECASE)
FRAME_FOLDER = re.compile(rf"(?:^|/)view_?(?P<view>\d+)/a(?P<action>\d{{2}}){NUMBERS}$", re.IGNORECASE)


def catalog_nucla(root: Path) -> SourceCatalog:
    """List the clips of N-UCLA under ``root``. An optional ``labels.csv`` below or directly above ``root`` gives class names and
    backgrounds; ``dtsf synth`` writes it. Raises DataError: no clip, or two files for the same clip.
    """
    clips: dict[str, dict[str, int]] = {}
    label_folders: list[str] = []
    skipped = SkippedFiles()
    for folder, name in walk_files(root, skipped):
        path = f"{folder}/{name}".lstrip("/")
        if name == "labels.csv":
            label_folders.append(folder)
        elif is_video(name):
            if numbers := _parse(f"{root.name}/{path}".rpartition(".")[0], VIDEO, RENAMED):
                clips[path] = numbers
            else:
                skipped.add("video files do not have N-UCLA's names and were left out", path)
        elif name.lower().endswith("rgb.jpg") and folder not in clips:
            numbers = _parse(f"{root.name}/{folder}", FRAME_FOLDER)
            clips |= {folder: numbers} if numbers else {}
    names, backgrounds = _read_labels(root, label_folders)
    return build_catalog(
        "nucla",
        root,
        [nucla_clip(path, **numbers, background=backgrounds.get(path)) for path, numbers in clips.items()],
        class_names=[names.get(action, CLASSES[action]) for action in sorted(CLASSES)],
        view_names=VIEWS,
        notes=skipped.notes(),
        expects="aXX/vYY_sZZ_eWW.avi, view_X/aXX_sYY_eZZ/*rgb.jpg or vYY_sZZ_eWW_aXX.avi",
    )


def nucla_clip(path: str, action: int, subject: int, episode: int, view: int, background: str | None = None) -> Clip:
    """Return the clip with these numbers. ``action``: a key of :data:`CLASSES`."""
    group = f"a{action:02d}_s{subject:02d}_e{episode:02d}"
    facts = {"path": path, "group": group, "view": view, "subject": str(subject), "background": background}
    return Clip(id=f"{group}_v{view:02d}", label=LABELS[action], raw_label=str(action), **facts)


def _parse(path: str, *patterns: re.Pattern[str]) -> dict[str, int] | None:
    """Return action, subject, episode and view of a path; None if it has no valid name. ``path``: without ending."""
    match = next(filter(None, (pattern.search(path) for pattern in patterns)), None)
    numbers = {name: int(text) for name, text in match.groupdict().items()} if match else {}
    return numbers if numbers.get("action") in CLASSES and numbers["view"] in (1, 2, 3) else None


def _read_labels(root: Path, folders: list[str]) -> tuple[dict[int, str], dict[str, str]]:
    """Return class names by action id and backgrounds by path, from each labels.csv below or directly above the root.

    Raises DataError: an action has two names, or a path two backgrounds.
    """
    files = [(root / folder / "labels.csv", folder) for folder in folders]
    prefix = ""
    if not files and (root.parent / "labels.csv").is_file():
        files, prefix = [(root.parent / "labels.csv", "")], root.name + "/"
    names: dict[int, str] = {}
    backgrounds: dict[str, str] = {}
    for file, folder in files:
        try:
            with file.open(encoding="utf-8-sig", newline="") as stream:
                reader = csv.DictReader(stream)
                for line in reader:
                    where = f"{file}, line {reader.line_num}"
                    if line.get("action_name") and re.fullmatch(r"[0-9]{1,9}", line.get("action") or ""):
                        _set_once(names, int(line["action"]), tidy(line["action_name"]), f"{where}: action")
                    if line.get("path") and line.get("background"):
                        below_root = f"{folder}/{line['path']}".lstrip("/").removeprefix(prefix)
                        _set_once(backgrounds, below_root, line["background"], f"{where}: the background of")
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{file} cannot be read: {error}") from error
    return names, backgrounds


def _set_once(known: dict[K, str], key: K, value: str, what: str) -> None:
    if known.setdefault(key, value) != value:
        raise DataError(f"{what} {key} is {value!r} here and {known[key]!r} before: give one name")
