"""``dtsf cache info --html``: a page to check a cache by eye."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dtsf.cache.reader import CachedDataset, list_datasets, open_dataset
from dtsf.cache.schema import Clip
from dtsf.cache.store import open_store
from dtsf.files.write import check_targets
from dtsf.report.gallery import plain_strips
from dtsf.report.page import render, write_page
from dtsf.training.protocols import subjects_of


def report_cache(
    cache: Path,
    out: Path,
    *,
    dataset: str | None = None,
    samples: int = 12,
    on_step: Callable[[int, int, str], None] = lambda *_: None,
) -> Path:
    """Write a page with counts, statuses and film strips of ``samples`` random performances per dataset.
    ``on_step`` is called with (done, total, name of the next dataset). Raises CacheError: cache or dataset do not exist.
    Raises ConfigError: the file cannot be written.
    """
    check_targets({"--html": out}, "cache.html", parents=True)
    names: list[str | None] = [dataset] if dataset else [*list_datasets(cache)] or [None]
    datasets = []
    for k, name in enumerate(names):
        on_step(k, len(names), name or "")
        datasets.append(_describe(open_dataset(cache, name), samples))
    on_step(len(names), len(names), "")
    title = datasets[0]["name"] if len(datasets) == 1 else f"{len(datasets)} datasets"
    return write_page(out, render("cache.html", title=title, cache=open_store(cache).absolute(), datasets=datasets))


def _describe(data: CachedDataset, samples: int) -> dict[str, Any]:
    groups: dict[str, list[Clip]] = {}
    for clip in sorted(data.clips, key=lambda clip: (clip.group, clip.view)):
        groups.setdefault(clip.group, []).append(clip)
    names, views = data.info.class_names, data.info.view_names
    by_class_view = Counter((clip.label, clip.view) for clip in data.clips)
    return {
        "name": data.info.name,
        "data": data,
        "views": views,
        "n_groups": len(groups),
        "n_subjects": len(subjects_of(data.clips)),
        "sizes": sorted(Counter(map(len, groups.values())).items(), reverse=True),
        "n_records": sum(data.verdicts.values()),
        "classes": [(name, [by_class_view[k, v] for v in range(1, len(views) + 1)]) for k, name in enumerate(names)],
        "samples": [
            (group, names[groups[group][0].label], groups[group][0].subject, plain_strips(data, groups[group]))
            for group in sorted(random.Random(0).sample(sorted(groups), min(samples, len(groups))))
        ],
    }
