"""Data types of a cache: clips and their annotations, sources, records of shards, and the catalog."""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import xxhash
from pydantic import Field

from dtsf.cache.status import CropNote, Status
from dtsf.settings import Frozen

SCHEMA_VERSION = 2  # meaning of the values; part of the fingerprint
LAYOUT = 5  # form of the stored documents; other layouts are refused
MAX_INTEGER = 1 << 53  # every JSON reader keeps integers up to this exactly

MAX_VIEWS = 4096
ENDING = re.compile(r"\.[a-z0-9]{1,8}$")

Count = Annotated[int, Field(ge=0)]
Integer = Annotated[int, Field(ge=-MAX_INTEGER, le=MAX_INTEGER)]
Length = Annotated[float, Field(ge=0, le=65536)]
FrameIndex = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
FileVersion = tuple[str, str, int, int, str]
Box = tuple[Length, Length, Length, Length]
"""Left, top, width and height in the picture: fractions if none exceeds 1, otherwise pixels."""


class FilePart(Frozen):
    """Video file or folder of pictures, or its part: seconds ``start`` to ``end`` of a player, or frames ``first`` to ``last``."""

    path: str  # relative to the data root, with forward slashes
    start: float | None = Field(default=None, ge=0)
    end: float | None = Field(default=None, gt=0)
    first: FrameIndex | None = None  # from 0
    last: FrameIndex | None = None
    fps: float | None = Field(default=None, gt=0)  # rate of a picture folder
    region: Box | None = None  # part of the picture that is used
    ignore: tuple[Box, ...] = Field(default=(), max_length=64)  # parts of the picture in which no movement is searched

    @property
    def part(self) -> str:
        """The part as the suffix of a key, for example ``.mp4@start=1.0@end=2.5``. It begins with the ending of the file, because
        FFmpeg chooses by it how to read some files: only of the same ending do the same bytes give the same row.
        """
        ending = ENDING.search(self.path.lower())
        given = [f"@{name}={value!r}" for name in PART if (value := getattr(self, name)) not in (None, ())]
        return (ending[0] if ending else "") + "".join(given)


PART = tuple(name for name in FilePart.model_fields if name != "path")  # made once, because there are many keys


class Clip(FilePart):
    """Video of one performance by one camera, and its annotations. Annotations may change at any time."""

    id: str  # unique in its dataset, for example S001C002P003R001A010 or a01_s02_e00_v03
    label: int = Field(ge=0, lt=1_000_000)  # index in the catalog's class_names
    raw_label: str  # class as the source writes it: 12 for N-UCLA's a12, wonder for CASIA, or the label in a manifest
    group: str  # performance: clips of it by different cameras have the same group
    view: int = Field(ge=1, le=MAX_VIEWS)  # camera: index in the catalog's view_names, from 1
    subject: str | None = None  # person, for example "5", or "1+2" for two persons
    setup: Integer | None = None  # NTU's setup number (camera height and distance)
    split: str | None = None  # split in the manifest: train, test or another word
    background: str | None = None  # measures static bias, never an input
    offset: float = 0.0  # start of this file in seconds after time zero of the performance
    line: Count | None = None  # of the table that names the clip; not part of the annotations

    @property
    def place(self) -> str:
        """Path, with the line of the table: several lines may name one file."""
        return self.path if self.line is None else f"{self.path} (line {self.line})"


class Source(FilePart):
    """File, or part of a file, that a row was computed from. It identifies the row. ``path`` is the path at that time."""

    bytes: Count = 0  # of the file, or of all pictures in a folder
    mtime_ns: int = 0  # of the file, or of the newest picture
    listing: str = ""  # xxh3-64 of the names, sizes and times of all pictures in a folder; empty for a file
    content_hash: str = Field(min_length=1)  # xxh3-128 of the bytes

    @property
    def key(self) -> str:
        """Content hash and part of the file. A catalog entry names its row by this key."""
        return self.content_hash + self.part

    @property
    def file_version(self) -> FileVersion:
        """Path, part, size and time of the file. The bytes are the same as long as these are."""
        return self.path, self.part, self.bytes, self.mtime_ns, self.listing


class ClipRecord(Frozen):
    """Result of stage 1 for one source. It has no annotations; those are in the catalog."""

    source: Source
    status: Status
    row: Integer | None  # in the shard; None if the clip cannot be used
    reason: str = ""  # for a status other than ok
    declared_frames: Integer = 0  # in the container's header, 0 if unknown
    decoded_frames: Integer = 0  # shown by a player in `duration` seconds
    missing_frames: Integer = 0  # promised by the container and absent, although the clip is used
    duration: float | None = None
    begin: float = Field(default=0.0, ge=0)  # seconds of the file at which its first shown frame begins
    frames_hash: str = ""  # xxh3-64 of the frames that the encoder received
    crop_notes: tuple[CropNote, ...] = ()  # about the square that was cut out

    @property
    def key(self) -> str:
        """Key of the source. See :attr:`Source.key`."""
        return self.source.key

    def reason_for(self, path: str) -> str:
        """Return the reason for a file of the same bytes at another path: it names this one."""
        old, new = PurePosixPath(self.source.path), PurePosixPath(path)
        names = {f"^{re.escape(self.source.path)}": path}
        if old.suffix:
            names |= {
                rf"(?<!\w){re.escape(old.name)}": new.name,
                rf"(?<!\w){re.escape(old.stem)}(?=_new|_short)": new.stem,
            }
        pattern, own = "|".join(f"({name})" for name in names), [*names.values()]
        return re.sub(pattern, lambda found: own[(found.lastindex or 1) - 1], self.reason)


class BadClip(Frozen):
    """Clip without a row, and the reason."""

    clip: Clip
    status: Status
    reason: str


