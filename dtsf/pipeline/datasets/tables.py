"""Read tables as users have them: usual separators and encodings, column names in any case. Errors name the line."""

from __future__ import annotations

import codecs
import csv
import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dtsf.errors import DataError
from dtsf.files.read import read_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MAX_BYTES = 1 << 28
SEPARATORS = (",", ";", "\t")
SECONDS = re.compile(r"(?:(?:(\d+):)?(\d{1,2}):)?(\d+(?:[.,]\d*)?|[.,]\d+)")
# Spreadsheets write whole numbers as 12.0.
WHOLE_NUMBER = re.compile(r"(\d{1,9})(?:[.,]0*)?")
NUMBER = re.compile(r"[+-]?(?:\d+(?:[.,]\d*)?|[.,]\d+)")


@dataclass(frozen=True)
class Table:
    """Content of a table."""

    rows: tuple[tuple[int, dict[str, str]], ...]
    """Number of the last line of each row, and its cells by column name in small letters."""
    notes: tuple[str, ...]
    """Notes for the user: a guessed encoding, unused columns."""


def read_table(file: Path, required: Sequence[str], optional: Sequence[str]) -> Table:
    """Read a table whose first line has the column names. Raises DataError: names the line, and the nearest name of a missing
    column.

    Args:
        file: Separated by commas, semicolons or tabs; in UTF-8, UTF-16 or (with a note) Windows' cp1252.
        required: Columns that must exist and have no empty cell.
        optional: Other columns to read. Unknown columns are ignored, with a note if the name is similar to one of these.
    """
    text, notes = decode_text(read_file(file, limit=MAX_BYTES, error=DataError, follow=True), str(file))
    lines = text.splitlines(keepends=True)
    known = (*required, *optional)
    separator = max(SEPARATORS, key=lambda mark: _count_known(lines[0] if lines else "", mark, known))
    try:
        reader = csv.reader(lines, delimiter=separator, strict=True)
        header = [name.strip().casefold() for name in next(reader, [])]
        notes += _check_header(file, header, required, optional)
        rows = []
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if any(cell.strip() for cell in cells[len(header) :]):
                raise DataError(
                    f"{file}, line {reader.line_num}: {len(cells)} cells, but the header has {len(header)} columns; put a "
                    f"cell that contains {separator!r} in quotes"
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
    """Return the text of a file, and a note if the encoding is a guess. Raises DataError: it is not text."""
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
        line = data.count(b"\n", 0, error.start) + 1
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}, line {line}: neither UTF-8 nor UTF-16 nor cp1252 text") from error
    return text, [f"{where} is not UTF-8 (line {line}) and was read as Windows' cp1252: check it, or save it as UTF-8"]


def seconds(row: dict[str, str], name: str, where: str) -> float | None:
    """Read a time: seconds, ``h:mm:ss.s`` or ``m:ss``. Returns None for an empty cell. Raises DataError: another text."""
    rule = "seconds (a number of at least 0) or h:mm:ss.s"
    match = _match_cell(row, name, where, SECONDS, rule)
    if match is None:
        return None
    hours, minutes, rest = (float((part or "0").replace(",", ".")) for part in match.groups())
    if match.group(2) and rest >= 60:
        raise DataError(f"{where}: {name} ({match.group()!r}) must be {rule}")
    return hours * 3600 + minutes * 60 + rest


def whole_number(row: dict[str, str], name: str, where: str) -> int | None:
    """Read a frame number. Returns None for an empty cell. Raises DataError: another text."""
    match = _match_cell(row, name, where, WHOLE_NUMBER, "a frame number, from 0")
    return int(match.group(1)) if match else None


def number(row: dict[str, str], name: str, where: str) -> float | None:
    """Read a number, also a negative one. Returns None for an empty cell. Raises DataError: another text."""
    match = _match_cell(row, name, where, NUMBER, "a number")
    return float(match.group().replace(",", ".")) if match else None


def _match_cell(
    row: dict[str, str], name: str, where: str, pattern: re.Pattern[str], rule: str
) -> re.Match[str] | None:
    text = row.get(name, "")
    match = pattern.fullmatch(text)
    if text and match is None:
        raise DataError(f"{where}: {name} ({text!r}) must be {rule}")
    return match


def _count_known(line: str, separator: str, known: Sequence[str]) -> int:
    cells = next(csv.reader([line], delimiter=separator), [])
    return sum(cell.strip().casefold() in known for cell in cells)


def _check_header(file: Path, header: list[str], required: Sequence[str], optional: Sequence[str]) -> list[str]:
    """Return notes about unused columns. Raises DataError: a missing column, or the same column twice."""
    known = (*required, *optional)
    repeated = next((name for k, name in enumerate(header) if name in known and name in header[:k]), None)
    if repeated is not None:
        raise DataError(f"{file}, line 1: two columns have the name {repeated!r}")
    missing = next((name for name in required if name not in header), None)
    if missing is not None:
        near = difflib.get_close_matches(missing, header, 1, 0.6)
        hint = f" (is it {near[0]!r}?)" if near else ""
        raise DataError(
            f"{file}, line 1: column {missing!r} is missing{hint}. Required: {', '.join(required)}. "
            f"Optional: {', '.join(optional)}. Found: {', '.join(header) or 'nothing'}"
        )
    unused = {name: difflib.get_close_matches(name, optional, 1, 0.75) for name in header if name not in optional}
    return [f"{file}: column {name!r} is not used; did you mean {near[0]!r}?" for name, near in unused.items() if near]
