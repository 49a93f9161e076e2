"""Store of a cache on an object store, through fsspec. Files for reading are copied to this machine once."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import xxhash

from dtsf.cache.schema import FileRecord
from dtsf.cache.store import DOCUMENT_LIMIT
from dtsf.errors import CacheError
from dtsf.files.read import refuse_unless_fits
from dtsf.files.write import write_atomically

T = TypeVar("T")

TIMEOUT = "DTSF_STORE_TIMEOUT"  # environment variable: seconds in which an object store must answer
TIMEOUT_S, MAX_TIMEOUT_S = 60.0, 86400.0
SLOWEST = 1 << 16  # bytes per second of the slowest usable connection: a transfer gets more time by its size
LEASE_S = 600.0  # seconds until a claim of another machine expires; a writer holds a claim only during an upload


@dataclass(frozen=True)
class RemoteStore:
    """Prefix of an object store. A PUT is atomic. The methods are those of :class:`LocalStore`."""

    url: str
    exclusive = False  # there is no lock; each shard has a claim

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """Last part of the URL."""
        return self.url.rsplit("/", 1)[-1]

    def below(self, name: str) -> RemoteStore:
        """Return the store of a prefix."""
        return RemoteStore(f"{self.url}/{name}")

    def absolute(self) -> RemoteStore:
        """Return the same store."""
        return self

    def folders(self) -> list[str]:
        """Return the names of the prefixes."""
        return self._list("", "directory")

    def files(self, folder: str) -> list[str]:
        """Return the names of the objects directly below a prefix."""
        return self._list(folder, "file")

    def is_empty(self) -> bool:
        """Return True if there is no object."""
        return not self._list("", "file") and not self._list("", "directory")

    def size(self, name: str) -> int | None:
        """Return the size of an object; None if it does not exist."""
        info = self._call("stat", name, lambda system, path: system.info(path), FileNotFoundError)
        return None if info is None else info["size"]

    def modified(self, name: str) -> float | None:
        """Return None: not every object store has the time."""
        return None  # noqa: RET501

    def read(self, name: str, limit: int = DOCUMENT_LIMIT) -> bytes | None:
        """Return the bytes of an object; None if it does not exist. Raises CacheError: larger than ``limit``."""
        size = self.size(name)
        if size is None:
            return None
        if size > limit:
            raise CacheError(f"{self.url}/{name} has {size} bytes, more than the limit of {limit}")

        def get(system: Any, path: str) -> bytes:
            return bytes(system.cat_file(path))

        return self._call("read", name, get, FileNotFoundError, extra_s=size / SLOWEST)

    def local_path(self, name: str, expected: FileRecord) -> Path:
        """Copy an object to this machine, once, and return the copy. Raises CacheError: another checksum than the record's."""
        folder = os.environ.get("DTSF_COPIES") or os.path.join(
            os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "dtsf/copies"
        )
        # Named by checksum: a shard that is made again gets a new copy.
        copy = f"{expected.xxh3}-{expected.bytes}-{xxhash.xxh3_64_hexdigest(name.encode())}"
        path = Path(folder, xxhash.xxh3_64_hexdigest(self.url.encode()), copy)
        with contextlib.suppress(OSError):
            if path.stat().st_size == expected.bytes and not path.is_symlink():
                return path
        size = self.size(name)
        if size != expected.bytes:
            raise CacheError(f"{self.url}/{name} has {size} bytes instead of {expected.bytes}: run dtsf cache verify")
        refuse_unless_fits(expected.bytes, f"copying {self.url}/{name}")
        data = self.read(name, expected.bytes)
        if data is None or xxhash.xxh3_64_hexdigest(data) != expected.xxh3:
            raise CacheError(f"{self.url}/{name} does not match its checksum: run dtsf cache repair {self.url}")
        write_atomically(path, data)
        return path

    def write(self, name: str, data: bytes) -> None:
        """Write an object."""
        self._call("write", name, lambda system, path: system.pipe_file(path, data), extra_s=len(data) / SLOWEST)

    def create(self, name: str, data: bytes) -> bool:
        """Write an object unless it exists (a conditional PUT), and return True if it did not."""

        def put(system: Any, path: str) -> bool:
            system.pipe_file(path, data, mode="create")
            return True

        return bool(self._call("write", name, put, FileExistsError, extra_s=len(data) / SLOWEST))

    def create_all(self, files: dict[str, bytes], first: str) -> None:
        """Write the object ``first``; of two writers, the first one's is kept. The others follow from it, under a claim."""
        self.create(first, files[first])

    def remove(self, name: str) -> None:
        """Remove an object, if it exists."""
        self._call("remove", name, lambda system, path: system.rm_file(path), FileNotFoundError)

    def clear(self) -> None:
        """Remove all objects below the prefix."""
        self._call("remove", "", lambda system, path: system.rm(path, recursive=True), extra_s=LEASE_S)

    def sweep(self, orphans: Callable[[list[str]], list[str]]) -> int:
        """Return 0: an object store has no incomplete objects, and other machines may be writing."""
        return 0

    @contextmanager
    def claim(self, name: str) -> Iterator[None]:
        """Exclude other writers of ``name`` during the block. Wait for a live writer, and take over from a dead one."""
        claim, token = f"{name}.claim", uuid.uuid4().hex
        mine = json.dumps({"token": token, "host": socket.gethostname(), "process": _process(os.getpid())}).encode()
        started = time.monotonic()
        while not self.create(claim, mine):
            if self._is_abandoned(claim) or time.monotonic() - started > LEASE_S:
                self.remove(claim)
            else:
                time.sleep(0.2)
        try:
            yield
        finally:
            # Another writer may have taken over while this process was suspended.
            if self.read(claim, 4096) == mine:
                self.remove(claim)

    @contextmanager
    def write_lock(self) -> Iterator[None]:
        """Do nothing: an object store has no lock. Each shard has a claim."""
        yield

    def _is_abandoned(self, claim: str) -> bool:
        data = self.read(claim, 4096)
        if data is None:
            return False
        try:
            document = json.loads(data)
            host, process = document["host"], document["process"]
        except (ValueError, KeyError, TypeError):
            return True
        if host != socket.gethostname() or not isinstance(process, str):
            return False
        number = process.split(":")[0]
        return not number.isdecimal() or _process(int(number)) != process

    def _list(self, name: str, kind: str) -> list[str]:
        def names(system: Any, path: str) -> list[str]:
            paths = [entry["name"].rstrip("/") for entry in system.ls(path, detail=True) if entry["type"] == kind]
            # Some stores list the prefix too.
            return sorted(one.rsplit("/", 1)[-1] for one in paths if one != path.rstrip("/"))

        return self._call("list", name, names, FileNotFoundError) or []

    def _call(
        self,
        verb: str,
        name: str,
        action: Callable[[Any, str], T],
        expected: type[OSError] | tuple[()] = (),
        extra_s: float = 0.0,
    ) -> T | None:
        """Return ``action(file system, path)``, or None after an ``expected`` error. Raises CacheError: any other error, or no
        answer within ``extra_s`` seconds more than the deadline.
        """
        url = f"{self.url}/{name}".rstrip("/")
        deadline = _timeout() + extra_s
        try:
            from fsspec.core import url_to_fs  # type: ignore[import-untyped]

            # fsspec keeps one file system per process, and makes a new one after a fork.
            system, path = url_to_fs(url)
            system.invalidate_cache()
            answer: Future[T] = Future()
            # Stores differ in their timeouts and repetitions, and some have none.
            Thread(target=_settle, args=(answer, lambda: action(system, path)), daemon=True, name="dtsf-store").start()
            if not wait([answer], deadline).done:
                raise CacheError(
                    f"cannot {verb} {url}: the store does not answer within {deadline:.3g} s. Check its address, or set "
                    f"{TIMEOUT} to more seconds. Committed shards are safe; run the same command again"
                )
            return answer.result()
        except expected:
            return None
        except ImportError as error:
            raise CacheError(f"cannot {verb} {url}: {error}. For s3:// run pip install 'dtsf[s3]'") from error
        except CacheError:
            raise
        except Exception as error:  # noqa: BLE001  each store has its own errors
            raise CacheError(
                f"cannot {verb} {url}: {type(error).__name__}: {error}. Committed shards are safe; run the same command again"
            ) from error


def _timeout() -> float:
    text = os.environ.get(TIMEOUT) or str(TIMEOUT_S)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MAX_TIMEOUT_S:
        raise CacheError(f"{TIMEOUT}={text!r}: give seconds, above 0 and at most {MAX_TIMEOUT_S:g}, or unset it")
    return seconds


def _settle(answer: Future[T], action: Callable[[], T]) -> None:
    try:
        answer.set_result(action())
    except BaseException as error:  # noqa: BLE001  raised by the waiting thread
        answer.set_exception(error)


def _process(number: int) -> str | None:
    """Return the process number with its start time, because numbers are reused; None if there is no such process."""
    try:
        text = Path(f"/proc/{number}/stat").read_text("utf-8", "replace")
        return f"{number}:{text.rsplit(')', 1)[1].split()[19]}"
    except FileNotFoundError:
        return None
    except (OSError, IndexError):
        return f"{number}:"
