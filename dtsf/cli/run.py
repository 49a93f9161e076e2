"""Commands around a run: ``dtsf train``, ``dtsf evaluate`` and ``dtsf export``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from dtsf.cli.options import CACHE, JSON, with_settings
from dtsf.cli.screen import set_verbosity
from dtsf.cli.show import console, emit, evaluation_table, progress, results, split_table
from dtsf.training.settings import TrainSettings

if TYPE_CHECKING:
    from dtsf.cache.reader import CachedDataset
    from dtsf.training.evaluate import Evaluation
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
        train = recipe.train
        stop = f", stop after {train.patience} without improvement on the held-out groups" if train.patience else ""
        groups = f", {train.batch_size} groups at once, {train.accumulate} times a step" if train.accumulate > 1 else ""
        screen.print(f"{train.epochs} epochs{stop}{groups}, {train.threads} CPU thread(s), run folder {run}")

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
    extra = {
        "run": str(result.run),
        "seconds": result.seconds,
        "epochs": result.epochs,
        "best_epoch": result.best_epoch,
    }
    emit(extra | _document(result.evaluation), json_, _show_train, result)
    if settings.init is not None:
        report = json.loads((result.run / "init.json").read_text("utf-8"))
        adapted = [f"{name} {how}" for name, how in report["adapted"].items()]
        left = [f"left: {name} ({why})" for name, why in report["left"].items()]
        random = [f"random: {name}" for name in report["missing"]]
        loaded = f"--init: {len(report['loaded'])} tensors loaded"
        screen.print("; ".join([loaded, *adapted, *left, *random]), style="cyan")


def _describe_epoch(report: EpochReport) -> str:
    part = f"{report.part}  " if report.part else ""
    numbers = f"accuracy {report.accuracy:.2f}  loss {report.loss:.3f}  uncertainty {report.uncertainty:.2f}"
    if report.held_out:
        numbers += f"  held out: loss {report.held_out[0]:.3f} accuracy {report.held_out[1]:.2f}"
    return part + numbers


def _show_train(result: TrainResult) -> None:
    screen, run = console(), result.run
    screen.print("")
    _show_evaluation(result.evaluation)
    if result.best_epoch is not None:
        screen.print(f"{result.epochs} epochs; epoch {result.best_epoch} was best on the held-out groups")
    screen.print(f"trained in {result.seconds:.0f} s; the run is in {run}, numbers in metrics.json", soft_wrap=True)
    videos = " ".join(f"CAM{k}" for k in range(1, min(3, len(result.evaluation.view_names)) + 1))
    screen.print(f"next: dtsf report {run}", soft_wrap=True)
    screen.print(f"      dtsf predict {videos} --run {run}", soft_wrap=True)


def evaluate_command(
    run: Annotated[Path, Argument(help="Run folder.")],
    cache: CACHE = Path("cache"),
    dataset: Annotated[str | None, Option(help="Dataset in the cache. Default: as in training.")] = None,
    protocol: Annotated[str | None, Option(help="Protocol; all takes every clip. Default: as in training.")] = None,
    split: Annotated[str, Option(help="test or train.")] = "test",
    views: Annotated[str, Option(help="Views that the network gets: all, or numbers joined by commas.")] = "all",
    draws: Annotated[int | None, Option(min=1, help="Number of draws of frames. Default: as in the recipe.")] = None,
    unknown: Annotated[
        str | None,
        Option(help="Also test unknown actions: excluded (the classes of train.exclude_classes), or another dataset."),
    ] = None,
    adapt: Annotated[bool, Option("--adapt", help="Adapt the network to the test clips (ViTTA).")] = False,
    json_: JSON = False,
) -> None:
    """Evaluate a run on its test split or on another dataset with the same classes."""
    from dtsf import api

    options: dict[str, Any] = {"dataset": dataset, "protocol": protocol, "split": split, "views": views, "draws": draws}
    with progress("evaluate", "groups"):
        result = api.load(run).evaluate(cache, **options, unknown=unknown, adapt=adapt)
    emit(_document(result), json_, _show_evaluation, result)
    if not json_:
        console().print(f"next: dtsf report {run}", soft_wrap=True)


def _document(evaluation: Evaluation) -> dict[str, Any]:
    """Return the numbers without the predictions of single groups: ``metrics.json`` has them."""
    return {key: value for key, value in evaluation.summary().items() if key != "predictions"}


def _show_evaluation(evaluation: Evaluation) -> None:
    for part in evaluation_table(evaluation.summary()):
        results().print(part)
    console().print("")


def export_command(
    run: Annotated[Path, Argument(help="Run folder.")],
    onnx: Annotated[Path, Option(help="File to write.")],
    views: Annotated[int | None, Option(min=1, help="Videos per performance. Default: all views.")] = None,
    json_: JSON = False,
) -> None:
    """Write the network of a run as ONNX, for ONNX Runtime or dtsf predict --onnx. Only the batch size is free."""
    from dtsf import api

    if not json_:
        console().print(f"exporting {run} to ONNX; unrolling the scan can take a minute")
    made = api.export(run, onnx, views=views)
    size = onnx.stat().st_size

    def show() -> None:
        shape = f"any number of groups, {made.views} views x {made.frames} frames"
        console().print(f"{onnx}: {size / 1e6:.1f} MB, {shape}")
        videos = " ".join(f"CAM{v + 1}" for v in range(made.views))
        console().print(f"next: dtsf predict {videos} --onnx {onnx}", soft_wrap=True)

    emit({"onnx": str(onnx), "views": made.views, "frames": made.frames, "bytes": size}, json_, show)
