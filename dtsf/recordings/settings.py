"""Settings of the commands for recordings. The text below a field is also the help of its command-line option."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from dtsf.settings import Settings


def _lengths(value: Any) -> Any:
    """Convert ``2, 3.5`` to seconds. Raises ValueError: another text, or a number out of range."""
    try:
        numbers = [float(word) for word in value.split(",") if word.strip()] if isinstance(value, str) else list(value)
        if all(0.1 <= number <= 3600 for number in numbers):
            return tuple(numbers)
    except (TypeError, ValueError):
        pass
    raise ValueError("must be seconds from 0.1 to 3600, separated by commas, such as 2,3.5")


class MarkSettings(Settings):
    """Settings of everything that reads marks."""

    tier: tuple[str, ...] = ()
    """Tier of ELAN, or attribute of CVAT, that has the labels of the marks. Give it several times for several."""
    fps: float | None = Field(default=None, ge=0.01, json_schema_extra={"default_text": "those of the video"})
    """Frames a second that CVAT or Label Studio counts."""


class ClipSettings(MarkSettings):
    """Settings of ``dtsf import --recordings``."""

    nothing: float = Field(default=1.0, ge=0, le=100)
    """At most this number of clips of the class nothing (other movements, pauses) for each event. 0: none."""
    nothing_seconds: float | None = Field(
        default=None, gt=0, json_schema_extra={"default_text": "as long as the events"}
    )
    """Length of the clips of nothing."""
    nothing_from: Literal["between", "all"] = "between"
    """between: from the gaps between the first and the last event. all: also before and after, if all of it was watched."""
    nothing_margin: float = Field(default=0.25, ge=0, le=3600)
    """Seconds that a clip of nothing keeps away from every event."""


class TimelineSettings(MarkSettings):
    """Settings of ``dtsf timeline``."""

    windows: Annotated[tuple[float, ...], BeforeValidator(_lengths)] = Field(
        default=(), max_length=16, json_schema_extra={"default_text": "each movement from rest to rest"}
    )
    """Lengths in seconds of windows that slide over everything, separated by commas."""
    hop: float | None = Field(
        default=None, gt=0, le=3600, json_schema_extra={"default_text": "a tenth of a usual event"}
    )
    """Seconds from the start of one window to the next."""
    threshold: float | None = Field(
        default=None, gt=0, lt=1, json_schema_extra={"default_text": "0.4; 0.25 of a network without calibration"}
    )
    """Probability of an event from which a window can be a bout."""
    shortest: float | None = Field(
        default=None, ge=0, le=86400, json_schema_extra={"default_text": "half of the training's shortest event"}
    )
    """Seconds of the shortest bout."""
    gap: float | None = Field(default=None, ge=0, le=86400, json_schema_extra={"default_text": "as --shortest"})
    """Seconds between two bouts of one class below which they are one."""
    as_needed: Annotated[str | None, BeforeValidator(lambda value: value if value is None else str(value))] = Field(
        default=None, json_schema_extra={"metavar": "U|auto"}
    )
    """Read the camera that is most often right, and the next one only where the uncertainty of a movement is above this. auto: the
    uncertainty that costs at most half a point of accuracy on clips of held-out people."""
    encoder_weights: Path | None = None
    """File with the encoder's weights, if the training used custom weights."""
