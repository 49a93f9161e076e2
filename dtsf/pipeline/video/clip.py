"""Data types of decoding, and the rule that samples frames: a part of a file (Span) becomes a DecodedClip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from dtsf.cache.status import Status

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from dtsf.pipeline.video.index import VideoIndex


@dataclass(frozen=True)
class Span:
    """Part of a file that a clip covers. The default is the whole file."""

    start: float | None = None
    """Start in seconds of presentation; 0 is the first frame that a player shows."""
    end: float | None = None
    """End in seconds of presentation."""
    first: int | None = None
    """Number of the first frame: from 0 in a video, as in the file names of an image folder."""
    last: int | None = None
    """Number of the last frame."""
    fps: float | None = None
    """Frame rate of an image folder."""
    common: bool = False
    """True if ``start`` and ``end`` are the time that all views of the group share."""

    def moments(self, n_frames: int, duration: float) -> np.ndarray:
        """Return the centres of ``n_frames`` equal parts of the time, in seconds of presentation: (F,) float64."""
        begin = 0.0 if self.start is None else self.start
        stop = duration if self.end is None else self.end if self.common else min(self.end, duration)
        return begin + (np.arange(n_frames) + 0.5) * (stop - begin) / n_frames


WHOLE = Span()


@dataclass(frozen=True)
class DecodedClip:
    """Sampled frames of one clip."""

    frames: np.ndarray
    """(F, size, size, 3) uint8 RGB."""
    frame_index: np.ndarray
    """(F,) int32: index of each frame in presentation order, from 0."""
    frame_time: np.ndarray
    """(F,) float64: seconds from the first shown frame; NaN for an image folder without a frame rate."""
    status: Status
    """``ok`` or ``short``."""
    reason: str
    decoded_frames: int
    """Number of frames of the file that a player shows."""
    duration: float
    """Duration of the file in seconds; 0 for an image folder without a frame rate."""
    declared_frames: int = 0
    """Number of frames in the header; 0 if the header has none."""
    missing_frames: int = 0
    """Number of frames that the header counts and the file lacks."""

    @property
    def frames_hash(self) -> str:
        """xxh3-64 of the frames."""
        import xxhash

        return xxhash.xxh3_64_hexdigest(self.frames.tobytes())

    def facts(self) -> dict[str, Any]:
        """Return all fields except the frames, as JSON values."""
        facts = {name: value for name, value in vars(self).items() if name != "frames"}
        return facts | {
            "frame_index": self.frame_index.tolist(),
            "frame_time": [None if np.isnan(time) else time for time in self.frame_time.tolist()],
            "status": self.status.value,
            "frames_hash": self.frames_hash,
        }


def short_status(n_available: int, n_frames: int) -> tuple[Status, str]:
    """Return status and reason of a clip with ``n_available`` frames of which ``n_frames`` are sampled."""
    if n_available >= n_frames:
        return Status.OK, ""
    return Status.SHORT, f"{n_available} of {n_frames} frames; the last one is repeated"


def reencode_hint(path: Path) -> str:
    """Return the next command for a file that cannot be decoded."""
    return f"try to re-encode it: ffmpeg -i {path.name} -c:v libx264 {path.stem}_new.mp4"


def short_message(error: BaseException) -> str:
    """Return the first line of an FFmpeg or Pillow error, without error number, file name and source position."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = lines[0].split("]", 1)[-1]
    return text.split(": '")[0].strip()[:200] or type(error).__name__


def segment_centres(n_frames: int, n_samples: int) -> np.ndarray:
    """Cut ``n_frames`` into ``n_samples`` equal segments and return the centre of each (TSN's rule without randomness).

    ::

        n_frames = 12, n_samples = 4:   .x..x..x..x.   ->   1 4 7 10

    A clip with fewer frames than ``n_samples`` gives every frame in order, then repeats the last one.

    Returns (n_samples,) int64, sorted, within [0, n_frames). Raises ValueError: one of the numbers is below 1.
    """
    if n_frames < 1 or n_samples < 1:
        raise ValueError(f"n_frames ({n_frames}) and n_samples ({n_samples}) must be at least 1")
    if n_frames < n_samples:
        return np.minimum(np.arange(n_samples), n_frames - 1)
    # Integer arithmetic: (i + 1/2) * n / F in floating point can round to the neighbouring frame.
    return (2 * np.arange(n_samples) + 1) * n_frames // (2 * n_samples)


def select_frames(index: VideoIndex, n_samples: int, span: Span) -> tuple[np.ndarray, int]:
    """Select the frames that are shown at the centres of ``n_samples`` equal parts of a clip's time.

    At a constant frame rate this equals :func:`segment_centres`, whatever the resolution of the file's clock.

    ``index``: of a file with at least one frame. Returns sorted frame numbers, (F,) int64, and the number of frames in the clip.
    """
    moments = span.moments(n_samples, index.duration)
    if span.common:
        return _frames_at(index, moments), n_samples
    by_number = span.first is not None or span.last is not None
    if by_number:
        first = min(span.first or 0, index.n_frames - 1)
        stop = index.n_frames if span.last is None else min(span.last + 1, index.n_frames)
    else:
        first, stop = _frames_between(index, span.start, span.end)
    if stop - first < n_samples or (index.is_steady and span.start is None and span.end is None):
        return first + segment_centres(stop - first, n_samples), stop - first
    if by_number:
        begin, end = (index.end_tick if k == index.n_frames else index.ticks[k] for k in (first, stop))
        moments = (begin + (np.arange(n_samples) + 0.5) * (end - begin) / n_samples) * float(index.tick)
    return np.clip(_frames_at(index, moments), first, stop - 1), stop - first


def _frames_between(index: VideoIndex, start: float | None, end: float | None) -> tuple[int, int]:
    """Return the range of frames with a time in [start, end); if it is empty, the frame shown at ``start``."""
    first = 0 if start is None else int(_index_at(index, start, "left"))
    stop = index.n_frames if end is None else int(_index_at(index, end, "left"))
    if first < stop:
        return first, stop
    shown = int(_frames_at(index, 0.0 if start is None else start))
    return shown, shown + 1


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
