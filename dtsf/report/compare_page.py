"""``dtsf report --compare RUN RUN...``: a page that compares runs, with warnings if the comparison is not fair."""

from __future__ import annotations

import json
import statistics
from typing import TYPE_CHECKING, Any

from dtsf.errors import ConfigError
from dtsf.report import svg
from dtsf.report.page import render, write_page
from dtsf.report.run_data import read_run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from dtsf.report.run_data import RunData

MAX_LISTED = 200
"""Maximum number of performances in the table of disagreements."""


def compare_runs(folders: Sequence[Path], out: Path, *, on_step: Callable[[int, int, str], None] | None = None) -> Path:
    """Write a page that compares finished runs. ``on_step`` is called with (done, total, name of the next run).

    Raises:
        ConfigError: Fewer than two runs, or the same run twice.
        CheckpointError: A run is damaged or not finished.
    """
    if len(folders) < 2:
        raise ConfigError("--compare needs two runs or more: dtsf report --compare RUN RUN...")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError("--compare: the same run is given twice")
    step = on_step or (lambda *_: None)
    runs = []
    for k, folder in enumerate(folders):
        step(k, len(folders), str(folder))
        runs.append(read_run(folder))
    step(len(folders), len(folders), "")
    names = _short_names(folders)
    same_groups = len({frozenset(p.group for p in run.metrics.predictions) for run in runs}) == 1
    differs = _differs(runs)
    text = render(
        "compare.html",
        title=f"{len(runs)} runs compared",
        names=names,
        runs=runs,
        shared=_shared(runs[0], differs),
        differs=differs,
        warnings=_warnings(runs, same_groups),
        spread=_spread(runs),
        curves=_curves(names, runs),
        recipe=_recipe_differences(runs),
        classes=_classes(runs),
        disagreements=_disagreements(runs) if same_groups else [],
        same_groups=same_groups,
        max_listed=MAX_LISTED,
    )
    return write_page(out, text)


def _short_names(folders: Sequence[Path]) -> list[str]:
    """Return folder names, with as many parent folders as are needed to make them unique."""
    parts = [folder.resolve().parts for folder in folders]
    depth = 1
    while len({path[-depth:] for path in parts}) < len(parts):
        depth += 1
    return ["/".join(path[-depth:]) for path in parts]


def _differs(runs: Sequence[RunData]) -> dict[str, bool]:
    """Return the columns in which the runs differ. The page prints a common value once, above the table."""
    return {
        "dataset": len({run.evaluation.dataset for run in runs}) > 1,
        "protocol": len({run.evaluation.protocol for run in runs}) > 1,
        "task": len({run.evaluation.task for run in runs}) > 1,
        "groups": len({run.metrics.n_groups for run in runs}) > 1,
        "left_out": any(run.evaluation.left_out for run in runs),
    }


def _shared(run: RunData, differs: dict[str, bool]) -> str:
    e = run.evaluation
    words = {"task": e.task, "groups": f"{run.metrics.n_groups} performances"}
    words |= {"dataset": f"dataset {e.dataset}", "protocol": f"protocol {e.protocol}"}
    return ", ".join(text for name, text in words.items() if not differs[name])


def _warnings(runs: Sequence[RunData], same_groups: bool) -> list[str]:
    """Return differences between the runs that are not part of the recipe."""
    values = {
        "datasets": [run.evaluation.dataset for run in runs],
        "protocols": [run.evaluation.protocol for run in runs],
        "tasks": [run.evaluation.task for run in runs],
        "caches (fingerprints)": [run.evaluation.fingerprint for run in runs],
        "views": [", ".join(run.evaluation.views) for run in runs],
        "versions of dtsf": [str(run.environment.get("dtsf", "?")) for run in runs],
    }
    lines = [f"different {name}: {'; '.join(dict.fromkeys(v))}" for name, v in values.items() if len(set(v)) > 1]
    return lines if same_groups else [*lines, "the tested performances are not the same"]


def _spread(runs: Sequence[RunData]) -> dict[str, float] | None:
    """Return mean and range of top-1 if the runs differ only in the seed."""
    settings = {
        (run.checkpoint.state.recipe.model_dump_json(), run.evaluation.fingerprint, run.evaluation.protocol)
        for run in runs
    }
    if len(settings) > 1 or len({run.evaluation.seed for run in runs}) < len(runs):
        return None
    top1 = [run.metrics.top1 for run in runs]
    return {"mean": statistics.fmean(top1), "low": min(top1), "high": max(top1)}


def _curves(names: Sequence[str], runs: Sequence[RunData]) -> list[tuple[str, list[str], Any]]:
    panels = []
    for key, title in (("loss", "Loss"), ("accuracy", "Accuracy on the training groups")):
        lines = [(name, run.series[key]) for name, run in zip(names, runs, strict=True) if run.series.get(key)]
        # A panel has at most six lines, because there are six colours.
        for k in range(0, len(lines), 6):
            part = dict(lines[k : k + 6])
            panels.append((title, list(part), svg.curves(part, "epoch")))
    return panels


def _recipe_differences(runs: Sequence[RunData]) -> list[tuple[str, list[str]]]:
    tables = [run.checkpoint.state.recipe.model_dump(mode="json") for run in runs]
    rows = []
    for section, keys in tables[0].items():
        for key in keys:
            values = [json.dumps(table[section][key]) for table in tables]
            if len(set(values)) > 1:
                rows.append((f"{section}.{key}", values))
    return rows


def _classes(runs: Sequence[RunData]) -> list[tuple[str, list[float | None], float]]:
    """Return the recall of each class in each run, and the difference between the best and the worst run."""
    rows = []
    for name in runs[0].class_names:
        recalls = [run.metrics.per_class.get(name) for run in runs]
        known = [recall for recall in recalls if recall is not None]
        if known and all(name in run.metrics.per_class for run in runs):
            rows.append((name, recalls, max(known) - min(known)))
    return rows


def _disagreements(runs: Sequence[RunData]) -> list[tuple[str, str, list[tuple[str, bool]]]]:
    """Return the performances that only some runs classify correctly."""
    predictions = [{p.group: p for p in run.metrics.predictions} for run in runs]
    rows = []
    for group, first in sorted(predictions[0].items()):
        answers = [
            (run.class_names[of_run[group].predicted], of_run[group].predicted == of_run[group].label)
            for run, of_run in zip(runs, predictions, strict=True)
        ]
        if len({right for _, right in answers}) > 1:
            rows.append((group, runs[0].class_names[first.label], answers))
    return rows
