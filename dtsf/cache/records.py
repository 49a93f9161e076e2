"""Records that all packages share: a clip and its annotations, the identity of its bytes, and its result."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from dtsf.cache.status import Status
from dtsf.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["BadClip", "Clip", "ClipRecord", "Frozen", "Source", "Status", "part_of", "view_number", "view_numbers"]


LARGEST = 1 << 53
"""The largest whole number that every reader of JSON keeps."""


class Frozen(BaseModel):
    """Base of all plain data: immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Clip(Frozen):
    """One camera's video of one performance with its annotations, which are the catalog's and may change at any time."""

    id: str
    """Unique in its data set, for example ``S001C002P003R001A010`` or ``a01_s02_e00_v03``."""
    path: str
    """Relative to the data root, with forward slashes. A file, or a folder of frames."""
    label: int = Field(ge=0, lt=1_000_000)
    """Class index, contiguous from 0, in the order of the catalog's ``class_names``."""
    raw_label: str
    """The class as the data set writes it: ``12`` for N-UCLA's a12, ``wonder`` for CASIA, the user's own word."""
    group: str
    """The performance that this clip shows; the clips of all cameras that filmed it have the same group."""
    view: int = Field(ge=1, le=4096)
    """Camera number, from 1, in the order of the catalog's ``view_names``."""
    subject: str | None = None
    """Who performs: ``"5"``; ``"1+2"`` where two persons do; None where the data set does not say."""
    setup: int | None = Field(default=None, ge=-LARGEST, le=LARGEST)
    """NTU's setup number (camera height and distance)."""
    split: str | None = None
    """The manifest's own split, ``train`` or ``test`` or another word."""
    background: str | None = None
    """Identity of the room, where the data set says it; used to measure static bias, never as an input."""
    start: float | None = Field(default=None, ge=0)
    """Seconds from the beginning of the file at which the clip begins (untrimmed video)."""
    end: float | None = Field(default=None, gt=0)
    """Seconds from the beginning of the file at which the clip ends."""
    first: int | None = Field(default=None, ge=0, le=LARGEST)
    """Frame of the file, from 0, with which the clip begins; in the place of ``start``."""
    last: int | None = Field(default=None, ge=0, le=LARGEST)
    """Frame with which it ends."""
    fps: float | None = Field(default=None, gt=0)
    """Pictures a second of a folder of pictures, which does not say it itself."""
    offset: float = 0.0
    """Seconds by which this camera's file began later than the performance's time zero."""


class Source(Frozen):
    """The bytes that a row was computed from, and which part of them. Nothing else is a row's identity."""

    path: str
    """Relative to the data root, where they were then."""
    start: float | None = None
    end: float | None = None
    first: int | None = None
    last: int | None = None
    fps: float | None = None
    bytes: int = Field(default=0, ge=0)
    """Of the file; of a folder of pictures the sum of its files."""
    mtime_ns: int = 0
    """Of the file; of a folder of pictures the newest of its files."""
    listing: str = ""
    """Of a folder of pictures: xxh3-64 of the names, sizes and times of its files."""
    content_hash: str = Field(min_length=1)
    """xxh3-128 of the bytes."""

    @property
    def key(self) -> str:
        """By which a catalog names the row: the bytes and the part of them."""
        return self.content_hash + part_of(self)

    @property
    def file_version(self) -> tuple[str, str, int, int, str]:
        """Path, part, size and time of the file. The bytes are the same as long as these are."""
        return self.path, part_of(self), self.bytes, self.mtime_ns, self.listing


def part_of(what: Clip | Source) -> str:
    """Which part of a file is meant, as words of a key; empty for the whole."""
    words = ("start", what.start), ("end", what.end), ("first", what.first), ("last", what.last), ("fps", what.fps)
    return "".join(f"@{name}={value!r}" for name, value in words if value is not None)


class ClipRecord(Frozen):
    """What stage 1 made of some bytes: one line of a shard's commit record. Of what they show it says nothing."""

    source: Source
    status: Status
    row: int | None = Field(ge=-LARGEST, le=LARGEST)
    """Row inside the shard, or None where the clip could not be used."""
    reason: str = ""
    """Why it is not ``ok``, in words."""
    declared_frames: int = Field(default=0, ge=-LARGEST, le=LARGEST)
    """Frames that the container's header declares; 0 where it does not say."""
    decoded_frames: int = Field(default=0, ge=-LARGEST, le=LARGEST)
    """Frames that a player shows."""
    missing_frames: int = Field(default=0, ge=-LARGEST, le=LARGEST)
    """Frames that the container promises and does not have, where the clip is used all the same."""
    duration: float | None = None
    """Seconds that a player shows."""
    frames_hash: str = ""
    """xxh3-64 of the pictures that the encoder was given."""

    @property
    def key(self) -> str:
        """See :attr:`Source.key`."""
        return self.source.key


class BadClip(Frozen):
    """A clip that has no row, and why."""

    clip: Clip
    status: Status
    reason: str


def view_numbers(words: str, view_names: Sequence[str], where: str) -> list[int]:
    """Read camera numbers from ``all``, or from numbers or names joined by commas.

    ``view_names``: names of the data set's views, by number less 1. ``where``: what was asked and of which data set, for the
    message. Returns numbers from 1, each once, in rising order. Raises ConfigError: a view that the data set does not have.
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
    if word.isdecimal():
        # Where names are numbers, a number is a name: 2 is camera 02, and never the second camera, 05.
        same = [k for k, name in enumerate(view_names, 1) if name.isdecimal() and int(name) == int(word)]
        if len(same) == 1:
            return same[0]
        if 1 <= int(word) <= len(view_names) and not any(name.isdecimal() for name in view_names):
            return int(word)
    known = ", ".join(
        name if name.isdecimal() or any(other.isdecimal() for other in view_names) else f"{k} ({name})"
        for k, name in enumerate(view_names, 1)
    )
    raise ConfigError(f"unknown view {word!r}: there are {known} ({where})")
