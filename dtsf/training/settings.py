"""Settings of stage 2, from the command line or Python. The recipe holds the settings of the network and of its training."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from dtsf.settings import Settings


class TrainSettings(Settings):
    """Data, recipe, device and run folder of a training."""

    dataset: str | None = None
    """Dataset in the cache. Optional if the cache has only one."""
    protocol: str | None = Field(default=None, json_schema_extra={"default_text": "the usual protocol of the dataset"})
    """cross-subject[:5,6 test subjects], cross-view[:3 test view], cross-setup, groups:2/5 (a part of the performances), split
    (column of the manifest), or all."""
    recipe: str | None = Field(default=None, json_schema_extra={"default_text": "chosen by dataset and protocol"})
    """Name of a recipe, or a TOML file."""
    overrides: tuple[str, ...] = Field(default=(), json_schema_extra={"option": "--set"})
    """Change a key of the recipe, for example train.lr=1e-3. May be repeated."""
    epochs: int | None = Field(default=None, ge=1)
    """Short for --set train.epochs=N."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device for training."""
    seed: int = 0
    """Random seed."""
    workers: int | None = Field(default=None, ge=1, json_schema_extra={"default_text": "one per core"})
    """Trainings side by side: the network and those of its calibration. On a GPU always 1."""
    run: Path | None = Field(
        default=None, json_schema_extra={"option": "--out", "default_text": "runs/NAME-PROTOCOL-seedN"}
    )
    """Run folder."""
    init: Path | None = None
    """Start from a run of dtsf (its folder) or a VideoMamba checkpoint (.pth, .safetensors). Sets width and depth if auto."""
    allow_leak: bool = False
    """Train although the test has recordings of the training. The result says how many."""
    resume: bool = False
    """Continue from the last checkpoint."""

    @model_validator(mode="after")
    def _one_start(self) -> TrainSettings:
        if self.init is not None and self.resume:
            raise ValueError("--init and --resume exclude each other: a resumed run continues from its own weights")
        return self

    def changes(self) -> tuple[str, ...]:
        """Return the changes of the recipe, ``section.key=value`` each."""
        return (*self.overrides, *([f"train.epochs={self.epochs}"] if self.epochs else []))
