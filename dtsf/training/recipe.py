"""Recipes: all choices of a training run, in one TOML file that is validated before the training starts."""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from dtsf.cache.schema import CacheSpec, DatasetInfo
from dtsf.errors import ConfigError
from dtsf.files.read import read_file
from dtsf.model.config import Auto, BranchConfig, ModelConfig
from dtsf.names import tidy
from dtsf.settings import Frozen, explain
from dtsf.training.augment import AugmentConfig
from dtsf.training.debias import DebiasConfig
from dtsf.training.losses import LossConfig

LIMIT = 1 << 20  # maximum size of a TOML file in bytes
MAX_EXTENDS = 32  # maximum length of a chain of recipes
PACKAGES = {"recipe": "dtsf.training", "table": "dtsf.experiments"}  # with the built-in TOML files of each kind
REFERENCE_CLIPS = 333
"""Number of training clips for which the recipes were tuned (100 groups of three views): width 96, one block, 120 epochs."""
SIDE = re.compile(r"(?<![a-z])(left|right)(?![a-z])", re.IGNORECASE)


def _words(value: object) -> tuple[str, ...]:
    words = value if isinstance(value, list | tuple) else str(value).split(",")
    return tuple(filter(None, (tidy(str(word)) for word in words)))


class TrainConfig(Frozen):
    """Optimisation. Section ``[train]`` of a recipe."""

    epochs: Annotated[Auto, Field(le=10**7)] = 60  # passes over the training groups
    # Groups (not clips) in a batch of one process. A step uses batch_size x accumulate x processes groups.
    batch_size: int = Field(default=16, ge=1, le=10**6)
    accumulate: int = Field(default=1, ge=1, le=10**6)  # batches of a step: a larger step in the same memory
    lr: float = Field(default=2e-3, gt=0)  # peak learning rate of AdamW; it falls to 0 by a cosine after the warm-up
    weight_decay: float = Field(default=0.05, ge=0)  # not for norms, biases, positions, class token, D and A_log
    decay_states: bool = False  # for A_log too, as in VideoMamba: its code sets an exemption but does not read it
    warmup: float = Field(default=0.1, ge=0, lt=1)  # share of all steps over which the learning rate rises from 0
    beta2: float = Field(default=0.98, gt=0, lt=1)  # of AdamW; 0.98 suits a few hundred steps better than 0.999
    clip_norm: float = Field(default=1.0, gt=0)  # maximum norm of the gradient; longer gradients are scaled down
    ema: float = Field(default=0.0, ge=0, lt=1)  # decay of the average weights to evaluate and save; 0: last weights
    # How often rare classes train. 0: each group once an epoch; 1: each class equally often; between them, the count of a class
    # to the power 1 - balance. An epoch keeps its length. For a long tail of classes (docs/recipes.md).
    balance: float = Field(default=0.0, ge=0, le=1)
    # Share of the training groups of each class to evaluate after every epoch instead of training. Drawn by the seed.
    held_out: float = Field(default=0.0, ge=0, lt=1)
    # Training subjects to hold out instead of a share (3,4): the closest to a test on unseen people.
    held_out_subjects: Annotated[tuple[str, ...], BeforeValidator(_words)] = ()
    # Epochs without a lower held-out loss before the training stops and keeps the best epoch. 0: all epochs, last weights.
    patience: int = Field(default=0, ge=0, le=10**7)
    # Classes to exclude from training and test (golf swing,jogging): unknown actions for evaluate --unknown excluded.
    exclude_classes: Annotated[tuple[str, ...], BeforeValidator(_words)] = ()
    # Fewer training clips, to see how many are enough (dtsf crossval --people, --takes, --cameras): only these subjects, at most
    # so many performances of a class by a person, at most so many views of a performance. 0: all.
    only_subjects: Annotated[tuple[str, ...], BeforeValidator(_words)] = ()
    max_takes: int = Field(default=0, ge=0)
    max_views: int = Field(default=0, ge=0)
    # Folds of the training groups that calibrate the evidence, by people: 2 cost as much as the training, 0 none. Held-out
    # groups replace them.
    calibrate: int = Field(default=2, ge=0)
    draws: int = Field(default=1, ge=1, le=4096)  # sets of frames that an evaluation averages (evaluate --draws)
    # Compute each block again in the backward pass: a third slower, a tenth of the memory. For sequences of pixels.
    checkpointing: bool = False
    compile: bool = False  # torch.compile for the mixers, on a GPU: a minute at the start, other last bits of numbers
    precision: Literal["32-true", "bf16-mixed"] = "32-true"  # bf16 for GPUs; scan and evidence stay in float32
    threads: int = Field(default=1, ge=1, le=1024)  # CPU threads; two can be much slower on a shared machine

    @property
    def usable_threads(self) -> int:
        """``threads``, bounded by the number of cores: a run may come from a larger machine."""
        return min(self.threads, os.cpu_count() or 1)

    def reads(self, own: Sequence[str], found: Sequence[str]) -> bool:
        """Return True if a run with the classes ``own`` reads a dataset with ``found``: the same, or more if some are excluded."""
        return tuple(own) == tuple(found) or bool(self.exclude_classes and set(own) <= set(found))

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.held_out and self.held_out_subjects:
            raise ValueError("train.held_out and train.held_out_subjects exclude each other: set one of them")
        if self.patience and not (self.held_out or self.held_out_subjects):
            way = "--set train.held_out=0.1, or train.held_out_subjects=NAMES of training subjects"
            raise ValueError(f"train.patience needs held-out groups: {way}")
        return self


