"""Show the progress of a command: a bar on a terminal, a line every 30 seconds elsewhere."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dtsf.cli.screen import Verbosity, console, escape_control, verbosity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console


@contextmanager
def progress(title: str, unit: str, *, every: float = 30.0) -> Iterator[Callable[..., None]]:
    """Show progress during the block. Yields ``update(done, total, note="")``.

    On a terminal: a bar with rate and remaining time, which only moves before the first update. Elsewhere: a line every
    ``every`` seconds, also without updates, so that a hang is visible. Nothing with ``--quiet``. With ``--verbose`` and
    without a terminal: a line for each update.
    """
    screen = console()
    if screen.quiet:
        yield lambda *_: None
    elif screen.is_terminal:
        with progress_bar(title, unit, screen) as update:
            yield update
    else:
        with _lines(title, unit, screen, every) as update:
            yield update


@contextmanager
def progress_bar(title: str, unit: str, screen: Console) -> Iterator[Callable[..., None]]:
    """Show a bar on a terminal. Yields ``update`` as :func:`progress`."""
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

    # The note gets the rest of the line and is cut, so that the bar stays complete.
    rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24 if screen.width >= 110 else 10),
        Count(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False, table_column=rest),
        console=screen,
        expand=True,
    ) as bar:
        job = bar.add_task(escape_control(title), total=None, note="")

        def update(done: int, total: int, note: str = "") -> None:
            if bar.tasks[0].total is None or done < bar.tasks[0].completed:
                # Work of an earlier run does not count for the rate. A new count (a fold of calibration) starts a new rate.
                bar.reset(job, total=total, completed=max(0, done - 1))
            bar.update(job, completed=done, total=total, note=escape_control(note))

        interrupted = False
        try:
            yield update
        except KeyboardInterrupt:
            interrupted = bar.tasks[0].total is not None
            raise
        finally:
            # Only the bar of an interrupted command stays on the screen.
            bar.update(job, visible=interrupted)


@contextmanager
def _lines(title: str, unit: str, screen: Console, every: float) -> Iterator[Callable[..., None]]:
    begin, first, last, over = time.monotonic(), -1, (0, 0, ""), threading.Event()
    # Read here: a thread of dask that calls update has another context.
    verbose = verbosity() is Verbosity.VERBOSE

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
        if first < 0 or done < last[0]:
            # As for the bar: a new rate.
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
