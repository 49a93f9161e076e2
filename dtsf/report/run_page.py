"""``dtsf report RUN``: the page of one run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dtsf.cache.schema import Clip
from dtsf.files.write import check_targets
from dtsf.report import svg
from dtsf.report.gallery import choose_samples, network_strips
from dtsf.report.page import render, write_page
from dtsf.report.probes import Probes, probe
from dtsf.report.run_data import RunData, known_clips, open_run_cache, read_run, recipe_text
from dtsf.training.checkpoint import load_network
from dtsf.training.held_out import HeldOut, read_held_out
from dtsf.training.metrics import GroupPrediction
from dtsf.training.promises import at_shares, surest_curve
from dtsf.training.protocols import parse_protocol, split_clips

PANELS = (  # title of each panel of curves -> its values in log.jsonl
    ("Loss", ("loss", "held_out_loss")),
    ("Accuracy on the training groups", ("accuracy", "held_out_accuracy")),
    ("Uncertainty on the training groups", ("uncertainty",)),
    ("Learning rate", ("lr",)),
)


SHARES = ("static", "dynamic", "residual")


def report_run(
    folder: Path,
    *,
    cache: Path | None = None,
    out: Path | None = None,
    samples: int = 6,
    on_step: Callable[[int, int, str], None] = lambda *_: None,
) -> Path:
    """Write the report of a run to ``out`` (default: ``report.html`` in its folder). Returns the file.
    ``cache``: default: its path at training; without one the page has no pictures and no probes. ``samples``: pictures of each
    kind. ``on_step`` is called with (done, total, name of the next step). Raises CheckpointError: the run is not complete.
    Raises ConfigError: the file cannot be written.
    """
    out = out or folder / "report.html"
    run = read_run(folder)
    check_targets({"--out": out}, "report.html", parents=True)
    state, names, m = run.checkpoint.state, run.class_names, run.metrics
    recipe, defaults = state.recipe, recipe_text(type(state.recipe)())
    torch.set_num_threads(recipe.train.usable_threads)
    cache = cache if cache is not None else Path(run.cache)
    data, missing = open_run_cache(run, cache)
    probes, gallery, occluded = None, [], 0
    if data is not None:
        probes = probe(run, load_network(run.checkpoint), data, cache, on_step)
        kind, views = data.info.kind, data.info.view_names
        rule = parse_protocol(run.evaluation.protocol, kind)
        split = split_clips(known_clips(state, data), rule, kind, views)
        tested: dict[str, list[Clip]] = {}
        for clip in split.test if run.evaluation.split == "test" else split.train:
            if views[clip.view - 1] in run.evaluation.views:
                tested.setdefault(clip.group, []).append(clip)
        for section, chosen in choose_samples(m.predictions, samples).items():
            shown = [p for p in chosen if p.group in tested]
            strips = [(p, network_strips(data, recipe.model, tested[p.group], p.view_weights)) for p in shown]
            gallery.append((section, strips))
        for p in m.predictions:
            occluded += sum(p.view_weights[clip.view - 1] == 0 for clip in tested.get(p.group, ()))
    held_out = read_held_out(folder, state)
    surest = _surest(run, held_out)
    series = {name: line for name, line in run.series.items() if line}
    panels: list[tuple[str, dict[str, list[float]]]] = [
        (title, {name: series.pop(name) for name in lines if name in series})
        for title, lines in PANELS
        if lines[0] in series
    ]
    panels.insert(1, ("Parts of the loss", series))
    text = render(
        "run.html",
        title=f"{run.evaluation.dataset}, {run.evaluation.protocol}",
        folder=folder.absolute(),
        run=run,
        state=state,
        e=run.evaluation,
        m=m,
        names=names,
        n_numbers=sum(x.numel() for x in run.checkpoint.weights.values()),
        n_right=sum(p.label == p.predicted for p in m.predictions),
        data=data,
        missing=missing,
        figures={
            "confusion": svg.confusion(m.confusion, names) if m.confusion else "",
            "reliability": svg.reliability(m.reliability),
            "weights": svg.dots(_weights(run)),
            "shares": svg.shares(_shares(probes), SHARES),
            "surest": svg.curves(surest, "the surest share of the answers, in %"),
        },
        shares=SHARES,
        held_out=held_out,
        surest=list(surest),
        curves=[panel for title, lines in panels for panel in svg.panels(title, lines)],
        classes=_classes(run),
        probes=probes,
        gallery=gallery,
        occluded=occluded,
        # Section -> key, value, and True if the value is not the default of the code.
        recipe=[
            (section, [(key, value, value != defaults[section].get(key)) for key, value in table.items()])
            for section, table in recipe_text(recipe).items()
        ],
    )
    return write_page(out, text)


def _shares(probes: Probes | None) -> dict[str, list[float]]:
    """Return the shares of each feature that has them, in the order of :data:`SHARES`."""
    found = probes.inputs.static_shares if probes is not None else ()
    return {one.feature: [getattr(one, name) for name in SHARES] for one in found if one.static is not None}


def _surest(run: RunData, held_out: HeldOut | None) -> dict[str, list[float]]:
    """Return the accuracy of the surest 1 % to 100 % of the answers, by their origin."""
    probability_G = torch.tensor([p.probability for p in run.metrics.predictions])
    right_G = torch.tensor([p.label == p.predicted for p in run.metrics.predictions])
    curves = {"test": surest_curve(probability_G, right_G)}
    if held_out is not None:
        curves["held out of the training"] = held_out.curve()
    return {name: at_shares(curve, [k / 100 for k in range(1, 101)]) for name, curve in curves.items()}


def _weights(run: RunData) -> dict[str, list[tuple[float, bool, str]]]:
    """Return the dots of the view weights by view: weight, True if the prediction is right, and a title."""
    names = run.class_names
    dots: dict[str, list[tuple[float, bool, str]]] = {}
    for v, view in enumerate(run.evaluation.view_names):
        for p in run.metrics.predictions:
            if p.view_weights[v] > 0:
                right = p.label == p.predicted
                title = f"{p.group}: {p.view_weights[v]:.3f}, {names[p.predicted]}"
                title += "" if right else f" instead of {names[p.label]}"
                dots.setdefault(f"view {view}", []).append((p.view_weights[v], right, title))
    return dots


def _classes(run: RunData) -> list[dict[str, Any]]:
    """Return one row per tested class: recall, precision, most frequent error, uncertainty and view weights."""
    metrics, names, rows = run.metrics, run.class_names, []
    row_of: dict[int, dict[int, int]] = {}
    predicted_of: Counter[int] = Counter()
    for true, found, count in metrics.confusion_cells:
        row_of.setdefault(true, {})[found] = count
        predicted_of[found] += count
    predictions_of: dict[int, list[GroupPrediction]] = {}
    for p in metrics.predictions:
        predictions_of.setdefault(p.label, []).append(p)
    for k, row in sorted(row_of.items()):
        predicted, n_groups = predicted_of[k], sum(row.values())
        errors, wrong = max(((count, -j) for j, count in row.items() if j != k), default=(0, 0))
        of_class = predictions_of.get(k, [])
        # An absent view has weight 0.
        weights = [[p.view_weights[v] for p in of_class if p.view_weights[v]] for v in range(len(metrics.view_weights))]
        rows.append(
            {
                "name": names[k],
                "groups": n_groups,
                "recall": row.get(k, 0) / n_groups,
                "precision": row.get(k, 0) / predicted if predicted else None,
                "wrong": names[-wrong] if errors else "",
                "errors": errors,
                "uncertainty": sum(p.uncertainty for p in of_class) / max(1, len(of_class)),
                "weights": [sum(present) / len(present) if present else None for present in weights],
            }
        )
    return rows
