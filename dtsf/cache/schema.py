"""Data types of a cache: clips and their annotations, sources, records of shards, and the catalog."""

from __future__ import annotations

import json
from typing import Literal

import xxhash
from pydantic import Field

from dtsf.cache.status import Status
from dtsf.settings import Frozen

SCHEMA_VERSION = 1
"""Version of the meaning of the values. Part of the fingerprint."""
LAYOUT = 4
"""Version of the stored documents. Other layouts are refused."""
MAX_INTEGER = 1 << 53
"""Largest integer that every JSON reader keeps exactly."""


class FilePart(Frozen):
    """Video file or folder of pictures, or a part of it."""

    path: str
    """Path relative to the data root, with forward slashes."""
    start: float | None = Field(default=None, ge=0)
    """Start of the part in seconds (untrimmed video); ``end`` is its end."""
    end: float | None = Field(default=None, gt=0)
    first: int | None = Field(default=None, ge=0, le=MAX_INTEGER)
    """First frame of the part, from 0, in place of ``start``; ``last`` is the last frame, ``fps`` the rate of a picture folder."""
    last: int | None = Field(default=None, ge=0, le=MAX_INTEGER)
    fps: float | None = Field(default=None, gt=0)

    @property
    def part(self) -> str:
        """The part as the suffix of a key, for example ``@start=1.0@end=2.5``. Empty for the whole file."""
        values = {name: getattr(self, name) for name in ("start", "end", "first", "last", "fps")}
        return "".join(f"@{name}={value!r}" for name, value in values.items() if value is not None)


class Clip(FilePart):
    """Video of one performance by one camera, and its annotations. Annotations may change at any time."""

    id: str
    """Unique in its dataset, for example ``S001C002P003R001A010`` or ``a01_s02_e00_v03``."""
    label: int = Field(ge=0, lt=1_000_000)
    """Index in the catalog's ``class_names``."""
    raw_label: str
    """Class as the source writes it: ``12`` for N-UCLA's a12, ``wonder`` for CASIA, or the label in a manifest."""
    group: str
    """Performance. Clips of the same performance by different cameras have the same group."""
    view: int = Field(ge=1, le=4096)
    """Camera: index in the catalog's ``view_names``, from 1."""
    subject: str | None = None
    """Person, for example ``"5"``, or ``"1+2"`` for two persons."""
    setup: int | None = Field(default=None, ge=-MAX_INTEGER, le=MAX_INTEGER)
    """NTU's setup number (camera height and distance)."""
    split: str | None = None
    """Split in the manifest: ``train``, ``test`` or another word."""
    background: str | None = None
    """Name of the background. It measures static bias and is never an input."""
    offset: float = 0.0
    """Start of this file in seconds after time zero of the performance."""


class Source(FilePart):
    """File, or part of a file, that a row was computed from. It identifies the row. ``path`` is the path at that time."""

    bytes: int = Field(default=0, ge=0)
    """Size of the file, or of all pictures in a folder."""
    mtime_ns: int = 0
    """Modification time of the file, or of the newest picture in a folder."""
    listing: str = ""
    """xxh3-64 of the names, sizes and times of all pictures in a folder. Empty for a file."""
    content_hash: str = Field(min_length=1)
    """xxh3-128 of the bytes."""

    @property
    def key(self) -> str:
        """Content hash and part of the file. A catalog entry names its row by this key."""
        return self.content_hash + self.part

    @property
    def file_version(self) -> tuple[str, str, int, int, str]:
        """Path, part, size and time of the file. The bytes are the same as long as these are."""
        return self.path, self.part, self.bytes, self.mtime_ns, self.listing


class ClipRecord(Frozen):
    """Result of stage 1 for one source. It has no annotations; those are in the catalog.

    ``declared_frames``: in the container's header, 0 if unknown. ``decoded_frames``: shown by a player in ``duration`` seconds.
    """

    source: Source
    status: Status
    row: int | None = Field(ge=-MAX_INTEGER, le=MAX_INTEGER)
    """Row in the shard. None if the clip cannot be used."""
    reason: str = ""
    """Reason for a status other than ``ok``."""
    declared_frames: int = Field(default=0, ge=-MAX_INTEGER, le=MAX_INTEGER)
    decoded_frames: int = Field(default=0, ge=-MAX_INTEGER, le=MAX_INTEGER)
    missing_frames: int = Field(default=0, ge=-MAX_INTEGER, le=MAX_INTEGER)
    """Number of frames that the container promises and lacks, although the clip is used."""
    duration: float | None = None
    frames_hash: str = ""
    """xxh3-64 of the frames that the encoder received."""

    @property
    def key(self) -> str:
        """Key of the source. See :attr:`Source.key`."""
        return self.source.key


class BadClip(Frozen):
    """Clip without a row, and the reason."""

    clip: Clip
    status: Status
    reason: str


