"""The command line: parses, calls :mod:`dtsf.api`, prints. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit with the code that the outcome deserves."""
    from contextlib import nullcontext

    from dtsf.pipeline.crew import crew_for

    # The processes of stage 1 import for as long as this one does, half a second: they begin first, at the same time.
    early = crew_for(None, None) if _will_want_a_crew(sys.argv[1:]) else nullcontext()
    with early as crew:
        from dtsf.cli.app import main as run

        run(crew)


def _will_want_a_crew(words: Sequence[str]) -> bool:
    """A guess from the words as they are. Where it is wrong a process is started and ended, or started later: no harm."""
    given = {*words, *map("=".join, zip(words, words[1:], strict=False))}
    return words[:1] == ["preprocess"] and not {"--help", "--scheduler", "--workers=1"} & given
