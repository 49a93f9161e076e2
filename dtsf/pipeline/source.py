"""Source files: find them, identify them and classify read errors.

A file with an unchanged size and modification time is not read again; otherwise its bytes are hashed. A folder of pictures is
identified by all of its pictures. A missing file or a server that does not respond is an error of the source, not of a clip.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import xxhash

from dtsf.cache.status import Status
from dtsf.errors import SourceError

VIDEO_ENDINGS = (
    *(".avi", ".mp4", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv"),
    *(".flv", ".3gp", ".3g2", ".ogv", ".ogm", ".asf", ".vob", ".m2v", ".mpe", ".divx", ".dv", ".f4v"),
    *(".mxf", ".rm", ".rmvb", ".h264", ".264", ".h265", ".265", ".hevc", ".ivf", ".mjpeg", ".mjpg", ".y4m"),
)
"""Endings of video files. The decoder decides whether such a file is really a video."""
PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class FileStat:
    """Size and modification time; the fields are those of :class:`dtsf.cache.schema.Source`."""

    bytes: int
    mtime_ns: int
    listing: str = ""


class SkippedFiles(dict[str, list[str]]):
    """Files and folders that are not used, by reason."""

    def add(self, reason: str, path: str) -> None:
        """Add a path. ``reason`` completes a sentence that begins with the number of paths."""
        self.setdefault(reason, []).append(path)

    def notes(self) -> list[str]:
        """Return a line for each reason, with the number of paths and the first path."""
        # Bytes that are not UTF-8 are printed as numbers.
        firsts = {why: os.fsencode(paths[0]).decode("utf-8", "backslashreplace") for why, paths in self.items()}
        return [f"{len(paths)} {why}; the first is {firsts[why]}" for why, paths in self.items()]


def is_video(name: str) -> bool:
    """Return whether a file name has the ending of a video."""
    return name.lower().endswith(VIDEO_ENDINGS)


def find_videos(
    root: Path, pattern: re.Pattern[str], names: str, skipped: SkippedFiles
) -> Iterator[tuple[str, re.Match[str]]]:
    """Yield path and match of each video whose name matches. ``names``: kind of these names, for the note about other videos."""
    for folder, name in walk_files(root, skipped):
        path = f"{folder}/{name}".lstrip("/")
        if match := pattern.search(name) if is_video(name) else None:
            yield path, match
        elif is_video(name):
            skipped.add(f"video files do not have {names} names and were left out", path)


def walk_files(root: Path, skipped: SkippedFiles | None = None) -> Iterator[tuple[str, str]]:
    """Yield each file below ``root`` as (folder relative to the root with forward slashes, name), sorted. Hidden names and macOS's
    ``__MACOSX`` copies are ignored. Links to folders are followed after all real folders, and no folder is entered twice, so
    loops of links end. Raises SourceError: the disk or server does not respond.
    """
    skipped = SkippedFiles() if skipped is None else skipped
    seen: set[tuple[int, int]] = set()
    found: list[tuple[str, str]] = []
    folders = [""]
    links: list[str] = []
    while folders or links:
        if not folders:
            folders, links = sorted(links, reverse=True), []
        folder = folders.pop()
        path = root / folder
        try:
            status = path.stat()
            if (status.st_dev, status.st_ino) in seen:
                skipped.add("links lead to a folder that is read already and were not followed", folder)
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            _, reason = classify_error(path, error)
            skipped.add(f"folders cannot be read ({reason}) and were left out", folder or str(root))
            continue
        for entry in entries:
            below = f"{folder}/{entry.name}" if folder else entry.name
            if entry.name.startswith(".") or "MACOSX" in entry.name:
                continue
            # Python reads other bytes as surrogates. Archives from Windows may have such names.
            if any("\ud800" <= letter <= "\udfff" for letter in entry.name):
                skipped.add("names are not UTF-8 and were left out: rename them", below)
            elif entry.is_dir(follow_symlinks=False):
                folders.append(below)
            elif entry.is_symlink() and not os.path.exists(entry.path):
                skipped.add("links lead nowhere and were left out", below)
            elif entry.is_dir():
                links.append(below)
            else:
                found.append((folder, entry.name))
    yield from sorted(found)


def file_stat(path: Path | str) -> FileStat:
    """Return size and time of a file, or of all pictures in a folder. Raises OSError; see :func:`classify_error`."""
    status = os.stat(path)
    if stat.S_ISREG(status.st_mode):
        return FileStat(status.st_size, status.st_mtime_ns)
    if not stat.S_ISDIR(status.st_mode):
        # Opening a pipe blocks until another process writes to it, and /dev/zero has no end.
        raise PermissionError(errno.EACCES, "a pipe, socket or device, not a regular file")
    pictures = [(name, one.st_size, one.st_mtime_ns) for name, one in _pictures(path)]
    text = "\n".join(f"{name}\0{size}\0{time}" for name, size, time in pictures)
    newest = max((time for _, _, time in pictures), default=status.st_mtime_ns)
    listing = xxhash.xxh3_64_hexdigest(text.encode("utf-8", "surrogateescape"))
    return FileStat(sum(size for _, size, _ in pictures), newest, listing)


# Cached: the clips of one long video share its bytes.
@lru_cache(maxsize=4096)
def content_hash(path: Path, status: FileStat) -> str:
    """Return the xxh3-128 of a file's bytes, or of the names and bytes of a folder's pictures. ``status``: its current stat."""
    digest = xxhash.xxh3_128()
    for name in [name for name, _ in _pictures(path)] if status.listing else [""]:
        if name:
            digest.update(f"{name}\0".encode("utf-8", "surrogateescape"))
        with (path / name).open("rb", buffering=0) as file:
            left = os.fstat(file.fileno()).st_size  # a file of /proc may have no end
            while left > 0 and (block := file.read(min(left, BLOCK_BYTES))):
                digest.update(block)
                left -= len(block)
    return digest.hexdigest()


def classify_error(path: Path, error: OSError) -> tuple[Status, str]:
    """Return ``missing`` or ``unreachable``, and the reason. Raises SourceError: the whole disk or server does not respond."""
    reason = error.strerror or str(error)
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return Status.MISSING, "the file does not exist"
    # The last two: a link to itself, and a name that is too long for the file system.
    if isinstance(error, PermissionError) or error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
        return Status.UNREACHABLE, reason
    raise SourceError(
        f"{path} cannot be read: {reason}. The disk or server does not respond. Finished work is safe: run the same command "
        "again when it is back"
    ) from error


def _pictures(folder: Path | str) -> list[tuple[str, os.stat_result]]:
    with os.scandir(folder) as entries:
        named = [e for e in entries if e.name.lower().endswith(PICTURE_ENDINGS) and not e.name.startswith(".")]
        return sorted(((e.name, e.stat()) for e in named if e.is_file()), key=lambda item: item[0])
