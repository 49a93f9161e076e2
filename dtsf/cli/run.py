"""Commands around a run: ``dtsf train``, ``dtsf evaluate`` and ``dtsf export``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dtsf.cli.options import CACHE, JSON, with_settings
from dtsf.cli.screen import set_verbosity
from dtsf.cli.show import console, emit, evaluation_table, progress, results, split_table
from dtsf.training.settings import TrainSettings

if TYPE_CHECKING:
    from dtsf.cache.reader import CachedDataset
    from dtsf.training.loop import EpochReport
    from dtsf.training.protocols import Split
    from dtsf.training.recipe import Recipe
    from dtsf.training.train import TrainResult


@with_settings(TrainSettings, overrides=list[str])
def train_command(cache: CACHE = Path("cache"), json_: JSON = False, *, settings: TrainSettings) -> None:
    """Stage 2: train DTSFNet from the cache and evaluate it on the test clips of the protocol."""
    from dtsf import api
    from dtsf.training.distributed import current_world

    if not current_world().first:
        # Of several processes only the first prints messages. Each prints its own errors.
        set_verbosity(quiet=True, verbose=False)
    screen = console()

    def announce(run: Path, data: CachedDataset, split: Split, recipe: Recipe) -> None:
        screen.print(f"{data.info.name}, test: {split.task}")
        screen.print(split_table(split, data.info.view_names))
        bad = {status: count for status, count in data.verdicts.items() if status not in ("ok", "short")}
        for reason, count in {**split.left_out, **bad}.items():
            screen.print(f"left out: {count} clips: {reason}", style="yellow")
        screen.print(f"{_describe_length(recipe)}, run folder {run}")

    with progress("train", "epochs") as update:
        result = api.train(
            cache,
            settings=settings,
            on_recipe=lambda name, why: screen.print(f"recipe {name}: {why}"),
            on_start=announce,
            on_epoch=lambda report: update(report.epoch, report.epochs, _describe_epoch(report)),
        )
    if not current_world().first:
        return
    if settings.init is not None:
        screen.print(_describe_init(result.run), style="cyan")
    document = _without_predictions(result.evaluation.summary())
    extra = {
        "run": str(result.run),
        "seconds": result.seconds,
        "epochs": result.epochs,
        "best_epoch": result.best_epoch,
    }
    emit(extra | document, json_, _show_train, result, document)


def _show_train(result: TrainResult, document: dict[str, Any]) -> None:
    screen = console()
    screen.print("")
    _show_evaluation(document)
    if result.best_epoch is not None:
        screen.print(f"{result.epochs} epochs; epoch {result.best_epoch} was best on the held-out groups")
    screen.print(
        f"trained in {result.seconds:.0f} s; the run is in {result.run}, numbers in metrics.json", soft_wrap=True
    )
    videos = " ".join(f"CAM{k}" for k in range(1, min(3, len(document["view_names"])) + 1))
    screen.print(f"next: dtsf report {result.run}", soft_wrap=True)
    screen.print(f"      dtsf predict {videos} --run {result.run}", soft_wrap=True)


def evaluate_command(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    cache: CACHE = Path("cache"),
    dataset: Annotated[
        str | None, typer.Option(help="Dataset in the cache. Default: the dataset of the training.")
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="Protocol; all takes every clip. Default: the protocol of the training.")
    ] = None,
    split: Annotated[str, typer.Option(help="test or train.")] = "test",
    views: Annotated[str, typer.Option(help="Views that the network gets: all, or numbers joined by commas.")] = "all",
    draws: Annotated[
        int | None, typer.Option(min=1, help="Average over this many sets of frames. Default: as in the recipe.")
    ] = None,
    unknown: Annotated[
        str | None,
        typer.Option(
            help="Also measure how well uncertainty detects unknown actions: excluded (the classes of "
            "train.exclude_classes), or another dataset."
        ),
    ] = None,
    adapt: Annotated[
        bool, typer.Option("--adapt", help="Adapt the network to the test clips, group by group (ViTTA).")
    ] = False,
    json_: JSON = False,
) -> None:
    """Evaluate a run on its test split or on another dataset with the same classes."""
    from dtsf import api

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
    document = _without_predictions(result.summary())
    emit(document, json_, _show_evaluation, document)
    if not json_:
        console().print(f"next: dtsf report {run}", soft_wrap=True)


def _show_evaluation(document: dict[str, Any]) -> None:
    for part in evaluation_table(document):
        results().print(part)
    console().print("")


def export_command(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    onnx: Annotated[Path, typer.Option(help="File to write.")],
    views: Annotated[
        int | None, typer.Option(min=1, help="Number of videos per performance. Default: all views of the dataset.")
    ] = None,
    json_: JSON = False,
) -> None:
    """Write the network of a run as ONNX, for ONNX Runtime or dtsf predict --onnx. The batch size is free, views and frames are
    fixed.
    """
    from dtsf import api

    if not json_:
        console().print(f"exporting {run} to ONNX; unrolling the scan can take a minute")
    made = api.export(run, onnx, views=views)
    size = onnx.stat().st_size

    def show() -> None:
        console().print(f"{onnx}: {size / 1e6:.1f} MB, any number of groups, {made.views} views x {made.frames} frames")
        videos = " ".join(f"CAM{v + 1}" for v in range(made.views))
        console().print(f"next: dtsf predict {videos} --onnx {onnx}", soft_wrap=True)

    emit({"onnx": str(onnx), "views": made.views, "frames": made.frames, "bytes": size}, json_, show)


def _describe_length(settings: Recipe) -> str:
    """Return the length of a training and the size of its steps."""
    train = settings.train
    parts = [f"at most {train.epochs} epochs" if train.patience else f"{train.epochs} epochs"]
    if train.patience:
        parts.append(f"stop after {train.patience} without improvement on the held-out groups")
    if train.accumulate > 1:
        parts.append(f"{train.batch_size} groups at once, {train.accumulate} times a step")
    return ", ".join([*parts, f"{train.threads} CPU thread(s)"])


def _describe_epoch(report: EpochReport) -> str:
    """Return the numbers of an epoch on one line."""
    held_out = ""
    if report.held_out:
        held_out = f"  held out: loss {report.held_out[0]:.3f} accuracy {report.held_out[1]:.2f}"
    part = f"{report.part}  " if report.part else ""
    numbers = f"accuracy {report.accuracy:.2f}  loss {report.loss:.3f}  uncertainty {report.uncertainty:.2f}"
    return f"{part}{numbers}{held_out}"


def _describe_init(run: Path) -> str:
    """Return the use of the tensors of ``--init`` on one line. ``init.json`` in the run folder has all names."""
    report = json.loads((run / "init.json").read_text("utf-8"))
    parts = [f"--init: {len(report['loaded'])} tensors loaded"]
    parts += [f"{name} {how}" for name, how in report["adapted"].items()]
    parts += [f"left: {name} ({why})" for name, why in report["left"].items()]
    return "; ".join([*parts, *(f"random: {name}" for name in report["missing"])])


def _without_predictions(document: dict[str, Any]) -> dict[str, Any]:
    """Leave out the predictions of single groups: ``metrics.json`` has them."""
    return {key: value for key, value in document.items() if key != "predictions"}
