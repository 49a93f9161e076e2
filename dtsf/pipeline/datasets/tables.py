"""Tables as people have them: any usual separator and encoding, headers in any case; errors name their line."""

from __future__ import annotations

import codecs
import csv
import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dtsf.cache.store import DOCUMENT_LIMIT
from dtsf.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SEPARATORS = (",", ";", "\t")
SECONDS = re.compile(r"(?:(?:(\d+):)?(\d{1,2}):)?(\d+(?:[.,]\d*)?|[.,]\d+)")


@dataclass(frozen=True)
class Table:
    """Rows by column name in small letters, each with the number of the line on which it ends."""

    rows: tuple[tuple[int, dict[str, str]], ...]
    notes: tuple[str, ...]


def read_table(file: Path, required: Sequence[str], optional: Sequence[str]) -> Table:
    """Read a table whose first line names its columns. Raises DataError: with the line, and the nearest name where a column is
    missing.

    Args:
        file: Comma, semicolon or tab separated; UTF-8, UTF-16 or, with a note, Windows' western European.
        required: Columns that there must be, none of them ever empty.
        optional: Columns that there may be; others are passed over, with a note if they look like one of these.
    """
    text, notes = decode_text(_read(file), str(file))
    lines = text.splitlines(keepends=True)
    known = (*required, *optional)
    separator = max(SEPARATORS, key=lambda mark: _known_in(lines[0] if lines else "", mark, known))
    try:
        reader = csv.reader(lines, delimiter=separator, strict=True)
        header = [name.strip().casefold() for name in next(reader, [])]
        _check_header(file, header, required, optional)
        notes += [_unused(file, name, optional) for name in header if _looks_like(name, optional)]
        rows = []
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) > len(header) and any(cell.strip() for cell in cells[len(header) :]):
                raise DataError(
                    f"{file}, line {reader.line_num}: {len(cells)} cells, the header has {len(header)} columns; a cell with "
                    f"{separator!r} in it must stand in quotes"
                )
            padded = [*cells, *[""] * (len(header) - len(cells))]
            row = {name: cell.strip() for name, cell in zip(header, padded, strict=False) if name in known}
            empty = next((name for name in required if not row[name]), None)
            if empty is not None:
                raise DataError(f"{file}, line {reader.line_num}: {empty} is empty")
            rows.append((reader.line_num, row))
    except csv.Error as error:
        raise DataError(f"{file} cannot be read as a table: {error}") from error
    return Table(tuple(rows), tuple(notes))


def decode_text(data: bytes, where: str) -> tuple[str, list[str]]:
    """Text of a file, and a note where its encoding had to be guessed. Raises DataError: it is no text."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif data[1:2] == b"\0":
        encoding = "utf-16-le"
    elif data[:1] == b"\0" and len(data) > 1:
        encoding = "utf-16-be"
    else:
        encoding = "utf-8-sig"
    try:
        return data.decode(encoding), []
    except UnicodeDecodeError as error:
        place = data.count(b"\n", 0, error.start) + 1
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}, line {place}: neither UTF-8 nor any other text that is known here") from error
    return text, [
        f"{where} is not UTF-8 (line {place}); it was read as Windows' cp1252: look at its letters, or save it as UTF-8"
    ]


def seconds(row: dict[str, str], name: str, where: str) -> float | None:
    """A time in seconds, or as ``h:mm:ss.s`` or ``m:ss``; None where the cell is empty. Raises DataError: something else stands
    there.
    """
    must = "seconds, a number of at least 0, or h:mm:ss.s"
    found = _cell(row, name, where, SECONDS, must)
    if found is None:
        return None
    if found.group(2) and float(found.group(3).replace(",", ".")) >= 60:
        raise DataError(f"{where}: {name} ({found.group()!r}) must be {must}")
    hours, minutes, rest = (float((part or "0").replace(",", ".")) for part in found.groups())
    return hours * 3600 + minutes * 60 + rest


def whole_number(row: dict[str, str], name: str, where: str) -> int | None:
    """A number of a frame; None where the cell is empty. Raises DataError: something else stands there."""
    # Programs for tables write whole numbers as 12.0.
    found = _cell(row, name, where, re.compile(r"(\d{1,9})(?:[.,]0*)?"), "the number of a frame, from 0")
    return int(found.group(1)) if found else None


def number(row: dict[str, str], name: str, where: str) -> float | None:
    """A number, also below 0; None where the cell is empty. Raises DataError: something else stands there."""
    found = _cell(row, name, where, re.compile(r"[+-]?(?:\d+(?:[.,]\d*)?|[.,]\d+)"), "a number")
    return float(found.group().replace(",", ".")) if found else None


def _cell(row: dict[str, str], name: str, where: str, form: re.Pattern[str], must: str) -> re.Match[str] | None:
    text = row.get(name, "")
    found = form.fullmatch(text)
    if text and found is None:
        raise DataError(f"{where}: {name} ({text!r}) must be {must}")
    return found if text else None


def _read(file: Path) -> bytes:
    try:
        if file.stat().st_size > DOCUMENT_LIMIT:
            raise DataError(f"{file} has {file.stat().st_size} bytes, more than {DOCUMENT_LIMIT} that a table can have")
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error


def _known_in(line: str, separator: str, known: Sequence[str]) -> int:
    cells = next(csv.reader([line], delimiter=separator), [])
    return sum(cell.strip().casefold() in known for cell in cells)


def _check_header(file: Path, header: list[str], required: Sequence[str], optional: Sequence[str]) -> None:
    twice = next((name for k, name in enumerate(header) if name in (*required, *optional) and name in header[:k]), None)
    if twice is not None:
        raise DataError(f"{file}, line 1: column {twice!r} is there twice")
    absent = [name for name in required if name not in header]
    if not absent:
        return
    near = difflib.get_close_matches(absent[0], header, 1, 0.6)
    hint = f", perhaps {near[0]!r} is meant for it" if near else ""
    raise DataError(
        f"{file}, line 1: column {absent[0]!r} is missing{hint}; the header must name {', '.join(required)} and may name "
        f"{', '.join(optional)}; it has {', '.join(header) or 'nothing'}"
    )


def _looks_like(name: str, optional: Sequence[str]) -> bool:
    return name not in optional and bool(difflib.get_close_matches(name, optional, 1, 0.75))


def _unused(file: Path, name: str, optional: Sequence[str]) -> str:
    return f"{file}: the column {name!r} is not used; did you mean {difflib.get_close_matches(name, optional, 1, 0.75)[0]!r}?"
