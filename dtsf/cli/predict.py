"""``dtsf predict``: one performance, or a folder that receives performances."""

from __future__ import annotations

import heapq
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from typer import Argument, Option

from dtsf.cli.screen import Lines, console, emit, progress, results, styled, table
from dtsf.errors import ConfigError, DataError, DtsfError, FilmError
from dtsf.names import counted

if TYPE_CHECKING:
    from rich.text import Text

    from dtsf.api import Prediction, Run
    from dtsf.pipeline.watch import Performance
    from dtsf.training.held_out import HeldOut

VIEWS_HELP = (
    "View of each video, for example 2,3 or left,right. Default: the camera whose name is in the name of the file or of its "
    "folder, else the remaining cameras in order. With --watch: in the order of the file names."
)
START_HELP = "Start of the part to use, in seconds of the file or h:mm:ss; one for all videos, or one for each (repeat the option)."
END_HELP = "End of the part to use, as --start. Default: the end of the file."
OFFSET_HELP = (
    "Seconds that a file begins after time zero of the performance, one for all videos or one for each. For a run that was "
    "trained with --align group. Default: as in the training clips, if they are the same for each view."
)
FPS_HELP = "Frame rate of a frame folder, for --start, --end and --offset; one for all, or one for each."
REGION_HELP = (
    "Part of the picture, as for preprocess: one for all videos, or one for each (repeat the option). "
    "Default: the region of the view in the training clips."
)
IGNORE_HELP = (
    "Parts of the picture in which no movement is searched, as for preprocess; one for all videos, or one for each."
)
WEIGHTS_HELP = "Encoder weights file. Required if the run was trained with custom encoder weights."
WATCH_HELP = (
    "Folder that receives performances, one subfolder each. Predict each complete one, write prediction.json beside its "
    "videos, and run until Ctrl-C."
)
SET_HELP = (
    "Also print the classes that hold the true one in this share of performances like those of the held-out people, for "
    "example 0.9. The promise says on how many people it rests."
)
AS_NEEDED_HELP = (
    "Open the camera that is most often right first, and the next one only while the uncertainty is above this. auto: the "
    "uncertainty that costs at most half a point of accuracy on held-out people."
)
LOOKED = 20  # performances that --watch names at its end
BY = {"views": "--views", "name": "its name", "folder": "its folder", "order": "the order"}
FILM_HELP = "Film to write (.mp4, .mkv, .mov): all views with the prediction."


