"""Settings of a reproduction that decide its numbers. Other settings need another folder."""

from __future__ import annotations

from pydantic import Field

from dtsf import settings


class Settings(settings.Settings):
    """Of the cache, and of what every training has in common."""

    recipe: str | None = None
    """Name or TOML file of the recipe; chosen for each protocol as dtsf train does, if left out."""
    overrides: tuple[str, ...] = Field(default=(), json_schema_extra={"option": "--set"})
    """Change a key of the recipe: model.depth=4. May be repeated."""
    init: str | None = None
    """VideoMamba checkpoint. With a card the paper's own run, from pixels, starts from it, beside the one from embeddings; with
    --recipe or --encoder every run does."""
    encoder: str = "efficientnet-lite0"
    """As dtsf preprocess takes it."""
    frames: int = 16
    """Frames kept of each clip."""
    size: int = 192
    """Side in pixels of the picture that is embedded."""
    grid: int = 6
    """Cells along each side of an embedding; divisible by 3."""
