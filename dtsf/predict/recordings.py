"""Timelines of recordings by a run: which cameras it knows, how its network classifies windows, and its lengths of events."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dtsf.cache.catalog import view_number
from dtsf.errors import ConfigError, DataError, VideoError
from dtsf.predict.views import choose_views, trained_region
from dtsf.recordings.bouts import Bout, BoutOptions, Media, MediaFile, Timeline
from dtsf.recordings.cameras import Source
from dtsf.recordings.events import NOTHING, Event, read_all_events
from dtsf.recordings.movements import LONGEST
from dtsf.recordings.needed import AsNeeded
from dtsf.recordings.settings import TimelineSettings
from dtsf.recordings.table import Camera, Recording, chapters, check_offsets, check_videos, read_recordings
from dtsf.recordings.timeline import Model, Plan, Progress, find_timeline, write_files
from dtsf.recordings.windows import Grid, Window, plan_grid, read_windows
from dtsf.recordings.work import only_one

if TYPE_CHECKING:
    from dtsf.predict.run import Run

logger = logging.getLogger(__name__)

COVERED = 2.5  # longest over shortest event that windows of one length fit: an overlap (IoU) of at least 0.63
CALIBRATED, UNCALIBRATED = 0.4, 0.25  # probability of a bout, of a network with and without calibration
ONE_REGION = "a timeline needs one for each view: preprocess with --region, and train again"
MOST_FRAMES = 4096  # moments of the longest window


def open_model(run: Run, numbers: Sequence[int], weights: Path | None = None) -> Model:
    """Return the model for windows of cameras whose views have these numbers (from 0). Raises ConfigError: another encoder."""
    import torch
    import xxhash

    from dtsf.pipeline.encoders.choose import open_encoder

    state = run.state
    spec, train = state.spec, state.recipe.train
    torch.set_num_threads(train.usable_threads)
    digest = xxhash.xxh3_64()
    for name, tensor in sorted(run.net.state_dict().items()):
        digest.update(name.encode() + np.ascontiguousarray(tensor.cpu().numpy()).tobytes())

    def classify(x_NVFPC: np.ndarray, cameras: tuple[int, ...]) -> Any:
        return run.outputs(x_NVFPC, [numbers[camera] for camera in cameras])

    identity = {"weights": digest.hexdigest(), "spec": spec.fingerprint(), "draws": train.draws}
    return Model(spec, open_encoder(spec, weights), classify, state.info.class_names, identity)


def plan_recording(
    run: Run, recording: Recording, settings: TimelineSettings, place: str, live: Sequence[str] = ()
) -> Plan:
    """Return the plan of a recording. ``place``: for messages. ``live``: instead of files, what each camera is still writing."""
    info = run.state.info
    numbers = [view_number(camera.view, info.view_names, place) - 1 for camera in recording.cameras]
    sources, media, extents, rates = [], [], [], []
    for k, (camera, number) in enumerate(zip(recording.cameras, numbers, strict=True)):
        box, ignore = trained_region(info, number, ONE_REGION)
        offset = camera.offset or 0.0
        parts = () if live else chapters(camera)
        files = tuple((str(part.path.absolute()), part.start, part.stop) for part in parts)
        sources.append(Source(camera.view, number, files, offset, live[k] if live else None, box, ignore))
        shown = [MediaFile(path=path, start=start, stop=stop) for path, start, stop in files]
        media.append(Media(view=camera.view, offset=offset, files=tuple(shown)))
        extents.append((offset, parts[-1].stop if parts else float("inf")))
        rates.append(sum(part.pictures for part in parts) / max(parts[-1].stop - offset, 1e-9) if parts else math.inf)
    lengths = event_lengths(run)
    windows = settings.windows or _window_lengths(run, lengths)
    usual = float(np.median(windows))
    longest = 0.0 if settings.windows else LONGEST * float(lengths.max())
    grid = plan_grid(extents, windows, run.state.spec.frames, settings.hop or usual / 10, longest)
    notes = _check(grid, recording, extents, place)
    for camera, rate in zip(recording.cameras, rates, strict=True):
        if rate * usual < run.state.spec.frames / 2:
            notes += (
                f"{place}: camera {camera.view} of {recording.name!r} has {rate:.1f} pictures a second, so most of the "
                f"{run.state.spec.frames} frames of an event are repeated: without this camera the others may find more",
            )
    least = float(np.min(lengths)) if len(lengths) else min(windows)
    shortest = least / 2 if settings.shortest is None else settings.shortest
    gap = shortest if settings.gap is None else settings.gap
    threshold = settings.threshold or (UNCALIBRATED if run.state.calibration is None else CALIBRATED)
    options = BoutOptions(threshold, shortest, gap, frozenset({NOTHING, "unknown"}))
    needed = None
    if (asked := run.question(None, settings.as_needed).plan if settings.as_needed is not None else None) is not None:
        films = [tuple(math.ceil(seconds * grid.rate - 1e-6) for seconds in extent) for extent in extents]
        needed = AsNeeded(tuple(asked.sort(numbers)), asked.limit, tuple((start, stop) for start, stop in films))
    return Plan(recording.name, recording.subject, tuple(sources), tuple(media), grid, options, needed, notes=notes)


def event_lengths(run: Run) -> np.ndarray:
    """Return the quantiles of the seconds of each class of the training but ``nothing``: (classes, quantiles)."""
    info = run.state.info
    known = [seconds for name, seconds in zip(info.class_names, info.clip_seconds, strict=False) if name != NOTHING]
    return np.array([seconds for seconds in known if seconds and seconds[0] > 0])


def _window_lengths(run: Run, lengths: np.ndarray) -> tuple[float, ...]:
    if not len(lengths):
        raise ConfigError(
            f"{run.folder} does not say how long its clips are: give --windows, for example --windows 2,3, or train again"
        )
    from dtsf.training.splits import QUANTILES

    # From a short event of the shortest class to a long one of the longest.
    quarter, three_quarters = QUANTILES.index(0.25), QUANTILES.index(0.75)
    low, high = lengths[:, quarter].min(), lengths[:, three_quarters].max()
    n = max(1, math.ceil(math.log(high / low) / math.log(COVERED)))
    return tuple(float(low * (high / low) ** ((k + 0.5) / n)) for k in range(n))


def _check(grid: Grid, recording: Recording, extents: Sequence[tuple[float, float]], place: str) -> tuple[str, ...]:
    """Return notes about the times that the cameras film. Raises ConfigError, DataError: there is no window in them."""
    if max(grid.lengths) > MOST_FRAMES:
        raise ConfigError(f"--windows: {max(grid.lengths) / grid.rate:g} s are too long beside the other windows")
    spans = ", ".join(
        f"{camera.view} {begin:.1f} to {end:.1f} s"
        for camera, (begin, end) in zip(recording.cameras, extents, strict=True)
    )
    least = min(grid.lengths) / grid.rate
    if max(end - begin for begin, end in extents) < least:
        raise DataError(
            f"{place}: no camera of {recording.name!r} films as long as a window ({least:g} s): {spans}; give shorter --windows, "
            "or a longer film"
        )
    if min(end for _, end in extents) - max(begin for begin, _ in extents) >= least:
        return ()
    return (
        f"{place}: the cameras of {recording.name!r} share less than a window ({least:g} s): {spans}; if that is wrong, check "
        "the offsets (dtsf sync)",
    )


def recording_of(
    run: Run,
    videos: Sequence[Path | str],
    offsets: Sequence[float] = (),
    views: str | None = None,
    *,
    live: bool = False,
) -> Recording:
    """Return the recording of one video for each camera. Raises ConfigError: not as many views or offsets as videos.

    Raises DataError: see :func:`dtsf.recordings.table.check_videos`.
    """
    names = run.state.info.view_names
    named = [None if "://" in str(video) or str(video) == "-" else Path(video) for video in videos]
    chosen = choose_views(names, named, views)
    if max(chosen.numbers) >= len(names):
        raise DataError(f"{len(videos)} videos given, but {run.folder} was trained on {len(names)} views: give fewer")
    if len(offsets) != len(videos) > 1:
        raise ConfigError(
            f"--offset: {len(offsets)} given for {len(videos)} videos: give one for each (dtsf sync VIDEO... finds them)"
        )
    check_videos(videos, live=live)
    cameras = tuple(
        Camera(names[number], (Path(video),), offset)
        for number, video, offset in zip(chosen.numbers, videos, offsets or [0.0] * len(videos), strict=True)
    )
    return Recording(named[0].stem if named[0] else "live", None, cameras)


def find_timelines(
    run: Run,
    recordings: str | Path | Sequence[Recording],
    out: str | Path = Path("timeline"),
    *,
    settings: TimelineSettings | None = None,
    marks: tuple[Sequence[Event], Sequence[str]] | None = None,
    live: Sequence[str] = (),
    idle: float = 10.0,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_bout: Callable[[str, Bout], None] = lambda *_: None,
    stopped: Callable[[], bool] = lambda: False,
    **changes: Any,
) -> Iterator[Timeline]:
    """Yield the timeline of each recording when its files are written.

    Args:
        run: The trained network.
        recordings: The table of recordings, or recordings of :func:`dtsf.recordings.table.read_recordings`.
        out: Folder of the files ``RECORDING.csv``, ``.json``, ``.vtt``, ``.eaf`` and ``.html``. An interrupted call goes on.
        settings: All other settings. ``changes`` replace single fields of :class:`dtsf.recordings.settings.TimelineSettings`.
        marks: The marks of the recordings and what to say about them; default: those of the column ``events``.
        live: Of one recording, what each camera is still writing: a file, ``-`` for standard input, or an address.
        idle: Seconds without data after which such a camera is at its end.
        on_progress: Called as windows are done.
        on_bout: Called with the name of the recording and each bout that later windows cannot change.
        stopped: Called often; True ends cameras that are still filming.

    Raises DataError: the table is wrong, a view is unknown to the run, or no camera films as long as a window. Raises
    VideoError, after all other recordings: a camera cannot be decoded. Raises ConfigError: a setting is wrong, or the run knows
    no length of events.
    """
    settings, out = (settings or TimelineSettings()).changed(**changes), Path(out)
    if live and settings.as_needed is not None:
        raise ConfigError(
            f"--as-needed {settings.as_needed}: it is for finished files, because a camera that films cannot be read again: leave "
            "it out with --follow"
        )
    table, place = _read(recordings)
    plans: list[tuple[Path | None, Plan]] = []
    failed: dict[str, VideoError] = {}
    names: dict[str, Recording] = {}
    for recording in table:
        other = names.setdefault(recording.name.casefold(), recording)
        if other is not recording:
            raise DataError(
                f"{place}, line {recording.cameras[0].line}: the results of recording {recording.name!r} would replace those of "
                f"{other.name!r}, because systems take small and capital letters as one: give it another name"
            )
        check_offsets(recording, Path(place))
        try:
            plan = plan_recording(run, recording, settings, place, live)
            plans.append((recording.events, replace(plan, idle=idle)))
        except VideoError as error:
            failed[recording.name] = error
    marked = [recording for recording in table if recording.events is not None]
    if marks is None:
        marks = read_all_events(marked, (), settings.tier, settings.fps) if marked else ((), ())
    events, notes = marks

    @cache
    def model_of(*numbers: int) -> Model:
        return open_model(run, numbers, settings.encoder_weights)

    for file, plan in plans:
        model = model_of(*(source.number for source in plan.sources))
        own = [event for event in events if event.recording == plan.name]
        calls: dict[str, Any] = {"on_progress": on_progress, "on_bout": partial(on_bout, plan.name), "stopped": stopped}
        with only_one(out, plan.name):
            try:
                timeline, work = find_timeline(plan, model, out, **calls)
            except VideoError as error:
                failed[plan.name] = error
                continue
            said = [note for note in notes if note.startswith(str(file))]
            views = [source.number for source in plan.sources]
            known = run.held_out if settings.as_needed is None else run.question(None, settings.as_needed).held_out
            trusted = known.trusted(views) if known is not None else None
            timeline = timeline.model_copy(update={"notes": (*timeline.notes, *said), "trusted": trusted})
            write_files(timeline, work, plan, own, out, str(run.folder))
        yield timeline
    if failed and len(table) == 1:
        raise failed[table[0].name]
    if failed:
        said = [f"{name}: {error}" for name, error in failed.items()]
        raise VideoError(
            f"{len(failed)} of {len(table)} recordings have no timeline, the others have: {'; '.join(said)}"
        )


def find_windows(
    run: Run, recording: Recording, *, settings: TimelineSettings | None = None, **changes: Any
) -> Iterator[Window]:
    """Yield the windows of one recording in the order of their starts, for one's own smoothing.

    Arguments and errors are those of :func:`find_timelines`.
    """
    settings = (settings or TimelineSettings()).changed(**changes)
    check_offsets(recording, Path("recordings"))
    plan = plan_recording(run, recording, settings, recording.name)
    model = open_model(run, [source.number for source in plan.sources], settings.encoder_weights)
    grid = replace(plan.grid, longest=0)
    for block in read_windows(plan.sources, grid, model.spec, model.encoder, model.classify, needed=plan.needed):
        for (start, stop), p_K, u, w_V in zip(
            block.spans_N2.tolist(),
            block.probabilities_NK.tolist(),
            block.uncertainty_N.tolist(),
            block.weights_NV.tolist(),
            strict=True,
        ):
            probabilities = dict(zip(model.names, p_K, strict=True))
            yield Window(start / grid.rate, stop / grid.rate, probabilities, u, tuple(w_V))


def _read(recordings: str | Path | Sequence[Recording]) -> tuple[tuple[Recording, ...], str]:
    if isinstance(recordings, str | Path):
        return read_recordings(recordings), str(recordings)
    return tuple(recordings), "recordings"
