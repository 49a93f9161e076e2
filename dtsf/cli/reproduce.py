"""dtsf reproduce: a published experiment from the videos to one table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dtsf.cli.options import DEVICE, EPOCHS, JSON, SEEDS, overrides, read_seeds, with_settings
from dtsf.experiments.reproduce.settings import Settings

if TYPE_CHECKING:
    from dtsf.experiments.reproduce.records import Reproduction
    from dtsf.pipeline.datasets.nucla_check import NuclaCheck

reproduce_app = typer.Typer(
    help="Run a published experiment: data check, both stages, one table.", no_args_is_help=True
)


@reproduce_app.command("nucla")
@with_settings(Settings, overrides=list[str])
def reproduce_nucla_command(
    root: Annotated[
        Path | None,
        typer.Option(
            help="The data set's folder or any folder above it. Falls back to $DTSF_DATA/nucla, then ./data/nucla."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of results, runs and cache; give the same again to go on.")] = Path(
        "reproduce-nucla"
    ),
    seeds: SEEDS = "0,1,2",
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            help="As dtsf train takes it; may be repeated. The three cross-view and cross-subject if left out."
        ),
    ] = None,
    epochs: EPOCHS = None,
    cache: Annotated[
        Path | None, typer.Option(help="Use this cache, which may hold the clips already; OUT/cache if left out.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes of stage 1; one a core if left out.")] = None,
    device: DEVICE = "auto",
    check: Annotated[bool, typer.Option("--check", help="Only say what is there; exit code 2 if not all is.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse data that are not the whole N-UCLA.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew in OUT.")] = False,
    json_: JSON = False,
    *,
    settings: Settings,
) -> None:
    """N-UCLA end to end: check the data, preprocess, train every protocol with every seed, write one table."""
    from dtsf.cli.show import console, print_json, progress
    from dtsf.errors import BadClipsError, DataError
    from dtsf.pipeline.datasets.nucla_check import examine_nucla

    numbers = read_seeds(seeds)
    try:
        _, found = examine_nucla(root)
    except DataError as error:
        _no_data(str(error))
        raise typer.Exit(2) from error
    if check:
        if json_:
            print_json(found.model_dump(mode="json"))
        _show_check(found)
        raise typer.Exit(0 if found.complete else 2)
    # Both stages take seconds to import: who has no data hears of it before.
    from dtsf.experiments.reproduce.nucla import reproduce_nucla
    from dtsf.experiments.reproduce.paper_run import reproduce_both

    # A checkpoint of pixels is for the paper's own run; with a recipe or encoder named, for that.
    init = Path(settings.init) if settings.init else None
    both = init is not None and settings.recipe is None and settings.encoder == Settings().encoder
    changes = tuple(overrides(list(settings.overrides), epochs))
    settings = settings.changed(overrides=changes, init=None if init is None or both else str(init.absolute()))
    options: dict[str, Any] = {
        "seeds": numbers,
        "protocols": protocol or (),
        "settings": settings,
        "cache": cache,
        "workers": workers,
        "device": device,
        "strict": strict,
        "overwrite": overwrite,
        "on_check": _show_check,
        "say": lambda line: console().print(line),
        "show": progress,
    }
    if both and init is not None:
        result = reproduce_both(Path(found.root), out, init, paper_overrides=tuple(overrides(None, epochs)), **options)
    else:
        result = reproduce_nucla(Path(found.root), out, **options)
    if json_:
        print_json(result.model_dump(mode="json"))
    else:
        _show_result(result, out)
    if result.too_many_bad:
        raise BadClipsError(result.too_many_bad)


def _no_data(why: str) -> None:
    """The one screen for a person who has no N-UCLA."""
    from dtsf.cli.show import results, words
    from dtsf.pipeline.datasets.nucla_check import QUOTED, SOURCE

    screen = results()
    screen.print(words(("nothing to reproduce: ", "bold red"), why), soft_wrap=True)
    lines = (
        (
            "needed",
            f"the videos of Northwestern-UCLA Multiview Action 3D: about {QUOTED:,}, of 10 actions by 10 persons",
        ),
        ("get it", f"{SOURCE}: multiview_action_videos.tgz (its authors' page; dtsf downloads nothing)"),
        (
            "unpack",
            "tar xzf multiview_action_videos.tgz -C DIR, which gives DIR/multiview_action_videos/aXX/vYY_sZZ_eWW.avi",
        ),
        ("or", "frame folders DIR/view_X/aXX_sYY_eZZ/*rgb.jpg, or DIR/viewN/v01_s01_e00_a02.avi"),
        ("then", "make reproduce-nucla DATA=DIR    (the same as dtsf reproduce nucla --root DIR)"),
        ("only look", "dtsf reproduce nucla --root DIR --check    says what is there and what is missing"),
        ("without it", "make demo    draws a small data set and runs both stages on it"),
    )
    for head, text in lines:
        screen.print(words((f"  {head:<11}", "bold"), text), soft_wrap=True)


def _show_check(check: NuclaCheck) -> None:
    from dtsf.cli.show import console, results, words
    from dtsf.experiments.reproduce.table import describe_data
    from dtsf.pipeline.datasets.nucla_check import SOURCE

    for head, text in describe_data(check):
        console().print(words((f"  {head:<16}", "bold"), text), soft_wrap=True)
    results().print(words((check.summary, "green" if check.complete else "bold yellow")), soft_wrap=True)
    if check.is_nucla and check.missing:
        results().print(words(f"the videos come from {SOURCE}"), soft_wrap=True)


def _show_result(result: Reproduction, out: Path) -> None:
    from dtsf.cli.show import results, table, words
    from dtsf.experiments.reproduce.table import COLUMNS, cells, compared, duration

    screen = results()
    rows = [cells(row, result) for row in result.rows]
    # What a terminal has no room for stands in results.md.
    kept = [k for k, name in enumerate(COLUMNS) if name not in ("measures", "trained on", "recipe")]
    title = "N-UCLA" if result.comparable else "not N-UCLA"
    screen.print(table(title, (COLUMNS[k] for k in kept), ([row[k] for k in kept] for row in rows)))
    for row in result.rows:
        screen.print(words(f"{row.protocol}: {row.task}"), soft_wrap=True)
    screen.print(words((compared(result), "" if result.comparable else "yellow")))
    stages = ", ".join(f"{stage.name} {duration(stage.seconds)}" for stage in result.stages)
    screen.print(words(f"time: {stages}"))
    screen.print(words(f"written: {out / 'results.md'}, results.csv, results.json"), soft_wrap=True)
