"""Prediction for the videos of one performance, by a run or by an exported network, and evaluation of a run.

Letters: V views, F cached frames, T frames of the network, P cells, H W grid, C channels, K classes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from dtsf.errors import CacheError, CheckpointError, ConfigError, DataError, DtsfError, FilmError, VideoError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from dtsf.cache.reader import CachedDataset
    from dtsf.cache.schema import Box, CacheSpec, Clip
    from dtsf.model.network import DTSFNet
    from dtsf.pipeline.video.clip import Span
    from dtsf.training.checkpoint import RunState
    from dtsf.training.evaluate import Evaluation

logger = logging.getLogger(__name__)

DEADLINE = 60.0  # maximum time to decode one video, in seconds
MAX_VIEWS, MAX_BYTES = 64, 1 << 32  # videos, and bytes of one; an external run may request any size


class Prediction(BaseModel):
    """Prediction for one performance."""

    model_config = ConfigDict(frozen=True)

    label: str
    probability: float
    uncertainty: float
    """Vacuity K / S in (0, 1]; 1 means no evidence."""
    view_weights: tuple[float, ...]
    """Weight of each video in the fusion, in the given order."""
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Run:
    """Trained network with its settings. :func:`dtsf.api.load` returns it."""

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
            unknown: Also measure how well uncertainty detects unknown actions: a dataset in the cache, or ``excluded`` for the
                classes of ``train.exclude_classes``.
            adapt: Adapt the network to the test clips during the evaluation (ViTTA). The run itself does not change.

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
        if own != found and not (train.exclude_classes and set(own) <= set(found)):
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
        )
        if data.info.name == state.info.name and state.catalog not in ("", data.catalog_hash):
            # A test clip may have been a training clip, or had another label.
            changed = "; its clips or labels have changed since this run was trained"
            evaluation = evaluation.model_copy(update={"task": evaluation.task + changed})
        return evaluation.model_copy(update={"notes": (*unchecked, *evaluation.notes)})

    def _training_clips(
        self, cache: Path, data: CachedDataset
    ) -> tuple[tuple[CachedDataset, tuple[Clip, ...]] | None, tuple[str, ...]]:
        """Return the dataset and the clips of the training, or None with a note. ``data``: the evaluated dataset in ``cache``."""
        from dtsf.cache.reader import open_dataset
        from dtsf.training.protocols import parse_protocol, split_clips
        from dtsf.training.splits import exclude_classes, hold_out

        state, train = self.state, self.state.recipe.train
        try:
            own = data if data.info.name == state.info.name else open_dataset(cache, state.info.name)
            rule = parse_protocol(state.protocol, own.info.kind)
            split = split_clips(own.clips, rule, own.info.kind, own.info.view_names, needed=("train",))
            split, _ = exclude_classes(split, own.info, train.exclude_classes)
            return (own, hold_out(split, train, state.seed).train), ()
        except (CacheError, ConfigError) as error:
            return None, (f"the test is not compared with the training clips: {error}",)

    def predict(
        self,
        videos: Sequence[str | Path],
        *,
        film: str | Path | None = None,
        views: str | None = None,
        region: Sequence[str | Box | None] = (),
        ignore: Sequence[str | Sequence[Box]] = (),
        encoder_weights: str | Path | None = None,
    ) -> Prediction:
        """Classify one performance.

        Args:
            videos: One file (or frame folder) per view.
            film: Also write a film to this path: the views side by side with the prediction.
            views: View of each video: numbers or names joined by commas. Default: the first views, in order. Give it if you
                pass fewer videos than the training had views; otherwise a branch over all views is not used.
            region: Part of the picture of each video, or one for all. Default: the region of its view in the training clips.
            ignore: Parts of the picture of each video in which no movement is searched, as for ``region``.
            encoder_weights: File of the encoder's weights. Required if the run was trained with custom weights.

        Raises VideoError: a video cannot be used. Raises ConfigError: another encoder than that of the run, a wrong path of the
        film, or an unknown view. Raises FilmError: the film cannot be written; the error has the ``prediction``. Raises
        DataError: the number of videos differs from the number of ``views``, or is too large for the network.
        """
        from dtsf.pipeline.datasets.catalog import video_spans
        from dtsf.report.film import check_film, film_videos

        if film is not None:
            check_film(Path(film))
        # Refuse wrong views and regions before any video is decoded.
        spans = video_spans(self.state.info, self._view_numbers(len(videos), views), region, ignore)
        threads = self.state.recipe.train.usable_threads
        embeddings_VFPC, longest = _embed_videos(videos, spans, self.state.spec, threads, encoder_weights)
        prediction = self.classify(embeddings_VFPC, views)
        if film is not None:
            try:
                paths = [Path(video).absolute() for video in videos]
                film_videos(Path(film), paths, longest, **prediction.model_dump(exclude={"probability"}))
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
        given_VTHWC = _sample_frames(embeddings_VFPC, state.spec.grid, model.frames, model.motion_sampling)
        # Each video is at the place of its view. The network masks the other views.
        n_views = len(numbers) if views is None else len(state.info.view_names)
        mask_V = torch.zeros(n_views, dtype=torch.bool)
        mask_V[numbers] = True
        x_VTHWC = given_VTHWC.new_zeros(n_views, *given_VTHWC.shape[1:])
        x_VTHWC[numbers] = given_VTHWC
        with torch.inference_mode():
            output = self.net(x_VTHWC.unsqueeze(0), mask_V.unsqueeze(0))
        weight_V = output.view_weights_BV[0, numbers]
        return _make_prediction(state.info.class_names, output.probabilities_BK[0], output.uncertainty_B[0], weight_V)

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


def predict_onnx(
    file: Path,
    videos: Sequence[str | Path],
    *,
    region: Sequence[str | Box | None] = (),
    ignore: Sequence[str | Sequence[Box]] = (),
    encoder_weights: str | Path | None = None,
) -> Prediction:
    """Classify one performance; see :meth:`dtsf.api.Run.predict`. Raises DataError: the file is for another number of views."""
    from dtsf.pipeline.datasets.catalog import video_spans
    from dtsf.predict.onnx import read_onnx

    network = read_onnx(file)
    metadata = network.metadata
    if len(videos) != metadata.views:
        how = f"give {metadata.views}, or dtsf export RUN --onnx FILE --views {len(videos)}"
        raise DataError(f"{file} was exported for {metadata.views} views, {len(videos)} videos given: {how}")
    spans = video_spans(metadata.info, range(len(videos)), region, ignore)
    embeddings_VFPC, _ = _embed_videos(videos, spans, metadata.spec, 1, encoder_weights)
    x_VTHWC = _sample_frames(embeddings_VFPC, metadata.spec.grid, metadata.frames, metadata.motion_sampling)
    probabilities_BK, uncertainty_B, weights_BV = network(x_VTHWC.unsqueeze(0))
    return _make_prediction(metadata.info.class_names, probabilities_BK[0], uncertainty_B[0], weights_BV[0])


def _embed_videos(
    videos: Sequence[str | Path], spans: Sequence[Span], spec: CacheSpec, threads: int, weights: str | Path | None
) -> tuple[np.ndarray, int]:
    """Decode and embed one video per view. Returns the embeddings (V, F, P, C) and the length of the longest video in frames."""
    paths = [Path(video) for video in videos]
    if not 1 <= len(paths) <= MAX_VIEWS:
        raise DataError(f"{len(paths) or 'no'} videos given: give 1 to {MAX_VIEWS}, one file per view")
    if missing := [path for path in paths if not path.exists()]:
        raise VideoError(f"{missing[0]} does not exist")
    import numpy as np
    import torch

    from dtsf.pipeline.encoders.choose import open_encoder
    from dtsf.pipeline.video.decoder_process import DecodeRequest, DecodeSettings, decode_all, shared_decoders

    torch.set_num_threads(threads)
    n_bytes = spec.frames * max(spec.size**2 * 3, spec.grid**2 * spec.channels * 4)
    if n_bytes > MAX_BYTES:
        size = f"{spec.frames} frames of {spec.size} px with {spec.grid} x {spec.grid} cells x {spec.channels} channels"
        raise ConfigError(f"{size} need {n_bytes} bytes a video, more than {MAX_BYTES}: train with a smaller input")
    encoder = open_encoder(spec, weights)
    found = encoder.identity.channels
    if found != spec.channels:
        raise ConfigError(f"the encoder {spec.encoder} has {found} channels, the run {spec.channels}")
    logger.info("encoder %s, weights %s", spec.encoder, spec.weights_hash)
    embeddings, longest = [], 1
    # A process decodes, so that a broken video cannot end a program that watches a folder. It stays for the next performance.
    with shared_decoders(DecodeSettings(spec.frames, spec.size, DEADLINE, crop=spec.crop)) as (decoder,):
        requests = [DecodeRequest(path.absolute(), span) for path, span in zip(paths, spans, strict=True)]
        for path, clip in zip(paths, decode_all(decoder, requests), strict=True):
            if isinstance(clip, VideoError):
                raise clip
            embeddings.append(encoder.embed(clip[0]))
            logger.info("%s: %d frames", path, clip[1]["decoded_frames"])
            longest = max(longest, clip[1]["decoded_frames"])
    return np.stack(embeddings), longest


def _sample_frames(embeddings_VFPC: np.ndarray, grid: int, n_frames: int, motion_sampling: float) -> Tensor:
    """Return the frames that the network reads at evaluation: (V, T, H, W, C)."""
    import torch

    from dtsf.training.frame_sampling import read_frames, uniform_times

    V, F, _, C = embeddings_VFPC.shape
    x_VFHWC = torch.from_numpy(embeddings_VFPC).view(V, F, grid, grid, C)
    return read_frames(x_VFHWC, torch.arange(V), uniform_times(n_frames).expand(V, -1), motion_sampling)


def _make_prediction(names: Sequence[str], probability_K: Tensor, uncertainty: Tensor, weight_V: Tensor) -> Prediction:
    if not all(x.isfinite().all() for x in (probability_K, uncertainty, weight_V)):
        raise CheckpointError("the output of the network is not finite, because its training diverged: train again")
    best = int(probability_K.argmax())
    return Prediction(
        label=names[best],
        probability=float(probability_K[best]),
        uncertainty=float(uncertainty),
        view_weights=tuple(weight_V.tolist()),
        probabilities=dict(zip(names, probability_K.tolist(), strict=True)),
    )
