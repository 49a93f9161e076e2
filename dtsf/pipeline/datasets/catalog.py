"""Catalog of a source: all clips, their groups, and the names of classes and views. No video is opened."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from dtsf.cache.catalog import view_numbers
from dtsf.cache.schema import Box, Clip, DatasetInfo, ViewRegion
from dtsf.errors import ConfigError, DataError
from dtsf.pipeline.settings import read_boxes, read_region
from dtsf.pipeline.source import walk_files
from dtsf.pipeline.video.clip import Span
from dtsf.settings import Frozen


class SourceCatalog(Frozen):
    """Clips of a dataset as found in the source, sorted by their unique ids. View n has the name at index n - 1."""

    kind: str
    root: Path
    clips: tuple[Clip, ...]
    class_names: tuple[str, ...]
    view_names: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def groups(self) -> dict[str, tuple[Clip, ...]]:
        """Clips by group, in the order of the ids."""
        groups: dict[str, list[Clip]] = {}
        for clip in self.clips:
            groups.setdefault(clip.group, []).append(clip)
        return {name: tuple(clips) for name, clips in groups.items()}

    @property
    def groups_by_views(self) -> dict[int, int]:
        """Number of groups by number of views, most views first."""
        counts = Counter(len(clips) for clips in self.groups.values())
        return dict(sorted(counts.items(), reverse=True))


def build_catalog(
    kind: str,
    root: Path,
    clips: Iterable[Clip],
    *,
    class_names: Sequence[str],
    view_names: Sequence[str],
    notes: Sequence[str] = (),
    expects: str,
) -> SourceCatalog:
    """Build a catalog from unsorted clips. ``expects``: names, for the message. Raises DataError: no clip, or two with an id."""
    by_id: dict[str, Clip] = {}
    for clip in clips:
        other = by_id.setdefault(clip.id, clip)
        if other is not clip:
            raise DataError(
                f"two files are the clip {clip.id}: {root / other.path} and {root / clip.path}. Preprocess each collection "
                "alone: give its folder as --root, and another --name"
            )
    if not by_id:
        files = list(itertools.islice(walk_files(root), 100_000))
        endings = Counter(Path(name).suffix.lower() or "no ending" for _, name in files)
        counts = ", ".join(f"{count} {ending}" for ending, count in endings.most_common(4))
        found = f"{counts}; the first is {'/'.join(files[0]).lstrip('/')}" if files else "no file"
        raise DataError(f"no {kind} video under {root}: looked for {expects}; found {'; '.join([found, *notes])}")
    ordered = tuple(by_id[key] for key in sorted(by_id))
    texts = {"class_names": tuple(class_names), "view_names": tuple(view_names), "notes": tuple(notes)}
    return SourceCatalog(kind=kind, root=root, clips=ordered, **texts)


def select(catalog: SourceCatalog, views: str = "all", limit: int | None = None) -> SourceCatalog:
    """Keep the clips of some views, then the first groups until there are ``limit`` clips. The last group is kept whole."""
    if views != "all":
        numbers = view_numbers(views, catalog.view_names, f"--views: {catalog.kind} at {catalog.root}")
        clips = tuple(clip for clip in catalog.clips if clip.view in numbers)
        if not clips:
            raise DataError(f"no clip under {catalog.root} has view {views}")
        catalog = catalog.model_copy(update={"clips": clips})
    if limit is not None:
        kept: list[Clip] = []
        for members in catalog.groups.values():
            kept += members if len(kept) < limit else ()
        catalog = catalog.model_copy(update={"clips": tuple(sorted(kept, key=lambda clip: clip.id))})
    return catalog


def set_regions(catalog: SourceCatalog, region: Box | None, ignore: tuple[Box, ...], crop: str) -> SourceCatalog:
    """Give ``region`` and ``ignore`` to all clips that have none. Raises ConfigError: ``ignore`` without a search."""
    if ignore and crop == "centre":
        raise ConfigError("--ignore has no effect with --crop centre: leave it out, or give --crop motion")
    clips = tuple(
        clip.model_copy(update={"region": clip.region or region, "ignore": clip.ignore or ignore})
        for clip in catalog.clips
    )
    n_ignored = sum(bool(clip.ignore) for clip in clips) if crop == "centre" else 0
    note = f"{n_ignored} clips have an ignore column, which has no effect with --crop centre"
    return catalog.model_copy(update={"clips": clips, "notes": (*catalog.notes, *([note] if n_ignored else []))})


def view_regions(catalog: SourceCatalog) -> tuple[ViewRegion | None, ...]:
    """Return the region of each view, or None where its clips have none. Empty if no view has one."""
    found: dict[int, set[ViewRegion]] = {}
    for clip in catalog.clips:
        found.setdefault(clip.view, set()).add(ViewRegion(region=clip.region, ignore=clip.ignore))
    every = [found.get(view, set()) for view in range(1, len(catalog.view_names) + 1)]
    regions = tuple(next(iter(one), ViewRegion()) if len(one) < 2 else ViewRegion(varies=True) for one in every)
    return tuple(None if one == ViewRegion() else one for one in regions) if set(regions) != {ViewRegion()} else ()


def video_spans(
    info: DatasetInfo,
    numbers: Sequence[int],
    region: Sequence[str | Box | None],
    ignore: Sequence[str | Sequence[Box]],
) -> list[Span]:
    """Return the part of each video: as given, else as the training clips of its view. ``numbers``: views, from 0.

    Raises ConfigError: a wrong box, or none although the training clips of a view have different ones.
    """

    def per_video(option: str, values: Sequence[Any], read: Callable[[Any], Any]) -> list[Any]:
        if len(values) not in (0, 1, len(numbers)):
            raise ConfigError(
                f"{option}: {len(values)} given for {len(numbers)} videos: give one for all or one for each"
            )
        try:
            return [read(value) for value in values] * (len(numbers) if len(values) == 1 else 1)
        except ValueError as error:
            raise ConfigError(f"{option} {error}") from error

    regions, ignored = per_video("--region", region, read_region), per_video("--ignore", ignore, read_boxes)
    spans = []
    for k, number in enumerate(numbers):
        trained = info.view_regions[number] if number < len(info.view_regions) else None
        if trained and trained.varies and not (regions or ignored):
            raise ConfigError(
                f"the training clips of view {info.view_names[number]} have different regions: give --region "
                '("0 0 1 1" is the whole picture)'
            )
        own = regions[k] if regions else trained.region if trained else None
        spans.append(Span(region=own, ignore=tuple(ignored[k] if ignored else trained.ignore if trained else ())))
    return spans


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key that compares runs of digits as numbers: 2 before 10."""
    runs = enumerate(re.split("([0-9]+)", text))
    return tuple((0, int(run[:1000]), run) if k % 2 else (1, 0, run.casefold()) for k, run in runs if run)
