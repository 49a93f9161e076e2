"""Write files: each is complete or absent. It is written under an unpredictable temporary name, flushed to the disk and renamed.
A link at its path is replaced, not followed. Logs and locks are opened in place, so links and special files are refused there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

from dtsf.errors import CacheError, ConfigError, DtsfError

TEMPORARY = ".dtsf-tmp-"
PATIENCE = 1.0  # seconds before a held lock is an error


def write_atomically(
    path: Path,
    data: bytes,
    *,
    error: Callable[[str], DtsfError] | None = None,
    parents: bool = True,
    follow: bool = True,
) -> None:
    """Write ``data``. After a crash ``path`` is the old file, the new file, or absent. ``error``: makes the error from a message;
    default CacheError. ``parents``: make the folder. ``follow``: accept a folder that is a link, for a path of the user.
    """
    try:
        with _temporary(path, parents=parents, follow=follow) as descriptor:
            rest = memoryview(data)
            while rest:
                # A disk that fills up may write a part first, and refuse the next call.
                rest = rest[write_part(descriptor, rest) :]
    except OSError as refused:
        hint = f"Committed files are safe: {remedy(refused)} and run the same command again (dtsf train with --resume)"
        made = error(refusal(refused)) if error else CacheError(f"cannot write {path}: {refusal(refused)}. {hint}")
        raise made from refused


def check_targets(files: Mapping[str, Path], example: str = "FILE", *, parents: bool = False) -> None:
    """Raise ConfigError if a file cannot be written, before the work whose result it gets. ``files``: of one command, by option.
    ``example``: name of such a file, for the message. ``parents``: folders that do not exist will be made.
    """
    options: dict[Path, str] = {}
    for option, file in files.items():
        if file.is_dir():
            raise ConfigError(f"{option} {file} is a folder: name a file in it, for example {file / example}")
        folder = file.absolute().parent
        while parents and not folder.exists():
            folder = folder.parent
        if not folder.is_dir():
            raise ConfigError(f"{option} {file}: the folder {folder} does not exist")
        if not os.access(folder, os.W_OK):
            raise ConfigError(
                f"{option} {file}: nothing can be written to {folder}: check its permissions, or choose another file"
            )
        if (other := options.setdefault(file.absolute(), option)) != option:
            raise ConfigError(f"{other} and {option} name the same file, {file}: give two files")


@contextlib.contextmanager
def fresh_file(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file for writing and reading. It replaces ``path`` if the block ends without an error. Raises OSError."""
    with _temporary(path) as descriptor, os.fdopen(descriptor, "w+b", closefd=False) as file:
        yield file


@contextlib.contextmanager
def _temporary(path: Path, *, parents: bool = False, follow: bool = True) -> Iterator[int]:
    """Yield the descriptor of a new file. The open folder stays the same if its name changes meanwhile."""
    if path.is_dir():  # also "." and "..", which have no name
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    # Not derived from the given name, which may have the maximum length.
    name = f"{TEMPORARY}{uuid.uuid4().hex}"
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o666, dir_fd=folder)
        try:
            yield descriptor
            fsync(descriptor)
        finally:
            os.close(descriptor)
        rename(path.with_name(name), path, folder)
        fsync(folder)
    except BaseException:
        # The same fault may refuse the removal. The next start removes the file.
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=folder)
        raise
    finally:
        os.close(folder)


def fresh_folder(beside: Path) -> Path:
    """Make a folder beside a path, under an unpredictable name. The caller fills and moves it. Raises OSError."""
    folder = beside.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    folder.mkdir()
    return folder


def move(source: Path, target: Path) -> None:
    """Rename a complete folder, and flush the rename."""
    rename(source, target)
    flush(target.parent)


def sweep_orphans(folder: Path) -> int:
    """Remove the temporary files and folders of killed processes. Return their number."""
    orphans = list(folder.rglob(f"{TEMPORARY}*"))
    for orphan in orphans:
        if orphan.is_dir() and not orphan.is_symlink():
            shutil.rmtree(orphan, ignore_errors=True)
        else:
            orphan.unlink(missing_ok=True)
    return len(orphans)


def flush(path: Path) -> None:
    """Flush a file, or the renames in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fsync(descriptor)
    finally:
        os.close(descriptor)


def open_log(path: Path) -> IO[str]:
    """Open a file, or a new one, to append complete lines. Raises OSError: a link, or not a regular file with one name."""
    descriptor = _open_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    return os.fdopen(descriptor, "a", encoding="utf-8", buffering=1)


def open_journal(path: Path) -> IO[bytes]:
    """Open a file, or a new one, to read its lines, to cut those that are not whole, and to append others. Raises OSError as
    :func:`open_log`.
    """
    return os.fdopen(_open_regular(path, os.O_RDWR | os.O_CREAT), "r+b")


@contextlib.contextmanager
def lock(path: Path, *, unwritable: Callable[[str], DtsfError], busy: DtsfError | None = None) -> Iterator[None]:
    """Hold the lock file during the block. ``unwritable``: makes the error of a failed lock. ``busy``: error instead of waiting.

    The processes of a killed one hold its locks until they end too, so even then it waits :data:`PATIENCE`.
    """
    limit = time.monotonic() + PATIENCE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _open_regular(path, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise unwritable(refusal(error)) from error
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
                break
            except OSError as error:
                if not isinstance(error, BlockingIOError) or time.monotonic() > limit:
                    raise (busy or unwritable(refusal(error))) from error
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def refusal(error: OSError) -> str:
    """Return the system's message; for an error of a library, its own."""
    return str(error.strerror or error)


def remedy(error: OSError) -> str:
    """Return what to do before a refused file is written again."""
    remedies = {
        **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free disk space"),
        **dict.fromkeys((errno.EACCES, errno.EPERM), "check the permissions of its folder"),
        errno.ENOENT: "make its folder again",
        errno.EROFS: "choose another folder",
        errno.EMFILE: "raise the limit (ulimit -n 1024)",
    }
    return remedies.get(error.errno or 0, "check the disk or share")


def _open_regular(path: Path, flags: int) -> int:
    """Open a file in place without truncating it. Raises OSError: a link, a special file, or a file with several names."""
    if path.is_symlink():
        raise OSError(f"{path.name} is a link, and links are not followed here: remove it")
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        problem = "has several names" if stat.S_ISREG(status.st_mode) else "is not a regular file"
        raise OSError(f"{path.name} {problem}: remove it")
    return descriptor


# The three calls that can fail halfway. Tests replace them with failing ones.


def write_part(descriptor: int, data: memoryview) -> int:
    """Write some bytes, and return their number."""
    return os.write(descriptor, data)


def fsync(descriptor: int) -> None:
    """Flush a file or folder to the disk."""
    os.fsync(descriptor)


def rename(source: Path, target: Path, folder: int | None = None) -> None:
    """Rename a file or folder. ``folder``: open folder of both."""
    names = (source, target) if folder is None else (source.name, target.name)
    os.rename(*names, src_dir_fd=folder, dst_dir_fd=folder)
