"""NTU RGB+D 60 and 120 (Shahroudy et al. 2016; Liu et al. 2020).

Files carry ``SsssCcccPpppRrrrAaaa``: setup, camera, performer, replication, action, all from 1. A group is
(S, P, R, A); the setup belongs to it, because the same performer, replication and action recur under several setups.
The published lists have all three cameras of every group, so an incomplete group on disk means a missing download.
Ids whose skeletons are missing stay: their videos are fine.
"""

from __future__ import annotations

import re
from importlib import resources
from typing import TYPE_CHECKING

from dtsf.cache.records import Clip
from dtsf.pipeline.catalog import Catalog, build_catalog
from dtsf.pipeline.files import SkippedFiles, find_videos

if TYPE_CHECKING:
    from pathlib import Path

NAME = re.compile(r"(S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3}))(?:_rgb)?\.[^.]+$", re.IGNORECASE)
VIEWS = ("1", "2", "3")
LARGEST = (32, 3, 106, 2, 120)
"""Setup, camera, performer, replication, action."""


def catalog_ntu(root: Path) -> Catalog:
    """List the clips of NTU RGB+D under ``root``; 60 classes if no action is above 60 and no setup above 17, else 120. Raises
    DataError: no clip found, or two files for one (``X.avi`` beside ``X_rgb.avi``).
    """
    clips: list[Clip] = []
    left_out = SkippedFiles()
    for path, match in find_videos(root, NAME, "NTU's", left_out):
        numbers = tuple(int(group) for group in match.groups()[1:])
        if any(not 1 <= number <= largest for number, largest in zip(numbers, LARGEST, strict=True)):
            left_out.add("files have numbers that NTU does not have and were left out", path)
            continue
        setup, camera, performer, replication, action = numbers
        clips.append(
            Clip(
                id=match.group(1).upper(),
                path=path,
                label=action - 1,
                raw_label=str(action),
                group=f"S{setup:03d}P{performer:03d}R{replication:03d}A{action:03d}",
                view=camera,
                subject=str(performer),
                setup=setup,
            )
        )
    table = (resources.files("dtsf.pipeline.datasets") / "ntu_classes.tsv").read_text("utf-8")
    names = [line.split("\t")[1] for line in table.splitlines() if line.strip()]
    is_60 = all(clip.label < 60 and (clip.setup or 0) <= 17 for clip in clips)
    catalog = build_catalog(
        "ntu",
        root,
        clips,
        class_names=names[: 60 if is_60 else 120],
        view_names=VIEWS,
        notes=left_out.notes(),
        expects="names with SsssCcccPpppRrrrAaaa, then _rgb or nothing, then a video's ending",
    )
    incomplete = [name for name, members in catalog.groups.items() if len(members) < len(VIEWS)]
    if incomplete:
        note = (
            f"{len(incomplete)} of {len(catalog.groups)} groups lack a camera, for example {incomplete[0]}: "
            "NTU has all three of every group, so files are missing here"
        )
        catalog = catalog.model_copy(update={"notes": (*catalog.notes, note)})
    return catalog
