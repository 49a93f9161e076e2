"""dtsf from Python: both stages. The command line is a thin face of this module.

.. code-block:: python

    preprocess("nucla", root=..., cache=...)                         # stage 1
    train(cache=..., protocol="cross-subject:5,6", run=...)          # stage 2
    load(run).predict([cam1, cam2, cam3])

PyTorch, zarr and dask are imported by the function that needs them: a wrong path is refused at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from dtsf.errors import CacheError, CheckpointError, ConfigError, DataError, VideoError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from dtsf.cache.reader import CachedDataset
    from dtsf.model.network.dtsfnet import DTSFNet
    from dtsf.model.training.checkpoint import RunState
    from dtsf.model.training.evaluation import Evaluation
    from dtsf.model.training.loop import EpochReport
    from dtsf.model.training.protocols import Split
    from dtsf.model.training.recipe import Recipe
    from dtsf.model.training.train import TrainResult
    from dtsf.pipeline.run import PreprocessResult, Progress

__all__ = ["Prediction", "Run", "load", "open_cache", "preprocess", "train"]


class Prediction(BaseModel):
    """What a run says of one performance."""

    model_config = ConfigDict(frozen=True)

    label: str
    probability: float
    uncertainty: float
    """Vacuity K / S in (0, 1]: 1 is no evidence at all."""
    view_weights: tuple[float, ...]
    """Share of each given video in the decision, in the order given."""
    probabilities: dict[str, float]


def preprocess(
    dataset: str,
    root: Path | None = None,
    cache: Path | str = Path("cache"),
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
    workers: int | None = None,
    scheduler: str | None = None,
    shard_size: int = 64,
    max_bad: float = 0.05,
    overwrite: bool = False,
    deadline: float = 60.0,
    check: str = "fast",
    on_catalog: Callable[[Any], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> PreprocessResult:
    """Stage 1: decode and embed every clip of a data set into the cache, once.

    Args are those of :func:`dtsf.pipeline.datasets.read_catalog`, :func:`dtsf.pipeline.run.make_spec` and
    :func:`dtsf.pipeline.run.preprocess`; ``on_catalog`` is called with the catalog before the work begins.
    """
    from dtsf.pipeline.datasets import read_catalog
    from dtsf.pipeline.run import make_spec
    from dtsf.pipeline.run import preprocess as run_preprocess

    catalog = read_catalog(dataset, root, views, limit)
    if on_catalog is not None:
        on_catalog(catalog)
    return run_preprocess(
        catalog,
        cache,
        make_spec(encoder=encoder, frames=frames, size=size, grid=grid),
        name=name,
        format=format,
        compress=compress,
        workers=workers,
        scheduler=scheduler,
        shard_size=shard_size,
        max_bad=max_bad,
        overwrite=overwrite,
        deadline=deadline,
        check=check,
        on_progress=on_progress,
    )


def open_cache(cache: Path | str = Path("cache"), dataset: str | None = None) -> CachedDataset:
    """Open one data set of a cache; see :func:`dtsf.cache.reader.open_dataset`."""
    from dtsf.cache.reader import open_dataset

    return open_dataset(cache, dataset)


def train(
    cache: Path = Path("cache"),
    *,
    dataset: str | None = None,
    protocol: str | None = None,
    recipe: str = "default",
    overrides: Sequence[str] = (),
    run: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    resume: bool = False,
    init: Path | None = None,
    on_start: Callable[[Path, CachedDataset, Split, Recipe], None] | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
) -> TrainResult:
    """Stage 2: train a network from the cache and judge it; see :func:`dtsf.model.training.train.train`."""
    from dtsf.model.training.train import train as run_train

    return run_train(
        cache,
        dataset=dataset,
        protocol=protocol,
        recipe=recipe,
        overrides=overrides,
        run=run,
        seed=seed,
        device=device,
        resume=resume,
        init=init,
        on_start=on_start,
        on_epoch=on_epoch,
    )


def load(run: Path) -> Run:
    """Open a finished or interrupted run for evaluation and prediction.

    Raises:
        CheckpointError: No checkpoint, a damaged one, or one whose weights are for other classes.

    """
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
        cache: Path = Path("cache"),
        *,
        dataset: str | None = None,
        protocol: str | None = None,
        split: str = "test",
        views: str = "all",
    ) -> Evaluation:
        """Judge the run, also on another data set of the same classes.

        Args:
            cache: Folder of the cache.
            dataset: Name in the cache; the run's own if left out.
            protocol: The run's own if left out; ``all`` takes every clip of the data set.
            split: ``test`` or ``train``.
            views: Views the network is given: ``all``, or numbers or names joined by commas.

        Raises:
            CheckpointError: The data set has other classes.
            CacheError: It was made with other settings.

        """
        import torch

        from dtsf.cache.reader import open_dataset
        from dtsf.model.training.evaluation import evaluate
        from dtsf.model.training.protocols import parse_protocol

        torch.set_num_threads(self.state.recipe.train.threads)
        data = open_dataset(cache, dataset or self.state.info.name)
        self._check(data)
        rule = parse_protocol(protocol or self.state.protocol, data.info.dataset)
        return evaluate(self.net, data, rule, seed=self.state.seed, split=split, views=views)

    def predict(self, videos: Sequence[Path]) -> Prediction:
        """Classify one performance.

        Args:
            videos: One file (or frame folder) a view, any number from 1.

        Raises:
            VideoError: A video cannot be used.
            ConfigError: This machine's encoder is not the one the run was trained with.

        """
        if not videos:
            raise DataError("no video given: name one file a view")
        for video in videos:
            if not video.exists():
                raise VideoError(f"{video} does not exist", "unreadable")
        import numpy as np
        import torch

        from dtsf.pipeline.encoders import load_encoder
        from dtsf.pipeline.video import decode_clip

        torch.set_num_threads(self.state.recipe.train.threads)
        spec = self.state.spec
        encoder = load_encoder(spec.encoder, spec.size, spec.grid)
        if encoder.identity.weights_hash != spec.weights_hash:
            raise ConfigError(
                f"the encoder {spec.encoder} has weights {encoder.identity.weights_hash} here, {spec.weights_hash} when the run "
                "was trained: install the same version"
            )
        embedded = [encoder.embed(decode_clip(video, spec.frames, spec.size).frames) for video in videos]
        return self._classify(np.stack(embedded))

    def _classify(self, embeddings_VFPC: np.ndarray) -> Prediction:
        import torch

        from dtsf.model.training.pace import evenly_spaced, read_frames

        grid = self.state.spec.grid
        V, F, _, C = embeddings_VFPC.shape
        x_VFHWC = torch.from_numpy(embeddings_VFPC).view(V, F, grid, grid, C)
        model = self.state.recipe.model
        x_VTHWC = read_frames(x_VFHWC, torch.arange(V), evenly_spaced(model.frames).expand(V, -1), model.pace)
        with torch.inference_mode():
            output = self.net(x_VTHWC.unsqueeze(0), torch.ones(1, V, dtype=torch.bool))
        probability_K = output.probabilities_BK[0]
        names = self.state.info.class_names
        best = int(probability_K.argmax())
        return Prediction(
            label=names[best],
            probability=float(probability_K[best]),
            uncertainty=float(output.uncertainty_B[0]),
            view_weights=tuple(output.view_weights_BV[0].tolist()),
            probabilities=dict(zip(names, probability_K.tolist(), strict=True)),
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