def predict_command(
    videos: Annotated[list[Path] | None, Argument(help="Video files of one performance, one per view.")] = None,
    run: Annotated[Path | None, Option(help="Run folder.")] = None,
    onnx: Annotated[Path | None, Option(help="File of dtsf export, instead of --run.")] = None,
    views: Annotated[str | None, Option(help=VIEWS_HELP)] = None,
    video: Annotated[Path | None, Option(help=FILM_HELP)] = None,
    region: Annotated[list[str] | None, Option(help=REGION_HELP)] = None,
    ignore: Annotated[list[str] | None, Option(help=IGNORE_HELP)] = None,
    start: Annotated[list[str] | None, Option(help=START_HELP)] = None,
    end: Annotated[list[str] | None, Option(help=END_HELP)] = None,
    offset: Annotated[list[str] | None, Option(help=OFFSET_HELP)] = None,
    fps: Annotated[list[str] | None, Option(help=FPS_HELP)] = None,
    encoder_weights: Annotated[Path | None, Option(help=WEIGHTS_HELP, metavar="FILE")] = None,
    deadline: Annotated[float, Option(min=0.01, max=86400, help="Maximum seconds to decode one video.")] = 60.0,
    set_: Annotated[float | None, Option("--set", help=SET_HELP, metavar="SHARE")] = None,
    as_needed: Annotated[str | None, Option(help=AS_NEEDED_HELP, metavar="U|auto")] = None,
    watch: Annotated[Path | None, Option(help=WATCH_HELP)] = None,
    settle: Annotated[float, Option(min=0.0, help="With --watch: seconds without change until it is complete.")] = 3.0,
    once: Annotated[bool, Option("--once", help="With --watch: stop when no performance is left.")] = False,
) -> None:
    """Predict the action in the given videos, with its uncertainty and the weight of each view."""
    from dtsf import api

    if (run is None) == (onnx is None):
        raise ConfigError("dtsf predict VIDEO... needs either --run RUN or --onnx FILE")
    if run is None and (watch is not None or video is not None):
        raise ConfigError("--watch and --video need --run RUN")
    if run is None and (set_ is not None or as_needed is not None):
        raise ConfigError("--set and --as-needed need --run RUN: an exported file has no answers of held-out people")
    if watch is not None and (videos or video is not None):
        raise ConfigError("--watch takes the videos from its folder: give no videos and no --video")
    given = videos or []
    failed: FilmError | None = None
    options: dict[str, Any] = {
        "views": views,
        "encoder_weights": encoder_weights,
        "region": region or (),
        "ignore": ignore or (),
    }
    options |= {"start": start, "end": end, "offset": offset, "fps": fps, "deadline": deadline}
    if run is not None:
        options |= {"set": set_, "as_needed": as_needed}
    trained = api.load(run) if run is not None else None
    if trained is not None and as_needed is not None and (plan := trained.question(set_, as_needed).plan):
        console().print(str(plan), soft_wrap=True)
    if watch is not None and trained is not None:
        _watch(trained, watch, settle, options, once=once)
        return
    with progress("predict", "videos"):
        try:
            if trained is not None:
                result = trained.predict(given, film=video, **options)
            else:
                result = api.predict_onnx(cast("Path", onnx), given, **options)
        except FilmError as error:
            # The prediction is printed even if its film failed.
            failed, result = error, cast("Prediction", error.prediction)
    best = sorted(result.probabilities.items(), key=lambda item: -item[1])[:5]
    classes = [(name, f"{value:.3f}") for name, value in best]
    cameras = [
        (
            str(path),
            name or "(not in the training)",
            BY[by],
            f"{weight:.3f}" if (name or path.name) in result.opened else "not opened",
        )
        for path, name, by, weight in zip(given, result.views, result.views_by, result.view_weights, strict=True)
    ]
    hints = [f"film: {video}"] if video is not None and failed is None else []
    heads = ("class", "probability"), ("video", "camera", "found by", "weight")
    emit(
        result,
        [
            _headline(result.model_dump()),
            *_promise_lines(result, trained.question(set_, as_needed).held_out if trained is not None else None),
            "",
            table("", heads[0], classes),
            "",
            table("", heads[1], cameras),
        ],
        hints,
    )
    for note in result.notes:
        console().print(note, style="yellow", soft_wrap=True)
    n_views = len(trained.state.info.view_names) if trained is not None else len(given)
    if len(given) > n_views:
        note = f"Treating {len(given)} videos as {len(given)} cameras of one performance, but training had {n_views} cameras. "
        note += "For several performances, use one subfolder each and --watch FOLDER --once."
        console().print(note, style="yellow", soft_wrap=True)
    if failed is not None:
        raise failed


def _headline(document: dict[str, Any], *before: str) -> Text:
    numbers = f"  probability {document['probability']:.3f}  uncertainty {document['uncertainty']:.3f}"
    look = ("  look at it", "bold yellow") if document["look"] else ""
    return styled(*before, (document["label"], "bold green"), numbers, look)


def _promise_lines(result: Prediction, held_out: HeldOut | None) -> Lines:
    """Yield the set, and the place of the answer among those for held-out groups."""
    if result.set:
        yield styled(("set ", "bold"), (", ".join(result.set), "green"), f": {result.promise}")
    if result.surest is not None and held_out is not None:
        if result.surest_right is None:
            place = "surer than every held-out answer"
        else:
            share, right = f"{100 * result.surest:.0f} %", f"{100 * result.surest_right:.0f} %"
            place = f"among the surest {share} of the held-out answers, of which {right} were right"
        yield styled(f"{place}; {held_out.surest_line}")


