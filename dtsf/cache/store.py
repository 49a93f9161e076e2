"""Where a cache is: a folder of this machine, or an object store behind an fsspec URL. The same few operations on both.

A cache from elsewhere is data: names are computed, never read from it; a link or anything but a plain file is refused; a
file is not read before its size is known to be sensible.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dtsf.errors import CacheError
from dtsf.files.read import read_file
from dtsf.files.write import flush, lock, sweep_orphans, write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dtsf.cache.remote import RemoteStore
    from dtsf.cache.spec import FileRecord

    Place = "LocalStore | RemoteStore"

DOCUMENT_LIMIT = 1 << 28
"""Bytes of the largest JSON document that is read: a shard of a million clips stays under it."""
URL = re.compile(r"^([a-z][a-z0-9+.-]+):/+(.*)$", re.DOTALL)
"""Also after :class:`Path` has folded the two slashes of a URL into one."""


def open_store(where: str | Path | LocalStore | RemoteStore) -> LocalStore | RemoteStore:
    """The folder or object store that a path or URL names."""
    if not isinstance(where, str | Path):
        return where
    found = URL.match(str(where))
    if found is None:
        return LocalStore(Path(where))
    scheme, rest = found.groups()
    if scheme == "file":
        return LocalStore(Path("/") / rest)
    from dtsf.cache.remote import RemoteStore

    return RemoteStore(f"{scheme}://{rest.rstrip('/')}")


@dataclass(frozen=True)
class LocalStore:
    """A folder of a file system."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """Its last part."""
        return self.path.name

    def below(self, name: str) -> LocalStore:
        """A folder in it."""
        return LocalStore(self.path / name)

    def absolute(self) -> LocalStore:
        """The same wherever a worker runs."""
        return LocalStore(self.path.absolute())

    def folders(self) -> list[str]:
        """Names of the folders in it; a hidden one is one in the making, a link leads elsewhere."""
        if not self.path.is_dir():
            return []
        return sorted(
            entry.name
            for entry in os.scandir(self.path)
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
        )

    def is_empty(self) -> bool:
        """Whether nothing is there, or nothing in it."""
        return not os.path.lexists(self.path) or (self.path.is_dir() and not any(self.path.iterdir()))

    def names(self, folder: str) -> list[str]:
        """Names of the files directly in ``folder``."""
        path = self._inside(folder)
        try:
            return sorted(entry.name for entry in os.scandir(path) if not entry.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CacheError(f"cannot list {path}: {error.strerror or error}") from error

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none. Raises CacheError: something else than a plain file is there."""
        path = self._inside(name)
        try:
            status = path.lstat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CacheError(f"cannot read {path}: {error.strerror or error}") from error
        if not stat.S_ISREG(status.st_mode):
            raise CacheError(f"{path} is not a plain file: a cache holds nothing else")
        return status.st_size

    def read(self, name: str, limit: int = DOCUMENT_LIMIT) -> bytes | None:
        """Bytes of a file; None where there is none.

        Raises CacheError: it is larger than ``limit``, a link, or cannot be read.
        """
        if self.size(name) is None:
            return None
        return read_file(self.path / name, limit=limit, error=CacheError)

    def file(self, name: str, expected: FileRecord) -> Path:  # noqa: ARG002
        """A path that can be memory-mapped. Its size is the caller's to check."""
        self.size(name)
        return self.path / name

    def write(self, name: str, data: bytes) -> None:
        """Make a file: it is whole or as before."""
        write_atomically(self._inside(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Make a file unless it is there; False where it was. The caller holds the claim that makes this safe."""
        if self.size(name) is not None:
            return False
        self.write(name, data)
        return True

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        path = self._inside(name)
        try:
            if os.path.lexists(path):
                path.unlink()
                flush(path.parent)
        except OSError as error:
            raise CacheError(f"cannot remove {path}: {error.strerror or error}") from error

    def clear(self) -> None:
        """Remove the folder and all in it."""
        shutil.rmtree(self.path)

    def sweep(self) -> int:
        """Remove what killed writers left; returns how many files."""
        return sweep_orphans(self.path)

    @contextmanager
    def claim(self, name: str) -> Iterator[None]:
        """Be the only writer of this data set until the block ends. ``name`` is what an object store claims instead."""
        del name
        path = self._inside(".lock")
        with lock(path, unwritable=lambda why: CacheError(f"cannot lock {path}: {why}")):
            yield

    def _inside(self, name: str) -> Path:
        """The path of ``name``; refused where a link is on the way, so that it cannot leave the folder."""
        path = self.path
        if path.is_symlink():
            raise CacheError(f"{path} is a link: a cache holds none; name the folder that it stands for")
        for part in name.split("/"):
            path = path / part
            if part in ("", ".", "..") or path.is_symlink():
                raise CacheError(f"{path} is a link or leaves the cache: a cache holds neither")
        return path
