"""Commands that make data: ``dtsf preprocess``, ``dtsf synth`` and ``dtsf import``."""

from __future__ import annotations

import shlex
from collections.abc import Set
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

from typer import Argument, Option, Typer

from dtsf.cli.options import with_settings
from dtsf.cli.screen import Lines, console, emit, progress, styled, table
from dtsf.errors import BadClipsError, DataError
from dtsf.names import counted
from dtsf.pipeline.settings import PreprocessSettings
from dtsf.recordings.settings import ClipSettings

if TYPE_CHECKING:
    from dtsf.pipeline.datasets.catalog import SourceCatalog
    from dtsf.pipeline.preprocess import PreprocessResult, Progress
    from dtsf.recordings.clips import ImportedEvents

ROOT_HELP = (
    "Folder of the dataset or above it; for manifest, the CSV. Default: $DTSF_DATA/DATASET, then ./data/DATASET."
)
BIAS_HELP = (
    "Fraction of training groups whose background depends on the action. Adds test sets ..._aligned, ..._conflict."
)
LISTS_HELP = (
    "Lists of clips: a table with a header, 'path label' lines, an mmaction2/pyskl pickle or a DVANet CSV. With --recordings: "
    "files of marks (BORIS, ELAN, CVAT, Label Studio, WebVTT, SRT, a table); default: the column events."
)
BAD_SHOWN = 40
"""Number of unusable clips that a table shows."""
synth_app = Typer(help="Make small datasets as video files.", no_args_is_help=True)


@with_settings(PreprocessSettings, max_bad=str, region=str, ignore=str)
def preprocess_command(
    dataset: Annotated[str, Argument(help="nucla, ntu, casia, or manifest (a CSV of your own videos).")],
    root: Annotated[Path | None, Option(help=ROOT_HELP)] = None,
    cache: Annotated[Path, Option(help="Folder of the cache, or its URL (s3://BUCKET/FOLDER).")] = Path("cache"),
    *,
    settings: PreprocessSettings,
) -> None:
    """Stage 1: decode videos and cache their frame embeddings. Run it again to continue: finished work is not repeated."""
    from dtsf import api

    def announce(catalog: SourceCatalog) -> None:
        read.append(catalog)
        by_views = ", ".join(f"{n} with {counted(views, 'view')}" for views, n in catalog.groups_by_views.items())
        console().print(
            f"{catalog.kind}: {counted(len(catalog.clips), 'clip')} in {counted(len(catalog.groups), 'group')} ({by_views})"
        )
        for note in catalog.notes:
            console().print(f"note: {note}", style="yellow")
            announced.add(note)

    announced: set[str] = set()
    read: list[SourceCatalog] = []
    try:
        with progress("preprocess", "clips") as update:

            def on_progress(p: Progress) -> None:
                update(p.done, p.total, f"{p.bad} bad" if p.bad else "")

            result = api.preprocess(
                dataset, root, cache, settings=settings, on_catalog=announce, on_progress=on_progress
            )
    except BadClipsError as error:
        result = cast("PreprocessResult", error.result)
        emit(result, (), _describe(result, read[0], cache, announced))
        raise
    emit(result, (), _describe(result, read[0], cache, announced))


def _describe(result: PreprocessResult, catalog: SourceCatalog, cache: Path, announced: Set[str]) -> Lines:
    from dtsf.cache.store import open_store
    from dtsf.training.protocols import suggested_protocol

    changes = result.changes
    if result.bad:
        rows = [(one.clip.place, one.status, one.reason) for one in result.bad[:BAD_SHOWN]]
        yield table(
            f"{counted(len(result.bad), 'clip was', 'clips were')} not used", ("clip", "status", "reason"), rows
        )
        if len(result.bad) > BAD_SHOWN:
            yield f"... and {len(result.bad) - BAD_SHOWN} more; dtsf cache info {result.cache} lists all"
    if {"timeout", "crashed"} & result.verdicts.keys():
        yield (
            "a timeout or a crash may have its cause in the machine (busy, out of memory, a slow file server): "
            "--retry-bad tries those clips again, --deadline gives them more time"
        )
    yield from (styled((f"note: {note}", "yellow")) for note in result.notes if note not in announced)
    counts = changes.model_dump(exclude={"to_decode"})
    if counts.get("new") != result.clips:  # not a first run
        listed = ", ".join(f"{n} {word}" for word, n in counts.items() if n) or "no clip"
        yield f"changes since the last run: {listed}"
    if result.dry_run:
        yield f"to decode: {changes.to_decode} of {result.clips} clips; nothing was done (--dry-run)"
        return
    if changes.gone:
        free = f"dtsf cache compact {result.cache} frees their disk space"
        yield f"{counted(changes.gone, 'clip is', 'clips are')} no longer in the dataset and not used for training; {free}"
    statuses = ", ".join(f"{n} {status}" for status, n in result.verdicts.items())
    if changes.to_decode:
        before = f"; {result.already_done} were done before" if result.already_done else ""
        speed = f"in {result.seconds:.1f} s, {result.clips_per_s:.1f} clips/s"
        yield f"done: {changes.to_decode} of {result.clips} clips {speed}{before} ({statuses})"
    else:
        which = "all" if result.already_done == result.clips else f"{result.already_done} of"
        yield f"nothing to do: {which} {result.clips} clips were done before ({statuses})"
    if len(result.bad) == result.clips:
        return
    option = "" if cache == Path("cache") else f" --cache {open_store(cache)}"
    protocol = suggested_protocol(catalog.clips, catalog.kind)
    option += "" if protocol is None else f" --protocol {shlex.quote(protocol)}"
    yield f"next: dtsf train{option} --dataset {result.dataset}"


