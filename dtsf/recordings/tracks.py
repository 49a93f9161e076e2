"""Tracks of a camera: how much moves and what is heard in its files, for :mod:`dtsf.recordings.sync`.

Each file is decoded once. A picture is reduced to about 64 x 36 cells, and the sound to its power in :data:`BANDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dtsf.errors import VideoError
from dtsf.pipeline.video.clip import reencode_hint
from dtsf.pipeline.video.container import NO_TIMESTAMPS, open_video, select_stream
from dtsf.pipeline.video.frames import SKIPPING

RATE = 50  # values a second of a track
STEP = 0.065  # least seconds between two pictures that are compared
CELLS = (36, 64)  # least number of rows and columns of the reduced picture
# Half levels of 256 by which a cell must change to count as movement. The noise of each camera chooses one.
LEVELS = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128])
QUIET = (20, 0.01)  # in this percentile of the pictures, at most this share of the cells is above the chosen level
SOUND_RATE, HOP = 8000, 8000 // RATE
BANDS = (80, 250, 500, 1000, 2000, 3900)  # limits of the bands, in Hz
MOST_SECONDS = 2 * 86_400  # of a camera: times beyond it are damage
WITH_SKIPPING = 20  # frames a second from which on frames that no other one needs are not decoded
WITH_THREADS = 1280  # pixels of width from which on the decoder has several threads, which cost more for small pictures
REPORTED = 5.0  # seconds of film between two reports
GAP = 0.1  # seconds of missing sound that are filled with silence
# Seconds over which a track is smoothed, and over which its slow changes are removed.
MOVEMENT_SECONDS, SOUND_SECONDS = (0.2, 3.0), (0.06, 1.0)
GRAY_FIRST = ("yuv4", "yuvj4", "nv12", "nv21", "gray")  # formats of 8 bits whose first plane is the brightness

Report = Callable[[Path, float], None]


@dataclass(frozen=True)
class Track:
    """One camera over time, :data:`RATE` values a second from the start of its first file. ``sound`` is None if it has none."""

    movement: np.ndarray  # (1, values) float32
    sound: np.ndarray | None  # (bands, values) float32


def read_track(paths: Sequence[Path], report: Report = lambda *_: None) -> Track:
    """Decode the files of one camera. ``report``: gets the file and the seconds read so far.

    Raises VideoError: a file has too few pictures.
    """
    start = 0.0
    times, shares, powers = [], [], []
    for path in paths:
        chapter = _Chapter(path, start, report)
        times.append(np.array(chapter.times))
        shares.append(np.array(chapter.shares))
        powers.append((chapter.sound_start, chapter.powers()))
        start = chapter.end
    n_values = max(1, int(start * RATE))
    grid = np.arange(n_values) / RATE
    moved = np.interp(grid, np.concatenate(times), _movement(np.concatenate(shares)))
    heard = np.zeros((len(BANDS) - 1, n_values), np.float32)
    for begin, power in powers:
        first = max(0, round(begin * RATE))
        count = min(power.shape[1], n_values - first)
        heard[:, first : first + max(0, count)] = power[:, : max(0, count)]
    return make_track(moved, heard)


def make_track(moved: np.ndarray, heard: np.ndarray) -> Track:
    """Return the track of a camera. ``moved``: (values,) how much moves. ``heard``: (bands, values) power of the sound."""
    # Below the usual level, the sound is noise of the microphone.
    floor = np.maximum(np.median(heard, axis=1), 1e-4 * np.percentile(heard, 99.5, axis=1))[:, None]
    sound = _sharpen(np.log(heard + np.maximum(floor, 1e-12)), *SOUND_SECONDS) if (floor > 0).any() else None
    return Track(_sharpen(np.sqrt(moved)[None], *MOVEMENT_SECONDS), sound)


class _Chapter:
    """One decoded file. ``times``: seconds of the camera, between two pictures. ``shares``: of cells above each of LEVELS."""

    def __init__(self, path: Path, start: float, report: Report) -> None:
        self.times: list[float] = []
        self.shares: list[np.ndarray] = []
        self.end = start
        self.sound_start = start
        self._power: list[np.ndarray] = []
        self._rest: list[np.ndarray] = []
        self._n_samples = 0
        self._read(path, start, report)
        if len(self.times) < RATE // 2:
            raise VideoError(f"{path} has too few pictures to compare its movement with others; {reencode_hint(path)}")

    def powers(self) -> np.ndarray:
        """Return the power of each band, (bands, values) float32."""
        return np.concatenate([np.zeros((len(BANDS) - 1, 0), np.float32), *self._power], axis=1)

    def _read(self, path: Path, start: float, report: Report) -> None:
        import av

        with open_video(path) as container:
            video, sounds = select_stream(container, path), [one for one in container.streams if one.type == "audio"]
            audio = next((stream for stream in sounds if stream.codec_context), None)
            to_sound = av.AudioResampler("flt", "mono", SOUND_RATE)
            zero = (container.start_time or 0) / 1e6 - start  # as of VideoIndex.zero
            rate = float(video.guessed_rate or video.average_rate or 25)
            video.thread_type = "AUTO" if video.codec_context.width >= WITH_THREADS else "NONE"
            timed = container.format.name != "avi" and not container.format.flags & NO_TIMESTAMPS
            if timed and rate >= WITH_SKIPPING and video.codec_context.name in SKIPPING:
                video.codec_context.skip_frame = "NONREF"
            before, time, n_frames, reported = None, -np.inf, 0, start
            for packet in container.demux([stream for stream in (video, audio) if stream is not None]):
                try:
                    frames = packet.decode()
                except av.FFmpegError:
                    continue  # a damaged packet is a gap
                for frame in frames:
                    if packet.stream is not video:
                        self._hear(frame, zero, to_sound)
                        continue
                    n_frames += 1
                    now = float(frame.time) - zero if frame.time is not None else start + (n_frames - 1) / rate
                    self.end = max(self.end, now + 1 / rate)
                    if self.end > MOST_SECONDS:
                        raise VideoError(f"{path} has a frame at {self.end:.0f} s; {reencode_hint(path)}")
                    if time <= now < time + STEP:
                        continue
                    cells = _reduce(frame)
                    if before is not None and before.shape == cells.shape and now > time:
                        self.shares.append(_changed(before, cells))
                        self.times.append((now + time) / 2)
                    before, time = cells, now
                    if now - reported >= REPORTED:
                        report(path, now)
                        reported = now

    def _hear(self, frame: Any, zero: float, to_sound: Any) -> None:
        begin = float(frame.time) - zero if frame.time is not None else None
        pieces = [piece.to_ndarray()[0] for piece in to_sound.resample(frame)]
        if begin is not None and not self._n_samples:
            self.sound_start = begin
        elif begin is not None and (missing := begin - self.sound_start - self._n_samples / SOUND_RATE) > GAP:
            pieces.insert(0, np.zeros(int(min(missing, 3600.0) * SOUND_RATE), np.float32))
        self._n_samples += sum(map(len, pieces))
        self._rest += pieces
        if sum(map(len, self._rest)) < 64 * HOP:
            return
        samples = np.concatenate(self._rest)
        windows = np.lib.stride_tricks.sliding_window_view(samples, 2 * HOP)[::HOP]
        self._rest = [samples[len(windows) * HOP :]]
        power = np.abs(np.fft.rfft(windows * np.hanning(2 * HOP).astype(np.float32), axis=1)) ** 2
        limits = np.searchsorted(np.fft.rfftfreq(2 * HOP, 1 / SOUND_RATE), BANDS)
        self._power.append(
            np.stack([power[:, a:b].mean(1) for a, b in zip(limits, limits[1:], strict=False)]).astype("f4")
        )


def _reduce(frame: Any) -> np.ndarray:
    """Return the mean brightness of parts of a picture, in half levels of 256, (rows, columns) int32."""
    if not frame.format.name.startswith(GRAY_FIRST) or frame.format.components[0].bits != 8:
        frame = frame.reformat(format="gray")
    plane, height, width = frame.planes[0], frame.height, frame.width
    picture = np.frombuffer(plane, np.uint8)[: height * plane.line_size].reshape(height, plane.line_size)
    side = max(1, min(height // CELLS[0], width // CELLS[1]))
    height, width = height // side * side, width // side * side
    # Slices are added, nine or more pixels of a part: many times as fast as a mean.
    inner = range(0, side, max(1, side // 3))
    rows = picture[inner[0] : height : side, :width].astype(np.uint16)  # at most 25 values of 255
    for k in inner[1:]:
        rows += picture[k:height:side, :width]
    total = rows[:, inner[0] :: side].copy()
    for k in inner[1:]:
        total += rows[:, k::side]
    return (2 * total // len(inner) ** 2).astype(np.int32)


def _changed(before: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Return the share of the cells that changed by more than each of :data:`LEVELS`, (levels,) float32."""
    change = cells - before
    # A lamp or the camera's exposure changes all cells alike.
    change = np.abs(change - np.partition(change.ravel(), change.size // 2)[change.size // 2])
    counts = np.bincount(np.minimum(change, LEVELS[-1] + 1).ravel(), minlength=LEVELS[-1] + 2)
    return np.asarray(counts[::-1].cumsum()[::-1][LEVELS + 1] / change.size, np.float32)


def _movement(shares: np.ndarray) -> np.ndarray:
    """Return how much moves in each picture, above the camera's noise. ``shares``: (pictures, levels)."""
    quiet = np.percentile(shares, QUIET[0], axis=0) <= QUIET[1]
    level = int(np.argmax(quiet)) if quiet.any() else len(LEVELS) - 1
    moved = shares[:, level:].mean(1)
    # A key frame of the codec or a repeated picture changes one value only.
    padded = np.pad(moved, 1, mode="edge")
    return np.asarray(np.median([padded[:-2], padded[1:-1], padded[2:]], axis=0))


def _sharpen(values: np.ndarray, smooth: float, slow: float) -> np.ndarray:
    """Smooth (rows, values) over ``smooth`` seconds, and remove the mean of ``slow`` seconds around each."""
    window = np.hanning(int(smooth * RATE) + 2)[1:-1]
    made = []
    for row in values:
        row = np.convolve(row, window / window.sum(), "same")
        n = int(slow * RATE) | 1
        total = np.cumsum(np.pad(row, (n // 2 + 1, n // 2), mode="edge"))
        made.append(row - (total[n:] - total[:-n]) / n)
    return np.array(made, np.float32)
