"""Prediction for the videos of one performance, and the film that shows it.

Each function imports PyTorch and the decoder itself, as in :mod:`dtsf.api`.
Letters: V views, F cached frames, T frames of the network, P cells, H W grid, C channels, K classes.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from dtsf.errors import CheckpointError, ConfigError, DataError, VideoError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from torch import Tensor

    from dtsf.cache.schema import CacheSpec

logger = logging.getLogger(__name__)

FILM_SIZE, MAX_FILM_FRAMES, DEFAULT_FPS = 288, 300, 15.0
"""Side of a view in a film in pixels, maximum number of its frames, and the frame rate of a folder of frames."""
DEADLINE = 60.0
"""Maximum time to decode one video, in seconds."""
MAX_VIEWS, MAX_BYTES = 64, 1 << 32
"""Maximum number of videos, and size of the frames or cells of one. A run from elsewhere can request any size."""


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


def predict_onnx(file: Path, videos: Sequence[str | Path], *, encoder_weights: str | Path | None = None) -> Prediction:
    """Classify one performance with an exported network. See :meth:`dtsf.api.Run.predict`.

    Raises DataError: the number of videos differs from the number of views in the file.
    """
    from dtsf.predict.onnx import read_onnx

    network = read_onnx(file)
    metadata = network.metadata
    if len(videos) != metadata.views:
        how = f"give {metadata.views}, or dtsf export RUN --onnx FILE --views {len(videos)}"
        raise DataError(f"{file} was exported for {metadata.views} views, {len(videos)} videos given: {how}")
    embeddings_VFPC, _ = embed_videos(videos, metadata.spec, 1, encoder_weights)
    x_VTHWC = sample_frames(embeddings_VFPC, metadata.spec.grid, metadata.frames, metadata.motion_sampling)
    probabilities_BK, uncertainty_B, weights_BV = network(x_VTHWC.unsqueeze(0))
    return make_prediction(metadata.info.class_names, probabilities_BK[0], uncertainty_B[0], weights_BV[0])


def embed_videos(
    videos: Sequence[str | Path], spec: CacheSpec, threads: int, encoder_weights: str | Path | None = None
) -> tuple[np.ndarray, int]:
    """Decode and embed one video per view, as stage 1 does.

    Returns the embeddings (V, F, P, C) and the number of frames of the longest video.
    """
    paths = [Path(video) for video in videos]
    if not 1 <= len(paths) <= MAX_VIEWS:
        raise DataError(f"{len(paths) or 'no'} videos given: give 1 to {MAX_VIEWS}, one file per view")
    for path in paths:
        if not path.exists():
            raise VideoError(f"{path} does not exist")
    import numpy as np
    import torch

    from dtsf.pipeline.encoders.choose import open_encoder
    from dtsf.pipeline.video.decoder_process import DecodeRequest, DecodeSettings, decode_all, shared_decoders

    torch.set_num_threads(threads)
    n_bytes = spec.frames * max(spec.size**2 * 3, spec.grid**2 * spec.channels * 4)
    if n_bytes > MAX_BYTES:
        size = f"{spec.frames} frames of {spec.size} px with {spec.grid} x {spec.grid} cells x {spec.channels} channels"
        raise ConfigError(f"{size} need {n_bytes} bytes a video, more than {MAX_BYTES}: train with a smaller input")
    encoder = open_encoder(spec, encoder_weights)
    if encoder.identity.channels != spec.channels:
        raise ConfigError(
            f"the encoder {spec.encoder} has {encoder.identity.channels} channels, the run {spec.channels}"
        )
    logger.info("encoder %s, weights %s", spec.encoder, spec.weights_hash)
    embeddings, longest = [], 1
    # A separate process decodes, so that a broken video cannot end a program that watches a folder.
    # The process stays open for the next performance.
    with shared_decoders(DecodeSettings(spec.frames, spec.size, DEADLINE, crop=spec.crop)) as (decoder,):
        for path, clip in zip(paths, decode_all(decoder, [DecodeRequest(p.absolute()) for p in paths]), strict=True):
            if isinstance(clip, VideoError):
                raise clip
            embeddings.append(encoder.embed(clip[0]))
            logger.info("%s: %d frames", path, clip[1]["decoded_frames"])
            longest = max(longest, clip[1]["decoded_frames"])
    return np.stack(embeddings), longest


def sample_frames(embeddings_VFPC: np.ndarray, grid: int, n_frames: int, motion_sampling: float) -> Tensor:
    """Return the frames that the network reads at evaluation: (V, T, H, W, C)."""
    import torch

    from dtsf.training.frame_sampling import read_frames, uniform_times

    V, F, _, C = embeddings_VFPC.shape
    x_VFHWC = torch.from_numpy(embeddings_VFPC).view(V, F, grid, grid, C)
    return read_frames(x_VFHWC, torch.arange(V), uniform_times(n_frames).expand(V, -1), motion_sampling)


def make_prediction(names: Sequence[str], probability_K: Tensor, uncertainty: Tensor, weight_V: Tensor) -> Prediction:
    """Convert the network's output for one group. Raises CheckpointError: an output is not finite."""
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


def write_prediction_film(file: Path, videos: Sequence[Path], longest: int, prediction: Prediction) -> None:
    """Decode the videos again and write them with the prediction.

    The film has at most MAX_FILM_FRAMES frames and lasts as long as the longest view. Shorter views end with a still frame.
    """
    import numpy as np

    from dtsf.pipeline.video.decode import decode_clip, probe
    from dtsf.report.film import Caption, write_film

    n = min(longest, MAX_FILM_FRAMES)
    rates = [DEFAULT_FPS if video.is_dir() else probe(video).fps or DEFAULT_FPS for video in videos]
    frames_VTHWC = np.stack([decode_clip(video, n, FILM_SIZE).frames for video in videos])
    names = [f"{k} {video.name}" for k, video in enumerate(videos, 1)]
    caption = Caption(names, **prediction.model_dump(exclude={"probability"}))
    write_film(file, frames_VTHWC, max(rates) * n / longest, caption)
