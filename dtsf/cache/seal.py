"""JSON documents that carry their own checksum, so that a changed byte in a record is found like one in the data.

The last field is ``seal``: xxh3-64, as 16 hexadecimal digits, of the file's bytes with those digits written as zeros.
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
TAIL = re.compile(rb'"seal": ?"([0-9a-f]{16})"\s*\}\s*\Z')

T = TypeVar("T", bound="Frozen")


def dump_with_checksum(document: Frozen) -> bytes:
    """The document as JSON with its seal. Its model's last field must be ``seal``."""
    data = document.model_copy(update={"seal": NONE}).model_dump_json(indent=1).encode()
    found = TAIL.search(data)
    if found is None:
        raise ValueError(f"{type(document).__name__} does not end in its seal")
    return _with_seal(data, found, xxhash.xxh3_64_hexdigest(data))


def read_with_checksum(data: bytes, model: type[T], where: str, *, required: bool = True) -> T:
    """Parse and check a document. ``required``: whether a document without a seal is refused: layout 1 had none. Raises
    CacheError: another document, or one changed since it was written.
    """
    found = TAIL.search(data)
    if found is None:
        if required:
            raise CacheError(f"{where} is damaged: it does not end in its seal")
    elif xxhash.xxh3_64_hexdigest(_with_seal(data, found, NONE)).encode() != found.group(1):
        raise CacheError(f"{where} is damaged: its bytes do not match its seal")
    return parse_model(model, data, where, error=lambda why: CacheError(f"{why}: it is damaged"))


def _with_seal(data: bytes, found: re.Match[bytes], seal: str) -> bytes:
    return data[: found.start(1)] + seal.encode() + data[found.end(1) :]
