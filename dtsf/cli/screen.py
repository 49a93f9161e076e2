"""Write to the terminal: messages, tables, progress and results to stderr, JSON to stdout. No other module prints.

Names, labels and reasons come from files, so they may contain control characters (ESC, BEL, marks of the writing direction,
line ends). They are printed as escapes. If stderr is full or closed, messages are lost and the work continues. If stdout cannot
be written, the command fails, because its result is lost.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import IO, TYPE_CHECKING, Any, TypeAlias, cast

import typer

from dtsf.errors import DtsfError
from dtsf.files.read import json_text

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

Lines: TypeAlias = "Iterable[str | Text | Table]"
Update = Callable[..., None]

CLASSES_SHOWN = 15
"""Number of classes in a table on a terminal. ``metrics.json`` and the report have all."""
LONG_WORD = 16
"""Characters of a word. In a table, longer words break first."""
AS_JSON: ContextVar[bool] = ContextVar("dtsf_json", default=False)
"""True if the command has the option ``--json``."""
_VERBOSITY: ContextVar[str] = ContextVar("dtsf_verbosity", default="normal")


class ClosedPipeError(Exception):
    """The reader of stdout closed the pipe, which is no error for the user. Typer ends the process at a BrokenPipeError."""


class _LogHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        results().print(self.format(record), soft_wrap=True)


def set_verbosity(*, quiet: bool, verbose: bool) -> None:
    """Set the verbosity of this command. Without a flag it does not change. Raises typer.BadParameter: both flags."""
    if quiet and verbose:
        raise typer.BadParameter("--quiet and --verbose contradict each other")
    if quiet:
        _VERBOSITY.set("quiet")
    if verbose:
        _VERBOSITY.set("verbose")
        handler, logger = _LogHandler(), logging.getLogger("dtsf")
        handler.setFormatter(logging.Formatter("%(relativeCreated)7.0f ms  %(name)s: %(message)s"))
        logger.handlers = [handler]
        logger.setLevel(logging.DEBUG)


def console() -> Console:
    """Return the console for messages during the work: stderr, silent with ``--quiet``."""
    return results(quiet=_VERBOSITY.get() == "quiet")


def results(*, quiet: bool = False) -> Console:
    """Return the console for results and errors: stderr, also with ``--quiet``."""
    # While Rich shows a bar, it replaces sys.stderr by a stream of its own. Messages are printed above the bar only if both use
    # the same console.
    return make_console(getattr(sys.stderr, "rich_proxied_file", sys.stderr), stderr=True, quiet=quiet)


def emit(document: BaseModel | dict[str, Any], lines: Lines, hints: Lines = ()) -> None:
    """Print a result: ``document`` with ``--json``, else the lines for a person and, without ``--quiet``, the hints."""
    if AS_JSON.get():
        print_stdout(json_text(document if isinstance(document, dict) else document.model_dump(mode="json")))
        return
    for screen, parts in ((results(), lines), (console(), hints)):
        for part in parts:
            screen.print(part, soft_wrap=not hasattr(part, "columns"))


def print_stdout(line: str) -> None:
    """Write a result to stdout. Raises ClosedPipeError: the reader closed the pipe. DtsfError: stdout cannot be written."""
    if sys.stdout is None:
        raise DtsfError("stdout is closed: the result cannot be written")
    try:
        try:
            sys.stdout.flush()
            descriptor = sys.stdout.fileno()
        except (AttributeError, ValueError):
            sys.stdout.write(line + "\n")
            return
        # Not through Python's buffer: it would raise a second error at exit, with another exit code.
        rest = memoryview(f"{line}\n".encode("utf-8", "backslashreplace"))
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except BrokenPipeError as error:
        raise ClosedPipeError from error
    except OSError as error:
        raise DtsfError(f"cannot write the result to stdout: {error.strerror or error}") from error


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> Table:
    """Return a table. Cells are plain text, never markup. The title may be empty."""
    from rich.table import Column, Table

    heads = [Column(styled(column), overflow="fold") for column in columns]
    named = any(head.header for head in heads)
    options: dict[str, Any] = {"show_header": named, "header_style": "bold", "show_edge": False}
    made = Table(*heads, title=styled((title, "bold")), title_justify="left", **options)
    for row in rows:
        made.add_row(*(styled(str(cell)) for cell in row))
    cells = [[str(cell) for cell in (column.header, *column.cells)] for column in made.columns]
    for column, width in zip(made.columns, _column_widths(cells, results().width), strict=True):
        column.width = width
    return made


def _column_widths(columns: list[list[str]], terminal: int) -> list[int]:
    """Return the widths of columns. Lines that are too long for the terminal break, between words unless they are long."""
    from rich.cells import cell_len

    width = [max(map(cell_len, cells)) for cells in columns]
    word = [
        max((min(cell_len(word), LONG_WORD) for cell in cells for word in cell.split()), default=1) for cells in columns
    ]
    for _ in range(sum(width) - (terminal - 3 * len(columns) + 1)):  # without borders
        widest = max(range(len(width)), key=lambda k: (width[k] > word[k], width[k]))
        width[widest] = max(1, width[widest] - 1)
    return width


def styled(*parts: str | tuple[str, str]) -> Text:
    """Join texts, each a string or a string with its style. Markup in them is plain text."""
    from rich.text import Text

    pairs = ((part, "") if isinstance(part, str) else part for part in parts)
    return Text.assemble(*((escape_control(text), style) for text, style in pairs))


def escape_control(text: str) -> str:
    """Return the text with escapes for characters that a terminal acts on or does not show."""
    return text if text.isprintable() else "".join(map(_escape, text))


@functools.lru_cache(maxsize=4096)
def _escape(character: str) -> str:
    # Joiners are spelling, in emoji and in Persian. All others of their category only confuse.
    control = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in "\u200c\u200d"
    return character.encode("unicode_escape").decode() if control else character


class _Lossy:
    """Stream wrapper that ignores write errors (full disk, closed pipe)."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@functools.lru_cache(maxsize=4)
