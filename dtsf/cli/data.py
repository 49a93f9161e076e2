"""Commands that make data: preprocess, synth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from dtsf.cli.options import JSON, with_settings
from dtsf.pipeline.settings import PreprocessSettings

if TYPE_CHECKING:
    from dtsf.pipeline.datasets.catalog import SourceCatalog
    from dtsf.pipeline.preprocess import PreprocessResult


@with_settings(PreprocessSettings, max_bad=str)
def preprocess_command(
    dataset: Annotated[str, typer.Argument(help="nucla, ntu, casia, or manifest (a CSV of your own videos).")],
    root: Annotated[
        Path | None,
        typer.Option(
            help="The data set's folder or any folder above it; for manifest, the CSV. "
            "Falls back to $DTSF_DATA/DATASET, then ./data/DATASET."
        ),
    ] = None,
    cache: Annotated[Path, typer.Option(help="Folder of the cache, or its URL (s3://BUCKET/FOLDER).")] = Path("cache"),
    json_: JSON = False,
    *,
    settings: PreprocessSettings,
) -> None:
    """Stage 1: decode videos and cache their frame embeddings. Run it again to go on; what is done stays done."""
    from dtsf import api
    from dtsf.cli.show import console, print_json, progress
    from dtsf.errors import BadClipsError

    screen = console()

    def announce(catalog: SourceCatalog) -> None:
        by_views = ", ".join(f"{count} with {n} view{'s' * (n > 1)}" for n, count in catalog.groups_by_views.items())
        screen.print(f"{catalog.kind}: {len(catalog.clips)} clips in {len(catalog.groups)} groups ({by_views})")
        for note in catalog.notes:
            screen.print(f"note: {note}", style="yellow")

    failure: BadClipsError | None = None
    with progress("preprocess", "clips") as update:
        try:
            result = api.preprocess(
                dataset,
                root,
                cache,
                settings=settings,
                on_catalog=announce,
                on_progress=lambda p: update(p.done, p.total, f"{p.bad} bad" if p.bad else ""),
            )
        except BadClipsError as error:
            failure, result = error, cast("PreprocessResult", error.result)
    if json_:
        print_json(result.model_dump(mode="json"))
    else:
        _print_result(result, cache)
    if failure is not None:
        raise failure


def _print_result(result: PreprocessResult, cache: Path) -> None:
    from dtsf.cli.show import console, table

    screen = console()
    if result.bad:
        rows = [(one.clip.path, one.status, one.reason) for one in result.bad[:40]]
        screen.print(table(f"{len(result.bad)} clips were not used", ("clip", "status", "why"), rows))
        if len(result.bad) > 40:
            screen.print(f"... and {len(result.bad) - 40} more; all are in dtsf cache info {result.cache}")
    if {"timeout", "crashed"} & result.verdicts.keys():
        screen.print(
            "a timeout or a crash may be the machine's fault (busy, short of memory, a file server that did not answer): "
            "the same command with --retry-bad tries those clips again, --deadline gives them longer"
        )
    for line in _changes(result):
        screen.print(line)
    if result.dry_run:
        return
    verdicts = ", ".join(f"{count} {status}" for status, count in result.verdicts.items())
    if result.already_done == result.clips:
        screen.print(f"nothing to do: all {result.clips} clips were done before ({verdicts})")
    else:
        done = result.clips - result.already_done
        screen.print(
            f"done: {done} clips in {result.seconds:.1f} s, {result.clips_per_s:.1f} clips/s"
            + (f"; {result.already_done} were done before" if result.already_done else "")
            + f" ({verdicts})"
        )
    where = "" if cache == Path("cache") else f" --cache {cache}"
    screen.print(f"next: dtsf train{where} --dataset {result.dataset}", soft_wrap=True)


def _changes(result: PreprocessResult) -> list[str]:
    """What the source is now against what it was at the last run."""
    held = result.changes
    counts = held.model_dump(exclude={"to_decode"})
    summary = ", ".join(f"{count} {word}" for word, count in counts.items() if count) or "no clip"
    # A first run has nothing to compare with.
    first = counts.get("new") == result.clips
    lines = [] if first else [f"against the last run: {summary}"]
    if result.dry_run:
        lines.append(f"would be decoded: {held.to_decode} of {result.clips} clips; nothing was done (--dry-run)")
    elif held.gone:
        lines.append(
            f"{held.gone} clips are no longer listed: nothing trains on them, and dtsf cache compact {result.cache} gives "
            "their room back"
        )
    return lines


synth_app = typer.Typer(help="Make small data sets as video files.", no_args_is_help=True)


@synth_app.command("nucla")
def synth_nucla_command(
    out: Annotated[Path, typer.Option(help="Folder to make; must not exist or be empty.")],
    subjects: Annotated[int, typer.Option(min=2, help="Persons; the last third are test subjects.")] = 6,
    episodes: Annotated[int, typer.Option(min=1, help="Repetitions of each action by each person.")] = 3,
    bias: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Share of training groups whose room follows the action; adds test sets ..._aligned and ..._conflict.",
        ),
    ] = None,
    occlude: Annotated[
        bool, typer.Option("--occlude", help="Add the test set ..._occluded: a pillar hides the actor in one view.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    json_: JSON = False,
) -> None:
    """Draw moving figures in rooms, filmed by three cameras, in N-UCLA's layout: data to try everything on."""
    from dtsf.cli.show import console, print_json, progress
    from dtsf.pipeline.datasets.synthetic import synthesize_nucla

    with progress("draw", "clips") as update:
        summary = synthesize_nucla(
            out, subjects=subjects, episodes=episodes, bias=bias, occlude=occlude, seed=seed, on_progress=update
        )
    if json_:
        print_json(summary.model_dump(mode="json"))
        return
    screen = console()
    screen.print(
        f"{summary.clips} videos of {summary.actions} actions by {summary.subjects} subjects from {summary.views} cameras "
        f"in {summary.seconds:.0f} s"
    )
    for name, path in summary.collections.items():
        # Each collection under a name of its own, side by side in one cache.
        label = name.removeprefix("multiview_action_videos").replace("_", "-")
        option = f" --name nucla{label}" if label else ""
        screen.print(f"next: dtsf preprocess nucla --root {path}{option}", soft_wrap=True)
