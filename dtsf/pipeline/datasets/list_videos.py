"""Infer from the videos that are there which one an entry of a list means, and how the list separates its cells."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import TYPE_CHECKING

from dtsf.errors import DataError
from dtsf.pipeline.source import SkippedFiles, is_video, walk_files

if TYPE_CHECKING:
    from collections.abc import Callable


class Videos:
    """The videos below a folder, found again by what a list calls them."""

    def __init__(self, root: Path) -> None:
        left_out = SkippedFiles()
        self._by_stem: dict[str, list[str]] = {}
        for folder, name in walk_files(root, left_out):
            if is_video(name):
                path = f"{folder}/{name}".lstrip("/")
                self._by_stem.setdefault(_stem(path), []).append(path)
        self.notes = left_out.notes()

    def find(self, name: str, action: str = "") -> str | None:
        """The one video of that name: of several the one with its ending, then the one whose folders end as the name's do.

        ``name``: path or stem, in capital or small letters. ``action``: N-UCLA's raw action, where the name alone is not
        unique.
        """
        name = name.replace("\\", "/").lower()
        found = self._by_stem.get(_stem(name), [])
        if len(found) > 1 and action.isdecimal():
            found = [path for path in found if f"a{int(action):02d}" in path.lower().split("/")[:-1]]
        if is_video(name):
            ending = Path(name).suffix
            found = [path for path in found if path.lower().endswith(ending)] or found
        parts = list(Path(name).parts[:-1])
        while len(found) > 1 and parts:
            closer = [path for path in found if path.lower().split("/")[:-1][-len(parts) :] == parts]
            found, parts = closer or found, parts[1:]
        return found[0] if len(found) == 1 else None


def split_lines(lines: list[str], find: Callable[[str], str | None], where: str) -> list[tuple[str, str]]:
    """Path and label of each line, by the one separator with which most of the paths are found. Raises DataError: a line that
    is not a path and a label.
    """
    ways: tuple[Callable[[str], list[str]], ...] = (_cells, *(_at_last(mark) for mark in ("\t", r"\s", ",", ";")))
    split = max(
        ways, key=lambda way: sum(len(cells := way(line)) == 2 and find(cells[0]) is not None for line in lines)
    )
    found = []
    for number, line in enumerate(lines, 1):
        cells = next((cells for way in (split, *ways) if len(cells := way(line)) == 2), None)
        if cells is None:
            raise DataError(f"{where}, line {number}: {line.strip()!r} is not a path and a label")
        found.append((cells[0], cells[1]))
    return found


def read_labels(text: str, where: str) -> dict[str, str]:
    """A label map: ``0 name`` or ``0,name`` a line, or names alone, of which the first is 0. Raises DataError: a label that is
    there twice.
    """
    names: dict[str, str] = {}
    for number, line in enumerate(filter(None, map(str.strip, text.splitlines()))):
        found = re.fullmatch(r"(\d+)[\s,;]+(.+)", line)
        label, name = found.groups() if found else (str(number), line)
        if label in names:
            raise DataError(f"{where}: label {label} is there twice: {names[label]} and {name}")
        names[label] = name.strip()
    return names


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line]), [])]


def _at_last(mark: str) -> Callable[[str], list[str]]:
    pattern = re.compile(rf"{mark}+(?=[^{mark}]+$)")
    return lambda line: [cell.strip() for cell in pattern.split(line.strip(), maxsplit=1)]


def _stem(path: str) -> str:
    return re.sub(r"_rgb$", "", Path(path).stem.lower())
