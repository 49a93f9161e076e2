"""Recipes: all choices of a training run, in one TOML file that is validated before the training starts."""

from __future__ import annotations

import math
import os
import tomllib
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from dtsf.errors import ConfigError
from dtsf.files.read import read_file
from dtsf.model.config import Auto, BranchConfig, ModelConfig
from dtsf.settings import explain
from dtsf.training.augment import AugmentConfig
from dtsf.training.debias import DebiasConfig
from dtsf.training.losses import LossConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dtsf.cache.schema import CacheSpec, DatasetInfo

LIMIT = 1 << 20
"""Maximum size of a TOML file in bytes."""
PACKAGES = {"recipe": "dtsf.training", "table": "dtsf.experiments"}
"""Package with the built-in TOML files of each kind."""
REFERENCE_CLIPS = 333
"""Number of training clips for which the recipes were tuned (100 groups of three views): width 96, one block, 120 epochs."""


def _words(value: object) -> tuple[str, ...]:
    words = value if isinstance(value, list | tuple) else str(value).split(",")
    return tuple(str(word).strip() for word in words if str(word).strip())


def _subjects(value: object) -> object:
    """Read subjects from 3, "3,4" or ["3", "4"]. 03 becomes 3, as in the records of the cache."""
    return tuple(str(int(word)) if word.isdecimal() else word for word in _words(value))


class TrainConfig(BaseModel):
    """Optimisation. Section ``[train]`` of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: Annotated[Auto, Field(le=10**7)] = 60
    """Passes over the training groups."""
    batch_size: int = Field(default=16, ge=1, le=10**6)
    """Groups (not clips) in a batch of one process. A step uses ``batch_size`` x ``accumulate`` x processes groups."""
    accumulate: int = Field(default=1, ge=1, le=10**6)
    """Number of batches whose gradients are summed before a step: a larger step in the same memory."""
    lr: float = Field(default=2e-3, gt=0)
    """Peak learning rate of AdamW. It falls to 0 by a cosine after the warm-up."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Weight decay. Not applied to norms, biases, positions, the class token and D, nor to A_log (see ``decay_states``)."""
    decay_states: bool = False
    """Apply weight decay to A_log too. VideoMamba does: its code sets an attribute for the exemption but does not read it."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of all steps over which the learning rate rises from 0."""
    beta2: float = Field(default=0.98, gt=0, lt=1)
    """Second beta of AdamW. 0.98 suits runs of a few hundred steps better than 0.999."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Maximum norm of the gradient; longer gradients are scaled down."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the running average of the weights that is evaluated and saved. 0 uses the last weights."""
    held_out: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training groups of each class that is evaluated after every epoch instead of trained on. Drawn by the seed."""
    held_out_subjects: Annotated[tuple[str, ...], BeforeValidator(_subjects)] = ()
    """Training subjects that are held out instead of a share. This is the closest to a test on unseen people.
    ``--set train.held_out_subjects=3,4``"""
    patience: int = Field(default=0, ge=0, le=10**7)
    """Stop if the loss on the held-out groups does not fall for this many epochs, and keep the weights of the best epoch. 0
    trains all epochs and keeps the last weights. The learning rate schedule always assumes all ``epochs``."""
    exclude_classes: Annotated[tuple[str, ...], BeforeValidator(_words)] = ()
    """Names of classes that are excluded from training and test: unknown actions for ``evaluate --unknown excluded``.
    ``--set train.exclude_classes="golf swing,jogging"``"""
    calibrate: int = Field(default=2, ge=0)
    """Number of folds of the training groups (by people, if they are named) that calibrate the evidence. Each fold trains one
    network on the other folds: 2 folds cost as much as the training itself. 0 does not calibrate. Groups held out by
    ``held_out`` or ``held_out_subjects`` replace the folds."""
    draws: int = Field(default=1, ge=1, le=4096)
    """Number of sets of frames over which an evaluation averages (``evaluate --draws``)."""
    checkpointing: bool = False
    """Gradient checkpointing: compute each block again in the backward pass. A third slower, a tenth of the memory. For long
    sequences of pixels."""
    compile: bool = False
    """Apply ``torch.compile`` to the mixer of every block, on a GPU only. It takes a minute at the start; the last bits of the
    numbers differ."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """``bf16-mixed`` is for GPUs. The scan and all evidence stay in float32."""
    threads: int = Field(default=1, ge=1, le=1024)
    """CPU threads of PyTorch. On a shared machine two threads can be many times slower than one."""

    @property
    def usable_threads(self) -> int:
        """``threads``, bounded by the number of cores: a run may come from a larger machine."""
        return min(self.threads, os.cpu_count() or 1)

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.held_out and self.held_out_subjects:
            raise ValueError("train.held_out and train.held_out_subjects exclude each other: set one of them")
        if self.patience and not (self.held_out or self.held_out_subjects):
            raise ValueError(
                "train.patience needs held-out groups: --set train.held_out=0.1, or train.held_out_subjects=NAMES of "
                "training subjects"
            )
        return self


class Recipe(BaseModel):
    """All choices of a training run."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    augment: AugmentConfig = AugmentConfig()
    debias: DebiasConfig = DebiasConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if self.debias.method in ("stillmix", "albar") and self.model.uses_motion:
            raise ValueError(
                f'debias.method "{self.debias.method}" adds still frames, and inputs "motion" and "dynamic" remove them: '
                "--set model.branch.0.input=frames, for every branch"
            )
        return self


