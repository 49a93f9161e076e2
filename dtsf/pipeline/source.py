"""Files of the source: by what they are known, and whose fault it is when they cannot be read.

A file whose size and time are as they were holds the bytes it held; else its bytes are hashed. A folder of pictures is the sum
of its files. That a file is not there, or that its disk or server does not answer, is the source's trouble and no verdict.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import xxhash

from dtsf.errors import SourceError

if TYPE_CHECKING:
    from pathlib import Path

PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
BLOCK = 1 << 20
SAMPLE = 1 << 16


@dataclass(frozen=True)
class Stat:
    """Size and time; see :class:`dtsf.cache.records.Source`."""

    bytes: int
    mtime_ns: int
    listing: str = ""


def file_stat(path: Path | str) -> Stat:
    """Size and time of a file, or of all pictures of a folder. Raises OSError: it is not there, cannot be looked at, or is
    neither: :func:`trouble` says what that means.
    """
    held = os.stat(path)
    if stat.S_ISREG(held.st_mode):
        return Stat(held.st_size, held.st_mtime_ns)
    if not stat.S_ISDIR(held.st_mode):
        # Opening a pipe waits for whoever writes to it, and /dev/zero has no end.
        raise PermissionError(errno.EACCES, "it is a pipe, a socket or a device, no file")
    files = _pictures(path)
    text = "\n".join(f"{name}\0{one.bytes}\0{one.mtime_ns}" for name, one in files)
    newest = max((one.mtime_ns for _, one in files), default=held.st_mtime_ns)
    total = sum(one.bytes for _, one in files)
    return Stat(total, newest, xxhash.xxh3_64_hexdigest(text.encode("utf-8", "surrogateescape")))


@lru_cache(maxsize=4096)
def content_hash(path: Path, held: Stat) -> str:
    """xxh3-128 of the bytes of a file, or of the names and bytes of a folder's pictures. ``held``: of now. Raises OSError: it
    cannot be read.
    """
    # Kept: the clips of one long video share its bytes.
    digest = xxhash.xxh3_128()
    if not held.listing:
        _read_into(digest, path)
        return digest.hexdigest()
    for name, _ in _pictures(path):
        digest.update(f"{name}\0".encode("utf-8", "surrogateescape"))
        _read_into(digest, path / name)
    return digest.hexdigest()


def partial_hash(path: Path, held: Stat) -> str:
    """A hash of a little of it: of two files of one size that differ here, neither need be read whole."""
    digest = xxhash.xxh3_64(f"{held.bytes}".encode())
    if held.listing:
        return digest.hexdigest()
    with path.open("rb") as file:
        digest.update(file.read(SAMPLE))
        file.seek(max(0, held.bytes - SAMPLE))
        digest.update(file.read(SAMPLE))
    return digest.hexdigest()


def trouble(path: Path, error: OSError) -> tuple[str, str]:
    """What it means for a clip that its file cannot be read: (``missing`` or ``unreachable``, why). Raises SourceError: it is
    no matter of this one file: its server or disk does not answer.
    """
    why = error.strerror or str(error)
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "missing", "there is no such file"
    if isinstance(error, PermissionError) or error.errno in _OF_ONE_FILE:
        return "unreachable", why
    raise SourceError(
        f"{path} cannot be read: {why}. That is the disk's or the server's trouble and is held against no clip; what is "
        "committed is safe: run the same command again when it answers"
    ) from error


# A link that leads to itself, a name that the file system has no room for.
_OF_ONE_FILE = (40, 36)


def _read_into(digest: xxhash.xxh3_128, path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            digest.update(block)


def _pictures(folder: Path | str) -> list[tuple[str, Stat]]:
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.lower().endswith(PICTURE_ENDINGS) and not entry.name.startswith(".") and entry.is_file():
                status = entry.stat()
                found.append((entry.name, Stat(status.st_size, status.st_mtime_ns)))
    return sorted(found, key=lambda item: item[0])
