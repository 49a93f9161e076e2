"""Write the table of a data set that has a layout of its own, as a start for one's own: ``python -m ... ROOT > videos.csv``.

Paths are relative to the folder it is started in; the last subject of the data set is the test subject.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dtsf.pipeline.catalog import natural_key
from dtsf.pipeline.datasets.nucla import catalog_nucla

if TYPE_CHECKING:
    from typing import TextIO


def write_table(root: Path, out: TextIO) -> int:
    """Write a row for every video of a data set in N-UCLA's layout; returns how many."""
    catalog = catalog_nucla(root)
    last = max((clip.subject or "" for clip in catalog.clips), key=natural_key)
    writer = csv.writer(out)
    writer.writerow(("path", "label", "group", "view", "subject", "split"))
    for clip in catalog.clips:
        view = f"cam{catalog.view_names[clip.view - 1]}"
        label, split = catalog.class_names[clip.label], "test" if clip.subject == last else "train"
        writer.writerow((root / clip.path, label, clip.group, view, clip.subject, split))
    return len(catalog.clips)


if __name__ == "__main__":
    write_table(Path(sys.argv[1]), sys.stdout)
