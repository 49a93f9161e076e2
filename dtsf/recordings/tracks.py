"""Tracks of a camera: how much moves and what is heard in its files, for :mod:`dtsf.recordings.sync`.

A picture is reduced to about 48 x 27 cells, and the sound to its power in :data:`BANDS`. Decoded are about ten pictures a second,
without the filter that smooths the edges of blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dtsf.errors import VideoError
from dtsf.names import counted
from dtsf.pipeline.video.clip import reencode_hint
from dtsf.pipeline.video.container import NO_TIMESTAMPS, open_video, select_stream
from dtsf.pipeline.video.frames import SKIPPING

RATE = 50  # values a second of a track
STEP = 0.095  # least seconds between two pictures that are compared: fewer make chance agree better
CELLS = (27, 48)  # least number of rows and columns of the reduced picture
# Levels of 256 above which a change of a cell counts as movement. The noise of each camera chooses the first one.
LEVELS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
QUIET = (20, 0.01)  # in this percentile of the pictures, at most this share of the cells is above the chosen level
SOUND_RATE, HOP = 8000, 8000 // RATE
SOUND_WINDOW = 256  # samples of which the power is measured together: numpy transforms 256 three times as fast as 320
BANDS = (80, 250, 500, 1000, 2000, 3900)  # limits of the bands, in Hz
MOST_SECONDS = 2 * 86_400  # of a camera: times beyond it are damage
WITH_SKIPPING = 20  # frames a second from which on frames that no other one needs are not decoded
WITH_THREADS = 1280  # pixels of width from which on the decoder has several threads, which cost more for small pictures
REPORTED = 5.0  # seconds of film between two reports
TOGETHER, SOUND_TOGETHER = 64, 10.0  # pictures, and seconds of sound, that are measured together
LEAST_PICTURES = 25  # that a camera must have
USUAL = 256  # cells of which the median change is that of all
ALONE = 2.0  # how much higher than both neighbours a value of movement may be
GAP = 0.1  # seconds of missing sound that are filled with silence
# Seconds over which a track is smoothed, and over which its slow changes are removed.
MOVEMENT_SECONDS, SOUND_SECONDS = (0.2, 3.0), (0.06, 1.0)
EDGE = int(0.6 * RATE)  # values beside an edge of the sound that it changes

Report = Callable[[Path, float], None]


@dataclass(frozen=True)
class Track:
    """One camera over time, :data:`RATE` values a second from the start of its first file. None: not there, or not read."""

    movement: np.ndarray | None  # (1, values) float32
    sound: np.ndarray | None  # (bands, values) float32
    moved: np.ndarray | None = None  # (values,) share of the picture that moves, with its slow changes


def read_track(
    paths: Sequence[Path], report: Report = lambda *_: None, *, pictures: bool = True, sound: bool = True
) -> Track:
    """Decode the files of one camera. ``report``: gets the file and the seconds read so far.

    Raises VideoError: a file cannot be opened, or a camera has too few pictures.
    """
    start = 0.0
    times, shares, powers = [], [], []
    for path in paths:
        chapter = _Chapter(path, start, report, pictures=pictures, sound=sound)
        times += chapter.times
        shares += chapter.shares
        powers.append((chapter.sound_start, chapter.powers()))
        start = chapter.end
    if pictures and len(times) < LEAST_PICTURES:
        raise VideoError(
            f"{paths[0]} has {counted(len(times), 'change')} of the picture: too few to compare with other cameras"
        )
    n_values = max(1, int(start * RATE))
    grid = np.arange(n_values) / RATE
    moved = np.interp(grid, times, _movement(np.concatenate(shares))) if pictures else None
    heard = np.zeros((len(BANDS) - 1, n_values), np.float32)
    edges = [0, n_values]
    for begin, power in powers:
        first = max(0, round(begin * RATE))
        count = max(0, min(power.shape[1], n_values - first))
        heard[:, first : first + count] = power[:, :count]
        edges += [first, first + count]
    return make_track(moved, heard, edges)


def make_track(moved: np.ndarray | None, heard: np.ndarray, edges: Sequence[int] = ()) -> Track:
    """Return the track of a camera. ``moved``: (values,) how much moves. ``heard``: (bands, values) power of the sound.
    ``edges``: where the sound of a file begins and ends, which is nothing that another camera hears.
    """
    # Below the usual level, the sound is noise of the microphone.
    floor = np.maximum(np.median(heard, axis=1), 1e-4 * np.percentile(heard, 99.5, axis=1))[:, None]
    sound = None
    if (floor > 0).any():
        sound = _sharpen(np.log(heard + np.maximum(floor, 1e-12)), *SOUND_SECONDS)
        for edge in edges:
            sound[:, max(0, edge - EDGE) : edge + EDGE] = 0.0
    return Track(None if moved is None else _sharpen(np.sqrt(moved)[None], *MOVEMENT_SECONDS), sound, moved)


class _Chapter:
    """One decoded file. ``times``: seconds of the camera, between two pictures. ``shares``: of cells above each of LEVELS."""

    def __init__(self, path: Path, start: float, report: Report, *, pictures: bool, sound: bool) -> None:
        from av.video.reformatter import VideoReformatter

        self.times: list[float] = []
        self.shares: list[np.ndarray] = []
        self.end = start
        self.sound_start = start
        self._pictures: list[bytes] = []
        self._shape, self._time = (0, 0, 0), -np.inf  # and seconds, of the last picture
        self._power: list[np.ndarray] = []
        self._rest = np.zeros(0, np.float32)
        self._heard_seconds = 0.0  # of sound that the file had
        self._reformatter = VideoReformatter()
        self._begin_sound(("", "", 0))
        self._read(path, start, report, pictures, sound)
        self._compare()
        self._measure()

    def powers(self) -> np.ndarray:
        """Return the power of each band, (bands, values) float32."""
        return np.concatenate([np.zeros((len(BANDS) - 1, 0), np.float32), *self._power], axis=1)

    def _read(self, path: Path, start: float, report: Report, pictures: bool, sound: bool) -> None:
        import av

        with open_video(path) as container:
            video, sounds = select_stream(container, path), [one for one in container.streams if one.type == "audio"]
            audio = next((stream for stream in sounds if sound and stream.codec_context), None)
            zero = (container.start_time or 0) / 1e6 - start  # as of VideoIndex.zero
            rate = float(video.guessed_rate or video.average_rate or 25)
            context = video.codec_context
            video.thread_type = "AUTO" if context.width >= WITH_THREADS else "NONE"
            context.options = {"skip_loop_filter": "all"}
            timed = container.format.name != "avi" and not container.format.flags & NO_TIMESTAMPS
            if timed and rate >= WITH_SKIPPING and context.name in SKIPPING:
                context.skip_frame = "NONREF"
            n_packets, n_frames, reported, tick = 0, 0, start, float(video.time_base)
            for packet in container.demux([stream for stream in (video, audio) if stream is not None]):
                of_video = packet.stream is video
                if of_video and packet.size:
                    n_packets += 1
                    at = packet.dts if packet.pts is None or not timed else packet.pts
                    now = start + (n_packets - 1) / rate if at is None else at * tick - zero
                    self.end = self.end if packet.is_discard else max(self.end, now + 1 / rate)
                    if self.end > MOST_SECONDS:
                        raise VideoError(f"{path} has a frame at {self.end:.0f} s; {reencode_hint(path)}")
                    if now - reported >= REPORTED:
                        report(path, now)
                        reported = now
                if of_video and not pictures:
                    continue
                try:
                    frames = packet.decode()
                except av.FFmpegError:
                    continue  # a damaged packet is a gap
                for frame in frames:
                    if of_video:
                        seconds = frame.time
                        self._look(frame, start + n_frames / rate if seconds is None else seconds - zero)
                        n_frames += 1
                    else:
                        self._hear(frame, zero)

    def _look(self, frame: Any, now: float) -> None:
        if self._time <= now < self._time + STEP:
            return
        picture, shape = self._reduced(frame)
        if now <= self._time or shape != self._shape:
            self._compare()
            self._pictures.clear()
        if self._pictures:
            self.times.append((now + self._time) / 2)
        self._pictures.append(picture)
        self._time, self._shape = now, shape
        if len(self._pictures) > TOGETHER:
            self._compare()

    def _reduced(self, frame: Any) -> tuple[bytes, tuple[int, int, int]]:
        """Return the mean brightness of parts of a picture, and height, width of a line, and width."""
        scale = min(1.0, max(CELLS[0] / frame.height, CELLS[1] / frame.width))
        size = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
        grey = self._reformatter.reformat(frame, *size, "gray", interpolation="AREA", threads=1)
        plane = grey.planes[0]
        return bytes(plane), (size[1], plane.line_size, size[0])

    def _compare(self) -> None:
        """Compare each of the collected pictures with the one before it, and keep the last one."""
        if len(self._pictures) > 1:
            height, line, width = self._shape
            levels = np.frombuffer(b"".join(self._pictures), np.uint8).reshape(-1, height, line)[:, :, :width]
            self.shares.append(_changed(levels.reshape(len(levels), -1).astype(np.int16)))
        del self._pictures[:-1]

    def _begin_sound(self, form: tuple[str, str, int]) -> None:
        """Begin to collect sound of this format, layout and rate; FFmpeg's queue holds one form only."""
        import av

        self._form = form
        self._heard, self._to_sound = av.AudioFifo(), av.AudioResampler("flt", "mono", SOUND_RATE)

    def _hear(self, frame: Any, zero: float) -> None:
        seconds = frame.time
        form = frame.format.name, frame.layout.name, frame.sample_rate
        if form != self._form:
            self._measure()
            self._begin_sound(form)
        if seconds is not None and not self._heard_seconds:
            self.sound_start = seconds - zero
        elif seconds is not None:
            missing = seconds - zero - self.sound_start - self._heard_seconds
            if missing > GAP:
                self._measure(np.zeros(int(min(missing, 3600.0) * SOUND_RATE), np.float32))
                self._heard_seconds += missing
        self._heard_seconds += frame.samples / frame.sample_rate
        frame.pts = None  # a FIFO refuses a gap
        self._heard.write(frame)
        if self._heard.samples >= SOUND_TOGETHER * frame.sample_rate:
            self._measure()

    def _measure(self, silence: np.ndarray | None = None) -> None:
        """Measure the collected sound, and then silence."""
        whole = self._heard.read(0, partial=True) if self._heard.samples else None
        pieces = [self._rest, *(piece.to_ndarray()[0] for piece in self._to_sound.resample(whole) if whole)]
        samples = np.concatenate([*pieces, *(() if silence is None else (silence,))])
        if len(samples) < SOUND_WINDOW:
            self._rest = samples
            return
        windows = np.lib.stride_tricks.sliding_window_view(samples, SOUND_WINDOW)[::HOP]
        self._rest = samples[len(windows) * HOP :]
        power = np.abs(np.fft.rfft(windows * np.hanning(SOUND_WINDOW).astype(np.float32), axis=1)) ** 2
        limits = np.searchsorted(np.fft.rfftfreq(SOUND_WINDOW, 1 / SOUND_RATE), BANDS)
        self._power.append(
            np.stack([power[:, a:b].mean(1) for a, b in zip(limits, limits[1:], strict=False)]).astype("f4")
        )


