"""Write to the terminal: messages and results to stderr, JSON to stdout. No other module prints.

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
import unicodedata
from contextvars import ContextVar
from enum import IntEnum
from typing import TYPE_CHECKING, Any, cast

import typer

if TYPE_CHECKING:
    from typing import IO

    from rich.console import Console
    from rich.text import Text


class ClosedPipeError(Exception):
    """The reader of stdout closed the pipe (for example ``head``). Not an error for the user. Not a BrokenPipeError, because
    Typer ends the process at one.
    """


class Verbosity(IntEnum):
    """Amount of messages on stderr."""

    QUIET = -1
    """Results and errors."""
    NORMAL = 0
    VERBOSE = 1
    """Also the log of the library."""


_CHOSEN: ContextVar[Verbosity] = ContextVar("dtsf_verbosity", default=Verbosity.NORMAL)


def verbosity() -> Verbosity:
    """Return the verbosity of this command."""
    return _CHOSEN.get()


def set_verbosity(*, quiet: bool, verbose: bool) -> None:
    """Set the verbosity of this command. Without a flag it does not change. Raises typer.BadParameter: both flags."""
    if quiet and verbose:
        raise typer.BadParameter("--quiet and --verbose contradict each other")
    if quiet:
        _CHOSEN.set(Verbosity.QUIET)
    if verbose:
        _CHOSEN.set(Verbosity.VERBOSE)
        handler = logging.StreamHandler(_stderr())
        handler.setFormatter(_LogLines("%(relativeCreated)7.0f ms  %(name)s: %(message)s"))
        logger = logging.getLogger("dtsf")
        logger.handlers = [handler]
        logger.setLevel(logging.DEBUG)


class _LogLines(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's name
        return escape_control(super().formatMessage(record))


def console() -> Console:
    """Return the console for messages during the work: stderr, silent with ``--quiet``."""
    return _console_on(_stderr(), quiet=verbosity() is Verbosity.QUIET)


def results() -> Console:
    """Return the console for results and errors: stderr, also with ``--quiet``."""
    return _console_on(_stderr(), quiet=False)


def print_stdout(line: str) -> None:
    """Write the result of a command to stdout. Raises ClosedPipeError: the reader closed the pipe. DtsfError: stdout cannot be
    written.
    """
    from dtsf.errors import DtsfError

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
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise ClosedPipeError from error
        raise DtsfError(f"cannot write the result to stdout: {error.strerror or error}") from error


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
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _stderr() -> IO[str]:
    # While Rich shows a bar, it replaces sys.stderr by a stream of its own.
    return _lossy(getattr(sys.stderr, "rich_proxied_file", sys.stderr))


@functools.lru_cache(maxsize=2)
def _lossy(stream: IO[str]) -> IO[str]:
    return cast("IO[str]", _Lossy(stream))


@functools.lru_cache(maxsize=4)
def _console_on(stream: IO[str], quiet: bool) -> Console:
    # One object for all: Rich prints messages above a bar only if both use the same console.
    return make_console(stream, stderr=True, quiet=quiet)


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
