"""What is asked of a video, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dtsf.cache.status import Status

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any


@dataclass(frozen=True)
class Span:
    """Which part of a file a clip is. Left out, the whole."""

    start: float | None = None
    """Seconds of presentation at which it begins; 0 is the first frame that is shown."""
    end: float | None = None
    """Seconds at which it ends."""
    first: int | None = None
    """Number of its first frame: from 0 in a video, as the names say in a folder of pictures."""
    last: int | None = None
    """Number of its last frame."""
    fps: float | None = None
    """Pictures a second of a folder of pictures."""
    common: bool = False
    """Frames are those shown at moments between ``start`` and ``end``, which other views of the performance share."""

    def moments(self, n_frames: int, duration: float) -> np.ndarray:
        """Centres of ``n_frames`` equal shares of the time, in seconds of presentation. (F,) float64."""
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
    """(F,) int32: the how manyth frame of the file that is shown each is, from 0."""
    frame_time: np.ndarray
    """(F,) float64, seconds from the first frame that is shown; NaN for pictures without a frame rate."""
    verdict: Status
    """``ok`` or ``short``."""
    reason: str
    declared_frames: int
    """As the header says; 0 where it does not."""
    decoded_frames: int
    """Frames of the file that are shown."""
    missing_frames: int
    """Frames that the header counts and that are not there."""
    duration: float
    """Seconds that the file shows; 0 for pictures without a frame rate."""

    @property
    def frames_hash(self) -> str:
        """xxh3-64 of the frames."""
        import xxhash

        return xxhash.xxh3_64_hexdigest(self.frames.tobytes())

    def facts(self) -> dict[str, Any]:
        """All but the frames, as JSON takes it."""
        facts = {name: value for name, value in vars(self).items() if name != "frames"}
        return facts | {
            "frame_index": self.frame_index.tolist(),
            "frame_time": [None if np.isnan(time) else time for time in self.frame_time.tolist()],
            "verdict": self.verdict.value,
            "frames_hash": self.frames_hash,
        }


def short_status(n_held: int, n_frames: int) -> tuple[Status, str]:
    """Whether a clip has the frames that were asked for."""
    if n_held >= n_frames:
        return Status.OK, ""
    return Status.SHORT, f"{n_held} of {n_frames} frames; the last one is repeated"


def reencode_hint(path: Path) -> str:
    """What a person can do with a file that cannot be used."""
    return f"perhaps another program reads it: ffmpeg -i {path.name} -c:v libx264 {path.stem}_new.mp4"


def short(error: BaseException) -> str:
    """First line of an error: its number and the file's name left out, and what a library says of its own code."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = lines[0].split("]", 1)[-1]
    return text.split(": '")[0].strip()[:200] or type(error).__name__
