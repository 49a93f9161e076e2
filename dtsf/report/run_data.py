"""Read a run folder for its report."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from dtsf.cache.reader import open_dataset
from dtsf.cache.schema import describe_difference
from dtsf.errors import CacheError, CheckpointError
from dtsf.files.read import parse_json, read_file
from dtsf.training.checkpoint import Checkpoint, load_checkpoint
from dtsf.training.evaluate import Evaluation, Metrics

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dtsf.cache.reader import CachedDataset
    from dtsf.training.evaluate import GroupPrediction

LIMIT = 1 << 28
"""Bytes of the largest file of a run that is shown."""


@dataclass(frozen=True)
class RunFacts:
    """A run folder, read."""

    folder: Path
    checkpoint: Checkpoint
    evaluation: Evaluation
    series: dict[str, list[float]]
    """Every number of log.jsonl by its name, the mean of each epoch."""
    environment: dict[str, Any]
    cache: str
    """Where its cache was when it was trained."""

    @property
    def metrics(self) -> Metrics:
        """The numbers."""
        return self.evaluation.metrics

    @property
    def class_names(self) -> tuple[str, ...]:
        """By label."""
        return self.checkpoint.state.info.class_names


def read_run(folder: Path) -> RunFacts:
    """Read a finished run.

    Raises CheckpointError: no run, an unfinished one, or a damaged file in it, which the message names.
    """
    if not folder.is_dir():
        raise CheckpointError(f"no run folder {folder}: train first (dtsf train), or name another")
    checkpoint = load_checkpoint(folder / "last")
    state = checkpoint.state
    if not (folder / "metrics.json").exists():
        raise CheckpointError(
            f"{folder} has no metrics.json: it stopped after {state.epoch} of {state.recipe.train.epochs} epochs; "
            f"finish it with the command that began it, and --resume"
        )
    document = _read(folder / "metrics.json")
    try:
        evaluation = Evaluation.model_validate(document | {"metrics": document})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "metrics") or "the file"
        raise CheckpointError(
            f"{folder / 'metrics.json'}: {where}: {first['msg']}; train again with this version of dtsf"
        ) from error
    _check_shapes(folder, evaluation, len(state.info.class_names))
    environment = _read(folder / "environment.json") if (folder / "environment.json").exists() else state.versions
    return RunFacts(folder, checkpoint, evaluation, _read_log(folder / "log.jsonl"), environment, _cache_of(folder))


def _check_shapes(folder: Path, evaluation: Evaluation, n_classes: int) -> None:
    metrics, n_views = evaluation.metrics, len(evaluation.view_names)
    good = (
        len(metrics.per_class) == len(metrics.confusion) == n_classes
        and all(len(row) == n_classes for row in metrics.confusion)
        and len(metrics.view_weights) == len(metrics.view_top1) == n_views
        and all(len(p.view_weights) == n_views for p in metrics.predictions)
        and all(0 <= p.label < n_classes and 0 <= p.predicted < n_classes for p in metrics.predictions)
    )
    if not good or not metrics.predictions:
        raise CheckpointError(
            f"{folder / 'metrics.json'} does not fit the run's {n_classes} classes and {n_views} views: train again"
        )


def _read(file: Path) -> dict[str, Any]:
    document = parse_json(read_file(file, limit=LIMIT, error=CheckpointError), str(file), error=CheckpointError)
    if not isinstance(document, dict):
        raise CheckpointError(f"{file} does not hold a JSON object")
    return document


def _cache_of(folder: Path) -> str:
    try:
        text = read_file(folder / "config.toml", limit=LIMIT, error=CheckpointError).decode()
        return str(tomllib.loads(text)["data"]["cache"])
    except (CheckpointError, ValueError, KeyError, TypeError, RecursionError):
        return "cache"


def _read_log(file: Path) -> dict[str, list[float]]:
    """Means by epoch. Lines that are cut off (a run was killed while writing) are left out, like a missing file."""
    epochs: dict[int, dict[str, list[float]]] = {}
    try:
        lines = read_file(file, limit=LIMIT, error=CheckpointError).decode("utf-8", "replace").splitlines()
    except CheckpointError:
        lines = []
    for line in lines:
        try:
            step = json.loads(line)
            numbers = {
                key: float(value) for key, value in step.items() if key not in ("step", "epoch") and value is not None
            }
            epoch = int(step["epoch"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            continue
        for key, value in numbers.items():
            # A loss that went to infinity has no place on an axis.
            if abs(value) < 1e30:
                epochs.setdefault(epoch, {}).setdefault(key, []).append(value)
    names = list(dict.fromkeys(key for numbers in epochs.values() for key in numbers))
    return {
        name: [sum(held[name]) / len(held[name]) for _, held in sorted(epochs.items()) if name in held]
        for name in names
    }


def open_cache_of(facts: RunFacts, cache: Path) -> tuple[CachedDataset | None, str]:
    """Open the data set that a run was trained from; or None, and why not, in words for the page."""
    state = facts.checkpoint.state
    try:
        data = open_dataset(cache, state.info.name)
    except CacheError as error:
        return None, f"{error}. With its cache in place: dtsf report {facts.folder} --cache DIR"
    if data.info.class_names != state.info.class_names:
        return None, f"{data.store} has other classes than this run: dtsf report {facts.folder} --cache DIR"
    if data.spec.fingerprint() != state.fingerprint:
        return None, (
            f"{data.store} was made with other settings than the cache of this run "
            f"({describe_difference(data.spec, state.spec)}): dtsf report {facts.folder} --cache DIR"
        )
    return data, ""


def class_rows(facts: RunFacts) -> list[dict[str, Any]]:
    """One row a class that was tested: recall, precision, what it is taken for, uncertainty, weight of each view."""
    metrics, names = facts.metrics, facts.class_names
    rows = []
    for k, name in enumerate(names):
        row = metrics.confusion[k]
        total, predicted = sum(row), sum(other[k] for other in metrics.confusion)
        if not total:
            continue
        count, most = max((count, -j) for j, count in enumerate(row) if j != k) if len(row) > 1 else (0, 0)
        of_class = [p for p in metrics.predictions if p.label == k]
        rows.append(
            {
                "name": name,
                "groups": total,
                "recall": row[k] / total,
                "precision": row[k] / predicted if predicted else None,
                "taken_for": names[-most] if count else "",
                "taken_count": count,
                "uncertainty": sum(p.uncertainty for p in of_class) / max(1, len(of_class)),
                "weights": _mean_weights(of_class, len(facts.evaluation.view_names)),
            }
        )
    return rows


def _mean_weights(predictions: Sequence[GroupPrediction], n_views: int) -> list[float | None]:
    """Mean weight of each view over the groups that have it: an absent view has weight exactly 0."""
    out: list[float | None] = []
    for v in range(n_views):
        present = [p.view_weights[v] for p in predictions if p.view_weights[v] > 0]
        out.append(sum(present) / len(present) if present else None)
    return out
