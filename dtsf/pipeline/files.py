"""Which files stand below a folder, links followed; and what could not be looked at, so that nothing is left out in silence."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from dtsf.pipeline.source import trouble

if TYPE_CHECKING:
    import re
    from collections.abc import Iterator
    from pathlib import Path

VIDEO_ENDINGS = (
    *(".avi", ".mp4", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv"),
    *(".flv", ".3gp", ".3g2", ".ogv", ".ogm", ".asf", ".vob", ".m2v", ".mpe", ".divx", ".dv", ".f4v"),
    *(".mxf", ".rm", ".rmvb", ".h264", ".264", ".h265", ".265", ".hevc", ".ivf", ".mjpeg", ".mjpg", ".y4m"),
)
"""Whether a file with one of them is a video is for the decoder to say."""


class SkippedFiles:
    """What a walk could not look at."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {}

    def add(self, kind: str, path: str) -> None:
        """One more; ``kind`` in words that follow a number."""
        self._found.setdefault(kind, []).append(path)

    def notes(self) -> list[str]:
        """A line a kind, with their number and the first."""
        return [f"{len(paths)} {kind}; the first is {printable(paths[0])}" for kind, paths in self._found.items()]


def is_video(name: str) -> bool:
    """Whether a file's name is a video's."""
    return name.lower().endswith(VIDEO_ENDINGS)


def is_utf8(name: str) -> bool:
    """Whether a name is text. Others come from archives of a Windows with another alphabet."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(name: str) -> str:
    """A name in which every byte that is no text is written as its number."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def walk_files(root: Path, left_out: SkippedFiles | None = None) -> Iterator[tuple[str, str]]:
    """Every file below ``root`` as (folder relative to root with forward slashes, name), in a fixed order.

    Links are followed, after all that stands there itself; a folder that was seen already is not entered again, so that a
    link to a folder above ends. Hidden names and macOS's ``__MACOSX`` copies are passed over. What cannot be looked at, and
    names that are not UTF-8, are passed to ``left_out``.

    Raises SourceError: the disk or server does not answer.
    """
    left_out = left_out or SkippedFiles()
    seen: set[tuple[int, int]] = set()
    found: list[tuple[str, str]] = []
    links = [""]
    while links:
        # Each round enters what the links of the round before lead to.
        ahead: list[str] = []
        for start in sorted(links):
            _enter(root, start, seen, found, ahead, left_out)
        links = ahead
    yield from sorted(found)


def find_videos(
    root: Path, pattern: re.Pattern[str], whose: str, left_out: SkippedFiles
) -> Iterator[tuple[str, re.Match[str]]]:
    """Path below ``root`` and parsed name of every video whose name fits; others are noted as not having ``whose`` names."""
    for folder, name in walk_files(root, left_out):
        path = f"{folder}/{name}".lstrip("/")
        if match := pattern.search(name) if is_video(name) else None:
            yield path, match
        elif is_video(name):
            left_out.add(f"video files do not have {whose} names and were left out", path)


def _enter(
    root: Path,
    start: str,
    seen: set[tuple[int, int]],
    found: list[tuple[str, str]],
    links: list[str],
    left_out: SkippedFiles,
) -> None:
    folders = [start]
    while folders:
        folder = folders.pop()
        path = root / folder
        try:
            status = path.stat()
            if (status.st_dev, status.st_ino) in seen:
                left_out.add("links lead to a folder that is read already and were not followed", folder)
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            _, why = trouble(path, error)
            left_out.add(f"folders cannot be read ({why}) and were left out", folder or str(root))
            continue
        for entry in entries:
            below = f"{folder}/{entry.name}" if folder else entry.name
            if entry.name.startswith(".") or "MACOSX" in entry.name:
                continue
            if not is_utf8(entry.name):
                left_out.add("names are not UTF-8 and were left out: rename them", below)
            elif entry.is_dir(follow_symlinks=False):
                folders.append(below)
            elif _is_folder(entry):
                links.append(below)
            elif entry.is_symlink() and not os.path.exists(entry.path):
                left_out.add("links lead nowhere and were left out", below)
            else:
                found.append((folder, entry.name))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
