"""Experiments of many trainings: ``dtsf ablate`` and ``dtsf reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dtsf.cli.options import CACHE, DEVICE, EPOCHS, JSON, SEEDS, SET, overrides, read_seeds, with_settings
from dtsf.cli.show import emit, table
from dtsf.experiments.settings import Settings

if TYPE_CHECKING:
    from dtsf.experiments.results import Ablation, Reproduction
    from dtsf.pipeline.datasets.nucla_check import NuclaCheck

reproduce_app = typer.Typer(
    help="Run a published experiment: data check, both stages, one table.", no_args_is_help=True
)


def ablate_command(
    table: Annotated[str, typer.Option(help="fusion, motion, debias, paper, or a TOML file of the same form.")],
    cache: CACHE = Path("cache"),
    dataset: Annotated[
        str | None, typer.Option(help="Dataset in the cache. Optional if the cache has only one.")
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="As for train. Default: the usual one of the dataset.")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe that the rows change: name or TOML file. Default: as for train.")
    ] = None,
    set_: SET = None,
    epochs: EPOCHS = None,
    seeds: SEEDS = "0,1,2",
    judge: Annotated[
        list[str] | None,
        typer.Option(
            help="Evaluate every training also on another dataset: NAME (all clips) or NAME@PROTOCOL. May be repeated."
        ),
    ] = None,
    gap: Annotated[str | None, typer.Option(help="Show the difference of two tests, as in aligned,conflict.")] = None,
    init: Annotated[Path | None, typer.Option(help="VideoMamba checkpoint to initialise every encoder.")] = None,
    device: DEVICE = "auto",
    out: Annotated[Path, typer.Option(help="Folder of tables and trainings.")] = Path("runs/ablate"),
    json_: JSON = False,
) -> None:
    """Train a table of variants with several seeds and write it as CSV, Markdown and a picture.

    Run the same command again to continue. Trainings that are finished in --out are not repeated.
    """
    from dtsf.cli.progress import progress
    from dtsf.cli.screen import console
    from dtsf.errors import ConfigError
    from dtsf.experiments.ablation import ablate

    pair = tuple(word.strip() for word in gap.split(",")) if gap else None
    if pair is not None and len(pair) != 2:
        raise ConfigError(f"--gap {gap!r} must be two names joined by a comma, as in aligned,conflict")
    announced: list[int] = []

    def announce(result: Ablation) -> None:
        if not announced:
            announced.append(result.total)
            _announce(result)

    with progress("ablate", "epochs") as update:
        result = ablate(
            cache,
            table=table,
            dataset=dataset,
            protocol=protocol,
            recipe=recipe,
            overrides=overrides(set_, epochs),
            seeds=read_seeds(seeds),
            judges=judge or [],
            gap=pair,
            out=out,
            device=device,
            init=init,
            on_result=announce,
            on_epoch=update,
        )
    names = {"csv": f"{result.table}.csv", "markdown": f"{result.table}.md", "picture": f"{result.table}.svg"}
    document = result.document() | {"out": str(out), "files": {kind: str(out / name) for kind, name in names.items()}}
    emit(document, json_, _show_ablation, result)
    if not json_:
        console().print(f"written to {out}: {', '.join(names.values())}; the run folders are in {out / 'trainings'}")


def _announce(result: Ablation) -> None:
    from dtsf.cli.screen import console

    screen = console()
    screen.print(
        f"{result.title}: {len(result.rows)} variants, {len(result.seeds)} seeds, recipe {result.recipe}, "
        f"{result.dataset} by {result.protocol}: {result.total} trainings, {result.reused} of them already done"
    )
    for test in result.tests:
        screen.print(f"test {test.name}: {test.task}, {test.n_groups} groups")
        if test.note:
            screen.print(f"{test.name}: {test.note}", style="yellow")


def _show_ablation(result: Ablation) -> None:
    from dtsf.cli.screen import results

    heads = ["variant", "mean", "spread", *(f"seed {seed}" for seed in result.seeds), "differs from the first row in"]
    for name, task, values in result.columns():
        rows = zip(result.rows, values, strict=True)
        lines = [[row.variant, *result.cells(by_seed), ", ".join(row.differs)] for row, by_seed in rows]
        results().print(table(f"{name}: {task}", heads, lines))


@reproduce_app.command("nucla")
@with_settings(Settings, overrides=list[str])
def reproduce_nucla_command(
    root: Annotated[
        Path | None,
        typer.Option(
            help="The dataset's folder or any folder above it. Default: $DTSF_DATA/nucla, then ./data/nucla.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of results, runs and cache. Give the same one to continue.")] = Path(
        "reproduce-nucla"
    ),
    seeds: SEEDS = "0,1,2",
    protocol: Annotated[
        list[str] | None,
        typer.Option(help="As for train. May be repeated. Default: cross-view for each view, and cross-subject."),
    ] = None,
    epochs: EPOCHS = None,
    cache: Annotated[
        Path | None, typer.Option(help="Cache to use, which may contain the clips already. Default: OUT/cache.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes of stage 1. Default: one for each core.")
    ] = None,
    device: DEVICE = "auto",
    check: Annotated[
        bool, typer.Option("--check", help="Only check the data. Exit code 2 if they are incomplete.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse data that are not the whole N-UCLA.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the runs and the cache in OUT and start again.")
    ] = False,
    json_: JSON = False,
    *,
    settings: Settings,
) -> None:
    """N-UCLA end to end: check the data, preprocess, train every protocol with every seed, write one table."""
    from dtsf.cli.progress import progress
    from dtsf.cli.screen import console
    from dtsf.errors import BadClipsError, DataError
    from dtsf.pipeline.datasets.nucla_check import examine_nucla

    numbers = read_seeds(seeds)
    try:
        _, found = examine_nucla(root)
    except DataError as error:
        _show_no_data(str(error))
        raise typer.Exit(2) from error
    if check:
        emit(found, json_, lambda: None)
        _show_check(found)
        raise typer.Exit(0 if found.complete else 2)
    # Both stages take seconds to import, so the data are checked first.
    from dtsf.experiments.nucla import paper_settings, reproduce_nucla

    # The checkpoint is for the run from pixels, unless a recipe or an encoder is given.
    changes: dict[str, Any] = {"overrides": tuple(overrides(list(settings.overrides), epochs))}
    paper = None
    if settings.init is not None and settings.recipe is None and settings.encoder == Settings().encoder:
        paper, changes["init"] = paper_settings(Path(settings.init), overrides(None, epochs)), None
    elif settings.init is not None:
        changes["init"] = str(Path(settings.init).absolute())
    result = reproduce_nucla(
        Path(found.root),
        out,
        seeds=numbers,
        protocols=protocol or (),
        settings=settings.changed(**changes),
        paper=paper,
        cache=cache,
        workers=workers,
        device=device,
        strict=strict,
        overwrite=overwrite,
        on_check=_show_check,
        say=lambda line: console().print(line),
        show=progress,
    )
    emit(result, json_, _show_reproduction, result, out)
    if result.too_many_bad:
        raise BadClipsError(result.too_many_bad)


def _show_no_data(why: str) -> None:
    from dtsf.cli.screen import results, styled
    from dtsf.pipeline.datasets.nucla_check import QUOTED, SOURCE

    lines = {
        "needed": f"the videos of Northwestern-UCLA Multiview Action 3D: about {QUOTED:,}, 10 actions by 10 subjects",
        "get it": f"{SOURCE}: multiview_action_videos.tgz (the authors' page; dtsf downloads nothing)",
        "unpack": "tar xzf multiview_action_videos.tgz -C DIR    gives DIR/multiview_action_videos/aXX/vYY_sZZ_eWW.avi",
        "or": "frame folders DIR/view_X/aXX_sYY_eZZ/*rgb.jpg, or DIR/viewN/v01_s01_e00_a02.avi",
        "then": "make reproduce-nucla DATA=DIR    (the same as dtsf reproduce nucla --root DIR)",
        "check only": "dtsf reproduce nucla --root DIR --check    lists the clips that are there and those missing",
        "without it": "make demo    draws a small dataset and runs both stages on it",
    }
    screen = results()
    screen.print(styled(("nothing to reproduce: ", "bold red"), why), soft_wrap=True)
    for head, text in lines.items():
        screen.print(styled((f"  {head:<11}", "bold"), text), soft_wrap=True)


def _show_check(check: NuclaCheck) -> None:
    from dtsf.cli.screen import console, results, styled
    from dtsf.experiments.tables import describe_data
    from dtsf.pipeline.datasets.nucla_check import SOURCE

    for head, text in describe_data(check):
        console().print(styled((f"  {head:<16}", "bold"), text), soft_wrap=True)
    results().print(styled((check.summary, "green" if check.complete else "bold yellow")), soft_wrap=True)
    if check.is_nucla and check.missing:
        results().print(styled(f"the videos are at {SOURCE}"), soft_wrap=True)


def _show_reproduction(result: Reproduction, out: Path) -> None:
    from dtsf.cli.screen import results, styled
    from dtsf.experiments.tables import COLUMNS, comparison_note, duration, protocol_cells

    screen = results()
    # The other columns are in results.md: a terminal is too narrow for them.
    kept = [k for k, name in enumerate(COLUMNS) if name not in ("measures", "trained on", "recipe")]
    rows = [[protocol_cells(row, result)[k] for k in kept] for row in result.rows]
    screen.print(table("N-UCLA" if result.comparable else "not N-UCLA", [COLUMNS[k] for k in kept], rows))
    for row in result.rows:
        screen.print(styled(f"{row.protocol}: {row.task}"), soft_wrap=True)
    screen.print(styled((comparison_note(result), "" if result.comparable else "yellow")))
    screen.print(styled(f"time: {', '.join(f'{stage.name} {duration(stage.seconds)}' for stage in result.stages)}"))
    screen.print(styled(f"written: {out / 'results.md'}, results.csv, results.json"), soft_wrap=True)
