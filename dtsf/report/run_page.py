"""``dtsf report RUN``: one run on one page."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from dtsf.report import svg
from dtsf.report.gallery import choose_samples, show_sample
from dtsf.report.page import render, write_page
from dtsf.report.probes import probe
from dtsf.report.run_data import class_rows, open_cache_of, read_run
from dtsf.training.checkpoint import load_network
from dtsf.training.protocols import parse_protocol, split_clips

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dtsf.cache.reader import CachedDataset
    from dtsf.cache.schema import Clip
    from dtsf.model.config import ModelConfig
    from dtsf.report.gallery import Sample
    from dtsf.report.run_data import RunFacts

LISTED = 500
"""Left-out clips that the page lists; of more it gives the count and the folder."""
TITLES = {
    "wrong": ("Wrong", "the ones it was surest of first"),
    "uncertain": ("Most uncertain", "whether right or wrong"),
    "right": ("Right", "class by class, the surest of each first"),
}


def report_run(
    run: Path,
    *,
    cache: Path | None = None,
    out: Path | None = None,
    samples: int = 6,
    on_step: Callable[[int, int, str], None] | None = None,
) -> Path:
    """Write a run's report. Returns the file. Raises CheckpointError: no finished run, or a damaged one.

    Args:
        cache: Folder of the cache; where it was when the run was trained, if left out. Without it the page has no pictures
            and no probes, and says so.
        samples: Performances of each kind in the gallery.
        on_step: Called with how many steps are done, of how many, and what comes next.
    """
    import torch

    facts = read_run(run)
    state = facts.checkpoint.state
    torch.set_num_threads(state.recipe.train.usable_threads)
    cache = cache if cache is not None else Path(facts.cache)
    data, missing = open_cache_of(facts, cache)
    probes = None
    if data is not None:
        probes = probe(facts, load_network(facts.checkpoint), data, cache, on_step or (lambda *_: None))
    shown = _shown_clips(facts, data) if data is not None else {}
    text = render(
        "run.html",
        title=f"{facts.evaluation.dataset}, {facts.evaluation.protocol}",
        run=run.absolute(),
        e=facts.evaluation,
        m=facts.metrics,
        state=state,
        sentence=_sentence(facts),
        missing=missing,
        figures=_figures(facts),
        curves=_curves(facts),
        classes=class_rows(facts),
        probes=probes,
        gallery=_gallery(facts, data, shown, samples) if data is not None else [],
        covered=sum(p.view_weights[c.view - 1] == 0 for p in facts.metrics.predictions for c in shown.get(p.group, ())),
        seen=_seen(state.recipe.model),
        pooled=_pooled(state.recipe.model),
        bars=svg.bars,
        left_out=_left_out(data),
        recipe=_recipe(facts),
        facts=_origin(facts),
    )
    return write_page(out or run / "report.html", text)


def _seen(model: ModelConfig) -> str:
    """Return how the pictures of the gallery relate to the input of the network."""
    pasted = [branch.input for branch in model.branch if branch.paste == "thumbnails"]
    if not pasted:
        moves = "; the network reads their motion" if model.uses_motion else ""
        return f"Cached pictures of the frames that the network reads{moves}."
    inputs = {"motion": "maps of motion", "dynamic": "the dynamic part of embeddings", "frames": "embeddings"}
    return (
        "Cached pictures of the frames that the network reads. Thumbnails of another view (TSM) are drawn at the cells of "
        "evaluation; the border has the colour of that view. The network pastes them into "
        f"{inputs.get(pasted[0], 'frames')}{'' if pasted[0] == 'pixels' else ', not into pictures'}."
    )


def _pooled(model: ModelConfig) -> str:
    """Return a sentence about the branches if there are several, else an empty string."""
    if len(model.branch) == 1:
        return ""
    views = {"each": "of each view", "sequence": "of all views as a sequence", "all": "of all views together"}
    parts = [f"{branch.input} {views[branch.views]}" for branch in model.branch]
    return (
        f"The decision averages {len(parts)} branches: {'; '.join(parts)}. "
        "View weights are averaged over the branches that have them."
    )


def _sentence(facts: RunFacts) -> str:
    e, m = facts.evaluation, facts.metrics
    right = sum(p.label == p.predicted for p in m.predictions)
    left = sum(e.left_out.values())
    return f"{right} of {m.n_groups} performances named right ({m.top1:.1%}): {e.task}; seed {e.seed}. " + (
        f"{left} clips are not in these numbers." if left else "No clip was left out."
    )


def _figures(facts: RunFacts) -> dict[str, Markup]:
    e, m = facts.evaluation, facts.metrics
    names = facts.class_names
    weights = {
        f"view {view}": [
            (
                p.view_weights[v],
                p.label == p.predicted,
                f"{p.group}: {p.view_weights[v]:.3f}, {names[p.predicted]}"
                + ("" if p.label == p.predicted else f" instead of {names[p.label]}"),
            )
            for p in m.predictions
            if p.view_weights[v] > 0
        ]
        for v, view in enumerate(e.view_names)
    }
    return {
        "confusion": svg.confusion(m.confusion, names),
        "reliability": svg.reliability(m.reliability) if m.reliability else Markup(""),
        "weights": svg.dots({view: row for view, row in weights.items() if row}),
    }


def _curves(facts: RunFacts) -> list[tuple[str, list[str], Markup]]:
    """Title, legend and drawing of each panel."""
    series = {name: line for name, line in facts.series.items() if line}
    named = (
        ("Loss", ("loss", "held_out_loss")),
        ("Accuracy on the training groups", ("accuracy", "held_out_accuracy")),
        ("Uncertainty on the training groups", ("uncertainty",)),
        ("Learning rate", ("lr",)),
    )
    panels: list[tuple[str, dict[str, list[float]]]] = [
        (title, {name: series.pop(name) for name in names if name in series})
        for title, names in named
        if names[0] in series
    ]
    parts = list(series.items())
    # Six colours: more lines than that go to a panel of their own.
    panels[1:1] = [("Parts of the loss", dict(parts[k : k + 6])) for k in range(0, len(parts), 6)]
    return [(title, list(lines), svg.curves(lines, "epoch")) for title, lines in panels]


def _shown_clips(facts: RunFacts, data: CachedDataset) -> dict[str, list[Clip]]:
    """Group -> the clips that the judgement was given: with cross-view only the tested camera's."""
    e, names = facts.evaluation, data.info.view_names
    by_group: dict[str, list[Clip]] = {}
    split = split_clips(data.clips, parse_protocol(e.protocol, data.info.kind), data.info.kind, names)
    for clip in split.test if e.split == "test" else split.train:
        if names[clip.view - 1] in e.views:
            by_group.setdefault(clip.group, []).append(clip)
    return by_group


