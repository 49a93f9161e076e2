"""Recipes: every choice of a training run, in one TOML file that is checked before anything starts."""

from __future__ import annotations

import os
import tomllib
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from dtsf.errors import ConfigError
from dtsf.model.config import Auto, BranchConfig, ModelConfig
from dtsf.settings import explain
from dtsf.training.augment import AugmentConfig
from dtsf.training.builtin import builtin_names, read_recipe
from dtsf.training.debias import DebiasConfig
from dtsf.training.losses import LossConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dtsf.cache.schema import CacheSpec, DatasetInfo


def _words(given: object) -> object:
    """Subjects may come as 3, "3,4" or ["3", "4"]; 03 in a file name is 3 in a record."""
    words = given if isinstance(given, list | tuple) else str(given).split(",")
    stripped = [str(word).strip() for word in words]
    return tuple(str(int(word)) if word.isdecimal() else word for word in stripped if word)


def _names(given: object) -> object:
    """Classes may come as "a,b" or ["a", "b"]."""
    words = given if isinstance(given, list | tuple) else str(given).split(",")
    return tuple(str(word).strip() for word in words if str(word).strip())


class TrainConfig(BaseModel):
    """Optimisation. Recipes hold it as ``[train]``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: Annotated[Auto, Field(le=10**7)] = 60
    """Passes over the training groups."""
    batch_size: int = Field(default=16, ge=1, le=10**6)
    """Groups (not clips) that a process takes at once. A step has ``batch_size`` x ``accumulate`` x processes."""
    accumulate: int = Field(default=1, ge=1, le=10**6)
    """Gradients of this many batches are added up before a step: a larger step in the same memory."""
    lr: float = Field(default=2e-3, gt=0)
    """Peak learning rate of AdamW; cosine to 0 after the warm-up."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Not applied to norms, biases, positions, the class token, D, and A_log (but see ``decay_states``)."""
    decay_states: bool = False
    """Whether weight decay applies to A_log too. VideoMamba's code does that: the mark that exempts it there is never read."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of all steps over which the learning rate rises from 0."""
    beta2: float = Field(default=0.98, gt=0, lt=1)
    """Of AdamW; 0.98 rather than 0.999 for runs of a few hundred steps."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Gradients longer than this are scaled down to it."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the running average of the weights that is evaluated and saved; 0 keeps the last weights."""
    held_out: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training groups, of each class, that is not trained on but judged after every epoch. Drawn by the seed."""
    held_out_subjects: Annotated[tuple[str, ...], BeforeValidator(_words)] = ()
    """Training subjects that are held out instead: what comes nearest to unseen people. ``--set train.held_out_subjects=3,4``"""
    patience: int = Field(default=0, ge=0, le=10**7)
    """Stop once the loss of the held-out groups has not fallen for this many epochs, and keep the weights of the best
    epoch; 0 trains to the end and keeps the last. The learning rate falls as if all ``epochs`` would come."""
    exclude_classes: Annotated[tuple[str, ...], BeforeValidator(_names)] = ()
    """Names of classes that are not learnt, nor judged: unknown actions, for ``evaluate --unknown excluded``. Nothing of them
    is in training. ``--set train.exclude_classes="golf swing,jogging"``"""
    calibrate: int = Field(default=2, ge=0)
    """Parts of the training groups (people, where they are named) that are held out one after the other to learn how much of
    the network's evidence is to be believed; see :mod:`.calibration`. Each part is a training of its own on the others: 2
    cost as much as the training itself. 0 takes evidence as it is. Groups held out by the keys above serve in their place."""
    draws: int = Field(default=1, ge=1, le=4096)
    """Evaluation averages over this many sets of frames, evenly shifted against each other (``evaluate --draws``)."""
    checkpointing: bool = False
    """Compute every block again on the way back instead of keeping what is inside it: a third more time, a tenth of the memory.
    For long sequences of pixels."""
    compile: bool = False
    """``torch.compile`` of every block's mixer, on a card only: a minute at the start, fewer and larger kernels after. Numbers
    differ in their last bits."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """``bf16-mixed`` on GPUs; the scan and all evidence stay in float32 either way."""
    threads: int = Field(default=1, ge=1, le=1024)
    """CPU threads of PyTorch. On shared machines two threads can be many times slower than one."""

    @property
    def usable_threads(self) -> int:
        """``threads``, but no more than this machine has cores: what is asked of a run may come from another one."""
        return min(self.threads, os.cpu_count() or 1)

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.held_out and self.held_out_subjects:
            raise ValueError(
                "train.held_out and train.held_out_subjects exclude each other: a share, or these subjects"
            )
        if self.patience and not (self.held_out or self.held_out_subjects):
            raise ValueError(
                "train.patience needs groups to watch: --set train.held_out=0.1, or train.held_out_subjects=NAMES of "
                "training subjects"
            )
        return self


class Recipe(BaseModel):
    """All choices of a run."""

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


def recipe_names() -> list[str]:
    """Names of the recipes that come with dtsf."""
    return builtin_names("recipe")


def default_recipe(info: DatasetInfo, spec: CacheSpec, protocol: str) -> tuple[str, str]:
    """The recipe for a cache and a protocol when none is named, and why: the first rule that fits.

    Args:
        info: The data set; its kind and number of classes count.
        spec: How the cache was made.
        protocol: Name of the protocol without its argument.

    Returns:
        A name of :func:`recipe_names`, and the reason in words.

    """
    if spec.encoder == "pixels":
        return "nucla-paper", "the cache holds pixels"
    if info.kind == "ntu":
        classes = len(info.class_names)
        return ("ntu120" if classes > 60 else "ntu60"), f"NTU RGB+D with {classes} classes"
    if protocol == "cross-view":
        return "unseen-cameras", "the protocol tests a camera that no one trained with"
    return "default", "the cameras of the test are those of training"


def load_recipe(name_or_file: str = "default", overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides.

    Args:
        name_or_file: A name of :func:`recipe_names`, or the path of a TOML file.
        overrides: ``section.key=value`` each, the value written as in TOML; a bare word counts as a string.

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
