"""``dtsf report --compare RUN RUN...``: a page that compares runs, with warnings if the comparison is not fair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from dtsf.errors import ConfigError
from dtsf.files.write import check_targets
from dtsf.report import svg
from dtsf.report.page import render, write_page
from dtsf.report.run_data import RunData, read_run, recipe_text

MAX_LISTED = 200  # most performances in the table of disagreements
SHARED = {"task": "{}", "number of performances": "{} performances", "dataset": "dataset {}", "protocol": "protocol {}"}
"""Values that the page prints once if all runs share them."""


def compare_runs(
    folders: Sequence[Path], out: Path, *, on_step: Callable[[int, int, str], None] = lambda *_: None
) -> Path:
    """Write a page that compares finished runs. ``on_step`` is called with (done, total, name of the next run).
    Raises ConfigError: fewer than two runs, or the same run twice, or the file cannot be written. Raises CheckpointError: a run is
    damaged or not finished.
    """
    if len(folders) < 2:
        raise ConfigError("--compare needs two runs or more: dtsf report --compare RUN RUN...")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError("--compare: the same run is given twice")
    check_targets({"--out": out}, "compare.html", parents=True)
    runs = []
    for k, folder in enumerate(folders):
        on_step(k, len(folders), str(folder))
        runs.append(read_run(folder))
    on_step(len(folders), len(folders), "")
    parts, depth = [folder.resolve().parts for folder in folders], 1
    # As many parent folders as are needed to make the names unique.
    while len({path[-depth:] for path in parts}) < len(parts):
        depth += 1
    names = ["/".join(path[-depth:]) for path in parts]
    of_runs = {
        "task": [run.evaluation.task for run in runs],
        "number of performances": [str(run.metrics.n_groups) for run in runs],
        "dataset": [run.evaluation.dataset for run in runs],
        "protocol": [run.evaluation.protocol for run in runs],
        "cache (fingerprint)": [run.evaluation.fingerprint for run in runs],
        "views": [", ".join(run.evaluation.views) for run in runs],
        "version of dtsf": [str(run.environment.get("dtsf", "?")) for run in runs],
    }
    tested = {name: list(dict.fromkeys(values)) for name, values in of_runs.items()}
    differs = {name: len(values) > 1 for name, values in tested.items()}
    # The runs differ only in the seed.
    recipes = {
        (r.checkpoint.state.recipe.model_dump_json(), r.evaluation.fingerprint, r.evaluation.protocol) for r in runs
    }
    only_seeds_differ = len(recipes) == 1 and len({run.evaluation.seed for run in runs}) == len(runs)
    same_groups = len({frozenset(p.group for p in run.metrics.predictions) for run in runs}) == 1
    curves = []
    for key, title in (("loss", "Loss"), ("accuracy", "Accuracy on the training groups")):
        curves += svg.panels(
            title, {n: run.series[key] for n, run in zip(names, runs, strict=True) if run.series.get(key)}
        )
    tables = [recipe_text(run.checkpoint.state.recipe) for run in runs]
    keys = dict.fromkeys((section, key) for table in tables for section, rows in table.items() for key in rows)
    values = {f"{section}.{key}": [table[section].get(key, "\u2013") for table in tables] for section, key in keys}
    classes = []
    for name in runs[0].class_names:
        recalls = [run.metrics.per_class.get(name) for run in runs]
        known = [recall for recall in recalls if recall is not None]
        if known and all(name in run.metrics.per_class for run in runs):
            classes.append((name, recalls, max(known) - min(known)))
    text = render(
        "compare.html",
        title=f"{len(runs)} runs compared",
        names=names,
        runs=runs,
        shared=", ".join(words.format(tested[name][0]) for name, words in SHARED.items() if not differs[name]),
        tested=tested,
        differs=differs,
        left_out=any(run.evaluation.left_out for run in runs),
        only_seeds_differ=only_seeds_differ,
        curves=curves,
        recipe=[(key, row) for key, row in values.items() if len(set(row)) > 1],
        classes=classes,
        disagreements=_disagreements(runs) if same_groups else [],
        same_groups=same_groups,
        max_listed=MAX_LISTED,
    )
    return write_page(out, text)


def _disagreements(runs: Sequence[RunData]) -> list[tuple[str, str, list[tuple[str, bool]]]]:
    """Return the performances that only some runs classify correctly."""
    rows, predictions = [], [{p.group: p for p in run.metrics.predictions} for run in runs]
    for group, first in sorted(predictions[0].items()):
        of_runs = [of_run[group] for of_run in predictions]
        answers = [(run.class_names[p.predicted], p.predicted == p.label) for run, p in zip(runs, of_runs, strict=True)]
        if len({right for _, right in answers}) > 1:
            rows.append((group, runs[0].class_names[first.label], answers))
    return rows
