"""Files that are whole or not there: temporary name, fsync, rename, fsync of the folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import uuid
from typing import TYPE_CHECKING

from dtsf.errors import CacheError, DtsfError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["alone", "exclusively", "flush", "move", "sweep_orphans", "write_atomically"]

TEMPORARY = ".dtsf-tmp-"


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` so that after a crash at any moment ``path`` is the old file, the new one, or absent.

    Raises:
        CacheError: The disk is full or refuses; what was committed before is untouched.

    """
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            rest = memoryview(data)
            while rest:
                # A disk that fills up may take a part first and refuse the next call.
                rest = rest[_write(descriptor, rest) :]
            _fsync(descriptor)
        finally:
            os.close(descriptor)
        _rename(temporary, path)
        flush(path.parent)
    except OSError as error:
        # The same fault can refuse the cleaning up; what is left is swept at the next start.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise CacheError(
            f"cannot write {path}: {error.strerror or error}. Everything committed so far is safe; make room and run the "
            "same command again to go on"
        ) from error


def move(source: Path, target: Path) -> None:
    """Give a finished folder its name, for good."""
    _rename(source, target)
    flush(target.parent)


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
        _fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def exclusively(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``; waits for whoever holds it. The kernel lets go of it when a process dies.

    Raises:
        CacheError: The file system has no locks, or refuses the file.

    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise CacheError(f"cannot open the lock {path}: {error.strerror or error}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            raise CacheError(
                f"cannot lock {path}: {error.strerror or error}. Put the cache on a file system with locks"
            ) from error
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def alone(path: Path, *, unwritable: Callable[[str], DtsfError], busy: DtsfError) -> Iterator[None]:
    """Hold the lock file ``path``, or say at once that another process does.

    Args:
        path: Made, with its folder.
        unwritable: Makes the error for a file that cannot be made, from the system's words.
        busy: The error where another process holds it.

    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise unwritable(str(error.strerror)) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise busy from error
        yield


# The three calls that a fault can interrupt, each by its own name: tests replace them with failing ones.


def _write(descriptor: int, data: memoryview) -> int:
    return os.write(descriptor, data)


def _fsync(descriptor: int) -> None:
    os.fsync(descriptor)


def _rename(source: Path, target: Path) -> None:
    source.replace(target)
