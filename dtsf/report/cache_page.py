"""``dtsf cache info --html``: a page to check a cache by eye."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Any

from dtsf.cache.reader import list_datasets, open_dataset
from dtsf.report.gallery import plain_strips
from dtsf.report.page import render, write_page

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dtsf.cache.reader import CachedDataset
    from dtsf.cache.schema import Clip

LISTED = 500


def report_cache(
    cache: Path,
    out: Path,
    *,
    dataset: str | None = None,
    samples: int = 12,
    seed: int = 0,
    on_step: Callable[[int, int, str], None] | None = None,
) -> Path:
    """Write a page that shows a cache: counts, verdicts, filmstrips of random performances.

    ``samples``: performances drawn of each data set. ``on_step``: called with how many data sets are read, of how many, and the
    next one. Raises CacheError: no cache, or no such data set.
    """
    names: list[str | None] = [dataset] if dataset else [*list_datasets(cache)] or [None]
    shown = []
    for k, name in enumerate(names):
        if on_step is not None:
            on_step(k, len(names), name or "")
        shown.append(_describe(open_dataset(cache, name), samples, seed))
    if on_step is not None:
        on_step(len(names), len(names), "")
    title = shown[0]["name"] if len(shown) == 1 else f"{len(shown)} data sets"
    return write_page(out, render("cache.html", title=title, cache=cache.absolute(), datasets=shown))


def _describe(data: CachedDataset, samples: int, seed: int) -> dict[str, Any]:
    groups: dict[str, list[Clip]] = {}
    for clip in data.clips:
        groups.setdefault(clip.group, []).append(clip)
    drawn = sorted(random.Random(seed).sample(sorted(groups), min(samples, len(groups))))
    names, views = data.info.class_names, data.info.view_names
    by_class_view = Counter((clip.label, clip.view) for clip in data.clips)
    subjects = {clip.subject for clip in data.clips if clip.subject is not None}
    spec, sizes = data.spec, Counter(len(clips) for clips in groups.values())
    return {
        "name": data.info.name,
        "views": views,
        "counts": ", ".join(
            [
                f"{len(groups)} performances of {len(names)} classes",
                *([f"{len(subjects)} subjects"] if subjects else []),
                f"{len(views)} cameras",
            ]
        ),
        "usable": len(data.clips),
        "uneven": [(n, cameras) for cameras, n in sorted(sizes.items(), reverse=True)] if len(sizes) > 1 else [],
        "facts": [
            ("read as", data.info.kind),
            ("encoder", f"{spec.encoder}, weights {spec.weights_hash}"),
            (
                "input",
                f"{spec.frames} frames, {spec.size} px ({spec.crop} crop), "
                f"{spec.grid} x {spec.grid} cells x {spec.channels} channels",
            ),
            ("decoder", f"{spec.decoder}, {spec.sampling}"),
            ("fingerprint", spec.fingerprint()),
        ],
        "verdicts": list(data.verdicts.items()),
        "n_records": sum(data.verdicts.values()),
        "bad": [(one.clip.path, one.status, one.reason) for one in data.bad[:LISTED]],
        "more": max(0, len(data.bad) - LISTED),
        "folder": str(data.store),
        "classes": [
            (name, [by_class_view[k, view] for view in range(1, len(views) + 1)]) for k, name in enumerate(names)
        ],
        "samples": [
            (
                group,
                names[groups[group][0].label],
                groups[group][0].subject,
                plain_strips(data, sorted(groups[group], key=lambda clip: clip.view)),
            )
            for group in drawn
        ],
    }
