"""Kinds of datasets that dtsf reads: for each kind a function from a root folder to a SourceCatalog, in :data:`KINDS`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from dtsf.errors import DataError
from dtsf.names import user_path
from dtsf.pipeline.datasets.casia import catalog_casia
from dtsf.pipeline.datasets.catalog import SourceCatalog, select
from dtsf.pipeline.datasets.manifest import catalog_manifest
from dtsf.pipeline.datasets.ntu import catalog_ntu
from dtsf.pipeline.datasets.nucla import catalog_nucla

KINDS: dict[str, Callable[[Path], SourceCatalog]] = {
    "nucla": catalog_nucla,
    "ntu": catalog_ntu,
    "casia": catalog_casia,
    "manifest": catalog_manifest,
}


def scan_source(
    kind: str, root: Path | None = None, views: str = "all", limit: int | None = None, videos: Path | None = None
) -> SourceCatalog:
    """List the clips of a source. ``root``: folder of the dataset or any folder above it; for a manifest, the CSV; None: see
    :func:`find_root`. The other arguments are those of :class:`dtsf.pipeline.settings.PreprocessSettings`.

    Raises ConfigError: an unknown view. DataError: an unknown kind, no such root, no video, or two files for the same clip.
    """
    if kind not in KINDS:
        raise DataError(f"unknown kind of dataset {kind!r}; known kinds: {', '.join(KINDS)}")
    found = find_root(kind, root)
    if kind == "manifest":
        return select(catalog_manifest(found, videos), views, limit)
    if videos is not None:
        raise DataError(f"--videos is only for manifests; give the folder of the {kind} videos with --root")
    return select(KINDS[kind](found), views, limit)


def find_root(kind: str, root: Path | None) -> Path:
    """Return ``root``, else ``$DTSF_DATA/KIND``, else ``./data/KIND``, as an absolute path. Raises DataError: it does not exist."""
    if root is not None:
        root = user_path(root)
        if not root.exists():
            raise DataError(f"the root {root} does not exist")
        if not root.is_dir() and kind != "manifest":
            raise DataError(f"the root {root} is a file: give the folder of the {kind} videos with --root")
        return root.absolute()
    base = os.environ.get("DTSF_DATA")
    tried = [*([Path(base) / kind] if base else []), Path("data") / kind]
    for candidate in tried:
        if candidate.exists():
            return candidate.absolute()
    unset = "" if base else " ($DTSF_DATA is not set)"
    raise DataError(f"no {kind} data at {' or '.join(map(str, tried))}{unset}: give its folder with --root DIR")
