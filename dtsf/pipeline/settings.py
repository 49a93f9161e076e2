"""Settings of stage 1: one object from the command line to the shard."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - pydantic reads annotations at run time
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from dtsf.settings import Settings


def read_share(value: Any) -> Any:
    """``5%`` -> 0.05; a number stays as it is."""
    text = value.strip() if isinstance(value, str) else ""
    if not text:
        return value
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError as error:
        raise ValueError("must be a share such as 5% or 0.05") from error


Share = Annotated[float, BeforeValidator(read_share), Field(ge=0, le=1)]
"""From 0 to 1, also written as a percentage."""


class PreprocessSettings(Settings):
    """What is read, what is computed of it, where it goes and how it runs."""

    views: str = "all"
    """all, or view numbers or names joined by commas."""
    limit: int | None = Field(default=None, ge=1)
    """Only the first whole groups with this many clips."""
    videos: Path | None = None
    """Folder that the paths of a table are relative to, where the table lies elsewhere."""

    decoder: Literal["pyav", "decord"] = "pyav"
    """pyav decodes in order; decord is held against it, picture by picture, and costs both."""
    align: Literal["own", "group"] = "own"
    """Moments of each view's own time, or (cameras that started together) of the time common to a performance's views."""
    frames: int = Field(default=16, ge=1, le=1024)
    """Frames kept of each clip, at equal shares of its time."""
    size: int = Field(default=192, ge=32, le=4096)
    """Side in pixels of the square picture that is embedded. 288 tells arms apart better, in 2.3 times the time."""
    crop: Literal["motion", "centre"] | None = Field(
        default=None, json_schema_extra={"default_text": "motion; centre for pixels"}
    )
    """Which square of the picture: motion (around what moves: still cameras) or centre."""
    encoder: str = "efficientnet-lite0"
    """efficientnet-lite0, -lite1 or -lite2, with the stride of its map :8, :16 or :32; timm:MODEL[@FILE]; pixels."""
    encoder_weights: Path | None = None
    """File with weights of your own for the encoder (safetensors, or a PyTorch state)."""
    grid: int = Field(default=6, ge=3, le=4096)
    """Cells along each side of an embedding; divisible by 3."""

    name: str | None = Field(default=None, json_schema_extra={"default_text": "DATASET"})
    """Name in the cache. Choose one to keep several collections side by side."""
    format: Literal["zarr", "hdf5"] | None = Field(
        default=None, json_schema_extra={"default_text": "zarr, or as the data set is"}
    )
    """Storage format."""
    compress: Literal["none", "zstd", "gzip"] | None = Field(
        default=None, json_schema_extra={"default_text": "none, or as the data set is"}
    )
    """Smaller and slower: zstd (zarr) or gzip (hdf5)."""
    shard_size: int = Field(default=64, ge=1, le=1_000_000)
    """Clips of a shard, the unit of commit: what is lost at most when a process dies."""
    overwrite: bool = False
    """Remove this data set from the cache first."""

    workers: int | None = Field(default=None, ge=1, le=4096, json_schema_extra={"default_text": "one a core"})
    """Processes; 1 works in this one."""
    scheduler: str | None = None
    """tcp://HOST:PORT of a running dask scheduler whose workers see the same paths."""
    check: Literal["fast", "full"] = "fast"
    """full decodes every frame and refuses clips with damaged ones."""
    deadline: float = Field(default=60.0, ge=0.01, le=86400)
    """Seconds that decoding one clip may take."""
    max_bad: Share = 0.05
    """Share of clips that may be unusable before the exit code is 1."""
    retry_bad: bool = False
    """Try the clips again that could not be used; else only if their file changes."""
    dry_run: bool = False
    """Say what would be done, and do nothing."""

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str | None) -> str | None:
        if name is not None and (name.startswith(".") or "/" in name or "\\" in name or not name.strip()):
            raise ValueError("must be a plain folder name")
        return name
