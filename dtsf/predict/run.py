"""A trained run, opened: judge it on a cache, ask it about videos. What :func:`dtsf.api.load` returns.

Letters: V views, F cached frames, T frames of the network, P cells, H W grid, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dtsf.errors import CacheError, CheckpointError, DataError, DtsfError, FilmError
from dtsf.predict.predict import embed_videos, make_prediction, read_canvases, write_prediction_film

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
        unknown: str | None = None,
        adapt: bool = False,
    ) -> Evaluation:
        """Judge the run, also on another data set of the same classes.

        Args:
            cache: Folder of the cache.
            dataset: Name in the cache; the run's own if left out.
            protocol: The run's own if left out; ``all`` takes every clip of the data set.
            split: ``test`` or ``train``.
            views: Views the network is given: ``all``, or numbers or names joined by commas.
            draws: Average over this many sets of frames; the recipe's ``train.draws`` if left out.
            unknown: Also measure how well uncertainty detects unknown actions: ``excluded``, the classes that the recipe's
                ``train.exclude_classes`` took out of training, or the name of another data set in the cache.
            adapt: Align the network to the test stream while it is judged; the run is left as it is.

        Raises:
            CheckpointError: The data set has other classes.
            CacheError: It was made with other settings.
        """
        import torch

        from dtsf.cache.reader import open_dataset
        from dtsf.training.evaluate import evaluate
        from dtsf.training.open_set import EXCLUDED
        from dtsf.training.protocols import parse_protocol

        torch.set_num_threads(self.state.recipe.train.usable_threads)
        data = open_dataset(Path(cache), dataset or self.state.info.name)
        self._check(data)
        strangers = None
        if unknown is not None:
            strangers = data if unknown in (EXCLUDED, data.info.name) else open_dataset(Path(cache), unknown)
            self._check_settings(strangers)
        rule = parse_protocol(protocol or self.state.protocol, data.info.dataset)
        draws = self.state.recipe.train.draws if draws is None else draws
        judged = evaluate(
            self.net,
            data,
            rule,
            seed=self.state.seed,
            split=split,
            views=views,
            draws=draws,
            trained_on=self.state.info.name,
            classes=self.state.info.class_names,
            unknown=strangers,
            adapt=adapt,
        )
        if data.info.name == self.state.info.name and self.state.catalog not in ("", data.catalog_hash):
            # Who was tested may have been trained on, or under another label: the words must not promise otherwise.
            changed = "; its clips or labels have changed since this run was trained"
            judged = judged.model_copy(update={"task": judged.task + changed})
        return judged

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
            videos: One file (or frame folder) a view, any number from 1.
            views: Which cameras they are of, numbers or names joined by commas; the first ones, in order, if left out.
                Name them where there are fewer than in training: the recipe's opinion of all cameras as one (``model.views``
                ``both``) is asked only where it is known which they are.
            encoder_weights: File of the encoder's weights, where the run was trained with some of one's own; their hash must
                be the run's.
            film: Also write a film here: the views side by side with the class, uncertainty and weights drawn on.

        Raises:
            VideoError: a video cannot be used.
            ConfigError: This machine's encoder is not the one the run was trained with, no film can be written there, or
                ``views`` names no camera of the run.
            FilmError: The film cannot be written; the error has the ``prediction``.
            DataError: Another number of videos than ``views``, or more than the run has cameras with weights of their own.
        """
        cameras = self._cameras(len(videos), views)
        embeddings_VFPC, longest = embed_videos(
            videos, self.state.spec, self.state.recipe.train.usable_threads, film, encoder_weights
        )
        # Cameras that are named stand among all of the run's; others are only as many as there are.
        places = len(videos) if views is None else len(self.state.info.view_names)
        prediction = self._classify(embeddings_VFPC, cameras, places)
        if film is not None:
            try:
                write_prediction_film(Path(film), [Path(video).absolute() for video in videos], longest, prediction)
            except DtsfError as error:
                raise FilmError(str(error), prediction) from error
        return prediction

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

    def _classify(self, embeddings_VFPC: np.ndarray, cameras: list[int], places: int) -> Prediction:
        import torch

        model = self.state.recipe.model
        x_VTHWC = read_canvases(embeddings_VFPC, self.state.spec.grid, model.frames, model.pace)
        # Each video in its camera's place; the places between stay empty and masked.
        mask_V = torch.zeros(places, dtype=torch.bool)
        mask_V[cameras] = True
        placed_VTHWC = x_VTHWC.new_zeros(len(mask_V), *x_VTHWC.shape[1:])
        placed_VTHWC[cameras] = x_VTHWC
        with torch.inference_mode():
            output = self.net(placed_VTHWC.unsqueeze(0), mask_V.unsqueeze(0))
        return make_prediction(
            self.state.info.class_names,
            output.probabilities_BK[0],
            output.uncertainty_B[0],
            output.view_weights_BV[0, cameras],
        )

    def _check(self, data: CachedDataset) -> None:
        ours, theirs = self.state.info.class_names, data.info.class_names
        if ours != theirs and not (self.state.recipe.train.exclude_classes and set(ours) <= set(theirs)):
            what = (
                f"{len(ours)} classes, {data.info.name} has {len(theirs)}"
                if len(ours) != len(theirs)
                else f"classes {', '.join(ours[:3])} ..., {data.info.name} has {', '.join(theirs[:3])} ..."
            )
            raise CheckpointError(f"{self.folder} was trained on {what}: evaluate on a data set of the same classes")
        self._check_settings(data)

    def _check_settings(self, data: CachedDataset) -> None:
        if self.state.fingerprint != data.spec.fingerprint():
            from dtsf.cache.spec import describe_difference

            raise CacheError(
                f"{data.folder} was made with other settings than the cache that {self.folder} was trained from "
                f"({describe_difference(data.spec, self.state.spec)}): preprocess it with the same"
            )