class Recipe(Frozen):
    """All choices of a training run."""

    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    augment: AugmentConfig = AugmentConfig()
    debias: DebiasConfig = DebiasConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if self.debias.method in ("stillmix", "albar") and self.model.uses_motion:
            removed = 'adds still frames, and inputs "motion" and "dynamic" remove them'
            way = "--set model.branch.0.input=frames, for every branch"
            raise ValueError(f'debias.method "{self.debias.method}" {removed}: {way}')
        return self


def resolve_auto(recipe: Recipe, n_clips: int, n_groups: int = 0, class_names: Sequence[str] = ()) -> Recipe:
    """Replace ``auto`` by numbers that follow from the training clips and their groups. Measured in docs/results/network.md.

    The width grows with the square root of the clips, and the epochs fall with it; above :data:`REFERENCE_CLIPS`, they fall with
    the clips, so the number of steps stays up to 2,000 clips. The width is 96 to 384, and there are 20 to 240 epochs. The depth
    follows the width. Groups of one view are mirrored, unless a class is named after left or right.
    """
    augment = recipe.augment
    if augment.flip == "auto":
        sided = any(SIDE.search(name) for name in class_names)
        augment = augment.model_copy(update={"flip": 0.5 if n_clips == n_groups and not sided else 0.0})
    ratio = math.sqrt(max(1, n_clips) / REFERENCE_CLIPS)
    width = recipe.model.width or min(384, max(96, 32 * round(3 * ratio)))
    depth = recipe.model.depth or (1 if width < 128 else 2 if width < 256 else 4)
    epochs = recipe.train.epochs or min(240, max(20, round(120 / max(ratio, ratio**2))))
    model = recipe.model.model_copy(update={"width": width, "depth": depth})
    train = recipe.train.model_copy(update={"epochs": epochs})
    return recipe.model_copy(update={"model": model, "augment": augment, "train": train})


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
    """Read a built-in recipe or a TOML file, and the recipes that it extends (``extends = "NAME"``). Apply overrides.

    ``overrides``: ``section.key=value`` each, with the value in TOML; a bare word is a string. Raises ConfigError: unknown
    recipe, recipes that extend each other in a circle, unknown key (with the nearest match), or value out of range.
    """
    chain: list[str] = []
    tables: list[dict[str, Any]] = []
    base: object = name_or_file
    while base is not None:
        if not isinstance(base, str):
            raise ConfigError(f'recipe {chain[-1]}: extends = {base!r} must name one recipe, as extends = "default"')
        if chain and base.endswith(".toml") and chain[-1].endswith(".toml"):
            base = str(Path(chain[-1]).parent / base)
        if base in chain:
            raise ConfigError(f"recipes extend each other in a circle: {' -> '.join((*chain, base))}")
        chain.append(base)
        if len(chain) > MAX_EXTENDS:
            raise ConfigError(f"recipe {name_or_file}: more than {MAX_EXTENDS} recipes extend each other")
        tables.append(read_toml("recipe", base))
        base = tables[-1].pop("extends", None)
    table: dict[str, Any] = {}
    for own in reversed(tables):
        for section, keys in own.items():
            both = isinstance(keys, dict) and isinstance(table.get(section), dict)
            table[section] = {**table[section], **keys} if both else keys
    for override in overrides:
        _override(table, override)
    try:
        return Recipe.model_validate(table)
    except ValidationError as error:
        keys = [f"{section}.{key}" for section, config in Recipe() for key in type(config).model_fields]
        branches = [f"model.branch.{k}.{key}" for k in range(16) for key in BranchConfig.model_fields]
        known = [*Recipe.model_fields, *keys, *branches]
        raise ConfigError(f"recipe {name_or_file}: {explain(error, known, repr)}") from error


def builtin_names(kind: str) -> list[str]:
    """Return the names of the built-in TOML files of a kind: ``recipe`` or ``table``."""
    folder = resources.files(PACKAGES[kind]) / f"{kind}s"
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def read_toml(kind: str, name_or_file: str) -> dict[str, Any]:
    """Read a built-in TOML file of a kind by its name, or a TOML file by its path. Raises ConfigError."""
    names = builtin_names(kind)
    if name_or_file in names:
        data = (resources.files(PACKAGES[kind]) / f"{kind}s" / f"{name_or_file}.toml").read_bytes()
    elif name_or_file.endswith(".toml"):
        file = Path(name_or_file)
        data = read_file(file, limit=LIMIT, error=lambda why: ConfigError(f"{kind} file {why}"), follow=True)
    else:
        raise ConfigError(f"unknown {kind} {name_or_file!r}; there are {', '.join(names)}, or give a .toml file")
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        raise ConfigError(f"{kind} file {name_or_file} cannot be read: {error}") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{kind} {name_or_file} is not valid TOML: {error}") from error


def _override(table: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    *path, field = key.strip().split(".")
    if not (equals and path and all(path) and field):
        raise ConfigError(f"--set {override!r} is not of the form section.key=value, for example model.depth=4")
    try:
        parsed = tomllib.loads(f"x = {value}")["x"]
    except (tomllib.TOMLDecodeError, RecursionError):
        parsed = value.strip()
    target: Any = table
    for k, word in enumerate(path):
        name = ".".join(path[: k + 1])
        if isinstance(target, dict):
            target = target.setdefault(word, {})
        elif word.isdecimal() and int(word) < len(target):
            target = target[int(word)]
        else:
            there = f"{'.'.join(path[:k])} has {len(target)} entries, from 0"
            raise ConfigError(f"--set {override!r}: there is no {name}; {there}")
        if not isinstance(target, dict | list):
            raise ConfigError(f"--set {override!r}: {name!r} is not a section of the recipe")
    if isinstance(target, list):
        raise ConfigError(f"--set {override!r}: name an entry and its key, for example model.branch.0.weight=0.5")
    target[field] = parsed
