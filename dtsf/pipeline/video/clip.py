"""The part of a file that a clip covers (Span), the result of decoding it (DecodedClip), and the choice of its frames."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dtsf.cache.status import Status
from dtsf.errors import VideoError
from dtsf.pipeline.video.index import VideoIndex

if TYPE_CHECKING:  # pydantic is slow to import
    from dtsf.cache.schema import Box


@dataclass(frozen=True)
class Span:
    """Part of a file that a clip covers. The default is the whole file. Seconds are those of a player: see ``VideoIndex.begin``."""

    start: float | None = None  # seconds of the file
    end: float | None = None
    first: int | None = None  # number of the first frame: from 0 in a video, as in the file names of an image folder
    last: int | None = None
    fps: float | None = None  # frame rate of an image folder
    region: Box | None = None  # part of the picture that is used
    ignore: tuple[Box, ...] = ()  # parts of the picture in which no movement is searched
    common: bool = False  # True if start and end are the time that all views of the group share

    def since(self, begin: float) -> Span:
        """Return the same part in seconds from the first shown frame on, which a player shows at ``begin``."""
        start, end = (None if time is None else time - begin for time in (self.start, self.end))
        return replace(self, start=None if start is None else max(start, 0.0), end=end)

    def moments(self, n_frames: int, duration: float) -> np.ndarray:
        """Return the centres of ``n_frames`` equal parts of the time: (F,) float64. ``duration``: end of the file."""
        begin = self.start or 0.0
        stop = duration if self.end is None else self.end if self.common else min(self.end, duration)
        return begin + (np.arange(n_frames) + 0.5) * (stop - begin) / n_frames


WHOLE = Span()


@dataclass(frozen=True)
class DecodedClip:
    """Sampled frames of one clip."""

    frames: np.ndarray  # (F, size, size, 3) uint8 RGB
    frame_index: np.ndarray  # (F,) int32: index of each frame in presentation order, from 0
    frame_time: np.ndarray  # (F,) float64: seconds of the file; NaN for an image folder without fps
    available_frames: int  # frames of the clip; if they are fewer than F, the last one is repeated
    decoded_frames: int  # frames of the file that a player shows
    duration: float  # seconds that all frames are shown; 0 for an image folder without a frame rate
    begin: float = 0.0  # seconds of the file at which its first shown frame begins
    declared_frames: int = 0  # frames by the header; 0 if it has no count
    missing_frames: int = 0  # frames that the header counts and the file lacks
    crop_notes: tuple[str, ...] = ()  # about the square: see dtsf.cache.status.CROP_NOTES
    damaged: tuple[float, float] | None = None  # first and last second of the frames that the codec flags; None: none

    @property
    def status(self) -> Status:
        """``ok`` or ``short``."""
        return Status.OK if self.available_frames >= len(self.frames) else Status.SHORT

    def facts(self) -> dict[str, Any]:
        """Return the fields of a commit record as JSON values, with the xxh3-64 of the frames."""
        import xxhash

        short = self.status is Status.SHORT
        return {
            "decoded_frames": self.decoded_frames,
            "declared_frames": self.declared_frames,
            "missing_frames": self.missing_frames,
            "duration": self.duration,
            "begin": self.begin,
            "crop_notes": list(self.crop_notes),
            "status": self.status.value,
            "reason": f"{self.available_frames} of {len(self.frames)} frames; the last one is repeated"
            if short
            else "",
            "damaged": self.damaged and [*self.damaged],
            "frame_index": self.frame_index.tolist(),
            "frame_time": [None if np.isnan(time) else time for time in self.frame_time.tolist()],
            "frames_hash": xxhash.xxh3_64_hexdigest(self.frames.tobytes()),
        }


def check_span(path: Path, span: Span, begin: float, end: float) -> None:
    """Raise VideoError if no picture of a file, which are shown from second ``begin`` to ``end``, is in a span."""
    if span.start is not None and span.end is not None and span.end <= span.start:
        raise VideoError(f"{path}: the clip ends at {span.end:g} s, before it starts at {span.start:g} s")
    if span.start is not None and span.common and abs(span.start - end) < 1e-6:
        raise VideoError(
            f"{path}: the views of its group share no time; check start, end and offset, or use --align own"
        )
    if span.start is not None and span.start >= end:
        raise VideoError(f"{path}: the clip starts at {span.start:g} s, the picture ends at {end:.2f} s")
    if span.end is not None and span.end <= begin:
        raise VideoError(f"{path}: the clip ends at {span.end:g} s, the picture begins at {begin:.2f} s")


def reencode_hint(path: Path) -> str:
    """Return the next command for a file that cannot be decoded."""
    return f"try to re-encode it: ffmpeg -i {path.name} -c:v libx264 {path.stem}_new.mp4"


def short_message(error: BaseException) -> str:
    """Return the first line of an FFmpeg or Pillow error, without error number, file name and source position."""
    lines = str(error).strip().splitlines() or [""]
    return lines[0].split("]", 1)[-1].split(": '")[0].strip()[:200] or type(error).__name__


def segment_centres(n_frames: int, n_samples: int) -> np.ndarray:
    """Return the centres of ``n_samples`` equal segments of ``n_frames``, (n_samples,) int64 (TSN without randomness). 12 frames,
    4 samples: 1 4 7 10. With fewer frames the last one repeats. Raises ValueError: one of the numbers is below 1.
    """
    if n_frames < 1 or n_samples < 1:
        raise ValueError(f"n_frames ({n_frames}) and n_samples ({n_samples}) must be at least 1")
    if n_frames < n_samples:
        return np.minimum(np.arange(n_samples), n_frames - 1)
    # Integer arithmetic: (i + 1/2) * n / F in floating point can round to the neighbouring frame.
    return (2 * np.arange(n_samples) + 1) * n_frames // (2 * n_samples)


def select_frames(index: VideoIndex, n_samples: int, span: Span) -> tuple[np.ndarray, int]:
    """Select the frames shown at the centres of equal parts of a clip's time. Return sorted numbers, (F,) int64, and the number
    of the clip's frames. ``span``: in seconds of the file. At a constant rate it equals :func:`segment_centres`, whatever the
    clock's resolution.
    """
    span = span.since(index.begin)
    moments = span.moments(n_samples, index.duration)
    if span.common:
        return _frames_at(index, moments), n_samples
    by_number = span.first is not None or span.last is not None
    if by_number:
        first = min(span.first or 0, index.n_frames - 1)
        stop = index.n_frames if span.last is None else min(span.last + 1, index.n_frames)
    else:
        first = int(_index_at(index, span.start, "left")) if span.start else 0
        stop = index.n_frames if span.end is None else int(_index_at(index, span.end, "left"))
        if first >= stop:  # no frame starts in the span: keep the one that is shown
            first = int(_frames_at(index, span.start or 0.0))
            stop = first + 1
    if stop - first < n_samples or (index.is_steady and span.start is None and span.end is None):
        return first + segment_centres(stop - first, n_samples), stop - first
    if by_number:
        begin, end = (index.end_tick if k == index.n_frames else index.ticks[k] for k in (first, stop))
        moments = (begin + (np.arange(n_samples) + 0.5) * (end - begin) / n_samples) * float(index.tick)
    return np.clip(_frames_at(index, moments), first, stop - 1), stop - first


def _frames_at(index: VideoIndex, seconds: np.ndarray | float) -> np.ndarray:
    """Return the frame numbers shown at these times, clipped to the first and last frame."""
    return np.asarray(np.clip(_index_at(index, seconds, "right") - 1, 0, index.n_frames - 1))


def _index_at(index: VideoIndex, seconds: np.ndarray | float, side: Literal["left", "right"]) -> np.ndarray:
    """Return the insertion points of ``seconds`` in the frame times, as ``np.searchsorted``, tolerant to clock rounding."""
    ticks = np.asarray(seconds, np.float64) / float(index.tick)
    if index.is_steady and index.n_frames > 1:
        # The exact frame times, before the clock rounded them.
        exact: np.ndarray = ticks / index.step
        exact = np.ceil(exact - 1e-6) if side == "left" else np.floor(exact + 1e-6) + 1
        return np.asarray(np.clip(exact, 0, index.n_frames), np.int64)
    slack = 0.5 if index.gap > 8 else 1e-6 * index.gap
    return np.asarray(np.searchsorted(index.ticks, ticks - slack if side == "left" else ticks + slack, side))


def frames_shown(index: VideoIndex, seconds: np.ndarray) -> np.ndarray:
    """Return the numbers of the frames that a player shows at these seconds of the file, clipped to the first and last frame."""
    return _frames_at(index, seconds - index.begin)
