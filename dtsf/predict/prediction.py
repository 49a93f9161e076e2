"""Prediction for one performance, from the answers of a run or of an exported network.

Letters: N groups, V views, F cached frames, P cells, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import numpy as np
from pydantic import BaseModel, ConfigDict

from dtsf.errors import CheckpointError, DataError
from dtsf.names import counted
from dtsf.predict.videos import VideoOptions, check_videos, embed_videos
from dtsf.predict.views import By, Views, choose_views

if TYPE_CHECKING:
    from torch import Tensor

    from dtsf.cache.schema import DatasetInfo

Outputs = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Probabilities (N, K), uncertainty (N,) and the weight of each camera (N, V)."""


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
    views: tuple[str | None, ...] = ()
    """Camera that each video was taken for; None for one that the training lacks."""
    views_by: tuple[By, ...] = ()
    """Source of each camera: views (the option), name, folder, or order of the videos."""
    opened: tuple[str, ...] = ()
    """Opened cameras in the order of opening: names, or file names where the training lacks the camera."""
    set: tuple[str, ...] = ()
    """Classes that hold the true one as often as ``promise`` says, the most probable first; empty without ``--set``."""
    promise: str = ""
    surest: float | None = None
    """Share of the held-out answers that are at least as sure; None for a run without them."""
    surest_right: float | None = None
    """Share of these that are right; None if there are none."""
    look: bool | None = None
    """True if a person must look at it: it is not among the surest held-out answers of which 95 % are right."""
    notes: tuple[str, ...] = ()
    """Remarks on this answer, for example the offsets that were assumed."""


def average(parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Outputs:
    """Return the means over all sets of frames, as an evaluation does."""
    import torch

    means = [torch.stack(part).mean(0).numpy() for part in zip(*parts, strict=True)]
    if not all(np.isfinite(part).all() for part in means):
        raise CheckpointError("the output of the network is not finite, because its training diverged: train again")
    return means[0], means[1], means[2]


def make_prediction(
    info: DatasetInfo,
    outputs: Outputs,
    views: Views,
    notes: Sequence[str],
    opened: Sequence[int] | None = None,
    paths: Sequence[Path] = (),
) -> Prediction:
    """Return the prediction of one group. ``opened``: number of the video of each weight of ``outputs``; default: in order."""
    probability_K, uncertainty, weight_X = (part[0] for part in outputs)
    best, names, numbers = int(probability_K.argmax()), info.view_names, views.numbers
    opened = range(len(numbers)) if opened is None else opened
    weights = dict(zip(opened, weight_X.tolist(), strict=True))
    cameras = [names[n] if n < len(names) else None for n in numbers]
    return Prediction(
        label=info.class_names[best],
        probability=float(probability_K[best]),
        uncertainty=float(uncertainty),
        view_weights=tuple(weights.get(k, 0.0) for k in range(len(numbers))),
        probabilities=dict(zip(info.class_names, probability_K.tolist(), strict=True)),
        views=tuple(cameras),
        views_by=views.by,
        opened=tuple(cameras[k] or paths[k].name for k in opened) if paths else (),
        notes=tuple(notes),
    )


def predict_onnx(
    file: Path, videos: Sequence[str | Path], *, views: str | None = None, **options: Unpack[VideoOptions]
) -> Prediction:
    """Classify one performance; see :meth:`dtsf.api.Run.predict`. Raises DataError: the file is for another number of views."""
    import torch

    from dtsf.predict.onnx import read_onnx

    network = read_onnx(file)
    metadata = network.metadata
    paths = check_videos(videos)
    if len(paths) != metadata.views:
        how = f"give {metadata.views}, or dtsf export RUN --onnx FILE --views {len(videos)}"
        raise DataError(
            f"{file} was exported for {counted(metadata.views, 'view')}, {counted(len(videos), 'video')} given: {how}"
        )
    chosen = choose_views(metadata.info.view_names, paths, views)
    embedded = embed_videos(paths, chosen.numbers, metadata.info, metadata.spec, options)
    # The views of the file are in the order of the training.
    order = np.argsort(chosen.numbers)
    x_VFPC, grid = torch.from_numpy(embedded.embeddings_VFPC[order]), metadata.spec.grid
    probabilities_BK, uncertainty_B, weights_BV = network(x_VFPC.unflatten(2, (grid, grid)).unsqueeze(0))
    outputs = average([(probabilities_BK, uncertainty_B, weights_BV[:, np.argsort(order)])])
    notes = [*chosen.notes(metadata.info.view_names, paths), *embedded.notes]
    if metadata.views < (n_views := len(metadata.info.view_names)):
        notes.append(
            f"{file} has {metadata.views} of {n_views} views: without a branch of all views, and with the "
            "occlusion limits of the first views, it may answer otherwise than --run"
        )
    return make_prediction(metadata.info, outputs, chosen, notes, paths=paths)
