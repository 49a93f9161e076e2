"""What a data set holds: all clips, put together to groups, with class and view names; no video is opened for it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from dtsf.cache.records import Clip, Frozen, view_numbers
from dtsf.errors import DataError
from dtsf.pipeline.files import walk_files

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Catalog(Frozen):
    """All clips of a data set."""

    dataset: str
    """Kind: ``nucla``, ``ntu``, ``casia``, ``manifest``."""
    root: Path
    clips: tuple[Clip, ...]
    """In the order of their ids, which are unique."""
    class_names: tuple[str, ...]
    """By label."""
    view_names: tuple[str, ...]
    """By view number less 1."""
    notes: tuple[str, ...] = ()
    """What a person should know: files left out, groups that look incomplete."""

    @property
    def groups(self) -> dict[str, tuple[Clip, ...]]:
        """Clips by group."""
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
    dataset: str,
    root: Path,
    clips: Iterable[Clip],
    *,
    class_names: Sequence[str],
    view_names: Sequence[str],
    notes: Sequence[str] = (),
    expects: str,
) -> Catalog:
    """Sort clips, refuse two files for one clip, refuse an empty catalog. Raises DataError: no clip, or one clip claimed by two
    files; the message has both paths.

    Args:
        class_names: By label.
        view_names: By view number less 1.
        expects: How files are named, for the message when none was found.
    """
    by_id: dict[str, Clip] = {}
    for clip in clips:
        other = by_id.get(clip.id)
        if other is not None:
            raise DataError(
                f"two files claim the clip {clip.id}: {root / other.path} and {root / clip.path}. "
                f"Give the folder of one collection as --root (and another --name for the other)"
            )
        by_id[clip.id] = clip
    if not by_id:
        listed_notes = "".join(f"; {note}" for note in notes)
        raise DataError(
            f"no {dataset} video under {root}: looked for {expects}; found {_describe_content(root)}{listed_notes}"
        )
    ordered = tuple(by_id[key] for key in sorted(by_id))
    return Catalog(
        dataset=dataset,
        root=root,
        clips=ordered,
        class_names=tuple(class_names),
        view_names=tuple(view_names),
        notes=tuple(notes),
    )


def select(catalog: Catalog, views: str = "all", limit: int | None = None) -> Catalog:
    """Keep some views, then the first groups that hold at least ``limit`` clips (groups stay whole). Raises ConfigError: a view
    that the data set does not have. DataError: nothing left.
    """
    clips = catalog.clips
    if views != "all":
        numbers = view_numbers(views, catalog.view_names, f"--views: {catalog.dataset} at {catalog.root}")
        clips = tuple(clip for clip in clips if clip.view in numbers)
        if not clips:
            raise DataError(f"no clip of {catalog.root} shows view {views}")
    if limit is not None:
        if limit < 1:
            raise DataError(f"--limit {limit} must be at least 1")
        kept: set[str] = set()
        count = 0
        for name, members in catalog.model_copy(update={"clips": clips}).groups.items():
            if count >= limit:
                break
            kept.add(name)
            count += len(members)
        clips = tuple(clip for clip in clips if clip.group in kept)
    return catalog.model_copy(update={"clips": clips})


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that puts 2 before 10: runs of digits compare as numbers."""
    runs = enumerate(re.split("([0-9]+)", text))
    return tuple((0, int(run[:1000]), run) if k % 2 else (1, 0, run.casefold()) for k, run in runs if run)


def _describe_content(root: Path) -> str:
    """A few words on what stands under a root, for an error."""
    endings: Counter[str] = Counter()
    first = ""
    for folder, name in walk_files(root):
        endings[Path(name).suffix.lower() or "no ending"] += 1
        first = first or f"{folder}/{name}".lstrip("/")
        if endings.total() >= 100_000:
            break
    if not endings:
        return "no file at all"
    listed = ", ".join(f"{count} {ending}" for ending, count in endings.most_common(4))
    return f"{listed}; the first is {first}"
