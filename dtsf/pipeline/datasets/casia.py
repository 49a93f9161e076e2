"""CASIA Action Database. File names are ``<view>view_pNN[pMM]_<action>_aK``, in any folder, also after a prefix ``casia_``.

Examples: ``angleview_p01_walk_a1`` (one person), ``topdownview_p01p02_fight_a1`` (two). A group is (persons, action, take).
Missing views are normal. The files spell wander as ``wonder``; both spellings are accepted.
"""

from __future__ import annotations

import re
from pathlib import Path

from dtsf.cache.schema import Clip
from dtsf.pipeline.datasets.catalog import SourceCatalog, build_catalog
from dtsf.pipeline.source import SkippedFiles, find_videos

CLASSES = {
    **{name: name for name in ("walk", "run", "bend", "jump", "crouch", "faint")},
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
"""Action in the file name -> class name. Labels follow the order, which is that of the official list."""
VIEWS = ("horizontal", "angle", "topdown")
NAME = re.compile(r"(horizontal|angle|topdown)view_p(\d+)(?:p(\d+))?_([a-z]+)_a(\d+)\.[^.]+$", re.IGNORECASE)


def catalog_casia(root: Path) -> SourceCatalog:
    """List the clips of CASIA under ``root``. Raises DataError: no clip, or two files for the same clip."""
    clips: list[Clip] = []
    skipped = SkippedFiles()
    for path, match in find_videos(root, NAME, "CASIA's", skipped):
        token = match.group(4).lower().replace("wander", "wonder")
        if token not in CLASSES:
            skipped.add("files name an action that CASIA does not have and were left out", path)
            continue
        persons = [int(number) for number in match.group(2, 3) if number]
        view = VIEWS.index(match.group(1).lower())
        group = f"{''.join(f'p{person:02d}' for person in persons)}_{token}_a{int(match.group(5))}"
        facts = {
            "id": f"{group}_{VIEWS[view]}",
            "path": path,
            "raw_label": token,
            "subject": "+".join(map(str, persons)),
        }
        clips.append(Clip(label=list(CLASSES).index(token), group=group, view=view + 1, **facts))
    expects = "names such as angleview_p01_walk_a1.avi or topdownview_p01p02_fight_a1.avi"
    names = {"class_names": list(CLASSES.values()), "view_names": VIEWS}
    return build_catalog("casia", root, clips, **names, notes=skipped.notes(), expects=expects)
