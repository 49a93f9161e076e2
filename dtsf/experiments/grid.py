"""Run a grid of trainings: one lock, one record for each training, continued after a kill.

A :class:`Job` is a training and its tests. Its folder is a run folder with a ``result.json``, a :class:`.results.RunRecord`.
A finished job is never repeated. An interrupted training resumes from its last checkpoint.
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dtsf.errors import CheckpointError, ConfigError
from dtsf.experiments.results import RunRecord, Score
from dtsf.files.read import json_text, parse_json, parse_model, read_file
from dtsf.files.write import lock, write_atomically
from dtsf.training.checkpoint import load_checkpoint, load_network, resume_or_clear
from dtsf.training.evaluate import evaluate
from dtsf.training.init_weights import start_from
from dtsf.training.recipe import resolve_auto
from dtsf.training.splits import exclude_classes
from dtsf.training.train import train

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from dtsf.cache.reader import CachedDataset
    from dtsf.experiments.test_sets import TestSet
    from dtsf.training.evaluate import Evaluation
    from dtsf.training.loop import EpochReport
    from dtsf.training.protocols import Split
    from dtsf.training.recipe import Recipe

logger = logging.getLogger(__name__)

RECORD = "result.json"
LIMIT = 1 << 28
"""Maximum size of a stored document, in bytes."""
TICK = 2.0
"""Seconds between two writes of the elapsed time. A killed process loses at most this."""


@dataclass(frozen=True)
class Job:
    """One training, and the tests that evaluate it. The first test is the test of its own protocol."""

    out: Path
    """Folder of the experiment."""
    name: str
    """Run folder, relative to ``out``."""
    cache: Path
    recipe: str
    overrides: tuple[str, ...]
    settings: Recipe
    """The recipe with its overrides and its sizes: see :func:`resolve`."""
    seed: int
    tests: tuple[TestSet, ...]
    device: str = "auto"
    init: Path | None = None
    calibrated: bool = True

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.out / self.name


def run_job(job: Job, on_epoch: Callable[[EpochReport], None]) -> RunRecord:
    """Train a job if it is not trained, and evaluate it on the tests without a score. Raises CheckpointError: a damaged
    checkpoint or record.
    """
    record = read_record(job)
    if record is None or not record.trained or not (job.folder / "last").is_dir():
        record = _train(job, record, on_epoch)
    missing = _missing(job, record)
    if missing:
        torch.set_num_threads(job.settings.train.usable_threads)
        checkpoint = load_checkpoint(job.folder / "last")
        net, classes = load_network(checkpoint), checkpoint.state.info.class_names
        if job.device != "cpu" and torch.cuda.is_available():
            net = net.to("cuda")
        draws = job.settings.train.draws
        for test in missing:
            evaluation = evaluate(net, test.data, test.rule, seed=job.seed, draws=draws, classes=classes)
            record = _with_score(job, record, test, evaluation)
        write_json(job.folder / RECORD, record.model_dump(mode="json"))
    logger.info("%s: %s", job.name, {name: score.top1 for name, score in record.scores.items()})
    return record


def finished_record(job: Job) -> RunRecord | None:
    """Return the record of a job that is trained and evaluated on all its tests, else None."""
    record = read_record(job)
    return record if record is not None and record.trained and not _missing(job, record) else None


def _missing(job: Job, record: RunRecord) -> list[TestSet]:
    scores = record.scores
    return [test for test in job.tests if (score := scores.get(test.summary.name)) is None or score.key != test.key]


def _train(job: Job, before: RunRecord | None, on_epoch: Callable[[EpochReport], None]) -> RunRecord:
    resume, own = resume_or_clear(job.folder), job.tests[0]
    spent = before.seconds if before is not None and resume else 0.0
    record: RunRecord | None = None

    def start(_: Path, data: CachedDataset, split: Split, settings: Recipe) -> None:
        nonlocal record
        record = RunRecord(
            protocol=str(own.rule),
            seed=job.seed,
            run=job.name,
            task=own.summary.task,
            train_clips=len(split.train),
            train_groups=len({clip.group for clip in split.train}),
            recipe=job.recipe,
            settings=settings.model_dump(mode="json"),
            fingerprint=data.spec.fingerprint(),
            seconds=spent,
        )

    def store(seconds: float) -> None:
        nonlocal record
        if record is not None:
            record = record.model_copy(update={"seconds": seconds})
            write_json(job.folder / RECORD, record.model_dump(mode="json"))

    with timed(spent, store) as tick:

        def on_report(report: EpochReport) -> None:
            tick()
            on_epoch(report)

        # A resumed run does not read the file of --init again, so its sizes are given.
        sizes = [f"model.{key}={getattr(job.settings.model, key)}" for key in ("width", "depth")]
        try:
            trained = train(
                job.cache,
                dataset=own.data.info.name,
                protocol=str(own.rule),
                recipe=job.recipe,
                overrides=(*job.overrides, *sizes),
                run=job.folder,
                seed=job.seed,
                device=job.device,
                resume=resume,
                init=None if resume else job.init,
                on_start=start,
                on_epoch=on_report,
                calibrated=job.calibrated,
            )
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}. To train it again, remove {job.folder} and run the same command"
            ) from error
        assert record is not None
        record = record.model_copy(update={"trained": True, "epochs": trained.epochs})
        record = _with_score(job, record, own, trained.evaluation)
    return record


def _with_score(job: Job, record: RunRecord, test: TestSet, evaluation: Evaluation) -> RunRecord:
    metrics = evaluation.metrics
    changes: dict[str, Any] = {"scores": record.scores | {test.summary.name: Score(key=test.key, top1=metrics.top1)}}
    if test is job.tests[0]:
        changes |= {"test_clips": evaluation.n_clips, "test_groups": metrics.n_groups, "left_out": evaluation.left_out}
        changes |= {name: getattr(metrics, name) for name in ("top1", "top5", "ece", "view_top1")}
    return record.model_copy(update=changes)


def resolve(recipe: Recipe, data: CachedDataset, split: Split, init: Path | None) -> Recipe:
    """Return the recipe with the sizes that the training will choose for this split or for the checkpoint ``init``."""
    split, _ = exclude_classes(split, data.info, recipe.train.exclude_classes)
    return resolve_auto(start_from(init, recipe)[0], len(split.train))


def read_record(job: Job) -> RunRecord | None:
    """Read the record of a job. Return None if there is none, or if it was cut off: then the checkpoint counts. Raises
    CheckpointError: the file is the record of another version.
    """
    file = job.folder / RECORD
    if not file.is_file():
        return None
    data = read_file(file, limit=LIMIT, error=CheckpointError)
    try:
        parse_json(data, str(file), error=CheckpointError)
    except CheckpointError:
        return None
    return parse_model(
        RunRecord,
        data,
        f"{file} is not a result of this version of dtsf",
        error=lambda why: CheckpointError(f"{why}: remove it to evaluate the run again"),
    )


def read_json(file: Path) -> dict[str, Any]:
    """Read an object of JSON. Raises ConfigError: the file is not one."""
    data = read_file(file, limit=LIMIT, error=ConfigError)
    document = parse_json(data, str(file), error=lambda why: ConfigError(f"{why}; choose another --out"))
    if not isinstance(document, dict):
        raise ConfigError(f"{file} is not an object of JSON; choose another --out")
    return document


def write_json(file: Path, document: dict[str, Any]) -> None:
    """Write a document as JSON, atomically."""
    write_atomically(file, (json_text(document, indent=1) + "\n").encode())


@contextmanager
def timed(spent: float, store: Callable[[float], None]) -> Iterator[Callable[[], None]]:
    """Measure the time of the block and pass the total, with ``spent`` seconds of earlier starts, to ``store``. Return
    ``tick()``: call it often, so that a kill loses little.
    """
    begin, written = time.monotonic(), float("-inf")

    def tick() -> None:
        nonlocal written
        if time.monotonic() - written > TICK:
            written = time.monotonic()
            store(spent + written - begin)

    try:
        yield tick
    finally:
        store(spent + time.monotonic() - begin)


@contextmanager
def locked(out: Path, command: str) -> Iterator[None]:
    """Create the folder ``out`` and lock it for this process. Raises ConfigError: another process works in it, or it cannot be
    created.
    """
    with lock(
        out / ".lock",
        unwritable=lambda why: ConfigError(f"cannot write to the folder {out}: {why}; choose another --out"),
        busy=ConfigError(f"another dtsf {command} works in {out}: wait for it, or choose another --out"),
    ):
        yield