class CacheSpec(Frozen):
    """Settings that decide the values in a cache. Caches with the same fingerprint have comparable values."""

    schema_version: int = SCHEMA_VERSION
    decoder: str  # with version, for example pyav 14.0.0
    sampling: str = "uniform_segments"  # the frames at the centres of F equal segments
    frames: int = Field(ge=1, le=4096)  # F, frames per clip
    size: int = Field(ge=32, le=4096)  # side in pixels of the square input of the encoder
    crop: Literal["motion", "centre"] = "centre"  # square of the frame; see dtsf.pipeline.video.crop
    align: Literal["own", "group"] = "own"  # time range: the view's own, or the range common to all views of a group
    grid: int = Field(ge=3, le=4096)  # G: an embedding is a grid of G x G cells
    encoder: str
    weights_hash: str  # xxh3-64 of the encoder's weights
    channels: int = Field(ge=1, le=65536)  # C, channels per cell
    embedding_dtype: Literal["float16", "float32", "uint8"] = "float16"  # uint8 for pixels
    picture_size: int = Field(default=48, ge=1, le=1024)

    def fingerprint(self) -> str:
        """Return sixteen hexadecimal digits: xxh3-64 of the fields as canonical JSON."""
        return _hash(self.model_dump(mode="json"))


def describe_difference(cached: CacheSpec, requested: CacheSpec) -> str:
    """Return the fields in which two specs differ: ``size: 192 in the cache, 224 requested``."""
    pairs = ((key, value, getattr(requested, key)) for key, value in cached.model_dump().items())
    return "; ".join(f"{key}: {ours} in the cache, {theirs} requested" for key, ours, theirs in pairs if ours != theirs)


class DatasetName(Frozen):
    """Kind (``nucla``, ``ntu``, ``casia`` or ``manifest``) and name of a dataset."""

    kind: str
    name: str


class ViewRegion(Frozen):
    """Region and ignored boxes that all clips of a view share. ``predict`` uses them."""

    region: Box | None = None
    ignore: tuple[Box, ...] = ()
    varies: bool = False  # True if the clips of the view have different ones


class DatasetInfo(DatasetName):
    """Classes and views of a dataset. They may change with each ``preprocess``."""

    class_names: tuple[str, ...] = Field(max_length=100_000)
    view_names: tuple[str, ...] = Field(max_length=MAX_VIEWS)
    view_regions: tuple[ViewRegion | None, ...] = ()  # of each view; empty if no view has one
    view_offsets: tuple[float | None, ...] = ()  # of each view, None if its clips differ; empty if all are 0
    # Of a run: quantiles of the seconds of each class's training clips (see splits.clip_seconds). Empty in a cache.
    clip_seconds: tuple[tuple[float, ...], ...] = ()
    subjects: tuple[str, ...] = ()  # of a run: who is in its training clips; empty in a cache


class DatasetMetadata(Frozen):
    """Document ``dtsf.json``. It is written once, when the dataset is made."""

    layout: int
    format: str
    compress: str
    fingerprint: str
    shard_size: int = Field(ge=1, le=1_000_000)  # rows of a full shard
    info: DatasetName
    spec: CacheSpec
    checksum: str = ""


class FileRecord(Frozen):
    """Size and checksum of a committed file."""

    bytes: Count
    xxh3: str


class StoredArray(Frozen):
    """Location of one array of one shard: ``bytes`` stored bytes of a file, from ``offset``."""

    file: str
    offset: Count
    bytes: Count


class ShardRecord(Frozen):
    """Commit record of a shard. A shard exists only if its record does."""

    shard: Count
    fingerprint: str
    rows: Count  # in use; the arrays have shard_size rows, padding follows
    clips: tuple[ClipRecord, ...]
    files: dict[str, FileRecord]  # by path in the dataset's folder; no times, so the same work gives the same bytes
    arrays: dict[str, StoredArray] = {}
    checksum: str = ""


class PublishedFiles(Frozen):
    """Document ``published.json``: the files that show the shards to other programs."""

    shards: Count
    files: dict[str, FileRecord]
    previous: dict[str, FileRecord] = {}  # before the last change; a crash during the change leaves either version
    checksum: str = ""


class CatalogEntry(Frozen):
    """Clip as the last ``preprocess`` found it, and the key of its row. Size and time are current, not those of the row."""

    clip: Clip
    key: str = ""  # of the source; empty if the file is not hashed yet, then file_version finds the row
    bytes: Count = 0
    mtime_ns: int = 0
    listing: str = ""
    # Reason why the clip has no record. A waiting clip has one as soon as its shard is committed.
    status: Literal[Status.MISSING, Status.UNREACHABLE, Status.WAITING] | None = None
    reason: str = ""

    @property
    def file_version(self) -> FileVersion:
        """Path, part, size and time of the file. See :attr:`Source.file_version`."""
        return self.clip.path, self.clip.part, self.bytes, self.mtime_ns, self.listing


class CatalogDocument(Frozen):
    """Document ``catalog.json``: the clips of a dataset and their current annotations."""

    info: DatasetInfo
    clips: tuple[CatalogEntry, ...]  # sorted by id
    notes: tuple[str, ...] = ()  # about the source, for example unreadable files and groups that lack a camera
    checksum: str = ""

    def content_hash(self) -> str:
        """Return the xxh3-64 of annotations and keys. A new label, split or row changes it; a moved file or line does not."""
        clips = [
            entry.clip.model_dump(mode="json", exclude={"path", "line"}) | {"key": entry.key or entry.clip.path}
            for entry in self.clips
        ]
        return _hash([self.info.class_names, self.info.view_names, clips])


def _hash(value: Any) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())
