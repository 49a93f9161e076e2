"""dtsf from Python: both stages. The command line is a thin face of this module; docs/python.md walks through it.

.. code-block:: python

    import dtsf

    dtsf.preprocess("nucla", root=..., cache=...)                    # stage 1
    dtsf.train(cache=..., protocol="cross-subject:5,6", run=...)     # stage 2
    dtsf.load(run).predict([cam1, cam2, cam3])

PyTorch, zarr and dask are imported by the function that needs them: a wrong path is refused at once.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtsf.errors import CacheError, CheckpointError, DataError
from dtsf.prediction import Prediction, embed_videos, predict_onnx, prediction_of, read_canvases, write_said

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from dtsf.cache.reader import CachedDataset
    from dtsf.model.export import OnnxMetadata
    from dtsf.model.network.dtsfnet import DTSFNet
    from dtsf.model.training.ablation_results import Ablation
    from dtsf.model.training.checkpoint import RunState
    from dtsf.model.training.evaluation import Evaluation
    from dtsf.model.training.loop import EpochReport
    from dtsf.model.training.protocols import Split
    from dtsf.model.training.recipe import Recipe
    from dtsf.model.training.train import TrainResult
    from dtsf.pipeline.crew import Crew
    from dtsf.pipeline.run import PreprocessResult, Progress

__all__ = ["Prediction", "Run", "ablate", "export", "load", "open_cache", "predict_onnx", "preprocess", "train"]

logger = logging.getLogger(__name__)


def preprocess(
    dataset: str,
    root: str | Path | None = None,
    cache: str | Path = Path("cache"),
    *,
    views: str = "all",
    limit: int | None = None,
    name: str | None = None,
    format: str | None = None,  # noqa: A002
    compress: str | None = None,
    encoder: str = "efficientnet-lite0",
    frames: int = 16,
    size: int = 192,
    grid: int = 6,
    crop: str | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    shard_size: int = 64,
    max_bad: float = 0.05,
    overwrite: bool = False,
    retry_bad: bool = False,
    deadline: float = 60.0,
    check: str = "fast",
    on_catalog: Callable[[Any], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    crew: Crew | None = None,
) -> PreprocessResult:
    """Stage 1: decode and embed every clip of a data set into the cache, once.

    Args are those of :func:`dtsf.pipeline.datasets.read_catalog`, :func:`dtsf.pipeline.run.make_spec` and
    :func:`dtsf.pipeline.run.preprocess`; ``on_catalog`` is called with the catalog before the work begins. Without a
    ``crew`` one is started first of all, if the work may be for more than one process.
    """
    from dtsf.pipeline.crew import crew_for

    # First: its imports and ours, which take as long, go on at the same time.
    with crew or crew_for(workers, scheduler) as ready:
        from dtsf.pipeline.datasets import read_catalog
        from dtsf.pipeline.run import make_spec
        from dtsf.pipeline.run import preprocess as run_preprocess

        catalog = read_catalog(dataset, None if root is None else Path(root), views, limit)
        logger.info("%s: %d clips under %s", catalog.dataset, len(catalog.clips), catalog.root)
        if on_catalog is not None:
            on_catalog(catalog)
        return run_preprocess(
            catalog,
            Path(cache),
            make_spec(encoder=encoder, frames=frames, size=size, grid=grid, crop=crop),
            name=name,
            format=format,
            compress=compress,
            workers=workers,
            scheduler=scheduler,
            shard_size=shard_size,
            max_bad=max_bad,
            overwrite=overwrite,
            retry_bad=retry_bad,
            deadline=deadline,
            check=check,
            on_progress=on_progress,
            crew=ready,
        )


def open_cache(cache: str | Path = Path("cache"), dataset: str | None = None) -> CachedDataset:
    """Open one data set of a cache; see :func:`dtsf.cache.reader.open_dataset`."""
    from dtsf.cache.reader import open_dataset

    return open_dataset(Path(cache), dataset)


def train(
    cache: str | Path = Path("cache"),
    *,
    dataset: str | None = None,
    protocol: str | None = None,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    run: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    resume: bool = False,
    init: Path | None = None,
    on_recipe: Callable[[str, str], None] | None = None,
    on_start: Callable[[Path, CachedDataset, Split, Recipe], None] | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
) -> TrainResult:
    """Stage 2: train a network from the cache and judge it; see :func:`dtsf.model.training.train.train`."""
    from dtsf.model.training.train import train as run_train

    return run_train(
        Path(cache),
        dataset=dataset,
        protocol=protocol,
        recipe=recipe,
        overrides=overrides,
        run=None if run is None else Path(run),
        seed=seed,
        device=device,
        resume=resume,
        init=init,
        on_recipe=on_recipe,
        on_start=on_start,
        on_epoch=on_epoch,
    )


def ablate(
    cache: str | Path = Path("cache"),
    *,
    table: str,
    out: str | Path | None = None,
    on_result: Callable[[Ablation], None] | None = None,
    **options: Any,
) -> Ablation:
    """Train and judge a table of variants times seeds, and write it as CSV, Markdown and SVG after every training.

    Args:
        cache: Folder of the cache.
        table: ``fusion``, ``motion``, ``debias``, ``paper``, or a TOML file of the same form.
        out: Folder of tables and trainings; ``runs/ablate`` if left out. What is finished there is not done again.
        on_result: Called with the table as far as it is: before the first training, and after each.
        options: The others of :func:`dtsf.model.training.ablation.ablate`.

    """
    from dtsf.model.report.ablation_files import write_ablation
    from dtsf.model.training.ablation import ablate as run_ablation

    folder = Path("runs/ablate") if out is None else Path(out)

    def write(result: Ablation) -> None:
        write_ablation(result, folder)
        if on_result is not None:
            on_result(result)

    return run_ablation(Path(cache), table=table, out=folder, on_result=write, **options)


def load(run: str | Path) -> Run:
    """Open a finished or interrupted run for evaluation and prediction.

    Raises:
        CheckpointError: No checkpoint, a damaged one, or one whose weights are for other classes.

    """
    run = Path(run)
    if not run.is_dir():
        raise CheckpointError(f"no run folder {run}: train first (dtsf train), or name another")
    from dtsf.model.training.checkpoint import load_checkpoint, load_network

    checkpoint = load_checkpoint(run / "last")
    return Run(run, checkpoint.state, load_network(checkpoint))


@dataclass(frozen=True)
class Run:
    """A trained network and how it was made."""

    folder: Path
    state: RunState
    net: DTSFNet

    def evaluate(
        self,
        cache: str | Path = Path("cache"),
        *,
        dataset: str | None = None,
        protocol: str | None = None,
        split: str = "test",
        views: str = "all",
        draws: int | None = None,
    ) -> Evaluation:
        """Judge the run, also on another data set of the same classes.

        Args:
            cache: Folder of the cache.
            dataset: Name in the cache; the run's own if left out.
            protocol: The run's own if left out; ``all`` takes every clip of the data set.
            split: ``test`` or ``train``.
            views: Views the network is given: ``all``, or numbers or names joined by commas.
            draws: Average over this many sets of frames; the recipe's ``train.draws`` if left out.

        Raises:
            CheckpointError: The data set has other classes.
            CacheError: It was made with other settings.

        """
        import torch

        from dtsf.cache.reader import open_dataset
        from dtsf.model.training.evaluation import evaluate
        from dtsf.model.training.protocols import parse_protocol

        torch.set_num_threads(self.state.recipe.train.threads)
        data = open_dataset(Path(cache), dataset or self.state.info.name)
        self._check(data)
        rule = parse_protocol(protocol or self.state.protocol, data.info.dataset)
        draws = self.state.recipe.train.draws if draws is None else draws
        return evaluate(
            self.net,
            data,
            rule,
            seed=self.state.seed,
            split=split,
            views=views,
            draws=draws,
            trained_on=self.state.info.name,
        )

    def predict(
        self, videos: Sequence[str | Path], *, film: str | Path | None = None, views: str | None = None
    ) -> Prediction:
        """Classify one performance.

        Args:
            videos: One file (or frame folder) a view, any number from 1.
            views: Which cameras they are of, numbers or names joined by commas; the first ones, in order, if left out.
                It matters where the recipe has weights for each camera (``model.views`` ``merged``).
            film: Also write a film here: the views side by side with the class, uncertainty and weights drawn on.

        Raises:
            VideoError: A video cannot be used.
            ConfigError: This machine's encoder is not the one the run was trained with, no film can be written there, or
                ``views`` names no camera of the run.
            DataError: Another number of videos than ``views``, or more than the run has cameras with weights of their own.

        """
        cameras = self._cameras(len(videos), views)
        embeddings_VFPC, longest = embed_videos(videos, self.state.spec, self.state.recipe.train.threads, film)
        said = self._classify(embeddings_VFPC, cameras)
        if film is not None:
            write_said(Path(film), [Path(video) for video in videos], longest, said)
        return said

    def _cameras(self, n_given: int, views: str | None) -> list[int]:
        """Numbers from 0 of the cameras that the videos are of."""
        from dtsf.cache.records import view_number

        known = self.state.info.view_names
        if views is not None:
            numbers = [view_number(word.strip(), known, "--views") - 1 for word in views.split(",")]
            if len(numbers) != n_given or len(set(numbers)) != n_given:
                raise DataError(f"--views {views} must name a camera of its own for each of the {n_given} videos")
            return numbers
        model = self.state.recipe.model
        if (model.views == "merged" or model.fusion == "concat") and n_given > len(known):
            raise DataError(f"{n_given} videos given, {self.folder} knows {len(known)} cameras: give at most that many")
        return list(range(n_given))

    def _classify(self, embeddings_VFPC: np.ndarray, cameras: list[int]) -> Prediction:
        import torch

        model = self.state.recipe.model
        x_VTHWC = read_canvases(embeddings_VFPC, self.state.spec.grid, model.frames, model.pace)
        # Each video in its camera's place; the places between stay empty and masked.
        mask_V = torch.zeros(max(cameras) + 1, dtype=torch.bool)
        mask_V[cameras] = True
        placed_VTHWC = x_VTHWC.new_zeros(len(mask_V), *x_VTHWC.shape[1:])
        placed_VTHWC[cameras] = x_VTHWC
        with torch.inference_mode():
            output = self.net(placed_VTHWC.unsqueeze(0), mask_V.unsqueeze(0))
        return prediction_of(
            self.state.info.class_names,
            output.probabilities_BK[0],
            output.uncertainty_B[0],
            output.view_weights_BV[0, cameras],
        )

    def _check(self, data: CachedDataset) -> None:
        ours, theirs = self.state.info.class_names, data.info.class_names
        if ours != theirs:
            what = (
                f"{len(ours)} classes, {data.info.name} has {len(theirs)}"
                if len(ours) != len(theirs)
                else f"classes {', '.join(ours[:3])} ..., {data.info.name} has {', '.join(theirs[:3])} ..."
            )
            raise CheckpointError(f"{self.folder} was trained on {what}: evaluate on a data set of the same classes")
        if self.state.fingerprint != data.spec.fingerprint():
            from dtsf.cache.spec import describe_difference

            raise CacheError(
                f"{data.folder} was made with other settings than the cache that {self.folder} was trained from "
                f"({describe_difference(data.spec, self.state.spec)}): preprocess it with the same"
            )


def export(run: Path, file: Path, *, views: int | None = None) -> OnnxMetadata:
    """Write a run's network as an ONNX file; see :func:`dtsf.model.export.export_onnx`."""
    from dtsf.model.export import export_onnx

    opened = load(run)
    return export_onnx(opened.net, opened.state, file, views=views)