def _gallery(
    facts: RunFacts, data: CachedDataset, by_group: Mapping[str, list[Clip]], each: int
) -> list[tuple[str, str, list[Sample]]]:
    sections = []
    for kind, chosen in choose_samples(facts.metrics.predictions, each).items():
        shown = []
        for p in chosen:
            clips = by_group.get(p.group, [])
            if clips:
                shown.append(show_sample(facts, data, clips, p))
        sections.append((*TITLES[kind], shown))
    return sections


def _left_out(data: CachedDataset | None) -> dict[str, Any]:
    bad = data.bad if data is not None else ()
    return {
        "verdicts": dict(Counter(one.status for one in bad)),
        "rows": [(one.clip.path, one.status, one.reason) for one in bad[:LISTED]],
        "more": max(0, len(bad) - LISTED),
        "known": data is not None,
        "folder": str(data.store) if data is not None else "",
    }


def _recipe(facts: RunFacts) -> list[tuple[str, list[tuple[str, str, bool]]]]:
    """Sections of the recipe: key, value, and whether it departs from the code's default."""
    recipe = facts.checkpoint.state.recipe
    now, usual = recipe.model_dump(mode="json"), type(recipe)().model_dump(mode="json")
    return [
        (section, [(key, json.dumps(value), value != usual[section].get(key)) for key, value in table.items()])
        for section, table in now.items()
    ]


def _origin(facts: RunFacts) -> list[tuple[str, str]]:
    state = facts.checkpoint.state
    spec = state.spec
    parameters = sum(x.numel() for x in facts.checkpoint.weights.values())
    return [
        ("seed", str(state.seed)),
        ("draws of frames", str(facts.evaluation.draws)),
        ("protocol", state.protocol),
        ("epochs, steps", f"{state.epoch}, {state.step}"),
        ("numbers in the checkpoint", f"{parameters:,}"),
        ("fingerprint of the cache", state.fingerprint),
        ("cache at training", facts.cache),
        ("encoder", f"{spec.encoder}, weights {spec.weights_hash}"),
        (
            "input",
            f"{spec.frames} frames, {spec.size} px ({spec.crop} crop), {spec.grid} x {spec.grid} cells x {spec.channels} channels",
        ),
        ("decoder", f"{spec.decoder}, {spec.sampling}"),
        *((name, str(value)) for name, value in facts.environment.items()),
    ]
