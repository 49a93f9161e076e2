"""dtsf from Python: both stages. The command line is a thin face of this module.

spec = ...                                   # or take the defaults
preprocess("nucla", root=..., cache=...)     # stage 1
train(cache=..., protocol="cross-subject:5,6", run=...)
load(run).predict([cam1, cam2, cam3])
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tomli_w
from pydantic import BaseModel, ConfigDict

from dtsf.cache.reader import open_dataset
from dtsf.errors import CacheError, CheckpointError, ConfigError, DataError, VideoError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dtsf.cache.reader import CachedDataset
    from dtsf.model.network.dtsfnet import DTSFNet
    from dtsf.model.training.checkpoint import RunState
    from dtsf.model.training.loop import EpochReport
    from dtsf.model.training.protocols import Split
    from dtsf.model.training.recipe import Recipe
    from dtsf.pipeline.run import PreprocessResult, Progress

__all__ = ["Evaluation", "Prediction", "Run", "TrainResult", "load", "open_cache", "preprocess", "train"]

open_cache = open_dataset


class Evaluation(BaseModel):
    """A judgement and everything needed to know what it is a judgement of. ``metrics.json`` holds one."""

    model_config = ConfigDict(frozen=True)

    dataset: str
    protocol: str
    split: str
    task: str
    """What the test measures, in words."""
    views: tuple[str, ...]
    """Names of the views that the network was given."""
    left_out: dict[str, int]
    """Clips that are not in the numbers, by reason."""
    seed: int
    fingerprint: str
    metrics: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        """One flat object for programs: the metrics beside what they are of."""
        return {**self.model_dump(exclude={"metrics"}), **self.metrics}


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


@dataclass(frozen=True)
class TrainResult:
    """What training came to."""

    run: Path
    epochs: int
    seconds: float
    evaluation: Evaluation


def preprocess(
    dataset: str,
    root: Path | None = None,
    cache: Path = Path("cache"),
    *,
    views: str = "all",
    limit: int | None = None,
    name: str | None = None,
    encoder: str = "efficientnet-lite0",
    frames: int = 16,
    size: int = 192,
    grid: int = 6,
    workers: int | None = None,
    scheduler: str | None = None,
    shard_size: int = 64,
    max_bad: float = 0.05,
    overwrite: bool = False,
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
        workers=workers,
        scheduler=scheduler,
        shard_size=shard_size,
        max_bad=max_bad,
        overwrite=overwrite,
        on_progress=on_progress,
    )


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
    on_start: Callable[[Path, CachedDataset, Split, Recipe], None] | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
) -> TrainResult:
    """Stage 2: train a network from the cache and judge it on the protocol's test clips.

    Args:
        cache: Folder of the cache.
        dataset: Name in the cache; may be left out where there is one.
        protocol: As :func:`dtsf.model.training.protocols.parse_protocol` reads it.
        recipe: Name or TOML file.
        overrides: ``section.key=value`` each.
        run: Run folder; ``runs/NAME-PROTOCOL-seedN`` if left out, numbered on where that exists.
        seed: Of everything random.
        device: ``auto``, ``cpu`` or ``cuda``.
        resume: Go on with the newest checkpoint of ``run``.
        on_start: Called once everything is checked and before the first step.
        on_epoch: Called after each epoch.

    """
    import time

    from dtsf.model.training.data import load_groups
    from dtsf.model.training.evaluation import evaluate_groups
    from dtsf.model.training.loop import fit, versions
    from dtsf.model.training.protocols import parse_protocol, split_clips
    from dtsf.model.training.recipe import load_recipe

    settings = load_recipe(recipe, overrides)
    data = open_dataset(cache, dataset)
    _check_recipe_fits_cache(settings, data)
    rule = parse_protocol(protocol, data.info.dataset)
    split = split_clips(data.clips, rule, data.info.dataset, data.info.view_names)
    _check_device(device)
    folder = _run_folder(run, f"{data.info.name}-{rule}-seed{seed}", resume)
    if on_start is not None:
        on_start(folder, data, split, settings)
    begun = time.monotonic()
    document = {
        "data": {"cache": str(cache.absolute()), "dataset": data.info.name, "protocol": str(rule), "seed": seed}
    }
    (folder / "config.toml").write_text(tomli_w.dumps(document | settings.model_dump(mode="json")), encoding="utf-8")
    (folder / "environment.json").write_text(json.dumps(versions(), indent=1), encoding="utf-8")
    net = fit(
        load_groups(data, split.train),
        settings,
        info=data.info,
        spec=data.spec,
        protocol=str(rule),
        run=folder,
        seed=seed,
        device=device,
        resume=resume,
        on_epoch=on_epoch,
    )
    metrics = evaluate_groups(net, load_groups(data, split.test), data.info.class_names)
    evaluation = Evaluation(
        dataset=data.info.name,
        protocol=str(rule),
        split="test",
        task=split.task,
        views=data.info.view_names,
        left_out=_left_out(data, split),
        seed=seed,
        fingerprint=data.spec.fingerprint(),
        metrics=metrics.model_dump(mode="json"),
    )
    (folder / "metrics.json").write_text(json.dumps(evaluation.summary(), indent=1), encoding="utf-8")
    return TrainResult(folder, settings.train.epochs, time.monotonic() - begun, evaluation)


def load(run: Path) -> Run:
    """Open a finished or interrupted run for evaluation and prediction.

    Raises:
        CheckpointError: No checkpoint, a damaged one, or one whose weights are for other classes.

    """
    from dtsf.model.training.checkpoint import load_checkpoint, load_network

    if not run.is_dir():
        raise CheckpointError(f"no run folder {run}: train first (dtsf train), or name another")
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

        from dtsf.model.training.data import load_groups
        from dtsf.model.training.evaluation import evaluate_groups
        from dtsf.model.training.protocols import parse_protocol, split_clips

        torch.set_num_threads(self.state.recipe.train.threads)
        if split not in ("test", "train"):
            raise ConfigError(f"--split {split!r} must be test or train")
        data = open_dataset(cache, dataset or self.state.info.name)
        self._check(data)
        rule = parse_protocol(protocol or self.state.protocol, data.info.dataset)
        parts = split_clips(data.clips, rule, data.info.dataset, data.info.view_names)
        groups = load_groups(data, parts.test if split == "test" else parts.train)
        left_out = _left_out(data, parts)
        chosen = _chosen_views(views, data.info.view_names)
        if len(chosen) < len(data.info.view_names):
            before = len(groups)
            groups = groups.with_views(chosen)
            if before > len(groups):
                left_out["groups without the chosen views"] = before - len(groups)
            if not len(groups):
                raise ConfigError(f"--views {views}: no {split} group of {data.info.name} has such a view")
        metrics = evaluate_groups(self.net, groups, data.info.class_names)
        return Evaluation(
            dataset=data.info.name,
            protocol=str(rule),
            split=split,
            task=parts.task if split == "test" else "the training clips themselves",
            views=tuple(data.info.view_names[view - 1] for view in chosen),
            left_out=left_out,
            seed=self.state.seed,
            fingerprint=data.spec.fingerprint(),
            metrics=metrics.model_dump(mode="json"),
        )

    def predict(self, videos: Sequence[Path]) -> Prediction:
        """Classify one performance.

        Args:
            videos: One file (or frame folder) a view, any number from 1.

        Raises:
            VideoError: A video cannot be used.
            ConfigError: This machine's encoder is not the one the run was trained with.

        """
        import torch

        from dtsf.pipeline.encoders import load_encoder
        from dtsf.pipeline.video import decode_clip

        torch.set_num_threads(self.state.recipe.train.threads)
        if not videos:
            raise DataError("no video given: name one file a view")
        spec = self.state.spec
        encoder = load_encoder(spec.encoder, spec.size, spec.grid)
        if encoder.weights_hash != spec.weights_hash:
            raise ConfigError(
                f"the encoder {spec.encoder} has weights {encoder.weights_hash} here, {spec.weights_hash} when the run "
                "was trained: install the same version"
            )
        embedded = []
        for video in videos:
            if not video.exists():
                raise VideoError(f"{video} does not exist", "unreadable")
            embedded.append(encoder.embed(decode_clip(video, spec.frames, spec.size).frames))
        return self._classify(np.stack(embedded))

    def _classify(self, embeddings_VFPC: np.ndarray) -> Prediction:
        import torch

        from dtsf.model.training.augment import fixed_frames

        grid = self.state.spec.grid
        V, F, _, C = embeddings_VFPC.shape
        x_VFHWC = torch.from_numpy(embeddings_VFPC).view(V, F, grid, grid, C)
        x_VTHWC = x_VFHWC[:, fixed_frames(F, self.state.recipe.model.frames)]
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


def _check_recipe_fits_cache(recipe: Recipe, data: CachedDataset) -> None:
    """Check the recipe against the cache's frames and grid."""
    if recipe.model.frames > data.spec.frames:
        raise ConfigError(
            f"model.frames ({recipe.model.frames}) is more than the {data.spec.frames} frames that the cache "
            f"{data.folder} holds: --set model.frames={data.spec.frames}, or preprocess with --frames {recipe.model.frames}"
        )
    if data.spec.grid % recipe.model.patch:
        raise ConfigError(
            f"model.patch ({recipe.model.patch}) does not divide the cache's grid ({data.spec.grid}): "
            f"for example --set model.patch={data.spec.grid}"
        )