def resolve_auto(recipe: Recipe, n_clips: int) -> Recipe:
    """Replace ``auto`` by numbers that follow from the number of training clips. Measured in docs/results/network.md.

    The width grows with the square root of the clips, in steps of 32 from 96 to 384. The depth is one block below width 128, two
    below 256, else four. The epochs fall with the square root of the clips, from 240 to 20. See :data:`REFERENCE_CLIPS`.
    """
    ratio = math.sqrt(max(1, n_clips) / REFERENCE_CLIPS)
    model, train = recipe.model, recipe.train
    width = model.width or min(384, max(96, 32 * round(3 * ratio)))
    depth = model.depth or (1 if width < 128 else 2 if width < 256 else 4)
    epochs = train.epochs or min(240, max(20, round(120 / ratio)))
    return recipe.model_copy(
        update={
            "model": model.model_copy(update={"width": width, "depth": depth}),
            "train": train.model_copy(update={"epochs": epochs}),
        }
    )


def default_recipe(info: DatasetInfo, spec: CacheSpec, protocol: str) -> tuple[str, str]:
    """Choose a recipe by the kind of the dataset, the encoder and the name of the protocol. Return its name and the reason."""
    if spec.encoder == "pixels":
        return "nucla-paper", "the cache holds pixels"
    if info.kind == "ntu":
        classes = len(info.class_names)
        return ("ntu120" if classes > 60 else "ntu60"), f"NTU RGB+D with {classes} classes"
    if protocol == "cross-view":
        return "unseen-cameras", "the protocol tests a view that is not in training"
    return "default", "training and test have the same views"


def load_recipe(name_or_file: str = "default", overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides.

    Args:
        name_or_file: Name of a built-in recipe, or path of a TOML file.
        overrides: ``section.key=value`` each, with the value in TOML; a bare word is a string.

    Raises:
        ConfigError: Unknown recipe, unknown key (with the nearest match), or value out of range.
    """
    table = read_recipe(name_or_file)
    for override in overrides:
        _override(table, override)
    try:
        return Recipe.model_validate(table)
    except ValidationError as error:
        raise ConfigError(f"recipe {name_or_file}: {explain(error, _all_keys(), repr)}") from error


def read_recipe(name_or_file: str, *, extended_by: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read a recipe and the recipe that it extends: ``extends = "NAME"`` inherits all keys that are not set.

    ``name_or_file``: as for :func:`read_toml`. An extended file is relative to the file that extends it. ``extended_by``: recipes
    that extend this one. Raises ConfigError as :func:`read_toml`, or if recipes extend each other in a circle.
    """
    if name_or_file in extended_by:
        raise ConfigError(f"recipes extend each other in a circle: {' -> '.join((*extended_by, name_or_file))}")
    own = read_toml("recipe", name_or_file)
    base = own.pop("extends", None)
    if base is None:
        return own
    if not isinstance(base, str):
        raise ConfigError(f'recipe {name_or_file}: extends = {base!r} must name one recipe, as extends = "default"')
    if base.endswith(".toml") and name_or_file.endswith(".toml"):
        base = str(Path(name_or_file).parent / base)
    table = read_recipe(base, extended_by=(*extended_by, name_or_file))
    for section, keys in own.items():
        both = isinstance(keys, dict) and isinstance(table.get(section), dict)
        table[section] = {**table[section], **keys} if both else keys
    return table


def builtin_names(kind: str) -> list[str]:
    """Return the names of the built-in TOML files of a kind: ``recipe`` or ``table``."""
    folder = resources.files(PACKAGES[kind]) / f"{kind}s"
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def read_toml(kind: str, name_or_file: str) -> dict[str, Any]:
    """Read a built-in TOML file of a kind by its name, or a TOML file by its path.

    Raises ConfigError: unknown name, or a file that cannot be read as TOML.
    """
    names = builtin_names(kind)
    if name_or_file in names:
        text = (resources.files(PACKAGES[kind]) / f"{kind}s" / f"{name_or_file}.toml").read_text("utf-8")
    elif name_or_file.endswith(".toml"):
        file = Path(name_or_file)
        data = read_file(file, limit=LIMIT, error=lambda why: ConfigError(f"{kind} file {why}"), follow=True)
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise ConfigError(f"{kind} file {name_or_file} cannot be read: {error}") from error
    else:
        raise ConfigError(f"unknown {kind} {name_or_file!r}; there are {', '.join(names)}, or give a .toml file")
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{kind} {name_or_file} is not valid TOML: {error}") from error


def _override(table: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    *path, field = key.strip().split(".")
    if not (equals and path and all(path) and field):
        raise ConfigError(f"--set {override!r} is not of the form section.key=value, for example model.depth=4")
    try:
        parsed = tomllib.loads(f"x = {value}")["x"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    target: Any = table
    for k, word in enumerate(path):
        name = ".".join(path[: k + 1])
        if isinstance(target, dict):
            target = target.setdefault(word, {})
        elif word.isdecimal() and int(word) < len(target):
            target = target[int(word)]
        else:
            raise ConfigError(
                f"--set {override!r}: there is no {name}; {'.'.join(path[:k])} has {len(target)} entries, from 0"
            )
        if not isinstance(target, dict | list):
            raise ConfigError(f"--set {override!r}: {name!r} is not a section of the recipe")
    if isinstance(target, list):
        raise ConfigError(f"--set {override!r}: name an entry and its key, for example model.branch.0.weight=0.5")
    target[field] = parsed


def _all_keys() -> list[str]:
    sections: dict[str, type[BaseModel]] = {
        "model": ModelConfig,
        "loss": LossConfig,
        "augment": AugmentConfig,
        "debias": DebiasConfig,
        "train": TrainConfig,
    }
    keys = [f"{section}.{key}" for section, config in sections.items() for key in config.model_fields]
    return [*sections, *keys, *(f"model.branch.{k}.{key}" for k in range(16) for key in BranchConfig.model_fields)]
