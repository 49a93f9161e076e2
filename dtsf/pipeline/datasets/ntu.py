"""NTU RGB+D 60 and 120 (Shahroudy et al. 2016; Liu et al. 2020).

File names contain ``SsssCcccPpppRrrrAaaa``: setup, camera, performer, replication, action, all from 1. A group is (S, P, R, A):
the same performer, replication and action occur in several setups. Clips with a missing skeleton are kept.
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from dtsf.cache.schema import Clip
from dtsf.pipeline.datasets.catalog import SourceCatalog, build_catalog
from dtsf.pipeline.source import SkippedFiles, find_videos

NAME = re.compile(r"(S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3}))(?:_rgb)?\.[^.]+$", re.IGNORECASE)
VIEWS = ("1", "2", "3")
# Setup, camera, performer, replication, action.
MAX_NUMBERS = (32, 3, 106, 2, 120)


def catalog_ntu(root: Path) -> SourceCatalog:
    """List the clips of NTU RGB+D under ``root``. It has 60 classes if no action is above 60 and no setup above 17, else 120."""
    clips: list[Clip] = []
    skipped = SkippedFiles()
    for path, match in find_videos(root, NAME, "NTU's", skipped):
        numbers = tuple(int(group) for group in match.groups()[1:])
        if any(not 1 <= number <= maximum for number, maximum in zip(numbers, MAX_NUMBERS, strict=True)):
            skipped.add("files have numbers that NTU does not have and were left out", path)
            continue
        setup, camera, performer, replication, action = numbers
        group = f"S{setup:03d}P{performer:03d}R{replication:03d}A{action:03d}"
        facts = {"id": match.group(1).upper(), "path": path, "raw_label": str(action), "subject": str(performer)}
        clips.append(Clip(label=action - 1, group=group, view=camera, setup=setup, **facts))
    table = (resources.files("dtsf.pipeline.datasets") / "ntu_classes.tsv").read_text("utf-8")
    names = [line.split("\t")[1] for line in table.splitlines() if line.strip()]
    n_classes = 60 if all(clip.label < 60 and (clip.setup or 0) <= 17 for clip in clips) else 120
    expects = "SsssCcccPpppRrrrAaaa.avi or SsssCcccPpppRrrrAaaa_rgb.avi"
    known = {"class_names": names[:n_classes], "view_names": VIEWS}
    catalog = build_catalog("ntu", root, clips, **known, notes=skipped.notes(), expects=expects)
    incomplete = [name for name, members in catalog.groups.items() if len(members) < len(VIEWS)]
    if not incomplete:
        return catalog
    note = (
        f"{len(incomplete)} of {len(catalog.groups)} groups lack a camera, for example {incomplete[0]}: "
        "NTU has three cameras for every group, so files are missing"
    )
    return catalog.model_copy(update={"notes": (*catalog.notes, note)})
