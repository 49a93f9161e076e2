"""Commands around a run: train, evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dtsf.cli.options import CACHE, JSON, with_settings
from dtsf.cli.screen import set_verbosity
from dtsf.training.settings import TrainSettings

if TYPE_CHECKING:
    from dtsf.cache.reader import CachedDataset
    from dtsf.training.loop import EpochReport
    from dtsf.training.protocols import Split
    from dtsf.training.recipe import Recipe


@with_settings(TrainSettings, overrides=list[str])
def train_command(cache: CACHE = Path("cache"), json_: JSON = False, *, settings: TrainSettings) -> None:
    """Stage 2: train DTSFNet from the cache and judge it on the protocol's test clips."""
    from dtsf import api
    from dtsf.cli.show import console, evaluation_table, print_json, progress, results, split_table
    from dtsf.training.distributed import current_world

    if not current_world().first:
        # Of several processes the first one prints; each prints its own errors.
        set_verbosity(quiet=True, verbose=False)

    screen = console()

    def announce(run: Path, data: CachedDataset, split: Split, recipe: Recipe) -> None:
        screen.print(f"{data.info.name}, the task: {split.task}")
        screen.print(split_table(split, data.info.view_names))
        bad = {status: count for status, count in data.verdicts.items() if status not in ("ok", "short")}
        for reason, count in {**split.left_out, **bad}.items():
            screen.print(f"left out: {count} clips: {reason}", style="yellow")
        screen.print(f"{_lengths(recipe)}, run folder {run}")

    with progress("train", "epochs") as update:

        def show(report: EpochReport) -> None:
            update(report.epoch, report.epochs, _note(report))

        result = api.train(
            cache,
            settings=settings,
            on_recipe=lambda name, why: screen.print(f"recipe {name}: {why}"),
            on_start=announce,
            on_epoch=show,
        )
    if not current_world().first:
        return
    if settings.init is not None:
        screen.print(_init_summary(result.run), style="cyan")
    document = result.evaluation.summary()
    if json_:
        extra = {"run": str(result.run), "seconds": result.seconds, "epochs": result.epochs}
        extra |= {"best_epoch": result.best_epoch}
        print_json(extra | _without_predictions(document))
        return
    screen.print("")
    for part in evaluation_table(document):
        results().print(part)
    screen.print("")
    if result.best_epoch is not None:
        screen.print(f"{result.epochs} epochs; on the groups held out, epoch {result.best_epoch} was best")
    screen.print(
        f"trained in {result.seconds:.0f} s; the run is in {result.run}, numbers in metrics.json", soft_wrap=True
    )
    cameras = " ".join(f"CAM{k}" for k in range(1, min(3, len(document["view_names"])) + 1))
    screen.print(f"next: dtsf report {result.run}", soft_wrap=True)
    screen.print(f"      dtsf predict {cameras} --run {result.run}", soft_wrap=True)


def evaluate_command(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    cache: CACHE = Path("cache"),
    dataset: Annotated[str | None, typer.Option(help="Data set in the cache; the run's own if left out.")] = None,
    protocol: Annotated[str | None, typer.Option(help="The run's own if left out; all takes every clip.")] = None,
    split: Annotated[str, typer.Option(help="test or train.")] = "test",
    views: Annotated[str, typer.Option(help="Views the network is given: all, or numbers joined by commas.")] = "all",
    draws: Annotated[
        int | None, typer.Option(min=1, help="Average over this many sets of frames; the recipe's if left out.")
    ] = None,
    unknown: Annotated[
        str | None,
        typer.Option(
            help="Also measure how well uncertainty detects unknown actions: excluded (train.exclude_classes), or another data set."
        ),
    ] = None,
    adapt: Annotated[
        bool,
        typer.Option("--adapt", help="Align the network to the test clips, one performance after the other (ViTTA)."),
    ] = False,
    json_: JSON = False,
) -> None:
    """Judge a run, also on another data set of the same classes."""
    from dtsf import api
    from dtsf.cli.show import console, evaluation_table, print_json, progress, results

    with progress("evaluate", "groups"):
        result = api.load(run).evaluate(
            cache,
            dataset=dataset,
            protocol=protocol,
            split=split,
            views=views,
            draws=draws,
            unknown=unknown,
            adapt=adapt,
        )
    document = result.summary()
    if json_:
        print_json(_without_predictions(document))
        return
    for part in evaluation_table(document):
        results().print(part)
    console().print("")
    console().print(f"next: dtsf report {run}", soft_wrap=True)


def _lengths(settings: Recipe) -> str:
    """How long a run may be, and in what steps."""
    train = settings.train
    parts = [f"{train.epochs} epochs" if not train.patience else f"at most {train.epochs} epochs"]
    if train.patience:
        parts.append(f"until {train.patience} in a row are no better on the groups held out")
    if train.accumulate > 1:
        parts.append(f"{train.batch_size} groups at once, {train.accumulate} times a step")
    return ", ".join([*parts, f"{train.threads} CPU thread(s)"])


def _note(report: EpochReport) -> str:
    """The numbers of an epoch on one line."""
    held = f"  held out: loss {report.held_out[0]:.3f} accuracy {report.held_out[1]:.2f}" if report.held_out else ""
    part = f"{report.part}  " if report.part else ""
    return f"{part}accuracy {report.accuracy:.2f}  loss {report.loss:.3f}  uncertainty {report.uncertainty:.2f}{held}"


def _init_summary(run: Path) -> str:
    """What became of the tensors of ``--init``, in a line; ``init.json`` in the run folder has their names."""
    report = json.loads((run / "init.json").read_text("utf-8"))
    parts = [f"--init: {len(report['loaded'])} tensors loaded"]
    parts += [f"{name} {how}" for name, how in report["adapted"].items()]
    parts += [f"left: {name} ({why})" for name, why in report["left"].items()]
    return "; ".join([*parts, *(f"random: {name}" for name in report["missing"])])


def _without_predictions(document: dict[str, object]) -> dict[str, object]:
    """Group by group stands in metrics.json; on stdout it would drown the rest."""
    return {key: value for key, value in document.items() if key != "predictions"}
