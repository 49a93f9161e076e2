"""``dtsf timeline``: recordings, or cameras that are filming."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from dtsf.cli.options import with_settings
from dtsf.cli.screen import Lines, console, emit, progress, styled, table
from dtsf.errors import ConfigError, VideoError
from dtsf.names import counted
from dtsf.recordings.settings import TimelineSettings

if TYPE_CHECKING:
    from dtsf.api import Run
    from dtsf.recordings.bouts import Bout, Timeline
    from dtsf.recordings.timeline import Progress

WAIT_HELP = "With --follow: seconds without data after which a video is at its end. Default: 10."
SHOWN = 40
"""Number of bouts that a table shows."""


@with_settings(TimelineSettings, windows=str, tier=list[str])
def timeline_command(
    run: Annotated[Path, Argument(help="Folder of a run.")],
    recordings: Annotated[Path | None, Option(help="Table of recordings: recording,view,path[,offset].")] = None,
    video: Annotated[
        list[str] | None, Option(help="Video of each camera, instead of a table (repeat the option).")
    ] = None,
    offset: Annotated[
        list[float] | None, Option(help="Seconds that each video began after time zero (repeat the option).")
    ] = None,
    views: Annotated[
        str | None, Option(help="View of each video, for example cam1,cam3. Default: by names, else in order.")
    ] = None,
    out: Annotated[Path, Option(help="Folder of the results.")] = Path("timeline"),
    follow: Annotated[
        bool, Option("--follow", help="Read videos while they are written: a file, -, or rtsp://...")
    ] = False,
    wait: Annotated[float | None, Option(min=0.1, max=86400, help=WAIT_HELP)] = None,
    *,
    settings: TimelineSettings,
) -> None:
    """Find the events in recordings: CSV, JSON, WebVTT, EAF and one HTML page for each. Run it again to continue."""
    from dtsf import api
    from dtsf.predict.recordings import find_timelines, recording_of

    if (recordings is None) == (not video):
        raise ConfigError("give --recordings FILE, or --video once for each camera")
    if follow and not video:
        raise ConfigError("--follow needs --video: a file that is being written, - or an address")
    if recordings is not None and (offset or views is not None):
        raise ConfigError("--offset and --views are for --video: a table has the columns offset and view")
    if wait is not None and not follow:
        raise ConfigError("--wait needs --follow")
    trained = api.load(run)
    if settings.as_needed is not None and (plan := trained.question(None, settings.as_needed).plan):
        console().print(str(plan), soft_wrap=True)
    if follow:
        _follow(trained, video or [], offset or [], views, out, settings, 10.0 if wait is None else wait)
        return
    given = recordings if recordings is not None else (recording_of(trained, video or [], offset or [], views),)
    found: list[Timeline] = []
    failed: VideoError | None = None
    with progress("timeline", "seconds") as update:

        def on_progress(p: Progress) -> None:
            update(int(p.done), int(p.total), p.recording)

        try:
            for timeline in find_timelines(trained, given, out, settings=settings, on_progress=on_progress):
                found.append(timeline)
                _say_notes(timeline)
        except VideoError as error:
            failed = error
            if not found:
                raise
    document = {"recordings": [_document(timeline, out) for timeline in found]}
    emit(document, _lines(found), [f"look at it: {out / f'{found[0].recording}.html'}"] if found else [])
    if failed is not None:
        raise failed


def _say_notes(timeline: Timeline) -> None:
    for note in timeline.notes:
        console().print(note, style="yellow", soft_wrap=True)


def _document(timeline: Timeline, out: Path) -> dict[str, Any]:
    known = timeline.model_dump(mode="json", exclude={"media", "curve"})
    return known | {
        "files": [str(out / f"{timeline.recording}.{ending}") for ending in ("csv", "json", "vtt", "eaf", "html")]
    }


def _lines(found: list[Timeline]) -> Lines:
    for timeline in found:
        rows = [
            (f"{bout.start:.2f}", f"{bout.stop:.2f}", bout.label, f"{bout.probability:.2f}", f"{bout.uncertainty:.2f}")
            for bout in timeline.bouts[:SHOWN]
        ]
        yield table(
            f"{timeline.recording}: {counted(len(timeline.bouts), 'bout')}",
            ("start", "stop", "class", "probability", "uncertainty"),
            rows,
        )
        if len(timeline.bouts) > SHOWN:
            yield f"... and {len(timeline.bouts) - SHOWN} more"
        if timeline.decoded:
            shares = zip(timeline.views, timeline.decoded, strict=True)
            yield f"decoded: {', '.join(f'{share:.0%} of {view}' for view, share in shares)}"
        if not timeline.bouts:
            yield "no bout: a lower --threshold finds less certain ones"


def _follow(
    run: Run,
    videos: list[str],
    offsets: list[float],
    views: str | None,
    out: Path,
    settings: TimelineSettings,
    wait: float,
) -> None:
    """Print bouts while cameras film. Ctrl-C or SIGTERM ends it: what is known is written."""
    from dtsf.predict.recordings import find_timelines, recording_of

    stopped: list[bool] = []
    behind = 0.0
    before = {
        number: signal.signal(number, lambda *_: stopped.append(True)) for number in (signal.SIGINT, signal.SIGTERM)
    }
    recording = recording_of(run, videos, offsets, views, live=True)

    def on_progress(p: Progress) -> None:
        nonlocal behind
        behind = max(0.0, p.behind or 0.0)  # an older part of a file comes faster than it was filmed

    def on_bout(name: str, bout: Bout) -> None:
        line = styled(f"{bout.start:9.2f} {bout.stop:9.2f}  ", (bout.label, "bold green"))
        numbers = f"  probability {bout.probability:.2f}  uncertainty {bout.uncertainty:.2f}  {behind:.1f} s behind"
        emit({"recording": name, **bout.model_dump(mode="json"), "behind": round(behind, 1)}, [line.append(numbers)])

    try:
        for timeline in find_timelines(
            run,
            (recording,),
            out,
            settings=settings,
            live=videos,
            idle=wait,
            on_progress=on_progress,
            on_bout=on_bout,
            stopped=lambda: bool(stopped),
        ):
            _say_notes(timeline)
            console().print(f"{counted(len(timeline.bouts), 'bout')} in {out / timeline.recording}.csv", soft_wrap=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