def _left_out(data: CachedDataset, split: Split) -> dict[str, int]:
    """Clips that are in no number: bad ones by verdict, and those that the protocol has no place for."""
    bad: dict[str, int] = {}
    for record in data.bad:
        bad[record.verdict.value] = bad.get(record.verdict.value, 0) + 1
    return bad | split.left_out


def _chosen_views(views: str, view_names: Sequence[str]) -> list[int]:
    if views == "all":
        return list(range(1, len(view_names) + 1))
    chosen = set()
    for word in (word.strip() for word in views.split(",")):
        if word in view_names:
            chosen.add(list(view_names).index(word) + 1)
        elif word.isdigit() and 1 <= int(word) <= len(view_names):
            chosen.add(int(word))
        else:
            raise ConfigError(f"--views {views}: no view {word!r}; there are {', '.join(view_names)}, or all")
    return sorted(chosen)


def _check_device(device: str) -> None:
    import torch

    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device {device!r} must be auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch sees no CUDA device here; use --device cpu or auto")


def _run_folder(run: Path | None, name: str, resume: bool) -> Path:
    """Choose or check the run folder and make it."""
    if run is None:
        plain = "".join(c if c.isalnum() or c in "-_.," else "-" for c in name)
        existing = [p for n in range(1, 1000) if (p := Path("runs") / (plain if n == 1 else f"{plain}-{n}")).exists()]
        run = (
            existing[-1]
            if resume and existing
            else Path("runs") / (plain if not existing else f"{plain}-{len(existing) + 1}")
        )
    if resume and not (run / "last").exists() and not (run / "last.old").exists():
        raise CheckpointError(f"nothing to resume: {run} has no checkpoint")
    if not resume and run.exists() and any(run.iterdir()):
        raise ConfigError(f"the run folder {run} is not empty: go on with it (--resume), or choose another --out")
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the run folder {run}: {error.strerror}") from error
    return run
