"""dtsf predict: one performance, or a folder that receives them."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  typer reads it when the command is called
from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dtsf.api import Prediction, Run

__all__ = ["predict_command"]


def predict_command(
    videos: Annotated[list[Path] | None, typer.Argument(help="Video files of one performance, one a view.")] = None,
    run: Annotated[Path | None, typer.Option(help="Run folder.")] = None,
    onnx: Annotated[Path | None, typer.Option(help="In place of --run: a file of dtsf export.")] = None,
    views: Annotated[
        str | None,
        typer.Option(help="Which cameras the videos are of: 2,3. The first ones, in order, if left out."),
    ] = None,
    video: Annotated[
        Path | None,
        typer.Option(help="Also write a film (.mp4, .mkv, .mov): the views side by side with what is said of them."),
    ] = None,
    encoder_weights: Annotated[
        Path | None,
        typer.Option(
            help="File of the encoder's weights, where the run was trained with some of one's own.", metavar="FILE"
        ),
    ] = None,
    watch: Annotated[
        Path | None,
        typer.Option(
            help="A folder that receives performances, a subfolder each: answer every one as it becomes complete, with "
            "prediction.json beside its videos, until Ctrl-C."
        ),
    ] = None,
    settle: Annotated[
        float, typer.Option(min=0.0, help="With --watch: seconds for which a performance must not have changed.")
    ] = 3.0,
    once: Annotated[bool, typer.Option("--once", help="With --watch: stop when nothing is waiting any more.")] = False,
    json_: Annotated[
        bool, typer.Option("--json", help="One JSON object on stdout; with --watch one a line for each performance.")
    ] = False,
) -> None:
    """Name the action that the given videos show, with its uncertainty and the weight of each view."""
    from dtsf import api
    from dtsf.cli.show import console, print_json, progress
    from dtsf.errors import ConfigError

    if (run is None) == (onnx is None):
        raise ConfigError("dtsf predict VIDEO... needs --run RUN or --onnx FILE, one of them")
    if run is None and (watch is not None or video is not None or views is not None):
        raise ConfigError("--watch, --video and --views need --run RUN")
    if watch is not None and run is not None:
        if videos or video is not None or views is not None:
            raise ConfigError(
                "--watch takes its videos from the folder: name no videos beside it, and no --video or --views"
            )
        _watch(api.load(run), watch, settle, encoder_weights, once=once, json_=json_)
        return
    given = videos or []
    with progress("predict", "videos"):
        result = (
            api.load(run).predict(given, film=video, views=views, encoder_weights=encoder_weights)
            if run is not None
            else api.predict_onnx(cast("Path", onnx), given, encoder_weights=encoder_weights)
        )
    if json_:
        print_json(result.model_dump(mode="json"))
        return
    _show(result, given)
    if video is not None:
        console().print(f"film: {video}", markup=False, highlight=False, soft_wrap=True)


def _show(result: Prediction, videos: Sequence[Path]) -> None:
    from rich.text import Text

    from dtsf.cli.show import results, table

    screen = results()
    said = f"  probability {result.probability:.3f}  uncertainty {result.uncertainty:.3f}"
    screen.print(Text.assemble((result.label, "bold green"), said), highlight=False)
    best = sorted(result.probabilities.items(), key=lambda item: -item[1])[:5]
    screen.print(table("classes", ("class", "probability"), [(name, f"{value:.3f}") for name, value in best]))
    weights = zip(videos, result.view_weights, strict=True)
    screen.print(table("views", ("video", "weight"), [(video, f"{weight:.3f}") for video, weight in weights]))


def _watch(run: Run, folder: Path, settle: float, weights: Path | None, *, once: bool, json_: bool) -> None:
    """Answer what arrives. Ctrl-C, or SIGTERM from whatever keeps services, is its normal end."""
    import signal

    from dtsf.cli.show import console

    screen, counts = console(), {"named": 0, "unusable": 0}
    # Both set: a shell starts what it puts in the background with SIGINT ignored.
    ends = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.default_int_handler) for number in ends]
    try:
        screen.print(f"watching {folder}: a subfolder a performance; Ctrl-C ends", markup=False, soft_wrap=True)
        _answer_all(run, folder, settle, weights, once, json_, counts)
    except KeyboardInterrupt:
        screen.print("")
    finally:
        for number, handler in zip(ends, before, strict=True):
            signal.signal(number, handler)
    screen.print(f"stopped: {counts['named']} performances named, {counts['unusable']} unusable", highlight=False)


def _answer_all(
    run: Run, folder: Path, settle: float, weights: Path | None, once: bool, json_: bool, counts: dict[str, int]
) -> None:
    from rich.text import Text

    from dtsf.cli.show import print_json, results
    from dtsf.errors import DataError, VideoError
    from dtsf.pipeline.arrivals import answer, watch_folder

    for arrival in watch_folder(folder, settle=settle, once=once):
        name = arrival.folder.name
        try:
            document = run.predict(arrival.videos, encoder_weights=weights).model_dump(mode="json")
        except (VideoError, DataError) as error:
            # One bad recording must not stop the watch; it is tried again when its files change.
            document, words = {"error": str(error)}, Text.assemble(f"{name}  ", ("unusable: ", "red"), str(error))
            counts["unusable"] += 1
        else:
            words = Text.assemble(
                f"{name}  ",
                (str(document["label"]), "bold green"),
                f"  probability {document['probability']:.3f}  uncertainty {document['uncertainty']:.3f}  "
                f"{len(arrival.videos)} views",
            )
            counts["named"] += 1
        answer(arrival, document)
        if json_:
            print_json({"performance": name, **document})
        else:
            results().print(words, highlight=False, soft_wrap=True)
