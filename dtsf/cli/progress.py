"""Progress of everything that takes longer than a glance: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dtsf.cli.screen import Verbosity, console, plain, verbosity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console


@contextmanager
def progress(title: str, unit: str, *, quiet: bool = False, every: float = 30.0) -> Iterator[Callable[..., None]]:
    """Show how far something is. Yields ``update(done, total, note="")``.

    On a terminal a bar with rate and time left; before the first update it only moves. Elsewhere a line every ``every``
    seconds, whether or not an update came: what hangs is seen too. With ``--quiet`` nothing; with ``--verbose`` a line
    an update, where there is no bar.

    ``unit``: what is counted.
    """
    screen = console()
    if quiet or screen.quiet:
        yield lambda *_: None
    elif screen.is_terminal:
        with _bar(title, unit, screen) as update:
            yield update
    else:
        with _lines(title, unit, screen, every) as update:
            yield update


@contextmanager
def _bar(title: str, unit: str, screen: Console) -> Iterator[Callable[..., None]]:
    from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
    from rich.table import Column
    from rich.text import Text

    class Count(ProgressColumn):
        def render(self, task: Task) -> Text:
            if task.total is None:
                return Text("")
            rate = f"{task.speed:.1f}" if task.speed else "-"
            left = f"  {task.time_remaining:.0f} s left" if task.time_remaining else ""
            return Text(f"{task.completed:.0f}/{task.total:.0f}  {rate} {unit}/s{left}", style="cyan")

    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24 if screen.width >= 110 else 10),
        Count(),
        TimeElapsedColumn(),
        # What is left of the line is the note's: it is cut, and the bar stays.
        TextColumn(
            "{task.fields[note]}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
        ),
        console=screen,
        expand=True,
    ) as bar:
        job = bar.add_task(plain(title), total=None, note="")

        def update(done: int, total: int, note: str = "") -> None:
            if bar.tasks[0].total is None or done < bar.tasks[0].completed:
                # Work of an earlier run counts as done, not as speed; what counts anew (calibration's parts) is timed anew.
                bar.reset(job, total=total, completed=max(0, done - 1))
            bar.update(job, completed=done, total=total, note=plain(note))

        kept = False
        try:
            yield update
        except KeyboardInterrupt:
            kept = bar.tasks[0].total is not None
            raise
        finally:
            # How far an interrupted command came stays to be read; one that ended has words of its own.
            bar.update(job, visible=kept)


@dataclass
class _State:
    """The last update."""

    begun: float = field(default_factory=time.monotonic)
    first: int | None = None
    done: int = 0
    total: int = 0
    note: str = ""


@contextmanager
def _lines(title: str, unit: str, screen: Console, every: float) -> Iterator[Callable[..., None]]:
    state, over = _State(), threading.Event()
    # Asked here: updates may come from a thread of dask's, which does not inherit what was chosen.
    verbose = verbosity() is Verbosity.VERBOSE

    def say() -> None:
        screen.print(_line(title, unit, state, time.monotonic() - state.begun), soft_wrap=True)

    def keep_saying() -> None:
        while not over.wait(every):
            say()

    def update(done: int, total: int, note: str = "") -> None:
        if state.first is None or done < state.done:
            # As for the bar.
            state.first = max(0, done - 1)
            state.begun = state.begun if state.done == 0 else time.monotonic()
        state.done, state.total, state.note = done, total, note
        if verbose:
            say()

    speaker = threading.Thread(target=keep_saying, daemon=True)
    speaker.start()
    try:
        yield update
    finally:
        over.set()
        speaker.join()


def _line(title: str, unit: str, state: _State, seconds: float) -> str:
    if state.first is None:
        return f"{title}: {seconds:.0f} s, still at work"
    rate = (state.done - state.first) / max(seconds, 1e-9)
    left = f", about {(state.total - state.done) / rate:.0f} s left" if rate > 0 else ""
    note = f"  {state.note}" if state.note else ""
    return f"{title}: {state.done} of {state.total} {unit} in {seconds:.0f} s{left}{note}"
