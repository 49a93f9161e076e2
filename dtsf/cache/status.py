"""Status of a clip. This module imports no pydantic, so that the decoder process starts fast."""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """Status of a clip. ``ok`` and ``short`` have a row in the cache; the others have a reason."""

    OK = "ok"
    SHORT = "short"
    """Fewer frames than requested. Frames are repeated to fill the row. Usable."""
    TRUNCATED = "truncated"
    """Bytes, table or last time are short of what the container promises: the file was cut. Not used."""
    UNREADABLE = "unreadable"
    """No frame could be decoded. Not used."""
    CORRUPT = "corrupt"
    """Frames that the codec cannot decode or, with ``--check full``, that it flags as damaged. Not used."""
    MISPLACED = "misplaced"
    """``--decoder decord`` returned other frames than those requested. Not used."""
    TIMEOUT = "timeout"
    """Not decoded within the deadline. Not used."""
    CRASHED = "crashed"
    """The decoder's process ended without a result. Not used."""
    MISSING = "missing"
    """The file does not exist. Retried by the next ``preprocess``."""
    UNREACHABLE = "unreachable"
    """The file exists and cannot be read. Retried by the next ``preprocess``."""
    WAITING = "waiting"
    """The clip is not processed yet, or its shard is damaged. Done by the next ``preprocess``."""

    @property
    def usable(self) -> bool:
        """True if a clip with this status has a row in the cache."""
        return self in (Status.OK, Status.SHORT)
