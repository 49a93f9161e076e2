"""What identifies a cache, what it holds, and the commit record of one shard."""

from __future__ import annotations

import json
from typing import Literal

import xxhash
from pydantic import Field

from dtsf.cache.records import ClipRecord, Frozen

SCHEMA_VERSION = 1
"""What the values mean. StoredArray of the fingerprint."""
LAYOUT = 4
"""Version of the stored documents. Older layouts are refused."""


class CacheSpec(Frozen):
    """Everything that decides the values in a cache: two caches with one fingerprint hold comparable numbers."""

    schema_version: int = SCHEMA_VERSION
    decoder: str
    """Decoder and its version, for example ``decord2 3.4.0``."""
    sampling: str = "uniform_segments"
    frames: int = Field(ge=1, le=4096)
    """F, frames of a clip."""
    size: int = Field(ge=32, le=4096)
    """Side in pixels of the square picture that is embedded."""
    crop: Literal["motion", "centre"] = "centre"
    """Which square of the picture that is; see :mod:`dtsf.pipeline.video.crop`."""
    align: Literal["own", "group"] = "own"
    """Moments of each view's own time, or of the time common to all views of a performance."""
    grid: int = Field(ge=3, le=4096)
    """G: an embedding is a G x G grid of cells."""
    encoder: str
    """Name of the encoder. ``weights_hash`` identifies its weights."""
    weights_hash: str
    """xxh3-64 of the encoder's weights file; of all its weights where timm fetched them."""
    channels: int = Field(ge=1, le=65536)
    """C, channels of a cell."""
    embedding_dtype: Literal["float16", "float32", "uint8"] = "float16"
    """``uint8`` for pixels."""
    picture_size: int = Field(default=48, ge=1, le=1024)
    """Side in pixels of the small pictures kept for looking."""

    def fingerprint(self) -> str:
        """Return sixteen hexadecimal digits: xxh3-64 of the fields as canonical JSON."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return xxhash.xxh3_64_hexdigest(text.encode())


class DatasetName(Frozen):
    """Which data set it is; what it holds is the catalog's to say."""

    kind: str
    """Kind: ``nucla``, ``ntu``, ``casia``, ``manifest``."""
    name: str
    """Name in the cache."""


class DatasetInfo(DatasetName):
    """What stage 2 needs to know of the data set itself."""

    class_names: tuple[str, ...] = Field(max_length=100_000)
    view_names: tuple[str, ...] = Field(max_length=4096)


class DatasetMetadata(Frozen):
    """What a data set says of itself: ``dtsf.json``."""

    layout: int
    format: str
    compress: str
    fingerprint: str
    shard_size: int = Field(ge=1, le=1_000_000)
    """Rows of a whole shard."""
    info: DatasetName
    spec: CacheSpec
    checksum: str = ""


class FileRecord(Frozen):
    """Size and checksum of one file, as it was committed."""

    bytes: int = Field(ge=0)
    xxh3: str


class PublishedFiles(Frozen):
    """How far the files reach that show the shards to other programs, and their checksums: ``extent.json``."""

    shards: int = Field(ge=0)
    files: dict[str, FileRecord]
    previous: dict[str, FileRecord] = {}
    """Files before the last change. A crash during the change leaves either version."""
    checksum: str = ""


class StoredArray(Frozen):
    """Where the bytes of one array of one shard are."""

    file: str
    """Relative to the data set's folder."""
    offset: int = Field(ge=0)
    bytes: int = Field(ge=0)
    """As stored; more or fewer than the values where they are compressed."""


class ShardRecord(Frozen):
    """Commit record: a shard exists if and only if this does."""

    shard: int = Field(ge=0)
    fingerprint: str
    rows: int = Field(ge=0)
    """Rows in use; the shard's arrays always have the same number of rows, padded behind these."""
    clips: tuple[ClipRecord, ...]
    files: dict[str, FileRecord]
    """By path relative to the data set's folder. No time stands here: two runs of the same work leave the same bytes."""
    arrays: dict[str, StoredArray] = {}
    """By name of the array."""
    checksum: str = ""


def describe_difference(held: CacheSpec, asked: CacheSpec) -> str:
    """Say field by field how two specs differ: ``size: 192 in the cache, 224 asked for``."""
    ours, theirs = held.model_dump(), asked.model_dump()
    return "; ".join(
        f"{key}: {ours[key]} in the cache, {theirs[key]} asked for" for key in ours if ours[key] != theirs[key]
    )
