"""The timeline of one recording: windows, then bouts, each stored at once. An interrupted one goes on where it was."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dtsf.cache.compare import examples
from dtsf.cache.schema import CacheSpec
from dtsf.errors import DataError
from dtsf.files.write import write_atomically
from dtsf.pipeline.source import file_stat
from dtsf.pipeline.video import stretches
from dtsf.recordings import cameras, movements, needed, windows
from dtsf.recordings.bouts import Bout, BoutFinder, BoutOptions, Curve, Media, Timeline
from dtsf.recordings.cameras import Source
from dtsf.recordings.events import Event
from dtsf.recordings.needed import AsNeeded, Classify
from dtsf.recordings.outputs import WRITERS
from dtsf.recordings.page import render_page
from dtsf.recordings.windows import KNOWN, Grid, Resume, WindowBlock, read_windows
from dtsf.recordings.work import WORK, WorkFile

if TYPE_CHECKING:
    from dtsf.pipeline.encoders.choose import Encoder

BINS = 8192  # of the curves


@dataclass(frozen=True)
class Model:
    """Network and encoder for windows. ``identity``: all that the answers depend on. ``names``: of the classes."""

    spec: CacheSpec
    encoder: Encoder
    classify: Classify
    names: tuple[str, ...]
    identity: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """One recording that is ready to be read."""

    name: str
    subject: str | None
    sources: tuple[Source, ...]
    media: tuple[Media, ...]
    grid: Grid
    options: BoutOptions
    needed: AsNeeded | None = None
    """When a camera is opened; None: all cameras are read."""
    idle: float = 10.0
    """Seconds without data after which a camera that is still filming is at its end."""
    notes: tuple[str, ...] = ()


class Progress(NamedTuple):
    """Seconds of a recording that are done, of how many (0: not known), and the seconds that the answer is behind the camera."""

    recording: str
    done: float
    total: float
    behind: float | None = None


def find_timeline(
    plan: Plan,
    model: Model,
    out: Path,
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_bout: Callable[[Bout], None] = lambda _: None,
    stopped: Callable[[], bool] = lambda: False,
) -> tuple[Timeline, WorkFile]:
    """Read a recording and return its timeline. What is done is in a work file below ``out``: the same call goes on behind it.

    ``on_bout``: called with each bout that later windows cannot change. ``stopped``: True ends cameras that are still filming.
    Raises VideoError: a camera cannot be decoded. Raises DataError: the work file cannot be written.
    """
    grid = plan.grid
    finder = BoutFinder(model.names, [source.view for source in plan.sources], grid, plan.options)
    summary = _Summary(model.names, plan)
    bouts: list[Bout] = []
    live = any(source.live for source in plan.sources)
    work = WorkFile(out / WORK / f"{plan.name}.jsonl", _identity(plan, model), fresh=live)

    def take(found: Sequence[Bout]) -> None:
        bouts.extend(found)
        for bout in found:
            on_bout(bout)

    began = time.monotonic()
    # An error of a caller ends the processes of the cameras at once, also while its traceback is kept.
    with work, contextlib.closing(_blocks(plan, model, work, stopped)) as blocks:
        for block in blocks:
            take(finder.add(block))
            summary.add(block)
            seconds = (block.end - grid.first) / grid.rate
            total = 0.0 if live else (grid.last - grid.first + 1) / grid.rate
            on_progress(
                Progress(
                    plan.name, min(seconds, total) if total else seconds, total, time.monotonic() - began - seconds
                )
            )
        take(finder.finish())
    return summary.timeline(bouts), work


def _blocks(plan: Plan, model: Model, work: WorkFile, stopped: Callable[[], bool]) -> Generator[WindowBlock]:
    """Yield the stored blocks, then new ones, which it stores."""
    resume = None
    for block in work.stored():
        yield block
        moved = (resume.moved_VT,) if resume is not None and resume.moved_VT is not None else ()
        moved_VT = np.concatenate((*moved, block.moved_VT), 1)[:, -round(KNOWN * plan.grid.rate) :]
        resume = Resume(block.number + 1, block.end, block.restart, moved_VT)
    if not work.finished:
        new = read_windows(
            plan.sources,
            plan.grid,
            model.spec,
            model.encoder,
            model.classify,
            needed=plan.needed,
            resume=resume,
            idle=plan.idle,
            stopped=stopped,
        )
        with contextlib.closing(new) as blocks:
            for block in blocks:
                yield work.add(block)
        work.finish()


def _identity(plan: Plan, model: Model) -> dict[str, Any]:
    """Return all that the windows of a recording depend on: also the constants of the modules that make them."""
    filmed = []
    for source in plan.sources:
        files = [(path, start, stop, *vars(file_stat(Path(path))).values()) for path, start, stop in source.chapters]
        filmed.append((source.number, source.offset, source.live, source.region, source.ignore, files))
    constants = {
        f"{module.__name__}.{name}": value
        for module in (cameras, movements, needed, stretches, windows)
        for name, value in vars(module).items()
        if name.isupper()
    }
    rules = {"grid": dataclasses.astuple(plan.grid), "needed": plan.needed and dataclasses.astuple(plan.needed)}
    return model.identity | rules | {"cameras": filmed, "constants": constants}


class _Summary:
    """Curves of a recording: of each bin of time, the mean over the windows that cover it; 0 in a rest, which has no window.

    Bins widen in long recordings.
    """

    def __init__(self, names: Sequence[str], plan: Plan) -> None:
        self._plan, self._names = plan, names
        self._events = [k for k, name in enumerate(names) if name not in plan.options.no_event]
        self._width = plan.grid.hop  # of a bin, in moments
        self._sums = np.zeros((BINS, len(names) + 1))  # of the probabilities and the uncertainty
        self._counts = np.zeros(BINS)
        self._stop = plan.grid.first
        self._read = np.zeros(len(plan.sources), int)
        self._damaged: set[tuple[int, int]] = set()

    def add(self, block: WindowBlock) -> None:
        """Take the windows of a block."""
        first = self._plan.grid.first
        for (start, stop), p_K, u in zip(
            block.spans_N2.tolist(), block.probabilities_NK, block.uncertainty_N, strict=True
        ):
            while (stop - first) // self._width >= BINS:
                self._sums = np.pad(self._sums.reshape(BINS // 2, 2, -1).sum(1), ((0, BINS // 2), (0, 0)))
                self._counts = np.pad(self._counts.reshape(BINS // 2, 2).sum(1), (0, BINS // 2))
                self._width *= 2
            bins = slice(max(0, start - first) // self._width, (stop - first) // self._width + 1)
            self._sums[bins] += (*p_K, u)
            self._counts[bins] += 1
        self._stop = max(self._stop, block.end)
        self._read += block.read
        self._damaged.update(block.damaged)

    def timeline(self, bouts: Sequence[Bout]) -> Timeline:
        """Return the timeline with these bouts."""
        plan, grid = self._plan, self._plan.grid
        used = np.arange(min(BINS, math.ceil((self._stop - grid.first) / self._width)))
        mean = self._sums[used] / np.maximum(self._counts[used, None], 1)
        best = mean[:, self._events].argmax(1) if self._events else np.zeros(len(used), int)
        curve = Curve(
            times=tuple(((grid.first + (used + 0.5) * self._width) / grid.rate).round(3).tolist()),
            labels=tuple(self._names[self._events[k]] for k in best.tolist()) if self._events else (),
            probability=tuple(mean[:, self._events].max(1).round(4).tolist()) if self._events else (),
            uncertainty=tuple(mean[:, -1].round(4).tolist()),
        )
        return Timeline(
            recording=plan.name,
            subject=plan.subject,
            views=tuple(source.view for source in plan.sources),
            start=grid.first / grid.rate,
            stop=self._stop / grid.rate,
            bouts=tuple(bouts),
            classes=tuple(self._names[k] for k in self._events),
            windows=tuple(length / grid.rate for length in grid.lengths),
            media=plan.media,
            curve=curve,
            notes=(*plan.notes, *self._damage()),
            decoded=plan.needed.shares(self._read.tolist()) if plan.needed else (),
        )

    def _damage(self) -> Iterator[str]:
        """Yield what is said of each camera with damaged frames: their seconds. What is less than a second apart is one stretch."""
        rate = self._plan.grid.rate
        for k, source in enumerate(self._plan.sources):
            moments = np.array(sorted(moment for camera, moment in self._damaged if camera == k))
            parts = np.split(moments, np.flatnonzero(np.diff(moments) > rate) + 1) if len(moments) else []
            if parts:
                spans = examples([f"{part[0] / rate:.1f} to {(part[-1] + 1) / rate:.1f} s" for part in parts])
                film = f"camera {source.view} of {self._plan.name!r}: the film is damaged"
                yield f"{film} from {spans}: copy it again, or check what is found there"


def write_files(
    timeline: Timeline, work: WorkFile, plan: Plan, marks: Sequence[Event], out: Path, run: str
) -> tuple[Path, ...]:
    """Write the files of a timeline into a folder: CSV, JSON, WebVTT, EAF and HTML. Return their paths."""
    rate = plan.grid.rate
    every = max(1, round(rate / 2))

    def pictures(seconds: set[float]) -> dict[float, bytes]:
        near = {time: every * round(time * rate / every) for time in seconds}
        # As needed, the first camera that films may be another one at another time.
        leads = [0] if plan.needed is None else sorted({k for k, _, _ in plan.needed.leads()})
        found = work.pictures({(k, moment) for k in leads for moment in near.values()})
        shown = {moment: picture for (_, moment), picture in found.items()}
        return {time: shown[moment] for time, moment in near.items() if moment in shown}

    page = out / f"{timeline.recording}.html"
    texts = {out / f"{timeline.recording}.{ending}": write for ending, write in WRITERS.items()}
    for file, write in texts.items():
        _write(file, write(timeline))
    _write(page, render_page(timeline, marks, pictures, page, run))
    return *texts, page


def _write(file: Path, text: str) -> None:
    data = text.encode("utf-8", "surrogateescape")
    write_atomically(file, data, error=lambda why: DataError(f"cannot write {file}: {why}; choose another --out"))
