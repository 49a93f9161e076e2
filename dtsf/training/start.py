"""Start of a training: ``--init FILE`` (a VideoMamba checkpoint) or ``--init RUN`` (another run of dtsf).

From a run, all weights are taken that mean the same here: encoders, fusion, and the statistics of its input (scale of the channels,
principal directions, mean motion), which the weights were trained with. Heads are taken if the classes are the same ones, in
the same order. Calibration and statistics of views are those of the new training groups. Measured in docs/results/network.md.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from dtsf.cache.schema import CacheSpec, DatasetInfo
from dtsf.errors import CheckpointError, ConfigError
from dtsf.files.read import read_file
from dtsf.model.config import BranchConfig
from dtsf.model.network import DTSFNet
from dtsf.settings import explain
from dtsf.training.checkpoint import RunState, has_checkpoint, load_checkpoint
from dtsf.training.init_weights import (
    InitReport,
    check_blocks,
    load_initial_weights,
    read_initial_weights,
    width_and_depth,
)
from dtsf.training.protocols import Split, subjects_of
from dtsf.training.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor

FREE = ("branch", "drop_path", "dropout", "dt_init", "occlusion_threshold", "motion_sampling")
"""Keys of the model that may differ between the run and the recipe; the branches are compared without their weights."""
OWN = ("calibrator.", "feature_stats.", "min_motion_share_V")
"""Tensors that follow from the training groups."""


@dataclass(frozen=True)
class Seen:
    """Dataset, protocol and training people of a run."""

    kind: str
    name: str
    protocol: str
    subjects: tuple[str, ...]


@dataclass(frozen=True)
class Start:
    """Weights that a training starts from. ``run``: state of the run; None for weights of the first encoder alone. ``before``: what
    the runs have seen that this run started from.
    """

    path: Path
    weights: dict[str, Tensor]
    run: RunState | None = None
    before: tuple[Seen, ...] = ()

    @property
    def seen(self) -> tuple[Seen, ...]:
        """Trainings that the weights come from: this run first."""
        if self.run is None:
            return ()
        info = self.run.info
        return (Seen(info.kind, info.name, self.run.protocol, info.subjects), *self.before)

    def load_into(self, net: DTSFNet, info: DatasetInfo) -> InitReport:
        """Copy the weights into a network for the classes and views of ``info``."""
        if self.run is None:
            return load_initial_weights(net.encoders[0], self.weights)
        report = _load_run(net, self.weights, self.run.info, info)
        report.seen = [asdict(one) for one in self.seen]
        return report


def weights_file(path: Path) -> Path:
    """Return the file with the weights of ``--init PATH``. Raises CheckpointError: there is none."""
    file = path / "last" / "model.safetensors" if path.is_dir() else path
    if path.is_dir() and not has_checkpoint(path):
        raise CheckpointError(
            f"--init {path}: the folder is no run: it has no checkpoint; name the folder of dtsf train --out"
        )
    if not path.exists():
        raise CheckpointError(f"--init {path}: no such file or run")
    return file


def read_start(path: Path | None) -> Start | None:
    """Read the weights of ``--init PATH``; None without a path. Raises CheckpointError: no such file or run, or it is damaged."""
    if path is None:
        return None
    weights_file(path)
    if not path.is_dir():
        return Start(path, read_initial_weights(path))
    checkpoint, file = load_checkpoint(path / "last"), path / "init.json"
    before: tuple[Seen, ...] = ()
    if file.exists():
        try:
            document = json.loads(read_file(file, limit=1 << 28, error=CheckpointError))
            before = TypeAdapter(tuple[Seen, ...]).validate_python(document.get("seen", ()))
        except (ValueError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"--init {path}: {file} is damaged: train that run again") from error
    return Start(path, checkpoint.weights, checkpoint.state, before)


def fit_recipe(start: Start | None, recipe: Recipe, spec: CacheSpec) -> Recipe:
    """Return the recipe with the sizes of the start for ``auto``. Without a start nothing changes.

    ``spec``: settings of the cache. Raises CheckpointError: other sizes, or a run of other embeddings; the message names the
    next command.
    """
    if start is None:
        return recipe
    path, run = start.path, start.run
    if run is None:
        check_blocks(path, start.weights, recipe.model)
        width, depth = width_and_depth(start.weights)
    else:
        _check_embeddings(path, run.spec, spec)
        width, depth = run.recipe.model.width, run.recipe.model.depth
    sizes = {"width": recipe.model.width or width, "depth": recipe.model.depth or depth}
    try:
        model = type(recipe.model).model_validate(recipe.model.model_dump() | sizes)
    except ValidationError as error:
        raise CheckpointError(f"--init: the checkpoint's {explain(error)}") from error
    recipe = recipe.model_copy(update={"model": model})
    if run is not None:
        _check_recipe(path, run, recipe)
    return recipe


def keep_inputs(net: DTSFNet, run: Path) -> None:
    """Copy the statistics of the input from the checkpoint of a run that is resumed, where they fit."""
    weights = load_checkpoint(run / "last").weights
    for name, buffer in net.inputs.named_buffers():
        x = weights.get(f"inputs.{name}")
        if x is not None and x.shape == buffer.shape:
            buffer.copy_(x)


def _check_embeddings(path: Path, theirs: CacheSpec, ours: CacheSpec) -> None:
    """Raise CheckpointError if a run reads other embeddings than the cache has."""
    keys = [
        key for key in ("encoder", "weights_hash", "grid", "channels") if getattr(theirs, key) != getattr(ours, key)
    ]
    if keys:
        words = "; ".join(f"{key} {getattr(theirs, key)}, not {getattr(ours, key)}" for key in keys)
        size = f"--size {theirs.size}" if theirs.encoder == "pixels" else f"--grid {theirs.grid}"
        raise CheckpointError(
            f"--init {path}: the run reads other embeddings than the cache has ({words}): dtsf preprocess ... --encoder "
            f"{theirs.encoder} {size} --overwrite, or train without --init"
        )


def _check_recipe(path: Path, run: RunState, recipe: Recipe) -> None:
    """Raise CheckpointError if the network of a run differs from that of the recipe. The message has the ``--set`` that fit."""
    theirs, ours = run.recipe.model, recipe.model

    def branches(model: Any) -> list[dict[str, Any]]:
        return [branch.model_dump(exclude={"weight"}) for branch in model.branch]

    keys = [key for key in type(ours).model_fields if key not in FREE and getattr(theirs, key) != getattr(ours, key)]
    words = [f"model.{key} {_toml(getattr(theirs, key))}, not {_toml(getattr(ours, key))}" for key in keys]
    changes = [f"--set model.{key}={_toml(getattr(theirs, key))}" for key in keys]
    if branches(theirs) != branches(ours):
        words.append(
            f"branches {', '.join(x.words for x in theirs.branch)}, not {', '.join(x.words for x in ours.branch)}"
        )
        changes.append(f"--set 'model.branch=[{', '.join(map(_inline, theirs.branch))}]'")
    if words:
        raise CheckpointError(f"--init {path}: the run has {'; '.join(words)}: {' '.join(changes)}")


def _toml(value: Any) -> str:
    return ",".join(map(str, value)) or "0" if isinstance(value, tuple) else str(value)


def _inline(branch: BranchConfig) -> str:
    """Return a branch as an inline table of TOML, with the keys that are not the default."""
    given = branch.model_dump(exclude_defaults=True) | {"input": branch.input}
    words = (f'{key}="{x}"' if isinstance(x, str) else f"{key}={str(x).lower()}" for key, x in given.items())
    return "{" + ", ".join(words) + "}"


def _load_run(net: DTSFNet, weights: dict[str, Tensor], theirs: DatasetInfo, ours: DatasetInfo) -> InitReport:
    """Copy the weights of a run that fit, and describe the others."""
    own, report, new = net.state_dict(), InitReport(), []
    same_classes, heads = theirs.class_names == ours.class_names, False
    for name, x in weights.items():
        if name.startswith(OWN):
            report.left[name] = "it follows from the training groups"
        elif ".head." in name and not same_classes:
            report.left[name] = "other classes"
            heads = True
        elif name not in own or x.shape != own[name].shape:
            here = " x ".join(map(str, own[name].shape)) if name in own else "none"
            report.left[name] = f"{' x '.join(map(str, x.shape))} in the run, {here} here"
            # A stem reads the stacked channels of all views.
            new.append(f"{name} ({len(ours.view_names)} views here, {len(theirs.view_names)} in the run)")
        else:
            report.loaded.append(name)
    for name in [name for name in report.loaded if name.endswith("patch_embed.proj.bias")]:
        if name.replace(".bias", ".weight") in report.left:
            report.loaded.remove(name)
            report.left[name] = "the other half of the layer does not fit"
    net.load_state_dict(own | {name: weights[name] for name in report.loaded})
    report.missing = [name for name in own if name not in report.loaded]
    if heads:
        new.insert(0, f"heads ({len(ours.class_names)} classes here, {len(theirs.class_names)} other ones in the run)")
    of_people = f", {len(theirs.subjects)} people" if theirs.subjects else ""
    report.summary = (
        f"{len(report.loaded)} of {len(weights)} tensors of a run of {theirs.name} ({len(theirs.class_names)} classes{of_people}); "
        f"new: {', '.join([*new, 'calibration'])}"
    )
    return report


def check_start(
    start: Start | None, split: Split, info: DatasetInfo, protocol: str, *, allow_leak: bool
) -> tuple[str, ...]:
    """Return notes about the start. Raises ConfigError: its run, or one that this started from, may have seen people whom only the
    test has.
    """
    if start is None or start.run is None:
        return ()
    notes = start.run.unfinished(start.path)
    unseen = set(subjects_of(split.test)) - set(subjects_of([*split.train, *split.held_out]))
    for n, seen in enumerate(start.seen):
        same_dataset, same_protocol = (seen.kind, seen.name) == (info.kind, info.name), seen.protocol == protocol
        people = ", ".join(sorted(unseen & set(seen.subjects)))
        where = f"--init {start.path} {'started from a run that ' if n else ''}was trained on {seen.name} by {seen.protocol}"
        if same_dataset and (people or not (same_protocol or seen.subjects)) and not allow_leak:
            who = f"it has seen people of this test ({people})" if people else "nobody knows which people it has seen"
            raise ConfigError(f"{where}: {who}: start from a run without them, or accept it with --allow-leak")
        if same_dataset and (people or not same_protocol):
            notes = (*notes, f"{where}: it may have seen clips of this test")
        elif people:
            notes = (*notes, f"{where}: people there have names of this test: {people}")
    return notes
