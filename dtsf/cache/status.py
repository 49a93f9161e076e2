"""Status of a clip. This module imports no pydantic, so that the decoder process starts fast."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

CropNote = Literal["border", "everywhere", "second", "small", "still", "wide"]
CROP_NOTES: dict[CropNote, str] = {
    "still": "nothing moves: the middle of the picture is used",
    "everywhere": "the movement is everywhere (does the camera move?): the middle of the picture is used",
    "wide": "the movement does not fit into the largest square: it is capped, or the whole picture is used",
    "second": "a second mover does not fit into the square: the larger one, or the one that stays, is used",
    "small": "small things, text or lamps that move are not in the square",
    "border": "the square lies at a border of the picture",
}
"""Sentences of ``dtsf cache info`` about the square of a clip (``--crop motion``)."""


class Status(StrEnum):
    """Status of a clip. ``ok`` and ``short`` have a row in the cache; the others have a reason."""

    OK = "ok"
    SHORT = "short"  # fewer frames than requested; frames are repeated to fill the row
    TRUNCATED = "truncated"  # bytes, table or last time are short of what the container promises: the file was cut
    UNREADABLE = "unreadable"  # no frame could be decoded
    CORRUPT = "corrupt"  # frames that the codec cannot decode or, with --check full, that it flags as damaged
    MISPLACED = "misplaced"  # --decoder decord returned other frames than those requested
    TIMEOUT = "timeout"  # not decoded within the deadline
    CRASHED = "crashed"  # the decoder's process ended without a result
    MISSING = "missing"  # the file does not exist; retried by the next preprocess
    UNREACHABLE = "unreachable"  # the file exists and cannot be read; retried by the next preprocess
    WAITING = "waiting"  # not processed yet, or its shard is damaged; done by the next preprocess

    @property
    def usable(self) -> bool:
        """True if a clip with this status has a row in the cache."""
        return self in (Status.OK, Status.SHORT)
