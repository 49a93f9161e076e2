"""Stores of a cache: a local folder here, an object store in :mod:`dtsf.cache.remote`. A cache may be untrusted. So names are
computed and never read from it, links and special files are refused, and a file's size is checked before it is read.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from dtsf.cache.schema import FileRecord
from dtsf.errors import CacheError
from dtsf.files.read import read_file
from dtsf.files.write import flush, lock, move, remedy, sweep_orphans, write_atomically
from dtsf.names import local_path, split_address

if TYPE_CHECKING:
    from dtsf.cache.remote import RemoteStore

Store: TypeAlias = "LocalStore | RemoteStore"
Location: TypeAlias = "str | Path | Store"
Progress: TypeAlias = Callable[[int, int], None]

DOCUMENT_LIMIT = 1 << 28  # maximum bytes of a JSON document; a shard of a million clips is smaller
NOT_A_STORE = ("http", "https", "ftp", "ftps", "sftp", "rtsp")


def open_store(path: Location) -> Store:
    """Return the store of a path or URL. Raises CacheError: a URL without a bucket, or of a kind that stores no files."""
    if not isinstance(path, str | Path):
        return path
    address = split_address(str(path))
    if address is None or address[0] == "file":
        return LocalStore(Path(local_path(str(path))))
    scheme, rest = address
    if not rest.strip("/"):
        raise CacheError(f"the cache {scheme}:// has no bucket: give it as {scheme}://BUCKET/FOLDER")
    if scheme in NOT_A_STORE:
        raise CacheError(
            f"the cache {scheme}://{rest}: {scheme} cannot store files: give a folder or s3://BUCKET/FOLDER"
        )
    from dtsf.cache.remote import RemoteStore

    return RemoteStore(f"{scheme}://{rest.rstrip('/')}")


@contextmanager
def _refusals(action: str, then: str = "") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = f": {remedy(error)} {then}" if then else ""
        raise CacheError(f"cannot {action}: {error.strerror or error}{hint}") from error


@dataclass(frozen=True)
class LocalStore:
    """Folder of a file system. All methods raise CacheError if the system refuses."""

    path: Path
    exclusive = True  # write_lock excludes all other writers

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.name

    def below(self, name: str) -> LocalStore:
        """Return the store of a subfolder."""
        return LocalStore(self.path / name)

    def absolute(self) -> LocalStore:
        """Return the same store, independent of the working folder. Two stores of one folder become equal."""
        return LocalStore(self.path.resolve())

    def folders(self) -> list[str]:
        """Return the names of the subfolders. Hidden folders (unfinished datasets) and links are skipped."""
        entries = os.scandir(self.path) if self.path.is_dir() else ()
        return sorted(one.name for one in entries if one.is_dir(follow_symlinks=False) and not one.name.startswith("."))

    def files(self, folder: str) -> list[str]:
        """Return the names of the files in a folder."""
        path = self._inside(folder)
        with _refusals(f"list {path}"):
            entries = os.scandir(path) if os.path.lexists(path) else ()
            return sorted(entry.name for entry in entries if not entry.is_dir(follow_symlinks=False))

    def is_empty(self) -> bool:
        """Return True if the folder does not exist or is empty."""
        return not os.path.lexists(self.path) or (self.path.is_dir() and not any(self.path.iterdir()))

    def size(self, name: str) -> int | None:
        """Return the size of a file; None if it does not exist. Raises CacheError: not a regular file."""
        status = self._stat(name)
        return None if status is None else status.st_size

    def modified(self, name: str) -> float | None:
        """Return the modification time of a file in seconds; None if unknown."""
        status = self._stat(name)
        return None if status is None else status.st_mtime

    def read(self, name: str, limit: int = DOCUMENT_LIMIT) -> bytes | None:
        """Return the bytes of a file; None if it does not exist. Raises CacheError: larger than ``limit``, or a link."""
        return None if self.size(name) is None else read_file(self.path / name, limit=limit, error=CacheError)

    def local_path(self, name: str, expected: FileRecord) -> Path:
        """Return a path for memory mapping. The caller checks its size."""
        self.size(name)
        return self.path / name

    def write(self, name: str, data: bytes) -> None:
        """Write a file. After a crash it is complete or unchanged."""
        write_atomically(self._inside(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Write a file unless it exists, and return True if it did not. The caller holds the claim of ``name``."""
        missing = self.size(name) is None
        if missing:
            self.write(name, data)
        return missing

    def create_all(self, files: dict[str, bytes], first: str) -> None:
        """Make the folder with these files, all at once. ``first``: the only file that other stores write."""
        building = self.path.with_name(f".{self.name}.creating")
        with _refusals(f"make {self}", "or choose another --cache, and run the same command again"):
            if building.exists():
                shutil.rmtree(building)
            for name, data in files.items():
                write_atomically(building / name, data)
            (building / "shards").mkdir(exist_ok=True)
            move(building, self.path)

    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""
        path = self._inside(name)
        with _refusals(f"remove {path}"):
            if os.path.lexists(path):
                path.unlink()
                flush(path.parent)

    def clear(self) -> None:
        """Remove the folder and its content."""
        shutil.rmtree(self.path)

    def sweep(self, orphans: Callable[[list[str]], list[str]]) -> int:
        """Remove temporary files, and those of all files that ``orphans`` returns. Return their number."""
        with self.claim(""):
            count = sweep_orphans(self.path)
            paths = [Path(folder, file) for folder, _, files in os.walk(self.path) for file in files]
            names = orphans([path.relative_to(self.path).as_posix() for path in paths])
            for name in names:
                self.remove(name)
        return count + len(names)

    @contextmanager
    def claim(self, name: str) -> Iterator[None]:
        """Exclude other writers of the dataset during the block. Wait for them."""
        path = self._inside(".lock")
        with lock(path, unwritable=lambda why: CacheError(f"cannot lock {path}: {why}")):
            yield

    @contextmanager
    def write_lock(self) -> Iterator[None]:
        """Exclude other commands that write this dataset, which need not exist yet. Raises CacheError: it is locked."""
        folder = self.path.absolute()
        with lock(
            folder.with_name(f".{folder.name}.lock"),
            unwritable=lambda why: CacheError(f"cannot write to the cache {folder.parent}: {why}"),
            busy=CacheError(f"another dtsf process is writing {self}: wait for it, or use another --name or --cache"),
        ):
            yield

    def _stat(self, name: str) -> os.stat_result | None:
        path = self._inside(name)
        with _refusals(f"read {path}"):
            try:
                status = path.lstat()
            except FileNotFoundError:
                return None
        if not stat.S_ISREG(status.st_mode):
            raise CacheError(f"{path} is not a regular file: a cache has only regular files and folders")
        return status

    def _inside(self, name: str) -> Path:
        """Return the path of ``name``. Raises CacheError: a link on the way, or a path outside the folder."""
        path = self.path
        if path.is_symlink():
            raise CacheError(f"{path} is a link: name the folder that it points to")
        for part in name.split("/"):
            path = path / part
            if part in ("", ".", "..") or path.is_symlink():
                raise CacheError(f"{path} is a link or is outside the cache: a cache has no links")
        return path
