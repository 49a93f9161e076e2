"""Settings of a reproduction that decide its numbers. Other settings need another folder."""

from __future__ import annotations

from pydantic import Field

from dtsf import settings


class Settings(settings.Settings):
    """Settings of the cache, and of all trainings."""

    recipe: str | None = None
    """Name or TOML file of the recipe. By default chosen for each protocol, as dtsf train does."""
    overrides: tuple[str, ...] = Field(default=(), json_schema_extra={"option": "--set"})
    """Change a key of the recipe: model.depth=4. May be repeated."""
    init: str | None = None
    """VideoMamba checkpoint. With a GPU it adds the run from pixels, as in the paper. With --recipe or --encoder it initialises
    every run."""
    encoder: str = "efficientnet-lite0"
    """Encoder, as in dtsf preprocess."""
    frames: int = 16
    """Number of frames of each clip."""
    size: int = 192
    """Size in pixels of the square input to the encoder."""
    grid: int = 6
    """Cells along each side of an embedding. Must be divisible by 3."""
