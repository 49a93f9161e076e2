"""Experiments of many trainings: ``dtsf ablate`` and ``dtsf reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Exit, Option, Typer

from dtsf.cli.options import CACHE, with_settings
from dtsf.cli.screen import Lines, console, emit, progress, results, styled, table
from dtsf.errors import BadClipsError, DataError
from dtsf.experiments.settings import AblateSettings, ReproduceSettings

if TYPE_CHECKING:
    from dtsf.experiments.results import Ablation, Reproduction
    from dtsf.pipeline.datasets.nucla_check import NuclaCheck

ROOT_HELP = "Folder of the dataset or above it. Default: $DTSF_DATA/nucla, then ./data/nucla."
GET_DATA = {
    "needed": "the videos of Northwestern-UCLA Multiview Action 3D: about {clips}, 10 actions by 10 subjects",
    "get it": "{source}: multiview_action_videos.tgz (the authors' page; dtsf downloads nothing)",
    "unpack": "tar xzf multiview_action_videos.tgz -C DIR    gives DIR/multiview_action_videos/aXX/vYY_sZZ_eWW.avi",
    "or": "frame folders DIR/view_X/aXX_sYY_eZZ/*rgb.jpg, or DIR/viewN/v01_s01_e00_a02.avi",
    "then": "make reproduce-nucla DATA=DIR    (the same as dtsf reproduce nucla --root DIR)",
    "check only": "dtsf reproduce nucla --root DIR --check    lists the clips that are there and those missing",
    "without it": "make demo    draws a small dataset and runs both stages on it",
}
"""Lines for a user without the dataset."""
reproduce_app = Typer(help="Run a published experiment: data check, both stages, one table.", no_args_is_help=True)


@with_settings(AblateSettings, overrides=list[str], tests=list[str], seeds=str, gap=str)
def ablate_command(cache: CACHE = Path("cache"), *, settings: AblateSettings) -> None:
    """Train a table of variants with several seeds and write it as CSV, Markdown and a picture.

    Run the same command again to continue. Trainings that are finished in --out are not repeated.
    """
    from dtsf.experiments.ablation import ablate

    def announce(result: Ablation) -> None:
        if result.done > result.reused:
            return
        size = f"{len(result.rows)} variants, {len(result.seeds)} seeds, recipe {result.recipe}"
        work = f"{result.total} trainings, {result.reused} of them already done"
        console().print(f"{result.title}: {size}, {result.dataset} by {result.protocol}: {work}")
        for test in result.tests:
            console().print(f"test {test.name}: {test.task}, {test.n_groups} groups")
            if test.note:
                console().print(f"{test.name}: {test.note}", style="yellow")

    with progress("ablate", "epochs") as update:
        result = ablate(cache, settings, on_result=announce, on_epoch=update)
    out, seeds = settings.out, [f"seed {seed}" for seed in result.seeds]
    names = {"csv": f"{result.table}.csv", "markdown": f"{result.table}.md", "picture": f"{result.table}.svg"}
    heads = ["variant", "mean", "spread", *seeds, "differs from the first row in"]
    tables = [
        table(
            f"{name}: {task}", heads, [[row.variant, *result.cells(one), ", ".join(row.differs)] for row, one in rows]
        )
        for name, task, rows in result.columns()
    ]
    files = {kind: str(out / name) for kind, name in names.items()}
    hint = f"written to {out}: {', '.join(names.values())}; the run folders are in {out / 'trainings'}"
    emit(result.document() | {"out": str(out), "files": files}, tables, [hint])


@reproduce_app.command("nucla")
@with_settings(ReproduceSettings, overrides=list[str], protocols=list[str], seeds=str)
def reproduce_nucla_command(
    root: Annotated[Path | None, Option(help=ROOT_HELP)] = None,
    out: Annotated[Path, Option(help="Folder of results, runs and cache.")] = Path("reproduce-nucla"),
    check: Annotated[bool, Option("--check", help="Only check the data. Exit code 2 if they are incomplete.")] = False,
    *,
    settings: ReproduceSettings,
) -> None:
    """N-UCLA end to end: check the data, preprocess, train every protocol with every seed, write one table."""
    from dtsf.pipeline.datasets.nucla_check import QUOTED, SOURCE, examine_nucla

    try:
        _, found = examine_nucla(root)
    except DataError as error:
        results().print(styled(("nothing to reproduce: ", "bold red"), str(error)), soft_wrap=True)
        for head, text in GET_DATA.items():
            text = text.format(clips=f"{QUOTED:,}", source=SOURCE)
            results().print(styled((f"  {head:<11}", "bold"), text), soft_wrap=True)
        raise Exit(2) from error
    if check:
        emit(found, ())
        _show_check(found)
        raise Exit(0 if found.complete else 2)
    # Both stages take seconds to import, so the data are checked first.
    from dtsf.experiments.nucla import reproduce_nucla

    say = console().print
    result = reproduce_nucla(Path(found.root), out, settings, on_check=_show_check, say=say, show=progress)
    emit(result, _describe(result, out))
    if result.too_many_bad:
        raise BadClipsError(result.too_many_bad)


def _show_check(check: NuclaCheck) -> None:
    from dtsf.experiments.tables import describe_data
    from dtsf.pipeline.datasets.nucla_check import SOURCE

    for head, text in describe_data(check):
        console().print(styled((f"  {head:<16}", "bold"), text), soft_wrap=True)
    results().print(styled((check.summary, "green" if check.complete else "bold yellow")), soft_wrap=True)
    if check.is_nucla and check.missing:
        results().print(styled(f"the videos are at {SOURCE}"), soft_wrap=True)


def _describe(result: Reproduction, out: Path) -> Lines:
    from dtsf.experiments.tables import comparison_note, duration, protocol_cells

    # The other columns are in results.md: a terminal is too narrow for them.
    rows = [protocol_cells(row, result) for row in result.rows]
    shown = [name for name in rows[0] if name not in ("measures", "trained on", "recipe")]
    title = "N-UCLA" if result.comparable else "not N-UCLA"
    yield table(title, shown, [[row[name] for name in shown] for row in rows])
    yield from (styled(f"{row.protocol}: {row.task}") for row in result.rows)
    yield styled((comparison_note(result), "" if result.comparable else "yellow"))
    yield styled(f"time: {', '.join(f'{stage.name} {duration(stage.seconds)}' for stage in result.stages)}")
    yield styled(f"written: {out / 'results.md'}, results.csv, results.json")
