"""When each camera of a recording began, from what the cameras hear and see in common.

Two tracks are compared at every shift: the correlation r over the time that both cover, as atanh(r) times the root of this time, so
that a short overlap needs a better agreement. Trust is the ratio of the first to the second peak. The first is counted without its
strongest part, so that one bang is no agreement; the second is at least what chance gives.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import NamedTuple

import numpy as np

from dtsf.errors import DataError, VideoError
from dtsf.names import counted
from dtsf.recordings.agreement import MIN_OVERLAP, Curve, compare, overlap, vertex
from dtsf.recordings.table import Camera, Recording
from dtsf.recordings.tracks import RATE, Track, read_track

MIN_TRUST = 1.0  # films of different events reach 0.93
# Share of a long common time that is not counted: films can move alike by chance for some seconds. Sound has fewer events.
STRONGEST = {"sound": 0.0, "movement": 0.06}
CHANCE = 4.0  # standard deviations that the highest of many random values reaches
PEAK_SECONDS = 1.0  # half width of a peak
TOLERANCE = 0.25  # seconds between the answers of sound and movement that are one answer
CLEARER = 2.0  # the more trusted of two different answers counts if its trust is this much higher
SURE = 1.5  # trust of sound from which on pictures are not decoded
ALONE = "one camera has nothing to compare with"
DRIFT_SECONDS, DRIFT_WINDOWS = 60.0, 5  # length of a window for the drift; least number
DRIFT_SEARCH = 2.0, 0.002  # seconds searched, and per second of film
METHODS = ("sound", "movement")


class SyncError(DataError):
    """Some cameras have no trusted offset. ``synced`` has all results."""

    def __init__(self, message: str, synced: Sequence[SyncedRecording]) -> None:
        super().__init__(message)
        self.synced = tuple(synced)


@dataclass(frozen=True)
class SyncedCamera:
    """The clock of one camera. ``by``: reference, sound or movement; None without an ``offset``. ``trust``: of the best answer,
    None for the reference. ``drift``: seconds an hour by which its clock runs away from the reference, None for short files.
    ``drift_error``: seconds by which ``offset``, right in the middle, is wrong at the ends. ``reason``: why there is no offset.
    """

    view: str = ""
    paths: tuple[Path, ...] = ()
    offset: float | None = None
    trust: float | None = None
    by: str | None = None
    drift: float | None = None
    drift_error: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class SyncedRecording:
    """The clocks of a recording's cameras, in the order of the table."""

    recording: str
    cameras: tuple[SyncedCamera, ...]


REFERENCE = SyncedCamera(offset=0.0, by="reference")


class _Answer(NamedTuple):
    offset: float
    trust: float
    by: str


def sync_recordings(
    recordings: Iterable[Recording],
    *,
    min_trust: float = MIN_TRUST,
    report: Callable[[Path, float], None] = lambda *_: None,
) -> tuple[SyncedRecording, ...]:
    """Find the offset of each camera. The first of a recording is the reference and keeps the offset that the table gives, else 0.

    ``report``: gets a file and the seconds of the camera that are read. Raises SyncError after all work: a camera cannot be
    read, or has no offset of ``min_trust``.
    """
    synced = []
    for recording in recordings:
        zero = recording.cameras[0].offset or 0.0
        found = _read_and_sync(recording, min_trust, report)
        cameras = []
        for one, camera in zip(found, recording.cameras, strict=True):
            offset = None if one.offset is None else round(float(one.offset) + zero, 3)
            cameras.append(replace(one, view=camera.view, paths=camera.paths, offset=offset))
        synced.append(SyncedRecording(recording.name, tuple(cameras)))
    missing = [(one.recording, camera) for one in synced for camera in one.cameras if camera.offset is None]
    if missing:
        listed = "; ".join(f"camera {camera.view!r} of {name!r}: {camera.reason}" for name, camera in missing)
        hint = "measure it by hand and write it into the column offset, or see dtsf sync --help for --min-trust"
        raise SyncError(f"no offset for {counted(len(missing), 'camera')}: {listed}. For each, {hint}", synced)
    return tuple(synced)


