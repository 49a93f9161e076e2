"""The data sets that dtsf reads. A new one is a function from a root to a Catalog, and a line in :data:`DATASETS`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from dtsf.errors import DataError
from dtsf.pipeline.catalog import select
from dtsf.pipeline.datasets.casia import catalog_casia
from dtsf.pipeline.datasets.manifest import catalog_manifest
from dtsf.pipeline.datasets.ntu import catalog_ntu
from dtsf.pipeline.datasets.nucla import catalog_nucla

if TYPE_CHECKING:
    from collections.abc import Callable

    from dtsf.pipeline.catalog import Catalog

DATASETS: dict[str, Callable[[Path], Catalog]] = {
    "nucla": catalog_nucla,
    "ntu": catalog_ntu,
    "casia": catalog_casia,
    "manifest": catalog_manifest,
}


def read_catalog(
    dataset: str,
    root: Path | None = None,
    views: str = "all",
    limit: int | None = None,
    videos: Path | None = None,
) -> Catalog:
    """List the clips of a data set. Raises DataError: unknown data set or view, missing root, no video, one clip claimed by two
    files.

    Args:
        root: The data set's folder or any folder above it (for a manifest, the CSV); see :func:`find_root` if None.
        views: ``all``, or view numbers or names joined by commas.
        limit: Keep the first groups that hold at least this many clips.
        videos: Folder that a manifest's paths are relative to.
    """
    if dataset not in DATASETS:
        raise DataError(f"unknown data set {dataset!r}; there are {', '.join(DATASETS)}")
    found = find_root(dataset, root)
    if dataset == "manifest":
        return select(catalog_manifest(found, videos), views, limit)
    if videos is not None:
        raise DataError(f"--videos is for tables; where the videos of {dataset} are is --root")
    return select(DATASETS[dataset](found), views, limit)


def find_root(dataset: str, root: Path | None) -> Path:
    """The root given, else ``$DTSF_DATA/DATASET``, else ``./data/DATASET``; absolute. Raises DataError: it does not exist."""
    if root is not None:
        if not root.exists():
            raise DataError(f"the root {root} does not exist")
        if not root.is_dir() and dataset != "manifest":
            raise DataError(f"the root {root} is a file; {dataset} needs the folder that holds its videos")
        return root.absolute()
    base = os.environ.get("DTSF_DATA")
    tried = [*([Path(base) / dataset] if base else []), Path("data") / dataset]
    for candidate in tried:
        if candidate.exists():
            return candidate.absolute()
    unset = "" if base else " ($DTSF_DATA is not set)"
    raise DataError(
        f"no {dataset} data at {' or '.join(str(path) for path in tried)}{unset}: say where it is with --root DIR"
    )
