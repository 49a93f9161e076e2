"""The one reader of documents that others may have written, and the one writer of JSON.

Nothing is read but plain files, none before its size is known to be sensible; JSON is what the standard says, no NaN and no
number that a computer cannot hold; what does not fit is refused with its value and the bound.
"""

from __future__ import annotations

import json
import math
import os
import stat
import struct
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from dtsf.errors import DataError
from dtsf.settings import MAX_SHOWN, explain

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dtsf.errors import DtsfError

T = TypeVar("T", bound=BaseModel)

LONGEST_NUMBER = 40
"""Digits and signs of a number in JSON: more than any field here can hold."""


def read_file(path: Path, *, limit: int, error: Callable[[str], DtsfError], follow: bool = False) -> bytes:
    """Bytes of a plain file.

    ``limit``: most bytes that it can sensibly have. ``follow``: whether it may be a link: where a person named this very file.
    Raises DtsfError: as ``error`` makes it: missing, too large, a folder, a pipe, a device, a link, or not readable.
    """
    # Without waiting: a pipe that nobody writes to would never open.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    if not follow and path.is_symlink():
        raise error(f"{path} is a link, which is not followed here")
    try:
        with open(os.open(path, flags), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise error(f"{path} is no plain file")
            if status.st_size > limit:
                raise error(f"{path} has {status.st_size} bytes, more than {limit} that it can have")
            # Not `limit`: that much would be allocated at once. One more, to see a file that grows.
            data = file.read(status.st_size + 1)
    except OSError as refused:
        raise error(f"{path} cannot be read: {refused.strerror or refused}") from refused
    except ValueError as refused:
        raise error(f"{str(path)!r} cannot be read: {refused}") from refused
    return data[: status.st_size]


def parse_json(data: bytes | str, where: str, *, error: Callable[[str], DtsfError]) -> Any:
    """JSON as the standard has it. Raises DtsfError: as ``error`` makes it: no JSON, nested too deep, NaN or Infinity, or a
    number beyond all fields.
    """
    try:
        return json.loads(data, parse_constant=_refuse_constant, parse_int=_whole, parse_float=_real)
    except (ValueError, RecursionError) as refused:
        why = "it is nested too deep" if isinstance(refused, RecursionError) else str(refused)
        raise error(f"{where} is no JSON that can be read: {why}") from refused


def parse_model(model: type[T], data: bytes | str, where: str, *, error: Callable[[str], DtsfError]) -> T:
    """A document of a known form. Raises DtsfError: as ``error`` makes it, with each field that does not fit, its value and the
    bound.
    """
    try:
        return model.model_validate_json(data)
    except ValidationError as refused:
        raise error(f"{where}: {explain(refused, most=3)}") from refused
    except (ValueError, RecursionError) as refused:
        raise error(f"{where} cannot be read: {refused}") from refused


def first_line(error: BaseException) -> str:
    """What a library says of its own error, in a line."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def json_text(document: object, *, indent: int | None = None) -> str:
    """A document as JSON that every program reads: see :func:`json_value`. Raises DataError: a number in it is not finite."""
    return json.dumps(json_value(document), indent=indent, allow_nan=False)


def json_value(value: Any, where: str = "") -> Any:
    """The same with numbers as a person would write them: a 32-bit 0.9 is 0.9 and not 0.8999999761581421. Raises DataError: A
    number is not finite; the message says which.
    """
    if isinstance(value, float):
        if not math.isfinite(value):
            raise DataError(f"{where or 'a number'} is {value}, which JSON has no word for: it is not written")
        return _shortest(value)
    if isinstance(value, dict):
        return {str(key): json_value(held, f"{where}.{key}".lstrip(".")) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(held, f"{where}[{k}]") for k, held in enumerate(value)]
    return value


def _shortest(value: float) -> float:
    """The shortest number that is the same in 32 bits, where it is exactly one of those; else the number itself."""
    try:
        same = struct.unpack("f", struct.pack("f", value))[0] == value
    except OverflowError:
        same = False
    if same:
        for digits in range(1, 10):
            shorter = float(f"{value:.{digits}g}")
            if struct.unpack("f", struct.pack("f", shorter))[0] == value:
                return shorter
    return value


def _refuse_constant(word: str) -> float:
    raise ValueError(f"{word} is no number of JSON")


def _whole(word: str) -> int:
    if len(word) > LONGEST_NUMBER:
        raise ValueError(f"a number of {len(word)} digits, at most {LONGEST_NUMBER}")
    return int(word)


def _real(word: str) -> float:
    value = float(word)
    if not math.isfinite(value):
        raise ValueError(f"{word[:MAX_SHOWN]} is beyond what a number can be")
    return value