def _read_and_sync(recording: Recording, min_trust: float, report: Callable[[Path, float], None]) -> list[SyncedCamera]:
    """Return the clocks of a recording's cameras. Pictures are decoded where sound does not place a camera surely: those of the
    reference and of such cameras; if that is not enough, all.
    """
    cameras = recording.cameras
    if len(cameras) == 1:
        return [replace(REFERENCE, reason=ALONE)]
    stop = Event()
    failed: dict[int, str] = {}

    def reported(path: Path, seconds: float) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        report(path, seconds)

    def read(k: int, **wanted: bool) -> Track:
        try:
            return read_track(cameras[k].paths, reported, **wanted)
        except VideoError as error:
            failed[k] = str(error)
            return Track(None, None)

    with ThreadPoolExecutor(min(len(cameras), os.cpu_count() or 1)) as pool:  # one camera a core at a time
        try:
            tracks = list(pool.map(lambda k: read(k, pictures=False), range(len(cameras))))
            while True:
                found = sync_tracks(tracks, min_trust)
                seen = [track.movement is not None or k in failed for k, track in enumerate(tracks)]
                unsure = [k for k, one in enumerate(found) if k and not _is_sure(one, seen[k])]
                wanted = [k for k in range(len(tracks)) if not seen[k] and (k in (0, *unsure) or seen[0])]
                if not unsure or not wanted:
                    return [_unread(k, one, tracks, failed, cameras) for k, one in enumerate(found)]
                looked = pool.map(lambda k: read(k, sound=False), wanted)
                for k, track in zip(wanted, looked, strict=True):
                    tracks[k] = replace(tracks[k], movement=track.movement)
        finally:
            # After an error or Ctrl-C, the other cameras are not read to their end.
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


def _unread(
    k: int, one: SyncedCamera, tracks: Sequence[Track], failed: Mapping[int, str], cameras: Sequence[Camera]
) -> SyncedCamera:
    """Return the clock of a camera, or why it has none if its file or that of the reference cannot be read."""
    if k in failed and (one.offset is None or tracks[k].sound is None):
        return replace(one, offset=None, by=None, reason=failed[k])
    if one.offset is None and 0 in failed and tracks[0].sound is None:
        return replace(one, reason=f"camera {cameras[0].view!r}, whose clock counts, cannot be read")
    return one


def _is_sure(one: SyncedCamera, seen: bool) -> bool:
    return one.offset is not None and (seen or (one.trust or 0.0) >= SURE)


def sync_tracks(tracks: Sequence[Track], min_trust: float = MIN_TRUST) -> list[SyncedCamera]:
    """Return the clocks of cameras by their tracks. The offset of the first is 0. In each step the camera with the most trusted
    offset is placed beside those that have one, and is compared with all of them.
    """
    pairs: dict[tuple[int, int, str], Curve] = {}
    offsets, answers = {0: 0.0}, {0: REFERENCE}
    while len(offsets) < len(tracks):
        tried = {k: _place(k, tracks, offsets, min_trust, pairs) for k in range(len(tracks)) if k not in offsets}
        best = max(tried, key=lambda k: (tried[k].offset is not None, tried[k].trust or 0.0))
        answers |= tried
        if tried[best].offset is None:
            break
        answers[best] = _with_drift(tried[best], tracks[0], tracks[best])
        offsets[best] = answers[best].offset or 0.0
    return [answers[k] for k in range(len(tracks))]


def _place(
    k: int,
    tracks: Sequence[Track],
    offsets: Mapping[int, float],
    min_trust: float,
    pairs: dict[tuple[int, int, str], Curve],
) -> SyncedCamera:
    """Return the offset of camera ``k``, by sound if it is trusted, else by movement."""
    answers = []
    for by in METHODS:
        own, curves = _values(tracks[k], by), {}
        for j in offsets:
            other = _values(tracks[j], by)
            if own is not None and other is not None:
                curves[j] = pairs.get((j, k, by)) or compare(other, own)
                pairs[j, k, by] = curves[j]
        if curves:
            answers.append(_best(curves, offsets, by))
    if not answers:
        return SyncedCamera(reason="it has no sound in common with the others")
    trusted = [answer for answer in answers if answer.trust >= min_trust]
    best = max(answers, key=lambda answer: answer.trust)
    trust = round(best.trust, 3)
    if not trusted:
        # A camera that has answers has a track.
        lengths = [max(one.shape[1] for by in METHODS if (one := _values(tracks[j], by)) is not None) for j in (0, k)]
        why = "it may share too little time or movement with the others"
        if min(lengths) < MIN_OVERLAP * RATE:
            why = f"it is shorter than {MIN_OVERLAP:g} s"
        return SyncedCamera(trust=trust, reason=f"trust {trust:.2f}, at least {min_trust:g} is needed: {why}")
    if len(trusted) == 2 and abs(trusted[0].offset - trusted[1].offset) > TOLERANCE:
        weaker = min(trusted, key=lambda answer: answer.trust)
        if best.trust < CLEARER * weaker.trust:
            said = " but ".join(f"{answer.by} says {answer.offset:.2f} s" for answer in trusted)
            return SyncedCamera(trust=trust, reason=said)
        trusted = [best]
    return SyncedCamera(offset=trusted[0].offset, trust=round(trusted[0].trust, 3), by=trusted[0].by)


