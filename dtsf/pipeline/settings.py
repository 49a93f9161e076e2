"""Settings of stage 1. The text below a field is also the help of its command-line option."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from dtsf.cache.schema import Box
from dtsf.names import tidy
from dtsf.settings import Settings

ADDRESS = re.compile(r"((tcp|tls|ucxx?|wss?)://)?([\w.-]+|\[[\w:.%]+\]):\d{1,5}/?")  # of a dask scheduler
MAX_NAME = 200  # bytes of a dataset's name: file systems allow 255, and temporary names are longer

MAX_PIXELS = 65536  # largest number of a box


def read_share(value: Any) -> Any:
    """Convert ``5%`` to 0.05. Numbers are returned unchanged. Raises ValueError: another text."""
    text = value.strip() if isinstance(value, str) else ""
    if not text:
        return value
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError as error:
        raise ValueError("must be a share such as 5% or 0.05") from error


def read_boxes(value: Any) -> Any:
    """Convert ``0.1 0.2 0.5 0.6; ...`` to boxes. Boxes are returned unchanged. Raises ValueError: another text."""
    if not isinstance(value, str):
        return value
    boxes = []
    for text in filter(str.strip, re.split("[;|]", value)):
        words = [word.strip(",").replace(",", ".") for word in text.split()] if " " in text.strip() else text.split(",")
        try:
            box = tuple(map(float, words))
        except ValueError:
            box = ()
        if len(box) != 4 or not all(0 <= number <= MAX_PIXELS for number in box) or min(box[2:]) <= 0:
            raise ValueError(
                f"must be four numbers: left, top, width, height (0.1 0.2 0.5 0.6: shares of the picture; "
                f"64 48 320 240: pixels), not {text.strip()!r}"
            )
        if max(box) <= 1 < max(box[0] + box[2], box[1] + box[3]) - 1e-6:
            raise ValueError(
                f"reaches beyond the picture: {text.strip()!r} (left + width and top + height are at most 1)"
            )
        boxes.append(box)
    return tuple(boxes)


def read_region(value: Any) -> Any:
    """Convert a text to one box, or None if it is empty. Raises ValueError: another text, or several boxes."""
    boxes = read_boxes(value)
    if not isinstance(value, str):
        return value
    if len(boxes) > 1:
        raise ValueError("must be one box: left, top, width, height")
    return boxes[0] if boxes else None


Share = Annotated[float, BeforeValidator(read_share), Field(ge=0, le=1)]
"""A fraction from 0 to 1. Percentages such as ``5%`` are accepted."""


def _default(text: str, **rules: Any) -> Any:
    return Field(default=None, json_schema_extra={"default_text": text}, **rules)


class PreprocessSettings(Settings):
    """Settings of ``dtsf preprocess``."""

    views: str = "all"
    """Views to use: all, or view numbers or names separated by commas."""
    limit: int | None = Field(default=None, ge=1)
    """Use the first groups until there are this many clips. The last group stays whole."""
    videos: Path | None = None
    """Folder of the paths in a manifest. Default: the folder of the manifest."""

    decoder: Literal["pyav", "decord"] = "pyav"
    """Decoder library. pyav decodes exact frames. decord is checked against pyav frame by frame, so it is slower."""
    align: Literal["own", "group"] = "own"
    """own: sample each view over its own duration. group: sample all views of a performance at the same times (cameras that
    started together, or have the column offset)."""
    frames: int = Field(default=16, ge=1, le=1024)
    """Frames per clip, at equal intervals of time."""
    size: int = Field(default=192, ge=32, le=4096)
    """Size in pixels of the square input to the encoder. 288 gives finer detail and takes 2.3x as long."""
    crop: Literal["motion", "centre"] | None = _default("motion; centre for pixels")
    """Square part of the frame to use. motion: around the people who move (for fixed cameras). centre: the middle."""
    region: Annotated[Box | None, BeforeValidator(read_region)] = _default("the whole picture")
    """Part of the picture to use: left, top, width, height, as shares (0,0,1,0.9) or pixels. A column region comes first."""
    ignore: Annotated[tuple[Box, ...], BeforeValidator(read_boxes)] = Field(
        default=(), max_length=64, json_schema_extra={"default_text": "nothing"}
    )
    """Parts of the picture in which --crop motion does not look, as for --region, separated by ";": a clock, a screen, a fan."""
    encoder: str = "efficientnet-lite0"
    """efficientnet-lite0, -lite1 or -lite2, with an optional stride of the feature map (:8, :16, :32); timm:MODEL; or pixels."""
    encoder_weights: Path | None = None
    """File with your own encoder weights (safetensors or a PyTorch state dict)."""
    grid: int = Field(default=6, ge=3, le=4096)
    """Cells on each side of the embedding grid. Must be divisible by 3."""

    name: str | None = _default("DATASET")
    """Name of the dataset in the cache. Use another name to keep several datasets in one cache."""
    format: Literal["zarr", "hdf5"] | None = _default("zarr, or that of the dataset")
    """Storage format."""
    compress: Literal["none", "zstd", "gzip"] | None = _default("none, or that of the dataset")
    """Compression, smaller but slower: zstd (zarr) or gzip (hdf5)."""
    shard_size: int = Field(default=64, ge=1, le=1_000_000)
    """Clips per shard. A shard is written as a whole; a killed process loses at most one."""
    overwrite: bool = False
    """Remove this dataset from the cache first."""

    workers: int | None = _default("one per core or GPU", ge=1, le=4096)
    """Number of worker processes. 1 runs in the current process."""
    scheduler: str | None = None
    """Address tcp://HOST:PORT or tls://HOST:PORT of a running dask scheduler. Its workers must see the same paths."""
    check: Literal["fast", "full"] = "fast"
    """full: decode every frame, and refuse clips with damaged frames."""
    deadline: float = Field(default=60.0, ge=0.01, le=86400)
    """Maximum seconds to decode one clip."""
    max_bad: Share = 0.05
    """Largest share of unusable clips. If there are more, the exit code is 1."""
    retry_bad: bool = False
    """Decode unusable clips again. By default they are decoded again only if their file changes."""
    dry_run: bool = False
    """Print what would be done without doing it."""

    @field_validator("scheduler")
    @classmethod
    def _address(cls, scheduler: str | None) -> str | None:
        if scheduler is not None and not ADDRESS.fullmatch(scheduler):
            raise ValueError("must be tcp://HOST:PORT or tls://HOST:PORT, as dask scheduler prints it")
        return scheduler

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str | None) -> str | None:
        name = name and tidy(name)
        if name is not None and (name.startswith(".") or "/" in name or "\\" in name or not name.strip()):
            raise ValueError("must be a plain folder name")
        if name is not None and len(os.fsencode(name)) > MAX_NAME:
            raise ValueError(f"must have at most {MAX_NAME} bytes")
        return name