def _changed(cells_FN: np.ndarray) -> np.ndarray:
    """Return for each picture but the first the share of the cells that changed by more than each of :data:`LEVELS`:
    (pictures, levels) float32. ``cells_FN``: int16.
    """
    change_FN = cells_FN[1:] - cells_FN[:-1]
    # A lamp or the camera's exposure changes all cells alike. Some cells show by how much.
    some_FN = change_FN[:, :: max(1, change_FN.shape[1] // USUAL)]
    middle = some_FN.shape[1] // 2
    change_FN -= np.partition(some_FN, middle)[:, middle, None]
    above_FN = np.minimum(np.abs(change_FN), 255).astype(np.uint8)
    counts = [[np.count_nonzero(row_N) for row_N in above_FN > level] for level in LEVELS]
    return np.asarray(np.transpose(counts) / change_FN.shape[1], np.float32)


def _movement(shares: np.ndarray) -> np.ndarray:
    """Return how much moves in each picture, above the camera's noise. ``shares``: (pictures, levels)."""
    quiet = np.percentile(shares, QUIET[0], axis=0) <= QUIET[1]
    level = int(np.argmax(quiet)) if quiet.any() else len(LEVELS) - 1
    moved = shares[:, level:].mean(1)
    # A key frame of the codec or a repeated picture changes one value only.
    padded = np.pad(moved, 1, mode="edge")
    return np.asarray(np.minimum(moved, ALONE * np.maximum(padded[:-2], padded[2:])))


def _sharpen(values: np.ndarray, smooth: float, slow: float) -> np.ndarray:
    """Smooth (rows, values) over ``smooth`` seconds, and remove the mean of ``slow`` seconds around each."""
    window = np.hanning(int(smooth * RATE) + 2)[1:-1]
    made = []
    for row in values:
        around = len(window) // 2, (len(window) - 1) // 2
        row = np.convolve(np.pad(row, around, mode="edge"), window / window.sum(), "valid")
        n = int(slow * RATE) | 1
        total = np.cumsum(np.pad(row, (n // 2 + 1, n // 2), mode="edge"))
        made.append(row - (total[n:] - total[:-n]) / n)
    return np.array(made, np.float32)
