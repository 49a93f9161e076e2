"""Settings of experiments. The text below a field is also the help of its command-line option."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from dtsf.settings import Settings


def _words(value: Any) -> list[str]:
    """Return the words of ``1,2``, of a list, or of one number."""
    if isinstance(value, str):
        return [word.strip() for word in value.split(",")]
    return list(map(str, value if isinstance(value, list | tuple) else [value]))


def _read_seeds(value: Any) -> Any:
    words = _words(value)
    numbers = all(word.isascii() and word.isdigit() and int(word) < 2**31 for word in words)
    if not words or not numbers or len(set(words)) < len(words):
        raise ValueError("must be different numbers from 0, as in 0,1,2")
    return tuple(map(int, words))


def _read_pair(value: Any) -> Any:
    words = tuple(word.strip() for word in value.split(",")) if isinstance(value, str) else value
    if words is not None and (len(words) != 2 or words[0] == words[1]):
        raise ValueError("must be two names joined by a comma, as in aligned,conflict")
    return words


class Trainings(Settings):
    """Settings that all experiments share."""

    recipe: str | None = Field(default=None, json_schema_extra={"default_text": "as for train"})
    """Name of a recipe, or a TOML file."""
    overrides: tuple[str, ...] = Field(default=(), json_schema_extra={"option": "--set"})
    """Change a key of the recipe: model.depth=4. May be repeated."""
    epochs: int | None = Field(default=None, ge=1)
    """Short for --set train.epochs=N."""
    seeds: Annotated[tuple[int, ...], BeforeValidator(_read_seeds)] = (0, 1, 2)
    """Seeds, joined by commas. One training for each."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device for training."""
    allow_leak: bool = False
    """Train although the test has recordings of the training."""
    workers: int | None = Field(default=None, ge=1, json_schema_extra={"default_text": "one per core"})
    """Trainings side by side (reproduce: also processes of stage 1). On a GPU, one training after another."""

    def changes(self) -> tuple[str, ...]:
        """Return all changed keys of the recipe: ``section.key=value``."""
        return (*self.overrides, *([f"train.epochs={self.epochs}"] if self.epochs else []))


def _read_numbers(value: Any) -> Any:
    words = [] if value == "" else _words(value)
    if not all(word.isascii() and word.isdigit() and len(word) < 10 and int(word) for word in words):
        raise ValueError("must be numbers from 1, as in 1,2,4")
    return tuple(sorted({int(word) for word in words}))


Numbers = Annotated[tuple[int, ...], BeforeValidator(_read_numbers)]


class CrossvalSettings(Trainings):
    """Settings of ``dtsf crossval``."""

    dataset: str | None = None
    """Dataset in the cache. Optional if the cache has only one."""
    folds: str = "people"
    """Parts that are left out in turn: people (one each), a number of parts of the people, views, groups, or groups:K."""
    seeds: Annotated[tuple[int, ...], BeforeValidator(_read_seeds)] = (0,)
    """Seeds, joined by commas. Each trains all folds."""
    tests: tuple[str, ...] = Field(default=(), json_schema_extra={"option": "--test"})
    """Ask every training also about the same people (views, groups) of another dataset, or NAME@PROTOCOL. May be repeated."""
    people: Numbers = ()
    """Train also on so few people of each fold: 1,2,4. Shows how many are enough."""
    takes: Numbers = ()
    """Train also on so few performances of a class by a person."""
    cameras: Numbers = ()
    """Train and test also with so few cameras of each performance."""
    compare: tuple[Path, ...] = ()
    """Folder of another crossval of the same dataset and folds, to compare with. May be repeated."""
    init: Path | None = None
    """Start of every training: a run of dtsf (its folder), or a VideoMamba checkpoint."""
    out: Path = Path("runs/crossval")
    """Folder of results and trainings. A training that is finished there is not repeated."""


class AblateSettings(Trainings):
    """Settings of ``dtsf ablate``."""

    table: str
    """fusion, motion, debias, paper, or a TOML file of the same form."""
    folds: str | None = Field(default=None, json_schema_extra={"default_text": "the one test of the protocol"})
    """Train each variant on folds by people, views or groups, as crossval does, in place of --protocol."""
    dataset: str | None = None
    """Dataset in the cache. Optional if the cache has only one."""
    protocol: str | None = Field(default=None, json_schema_extra={"default_text": "the dataset's usual one"})
    """Protocol, as for train."""
    tests: tuple[str, ...] = Field(default=(), json_schema_extra={"option": "--test"})
    """Evaluate every training also on another dataset: NAME (all clips) or NAME@PROTOCOL. May be repeated."""
    gap: Annotated[tuple[str, str], BeforeValidator(_read_pair)] | None = None
    """Show the difference of two tests, as in aligned,conflict."""
    init: Path | None = None
    """Start of every training: a run of dtsf (its folder), or a VideoMamba checkpoint."""
    out: Path = Path("runs/ablate")
    """Folder of tables and trainings. A training that is finished there is not repeated."""


class ReproduceSettings(Trainings):
    """Settings of ``dtsf reproduce nucla``."""

    init: Path | None = None
    """VideoMamba checkpoint. With a GPU it adds the run from pixels, as in the paper. With --recipe or --encoder it initialises
    every run."""
    encoder: str = "efficientnet-lite0"
    """Encoder, as for preprocess."""
    frames: int = 16
    """Number of frames of each clip."""
    size: int = 192
    """Size in pixels of the square input to the encoder."""
    grid: int = 6
    """Cells along each side of an embedding. Must be divisible by 3."""
    protocols: tuple[str, ...] = Field(default=(), json_schema_extra={"option": "--protocol"})
    """Protocol, as for train. May be repeated. Default: cross-view for each view, and cross-subject."""
    cache: Path | None = Field(default=None, json_schema_extra={"default_text": "OUT/cache"})
    """Cache to use, which may contain the clips already."""
    strict: bool = False
    """Refuse data that are not the whole N-UCLA. Otherwise the results report it."""
    overwrite: bool = False
    """Delete the runs and the cache in OUT and start again."""

    def command(self, root: Path, out: Path) -> str:
        """Return the command that repeats this reproduction."""
        words = ["dtsf", "reproduce", "nucla", "--root", str(root), "--out", str(out)]
        words += ["--seeds", ",".join(map(str, self.seeds))]
        for name in (
            "protocols",
            "cache",
            "recipe",
            "init",
            "encoder",
            "frames",
            "size",
            "grid",
            "epochs",
            "overrides",
            "allow_leak",
        ):
            value = getattr(self, name)
            if value is True:
                words.append(self.option(name))
            elif value != type(self).model_fields[name].default:
                items = value if isinstance(value, tuple) else [value]
                words += [word for item in items for word in (self.option(name), str(item))]
        return shlex.join(words)
