"""Commands that make data: preprocess, synth."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    from dtsf.errors import BadClipsError
    from dtsf.pipeline.catalog import Catalog
    from dtsf.pipeline.run import PreprocessResult

__all__ = ["Format", "preprocess_command", "synth_app"]


class Format(StrEnum):
    """Storage formats of a cache."""

    ZARR = "zarr"
    HDF5 = "hdf5"


class Check(StrEnum):
    """How closely clips are looked at."""

    FAST = "fast"
    FULL = "full"


def _fraction(text: str) -> float:
    number = text.strip()
    try:
        value = float(number[:-1]) / 100 if number.endswith("%") else float(number)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise typer.BadParameter(f"{text!r} is not a share such as 5% or 0.05")
    return value


def preprocess_command(
    context: typer.Context,
    dataset: Annotated[str, typer.Argument(help="nucla, ntu, casia, or manifest (a CSV of your own videos).")],
    root: Annotated[
        Path | None,
        typer.Option(
            help="The data set's folder or any folder above it; for manifest, the CSV. "
            "Falls back to $DTSF_DATA/DATASET, then ./data/DATASET."
        ),
    ] = None,
    views: Annotated[str, typer.Option(help="all, or view numbers or names joined by commas.")] = "all",
    cache: Annotated[Path, typer.Option(help="Folder of the cache, or its URL (s3://BUCKET/FOLDER).")] = Path("cache"),
    format_: Annotated[
        Format | None, typer.Option("--format", help="Storage format: zarr, or what the data set has.")
    ] = None,
    compress: Annotated[
        str | None, typer.Option(help="none; smaller and slower: zstd (zarr) or gzip (hdf5).", show_default="none")
    ] = None,
    encoder: Annotated[
        str,
        typer.Option(
            help="efficientnet-lite0, -lite1 or -lite2, with the stride of its map :8, :16 or :32; timm:MODEL[@FILE]; pixels."
        ),
    ] = "efficientnet-lite0",
    frames: Annotated[int, typer.Option(help="Frames kept of each clip, by equal segments.")] = 16,
    size: Annotated[
        int,
        typer.Option(
            help="Side in pixels of the square picture that is embedded. 288 tells arms apart better, in 2.3 times the time."
        ),
    ] = 192,
    grid: Annotated[int, typer.Option(help="Cells along each side of an embedding; divisible by 3.")] = 6,
    crop: Annotated[
        str | None,
        typer.Option(
            help="Which square of the picture: motion (around what moves: still cameras) or centre.",
            show_default="motion; centre for pixels",
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; one a core if left out.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="tcp://HOST:PORT of a running dask scheduler.")] = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Clips of a shard, the unit of commit.")] = 64,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first whole groups with this many clips.")] = None,
    check: Annotated[
        Check, typer.Option(help="full decodes every frame and refuses clips with damaged ones.")
    ] = Check.FAST,
    deadline: Annotated[float, typer.Option(min=0.1, help="Seconds that decoding one clip may take.")] = 60.0,
    max_bad: Annotated[str, typer.Option(help="Share of clips that may be unusable before the exit code is 1.")] = "5%",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove this data set from the cache first.")] = False,
    retry_bad: Annotated[
        bool,
        typer.Option(
            "--retry-bad", help="Try the clips again that could not be used; else only if their file changes."
        ),
    ] = False,
    name: Annotated[str | None, typer.Option(help="Its name in the cache; DATASET if left out.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Stage 1: decode videos and cache their frame embeddings. Run it again to go on; what is done stays done."""
    from dtsf.pipeline.crew import crew_for

    share = _fraction(max_bad)
    failure: BadClipsError | None = None
    # The command line has started it already, or it is started before the imports of this process, which take as long.
    with context.obj or crew_for(workers, scheduler) as crew:
        from dtsf import api
        from dtsf.cli.show import console, print_json, progress
        from dtsf.errors import BadClipsError

        screen = console()

        def announce(catalog: Catalog) -> None:
            by_views = ", ".join(
                f"{count} with {n} view{'s' * (n > 1)}" for n, count in catalog.groups_by_views.items()
            )
            screen.print(
                f"{catalog.dataset}: {len(catalog.clips)} clips in {len(catalog.groups)} groups ({by_views})",
                highlight=False,
            )
            for note in catalog.notes:
                screen.print(f"note: {note}", style="yellow", markup=False, highlight=False)

        with progress("preprocess", "clips") as update:
            try:
                result = api.preprocess(
                    dataset,
                    root,
                    cache,
                    views=views,
                    limit=limit,
                    name=name,
                    format=format_,
                    compress=compress,
                    encoder=encoder,
                    frames=frames,
                    size=size,
                    grid=grid,
                    crop=crop,
                    workers=workers,
                    scheduler=scheduler,
                    shard_size=shard_size,
                    max_bad=share,
                    overwrite=overwrite,
                    retry_bad=retry_bad,
                    deadline=deadline,
                    check=check.value,
                    crew=crew,
                    on_catalog=announce,
                    on_progress=lambda p: update(p.done, p.total, f"{p.bad} bad" if p.bad else ""),
                )
            except BadClipsError as error:
                failure, result = error, cast("PreprocessResult", error.result)
    if json_:
        print_json(result.model_dump(mode="json"))
    else:
        _print_result(result)
    if failure is not None:
        raise failure


def _print_result(result: PreprocessResult) -> None:
    from dtsf.cli.show import console, table

    screen = console()
    if result.bad:
        rows = [(record.clip.path, record.verdict.value, record.reason) for record in result.bad[:40]]
        screen.print(table(f"{len(result.bad)} clips were not used", ("clip", "verdict", "why"), rows))
        if len(result.bad) > 40:
            screen.print(
                f"... and {len(result.bad) - 40} more; all are in {result.cache}/{result.dataset}/shards/*.json"
            )
    if {"timeout", "crashed"} & result.verdicts.keys():
        screen.print(
            "a timeout or a crash may be the machine's fault (busy, short of memory, a file server that did not answer): "
            "the same command with --retry-bad tries those clips again, --deadline gives them longer",
            highlight=False,
        )
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in result.verdicts.items())
    if result.already_done == result.clips:
        screen.print(f"nothing to do: all {result.clips} clips were done before ({verdicts})", highlight=False)
    else:
        done = result.clips - result.already_done
        screen.print(
            f"done: {done} clips in {result.seconds:.1f} s, {result.clips_per_s:.1f} clips/s"
            + (f"; {result.already_done} were done before" if result.already_done else "")
            + f" ({verdicts})",
            highlight=False,
        )
    screen.print(f"next: dtsf train --cache {result.cache} --dataset {result.dataset}", highlight=False)


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
    json_: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
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
        f"in {summary.seconds:.0f} s",
        highlight=False,
    )
    for name, path in summary.collections.items():
        # Each collection under a name of its own, side by side in one cache.
        label = name.removeprefix("multiview_action_videos").replace("_", "-")
        option = f" --name nucla{label}" if label else ""
        screen.print(f"next: dtsf preprocess nucla --root {path}{option}", highlight=False)
