"""One training of an experiment and the tests that evaluate it. A finished job is never repeated; a killed one resumes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dtsf.cache.reader import CachedDataset
from dtsf.errors import CacheError, CheckpointError, ConfigError
from dtsf.experiments.results import RunRecord, Score, TestSummary
from dtsf.files.read import json_text, parse_json, parse_model, read_file
from dtsf.files.write import write_atomically
from dtsf.model.network import DTSFNet
from dtsf.training.answers import Answers, ask, read_answers, write_answers
from dtsf.training.checkpoint import load_checkpoint, load_network, resume_or_clear
from dtsf.training.data import load_groups
from dtsf.training.loop import EpochReport
from dtsf.training.protocols import Protocol, Split, split_clips
from dtsf.training.recipe import Recipe
from dtsf.training.splits import limit_views, split_by_known_classes
from dtsf.training.train import train

logger = logging.getLogger(__name__)

RECORD = "result.json"  # in the run folder of a job: a RunRecord
LIMIT = 1 << 28  # maximum size of a stored document, in bytes
TICK = 2.0  # seconds between two writes of the elapsed time: a killed process loses at most this


@dataclass(frozen=True)
class TestSet:
    """Test clips of a protocol in one dataset of the cache. ``key``: their hash. A score with another key is not used."""

    summary: TestSummary
    data: CachedDataset
    rule: Protocol
    key: str


@dataclass(frozen=True)
class Job:
    """One training, and the tests that evaluate it; the first is that of its own protocol. ``settings``: see :func:`resolve`."""

    out: Path
    name: str  # of the run folder in out
    cache: Path
    recipe: str
    overrides: tuple[str, ...]
    settings: Recipe
    seed: int
    tests: tuple[TestSet, ...]
    device: str = "auto"
    init: Path | None = None
    calibrated: bool = True
    allow_leak: bool = False
    workers: int | None = None
    label: str = ""  # of a variant, for people

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.out / self.name

    @property
    def title(self) -> str:
        """Its name for people."""
        return f"{self.label or self.tests[0].rule}, seed {self.seed}"

    def run(self, on_epoch: Callable[[int, int, str], None]) -> RunRecord:
        """Train if that is not done, and evaluate tests without a score. Raises CheckpointError: a damaged checkpoint or record."""
        record = self.read_record()
        if record is None or not record.trained or not (self.folder / "last").is_dir():
            record = self._train(record, on_epoch)
        missing = self._without_answers(record)
        if missing:
            torch.set_num_threads(self.settings.train.usable_threads)
            with self._mendable():
                checkpoint = load_checkpoint(self.folder / "last")
            net, classes = load_network(checkpoint), checkpoint.state.info.class_names
            if self.device != "cpu" and torch.cuda.is_available():
                net = net.to("cuda")
            for test in missing:
                answers = self._ask(net, test, classes)
                write_answers(self._answers_file(test), answers)
                score = Score(key=test.key, top1=answers.complete().top1())
                scores = record.scores | {test.summary.name: score}
                record = record.model_copy(update={"scores": scores})
            write_json(self.folder / RECORD, record.model_dump(mode="json"))
        logger.info("%s: %s", self.name, {name: score.top1 for name, score in record.scores.items()})
        return record

    def finished_record(self) -> RunRecord | None:
        """Return the record of a job that is trained and evaluated on all its tests, else None."""
        record = self.read_record()
        return record if record is not None and record.trained and not self._without_answers(record) else None

    def read_record(self) -> RunRecord | None:
        """Read the record; None if it is absent or was cut off. Raises CheckpointError: a record of another version."""
        file = self.folder / RECORD
        if not file.is_file():
            return None
        data = read_file(file, limit=LIMIT, error=CheckpointError)
        try:
            parse_json(data, str(file), error=CheckpointError)
        except CheckpointError:
            return None
        name = f"{file} is not a result of this version of dtsf"
        step = "remove it to evaluate the run again"
        return parse_model(RunRecord, data, name, error=lambda why: CheckpointError(f"{why}: {step}"))

    def answers(self, test: str) -> Answers:
        """Read the answers to a test, by its name. Raises CheckpointError: the file is damaged."""
        file = self._answers_file(next(one for one in self.tests if one.summary.name == test))
        return read_answers(file, f"remove it and run the same command again: {self.folder} answers again")

    @contextmanager
    def _mendable(self) -> Iterator[None]:
        """Name the folder to remove in an error of its checkpoint that the same command meets again."""
        try:
            yield
        except CheckpointError as error:
            if isinstance(error.__cause__, OSError):  # the disk is full, or refuses: its message says what to do
                raise
            step = f"To train it again, remove {self.folder} and run the same command"
            raise CheckpointError(f"{error}. {step}") from error

    def _answers_file(self, test: TestSet) -> Path:
        return self.folder / f"answers-{test.key}.safetensors"

    def _without_answers(self, record: RunRecord) -> list[TestSet]:
        keys = {name: score.key for name, score in record.scores.items()}
        return [
            test
            for test in self.tests
            if keys.get(test.summary.name) != test.key or not self._answers_file(test).is_file()
        ]

    def _ask(self, net: DTSFNet, test: TestSet, classes: tuple[str, ...]) -> Answers:
        """Ask about the test groups with all their views, and with each view alone."""
        info = test.data.info
        clips = split_clips(test.data.clips, test.rule, info.kind, info.view_names).test
        clips, _ = split_by_known_classes(clips, info.class_names, classes)
        if not clips:
            raise ConfigError(f"{info.name} has no test clip of a class that the network knows by {test.rule}")
        clips = limit_views(clips, self.settings.train.max_views)
        subjects = {clip.group: clip.subject or "" for clip in clips}
        each = [(view,) for view in sorted({clip.view for clip in clips})]
        groups, draws = load_groups(test.data, clips), self.settings.train.draws
        return ask(net, groups, subjects, classes, info.view_names, given=each, draws=draws)

    def _train(self, before: RunRecord | None, on_epoch: Callable[[int, int, str], None]) -> RunRecord:
        resume, own = resume_or_clear(self.folder), self.tests[0]
        spent = before.seconds if before is not None and resume else 0.0
        record = RunRecord(
            protocol=str(own.rule),
            seed=self.seed,
            run=self.name,
            task=own.summary.task,
            train_clips=0,
            train_groups=0,
            recipe=self.recipe,
            settings=self.settings.model_dump(mode="json"),
            fingerprint=own.data.spec.fingerprint(),
            seconds=spent,
        )

        def start(_run: Path, data: CachedDataset, split: Split, _recipe: Recipe) -> None:
            nonlocal record
            if data.catalog_hash != own.data.catalog_hash:
                raise CacheError(
                    f"the clips or labels of {data.store} have changed since this command began: run the same command again"
                )
            groups = {clip.group for clip in split.train}
            record = record.model_copy(update={"train_clips": len(split.train), "train_groups": len(groups)})

        def store(seconds: float) -> None:
            nonlocal record
            record = record.model_copy(update={"seconds": seconds})
            if record.train_clips:  # else the training has not started, and its folder must stay empty
                write_json(self.folder / RECORD, record.model_dump(mode="json"))

        with timed(spent, store) as tick:

            def on_report(report: EpochReport) -> None:
                tick()
                on_epoch(report.done, report.total, f"loss {report.loss:.3f}  accuracy {report.accuracy:.2f}")

            # A resumed run does not read the file of --init again, so its sizes are given.
            sizes = [f"model.{key}={getattr(self.settings.model, key)}" for key in ("width", "depth")]
            with self._mendable():
                trained = train(
                    self.cache,
                    dataset=own.data.info.name,
                    protocol=str(own.rule),
                    recipe=self.recipe,
                    overrides=(*self.overrides, *sizes),
                    run=self.folder,
                    seed=self.seed,
                    device=self.device,
                    resume=resume,
                    init=None if resume else self.init,
                    on_start=start,
                    on_begin=lambda text: on_epoch(0, 1, text),
                    on_epoch=on_report,
                    calibrated=self.calibrated,
                    allow_leak=self.allow_leak,
                    workers=self.workers,
                )
            done, metrics = trained.evaluation, trained.evaluation.metrics
            changes: dict[str, Any] = {"trained": True, "epochs": trained.epochs, "left_out": done.left_out}
            changes |= {"test_clips": done.n_clips, "test_groups": metrics.n_groups}
            changes |= {name: getattr(metrics, name) for name in ("top1", "top5", "view_top1")}
            changes["ece"] = metrics.ece if self.calibrated else None
            record = record.model_copy(update=changes)
        return record


def write_json(file: Path, document: dict[str, Any]) -> None:
    """Write a document as JSON, atomically."""
    write_atomically(file, (json_text(document, indent=1) + "\n").encode())


@contextmanager
def timed(spent: float, store: Callable[[float], None]) -> Iterator[Callable[[], None]]:
    """Pass the time of the block and ``spent`` to ``store``. Yields ``tick()``: call it often, so that a kill loses little."""
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
