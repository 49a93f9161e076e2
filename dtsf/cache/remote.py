"""A cache on an object store, through fsspec: PUT the data, then PUT the record if nobody else has.

Files that are read are copied once to this machine, under the checksum of their record, and mapped from there.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from dtsf.errors import CacheError
from dtsf.files.memory import refuse_unless_fits
from dtsf.files.write import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dtsf.cache.spec import FileRecord

LEASE_S = 600.0
"""A claim whose writer is on another machine and silent for so long is taken over. A writer holds one only while it uploads."""


def copies_folder() -> Path:
    """Where copies of remote files are kept: $DTSF_COPIES, or in the user's cache folder."""
    if given := os.environ.get("DTSF_COPIES"):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dtsf" / "copies"


@dataclass(frozen=True)
class RemoteStore:
    """A prefix of an object store."""

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """Its last part."""
        return self.url.rsplit("/", 1)[-1]

    def below(self, name: str) -> RemoteStore:
        """A prefix below it."""
        return RemoteStore(f"{self.url}/{name}")

    def absolute(self) -> RemoteStore:
        """The same wherever a worker runs."""
        return self

    def folders(self) -> list[str]:
        """Names of the prefixes below it."""
        return sorted(
            entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in self._listed("") if entry["type"] == "directory"
        )

    def is_empty(self) -> bool:
        """Whether nothing is there."""
        return not self._listed("")

    def names(self, folder: str) -> list[str]:
        """Names of the objects directly below ``folder``."""
        return sorted(entry["name"].rsplit("/", 1)[-1] for entry in self._listed(folder) if entry["type"] == "file")

    def size(self, name: str) -> int | None:
        """Bytes of an object; None where there is none."""
        with self._store("look at", name) as (store, path):
            store.invalidate_cache()
            try:
                size = store.info(path)["size"]
            except FileNotFoundError:
                return None
            return None if size is None else int(size)

    def read(self, name: str, limit: int = 1 << 28) -> bytes | None:
        """Bytes of an object; None where there is none.

        Raises CacheError: it is larger than ``limit``, or the store refuses.
        """
        size = self.size(name)
        if size is None:
            return None
        if size > limit:
            raise CacheError(f"{self.url}/{name} has {size} bytes, more than {limit} that it can have")
        with self._store("read", name) as (store, path):
            try:
                return bytes(store.cat_file(path))
            except FileNotFoundError:
                return None

    def file(self, name: str, expected: FileRecord) -> Path:
        """A copy on this machine that can be memory-mapped, checked against the record when it is made. Raises CacheError: the
        object is not what the record says.
        """
        # By content: a shard made again has another checksum, and its old copy is never taken for it.
        folder = copies_folder() / xxhash.xxh3_64_hexdigest(self.url.encode())
        path = folder / f"{expected.xxh3}-{expected.bytes}-{xxhash.xxh3_64_hexdigest(name.encode())}"
        with contextlib.suppress(OSError):
            if path.stat().st_size == expected.bytes and not path.is_symlink():
                return path
        held = self.size(name)
        if held != expected.bytes:
            raise CacheError(f"{self.url}/{name} has {held} bytes instead of {expected.bytes}: run dtsf cache verify")
        refuse_unless_fits(expected.bytes, f"copying {self.url}/{name}")
        data = self.read(name, expected.bytes)
        if data is None or xxhash.xxh3_64_hexdigest(data) != expected.xxh3:
            raise CacheError(f"{self.url}/{name} does not match its checksum: run dtsf cache repair {self.url}")
        write_atomically(path, data)
        return path

    def write(self, name: str, data: bytes) -> None:
        """Make an object: a PUT is whole or nothing."""
        with self._store("write", name) as (store, path):
            store.pipe_file(path, data)

    def create(self, name: str, data: bytes) -> bool:
        """Make an object unless it is there (a conditional PUT); False where it was."""
        with self._store("write", name) as (store, path):
            try:
                store.pipe_file(path, data, mode="create")
            except FileExistsError:
                return False
            return True

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        with self._store("remove", name) as (store, path), contextlib.suppress(FileNotFoundError):
            store.rm_file(path)

    def clear(self) -> None:
        """Remove everything below the prefix."""
        with self._store("remove", "") as (store, path):
            store.rm(path, recursive=True)

    def sweep(self) -> int:
        """Nothing half-written is ever seen on an object store; a dead writer's claim is taken over where it is met."""
        return 0

    @contextmanager
    def claim(self, name: str) -> Iterator[None]:
        """Be the only writer of ``name`` until the block ends; waits for another one, and outlives a dead one. Raises
        CacheError: the store refuses.
        """
        claim = f"{name}.claim"
        token = uuid.uuid4().hex
        mine = json.dumps({"token": token, "host": socket.gethostname(), "process": _process(os.getpid())}).encode()
        begun = time.monotonic()
        while not self.create(claim, mine):
            if self._is_abandoned(claim) or time.monotonic() - begun > LEASE_S:
                self.remove(claim)
            else:
                time.sleep(0.2)
        try:
            yield
        finally:
            # Taken over while this process slept: it is no longer ours to remove.
            if (self.read(claim, 4096) or b"") == mine:
                self.remove(claim)

    def _is_abandoned(self, claim: str) -> bool:
        data = self.read(claim, 4096)
        if data is None:
            return False
        try:
            held = json.loads(data)
            host, process = held["host"], held["process"]
        except (ValueError, KeyError, TypeError):
            return True
        if host != socket.gethostname() or not isinstance(process, str):
            return False
        number = process.split(":")[0]
        return not number.isdigit() or _process(int(number)) != process

    def _listed(self, name: str) -> list[dict[str, Any]]:
        with self._store("list", name) as (store, path):
            store.invalidate_cache()
            try:
                entries: list[dict[str, Any]] = store.ls(path, detail=True)
            except FileNotFoundError:
                return []
            # Some stores list the prefix itself.
            return [entry for entry in entries if entry["name"].rstrip("/") != path.rstrip("/")]

    @contextmanager
    def _store(self, verb: str, name: str) -> Iterator[tuple[Any, str]]:
        """The file system and the path in it; whatever a store throws becomes one error that says where."""
        where = f"{self.url}/{name}".rstrip("/")
        try:
            from fsspec.core import url_to_fs  # type: ignore[import-untyped]

            # fsspec keeps one file system a process and makes a new one after a fork.
            yield url_to_fs(where)
        except CacheError:
            raise
        except ImportError as error:
            raise CacheError(f"cannot {verb} {where}: {error}. For s3:// run pip install 'dtsf[s3]'") from error
        except Exception as error:  # noqa: BLE001  every store has errors of its own
            raise CacheError(
                f"cannot {verb} {where}: {type(error).__name__}: {error}. What is committed is safe; run the same command "
                "again to go on"
            ) from error


def _process(number: int) -> str | None:
    """Process number and start time: a number alone is given again."""
    try:
        text = Path(f"/proc/{number}/stat").read_text("utf-8", "replace")
        return f"{number}:{text.rsplit(')', 1)[1].split()[19]}"
    except FileNotFoundError:
        return None
    except (OSError, IndexError):
        return f"{number}:"
