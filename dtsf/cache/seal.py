"""JSON documents that carry their own checksum, so that a changed byte in a record is found like one in the data.

The last field is ``checksum``: xxh3-64, as 16 hexadecimal digits, of the file's bytes with those digits written as zeros.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

import xxhash

from dtsf.errors import CacheError
from dtsf.files.read import parse_model

if TYPE_CHECKING:
    from dtsf.cache.records import Frozen

NONE = "0" * 16
TAIL = re.compile(rb'"checksum": ?"([0-9a-f]{16})"\s*\}\s*\Z')

T = TypeVar("T", bound="Frozen")


def dump_with_checksum(document: Frozen) -> bytes:
    """The document as JSON with its checksum. Its model's last field must be ``checksum``."""
    data = document.model_copy(update={"checksum": NONE}).model_dump_json(indent=1).encode()
    found = TAIL.search(data)
    if found is None:
        raise ValueError(f"{type(document).__name__} does not end in its checksum")
    return _with_seal(data, found, xxhash.xxh3_64_hexdigest(data))


def read_with_checksum(data: bytes, model: type[T], where: str) -> T:
    """Parse and check a document. Raises CacheError: another document, or one changed since it was written."""
    found = TAIL.search(data)
    if found is None:
        raise CacheError(f"{where} is damaged: it does not end in its checksum")
    if xxhash.xxh3_64_hexdigest(_with_seal(data, found, NONE)).encode() != found.group(1):
        raise CacheError(f"{where} is damaged: its bytes do not match its checksum")
    return parse_model(model, data, where, error=lambda why: CacheError(f"{why}: it is damaged"))


def _with_seal(data: bytes, found: re.Match[bytes], checksum: str) -> bytes:
    return data[: found.start(1)] + checksum.encode() + data[found.end(1) :]
