"""Commands for recordings: untrimmed film of several cameras."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from dtsf.cli.screen import Lines, emit, progress, styled, table
from dtsf.errors import ConfigError
from dtsf.names import counted

if TYPE_CHECKING:
    from dtsf.recordings.settings import TimelineSettings
    from dtsf.recordings.sync import SyncedCamera, SyncedRecording
    from dtsf.recordings.timeline import Progress

TRUST_HELP = (
    "Least trust of an offset: the first peak of the agreement (without its strongest part) over the second. Films of "
    "different events reach 0.93."
)
DRIFT_SHOWN = 0.1
"""Seconds by which an offset is wrong at the ends, from which on a message says so."""


def sync_command(
    videos: Annotated[list[Path] | None, Argument(help="Videos of one recording, one per camera.")] = None,
    recordings: Annotated[Path | None, Option(help="Table of recordings: recording,view,path.")] = None,
    write: Annotated[bool, Option("--write", help="Write the column offset into the table.")] = False,
    min_trust: Annotated[float, Option(min=0, help=TRUST_HELP)] = 1.0,
) -> None:
    """Find when each camera began, by what the cameras hear, else by what moves. The first camera of a recording is the clock."""
    from dtsf.files.write import check_targets
    from dtsf.recordings.sync import SyncError, sync_recordings
    from dtsf.recordings.table import read_recordings, recording_of, write_offsets

    if (recordings is None) == (not videos):
        raise ConfigError("give VIDEO... of one recording, or --recordings FILE; see dtsf sync --help")
    if write and recordings is None:
        raise ConfigError("--write needs the table to write into: --recordings FILE")
    if videos and len(videos) == 1:
        raise ConfigError(f"{videos[0]}: one camera has nothing to compare with: give a video of each camera")
    given = read_recordings(recordings) if recordings is not None else (recording_of(videos or []),)
    if write and recordings is not None:
        check_targets({"--recordings": recordings})  # before the minutes that it takes
    paths = [path for one in given for camera in one.cameras for path in camera.paths]
    with progress("sync", "files") as update:
        begun: set[Path] = set()

        def report(path: Path, seconds: float) -> None:
            begun.add(path)
            update(len(begun) - 1, len(paths), f"{path.name} at {seconds:.0f} s")

        failed = None
        try:
            synced = sync_recordings(given, min_trust=min_trust, report=report)
        except SyncError as error:
            synced, failed = error.synced, error
    if write and recordings is not None:
        found = {(one.recording, camera.view): camera.offset for one in synced for camera in one.cameras}
        write_offsets(recordings, {key: offset for key, offset in found.items() if offset is not None})
    emit({"recordings": [_document(one) for one in synced]}, list(_describe(synced, recordings if write else None)))
    if failed is not None:
        raise failed


def _document(synced: SyncedRecording) -> dict[str, object]:
    def camera(one: SyncedCamera) -> dict[str, object]:
        facts = {name: getattr(one, name) for name in ("view", "offset", "trust", "by", "drift", "reason")}
        return {**facts, "path": str(one.paths[0]), "paths": list(map(str, one.paths))}

    return {"recording": synced.recording, "cameras": [camera(one) for one in synced.cameras]}


def _describe(synced: Sequence[SyncedRecording], written: Path | None) -> Lines:
    rows = [
        (
            one.recording,
            camera.view,
            "?" if camera.offset is None else f"{camera.offset:.2f} s",
            "" if camera.trust is None else f"{camera.trust:.2f}",
            camera.reason or camera.by or "",
        )
        for one in synced
        for camera in one.cameras
    ]
    yield table("", ("recording", "camera", "begins at", "trust", "by"), rows)
    for one in synced:
        for camera in one.cameras:
            if camera.drift is not None and camera.drift_error >= DRIFT_SHOWN:
                yield (
                    f"drift: the clock of camera {camera.view} of {one.recording} runs away by {camera.drift:.2f} s an hour. "
                    f"The offset is right in the middle and {camera.drift_error:.2f} s wrong at the ends"
                )
    if written is not None:
        yield f"wrote the column offset of {written}; next: dtsf import --recordings {written} --out manifest.csv"


def show_evaluation(run: Path, recordings: Path, out: Path, settings: TimelineSettings, *, allow_leak: bool) -> None:
    """Print the metrics of a run on recordings, for ``dtsf evaluate --recordings``."""
    from dtsf import api
    from dtsf.predict.score import evaluate_recordings

    with progress("timeline", "seconds") as update:

        def on_progress(p: Progress) -> None:
            update(int(p.done), int(p.total), p.recording)

        found = evaluate_recordings(
            api.load(run), recordings, out, settings=settings, allow_leak=allow_leak, on_progress=on_progress
        )
    names = {"F1@10": found.f1_10, "F1@25": found.f1_25, "F1@50": found.f1_50, "edit score": found.edit}
    names |= {"frame accuracy": found.frame_accuracy, "frame macro F1": found.frame_f1, "mAP": found.map["mean"]}
    people = f" of {', '.join(found.subjects)}" if found.subjects else ""
    where = counted(len(found.recordings), "recording") + people
    lines: Lines = [
        table("", ("metric", "value"), [(name, f"{value:.3f}") for name, value in names.items()]),
        f"{counted(found.n_bouts, 'bout')} for {counted(found.n_events, 'event')} in {where}",
        *(
            styled((f"not in these numbers: {counted(count, 'recording')} {why}", "yellow"))
            for why, count in found.left_out.items()
        ),
        *(styled((note, "yellow")) for note in found.notes),
    ]
    emit(found, lines, [f"look at it: {out / f'{found.recordings[0]}.html'}"])
