"""Where words for a person go, and how many of them: ``--quiet`` and ``--verbose`` of every command."""

from __future__ import annotations

import functools
import inspect
from contextvars import ContextVar
from enum import IntEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

__all__ = ["Verbosity", "console", "results", "set_verbosity", "verbosity", "with_verbosity"]


class Verbosity(IntEnum):
    """How much is said on stderr."""

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
    """Remember what was asked for; a flag that is not given changes nothing.

    Raises:
        typer.BadParameter: Both at once.

    """
    if quiet and verbose:
        raise typer.BadParameter("--quiet and --verbose contradict each other")
    if quiet:
        _CHOSEN.set(Verbosity.QUIET)
    if verbose:
        import logging
        import sys

        _CHOSEN.set(Verbosity.VERBOSE)
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(relativeCreated)7.0f ms  %(name)s: %(message)s"))
        logger = logging.getLogger("dtsf")
        logger.handlers = [handler]
        logger.setLevel(logging.DEBUG)


def console() -> Console:
    """Words on the way, on stderr: silent with ``--quiet``."""
    from rich.console import Console

    return Console(stderr=True, quiet=verbosity() is Verbosity.QUIET)


def results() -> Console:
    """What a command was run for, on stderr: ``--quiet`` does not silence it."""
    from rich.console import Console

    return Console(stderr=True)


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
