"""``dtsf report RUN``: the page of one run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dtsf.report import svg
from dtsf.report.gallery import choose_samples, network_strips
from dtsf.report.page import render, spec_rows, write_page
from dtsf.report.probes import probe
from dtsf.report.run_data import class_rows, open_run_cache, read_run, recipe_text
from dtsf.training.checkpoint import load_network
from dtsf.training.protocols import parse_protocol, split_clips

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from markupsafe import Markup

    from dtsf.cache.reader import CachedDataset
    from dtsf.cache.schema import Clip
    from dtsf.model.config import ModelConfig
    from dtsf.report.gallery import Strip
    from dtsf.report.run_data import RunData
    from dtsf.training.metrics import GroupPrediction

SECTIONS = {
    "wrong": ("Wrong", "highest probability first"),
    "uncertain": ("Most uncertain", "right and wrong"),
    "right": ("Right", "the best of each class first"),
}
PANELS = (
    ("Loss", ("loss", "held_out_loss")),
    ("Accuracy on the training groups", ("accuracy", "held_out_accuracy")),
    ("Uncertainty on the training groups", ("uncertainty",)),
    ("Learning rate", ("lr",)),
)
"""Title of each panel of curves -> its values in log.jsonl."""


def report_run(
    folder: Path,
    *,
    cache: Path | None = None,
    out: Path | None = None,
    samples: int = 6,
    on_step: Callable[[int, int, str], None] | None = None,
) -> Path:
    """Write the report of a run and return the file. Raises CheckpointError: the run is damaged or not finished.

    Args:
        folder: The run.
        cache: Folder of the cache. Default: its path at training. Without a cache the page has no pictures and no probes.
        out: File to write. Default: ``report.html`` in the run folder.
        samples: Number of performances of each kind in the gallery.
        on_step: Called with (done, total, name of the next step).
    """
    import torch

    run = read_run(folder)
    recipe = run.checkpoint.state.recipe
    torch.set_num_threads(recipe.train.usable_threads)
    cache = cache if cache is not None else Path(run.cache)
    data, missing = open_run_cache(run, cache)
    probes, gallery, occluded = None, [], 0
    if data is not None:
        probes = probe(run, load_network(run.checkpoint), data, cache, on_step or (lambda *_: None))
        tested = _tested_clips(run, data)
        gallery = _gallery(run, data, tested, samples)
        for p in run.metrics.predictions:
            occluded += sum(p.view_weights[clip.view - 1] == 0 for clip in tested.get(p.group, ()))
    text = render(
        "run.html",
        title=f"{run.evaluation.dataset}, {run.evaluation.protocol}",
        folder=folder.absolute(),
        e=run.evaluation,
        m=run.metrics,
        names=run.class_names,
        n_right=sum(p.label == p.predicted for p in run.metrics.predictions),
        fusion=recipe.model.fusion,
        data=data,
        missing=missing,
        figures=_figures(run),
        curves=_curves(run),
        classes=class_rows(run),
        probes=probes,
        gallery=gallery,
        occluded=occluded,
        pictures=_describe_pictures(recipe.model),
        branches=_describe_branches(recipe.model),
        recipe=_recipe(run),
        origin=_origin(run),
    )
    return write_page(out or folder / "report.html", text)


def _describe_pictures(model: ModelConfig) -> str:
    """Relate the pictures of the gallery to the input of the network."""
    text = "The pictures are the frames that the network reads, at the size of the cache."
    if any(branch.paste == "thumbnails" for branch in model.branch):
        text += " Thumbnails of another view (TSM) are drawn at their cells, with a border in the colour of that view."
    inputs = {"motion": "the motion of each cell", "dynamic": "embeddings minus their temporal mean"}
    inputs |= {"frames": "embeddings", "pixels": "pixels"}
    names = dict.fromkeys(inputs[branch.input] for branch in model.branch)
    return f"{text} The input of the network is {' and '.join(names)}."


def _describe_branches(model: ModelConfig) -> str:
    """List the branches; an empty string if there is only one."""
    if len(model.branch) == 1:
        return ""
    views = {"each": "of each view", "sequence": "of all views as a sequence", "all": "of all views together"}
    parts = [f"{branch.input} {views[branch.views]}" for branch in model.branch]
    return (
        f"The network averages {len(parts)} branches: {'; '.join(parts)}. "
        "The weights are means over the branches that fuse views."
    )


def _figures(run: RunData) -> dict[str, Markup]:
    m, names = run.metrics, run.class_names
    weights: dict[str, list[tuple[float, bool, str]]] = {}
    for v, view in enumerate(run.evaluation.view_names):
        for p in m.predictions:
            if p.view_weights[v] > 0:
                right = p.label == p.predicted
                title = f"{p.group}: {p.view_weights[v]:.3f}, {names[p.predicted]}"
                title += "" if right else f" instead of {names[p.label]}"
                weights.setdefault(f"view {view}", []).append((p.view_weights[v], right, title))
    return {
        "confusion": svg.confusion(m.confusion, names),
        "reliability": svg.reliability(m.reliability),
        "weights": svg.dots(weights),
    }


def _curves(run: RunData) -> list[tuple[str, list[str], Markup]]:
    """Return title, legend and drawing of each panel."""
    series = {name: line for name, line in run.series.items() if line}
    panels: list[tuple[str, dict[str, list[float]]]] = [
        (title, {name: series.pop(name) for name in names if name in series})
        for title, names in PANELS
        if names[0] in series
    ]
    parts = list(series.items())
    # A panel has at most six lines, because there are six colours.
    panels[1:1] = [("Parts of the loss", dict(parts[k : k + 6])) for k in range(0, len(parts), 6)]
    return [(title, list(lines), svg.curves(lines, "epoch")) for title, lines in panels]


def _tested_clips(run: RunData, data: CachedDataset) -> dict[str, list[Clip]]:
    """Return the evaluated clips by group."""
    e, names = run.evaluation, data.info.view_names
    by_group: dict[str, list[Clip]] = {}
    split = split_clips(data.clips, parse_protocol(e.protocol, data.info.kind), data.info.kind, names)
    for clip in split.test if e.split == "test" else split.train:
        if names[clip.view - 1] in e.views:
            by_group.setdefault(clip.group, []).append(clip)
    return by_group


def _gallery(
    run: RunData, data: CachedDataset, tested: Mapping[str, list[Clip]], each: int
) -> list[tuple[str, str, list[tuple[GroupPrediction, list[Strip]]]]]:
    sections, model = [], run.checkpoint.state.recipe.model
    for kind, predictions in choose_samples(run.metrics.predictions, each).items():
        chosen = [p for p in predictions if p.group in tested]
        samples = [(p, network_strips(data, model, tested[p.group], p.view_weights)) for p in chosen]
        sections.append((*SECTIONS[kind], samples))
    return sections


def _recipe(run: RunData) -> list[tuple[str, list[tuple[str, str, bool]]]]:
    """Return the sections of the recipe: key, value, and True if the value is not the default of the code."""
    recipe = run.checkpoint.state.recipe
    defaults = recipe_text(type(recipe)())
    return [
        (section, [(key, value, value != defaults[section].get(key)) for key, value in table.items()])
        for section, table in recipe_text(recipe).items()
    ]


def _origin(run: RunData) -> list[tuple[str, str]]:
    state = run.checkpoint.state
    return [
        ("seed", str(state.seed)),
        ("frame samples (draws)", str(run.evaluation.draws)),
        ("protocol", state.protocol),
        ("epochs, steps", f"{state.epoch}, {state.step}"),
        ("numbers in the checkpoint", f"{sum(x.numel() for x in run.checkpoint.weights.values()):,}"),
        ("fingerprint of the cache", state.fingerprint),
        ("cache at training", run.cache),
        *spec_rows(state.spec),
        *((name, str(value)) for name, value in run.environment.items()),
    ]
