"""What all rooms speak of: one clip, and what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from dtsf.cache.verdict import Verdict
from dtsf.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Clip", "ClipRecord", "Frozen", "Verdict", "view_number", "view_numbers"]


class Frozen(BaseModel):
    """Base of all plain data: immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Clip(Frozen):
    """One camera's video of one performance."""

    id: str
    """Unique in its data set, for example ``S001C002P003R001A010`` or ``a01_s02_e00_v03``."""
    path: str
    """Relative to the data root, with forward slashes. A file, or a folder of frames."""
    label: int = Field(ge=0)
    """Class index, contiguous from 0, in the order of the catalog's ``class_names``."""
    raw_label: str
    """The class as the data set writes it: ``12`` for N-UCLA's a12, ``wonder`` for CASIA, the user's own word."""
    group: str
    """The performance that this clip shows; the clips of all cameras that filmed it have the same group."""
    view: int = Field(ge=1)
    """Camera number, from 1, in the order of the catalog's ``view_names``."""
    subject: str | None = None
    """Who performs: ``"5"``; ``"1+2"`` where two persons do; None where the data set does not say."""
    setup: int | None = None
    """NTU's setup number (camera height and distance)."""
    split: str | None = None
    """The manifest's own split, ``train`` or ``test`` or another word."""
    background: str | None = None
    """Identity of the room, where the data set says it; used to measure static bias, never as an input."""
    start: float | None = Field(default=None, ge=0)
    """Seconds from the beginning of the file at which the clip begins (untrimmed video)."""
    end: float | None = Field(default=None, gt=0)
    """Seconds from the beginning of the file at which the clip ends."""


class ClipRecord(Frozen):
    """A clip and what stage 1 made of it: one line of a shard's commit record."""

    clip: Clip
    verdict: Verdict
    row: int | None
    """Row inside the shard, or None where the clip could not be used."""
    reason: str = ""
    """Why it is not ``ok``, in words."""
    declared_frames: int = 0
    """Frames that the container's header declares; 0 where it does not say."""
    decoded_frames: int = 0
    """Frames that can be decoded."""
    source_bytes: int = 0
    """Size of the file when it was read; another size or time later means that the clip is done again."""
    source_mtime_ns: int = 0


def view_numbers(words: str, view_names: Sequence[str], where: str) -> list[int]:
    """Read camera numbers from ``all``, or from numbers or names joined by commas.

    Args:
        words: What a person wrote.
        view_names: Names of the data set's views, by number less 1.
        where: What was asked and of which data set, for the message.

    Returns:
        Numbers from 1, each once, in rising order.

    Raises:
        ConfigError: A view that the data set does not have.

    """
    if words.strip() == "all":
        return list(range(1, len(view_names) + 1))
    return sorted(
        {view_number(word.strip(), view_names, f"{where}; all takes every view") for word in words.split(",")}
    )


def view_number(word: str, view_names: Sequence[str], where: str) -> int:
    """Read one camera's number or name. Arguments and error as for :func:`view_numbers`."""
    if word in view_names:
        return list(view_names).index(word) + 1
    if word.isdecimal() and 1 <= int(word) <= len(view_names):
        return int(word)
    known = ", ".join(name if name == str(k) else f"{k} ({name})" for k, name in enumerate(view_names, 1))
    raise ConfigError(f"unknown view {word!r}: there are {known} ({where})")
