"""The one place that writes files: whole or not there, and never through a link.

A file is made under a name that nobody can foresee, exclusively, flushed to the disk, and renamed; so a link that stands at
its place is replaced, not followed. Logs and locks, which are opened where they are, are refused where a link or anything but
a plain file is.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import uuid
from typing import IO, TYPE_CHECKING

from dtsf.errors import CacheError, DtsfError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TEMPORARY = ".dtsf-tmp-"


def write_atomically(
    path: Path,
    data: bytes,
    *,
    error: Callable[[str], DtsfError] | None = None,
    parents: bool = True,
    follow: bool = True,
) -> None:
    """Write ``data`` so that after a crash at any moment ``path`` is the old file, the new one, or absent. Raises CacheError:
    the disk is full or refuses; what was committed before is untouched.

    Args:
        path: What stands there is replaced, a link too.
        error: Makes the error from the system's words; left out, a CacheError that says how to go on.
        parents: Make the folder where it is missing.
        follow: Whether its folder itself may be a link: a person names folders as they like, others may not.
    """
    try:
        with _fresh(path, parents=parents, follow=follow) as descriptor:
            rest = memoryview(data)
            while rest:
                # A disk that fills up may take a part first and refuse the next call.
                rest = rest[_write(descriptor, rest) :]
    except OSError as refused:
        if error is not None:
            raise error(refusal(refused)) from refused
        raise CacheError(
            f"cannot write {path}: {refusal(refused)}. Everything committed so far is safe; make room and run the "
            "same command again to go on"
        ) from refused


@contextlib.contextmanager
def fresh_file(path: Path, *, parents: bool = False) -> Iterator[IO[bytes]]:
    """A file to write and read back that takes the place of ``path`` when the block ends well; else nothing has changed. Raises
    OSError: the disk is full or refuses.
    """
    with (
        _fresh(path, parents=parents, follow=True) as descriptor,
        os.fdopen(descriptor, "w+b", closefd=False) as file,
    ):
        yield file


@contextlib.contextmanager
def _fresh(path: Path, *, parents: bool, follow: bool) -> Iterator[int]:
    """Descriptor of a new file; what happens to the folder's name meanwhile changes nothing: the folder is held open."""
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    # Not the given name, which may be as long as a name can be.
    name = f"{TEMPORARY}{uuid.uuid4().hex}"
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o666, dir_fd=folder)
        try:
            yield descriptor
            _fsync(descriptor)
        finally:
            os.close(descriptor)
        _rename(path.with_name(name), path, folder)
        _fsync(folder)
    except BaseException:
        # The same fault can refuse the cleaning up; what is left is swept at the next start.
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=folder)
        raise
    finally:
        os.close(folder)


def fresh_folder(beside: Path) -> Path:
    """Make a new folder beside a place, under a name that nobody can foresee; the caller fills and moves it. Raises OSError: it
    cannot be made.
    """
    made = beside.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    made.mkdir()
    return made


def move(source: Path, target: Path) -> None:
    """Give a finished folder its name, for good."""
    _rename(source, target, None)
    flush(target.parent)


def sweep_orphans(folder: Path) -> int:
    """Remove temporary files and folders that a killed process left; returns how many."""
    orphans = list(folder.rglob(f"{TEMPORARY}*"))
    for orphan in orphans:
        if orphan.is_dir() and not orphan.is_symlink():
            shutil.rmtree(orphan, ignore_errors=True)
        else:
            orphan.unlink(missing_ok=True)
    return len(orphans)


def flush(path: Path) -> None:
    """Make a file's bytes, or the renames in a folder, outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _fsync(descriptor)
    finally:
        os.close(descriptor)


def open_log(path: Path) -> IO[str]:
    """A file to append lines to, made where it is missing; who looks at it while it grows sees whole lines. Raises OSError: it
    cannot be opened, or is a link, a file of several names, or no plain file.
    """
    descriptor = _open_plain(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    return os.fdopen(descriptor, "a", encoding="utf-8", buffering=1)


@contextlib.contextmanager
def lock(path: Path, *, unwritable: Callable[[str], DtsfError], busy: DtsfError | None = None) -> Iterator[None]:
    """Hold the lock file ``path``, made with its folder; what it holds stays as it is. The kernel frees it when a process dies.

    ``unwritable``: makes the error for a file that cannot be made or locked, from the system's words. ``busy``: the error where
    another process holds it; left out, it is waited for.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _open_plain(path, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise unwritable(refusal(error)) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except OSError as error:
            raise (busy or unwritable(refusal(error))) from error
        yield
    finally:
        os.close(descriptor)


def refusal(error: OSError) -> str:
    """The system's words for why it refused; a library that wraps them keeps its own."""
    return str(error.strerror or error)


def _open_plain(path: Path, flags: int) -> int:
    """Open a file that is written where it stands. It is not emptied; a link, and whatever is no file of one name, is refused."""
    if path.is_symlink():
        raise OSError(f"{path.name} is a link, which is not followed here: remove it")
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        what = "has several names" if stat.S_ISREG(status.st_mode) else "is no plain file"
        raise OSError(f"{path.name} {what}: remove it")
    return descriptor


# The three calls that a fault can interrupt, each by its own name: tests replace them with failing ones.


def _write(descriptor: int, data: memoryview) -> int:
    return os.write(descriptor, data)


def _fsync(descriptor: int) -> None:
    os.fsync(descriptor)


def _rename(source: Path, target: Path, folder: int | None) -> None:
    """``folder``: an open folder that both are in; None for two paths."""
    if folder is None:
        source.replace(target)
    else:
        os.rename(source.name, target.name, src_dir_fd=folder, dst_dir_fd=folder)
