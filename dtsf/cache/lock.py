"""One writer a data set: preprocess, compact, repair, convert. A second one is refused at once."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from dtsf.cache.store import LocalStore
from dtsf.errors import CacheError
from dtsf.files.write import lock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dtsf.cache.remote import RemoteStore


@contextmanager
def write_lock(folder: LocalStore | RemoteStore) -> Iterator[None]:
    """Be the only command that writes a data set. An object store has no lock: there each shard is claimed by itself.

    ``folder``: the data set's place; its lock lies beside it, so that it need not be there yet. Raises CacheError: another
    process is at it, or the folder cannot be written.
    """
    if not isinstance(folder, LocalStore):
        yield
        return
    cache = folder.path.absolute().parent
    with lock(
        cache / f".{folder.path.absolute().name}.lock",
        unwritable=lambda why: CacheError(f"cannot write to the cache {cache}: {why}"),
        busy=CacheError(f"another dtsf process is writing {folder}: wait for it, or use another --name or --cache"),
    ):
        yield
