"""Python interface to both stages (docs/python.md). Functions import PyTorch themselves, so a wrong path is refused at once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtsf.errors import CheckpointError
from dtsf.predict.prediction import Prediction, predict_onnx
from dtsf.predict.run import Run

if TYPE_CHECKING:
    from dtsf.cache.reader import CachedDataset
    from dtsf.pipeline.datasets.catalog import SourceCatalog
    from dtsf.pipeline.preprocess import PreprocessResult, Progress
    from dtsf.pipeline.settings import PreprocessSettings
    from dtsf.pipeline.worker import SourceCheck
    from dtsf.predict.onnx import OnnxMetadata
    from dtsf.training.loop import EpochReport
    from dtsf.training.protocols import Split
    from dtsf.training.recipe import Recipe
    from dtsf.training.settings import TrainSettings
    from dtsf.training.train import TrainResult

__all__ = ["Prediction", "Run", "export", "load", "open_cache", "predict_onnx", "preprocess", "train", "verify_source"]

logger = logging.getLogger(__name__)


def preprocess(
    dataset: str,
    root: str | Path | None = None,
    cache: str | Path = Path("cache"),
    *,
    settings: PreprocessSettings | None = None,
    on_catalog: Callable[[SourceCatalog], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    **changes: Any,
) -> PreprocessResult:
    """Stage 1: decode and embed every clip of a dataset into the cache.

    Args:
        dataset: The kind of dataset, one of :data:`dtsf.pipeline.datasets.KINDS`.
        root: Folder of the dataset, or a folder above it. For a manifest: the table.
        cache: Folder of the cache, or its URL on an object store.
        settings: All other settings. ``changes`` replace single fields of :class:`dtsf.pipeline.settings.PreprocessSettings`.
        on_catalog: Called with the list of clips before the work starts.
        on_progress: Called as clips are done.

    Raises ConfigError: a setting is unknown or out of range. Raises DataError: the data is missing. Raises CacheError: the cache
    cannot take these clips. Raises BadClipsError: too many clips are bad (``max_bad``); all usable clips are in the cache.
    """
    from dtsf.cache.store import open_store
    from dtsf.pipeline.settings import PreprocessSettings

    settings = (settings or PreprocessSettings()).changed(**changes)
    from dtsf.pipeline.datasets import scan_source
    from dtsf.pipeline.preprocess import preprocess as run_preprocess

    folder = None if root is None else Path(root)
    open_store(cache)  # a wrong URL is refused before the videos are listed
    catalog = scan_source(dataset, folder, settings.views, settings.limit, settings.videos)
    logger.info("%s: %d clips under %s", catalog.kind, len(catalog.clips), catalog.root)
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
) -> SourceCheck:
    """Decode cached clips again and compare the frames with the cache. Raises CacheError or DataError if either is missing.

    ``root``: as for :func:`preprocess`. ``sample``: share of clips to check, spread evenly over the catalog.
    ``on_progress`` is called with the number of checked clips and the total.
    """
    from dtsf.pipeline.datasets import find_root
    from dtsf.pipeline.worker import check_source

    data = open_cache(cache, dataset)
    found = find_root(data.info.kind, None if root is None else Path(root))
    return check_source(data, found if found.is_dir() else found.parent, sample=sample, on_progress=on_progress)


def open_cache(cache: str | Path = Path("cache"), dataset: str | None = None) -> CachedDataset:
    """Open a dataset of a cache; see :func:`dtsf.cache.reader.open_dataset`."""
    from dtsf.cache.reader import open_dataset

    return open_dataset(Path(cache), dataset)


def train(
    cache: str | Path = Path("cache"),
    *,
    settings: TrainSettings | None = None,
    on_recipe: Callable[[str, str], None] | None = None,
    on_start: Callable[[Path, CachedDataset, Split, Recipe], None] | None = None,
    on_begin: Callable[[str], None] = lambda _: None,
    on_epoch: Callable[[EpochReport], None] | None = None,
    **changes: Any,
) -> TrainResult:
    """Stage 2: train a network from the cache and evaluate it on the test clips of the protocol.

    Args:
        cache: Folder of the cache, or its URL on an object store.
        settings: All other settings. ``changes`` replace single fields of :class:`dtsf.training.settings.TrainSettings`.
        on_recipe: Called with the name of the recipe and the reason for it.
        on_start: Called after all checks, before the first step.
        on_begin: Called with what begins then, before the first epoch: reading the cache, loading the scan.
        on_epoch: Called after each epoch.

    Raises ConfigError: a setting is unknown or does not fit the data. Raises CacheError: the cache is missing. Raises
    CheckpointError: there is nothing to resume, or the run has other settings.
    """
    from dtsf.training.train import train as run_train

    calls: dict[str, Any] = {"on_recipe": on_recipe, "on_start": on_start, "on_begin": on_begin, "on_epoch": on_epoch}
    return run_train(Path(cache), settings, **calls, **changes)


def load(run: str | Path) -> Run:
    """Load a run, finished or interrupted. Raises CheckpointError: it is missing or damaged, or its weights do not fit."""
    run = Path(run)
    if not run.is_dir():
        raise CheckpointError(f"no run folder {run}: train first (dtsf train), or name another")
    from dtsf.training.checkpoint import load_checkpoint, load_network

    checkpoint = load_checkpoint(run / "last")
    return Run(run, checkpoint.state, load_network(checkpoint))


def export(
    run: Path,
    file: Path,
    *,
    views: int | None = None,
    encoder: Path | None = None,
    encoder_weights: Path | None = None,
    on_progress: Callable[[int, int, str], None] = lambda *_: None,
) -> OnnxMetadata:
    """Write the network of a run as an ONNX file; see :func:`dtsf.predict.onnx.export_onnx`, also for ``on_progress``.

    ``encoder``: also write the frame encoder of the run; see :func:`dtsf.predict.onnx.export_encoder`.
    """
    from dtsf.predict.onnx import check_export, export_encoder, export_onnx

    loaded = load(run)
    check_export(loaded.state, file, encoder, views)
    if encoder is not None:
        export_encoder(loaded.state, encoder, encoder_weights)
    return export_onnx(loaded.net, loaded.state, file, views=views, on_progress=on_progress)
