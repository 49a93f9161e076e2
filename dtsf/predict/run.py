"""A loaded run: evaluate it on a cache, or predict videos. :func:`dtsf.api.load` returns it.

Letters: V views, F cached frames, T frames of the network, P cells, H W grid, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dtsf.errors import CacheError, CheckpointError, DataError, DtsfError, FilmError
from dtsf.predict.predict import embed_videos, make_prediction, sample_frames, write_prediction_film

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from dtsf.cache.reader import CachedDataset
    from dtsf.model.network import DTSFNet
    from dtsf.predict.predict import Prediction
    from dtsf.training.checkpoint import RunState
    from dtsf.training.evaluate import Evaluation


@dataclass(frozen=True)
class Run:
    """A trained network and its settings."""

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
        unknown: str | None = None,
        adapt: bool = False,
    ) -> Evaluation:
        """Evaluate the run on its own dataset, or on another one with the same classes.

        Args:
            cache: Folder of the cache.
            dataset: Name in the cache. Default: the dataset of the run.
            protocol: Default: the protocol of the run. ``all`` takes every clip of the dataset.
            split: ``test`` or ``train``.
            views: Views given to the network: ``all``, or numbers or names joined by commas.
            draws: Number of frame samples to average. Default: ``train.draws`` of the recipe.
            unknown: Also measure how well uncertainty detects unknown actions. ``excluded`` takes the classes that
                ``train.exclude_classes`` excluded from training; any other value is the name of a dataset in the cache.
            adapt: Adapt the network to the test clips during the evaluation (ViTTA). The run itself does not change.

        Raises:
            CheckpointError: The dataset has other classes.
            CacheError: The dataset has other settings.
        """
        import torch

        from dtsf.cache.reader import open_dataset
        from dtsf.training.evaluate import evaluate
        from dtsf.training.protocols import parse_protocol
        from dtsf.training.splits import EXCLUDED

        torch.set_num_threads(self.state.recipe.train.usable_threads)
        data = open_dataset(Path(cache), dataset or self.state.info.name)
        self._check_classes(data)
        self._check_settings(data)
        unknown_data = None
        if unknown is not None:
            unknown_data = data if unknown in (EXCLUDED, data.info.name) else open_dataset(Path(cache), unknown)
            self._check_settings(unknown_data)
        evaluation = evaluate(
            self.net,
            data,
            parse_protocol(protocol or self.state.protocol, data.info.kind),
            seed=self.state.seed,
            split=split,
            views=views,
            draws=self.state.recipe.train.draws if draws is None else draws,
            trained_on=self.state.info.name,
            classes=self.state.info.class_names,
            unknown=unknown_data,
            adapt=adapt,
        )
        if data.info.name == self.state.info.name and self.state.catalog not in ("", data.catalog_hash):
            # A test clip may have been a training clip, or had another label.
            changed = "; its clips or labels have changed since this run was trained"
            evaluation = evaluation.model_copy(update={"task": evaluation.task + changed})
        return evaluation

    def predict(
        self,
        videos: Sequence[str | Path],
        *,
        film: str | Path | None = None,
        views: str | None = None,
        encoder_weights: str | Path | None = None,
    ) -> Prediction:
        """Classify one performance.

        Args:
            videos: One file (or frame folder) per view.
            views: View of each video: numbers or names joined by commas. Default: the first views, in order. Give it if you
                pass fewer videos than the training had views; otherwise a branch over all views is not used.
            encoder_weights: File of the encoder's weights. Required if the run was trained with custom weights.
            film: Also write a film to this path: the views side by side with the prediction.

        Raises:
            VideoError: A video cannot be used.
            ConfigError: The encoder differs from the encoder of the run, the path of the film is wrong, or a view is unknown.
            FilmError: The film cannot be written. The error has the ``prediction``.
            DataError: The number of videos differs from the number of ``views``, or is too large for the network.
        """
        from dtsf.report.film import check_film

        if film is not None:
            check_film(Path(film))
        # Refuse wrong views before any video is decoded.
        self._view_numbers(len(videos), views)
        threads = self.state.recipe.train.usable_threads
        embeddings_VFPC, longest = embed_videos(videos, self.state.spec, threads, encoder_weights)
        prediction = self.classify(embeddings_VFPC, views)
        if film is not None:
            try:
                write_prediction_film(Path(film), [Path(video).absolute() for video in videos], longest, prediction)
            except DtsfError as error:
                raise FilmError(str(error), prediction) from error
        return prediction

    def classify(self, embeddings_VFPC: np.ndarray, views: str | None = None) -> Prediction:
        """Classify the embeddings of one performance: F frames of P cells with C channels for each view.

        ``views``: as in :meth:`predict`. Raises DataError as there, and CheckpointError if an output is not finite.
        """
        import torch

        state, model = self.state, self.state.recipe.model
        numbers = self._view_numbers(len(embeddings_VFPC), views)
        given_VTHWC = sample_frames(embeddings_VFPC, state.spec.grid, model.frames, model.motion_sampling)
        # Each video is at the place of its view. The network masks the other views.
        n_views = len(numbers) if views is None else len(state.info.view_names)
        mask_V = torch.zeros(n_views, dtype=torch.bool)
        mask_V[numbers] = True
        x_VTHWC = given_VTHWC.new_zeros(n_views, *given_VTHWC.shape[1:])
        x_VTHWC[numbers] = given_VTHWC
        with torch.inference_mode():
            output = self.net(x_VTHWC.unsqueeze(0), mask_V.unsqueeze(0))
        weight_V = output.view_weights_BV[0, numbers]
        return make_prediction(state.info.class_names, output.probabilities_BK[0], output.uncertainty_B[0], weight_V)

    def _view_numbers(self, n_videos: int, views: str | None) -> list[int]:
        """Return the view of each video, from 0."""
        from dtsf.cache.catalog import view_number

        known = self.state.info.view_names
        if views is not None:
            numbers = [view_number(word.strip(), known, "--views") - 1 for word in views.split(",")]
            if len(numbers) != n_videos or len(set(numbers)) != n_videos:
                raise DataError(f"--views {views} must name {n_videos} different views, one for each video")
            return numbers
        if self.state.recipe.model.fusion == "concat" and n_videos > len(known):
            raise DataError(f"{n_videos} videos given, but {self.folder} was trained on {len(known)} views: give fewer")
        return list(range(n_videos))

    def _check_classes(self, data: CachedDataset) -> None:
        own, found = self.state.info.class_names, data.info.class_names
        if own != found and not (self.state.recipe.train.exclude_classes and set(own) <= set(found)):
            raise CheckpointError(
                f"{self.folder} was trained on {len(own)} classes ({', '.join(own[:3])} ...), {data.info.name} has "
                f"{len(found)} ({', '.join(found[:3])} ...): evaluate on a dataset with the same classes"
            )

    def _check_settings(self, data: CachedDataset) -> None:
        if self.state.fingerprint != data.spec.fingerprint():
            from dtsf.cache.schema import describe_difference

            raise CacheError(
                f"{data.store} was made with other settings than the cache that {self.folder} was trained from "
                f"({describe_difference(data.spec, self.state.spec)}): preprocess it with the same settings"
            )