class CacheSpec(Frozen):
    """Settings that decide the values in a cache. Caches with the same fingerprint have comparable values."""

    schema_version: int = SCHEMA_VERSION
    decoder: str
    """Decoder and version, for example ``pyav 14.0.0``."""
    sampling: str = "uniform_segments"
    """Sampling rule: the frames at the centres of F equal segments."""
    frames: int = Field(ge=1, le=4096)
    """F, frames per clip."""
    size: int = Field(ge=32, le=4096)
    """Side in pixels of the square input of the encoder."""
    crop: Literal["motion", "centre"] = "centre"
    """Square of the frame that is the input. See :mod:`dtsf.pipeline.video.crop`."""
    align: Literal["own", "group"] = "own"
    """Time range that is sampled: the view's own, or the range common to all views of a group."""
    grid: int = Field(ge=3, le=4096)
    """G. An embedding is a grid of G x G cells."""
    encoder: str
    """Name of the encoder. ``weights_hash`` identifies its weights."""
    weights_hash: str
    """xxh3-64 of the encoder's weights."""
    channels: int = Field(ge=1, le=65536)
    """C, channels per cell."""
    embedding_dtype: Literal["float16", "float32", "uint8"] = "float16"
    """``uint8`` for pixels."""
    picture_size: int = Field(default=48, ge=1, le=1024)

    def fingerprint(self) -> str:
        """Return sixteen hexadecimal digits: xxh3-64 of the fields as canonical JSON."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return xxhash.xxh3_64_hexdigest(text.encode())


def describe_difference(cached: CacheSpec, requested: CacheSpec) -> str:
    """Return the fields in which two specs differ: ``size: 192 in the cache, 224 requested``."""
    ours, theirs = cached.model_dump(), requested.model_dump()
    return "; ".join(
        f"{key}: {ours[key]} in the cache, {theirs[key]} requested" for key in ours if ours[key] != theirs[key]
    )


class DatasetName(Frozen):
    """Kind (``nucla``, ``ntu``, ``casia`` or ``manifest``) and name of a dataset."""

    kind: str
    name: str


class DatasetInfo(DatasetName):
    """Classes and views of a dataset. They may change with each ``preprocess``."""

    class_names: tuple[str, ...] = Field(max_length=100_000)
    view_names: tuple[str, ...] = Field(max_length=4096)


class DatasetMetadata(Frozen):
    """Document ``dtsf.json``. It is written once, when the dataset is made."""

    layout: int
    format: str
    compress: str
    fingerprint: str
    shard_size: int = Field(ge=1, le=1_000_000)
    """Rows of a full shard."""
    info: DatasetName
    spec: CacheSpec
    checksum: str = ""


class FileRecord(Frozen):
    """Size and checksum of a committed file."""

    bytes: int = Field(ge=0)
    xxh3: str


class StoredArray(Frozen):
    """Location of one array of one shard: ``bytes`` stored bytes of a file, from ``offset``."""

    file: str
    offset: int = Field(ge=0)
    bytes: int = Field(ge=0)


class ShardRecord(Frozen):
    """Commit record of a shard. A shard exists only if its record does."""

    shard: int = Field(ge=0)
    fingerprint: str
    rows: int = Field(ge=0)
    """Rows in use. The arrays have ``shard_size`` rows; padding follows."""
    clips: tuple[ClipRecord, ...]
    files: dict[str, FileRecord]
    """Files by path relative to the dataset's folder. They have no times: the same work gives the same bytes."""
    arrays: dict[str, StoredArray] = {}
    """Arrays by name."""
    checksum: str = ""


class PublishedFiles(Frozen):
    """Document ``published.json``: the files that show the shards to other programs."""

    shards: int = Field(ge=0)
    files: dict[str, FileRecord]
    previous: dict[str, FileRecord] = {}
    """Files before the last change. A crash during the change leaves either version."""
    checksum: str = ""


class CatalogEntry(Frozen):
    """Clip as the last ``preprocess`` found it, and the key of its row."""

    clip: Clip
    key: str = ""
    """Key of the source. Empty if the file is not hashed yet; then ``file_version`` finds the row."""
    bytes: int = Field(default=0, ge=0)
    mtime_ns: int = 0
    listing: str = ""
    """Current values; see :class:`Source`. The record has the values from when the row was computed."""
    status: Literal[Status.MISSING, Status.UNREACHABLE, Status.WAITING] | None = None
    """Reason why the clip has no record. A waiting clip has one as soon as its shard is committed."""
    reason: str = ""

    @property
    def file_version(self) -> tuple[str, str, int, int, str]:
        """Path, part, size and time of the file. See :attr:`Source.file_version`."""
        return self.clip.path, self.clip.part, self.bytes, self.mtime_ns, self.listing


class CatalogDocument(Frozen):
    """Document ``catalog.json``: the clips of a dataset and their current annotations."""

    info: DatasetInfo
    clips: tuple[CatalogEntry, ...]
    """Sorted by id."""
    notes: tuple[str, ...] = ()
    """Notes about the source, for example unreadable files and groups that lack a camera."""
    checksum: str = ""

    def content_hash(self) -> str:
        """Return the xxh3-64 of annotations and keys. A new label, split or row changes it; a moved file does not."""
        clips = [
            entry.clip.model_dump(mode="json", exclude={"path"}) | {"key": entry.key or entry.clip.path}
            for entry in self.clips
        ]
        text = json.dumps([self.info.class_names, self.info.view_names, clips], sort_keys=True, separators=(",", ":"))
        return xxhash.xxh3_64_hexdigest(text.encode("utf-8", "surrogatepass"))
