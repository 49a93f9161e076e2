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
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, cast

import typer

from dtsf.errors import DtsfError
from dtsf.files.read import json_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import IO

    from pydantic import BaseModel
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

CLASSES_SHOWN = 15
"""Number of classes in a table on a terminal. ``metrics.json`` and the report have all."""
_VERBOSITY: ContextVar[str] = ContextVar("dtsf_verbosity", default="normal")


class ClosedPipeError(Exception):
    """The reader of stdout closed the pipe, which is no error for the user. Typer ends the process at a BrokenPipeError."""


def set_verbosity(*, quiet: bool, verbose: bool) -> None:
    """Set the verbosity of this command. Without a flag it does not change. Raises typer.BadParameter: both flags."""
    if quiet and verbose:
        raise typer.BadParameter("--quiet and --verbose contradict each other")
    if quiet:
        _VERBOSITY.set("quiet")
    if verbose:

        class LogLines(logging.Formatter):
            def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's name
                return escape_control(super().formatMessage(record))

        _VERBOSITY.set("verbose")
        handler = logging.StreamHandler(_Lossy(_stderr()))
        handler.setFormatter(LogLines("%(relativeCreated)7.0f ms  %(name)s: %(message)s"))
        logger = logging.getLogger("dtsf")
        logger.handlers = [handler]
        logger.setLevel(logging.DEBUG)


def console() -> Console:
    """Return the console for messages during the work: stderr, silent with ``--quiet``."""
    return _console_on(_stderr(), quiet=_VERBOSITY.get() == "quiet")


def results() -> Console:
    """Return the console for results and errors: stderr, also with ``--quiet``."""
    return _console_on(_stderr(), quiet=False)


def emit(document: BaseModel | dict[str, Any], json_: bool, show: Callable[..., None], *arguments: Any) -> None:
    """Print a result: ``document`` as JSON, or ``show(*arguments)`` for a person."""
    if json_:
        print_stdout(json_text(document if isinstance(document, dict) else document.model_dump(mode="json")))
    else:
        show(*arguments)


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
    from rich.table import Table

    columns = list(columns)
    made = Table(title=styled((title, "bold")), title_justify="left", header_style="bold", show_edge=False)
    made.show_header = any(columns)
    for column in columns:
        made.add_column(styled(column), overflow="fold")
    for row in rows:
        made.add_row(*(styled(str(cell)) for cell in row))
    return made


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

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _stderr() -> IO[str]:
    # While Rich shows a bar, it replaces sys.stderr by a stream of its own.
    return cast("IO[str]", getattr(sys.stderr, "rich_proxied_file", sys.stderr))


@functools.lru_cache(maxsize=4)
def _console_on(stream: IO[str], quiet: bool) -> Console:
    # One object for all: Rich prints messages above a bar only if both use the same console.
    return make_console(cast("IO[str]", _Lossy(stream)), stderr=True, quiet=quiet)


def make_console(stream: IO[str], **options: Any) -> Console:
    """Return a console that prints control characters as escapes and markup as text. ``options``: those of Rich's Console."""
    from rich.console import Console
    from rich.segment import Segment

    class EscapingConsole(Console):
        def print(self, *objects: Any, **options: Any) -> None:
            shown = [escape_control(item) if isinstance(item, str) else item for item in objects]
            super().print(*shown, **({"markup": False, "highlight": False} | options))

        def render(self, renderable: Any, options: Any = None) -> Any:
            # Everything is rendered here, also bars and tables.
            for segment in super().render(renderable, options):
                if segment.control or segment.text.isprintable():
                    yield segment
                else:
                    lines = (escape_control(line) for line in segment.text.split("\n"))
                    yield Segment("\n".join(lines), segment.style)

    return EscapingConsole(file=stream, **options)


@contextmanager
def progress(title: str, unit: str, *, every: float = 30.0) -> Iterator[Callable[..., None]]:
    """Show progress during the block. Yields ``update(done, total, note="")``.

    On a terminal: a bar. Elsewhere: a line every ``every`` seconds, also without updates, so that a hang is visible; with
    ``--verbose`` a line for each update. Nothing with ``--quiet``.
    """
    screen = console()
    if screen.quiet:
        yield lambda *_: None
        return
    if screen.is_terminal:
        with progress_bar(title, unit, screen) as update_bar:
            yield update_bar
        return
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
        if first < 0 or done < last[0]:  # as for the bar: a new rate
            begin = time.monotonic() if last[0] else begin
            first = max(0, done - 1)
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
def progress_bar(title: str, unit: str, screen: Console) -> Iterator[Callable[..., None]]:
    """Show a bar on a terminal. Yields ``update`` as :func:`progress`."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.table import Column

    # The note gets the rest of the line and is cut, so that the bar stays complete.
    rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24 if screen.width >= 110 else 10),
        TextColumn("{task.fields[count]}", markup=False, style="cyan"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False, table_column=rest),
        console=screen,
        expand=True,
    ) as bar:
        job = bar.add_task(escape_control(title), total=None, count="", note="")
        task = bar.tasks[0]

        def update(done: int, total: int, note: str = "") -> None:
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
            # Only the bar of an interrupted command stays on the screen.
            bar.update(job, visible=interrupted)
