"""What identifies a cache, what it holds, and the commit record of one shard."""

from __future__ import annotations

import json
from typing import Literal

import xxhash
from pydantic import Field

from dtsf.cache.records import ClipRecord, Frozen

SCHEMA_VERSION = 1
"""What the values mean. Part of the fingerprint."""
LAYOUT = 3
"""How they are stored. 1: Zarr only, documents without seals. 2: records say what a clip is, no ``frame_time``, no catalog.
Both are read, and gone on with; the catalog is written beside them."""


class CacheSpec(Frozen):
    """Everything that decides the values in a cache: two caches with one fingerprint hold comparable numbers."""

    schema_version: int = SCHEMA_VERSION
    decoder: str
    """Decoder and its version, for example ``decord2 3.4.0``."""
    sampling: str = "segment-centre"
    frames: int = Field(ge=1, le=4096)
    """F, frames of a clip."""
    size: int = Field(ge=32, le=4096)
    """Side in pixels of the square picture that is embedded."""
    crop: Literal["motion", "centre"] = "centre"
    """Which square of the picture that is; see :mod:`dtsf.pipeline.video.crop`. Caches from before there was a choice: centre."""
    align: Literal["own", "group"] = "own"
    """Moments of each view's own time, or of the time common to all views of a performance."""
    grid: int = Field(ge=3, le=4096)
    """G: an embedding is a G x G grid of cells."""
    encoder: str
    """Its name. A person's own weights are in ``weights_hash``, not here; caches from before that say ``timm:MODEL@FILE``."""
    weights_hash: str
    """xxh3-64 of the encoder's weights file; of all its weights where timm fetched them."""
    channels: int = Field(ge=1, le=65536)
    """C, channels of a cell."""
    embedding_dtype: Literal["float16", "float32", "uint8"] = "float16"
    """``uint8`` for pixels."""
    picture_size: int = Field(default=48, ge=1, le=1024)
    """Side in pixels of the small pictures kept for looking."""

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits: xxh3-64 of the fields as canonical JSON.

        Where a weights file lies does not count, what is in it does (``weights_hash``).
        """
        fields = self.model_dump(mode="json") | {"encoder": self.encoder.partition("@")[0]}
        if self.crop == "centre":
            # As it was when there was nothing else: caches of then are gone on with.
            del fields["crop"]
        if self.align == "own":
            del fields["align"]
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        return xxhash.xxh3_64_hexdigest(text.encode())


class DatasetName(Frozen):
    """Which data set it is; what it holds is the catalog's to say."""

    dataset: str
    """Kind: ``nucla``, ``ntu``, ``casia``, ``manifest``."""
    name: str
    """Name in the cache."""


class DatasetInfo(DatasetName):
    """What stage 2 needs to know of the data set itself."""

    class_names: tuple[str, ...] = Field(max_length=100_000)
    view_names: tuple[str, ...] = Field(max_length=4096)


class DatasetMetadata(Frozen):
    """What a data set says of itself: ``dtsf.json``."""

    layout: int = 1
    format: str = "zarr"
    compress: str = "none"
    fingerprint: str
    shard_size: int = Field(ge=1, le=1_000_000)
    """Rows of a whole shard."""
    info: DatasetInfo | DatasetName
    """Classes and views in layouts 1 and 2."""
    spec: CacheSpec
    seal: str = ""


class FileRecord(Frozen):
    """Size and checksum of one file, as it was committed."""

    bytes: int = Field(ge=0)
    xxh3: str


class PublishedFiles(Frozen):
    """How far the files reach that show the shards to other programs, and their checksums: ``extent.json``."""

    shards: int = Field(ge=0)
    files: dict[str, FileRecord]
    before: dict[str, FileRecord] = {}
    """What the files were before: after a crash while they are replaced either is right."""
    seal: str = ""


class Part(Frozen):
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
    seconds: float = Field(default=0, exclude=True)
    """The oldest records of layout 1 had one; read, and not written."""
    parts: dict[str, Part] = {}
    """By array. Layout 1 had none: there an array is the whole of its file."""
    seal: str = ""


def describe_difference(held: CacheSpec, asked: CacheSpec) -> str:
    """Say field by field how two specs differ: ``size: 192 in the cache, 224 asked for``."""
    ours, theirs = held.model_dump(), asked.model_dump()
    return "; ".join(
        f"{key}: {ours[key]} in the cache, {theirs[key]} asked for" for key in ours if ours[key] != theirs[key]
    )
