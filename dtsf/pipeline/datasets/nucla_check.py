"""Compare a folder of N-UCLA with three public lists of its clips.

The lists have 1,484, 1,483 and 1,475 clips; papers quote 1,494. All three lists agree on 1,466 clips. A folder is complete if it
has all of those. The other 26 clips are disputed: they are counted, but not required.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from dtsf.pipeline.datasets import scan_source
from dtsf.pipeline.datasets.catalog import SourceCatalog
from dtsf.pipeline.datasets.nucla import CLASSES
from dtsf.settings import Frozen

# Page of the authors. The videos are in its multiview_action_videos.tgz.
SOURCE = "https://wangjiangb.github.io/my_data.html"
# Projects with a list of clips in nucla_ids.csv: its columns after the id, in this order.
LISTS = ("CTR-GCN", "VPN", "DVANet")
# Number of clips that papers quote. No public list has as many.
QUOTED = 1494
SHORT = 11
"""A clip with at most this number of frames (in CTR-GCN's skeletons) counts as very short."""


class Count(Frozen):
    """Numbers of clips: in the folder, and in any of the lists."""

    found: int
    listed: int


class NuclaCheck(Frozen):
    """Comparison of a folder with the public lists.

    ``found``, ``listed`` and ``certain`` are numbers of clips: in the folder, in any list and in all lists. ``missing``,
    ``missing_disputed`` (in some lists only), ``unlisted`` and ``very_short`` are clip ids. Very short clips are used; their frames
    repeat. ``is_nucla`` is False if a ``labels.csv`` gives other class names: another dataset in N-UCLA's layout.
    """

    root: str
    found: int
    groups_by_views: dict[int, int]
    is_nucla: bool
    classes: tuple[str, ...]
    listed: int
    certain: int
    missing: tuple[str, ...]
    missing_disputed: tuple[str, ...]
    unlisted: tuple[str, ...]
    lists: dict[str, Count]
    views: dict[str, Count]
    subjects: dict[str, Count]
    actions: dict[str, Count]
    very_short: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """True if it is N-UCLA with all clips that the lists agree on."""
        return self.is_nucla and not self.missing

    @property
    def summary(self) -> str:
        """The result in one sentence."""
        if not self.is_nucla:
            return (
                f"this is not N-UCLA: {self.found:,} videos (N-UCLA has {QUOTED:,}) of other actions "
                f"({self.classes[0]}, {self.classes[1]} ...)"
            )
        if self.missing:
            return (
                f"N-UCLA is incomplete: {len(self.missing):,} of the {self.certain:,} clips in all public lists "
                f"are missing ({', '.join(self.missing[:3])}{' ...' if len(self.missing) > 3 else ''})"
            )
        return f"N-UCLA is complete: all {self.certain:,} clips in all public lists are present"


def check_nucla(catalog: SourceCatalog) -> NuclaCheck:
    """Compare a catalog of N-UCLA with the public lists. No video is opened."""
    listed = listed_clips()
    here = {clip.id for clip in catalog.clips}
    certain = {name for name, (in_lists, _) in listed.items() if all(in_lists)}

    def counts(key: Callable[[str], str]) -> dict[str, Count]:
        found, known = (Counter(map(key, names)) for names in (here, listed))
        return {key: Count(found=found[key], listed=known[key]) for key in sorted(found.keys() | known.keys())}

    lists = {}
    for k, project in enumerate(LISTS):
        names = {name for name, (in_lists, _) in listed.items() if in_lists[k]}
        lists[project] = Count(found=len(names & here), listed=len(names))
    short = {name for name, (_, frames) in listed.items() if frames is not None and frames <= SHORT}
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
        lists=lists,
        # Ids are aXX_sXX_eXX_vXX.
        views=counts(lambda name: name[12:]),
        subjects=counts(lambda name: name[4:7]),
        actions=counts(lambda name: name[:3]),
        very_short=tuple(sorted(short & here)),
        notes=catalog.notes,
    )


def examine_nucla(root: Path | None) -> tuple[SourceCatalog, NuclaCheck]:
    """List the clips of a folder and compare them with the public lists."""
    catalog = scan_source("nucla", root)
    return catalog, check_nucla(catalog)


def listed_clips() -> dict[str, tuple[tuple[bool, ...], int | None]]:
    """Return, by clip id, whether each of :data:`LISTS` has the clip, and the number of frames of CTR-GCN's skeleton."""
    text = (resources.files("dtsf.pipeline.datasets") / "nucla_ids.csv").read_text("utf-8")
    columns = [name.lower().replace("-", "") for name in LISTS]
    return {
        row["id"]: (tuple(row[name] == "1" for name in columns), int(row["frames"]) if row["frames"] else None)
        for row in csv.DictReader(text.splitlines())
    }
