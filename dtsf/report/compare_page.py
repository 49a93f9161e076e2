"""``dtsf report --compare RUN RUN...``: several runs side by side, with warnings where they do not compare."""

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

    from dtsf.report.run_data import RunFacts

LISTED = 200
"""Performances listed on which the runs differ."""


def compare_runs(runs: Sequence[Path], out: Path, *, on_step: Callable[[int, int, str], None] | None = None) -> Path:
    """Write a comparison of finished runs.

    ``runs``: run folders, two or more. ``on_step``: called with how many runs are read, of how many, and the next one. Raises
    ConfigError: fewer than two runs, or one named twice. CheckpointError: one that is no finished run.
    """
    if len(runs) < 2:
        raise ConfigError("--compare needs two runs or more: dtsf report --compare RUN RUN...")
    if len({run.resolve() for run in runs}) < len(runs):
        raise ConfigError("--compare: a run is named twice")
    facts = []
    for k, run in enumerate(runs):
        if on_step is not None:
            on_step(k, len(runs), str(run))
        facts.append(read_run(run))
    if on_step is not None:
        on_step(len(runs), len(runs), "")
    names = _short_names(runs)
    same_groups = len({frozenset(p.group for p in f.metrics.predictions) for f in facts}) == 1
    differs = _differs(facts)
    text = render(
        "compare.html",
        title=f"{len(runs)} runs compared",
        names=names,
        runs=facts,
        folders=[str(run.absolute()) for run in runs],
        shared=_shared(facts, differs),
        differs=differs,
        warnings=_warnings(facts, same_groups),
        spread=_spread(facts),
        curves=_curves(names, facts),
        recipe=_recipe_differences(facts),
        classes=_classes(facts),
        disagreements=_disagreements(facts) if same_groups else [],
        same_groups=same_groups,
        listed=LISTED,
    )
    return write_page(out, text)


def _short_names(runs: Sequence[Path]) -> list[str]:
    """Folder names, with as many of the folders above as it takes to tell them apart."""
    parts = [run.resolve().parts for run in runs]
    depth = 1
    while len({path[-depth:] for path in parts}) < len(parts):
        depth += 1
    return ["/".join(path[-depth:]) for path in parts]


def _differs(facts: Sequence[RunFacts]) -> dict[str, bool]:
    """Which columns say something of single runs; what is the same for all is said once."""
    return {
        "dataset": len({f.evaluation.dataset for f in facts}) > 1,
        "protocol": len({f.evaluation.protocol for f in facts}) > 1,
        "task": len({f.evaluation.task for f in facts}) > 1,
        "groups": len({f.metrics.n_groups for f in facts}) > 1,
        "left_out": any(f.evaluation.left_out for f in facts),
    }


def _shared(facts: Sequence[RunFacts], differs: dict[str, bool]) -> str:
    """What was tested, as far as it is the same for all runs."""
    e = facts[0].evaluation
    known = {"task": e.task, "groups": f"{facts[0].metrics.n_groups} performances"}
    known |= {"dataset": f"data set {e.dataset}", "protocol": f"protocol {e.protocol}"}
    return ", ".join(words for name, words in known.items() if not differs[name])


def _warnings(facts: Sequence[RunFacts], same_groups: bool) -> list[str]:
    """Reasons why the numbers differ that are not the networks."""
    what = {
        "data sets": [f.evaluation.dataset for f in facts],
        "protocols": [f.evaluation.protocol for f in facts],
        "tasks": [f.evaluation.task for f in facts],
        "caches (fingerprints)": [f.evaluation.fingerprint for f in facts],
        "views given": [", ".join(f.evaluation.views) for f in facts],
        "versions of dtsf": [str(f.environment.get("dtsf", "?")) for f in facts],
    }
    lines = [
        f"different {name}: {'; '.join(dict.fromkeys(values))}" for name, values in what.items() if len(set(values)) > 1
    ]
    if not same_groups:
        lines.append("the tested performances are not the same")
    return lines


def _spread(facts: Sequence[RunFacts]) -> dict[str, float] | None:
    """Mean and spread where the runs differ in nothing but the seed."""
    same = {
        (f.checkpoint.state.recipe.model_dump_json(), f.evaluation.fingerprint, f.evaluation.protocol) for f in facts
    }
    if len(same) > 1 or len({f.evaluation.seed for f in facts}) < len(facts):
        return None
    top1 = [f.metrics.top1 for f in facts]
    return {"mean": statistics.fmean(top1), "low": min(top1), "high": max(top1)}


def _curves(names: Sequence[str], facts: Sequence[RunFacts]) -> list[tuple[str, list[str], Any]]:
    panels = []
    for key, title in (("loss", "Loss"), ("accuracy", "Accuracy on the training groups")):
        lines = {name: f.series[key] for name, f in zip(names, facts, strict=True) if f.series.get(key)}
        # More than six lines are no comparison any more, and there are six colours.
        for k in range(0, len(lines), 6):
            part = dict(list(lines.items())[k : k + 6])
            panels.append((title, list(part), svg.curves(part, "epoch")))
    return panels


def _recipe_differences(facts: Sequence[RunFacts]) -> list[tuple[str, list[str]]]:
    tables = [f.checkpoint.state.recipe.model_dump(mode="json") for f in facts]
    rows = []
    for section, keys in tables[0].items():
        for key in keys:
            values = [json.dumps(table[section][key]) for table in tables]
            if len(set(values)) > 1:
                rows.append((f"{section}.{key}", values))
    return rows


def _classes(facts: Sequence[RunFacts]) -> list[tuple[str, list[float | None], float]]:
    """Recall of each class in each run, and the distance between the best and the worst."""
    names = [name for name in facts[0].class_names if all(name in f.metrics.per_class for f in facts)]
    rows = []
    for name in names:
        recalls = [f.metrics.per_class[name] for f in facts]
        known = [r for r in recalls if r is not None]
        if known:
            rows.append((name, recalls, max(known) - min(known)))
    return rows


def _disagreements(facts: Sequence[RunFacts]) -> list[tuple[str, str, list[tuple[str, bool]]]]:
    """Performances that some runs name right and others wrong."""
    predictions = [{p.group: p for p in f.metrics.predictions} for f in facts]
    rows = []
    for group in sorted(predictions[0]):
        answers = [
            (f.class_names[s[group].predicted], s[group].predicted == s[group].label)
            for f, s in zip(facts, predictions, strict=True)
        ]
        if len({right for _, right in answers}) > 1:
            rows.append((group, facts[0].class_names[predictions[0][group].label], answers))
    return rows
