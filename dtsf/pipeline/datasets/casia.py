"""CASIA Action Database: ``<view>view_pNN[pMM]_<action>_aK``, in any folder, with or without a ``casia_`` prefix.

One person: ``angleview_p01_walk_a1``; two: ``topdownview_p01p02_fight_a1``. A group is (persons, action, take). Views
are often missing, which is normal. ``wonder`` is how the files write wander; both are accepted.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dtsf.cache.records import Clip
from dtsf.pipeline.catalog import Catalog, build_catalog
from dtsf.pipeline.files import SkippedFiles, find_videos

if TYPE_CHECKING:
    from pathlib import Path

CLASSES = {
    "walk": "walk",
    "run": "run",
    "bend": "bend",
    "jump": "jump",
    "crouch": "crouch",
    "faint": "faint",
    "wonder": "wander",
    "car": "punching a car",
    "rob": "rob",
    "fight": "fight",
    "followalways": "follow",
    "followtogether": "follow and gather",
    "meetapart": "meet and part",
    "meettogether": "meet and gather",
    "overtake": "overtake",
}
"""Token in the file name -> official class, in the order of the official list: its order gives the labels."""
LABELS = {token: label for label, token in enumerate(CLASSES)}
VIEWS = ("horizontal", "angle", "topdown")

NAME = re.compile(r"(horizontal|angle|topdown)view_p(\d+)(?:p(\d+))?_([a-z]+)_a(\d+)\.[^.]+$", re.IGNORECASE)


def catalog_casia(root: Path) -> Catalog:
    """List the clips of CASIA under ``root``. Raises DataError: no clip found, or two files for one."""
    clips: list[Clip] = []
    left_out = SkippedFiles()
    for path, match in find_videos(root, NAME, "CASIA's", left_out):
        token = match.group(4).lower().replace("wander", "wonder")
        if token not in CLASSES:
            left_out.add("files name an action that CASIA does not have and were left out", path)
            continue
        persons = [int(number) for number in match.group(2, 3) if number]
        view = VIEWS.index(match.group(1).lower()) + 1
        group = f"{''.join(f'p{person:02d}' for person in persons)}_{token}_a{int(match.group(5))}"
        clips.append(
            Clip(
                id=f"{group}_{VIEWS[view - 1]}",
                path=path,
                label=LABELS[token],
                raw_label=token,
                group=group,
                view=view,
                subject="+".join(str(person) for person in persons),
            )
        )
    return build_catalog(
        "casia",
        root,
        clips,
        class_names=list(CLASSES.values()),
        view_names=VIEWS,
        notes=left_out.notes(),
        expects="names such as angleview_p01_walk_a1.avi or topdownview_p01p02_fight_a1.avi",
    )