@synth_app.command("nucla")
def synth_nucla_command(
    out: Annotated[Path, Option(help="New or empty folder for the videos.")],
    subjects: Annotated[int, Option(min=2, help="Number of subjects. The last third are test subjects.")] = 6,
    episodes: Annotated[int, Option(min=1, help="Repetitions of each action by each subject.")] = 3,
    bias: Annotated[float | None, Option(min=0, max=1, help=BIAS_HELP)] = None,
    occlude: Annotated[bool, Option("--occlude", help="Add the test set ..._occluded: a pillar in one view.")] = False,
    seed: Annotated[int, Option(help="Random seed.")] = 0,
) -> None:
    """Draw moving figures, filmed by three cameras, in N-UCLA's layout: data to try everything."""
    from dtsf.pipeline.datasets.synthetic import synthesize_nucla

    with progress("draw", "clips") as update:
        made = synthesize_nucla(
            out, subjects=subjects, episodes=episodes, bias=bias, occlude=occlude, seed=seed, on_progress=update
        )
    people = f"{made.actions} actions by {made.subjects} subjects from {made.views} cameras"
    hints = [f"{made.clips} videos of {people} in {made.seconds:.0f} s"]
    for name, path in made.collections.items():
        # Each part has its own name, so that all fit into one cache.
        label = name.removeprefix("multiview_action_videos").replace("_", "-")
        hints.append(f"next: dtsf preprocess nucla --root {path}{f' --name nucla{label}' if label else ''}")
    emit(made, (), hints)


@synth_app.command("sessions")
def synth_sessions_command(
    out: Annotated[Path, Option(help="New or empty folder for the recordings.")],
    subjects: Annotated[int, Option(min=1, help="Number of subjects, one recording each.")] = 4,
    seconds: Annotated[float, Option(min=30, max=7200, help="Length of a recording.")] = 60.0,
    seed: Annotated[int, Option(help="Random seed.")] = 0,
) -> None:
    """Draw recordings: three cameras that begin at different times, with marks, pauses and other movements."""
    from dtsf.pipeline.datasets.synthetic_sessions import synthesize_sessions

    with progress("draw", "videos") as update:
        made = synthesize_sessions(out, subjects=subjects, seconds=seconds, seed=seed, on_progress=update)
    hints = [
        f"{counted(made.recordings, 'recording')} of {made.cameras} cameras with {made.events} events of {made.actions} actions "
        f"in {made.seconds:.0f} s",
        f"next: dtsf sync --recordings {made.table} --write",
    ]
    emit(made, (), hints)


@with_settings(ClipSettings, tier=list[str])
def import_command(
    lists: Annotated[list[Path] | None, Argument(help=LISTS_HELP)] = None,
    root: Annotated[Path | None, Option(help="Folder with the videos of a list.")] = None,
    recordings: Annotated[Path | None, Option(help="Table of recordings: the files are marks of these.")] = None,
    out: Annotated[
        Path | None, Option(help="Manifest to write. Default: manifest.csv in ROOT or beside RECORDINGS.")
    ] = None,
    split: Annotated[str, Option(help="Prefix of the split in a pickle, for example xsub of xsub_train.")] = "",
    labels: Annotated[
        Path | None, Option(help="Label map of a list: '0 name' lines, or names in order from 0.")
    ] = None,
    *,
    settings: ClipSettings,
) -> None:
    """Turn lists of clips (--root) or marks of recordings (--recordings) into a manifest for `dtsf preprocess manifest`."""
    if (root is None) == (recordings is None) or (root is not None and not lists):
        raise DataError(
            "give LIST... --root DIR for lists of clips, or EVENTS... --recordings FILE for marks in long recordings; see "
            "dtsf import --help"
        )
    if (recordings is not None and (split or labels)) or (root is not None and settings != ClipSettings()):
        raise DataError(
            "--split and --labels are for lists with --root; --tier, --fps and --nothing... are for marks with --recordings"
        )
    if recordings is not None:
        from dtsf.recordings.clips import import_events

        events = import_events(lists or [], recordings, out, settings)
        emit(events, (), _describe_events(events))
        return
    from dtsf.pipeline.datasets.import_lists import import_lists

    made = import_lists(lists or [], cast("Path", root), out, split, labels)
    splits = ", ".join(f"{n} {name}" for name, n in made.splits.items())
    warnings = [f"note: {note}" for note in made.notes]
    if made.missing:
        left = counted(len(made.missing), "entry without a video", "entries without a video")
        warnings.append(f"left out: {left} under {root}; the first is {made.missing[0]}")
    if made.alone:
        names = f"no performance and no camera in {counted(made.alone, 'name')}"
        warnings.append(f"{names}, so each is a group of one view. Fill in the columns group and view if you know them")
    head = f"{counted(made.rows, 'video')} in {counted(made.groups, 'group')} ({splits}) in {made.manifest}"
    notes = (styled((text, "yellow")) for text in warnings)
    emit(made, (), [head, *notes, f"next: dtsf preprocess manifest --root {made.manifest}"])


def _describe_events(made: ImportedEvents) -> Lines:
    found = f"{counted(made.events, 'event')} and {counted(made.nothing, 'clip')} of nothing"
    yield f"{found} from {counted(made.recordings, 'recording')} in {made.manifest}"
    yield ", ".join(f"{n} {label}" for label, n in made.labels.items())
    for title, lines in (("", made.notes), ("left out: ", made.left_out), ("both are kept: ", made.overlaps)):
        yield from (styled((f"note: {title}{line}", "yellow")) for line in lines[:BAD_SHOWN])
        if len(lines) > BAD_SHOWN:
            yield f"... and {len(lines) - BAD_SHOWN} more: --json lists all"
    yield f"next: dtsf preprocess manifest --root {made.manifest} --align group"
