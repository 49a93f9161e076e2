"""Catalog of a source: all clips, their groups, and the names of classes and views. No video is opened."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from dtsf.cache.catalog import view_numbers
from dtsf.cache.schema import Box, Clip, ViewRegion
from dtsf.errors import ConfigError, DataError
from dtsf.names import counted
from dtsf.pipeline.source import walk_files
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
    for what, names in (("classes", class_names), ("views", view_names)):
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise DataError(f"two {what} of {kind} under {root} have the name {twice[0]!r}: rename one")
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
    note = f"{counted(n_ignored, 'clip has', 'clips have')} an ignore column, which has no effect with --crop centre"
    return catalog.model_copy(update={"clips": clips, "notes": (*catalog.notes, *([note] if n_ignored else []))})


def view_regions(catalog: SourceCatalog) -> tuple[ViewRegion | None, ...]:
    """Return the region of each view, or None where its clips have none. Empty if no view has one."""
    found: dict[int, set[ViewRegion]] = {}
    for clip in catalog.clips:
        found.setdefault(clip.view, set()).add(ViewRegion(region=clip.region, ignore=clip.ignore))
    every = [found.get(view, set()) for view in range(1, len(catalog.view_names) + 1)]
    regions = tuple(next(iter(one), ViewRegion()) if len(one) < 2 else ViewRegion(varies=True) for one in every)
    return tuple(None if one == ViewRegion() else one for one in regions) if set(regions) != {ViewRegion()} else ()


def view_offsets(catalog: SourceCatalog) -> tuple[float | None, ...]:
    """Return the offset of each view, or None where its clips have different ones. Empty if no clip has one."""
    found: dict[int, set[float]] = {}
    for clip in catalog.clips:
        found.setdefault(clip.view, set()).add(clip.offset)
    every = [found.get(view, set()) for view in range(1, len(catalog.view_names) + 1)]
    return tuple(min(one) if len(one) == 1 else None for one in every) if set().union(*every) != {0.0} else ()


def natural_key(text: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Return a sort key that compares runs of digits as numbers: 2 before 10. Different texts have different keys, so the order of
    a set does not matter.
    """
    runs = enumerate(re.split("([0-9]+)", text))
    return tuple((0, int(run[:1000]), run) if k % 2 else (1, 0, run.casefold()) for k, run in runs if run), text
