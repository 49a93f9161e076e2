"""Read files that may be untrusted, and write JSON. Only regular files of bounded size are read. JSON is strict: no NaN, no
Infinity, no oversized number. Memory is checked before a size from a file is allocated.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from dtsf.errors import CacheError, DataError, DtsfError
from dtsf.settings import MAX_SHOWN, explain

T = TypeVar("T", bound=BaseModel)

MAX_DIGITS = 40  # maximum length of a number in JSON
UNCHECKED_BYTES = 64 << 20  # smaller sizes are not checked: a check takes longer than reading a batch
# Files with the memory limit and the memory use of a container, of cgroup versions 2 and 1.
CGROUPS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


def read_file(path: Path, *, limit: int, error: Callable[[str], DtsfError], follow: bool = False) -> bytes:
    """Return the bytes of a regular file of at most ``limit`` bytes. ``follow``: accept a link, for a path that the user gave.
    Raises ``error(message)``: the file is missing, too large, unreadable, a folder, a pipe, a device or a link.
    """
    # Non-blocking: opening a pipe without a writer would wait forever.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    if not follow and path.is_symlink():
        raise error(f"{path} is a link, and links are not followed here")
    try:
        with open(os.open(path, flags), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise error(f"{path} is not a regular file")
            if status.st_size > limit:
                raise error(f"{path} has {status.st_size} bytes, more than the limit of {limit}")
            # Not `limit`: read() allocates its argument at once.
            return file.read(status.st_size)
    except (OSError, ValueError) as refused:
        # A ValueError is about the path, for example a zero byte.
        name = path if isinstance(refused, OSError) else repr(str(path))
        raise error(f"{name} cannot be read: {getattr(refused, 'strerror', None) or refused}") from refused


def parse_json(data: bytes | str, source: str, *, error: Callable[[str], DtsfError]) -> Any:
    """Return the value of strict JSON. ``source``: name for the message. Raises ``error(message)``: invalid JSON."""
    try:
        return json.loads(data, parse_constant=_refuse_constant, parse_int=_parse_int, parse_float=_parse_float)
    except (ValueError, RecursionError) as refused:
        why = "it is nested too deep" if isinstance(refused, RecursionError) else str(refused)
        raise error(f"{source} is not valid JSON: {why}") from refused


def parse_model(model: type[T], data: bytes | str, source: str, *, error: Callable[[str], DtsfError]) -> T:
    """Return a validated document. Raises ``error(message)``: fields that are invalid, with their values."""
    try:
        return model.model_validate_json(data)
    except ValidationError as refused:
        raise error(f"{source}: {explain(refused, most=3)}") from refused
    except (ValueError, RecursionError) as refused:
        raise error(f"{source} cannot be read: {refused}") from refused


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error message."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def json_text(document: object, *, indent: int | None = None) -> str:
    """Return a document as strict JSON, a 32-bit 0.9 as 0.9, not 0.8999999761581421. Raises DataError: NaN or infinity."""
    return json.dumps(_json_value(document, ""), indent=indent, allow_nan=False)


def _json_value(value: Any, path: str) -> Any:
    if isinstance(value, dict):
        return {str(key): _json_value(inner, f"{path}.{key}".lstrip(".")) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(inner, f"{path}[{k}]") for k, inner in enumerate(value)]
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        raise DataError(f"{path or 'a number'} is {value}, which JSON cannot store: it is not written")
    with contextlib.suppress(OverflowError):
        packed = struct.pack("f", value)
        if struct.unpack("f", packed)[0] == value:
            # Nine digits suffice for every 32-bit number.
            shorter = (float(f"{value:.{digits}g}") for digits in range(1, 10))
            return next(short for short in shorter if struct.pack("f", short) == packed)
    return value


def available_memory() -> int:
    """Return the bytes that can be allocated without swapping, within the limit of a container."""
    import psutil  # type: ignore[import-untyped]

    free = int(psutil.virtual_memory().available)
    for limit, used in CGROUPS:
        # The file is missing, or has the word "max".
        with contextlib.suppress(OSError, ValueError):
            left = int(Path("/sys/fs/cgroup", limit).read_text()) - int(Path("/sys/fs/cgroup", used).read_text())
            free = min(free, left)
    return max(0, free)


def refuse_unless_fits(n_bytes: int, purpose: str) -> None:
    """Check before an allocation. Raises CacheError: ``n_bytes`` are not available."""
    if n_bytes > UNCHECKED_BYTES and n_bytes > (free := available_memory()):
        raise CacheError(f"{purpose} would take {n_bytes / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free")


def _refuse_constant(word: str) -> float:
    raise ValueError(f"{word} is not a JSON number")


def _parse_int(word: str) -> int:
    if len(word) > MAX_DIGITS:
        raise ValueError(f"a number of {len(word)} digits, more than {MAX_DIGITS}")
    return int(word)


def _parse_float(word: str) -> float:
    value = float(word)
    if not math.isfinite(value):
        raise ValueError(f"the number {word[:MAX_SHOWN]} is out of range")
    return value
