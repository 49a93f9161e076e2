"""A trained network: predictions for the videos of one performance, timelines of recordings, and evaluations.

Letters: N groups, V views, M N x V, F cached frames, T frames of the network, P cells, H W grid, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np

from dtsf.errors import CacheError, CheckpointError, ConfigError, DataError, DtsfError, FilmError
from dtsf.names import counted
from dtsf.predict.prediction import Prediction, average, make_prediction
from dtsf.predict.promised import Question, make_question
from dtsf.predict.videos import VideoOptions, check_videos, embed_videos
from dtsf.predict.views import Views, choose_views

if TYPE_CHECKING:
    from dtsf.cache.reader import CachedDataset
    from dtsf.cache.schema import Clip
    from dtsf.model.network import DTSFNet
    from dtsf.pipeline.rows import Row
    from dtsf.predict.prediction import Outputs
    from dtsf.recordings.bouts import Timeline
    from dtsf.recordings.table import Recording
    from dtsf.recordings.windows import Window
    from dtsf.training.checkpoint import RunState
    from dtsf.training.evaluate import Evaluation
    from dtsf.training.held_out import HeldOut


@dataclass(frozen=True)
class Run:
    """Trained network with its settings. :func:`dtsf.api.load` returns it."""

    folder: Path
    state: RunState
    net: DTSFNet

    @cached_property
    def held_out(self) -> HeldOut | None:
        """Answers for the held-out groups of the training; None for a run that has none."""
        from dtsf.training.held_out import read_held_out

        return read_held_out(self.folder, self.state)

    @cached_property
    def question(self) -> Callable[[float | None, float | str | None], Question]:
        """Function that checks the options ``set`` and ``as_needed``; see :func:`dtsf.predict.promised.make_question`."""
        return lru_cache(16)(partial(make_question, self.held_out, self.folder))

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
        probes: bool = False,
    ) -> Evaluation:
        """Evaluate the run on its own dataset, or on another one with the same classes.

        Args:
            cache: Folder of the cache.
            dataset: Name in the cache. Default: the dataset of the run.
            protocol: Default: the protocol of the run. ``all`` takes every clip of the dataset.
            split: ``test`` or ``train``.
            views: Views given to the network: ``all``, or numbers or names joined by commas.
            draws: Number of frame samples to average. Default: ``train.draws`` of the recipe.
            unknown: Measure how well uncertainty detects unknown actions: a dataset in the cache, or the classes ``excluded``.
            adapt: Adapt the network to the test clips during the evaluation (ViTTA). The run itself does not change.
            probes: Also probe what the network reads: other backgrounds, other orders of the frames, fewer views.

        Raises CheckpointError: the dataset has other classes. Raises CacheError: it has other settings.
        """
        import torch

        from dtsf.cache.reader import open_dataset
        from dtsf.cache.schema import describe_difference
        from dtsf.training.evaluate import evaluate
        from dtsf.training.protocols import parse_protocol
        from dtsf.training.splits import EXCLUDED

        state, train = self.state, self.state.recipe.train
        torch.set_num_threads(train.usable_threads)
        data = open_dataset(Path(cache), dataset or state.info.name)
        own, found = state.info.class_names, data.info.class_names
        if not train.reads(own, found):
            raise CheckpointError(
                f"{self.folder} was trained on {len(own)} classes ({', '.join(own[:3])} ...), {data.info.name} has "
                f"{len(found)} ({', '.join(found[:3])} ...): evaluate on a dataset with the same classes"
            )
        unknown_data = None
        if unknown is not None:
            unknown_data = data if unknown in (EXCLUDED, data.info.name) else open_dataset(Path(cache), unknown)
        for given in (data, unknown_data or data):
            if state.fingerprint != given.spec.fingerprint():
                raise CacheError(
                    f"{given.store} was made with other settings than the cache that {self.folder} was trained from "
                    f"({describe_difference(given.spec, state.spec)}): preprocess it with the same settings"
                )
        trained, unchecked = self._training_clips(Path(cache), data)
        evaluation = evaluate(
            self.net,
            data,
            parse_protocol(protocol or state.protocol, data.info.kind),
            seed=state.seed,
            split=split,
            views=views,
            draws=train.draws if draws is None else draws,
            trained_on=state.info.name,
            trained=trained,
            classes=state.info.class_names,
            unknown=unknown_data,
            adapt=adapt,
            probes=probes,
            held_out=self.held_out,
        )
        if data.info.name == state.info.name and state.catalog not in ("", data.catalog_hash):
            # A test clip may have been a training clip, or had another label.
            changed = "; its clips or labels have changed since this run was trained"
            evaluation = evaluation.model_copy(update={"task": evaluation.task + changed})
        notes = (*state.unfinished(self.folder), *unchecked, *evaluation.notes)
        return evaluation.model_copy(update={"notes": notes})

    def _training_clips(
        self, cache: Path, data: CachedDataset
    ) -> tuple[tuple[CachedDataset, tuple[Clip, ...]] | None, tuple[str, ...]]:
        """Return the dataset and the clips of the training, or None with a note. ``data``: the evaluated dataset in ``cache``."""
        from dtsf.cache.reader import open_dataset
        from dtsf.training.protocols import parse_protocol, split_clips
        from dtsf.training.splits import exclude_classes, hold_out, limit_training

        state, train = self.state, self.state.recipe.train
        try:
            own = data if data.info.name == state.info.name else open_dataset(cache, state.info.name)
            rule = parse_protocol(state.protocol, own.info.kind)
            split = split_clips(own.clips, rule, own.info.kind, own.info.view_names, needed=("train",))
            split, _ = exclude_classes(split, own.info, train.exclude_classes)
            return (own, hold_out(limit_training(split, train), train, state.seed).train), ()
        except (CacheError, ConfigError) as error:
            return None, (f"the test is not compared with the training clips: {error}",)

    def predict(
        self,
        videos: Sequence[str | Path],
        *,
        film: str | Path | None = None,
        views: str | None = None,
        set: float | None = None,
        as_needed: float | Literal["auto"] | None = None,
        **options: Unpack[VideoOptions],
    ) -> Prediction:
        """Classify one performance. The videos are read as the clips of the training were: same span, region and encoder.

        Args:
            videos: One file (or frame folder) per view.
            film: Also write a film to this path: the views side by side with the prediction.
            views: View of each video: numbers or names joined by commas. Default: the camera whose name is in the name of
                the file or of its folder; otherwise the remaining cameras, in order. If no view is known, a branch over all
                views is only used for as many videos as the training had views.
            set: Share (0.9): also give the classes that hold the true one in this share of performances like those of the
                held-out people. ``promise`` says on what it rests.
            as_needed: Open the camera that is most often right first, and the next one only while the uncertainty is above
                this. ``auto``: the uncertainty that costs at most half a point of accuracy on held-out people.
            options: What is used of each video; see :class:`dtsf.predict.videos.VideoOptions`.

        Raises VideoError: a video cannot be used. Raises ConfigError: another encoder than that of the run, a wrong option, a wrong
        path of the film, an unknown view, or no held-out answers for ``set`` and ``as_needed``. Raises FilmError: the film cannot
        be written; the error has the ``prediction``.
        Raises DataError: not one view for each video, or too many videos for the network.
        """
        from dtsf.report.film import check_film, film_videos

        if film is not None:
            check_film(Path(film))
        # Refuse wrong views and options before any video is decoded.
        self._check_number(len(videos))
        paths = check_videos(videos)
        chosen = choose_views(self.state.info.view_names, paths, views)
        state, question = self.state, self.question(set, as_needed)
        threads, plan = state.recipe.train.usable_threads, question.plan
        turns: dict[str, Any] = {}
        if plan is not None:
            if film is not None:
                raise ConfigError(f"the film {film} shows all cameras: leave out --as-needed")
            limit, order = plan.limit, plan.sort(chosen.numbers)

            def enough(opened: Sequence[int], rows: Sequence[Row]) -> bool:
                given_VFPC = np.stack([row.embedding_FPC for row in rows])
                return bool(self._ask(given_VFPC, chosen, opened)[1][0] <= limit)

            turns = {"order": order, "enough": enough}
        embedded = embed_videos(paths, chosen.numbers, state.info, state.spec, options, threads, **turns)
        notes = [*chosen.notes(state.info.view_names, paths), *embedded.notes]
        prediction = self._prediction(embedded.embeddings_VFPC, chosen, question, notes, embedded.opened, paths)
        if film is not None:
            try:
                absolute = [path.absolute() for path in paths]
                shown = prediction.model_dump(include={"label", "probabilities", "uncertainty", "view_weights"})
                film_videos(Path(film), absolute, embedded.spans, **shown)
            except DtsfError as error:
                raise FilmError(str(error), prediction) from error
        return prediction

    def timeline(
        self, recordings: str | Path | Sequence[Recording], out: str | Path = "timeline", **options: Any
    ) -> Iterator[Timeline]:
        """Find the bouts of recordings; see :func:`dtsf.predict.recordings.find_timelines`."""
        from dtsf.predict.recordings import find_timelines

        return find_timelines(self, recordings, out, **options)

    def windows(self, recording: Recording, **options: Any) -> Iterator[Window]:
        """Yield the classified windows of one recording; see :func:`dtsf.predict.recordings.find_windows`."""
        from dtsf.predict.recordings import find_windows

        return find_windows(self, recording, **options)

    def classify(self, embeddings_VFPC: np.ndarray, views: str | None = None) -> Prediction:
        """Classify the embeddings of one performance: F frames of P cells with C channels for each view.

        ``views``: numbers or names joined by commas; default: the first views. Raises DataError as :meth:`predict`, and
        CheckpointError if an output is not finite.
        """
        n_views = len(embeddings_VFPC)
        self._check_number(n_views)
        chosen = choose_views(self.state.info.view_names, [None] * n_views, views)
        return self._prediction(embeddings_VFPC, chosen, Question(self.held_out))

    def outputs(self, x_NVFPC: np.ndarray, numbers: Sequence[int], n_views: int = 0) -> Outputs:
        """Return the answers to the embeddings of N groups, averaged over the draws of the recipe.

        ``numbers``: view of each of the V cameras, from 0. The network masks all other views of ``n_views`` (default: those of the
        training). Raises CheckpointError: an answer is not finite.
        """
        import torch

        from dtsf.training.frame_sampling import read_frames, uniform_times

        model, draws, grid = self.state.recipe.model, self.state.recipe.train.draws, self.state.spec.grid
        given, (N, V) = list(numbers), x_NVFPC.shape[:2]
        x_MFHWC, row_M = torch.from_numpy(x_NVFPC).flatten(0, 1).unflatten(2, (grid, grid)), torch.arange(N * V)
        mask_V = torch.zeros(n_views or len(self.state.info.view_names), dtype=torch.bool)
        mask_V[given] = True
        parts = []
        for draw in range(draws):
            time_MT = uniform_times(model.frames, (draw + 0.5) / draws).expand(N * V, -1)
            x_MTHWC = read_frames(x_MFHWC, row_M, time_MT, model.motion_sampling)
            # Each camera is at the place of its view.
            x_NVTHWC = x_MTHWC.new_zeros(N, len(mask_V), *x_MTHWC.shape[1:])
            x_NVTHWC[:, given] = x_MTHWC.view(N, V, *x_MTHWC.shape[1:])
            with torch.inference_mode():
                output = self.net(x_NVTHWC, mask_V.expand(N, -1))
            parts.append((output.probabilities_BK, output.uncertainty_B, output.view_weights_BV[:, given]))
        return average(parts)

    def _ask(self, given_VFPC: np.ndarray, views: Views, opened: Sequence[int]) -> Outputs:
        """Return the answer to the opened videos of one performance."""
        n_views = (
            max(len(self.state.info.view_names), *(n + 1 for n in views.numbers)) if views.known else len(views.numbers)
        )
        return self.outputs(given_VFPC[None], [views.numbers[k] for k in opened], n_views)

    def _prediction(
        self,
        given_VFPC: np.ndarray,
        views: Views,
        question: Question,
        notes: Sequence[str] = (),
        opened: Sequence[int] = (),
        paths: Sequence[Path] = (),
    ) -> Prediction:
        """Return the answer to the opened videos (default: all) of one performance."""
        info, opened = self.state.info, opened or range(len(views.numbers))
        outputs = self._ask(given_VFPC, views, opened)
        numbers = [views.numbers[k] for k in opened]
        replied = question.reply(views.numbers, numbers, outputs[0][0], info.class_names)
        notes = [*self.state.unfinished(self.folder), *notes]
        return make_prediction(info, outputs, views, notes, opened, paths).model_copy(update=replied)

    def _check_number(self, n_videos: int) -> None:
        n_views = len(self.state.info.view_names)
        if self.state.recipe.model.fusion == "concat" and n_videos > n_views:
            raise DataError(
                f"{counted(n_videos, 'video')} given, but {self.folder} was trained on {counted(n_views, 'view')}: give fewer"
            )
