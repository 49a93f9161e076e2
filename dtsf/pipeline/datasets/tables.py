"""Read tables as users have them: usual separators and encodings, column names in any case. Errors name the line."""

from __future__ import annotations

import codecs
import csv
import difflib
import re
from typing import TYPE_CHECKING

from dtsf.errors import DataError
from dtsf.files.read import read_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    Rows = list[tuple[int, dict[str, str]]]

MAX_BYTES = 1 << 28
SEPARATORS = (",", ";", "\t")
# Pattern of a cell and its description. Each group is 60 times as much as the next one. Spreadsheets write 12 as 12.0.
SECONDS = (
    r"(?:(?:(\d+):)?(\d{1,2}):(?=0*[0-5]?\d?(?!\d)))?(\d+(?:[.,]\d*)?|[.,]\d+)",
    "seconds (a number of at least 0) or h:mm:ss.s",
)
FRAME = (r"(\d{1,9})(?:[.,]0*)?", "a frame number, from 0")
NUMBER = (r"([+-]?(?:\d+(?:[.,]\d*)?|[.,]\d+))", "a number")


def read_table(file: Path, required: Sequence[str], optional: Sequence[str]) -> tuple[Rows, list[str]]:
    """Read a table whose first line has the column names.

    Returns the rows, each with the number of its last line and its cells by column name in small letters, and notes for the
    user: a guessed encoding, unused columns. The table is separated by commas, semicolons or tabs; in UTF-8, UTF-16 or (with a
    note) Windows' cp1252. ``required``: columns that must exist and have no empty cell. Unknown columns are ignored.

    Raises DataError: names the line, and the nearest name of a missing column.
    """
    text, notes = decode_text(read_file(file, limit=MAX_BYTES, error=DataError, follow=True), str(file))
    lines = text.splitlines(keepends=True)
    known = (*required, *optional)

    def names(separator: str) -> list[str]:
        return [cell.strip().casefold() for cell in next(csv.reader(lines[:1], delimiter=separator), [])]

    separator = max(SEPARATORS, key=lambda mark: sum(name in known for name in names(mark)))
    rows: Rows = []
    try:
        reader = csv.reader(lines, delimiter=separator, strict=True)
        header = [name.strip().casefold() for name in next(reader, [])]
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
        for name in header:
            near = [] if name in optional else difflib.get_close_matches(name, optional, 1, 0.75)
            notes += [f"{file}: column {name!r} is not used; did you mean {one!r}?" for one in near]
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
    return rows, notes


def decode_text(data: bytes, where: str) -> tuple[str, list[str]]:
    """Return the text of a file, and a note if the encoding is a guess. Raises DataError: it is not text."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif data[1:2] == b"\0":
        encoding = "utf-16-le"
    else:
        encoding = "utf-16-be" if data[:1] == b"\0" and len(data) > 1 else "utf-8-sig"
    try:
        return data.decode(encoding), []
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}, line {line}: neither UTF-8 nor UTF-16 nor cp1252 text") from error
    return text, [f"{where} is not UTF-8 (line {line}) and was read as Windows' cp1252: check it, or save it as UTF-8"]


def read_number(row: dict[str, str], name: str, where: str, kind: tuple[str, str] = NUMBER) -> float | None:
    """Return the number in a cell, or None for an empty cell. ``kind``: :data:`NUMBER`, :data:`FRAME` or :data:`SECONDS`. Raises
    DataError: another text.
    """
    text = row.get(name, "")
    match = re.fullmatch(kind[0], text)
    if text and match is None:
        raise DataError(f"{where}: {name} ({text!r}) must be {kind[1]}")
    total = 0.0
    for part in match.groups(default="0") if match else ():
        total = 60 * total + float(part.replace(",", "."))
    return total if match else None
