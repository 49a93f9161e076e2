"""What became of a clip, in a module of its own: the decoder's child needs it, and starts faster without pydantic."""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """The result of decoding a clip. ``ok`` and ``short`` have a row in the cache; the others are only listed."""

    OK = "ok"
    SHORT = "short"
    """Fewer frames than were asked for; frames are repeated to fill the row. Usable."""
    TRUNCATED = "truncated"
    """Bytes, table or last time are short of what the container promises: the file was cut. Not used."""
    UNREADABLE = "unreadable"
    """No frame could be decoded. Not used."""
    CORRUPT = "corrupt"
    """Frames that the codec cannot decode or, with ``--check full``, that it flags as damaged. Not used."""
    MISPLACED = "misplaced"
    """With ``--decoder decord``: its frames are not those that were asked for. Not used."""
    TIMEOUT = "timeout"
    """Not decoded within the deadline. Not used."""
    CRASHED = "crashed"
    """The decoder's process died over it. Not used."""

    @property
    def usable(self) -> bool:
        """Whether a clip with this verdict has a row in the cache."""
        return self in (Status.OK, Status.SHORT)
