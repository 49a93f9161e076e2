"""What of N-UCLA is there and what is missing, held against three public lists of its clips.

No list is the whole truth: they hold 1,484, 1,483 and 1,475 clips, papers speak of 1,494, and 1,466 clips stand in all
three. So "whole" means that none of those 1,466 is missing; the other 26 are disputed, and only counted.
"""

from __future__ import annotations

import csv
from collections import Counter
from importlib import resources
from typing import TYPE_CHECKING

from dtsf.cache.records import Frozen
from dtsf.pipeline.datasets import read_catalog
from dtsf.pipeline.datasets.nucla import CLASSES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dtsf.pipeline.catalog import Catalog

SOURCE = "https://wangjiangb.github.io/my_data.html"
"""The authors' page. The videos are its ``multiview_action_videos.tgz``."""
LISTS = ("CTR-GCN", "VPN", "DVANet")
"""Projects whose lists of clips ``nucla_ids.csv`` holds: its columns after the id, in this order."""
QUOTED = 1494
"""The number of clips that papers quote. No public list reaches it."""
SHORT = 11
"""A listed clip with at most so many frames (of CTR-GCN's skeletons) counts as very short."""


class Count(Frozen):
    """How many clips there are, and how many the lists know."""

    found: int
    listed: int
    """In any of the lists."""


class NuclaCheck(Frozen):
    """A catalog held against the public lists."""

    root: str
    found: int
    """Clips in the catalog."""
    groups_by_views: dict[int, int]
    """Number of performances by number of views."""
    is_nucla: bool
    """False where a ``labels.csv`` gives the ids other classes: then it is another data set in N-UCLA's layout."""
    classes: tuple[str, ...]
    listed: int
    """Clips in any list."""
    certain: int
    """Clips in all lists."""
    missing: tuple[str, ...]
    """Ids that stand in all lists and are not there."""
    missing_disputed: tuple[str, ...]
    """Ids that only some lists have, and that are not there."""
    unlisted: tuple[str, ...]
    """Ids that are there and in no list."""
    lists: dict[str, Count]
    """By the list's name: how many of its clips are there."""
    views: dict[str, Count]
    subjects: dict[str, Count]
    actions: dict[str, Count]
    very_short: tuple[str, ...]
    """Of those there: listed with at most :data:`SHORT` frames. They are used; their frames repeat."""
    notes: tuple[str, ...]
    """Of the catalog: files left out."""

    @property
    def whole(self) -> bool:
        """Whether it is N-UCLA with every clip that all lists have."""
        return self.is_nucla and not self.missing

    @property
    def verdict(self) -> str:
        """The check in a sentence."""
        if not self.is_nucla:
            return (
                f"this is not N-UCLA: {self.found:,} videos, where N-UCLA has {QUOTED:,}, and of other actions "
                f"({self.classes[0]}, {self.classes[1]} ...)"
            )
        if self.missing:
            return (
                f"N-UCLA is not whole: {len(self.missing):,} of the {self.certain:,} clips that all public lists have "
                f"are missing ({', '.join(self.missing[:3])}{' ...' if len(self.missing) > 3 else ''})"
            )
        return f"N-UCLA is whole: all {self.certain:,} clips that the public lists agree on are there"


def check_nucla(catalog: Catalog) -> NuclaCheck:
    """Hold a catalog of N-UCLA against the public lists. No video is opened."""
    listed = listed_clips()
    here = {clip.id for clip in catalog.clips}
    certain = {name for name, (in_lists, _) in listed.items() if all(in_lists)}

    def counts(part: Callable[[str], str]) -> dict[str, Count]:
        found, known = Counter(map(part, here)), Counter(map(part, listed))
        return {key: Count(found=found[key], listed=known[key]) for key in sorted(found.keys() | known.keys())}

    return NuclaCheck(
        root=str(catalog.root),
        found=len(here),
        groups_by_views=catalog.groups_by_views,
        is_nucla=catalog.class_names == tuple(CLASSES[action] for action in sorted(CLASSES)),
        classes=catalog.class_names,
        listed=len(listed),
        certain=len(certain),
        missing=tuple(sorted(certain - here)),
        missing_disputed=tuple(sorted(listed.keys() - certain - here)),
        unlisted=tuple(sorted(here - listed.keys())),
        lists={
            name: Count(
                found=sum(in_lists[k] for clip, (in_lists, _) in listed.items() if clip in here),
                listed=sum(in_lists[k] for in_lists, _ in listed.values()),
            )
            for k, name in enumerate(LISTS)
        },
        views=counts(lambda clip: clip[12:]),
        subjects=counts(lambda clip: clip[4:7]),
        actions=counts(lambda clip: clip[:3]),
        very_short=tuple(
            sorted(
                clip for clip, (_, frames) in listed.items() if clip in here and frames is not None and frames <= SHORT
            )
        ),
        notes=catalog.notes,
    )


def examine_nucla(root: Path | None) -> tuple[Catalog, NuclaCheck]:
    """List what is there and hold it against the public lists. Raises DataError: no folder, or no clip in it."""
    catalog = read_catalog("nucla", root)
    return catalog, check_nucla(catalog)


def listed_clips() -> dict[str, tuple[tuple[bool, ...], int | None]]:
    """Every clip of the public lists: its id, which of :data:`LISTS` have it, and the frames of CTR-GCN's skeleton."""
    text = (resources.files("dtsf.pipeline.datasets") / "nucla_ids.csv").read_text("utf-8")
    return {
        row["id"]: (
            tuple(row[name.lower().replace("-", "")] == "1" for name in LISTS),
            int(row["frames"]) if row["frames"] else None,
        )
        for row in csv.DictReader(text.splitlines())
    }
