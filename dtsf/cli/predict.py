"""dtsf predict: one performance, or a folder that receives them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dtsf.api import Prediction, Run
    from dtsf.pipeline.watch import Performance, Watch


def predict_command(
    videos: Annotated[list[Path] | None, typer.Argument(help="Video files of one performance, one a view.")] = None,
    run: Annotated[Path | None, typer.Option(help="Run folder.")] = None,
    onnx: Annotated[Path | None, typer.Option(help="In place of --run: a file of dtsf export.")] = None,
    views: Annotated[
        str | None,
        typer.Option(
            help="Which cameras the videos are of: 2,3. Name them where there are fewer than in training: only then all "
            "cameras as one are asked."
        ),
    ] = None,
    video: Annotated[
        Path | None,
        typer.Option(help="Also write a film (.mp4, .mkv, .mov): the views side by side with the prediction."),
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
    from dtsf.cli.show import console, print_json, progress, words
    from dtsf.errors import ConfigError, FilmError

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
    failed: FilmError | None = None
    trained = api.load(run) if run is not None else None
    with progress("predict", "videos"):
        try:
            result = (
                trained.predict(given, film=video, views=views, encoder_weights=encoder_weights)
                if trained is not None
                else api.predict_onnx(cast("Path", onnx), given, encoder_weights=encoder_weights)
            )
        except FilmError as error:
            # The prediction is shown even if its film failed.
            failed, result = error, cast("Prediction", error.prediction)
    if json_:
        print_json(result.model_dump(mode="json"))
    else:
        _show(result, given)
    n_cameras = len(trained.state.info.view_names) if trained is not None else len(given)
    if len(given) > n_cameras:
        note = (
            f"{len(given)} videos are taken as so many cameras of one performance; training had {n_cameras}. Where they are "
            "several performances: a subfolder each, and dtsf predict --watch FOLDER --once"
        )
        console().print(words((note, "yellow")), soft_wrap=True)
    if failed is not None:
        raise failed
    if video is not None and not json_:
        console().print(f"film: {video}", soft_wrap=True)


def _show(result: Prediction, videos: Sequence[Path]) -> None:
    from dtsf.cli.show import results, table, words

    screen = results()
    prediction = f"  probability {result.probability:.3f}  uncertainty {result.uncertainty:.3f}"
    screen.print(words((result.label, "bold green"), prediction))
    screen.print("")
    best = sorted(result.probabilities.items(), key=lambda item: -item[1])[:5]
    screen.print(table("", ("class", "probability"), [(name, f"{value:.3f}") for name, value in best]))
    weights = zip(videos, result.view_weights, strict=True)
    screen.print("")
    screen.print(table("", ("video", "weight"), [(video, f"{weight:.3f}") for video, weight in weights]))


def _watch(run: Run, folder: Path, settle: float, weights: Path | None, *, once: bool, json_: bool) -> None:
    """Answer what arrives. Ctrl-C, or SIGTERM from whatever keeps services, is its normal end."""
    import signal

    from dtsf.cli.show import console
    from dtsf.pipeline.watch import Watch

    screen, counts = console(), {"named": 0, "unusable": 0}
    # Both set: a shell starts what it puts in the background with SIGINT ignored.
    ends = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.default_int_handler) for number in ends]
    try:
        screen.print(f"watching {folder}: a subfolder a performance; Ctrl-C ends", soft_wrap=True)
        watch = Watch(folder, settle=settle, once=once, notify=_notice)
        _answer_all(run, watch, weights, json_, counts)
    except KeyboardInterrupt:
        screen.print("")
    finally:
        for number, handler in zip(ends, before, strict=True):
            signal.signal(number, handler)
    screen.print(f"stopped: {counts['named']} performances named, {counts['unusable']} unusable")


def _notice(text: str) -> None:
    from dtsf.cli.show import results, words

    results().print(words((text, "yellow")), soft_wrap=True)


def _answer_all(run: Run, watch: Watch, weights: Path | None, json_: bool, counts: dict[str, int]) -> None:
    from dtsf.cli.show import print_json, results, words
    from dtsf.errors import DtsfError

    refused = False
    for arrival in watch:
        name = arrival.folder.name
        document = _ask(run, arrival, weights, first=not counts["named"])
        counts["unusable" if "error" in document else "named"] += 1
        watch.write_prediction(arrival, document)
        if not json_:
            if "error" in document:
                line = words(f"{name}  ", ("unusable: ", "red"), document["error"])
            else:
                numbers = f"  probability {document['probability']:.3f}  uncertainty {document['uncertainty']:.3f}"
                line = words(f"{name}  ", (document["label"], "bold green"), f"{numbers}  {len(arrival.videos)} views")
            results().print(line, soft_wrap=True)
            for message in arrival.ignored:
                _notice(f"{name}: {message}")
            continue
        try:
            print_json({"performance": name, **document})
        except DtsfError as error:
            # Answers lie beside the videos all the same.
            if not refused:
                _notice(str(error))
            refused = True


def _ask(run: Run, arrival: Performance, weights: Path | None, *, first: bool) -> dict[str, Any]:
    """The prediction of a performance, or the error of one that cannot be used: one must not stop the watcher."""
    from dtsf.errors import ConfigError, DtsfError

    ignored = {"ignored": list(arrival.ignored)} if arrival.ignored else {}
    if arrival.problem:
        return {"error": arrival.problem, **ignored}
    try:
        return {**run.predict(arrival.videos, encoder_weights=weights).model_dump(mode="json"), **ignored}
    except ConfigError as error:
        # Before anything was named, it is the run that does not fit this machine.
        if first:
            raise
        return {"error": str(error), **ignored}
    except DtsfError as error:
        return {"error": str(error), **ignored}
    except Exception as error:  # noqa: BLE001  a defect of ours costs this performance, not the service
        return {"error": f"internal error: {type(error).__name__}: {error}", **ignored}