def make_console(stream: IO[str], **options: Any) -> Console:
    """Return a console that prints control characters as escapes and markup as text. ``options``: those of Rich's Console."""
    from rich.console import Console
    from rich.segment import Segment

    class EscapingConsole(Console):
        def print(self, *objects: Any, **options: Any) -> None:
            super().print(*(escape_control(item) if isinstance(item, str) else item for item in objects), **options)

        def render(self, renderable: Any, options: Any = None) -> Any:
            # Everything is rendered here, also bars and tables.
            for text, style, control in super().render(renderable, options):
                shown = text if control else "\n".join(map(escape_control, text.split("\n")))
                yield Segment(shown, style, control)

    lossy = cast("IO[str]", _Lossy(stream))
    return EscapingConsole(file=lossy, markup=False, emoji=False, highlight=False, **options)


def progress(title: str, unit: str, *, every: float = 30.0) -> AbstractContextManager[Update]:
    """Show progress during the block. Yields ``update(done, total, note="")``. With a total of 0, the note says what begins.

    On a terminal: a bar. Elsewhere: a line for what begins, and one every ``every`` seconds, also without updates, so that a hang
    is visible; with ``--verbose`` a line for each update. Nothing with ``--quiet``.
    """
    screen = console()
    if screen.quiet:
        return contextlib.nullcontext(lambda *_: None)
    return progress_bar(title, unit, screen) if screen.is_terminal else _progress_lines(title, unit, screen, every)


@contextmanager
def _progress_lines(title: str, unit: str, screen: Console, every: float) -> Iterator[Update]:
    begin, first, last, over = time.monotonic(), -1, (0, 0, ""), threading.Event()
    # Read here: a thread of dask that calls update has another context.
    verbose = _VERBOSITY.get() == "verbose"

    def print_line() -> None:
        seconds, (done, total, note) = time.monotonic() - begin, last
        rate = (done - first) / max(seconds, 1e-9)
        left = f", about {(total - done) / rate:.0f} s left" if rate > 0 else ""
        line = f"{title}: {done} of {total} {unit} in {seconds:.0f} s{left}{f'  {note}' if note else ''}"
        screen.print(f"{title}: running for {seconds:.0f} s" if first < 0 else line, soft_wrap=True)

    def print_regularly() -> None:
        while not over.wait(every):
            print_line()

    def update(done: int, total: int, note: str = "") -> None:
        nonlocal begin, first, last
        if not total and note:
            screen.print(f"{title}: {note}", soft_wrap=True)
            return
        if first < 0 or done < last[0]:  # as for the bar: a new rate
            begin, first = time.monotonic() if last[0] else begin, max(0, done - 1)
        last = done, total, note
        if verbose:
            print_line()

    thread = threading.Thread(target=print_regularly, daemon=True)
    thread.start()
    try:
        yield update
    finally:
        over.set()
        thread.join()


@contextmanager
def progress_bar(title: str, unit: str, screen: Console) -> Iterator[Update]:
    """Show a bar on a terminal. Yields ``update`` as :func:`progress`. Only the bar of an interrupted command stays."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.table import Column

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24 if screen.width >= 110 else 10),
        TextColumn("{task.fields[count]}", markup=False, style="cyan"),
        TimeElapsedColumn(),
        # The note gets the rest of the line and is cut, so that the bar stays complete.
        TextColumn(
            "{task.fields[note]}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
        ),
    )
    with Progress(*columns, console=screen, expand=True) as bar:
        job = bar.add_task(escape_control(title), total=None, count="", note="")
        task = bar.tasks[0]

        def update(done: int, total: int, note: str = "") -> None:
            if not total and note:
                bar.update(job, note=escape_control(note))
                return
            if task.total is None or done < task.completed:
                # Work of an earlier run does not count for the rate. A new count (a fold of calibration) starts a new rate.
                bar.reset(job, total=total, completed=max(0, done - 1))
            bar.update(job, completed=done, total=total, note=escape_control(note))
            rate = f"{task.speed:.1f}" if task.speed else "-"
            left = f"  {task.time_remaining:.0f} s left" if task.time_remaining else ""
            bar.update(job, count=f"{done}/{total}  {rate} {unit}/s{left}")

        interrupted = False
        try:
            yield update
        except KeyboardInterrupt:
            interrupted = task.total is not None
            raise
        finally:
            bar.update(job, visible=interrupted)
