"""Commands that make a run and show it: train, evaluate, export, report; and ``dtsf doctor``."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Exit, Option

from dtsf.cli.evaluation import evaluation_lines
from dtsf.cli.options import CACHE, with_settings
from dtsf.cli.recordings import show_evaluation
from dtsf.cli.screen import console, emit, progress, set_verbosity, styled, table
from dtsf.errors import ConfigError
from dtsf.names import counted
from dtsf.recordings.settings import MarkSettings, TimelineSettings
from dtsf.training.settings import TrainSettings

if TYPE_CHECKING:
    from dtsf.cache.reader import CachedDataset
    from dtsf.training.loop import EpochReport
    from dtsf.training.protocols import Split
    from dtsf.training.recipe import Recipe


@with_settings(TrainSettings, overrides=list[str])
def train_command(cache: CACHE = Path("cache"), *, settings: TrainSettings) -> None:
    """Stage 2: train DTSFNet from the cache and evaluate it on the test clips of the protocol."""
    if os.environ.get("RANK", "0") == "0":  # torchrun's; what reads all of them needs PyTorch
        console().print("loading PyTorch")
    from dtsf import api
    from dtsf.training.distributed import current_world
    from dtsf.training.protocols import subjects_of

    if not current_world().first:
        # Of several processes only the first prints messages. Each prints its own errors.
        set_verbosity(quiet=True, verbose=False)
    say = console().print

    def announce(run: Path, data: CachedDataset, split: Split, recipe: Recipe) -> None:
        say(f"{data.info.name}, test: {split.task}")
        rows = [("", "groups", "clips", "views (clips)", "subjects", "setups")]
        for name, clips in {"training": split.train, "held out": split.held_out, "test": split.test}.items():
            if clips:
                groups, counts = {clip.group for clip in clips}, sorted(Counter(clip.view for clip in clips).items())
                views = ", ".join(f"{data.info.view_names[view - 1]} ({count})" for view, count in counts)
                setups = ", ".join(map(str, sorted({clip.setup for clip in clips if clip.setup is not None})))
                rows.append((name, str(len(groups)), str(len(clips)), views, ", ".join(subjects_of(clips)), setups))
        # Columns without values are left out.
        heads, *lines = zip(*(column for column in zip(*rows, strict=True) if any(column[1:])), strict=True)
        say(table("training and test", heads, lines))
        bad = {status: count for status, count in data.verdicts.items() if status not in ("ok", "short")}
        for reason, n in {**split.left_out, **bad}.items():
            say(f"left out: {counted(n, 'clip')}: {reason}", style="yellow")
        for note in (*split.notes, *data.notes):
            say(f"note: {note}", style="yellow")
        train = recipe.train
        stop = f", stop after {train.patience} without improvement on the held-out groups" if train.patience else ""
        batch = f", {train.batch_size} groups at once, {train.accumulate} times a step" if train.accumulate > 1 else ""
        work = f"{counted(train.epochs, 'epoch')}{stop}{batch}, {counted(train.threads, 'CPU thread')}"
        say(f"{work}, run folder {run}")

    with progress("train", "epochs") as update:

        def on_epoch(report: EpochReport) -> None:
            note = f"{report.part}  " if report.part else ""
            note += f"accuracy {report.accuracy:.2f}  loss {report.loss:.3f}  uncertainty {report.uncertainty:.2f}"
            if report.held_out:
                note += f"  held out: loss {report.held_out[0]:.3f} accuracy {report.held_out[1]:.2f}"
            update(report.done, report.total, note)

        result = api.train(
            cache,
            settings=settings,
            on_recipe=lambda name, why: say(f"recipe {name}: {why}"),
            on_start=announce,
            on_begin=lambda text: update(0, 0, text),
            on_epoch=on_epoch,
        )
    if not current_world().first:
        return
    document = result.evaluation.summary()
    del document["predictions"]  # metrics.json has them
    extra = {name: getattr(result, name) for name in ("seconds", "epochs", "best_epoch")}
    best = f"{result.epochs} epochs; epoch {result.best_epoch} was best on the held-out groups"
    videos = " ".join(f"CAM{k}" for k in range(1, min(3, len(result.evaluation.view_names)) + 1))
    hints = [
        "",
        *([best] if result.best_epoch is not None else []),
        f"trained in {result.seconds:.0f} s; the run is in {result.run}, numbers in metrics.json",
        f"next: dtsf report {result.run}",
        f"      dtsf predict {videos} --run {result.run}",
    ]
    emit({"run": str(result.run)} | extra | document, evaluation_lines(document), hints)
    if settings.init is not None:
        report = json.loads((result.run / "init.json").read_text("utf-8"))
        say(f"--init: {report['summary']}", style="cyan")


MARK_HELP = {name: f"With --recordings: {one.description}" for name, one in MarkSettings.model_fields.items()}
RECORDINGS_HELP = (
    "Evaluate timelines: a table of recordings with marks. Only recordings of people who did not train count."
)


def evaluate_command(
    run: Annotated[Path, Argument(help="Run folder.")],
    cache: CACHE = Path("cache"),
    dataset: Annotated[str | None, Option(help="Dataset in the cache. Default: as in training.")] = None,
    protocol: Annotated[str | None, Option(help="Protocol; all takes every clip. Default: as in training.")] = None,
    split: Annotated[str, Option(help="test or train.")] = "test",
    views: Annotated[
        str, Option(help="Views that the network gets: all, or numbers or names joined by commas.")
    ] = "all",
    draws: Annotated[int | None, Option(min=1, help="Number of draws of frames. Default: as in the recipe.")] = None,
    unknown: Annotated[
        str | None,
        Option(help="Also test unknown actions: excluded (the classes of train.exclude_classes), or another dataset."),
    ] = None,
    adapt: Annotated[bool, Option("--adapt", help="Adapt the network to the test clips (ViTTA).")] = False,
    probes: Annotated[
        bool, Option("--probes", help="Also probe what the network reads: other orders, backgrounds, fewer views.")
    ] = False,
    recordings: Annotated[Path | None, Option(help=RECORDINGS_HELP)] = None,
    out: Annotated[
        Path | None, Option(help="With --recordings: folder of the timelines. Default: RUN/timeline.")
    ] = None,
    allow_leak: Annotated[bool, Option("--allow-leak", help="With --recordings: also of people who trained.")] = False,
    tier: Annotated[list[str] | None, Option(help=MARK_HELP["tier"])] = None,
    fps: Annotated[float | None, Option(min=0.01, help=MARK_HELP["fps"])] = None,
) -> None:
    """Evaluate a run on its test split, on another dataset with the same classes, or on recordings with marks."""
    from dtsf import api

    if recordings is None and (out is not None or allow_leak or tier or fps):
        raise ConfigError("--out, --allow-leak, --tier and --fps need --recordings FILE")
    if recordings is not None:
        given = (dataset, protocol, unknown, draws, split != "test", views != "all", adapt, probes)
        if any(value not in (None, False) for value in given):
            raise ConfigError(
                "--recordings has no clips of a cache: of the other options, it takes only --out, --allow-leak, --tier and --fps"
            )
        settings = TimelineSettings.of(tier=tier or (), fps=fps)
        show_evaluation(run, recordings, out or run / "timeline", settings, allow_leak=allow_leak)
        return
    options: dict[str, Any] = {"dataset": dataset, "protocol": protocol, "split": split, "views": views, "draws": draws}
    with progress("evaluate", "groups"):
        document = api.load(run).evaluate(cache, **options, unknown=unknown, adapt=adapt, probes=probes).summary()
    del document["predictions"]
    emit(document, evaluation_lines(document), ["", f"next: dtsf report {run}"])


def export_command(
    run: Annotated[Path, Argument(help="Run folder.")],
    onnx: Annotated[Path, Option(help="File to write.")],
    views: Annotated[int | None, Option(min=1, help="Videos per performance. Default: all views.")] = None,
    encoder: Annotated[Path | None, Option(help="Also write the frame encoder to this file.")] = None,
    encoder_weights: Annotated[
        Path | None, Option(help="With --encoder: file of custom encoder weights.", metavar="FILE")
    ] = None,
) -> None:
    """Write the network of a run as ONNX, for ONNX Runtime or dtsf predict --onnx. Only the batch size is free."""
    from dtsf import api

    if encoder is None and encoder_weights is not None:
        raise ConfigError(f"--encoder-weights {encoder_weights} needs --encoder FILE")
    with progress("export", "steps") as update:
        made = api.export(run, onnx, views=views, encoder=encoder, encoder_weights=encoder_weights, on_progress=update)
    spec, videos = made.spec, " ".join(f"CAM{v + 1}" for v in range(made.views))
    hints = [
        f"{onnx}: {onnx.stat().st_size / 1e6:.1f} MB, {made.views} views x {spec.frames} frames, any number of groups"
    ]
    if encoder is not None:
        hints.append(f"{encoder}: {encoder.stat().st_size / 1e6:.1f} MB, pictures of {spec.size} x {spec.size} pixels")
    document = {"onnx": str(onnx), "views": made.views, "frames": spec.frames, "bytes": onnx.stat().st_size}
    document |= {"encoder": str(encoder)} if encoder is not None else {}
    emit(document, (), [*hints, f"next: dtsf predict {videos} --onnx {onnx}"])


def report_command(
    runs: Annotated[list[Path], Argument(help="Run folder; several with --compare.")],
    compare: Annotated[bool, Option("--compare", help="Write one page that compares several runs.")] = False,
    cache: Annotated[Path | None, Option(help="Folder of the cache. Default: the cache of the training.")] = None,
    out: Annotated[
        Path | None, Option(help="File to write. Default: RUN/report.html, or ./compare.html with --compare.")
    ] = None,
    samples: Annotated[int, Option(min=0, help="Performances of each kind in the gallery.")] = 6,
) -> None:
    """Write an HTML report of a run: curves, classes, calibration, bias probes, pictures."""
    if compare:
        from dtsf.report.compare_page import compare_runs

        write_page("report", "steps", compare_runs, runs, out or Path("compare.html"))
    elif len(runs) > 1:
        raise ConfigError(f"{len(runs)} runs given: dtsf report --compare RUN RUN..., or one run at a time")
    else:
        from dtsf.report.run_page import report_run

        write_page("report", "steps", report_run, runs[0], cache=cache, out=out, samples=samples)


def write_page(title: str, unit: str, write: Callable[..., Path], *arguments: Any, **options: Any) -> None:
    """Write a page with a progress bar, and print its file and size."""
    begin = time.monotonic()
    with progress(title, unit) as update:
        file = write(*arguments, **options, on_step=update)
    size = file.stat().st_size
    document = {"report": str(file), "bytes": size, "seconds": time.monotonic() - begin}
    emit(document, [f"wrote {file} ({size / 1e3:,.0f} kB)"])


def doctor_command(
    cache: Annotated[Path, Option(help="Folder of the cache, to check the space on its disk.")] = Path("cache"),
) -> None:
    """Check this machine: Python, CUDA, scan, codecs, encoder, disk, and both stages on a small example."""
    from dtsf.doctor import examine

    with progress("doctor", "checks") as update:
        found = examine(cache, on_step=update)
    summary = "everything required is available" if found.ok else "a required part is missing"
    rows = [
        (c.name, "ok" if c.ok else "missing" if c.needed else "absent", c.found.removeprefix("not available: "))
        for c in found.checks
    ]
    help_ = [styled((f"{check.name}: ", "bold"), check.how) for check in found.checks if check.how]
    head = styled((summary, "bold green" if found.ok else "bold red"))
    emit(found.summary(), [head, table("", ("", "", ""), rows), *help_])
    if not found.ok:
        raise Exit(2)
