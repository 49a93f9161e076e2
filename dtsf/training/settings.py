"""Settings of stage 2: one object from the command line to the training. What the network is and how it learns is the recipe's."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - pydantic reads annotations at run time
from typing import Literal

from pydantic import Field, model_validator

from dtsf.settings import Settings


class TrainSettings(Settings):
    """What is trained on, by which recipe, where, and where the run goes."""

    dataset: str | None = None
    """Data set in the cache; needless where there is one."""
    protocol: str | None = Field(default=None, json_schema_extra={"default_text": "the data set's usual one"})
    """cross-subject[:5,6 test subjects], cross-view[:3 test view], cross-setup, split (the manifest's column), or all."""
    recipe: str | None = Field(default=None, json_schema_extra={"default_text": "what suits data set and protocol"})
    """Name of a recipe, or a TOML file."""
    overrides: tuple[str, ...] = Field(default=(), json_schema_extra={"option": "--set"})
    """Change a key of the recipe: model.depth=4. May be repeated."""
    epochs: int | None = Field(default=None, ge=1)
    """Short for --set train.epochs=N."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network is trained."""
    seed: int = 0
    """Of everything random."""
    run: Path | None = Field(
        default=None, json_schema_extra={"option": "--out", "default_text": "runs/NAME-PROTOCOL-seedN"}
    )
    """Run folder."""
    init: Path | None = None
    """VideoMamba checkpoint (.pth or .safetensors) that the encoder starts from, and whose width and depth it has where the recipe
    says auto."""
    resume: bool = False
    """Go on from the last checkpoint."""

    @model_validator(mode="after")
    def _one_start(self) -> TrainSettings:
        if self.init is not None and self.resume:
            raise ValueError("--init and --resume exclude each other: a resumed run goes on from its own weights")
        return self

    def changes(self) -> tuple[str, ...]:
        """All keys of the recipe that differ, ``section.key=value`` each."""
        return (*self.overrides, *([f"train.epochs={self.epochs}"] if self.epochs else []))
