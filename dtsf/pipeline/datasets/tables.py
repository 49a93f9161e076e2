"""Tables of text with a header, as spreadsheets and annotation tools write them: separated by commas, semicolons or tabs."""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dtsf.errors import DataError
from dtsf.files.read import read_file
from dtsf.names import counted, has_unseen, tidy

MAX_BYTES = 1 << 28
SEPARATORS = (",", ";", "\t")
# Columns of names: two cells that look the same are one name.
NAMES = ("label", "group", "view", "subject", "split", "background", "recording")
# Line that Excel writes, or people write for Excel, above the header.
EXCEL_MARK = re.compile(r"""\s*"?sep=.?"?\s*""", re.IGNORECASE)
# First bytes of files that are no text, and the kind of file.
BINARY = {
    b"PK\x03\x04": "an Excel or OpenDocument file, or another zip (unpack it)",
    b"\xd0\xcf\x11\xe0": "an Excel file of the old form",
    b"SQLite format 3": "an SQLite database",
    b"%PDF": "a PDF",
}


class Table(NamedTuple):
    """Rows of a table. ``rows``: number of the last line of each row, and its cells by column. ``unused``: the other columns.
    ``separator``: of the cells.
    """

    rows: list[tuple[int, dict[str, str]]]
    notes: list[str]
    unused: list[str]
    separator: str


def decode_text(data: bytes, where: str) -> tuple[str, list[str]]:
    """Return the text of a file: UTF-8, UTF-16 or (with a note) Windows' cp1252. Raises DataError: it is not text."""
    kind = next((kind for head, kind in BINARY.items() if data.startswith(head)), None)
    if kind is not None:
        raise DataError(f"{where} is {kind}, not text: save the table as CSV (UTF-8) and give that file")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif b"\0" in data[:2] and len(data) > 1:
        encoding = "utf-16-le" if data[1:2] == b"\0" else "utf-16-be"
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


def read_table(file: Path, required: Sequence[str], optional: Sequence[str]) -> Table:
    """Read a table from a file, see :func:`parse_table`."""
    text, notes = decode_text(read_file(file, limit=MAX_BYTES, error=DataError, follow=True), str(file))
    table = parse_table(text, str(file), required, optional)
    return table._replace(notes=[*notes, *table.notes])


def parse_table(
    text: str,
    where: str,
    required: Sequence[str],
    optional: Sequence[str],
    *,
    names: Mapping[str, str] | None = None,
    preamble: int = 0,
) -> Table:
    """Return the rows of a table. ``names``: column by name in the header, in small letters; default: each by its own name.
    ``preamble``: maximum number of rows before the header. Raises DataError, with the line: a column is missing or twice there, or
    a cell is empty or too much.
    """
    wanted = (*required, *optional)
    known = {name: name for name in wanted} if names is None else names

    def columns(cells: Sequence[str]) -> list[str]:
        heads = (tidy(cell).casefold() for cell in cells)
        # A column of the user that is called like one of ours, but means something else here, is not ours.
        return [known.get(name, f"own {name}" if name in wanted else name) for name in heads]

    lines = list(io.StringIO(text, newline=""))
    n_empty = sum(1 for _ in itertools.takewhile(lambda line: not line.strip() or EXCEL_MARK.fullmatch(line), lines))
    preamble = max(preamble, n_empty)
    first = lines[: preamble + 1]

    def count_known(separator: str) -> int:
        rows = csv.reader(first, delimiter=separator)
        return max((sum(name in wanted for name in columns(cells)) for cells in rows), default=0)

    found: list[tuple[int, dict[str, str]]] = []
    unseen: list[str] = []
    try:
        separator = max(SEPARATORS, key=count_known)
        reader = csv.reader(lines, delimiter=separator, strict=True)
        rows = [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise DataError(f"{where} cannot be read as a table: {error}") from error
    heads = enumerate(rows[: preamble + 1])
    at = next((k for k, (_, cells) in heads if set(required) <= set(columns(cells))), n_empty)
    line, raw = rows[at] if at < len(rows) else (1, [])
    header = columns(raw)
    for k, name in enumerate(header):
        if name in wanted and name in header[:k]:
            twice = sorted({raw[header.index(name)].strip(), raw[k].strip()})
            raise DataError(
                f"{where}, line {line}: two columns have the name {name!r}"
                if len(twice) == 1
                else f"{where}, line {line}: the columns {' and '.join(map(repr, twice))} both mean {name}: remove one"
            )
    missing = next((name for name in required if name not in header), None)
    if missing is not None:
        near = difflib.get_close_matches(missing, header, 1, 0.6)
        hint = f" (is it {near[0]!r}?)" if near else ""
        raise DataError(
            f"{where}, line {line}: column {missing!r} is missing{hint}. Required: {', '.join(required)}. "
            f"Optional: {', '.join(optional)}. Found: {', '.join(header) or 'nothing'}"
        )
    for line, cells in rows[at + 1 :]:
        place = f"{where}, line {line}"
        if not any(cell.strip() for cell in cells):
            continue
        if any(cell.strip() for cell in cells[len(header) :]):
            raise DataError(
                f"{place}: {len(cells)} cells, but the header has {len(header)} columns; put a cell that contains "
                f"{separator!r} in quotes"
            )
        row = {name: cell.strip() for name, cell in zip(header, cells, strict=False) if name in wanted}
        unseen += [f"{name} on line {line}" for name in NAMES if has_unseen(row.get(name, ""))]
        row |= {name: tidy(row[name]) for name in NAMES if name in row}
        empty = next((name for name in required if not row.get(name)), None)
        if empty is not None:
            raise DataError(f"{place}: {empty} is empty")
        found.append((line, row))
    # pandas writes its index as a column without a name.
    unused = [name.removeprefix("own ") or "(without a name)" for name in header if name not in wanted]
    notes = [
        f"{where}: column {name!r} is not used; did you mean {one!r}?"
        for name in unused
        for one in difflib.get_close_matches(name, optional, 1, 0.75)
    ]
    if unseen:
        notes.append(
            f"{where}: {counted(len(unseen), 'name has', 'names have')} invisible characters, which are left out; the first is "
            f"{unseen[0]}"
        )
    return Table(found, notes, unused, separator)
