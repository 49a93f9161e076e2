"""Experiments of many trainings: ``dtsf crossval``, ``dtsf ablate`` and ``dtsf reproduce``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Exit, Option, Typer

from dtsf.cli.options import CACHE, with_settings
from dtsf.cli.screen import Lines, console, emit, progress, results, styled, table
from dtsf.errors import BadClipsError, DataError
from dtsf.experiments.settings import AblateSettings, CrossvalSettings, ReproduceSettings
from dtsf.names import counted

if TYPE_CHECKING:
    from dtsf.experiments.results import Ablation, Crossval, Reproduction
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
        size = f"{counted(len(result.rows), 'variant')}, {counted(len(result.seeds), 'seed')}, recipe {result.recipe}"
        work = f"{counted(result.total, 'training')}, {result.reused} of them already done"
        console().print(f"{result.title}: {size}, {result.dataset} by {result.protocol}: {work}")
        for test in result.tests:
            console().print(f"test {test.name}: {test.task}, {test.n_groups} groups")
            if test.note:
                console().print(f"{test.name}: {test.note}", style="yellow")

    with progress("ablate", "epochs") as update:
        result = ablate(cache, settings, on_result=announce, on_epoch=update)
    out, seeds = settings.out, [f"seed {seed}" for seed in result.seeds]
    names = {"csv": f"{result.table}.csv", "markdown": f"{result.table}.md", "picture": f"{result.table}.svg"}
    heads = ["variant", "mean", "95 % interval", "minus the first", "better", "spread", *seeds, "differs in"]
    tables = [
        table(
            f"{name}: {task}",
            heads,
            [
                [row.variant, mean, *result.pairs(row, name), *others, ", ".join(row.differs)]
                for row, one in rows
                for mean, *others in [result.cells(one)]
            ],
        )
        for name, task, rows in result.columns()
    ]
    files = {kind: str(out / name) for kind, name in names.items()}
    hint = f"written to {out}: {', '.join(names.values())}; the run folders are in {out / 'trainings'}"
    emit(result.document() | {"out": str(out), "files": files}, tables, [hint])


@with_settings(
    CrossvalSettings,
    overrides=list[str],
    tests=list[str],
    compare=list[Path],
    **dict.fromkeys(("seeds", "people", "takes", "cameras"), str),
)
def crossval_command(cache: CACHE = Path("cache"), *, settings: CrossvalSettings) -> None:
    """Leave out people (views, groups) in turn: train and test each fold, and score the pooled answers.

    Run the same command again to continue. Trainings that are finished in --out are not repeated.
    """
    from dtsf.experiments.crossval import crossval

    def announce(result: Crossval) -> None:
        if result.done == result.reused:
            work = f"{counted(result.total, 'training')}, {result.reused} of them already done"
            console().print(f"{result.dataset}, {result.by}, recipe {result.recipe}: {work}")
            for note in result.notes:
                console().print(note, style="yellow")

    with progress("crossval", "epochs") as update:
        result = crossval(cache, settings, on_result=announce, on_epoch=update)
    hint = f"written to {settings.out}: crossval.json, report.html, answers.csv; runs in {settings.out / 'trainings'}"
    emit(result.document() | {"out": str(settings.out)}, _describe_crossval(result), [hint])


def _describe_crossval(result: Crossval) -> Lines:
    from dtsf.experiments.crossval_files import advice
    from dtsf.experiments.results import amount, difference_text, interval_text
    from dtsf.training.scores import FEW_PEOPLE, METRICS

    def cells(numbers: Mapping[str, float | None]) -> list[str]:
        return ["-" if numbers[name] is None else f"{numbers[name]:.3f}" for name in METRICS]

    heads = [name.replace("_", " ") for name in METRICS]
    rows = []
    for test, own in result.tests.items():
        numbers = own.model_dump()
        intervals = [interval_text(own.intervals[name]) or "-" for name in METRICS]
        rows += [[test, "value", *cells(numbers)], ["", "95 % interval", *intervals]]
        rows += [["", "spread of seeds", *cells(own.spread)]] if own.spread else []
    yield table(f"{result.dataset}: {result.by}", ["test", "", *heads], rows)
    for where, tests in result.compared.items():
        rows = []
        for test, compared in tests.items():
            scores = compared.scores
            rows.append([test, "difference", *(difference_text(scores[name]) for name in METRICS)])
            rows.append(["", "better with probability", *cells({name: one.better for name, one in scores.items()})])
        yield table(f"minus {where}", ["test", "", *heads], rows)
    for what, numbers_of in (("person", result.people), ("camera alone", result.views)):
        if numbers_of:
            lines = [[name, int(numbers["groups"] or 0), *cells(numbers)] for name, numbers in numbers_of.items()]
            yield table("", [what, "groups", *heads], lines)
    for point in result.curve:
        own = point.scores
        interval = interval_text(own.intervals["top1"])
        yield f"trained on {amount(point.number, point.kind)}: top-1 {own.top1:.3f}" + (
            f" ({interval})" if interval else ""
        )
    yield from advice(result.curve)
    for own in list(result.tests.values())[:1]:
        yield styled((own.doubt, "yellow" if own.people < FEW_PEOPLE else ""))


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

    say, begin = console().print, time.monotonic()
    result = reproduce_nucla(Path(found.root), out, settings, on_check=_show_check, say=say, show=progress)
    emit(result, _describe(result, out, time.monotonic() - begin))
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


def _describe(result: Reproduction, out: Path, seconds: float) -> Lines:
    from dtsf.experiments.tables import comparison_note, duration, protocol_cells

    # The other columns are in results.md: a terminal is too narrow for them.
    rows = [protocol_cells(row, result) for row in result.rows]
    shown = [name for name in rows[0] if name not in ("measures", "trained on", "recipe")]
    title = "N-UCLA" if result.comparable else "not N-UCLA"
    yield table(title, shown, [[row[name] for name in shown] for row in rows])
    yield from (styled(f"{row.protocol}: {row.task}") for row in result.rows)
    yield styled((comparison_note(result), "" if result.comparable else "yellow"))
    times = ", ".join(f"{stage.name} {duration(stage.seconds)}" for stage in result.stages)
    yield styled(f"time: {times} (of all trainings, added); this command {duration(seconds)}")
    yield styled(f"written: {out / 'results.md'}, results.csv, results.json")