def _values(track: Track, by: str) -> np.ndarray | None:
    return track.sound if by == "sound" else track.movement


def _best(curves: Mapping[int, Curve], offsets: Mapping[int, float], by: str) -> _Answer:
    """Return the offset at which a camera agrees best with all that have an offset, and its trust."""
    begin = {j: round(offsets[j] * RATE) for j in curves}
    first = min(curve.first + begin[j] for j, curve in curves.items())
    last = max(curve.first + len(curve.score) + begin[j] for j, curve in curves.items())
    shifts = np.arange(first, last)
    parts = np.array([curve.at(shifts - begin[j]) for j, curve in curves.items()])
    # Of n independent scores, the sum over the root of n has the spread of one.
    root = np.sqrt(np.maximum((parts != 0).sum(0), 1))
    score = parts.sum(0) / root
    k = int(score.argmax())
    elsewhere = score[(np.abs(np.arange(len(score)) - k) > PEAK_SECONDS * RATE) & (score != 0)]
    if score[k] <= 0 or not len(elsewhere):
        return _Answer(0.0, 0.0, by)
    second = max(float(elsewhere.max()), CHANCE * float(elsewhere.std()))
    peak = sum(curve.without_strongest(int(shifts[k]) - begin[j], STRONGEST[by]) for j, curve in curves.items())
    return _Answer((shifts[k] + vertex(score, k)) / RATE, max(0.0, float(peak / root[k])) / max(second, 1e-9), by)


def _with_drift(camera: SyncedCamera, reference: Track, track: Track) -> SyncedCamera:
    """Return the camera with its drift, and its offset in the middle of the common time. Short files have no drift."""
    offset, own, other = camera.offset or 0.0, _values(track, camera.by or ""), _values(reference, camera.by or "")
    if own is None or other is None:
        return camera
    a, b = overlap(other, own, round(offset * RATE))
    n_values, width = a.shape[1], int(DRIFT_SECONDS * RATE)
    n_windows = n_values // width
    if n_windows < DRIFT_WINDOWS:
        return camera
    reach = int((DRIFT_SEARCH[0] + DRIFT_SEARCH[1] * n_values / RATE / 2) * RATE)
    moments, shifts, weights = [], [], []
    for begin in range(0, n_windows * width, width):
        low = max(0, begin - reach)
        curve = compare(a[:, low : begin + width + reach], b[:, begin : begin + width])
        near = np.arange(-reach, reach + 1)
        score = curve.at(near + begin - low)
        k = int(score.argmax())
        if score[k] > 0:
            moments.append((begin + width / 2) / RATE)
            shifts.append((near[k] + vertex(score, k)) / RATE)
            weights.append(float(score[k]))
    if len(moments) < DRIFT_WINDOWS:
        return camera
    slope, level = _robust_line(np.array(moments), np.array(shifts), np.array(weights))
    length = n_values / RATE
    middle = level + slope * length / 2
    return replace(
        camera, offset=offset + middle, drift=round(3600 * slope, 3), drift_error=round(abs(slope) * length / 2, 3)
    )


def _robust_line(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Return slope and level of the line through points of which some are far off: the median of all slopes, then least squares."""
    i, j = np.triu_indices(len(x), 1)
    slope = float(np.median((y[j] - y[i]) / (x[j] - x[i])))
    level = float(np.median(y - slope * x))
    distance = np.abs(y - slope * x - level)
    near = distance <= max(0.1, 3 * float(np.median(distance)))
    if near.sum() >= DRIFT_WINDOWS:
        slope, level = np.polyfit(x[near], y[near], 1, w=np.sqrt(weights[near]))
    return float(slope), float(level)