def _warn(text: str) -> None:
    results().print(text, style="yellow", soft_wrap=True)


def _predict_opened(run: Run, performance: Performance, options: dict[str, Any]) -> dict[str, Any]:
    """Return the prediction of a performance. Its messages name the videos, not the links through which they are read."""
    with performance.opened() as folder:

        def named(text: str) -> str:
            return text.replace(str(folder), str(performance.folder))

        try:
            result = run.predict([folder / video.name for video in performance.videos], **options)
        except ConfigError:
            raise
        except DtsfError as error:
            raise DataError(named(str(error))) from error
    return result.model_dump(mode="json") | {"notes": [named(note) for note in result.notes]}


def _watch(run: Run, folder: Path, settle: float, options: dict[str, Any], *, once: bool) -> None:
    """Predict the performances that arrive in a folder. Ctrl-C or SIGTERM ends it normally. Raises ConfigError at the
    first performance if this machine cannot use the run.
    """
    from dtsf.pipeline.watch import Watch

    predicted, unusable, looks, refused = 0, 0, 0, False
    doubtful: list[tuple[float, str]] = []
    # Both are set: a shell starts background processes with SIGINT ignored.
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        console().print(f"watching {folder}: one subfolder per performance; Ctrl-C ends", soft_wrap=True)
        watch = Watch(folder, settle=settle, once=once, notify=_warn)
        for performance in watch:
            name = performance.folder.name
            document: dict[str, Any] = {"error": performance.problem}
            if not performance.problem:
                # One performance must not stop the watcher, nor a defect of dtsf.
                try:
                    document = _predict_opened(run, performance, options)
                except DtsfError as error:
                    if not predicted and isinstance(error, ConfigError):
                        raise
                    document = {"error": str(error)}
                except Exception as error:  # noqa: BLE001
                    document = {"error": f"internal error: {type(error).__name__}: {error}"}
            if "error" in document:
                unusable, line = unusable + 1, styled(f"{name}  ", ("unusable: ", "red"), document["error"])
            else:
                opened, n_views = len(document["opened"]), counted(len(performance.videos), "view")
                views = n_views if opened == len(performance.videos) else f"{opened} of {n_views} opened"
                line = _headline(document, f"{name}  ").append(f"  {views}")
                if document["set"]:
                    line.append(f"  set: {', '.join(document['set'])}")
                predicted += 1
                if document["look"]:
                    looks += 1
                    doubt = document["probability"], f"{name} ({document['label']}, {document['probability']:.2f})"
                    doubtful = heapq.nsmallest(LOOKED, [*doubtful, doubt])
            if performance.ignored:
                document["ignored"] = list(performance.ignored)
            watch.write_prediction(performance, document)
            try:
                found = zip(performance.videos, document.get("views", ()), document.get("views_by", ()), strict=False)
                cameras = [f"{path.name} = {view or '(not in the training)'} by {BY[by]}" for path, view, by in found]
                notes = [styled(f"{name}: {', '.join(cameras)}")] if cameras else []
                why = (*performance.ignored, *document.get("notes", ()))
                notes += [styled((f"{name}: {one}", "yellow")) for one in why]
                emit({"performance": name, **document}, [line, *notes])
            except DtsfError as error:
                # The answers are also in prediction.json, so one warning is enough.
                if not refused:
                    _warn(str(error))
                refused = True
    except KeyboardInterrupt:
        console().print("")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    console().print(f"stopped: {counted(predicted, 'performance')} predicted, {unusable} unusable")
    if doubtful:
        more = f" and {looks - len(doubtful)} more" if looks > len(doubtful) else ""
        names = ", ".join(name for _, name in doubtful)
        console().print(f"look at {looks} of {predicted}, the least sure first: {names}{more}", soft_wrap=True)
