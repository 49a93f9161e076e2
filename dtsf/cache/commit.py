"""Files that are whole or not there: temporary name, fsync, rename, fsync of the folder."""

from __future__ import annotations

import contextlib
import os
import uuid
from typing import TYPE_CHECKING

from dtsf.errors import CacheError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["flush", "sweep_orphans", "write_atomically"]

TEMPORARY = ".dtsf-tmp-"


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` so that after a crash at any moment ``path`` is the old file, the new one, or absent.

    Raises:
        CacheError: The disk is full or refuses; what was committed before is untouched.

    """
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        flush(path.parent)
    except OSError as error:
        # The same fault can refuse the cleaning up; what is left is swept at the next start.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise CacheError(
            f"cannot write {path}: {error.strerror or error}. Everything committed so far is safe; make room and run the "
            "same command again to go on"
        ) from error


def sweep_orphans(folder: Path) -> int:
    """Remove temporary files that a killed process left; returns how many."""
    orphans = list(folder.rglob(f"{TEMPORARY}*"))
    for orphan in orphans:
        orphan.unlink(missing_ok=True)
    return len(orphans)


def flush(path: Path) -> None:
    """Make a file's bytes, or the renames in a folder, outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
