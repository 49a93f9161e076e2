"""Videos of one performance -> what a network says of them, on its own and as a film. Knows both stages, below :mod:`dtsf.api`.

As there, PyTorch and the decoder are imported by the function that needs them.
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

    from dtsf.cache.spec import CacheSpec

logger = logging.getLogger(__name__)

FILM_SIZE, FILM_FRAMES, FILM_FPS = 288, 300, 15.0
"""Side of a view in a film; most frames of one, whose memory this bounds; frames a second of a folder of frames."""
DEADLINE = 60.0
"""Seconds that decoding one video may take."""
MOST_VIEWS, MOST_BYTES = 64, 1 << 32
"""Videos of one performance; bytes of the frames, or cells, of one video: what a run or an ONNX file of others may ask for."""


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


def predict_onnx(file: Path, videos: Sequence[str | Path], *, encoder_weights: str | Path | None = None) -> Prediction:
    """Classify one performance with an exported network; as :meth:`dtsf.api.Run.predict`, but as many videos as it has views.

    Raises:
        CheckpointError: The file is missing or not dtsf's.
        DataError: Another number of videos.
    """
    from dtsf.predict.onnx import read_onnx

    network = read_onnx(file)
    known = network.metadata
    if len(videos) != known.views:
        raise DataError(
            f"{file} was exported for {known.views} views, {len(videos)} videos given: "
            f"give {known.views}, or dtsf export RUN --onnx FILE --views {len(videos)}"
        )
    embeddings_VFPC, _ = embed_videos(videos, known.spec, 1, encoder_weights=encoder_weights)
    x_VTHWC = read_canvases(embeddings_VFPC, known.spec.grid, known.frames, known.pace)
    probabilities_BK, uncertainty_B, weights_BV = network(x_VTHWC.unsqueeze(0))
    return make_prediction(known.info.class_names, probabilities_BK[0], uncertainty_B[0], weights_BV[0])


def embed_videos(
    videos: Sequence[str | Path],
    spec: CacheSpec,
    threads: int,
    film: str | Path | None = None,
    encoder_weights: str | Path | None = None,
) -> tuple[np.ndarray, int]:
    """Decode and embed one video a view as stage 1 would: (V, F, P, C), and the frames of the longest.

    A film that cannot be written is refused before the work.
    """
    paths = [Path(video) for video in videos]
    if not paths:
        raise DataError("no video given: name one file a view")
    if len(paths) > MOST_VIEWS:
        raise DataError(f"{len(paths)} videos given, at most {MOST_VIEWS}: name one file a view")
    for path in paths:
        if not path.exists():
            raise VideoError(f"{path} does not exist", "unreadable")
    import numpy as np
    import torch

    from dtsf.pipeline.encoders.choose import open_encoder
    from dtsf.pipeline.video.decoder_process import DecodeRequest, decode_all, shared_decoders
    from dtsf.report.film import check_film

    if film is not None:
        check_film(Path(film))
    torch.set_num_threads(threads)
    n_bytes = spec.frames * max(spec.size**2 * 3, spec.grid**2 * spec.channels * 4)
    if n_bytes > MOST_BYTES:
        raise ConfigError(
            f"{spec.frames} frames of {spec.size} px, {spec.grid} x {spec.grid} cells x {spec.channels} channels are {n_bytes} "
            f"bytes a video, at most {MOST_BYTES}"
        )
    encoder = open_encoder(spec, encoder_weights)
    if encoder.identity.channels != spec.channels:
        raise ConfigError(
            f"the encoder {spec.encoder} has {encoder.identity.channels} channels, the run {spec.channels}"
        )
    logger.info("encoder %s, weights %s", spec.encoder, spec.weights_hash)
    embedded, longest = [], 1
    # In a process of its own: what a broken video does to the decoder must not end a program that watches a folder.
    # Kept from one performance to the next.
    with shared_decoders(spec.frames, spec.size, DEADLINE, "fast", crop=spec.crop) as (decoder,):
        for clip in decode_all(decoder, [DecodeRequest(path.absolute()) for path in paths]):
            if isinstance(clip, VideoError):
                raise clip
            embedded.append(encoder.embed(clip[0]))
            logger.info("%s: %d frames", paths[len(embedded) - 1], clip[1]["decoded_frames"])
            longest = max(longest, clip[1]["decoded_frames"])
    return np.stack(embedded), longest


def read_canvases(embeddings_VFPC: np.ndarray, grid: int, n_frames: int, pace: float) -> Tensor:
    """The network's frames, at evaluation's moments: (V, T, H, W, C)."""
    import torch

    from dtsf.training.frame_sampling import read_frames, uniform_times

    V, F, _, C = embeddings_VFPC.shape
    x_VFHWC = torch.from_numpy(embeddings_VFPC).view(V, F, grid, grid, C)
    return read_frames(x_VFHWC, torch.arange(V), uniform_times(n_frames).expand(V, -1), pace)


def make_prediction(names: Sequence[str], probability_K: Tensor, uncertainty: Tensor, weight_V: Tensor) -> Prediction:
    """Make the prediction for one group: ``probability_K`` of the classes ``names``, one uncertainty, a weight a video.

    Raises:
        CheckpointError: Its outputs are no numbers.
    """
    if not all(x.isfinite().all() for x in (probability_K, uncertainty, weight_V)):
        raise CheckpointError("the network's answer is not finite numbers: the training that made it diverged")
    best = int(probability_K.argmax())
    return Prediction(
        label=names[best],
        probability=float(probability_K[best]),
        uncertainty=float(uncertainty),
        view_weights=tuple(weight_V.tolist()),
        probabilities=dict(zip(names, probability_K.tolist(), strict=True)),
    )


def write_prediction_film(file: Path, videos: Sequence[Path], longest: int, prediction: Prediction) -> None:
    """Decode the videos again, every frame as far as memory bounds allow, and write them with the prediction.

    It lasts as long as the longest view, by that one's frame rate; a shorter view holds its last frame.
    """
    import numpy as np

    from dtsf.pipeline.video.decode import decode_clip, probe
    from dtsf.report.film import write_film

    n = min(longest, FILM_FRAMES)
    rates = [FILM_FPS if video.is_dir() else probe(video).fps or FILM_FPS for video in videos]
    write_film(
        file,
        np.stack([decode_clip(video, n, FILM_SIZE).frames for video in videos]),
        max(rates) * n / longest,
        names=[f"{k} {video.name}" for k, video in enumerate(videos, 1)],
        label=prediction.label,
        probabilities=prediction.probabilities,
        uncertainty=prediction.uncertainty,
        view_weights=prediction.view_weights,
    )
