"""Settings of the commands for recordings. The text below a field is also the help of its command-line option."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dtsf.settings import Settings


class ClipSettings(Settings):
    """Settings of ``dtsf import --recordings``."""

    nothing: float = Field(default=1.0, ge=0, le=100)
    """Clips of the class nothing (pauses, other movements) for each event. 0: none."""
    nothing_seconds: float | None = Field(
        default=None, gt=0, json_schema_extra={"default_text": "as long as the events"}
    )
    """Length of the clips of nothing."""
    nothing_from: Literal["between", "all"] = "between"
    """between: from the gaps between the first and the last event. all: also before and after, if all of it was watched."""
    nothing_margin: float = Field(default=0.25, ge=0, le=3600)
    """Seconds that a clip of nothing keeps away from every event."""
