"""The one place that writes to a terminal: words go to stderr, and how many, ``--quiet`` and ``--verbose`` say; JSON to stdout.

Names, labels and reasons come from files, so any of them may hold what a terminal obeys (ESC, BEL, marks that turn the
direction of writing, line ends): such characters are shown as escapes. What stderr refuses (full, closed) is lost, and
changes nothing of the work; what stdout refuses is an error, for a result was asked for.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import sys
import unicodedata
from contextvars import ContextVar
from enum import IntEnum
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO

    from rich.console import Console
    from rich.text import Text


class UnreadError(Exception):
    """Nobody reads our output any more, which is no fault. Not a BrokenPipeError: Typer ends the process at one."""


class Verbosity(IntEnum):
    """How much is printed on stderr."""

    QUIET = -1
    """Results and errors."""
    NORMAL = 0
    VERBOSE = 1
    """Also what the library notes as it goes."""


_CHOSEN: ContextVar[Verbosity] = ContextVar("dtsf_verbosity", default=Verbosity.NORMAL)


def verbosity() -> Verbosity:
    """What the person who started this command asked for."""
    return _CHOSEN.get()


def set_verbosity(*, quiet: bool, verbose: bool) -> None:
    """Remember what was asked for; a flag that is not given changes nothing. Raises typer.BadParameter: both at once."""
    if quiet and verbose:
        raise typer.BadParameter("--quiet and --verbose contradict each other")
    if quiet:
        _CHOSEN.set(Verbosity.QUIET)
    if verbose:
        import logging

        class PlainLines(logging.Formatter):
            def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's name
                return plain(super().formatMessage(record))

        _CHOSEN.set(Verbosity.VERBOSE)
        handler = logging.StreamHandler(_stderr())
        handler.setFormatter(PlainLines("%(relativeCreated)7.0f ms  %(name)s: %(message)s"))
        logger = logging.getLogger("dtsf")
        logger.handlers = [handler]
        logger.setLevel(logging.DEBUG)


def console() -> Console:
    """Words on the way, on stderr: silent with ``--quiet``."""
    return _screen(quiet=verbosity() is Verbosity.QUIET)


def results() -> Console:
    """What a command was run for, on stderr: ``--quiet`` does not silence it."""
    return _screen(quiet=False)


def say_on_stdout(line: str) -> None:
    """Write the line that a command was run for. Raises UnreadError: the reader of our output (``head``, ``less``) went away.
    DtsfError: it cannot be written.
    """
    from dtsf.errors import DtsfError

    if sys.stdout is None:
        raise DtsfError("stdout is closed: there is no place for the answer")
    try:
        try:
            sys.stdout.flush()
            descriptor = sys.stdout.fileno()
        except (AttributeError, ValueError):
            sys.stdout.write(line + "\n")
            return
        # Not by Python's buffer: what is refused would be refused once more at the end, by another exit code.
        rest = memoryview(f"{line}\n".encode("utf-8", "backslashreplace"))
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise UnreadError from error
        raise DtsfError(f"cannot write the answer to stdout: {error.strerror or error}") from error


def words(*parts: str | tuple[str, str]) -> Text:
    """Words of several styles, none of them markup: a string, or a string and its style."""
    from rich.text import Text

    return Text.assemble(*(plain(part) if isinstance(part, str) else (plain(part[0]), part[1]) for part in parts))


def plain(text: str) -> str:
    """The text with everything that a terminal would obey, or would not show, as an escape."""
    return text if text.isprintable() else text.translate(_ESCAPES)


class _Escapes(dict[int, str | int]):
    """What becomes of each character, looked up when it is met first."""

    def __missing__(self, code: int) -> str | int:
        character = chr(code)
        # Joiners are spelling, in emoji and in Persian; all others of their category only confuse.
        obeyed = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in "\u200c\u200d"
        self[code] = character.encode("unicode_escape").decode() if obeyed else code
        return self[code]


_ESCAPES = _Escapes()


class _Lossy:
    """A stream whose refusals (full disk, closed pipe) are nobody's business."""

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
    # While a bar is shown, Rich puts a stream of its own in the place of stderr.
    return _lossy(getattr(sys.stderr, "rich_proxied_file", sys.stderr))


@functools.lru_cache(maxsize=2)
def _lossy(stream: IO[str]) -> IO[str]:
    return cast("IO[str]", _Lossy(stream))


@functools.cache
def _screen_class() -> type[Console]:
    """Rich takes a while to import: only who says something pays for it."""
    from rich.console import Console
    from rich.segment import Segment
    from rich.text import Text

    class Screen(Console):
        """A console on which nothing is markup and nothing is obeyed."""

        def print(self, *objects: Any, **options: Any) -> None:
            shown = [self._plain(item) for item in objects]
            super().print(*shown, **({"markup": False, "highlight": False} | options))

        def _plain(self, item: Any) -> Any:
            if isinstance(item, str):
                return plain(item)
            if isinstance(item, Text) and not item.plain.isprintable():
                made = item.blank_copy()
                for part in item.render(self):
                    made.append(plain(part.text), part.style)
                return made
            return item

        def render(self, renderable: Any, options: Any = None) -> Any:
            # All that is shown comes by here, bars and tables too.
            for segment in super().render(renderable, options):
                if segment.control or segment.text.isprintable():
                    yield segment
                else:
                    lines = "\n".join(plain(line) for line in segment.text.split("\n"))
                    yield Segment(lines, segment.style)

    return Screen


def _screen(*, quiet: bool) -> Console:
    return _screen_on(_stderr(), quiet)


@functools.lru_cache(maxsize=4)
def _screen_on(stream: IO[str], quiet: bool) -> Console:
    """One object for all who print: what is printed while a bar is shown stands above the bar."""
    return _screen_class()(stderr=True, file=stream, quiet=quiet)


def with_verbosity(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options ``--quiet`` and ``--verbose``, so that they may stand behind it too."""

    @functools.wraps(command)
    def run(*words: Any, quiet: bool = False, verbose: bool = False, **options: Any) -> Any:
        set_verbosity(quiet=quiet, verbose=verbose)
        return command(*words, **options)

    flags = {
        "quiet": (("--quiet", "-q"), "Only results and errors."),
        "verbose": (("--verbose", "-v"), "Also say what is done and what was found."),
    }
    signature = inspect.signature(command, eval_str=True)
    extra = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=False,
            annotation=Annotated[bool, typer.Option(*words, help=text)],
        )
        for name, (words, text) in flags.items()
    ]
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *extra])  # type: ignore[attr-defined]
    run.__annotations__ = {
        parameter.name: parameter.annotation for parameter in [*signature.parameters.values(), *extra]
    }
    return run
