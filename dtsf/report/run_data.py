"""Read a run folder for its report."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dtsf.cache.reader import CachedDataset, open_dataset
from dtsf.cache.schema import Clip, describe_difference
from dtsf.errors import CacheError, CheckpointError
from dtsf.files.read import parse_json, read_file
from dtsf.settings import explain
from dtsf.training.checkpoint import Checkpoint, RunState, load_checkpoint
from dtsf.training.evaluate import Evaluation
from dtsf.training.metrics import Metrics
from dtsf.training.recipe import Recipe
from dtsf.training.splits import split_by_known_classes

MAX_BYTES = 1 << 28  # largest file of a run


@dataclass(frozen=True)
class RunData:
    """Contents of a run folder. ``series``: name of each value in log.jsonl -> its mean per epoch."""

    folder: Path
    checkpoint: Checkpoint
    evaluation: Evaluation
    series: dict[str, list[float]]
    environment: dict[str, Any]
    cache: str  # path of the cache at training

    @property
    def metrics(self) -> Metrics:
        """Metrics of the evaluation."""
        return self.evaluation.metrics

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names by label."""
        return self.checkpoint.state.info.class_names


def read_run(folder: Path) -> RunData:
    """Read a finished run. Raises CheckpointError: the folder is not a finished run, or a file in it is damaged."""
    if not folder.is_dir():
        raise CheckpointError(f"no run folder {folder}: train first (dtsf train), or name another")
    checkpoint = load_checkpoint(folder / "last")
    state, file = checkpoint.state, folder / "metrics.json"
    if not file.exists():
        raise CheckpointError(
            f"{folder} has no metrics.json: it stopped after {state.epoch} of {state.recipe.train.epochs} epochs; "
            f"repeat its command with --resume"
        )
    document = _read_json(file)
    try:
        evaluation = Evaluation.model_validate(document | {"metrics": document})
    except ValidationError as error:
        raise CheckpointError(f"{file}: {explain(error, most=1)}: train again with this version of dtsf") from error
    metrics, n_classes, n_views = evaluation.metrics, len(state.info.class_names), len(evaluation.view_names)
    fits = (
        len(metrics.per_class) == n_classes
        and len(metrics.confusion) in (0, n_classes)
        and all(len(row) == n_classes for row in metrics.confusion)
        and all(0 <= cell[0] < n_classes and 0 <= cell[1] < n_classes for cell in metrics.confusion_cells)
        and len(metrics.view_weights) == len(metrics.view_top1) == n_views
        and all(len(p.view_weights) == n_views for p in metrics.predictions)
        and all(0 <= p.label < n_classes and 0 <= p.predicted < n_classes for p in metrics.predictions)
    )
    if not fits or not metrics.predictions:
        raise CheckpointError(f"{file} does not fit the run's {n_classes} classes and {n_views} views: train again")
    versions = folder / "environment.json"
    environment = _read_json(versions) if versions.exists() else state.versions
    try:
        config = read_file(folder / "config.toml", limit=MAX_BYTES, error=CheckpointError).decode()
        cache = str(tomllib.loads(config)["data"]["cache"])
    except (CheckpointError, ValueError, KeyError, TypeError, RecursionError):
        cache = "cache"
    return RunData(folder, checkpoint, evaluation, _read_log(folder / "log.jsonl"), environment, cache)


def _read_json(file: Path) -> dict[str, Any]:
    document = parse_json(read_file(file, limit=MAX_BYTES, error=CheckpointError), str(file), error=CheckpointError)
    if not isinstance(document, dict):
        raise CheckpointError(f"{file} is not a JSON object: train again")
    return document


def _read_log(file: Path) -> dict[str, list[float]]:
    """Compute the mean of each value per epoch. Skip incomplete lines, which a killed run leaves."""
    values: dict[str, dict[int, list[float]]] = {}
    try:
        lines = read_file(file, limit=MAX_BYTES, error=CheckpointError).decode("utf-8", "replace").splitlines()
    except CheckpointError:
        return {}
    for line in lines:
        try:
            step = json.loads(line)
            epoch = int(step.pop("epoch"))
            numbers = {key: float(value) for key, value in step.items() if key != "step" and value is not None}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            continue
        for key, value in numbers.items():
            # An infinite loss cannot be drawn.
            if abs(value) < 1e30:
                values.setdefault(key, {}).setdefault(epoch, []).append(value)
    return {key: [sum(x) / len(x) for _, x in sorted(epochs.items())] for key, epochs in values.items()}


def open_run_cache(run: RunData, cache: Path) -> tuple[CachedDataset | None, str]:
    """Open the dataset that a run was trained from. Returns None and the reason if that is not possible."""
    state, command = run.checkpoint.state, f"dtsf report {run.folder} --cache DIR"
    try:
        data = open_dataset(cache, state.info.name)
        known_clips(state, data)
    except CacheError as error:
        return None, f"{error}. For a cache at another path: {command}"
    if data.spec.fingerprint() != state.fingerprint:
        difference = describe_difference(data.spec, state.spec)
        return None, f"{data.store} has other settings than the cache of this run ({difference}): {command}"
    return data, ""


def known_clips(state: RunState, data: CachedDataset) -> tuple[Clip, ...]:
    """Return the clips of the run's classes, with its labels. Raises CacheError: the dataset has other classes."""
    own, found = state.info.class_names, data.info.class_names
    if not state.recipe.train.reads(own, found):
        raise CacheError(f"{data.store} has other classes than this run")
    return split_by_known_classes(data.clips, found, own)[0]


def recipe_text(recipe: Recipe) -> dict[str, dict[str, str]]:
    """Return the text of each value by section and key. Each branch of the network is one value, without its empty keys."""
    document = recipe.model_dump(mode="json")
    for k, branch in enumerate(document["model"].pop("branch")):
        document["model"][f"branch.{k}"] = {key: value for key, value in branch.items() if value not in (0, "none")}
    return {section: {key: json.dumps(value) for key, value in table.items()} for section, table in document.items()}
