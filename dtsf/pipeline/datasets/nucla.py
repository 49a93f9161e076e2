"""Northwestern-UCLA Multiview Action 3D, in its three layouts (reference: Wang et al. 2014; layouts by public use).

=========  ==================================================  ==========================================
layout     path                                                where the action stands
=========  ==================================================  ==========================================
videos     ``multiview_action_videos/a02/v01_s03_e00.avi``     only in the folder: names repeat in every aXX
frames     ``multiview_action/view_1/a02_s03_e00/*rgb.jpg``    in the folder
renamed    ``view1/v01_s03_e00_a02.avi``                       in the name
=========  ==================================================  ==========================================

Class ids skip 7 and 10; labels follow the ids as numbers (sorted as strings, 11 and 12 would come before 2).
A group is (action, subject, episode); a fifth of them lack a view, which is normal.
"""

from __future__ import annotations

import csv
import re
from typing import TYPE_CHECKING

from dtsf.cache.records import Clip
from dtsf.errors import DataError
from dtsf.pipeline.catalog import Catalog, build_catalog
from dtsf.pipeline.files import SkippedFiles, is_video, walk_files

if TYPE_CHECKING:
    from pathlib import Path

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

ACTION_FOLDER = re.compile(r"a(\d{2})$", re.IGNORECASE)
VIDEO = re.compile(r"v(\d{2})_s(\d{2})_e(\d{2})$", re.IGNORECASE)
RENAMED = re.compile(r"v(\d{2})_s(\d{2})_e(\d{2})_a(\d{2})$", re.IGNORECASE)
FRAME_FOLDER = re.compile(r"(?:^|/)view_?(\d+)/a(\d{2})_s(\d{2})_e(\d{2})$", re.IGNORECASE)


def catalog_nucla(root: Path) -> Catalog:
    """List the clips of N-UCLA under ``root``.

    A file ``labels.csv`` beside or above the videos (columns ``path``, ``action``, ``action_name``, ``background``), as
    ``dtsf synth`` writes it, gives other class names and the room of each clip.

    Raises DataError: no clip found, or two files for one.
    """
    clips: dict[str, tuple[int, int, int, int]] = {}
    sidecars: list[str] = []
    left_out = SkippedFiles()
    for folder, name in walk_files(root, left_out):
        stem = name.rpartition(".")[0]
        path = f"{folder}/{name}".lstrip("/")
        if name == "labels.csv":
            sidecars.append(folder)
        elif is_video(name):
            found = _parse_video(folder.rpartition("/")[2] or root.name, stem)
            if found is None or found[0] not in CLASSES or found[3] not in (1, 2, 3):
                left_out.add("video files do not have N-UCLA's names and were left out", path)
            else:
                clips[path] = found
        elif name.lower().endswith("rgb.jpg") and folder not in clips:
            match = FRAME_FOLDER.search(f"{root.name}/{folder}")
            if match:
                view, action, subject, episode = (int(group) for group in match.groups())
                if action in CLASSES and view in (1, 2, 3):
                    clips[folder] = (action, subject, episode, view)
    names, rooms = _read_sidecars(root, sidecars)
    return build_catalog(
        "nucla",
        root,
        [_clip(path, *ids, rooms.get(path)) for path, ids in clips.items()],
        class_names=[names.get(action, CLASSES[action]) for action in sorted(CLASSES)],
        view_names=VIEWS,
        notes=left_out.notes(),
        expects="aXX/vYY_sZZ_eWW.avi, view_X/aXX_sYY_eZZ/*rgb.jpg or vYY_sZZ_eWW_aXX.avi",
    )


def _parse_video(folder: str, stem: str) -> tuple[int, int, int, int] | None:
    """(action, subject, episode, view) of a video file, or None."""
    if match := RENAMED.match(stem):
        view, subject, episode, action = (int(group) for group in match.groups())
        return action, subject, episode, view
    if (match := VIDEO.match(stem)) and (action_match := ACTION_FOLDER.match(folder)):
        view, subject, episode = (int(group) for group in match.groups())
        return int(action_match.group(1)), subject, episode, view
    return None


def _clip(path: str, action: int, subject: int, episode: int, view: int, room: str | None) -> Clip:
    group = f"a{action:02d}_s{subject:02d}_e{episode:02d}"
    return Clip(
        id=f"{group}_v{view:02d}",
        path=path,
        label=LABELS[action],
        raw_label=str(action),
        group=group,
        view=view,
        subject=str(subject),
        background=room,
    )


def _read_sidecars(root: Path, folders: list[str]) -> tuple[dict[int, str], dict[str, str]]:
    """Class names by action id and room by path, from every labels.csv under or directly above the root."""
    files = [(root / folder / "labels.csv", folder) for folder in folders]
    prefix = ""
    if not files and (root.parent / "labels.csv").is_file():
        files, prefix = [(root.parent / "labels.csv", "")], root.name + "/"
    names: dict[int, str] = {}
    rooms: dict[str, str] = {}
    for file, folder in files:
        try:
            with file.open(encoding="utf-8-sig", newline="") as stream:
                for line in csv.DictReader(stream):
                    if line.get("action_name") and (line.get("action") or "").isdecimal():
                        names[int(line["action"])] = line["action_name"]
                    if line.get("path") and line.get("background"):
                        below_root = f"{folder}/{line['path']}".lstrip("/").removeprefix(prefix)
                        rooms[below_root] = line["background"]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{file} cannot be read: {error}") from error
    return names, rooms
