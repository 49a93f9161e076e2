"""Both stages from Python. The command line calls this module; docs/python.md walks through it.

```python
import dtsf

dtsf.preprocess("nucla", root=..., cache=...)                    # stage 1
dtsf.train(cache=..., protocol="cross-subject:5,6", run=...)     # stage 2
dtsf.load(run).predict([cam1, cam2, cam3])
```

PyTorch, zarr and dask are imported by the function that needs them: a wrong path is refused at once.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtsf.errors import CheckpointError
from dtsf.predict.predict import Prediction, predict_onnx
from dtsf.predict.run import Run

if TYPE_CHECKING:
    from collections.abc import Callable

    from dtsf.cache.reader import CachedDataset
    from dtsf.pipeline.catalog import Catalog
    from dtsf.pipeline.preprocess import PreprocessResult, Progress
    from dtsf.pipeline.settings import PreprocessSettings
    from dtsf.pipeline.verify_source import Recheck
    from dtsf.predict.onnx import OnnxMetadata
    from dtsf.training.loop import EpochReport
    from dtsf.training.protocols import Split
    from dtsf.training.recipe import Recipe
    from dtsf.training.settings import TrainSettings
    from dtsf.training.train import TrainResult

__all__ = [
    "Prediction",
    "Run",
    "export",
    "load",
    "open_cache",
    "predict_onnx",
    "preprocess",
    "train",
    "verify_source",
]

logger = logging.getLogger(__name__)


def preprocess(
    dataset: str,
    root: str | Path | None = None,
    cache: str | Path = Path("cache"),
    *,
    settings: PreprocessSettings | None = None,
    on_catalog: Callable[[Catalog], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    **changes: Any,
) -> PreprocessResult:
    """Stage 1: decode and embed every clip of a data set into the cache, once.

    Args:
        dataset: One of :data:`dtsf.pipeline.datasets.DATASETS`.
        root: The data set's folder or any folder above it; for a manifest, the table.
        cache: Folder of the cache, or its URL on an object store.
        settings: Everything else; the defaults if left out.
        on_catalog: Called with the clips that were found, before the work begins.
        on_progress: Called as clips are done.
        changes: Fields of :class:`dtsf.pipeline.settings.PreprocessSettings` that differ from ``settings``.

    Raises:
        ConfigError: An unknown setting, or a value out of range.
        DataError: No such data.
        CacheError: The cache cannot take these clips.
        BadClipsError: More clips than ``max_bad`` are unusable; everything else is in the cache.
    """
    from dtsf.pipeline.settings import PreprocessSettings

    settings = (settings or PreprocessSettings()).changed(**changes)
    from dtsf.pipeline.datasets import read_catalog
    from dtsf.pipeline.preprocess import preprocess as run_preprocess

    catalog = read_catalog(
        dataset, None if root is None else Path(root), settings.views, settings.limit, settings.videos
    )
    logger.info("%s: %d clips under %s", catalog.dataset, len(catalog.clips), catalog.root)
    if on_catalog is not None:
        on_catalog(catalog)
    return run_preprocess(catalog, Path(cache), settings, on_progress=on_progress)


def verify_source(
    cache: str | Path = Path("cache"),
    root: str | Path | None = None,
    dataset: str | None = None,
    *,
    sample: float = 1.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Recheck:
    """Decode clips of a cache again, and say which no longer give the pictures that were embedded.

    Args:
        cache: Folder of the cache, or its URL on an object store.
        root: As it was for :func:`preprocess`.
        dataset: Its name in the cache, where there are several.
        sample: Share of the clips, evenly over the catalog.
        on_progress: Called with how many are done, and of how many.

    Raises:
        CacheError: No such cache.
        DataError: No such data.
    """
    from dtsf.cache.reader import open_dataset
    from dtsf.pipeline.datasets import find_root
    from dtsf.pipeline.verify_source import verify_source as decode_again

    data = open_dataset(cache if isinstance(cache, str) else Path(cache), dataset)
    place = find_root(data.info.dataset, None if root is None else Path(root))
    return decode_again(data, place if place.is_dir() else place.parent, sample=sample, on_progress=on_progress)


def open_cache(cache: str | Path = Path("cache"), dataset: str | None = None) -> CachedDataset:
    """Open one data set of a cache; see :func:`dtsf.cache.reader.open_dataset`."""
    from dtsf.cache.reader import open_dataset

    return open_dataset(Path(cache), dataset)


def train(
    cache: str | Path = Path("cache"),
    *,
    settings: TrainSettings | None = None,
    on_recipe: Callable[[str, str], None] | None = None,
    on_start: Callable[[Path, CachedDataset, Split, Recipe], None] | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
    **changes: Any,
) -> TrainResult:
    """Stage 2: train a network from the cache and judge it on the protocol's test clips.

    Args:
        cache: Folder of the cache, or its URL on an object store.
        settings: Everything else; the defaults if left out.
        on_recipe: Called with the name of the recipe and why it was taken.
        on_start: Called once everything is checked and before the first step.
        on_epoch: Called after each epoch.
        changes: Fields of :class:`dtsf.training.settings.TrainSettings` that differ from ``settings``.

    Raises:
        ConfigError: An unknown setting, or one that does not fit the data.
        CacheError: No such cache.
        CheckpointError: Nothing to resume, or a run of other settings.
    """
    from dtsf.training.train import train as run_train

    return run_train(Path(cache), settings, on_recipe=on_recipe, on_start=on_start, on_epoch=on_epoch, **changes)


def load(run: str | Path) -> Run:
    """Open a finished or interrupted run for evaluation and prediction.

    Raises:
        CheckpointError: No checkpoint, a damaged one, or one whose weights are for other classes.
    """
    run = Path(run)
    if not run.is_dir():
        raise CheckpointError(f"no run folder {run}: train first (dtsf train), or name another")
    from dtsf.training.checkpoint import load_checkpoint, load_network

    checkpoint = load_checkpoint(run / "last")
    return Run(run, checkpoint.state, load_network(checkpoint))


def export(run: Path, file: Path, *, views: int | None = None) -> OnnxMetadata:
    """Write a run's network as an ONNX file; see :func:`dtsf.predict.onnx.export_onnx`."""
    from dtsf.predict.onnx import export_onnx

    opened = load(run)
    return export_onnx(opened.net, opened.state, file, views=views)
