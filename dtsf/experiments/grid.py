"""Run a grid of trainings under one lock. A finished job is never repeated; a killed one resumes from its last checkpoint."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash

from dtsf.cache.reader import CachedDataset, open_dataset
from dtsf.cache.schema import describe_difference
from dtsf.errors import CacheError, CheckpointError, ConfigError
from dtsf.experiments.results import RunRecord, Score, TestSummary
from dtsf.files.read import json_text, parse_json, parse_model, read_file
from dtsf.files.write import lock, write_atomically
from dtsf.training.checkpoint import load_checkpoint, load_network, resume_or_clear
from dtsf.training.evaluate import Evaluation, evaluate
from dtsf.training.loop import EpochReport
from dtsf.training.protocols import Protocol, Split, parse_protocol, split_clips
from dtsf.training.recipe import Recipe, resolve_auto
from dtsf.training.splits import compare_sides, exclude_classes, limit_training
from dtsf.training.start import start_from
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
        missing = self._without_score(record)
        if missing:
            torch.set_num_threads(self.settings.train.usable_threads)
            checkpoint = load_checkpoint(self.folder / "last")
            net, classes = load_network(checkpoint), checkpoint.state.info.class_names
            if self.device != "cpu" and torch.cuda.is_available():
                net = net.to("cuda")
            draws = self.settings.train.draws
            for test in missing:
                evaluation = evaluate(net, test.data, test.rule, seed=self.seed, draws=draws, classes=classes)
                record = self._with_score(record, test, evaluation)
            write_json(self.folder / RECORD, record.model_dump(mode="json"))
        logger.info("%s: %s", self.name, {name: score.top1 for name, score in record.scores.items()})
        return record

    def finished_record(self) -> RunRecord | None:
        """Return the record of a job that is trained and evaluated on all its tests, else None."""
        record = self.read_record()
        return record if record is not None and record.trained and not self._without_score(record) else None

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

    def _without_score(self, record: RunRecord) -> list[TestSet]:
        keys = {name: score.key for name, score in record.scores.items()}
        return [test for test in self.tests if keys.get(test.summary.name) != test.key]

    def _with_score(self, record: RunRecord, test: TestSet, evaluation: Evaluation) -> RunRecord:
        metrics, name = evaluation.metrics, test.summary.name
        changes: dict[str, Any] = {"scores": record.scores | {name: Score(key=test.key, top1=metrics.top1)}}
        if test is self.tests[0]:
            counts = {"test_clips": evaluation.n_clips, "test_groups": metrics.n_groups}
            changes |= counts | {"left_out": evaluation.left_out}
            changes |= {name: getattr(metrics, name) for name in ("top1", "top5", "ece", "view_top1")}
        return record.model_copy(update=changes)

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

        def start(_run: Path, _data: CachedDataset, split: Split, _recipe: Recipe) -> None:
            nonlocal record
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
            try:
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
                    on_epoch=on_report,
                    calibrated=self.calibrated,
                    allow_leak=self.allow_leak,
                    workers=self.workers,
                )
            except CheckpointError as error:
                step = f"To train it again, remove {self.folder} and run the same command"
                raise CheckpointError(f"{error}. {step}") from error
            record = record.model_copy(update={"trained": True, "epochs": trained.epochs})
            record = self._with_score(record, own, trained.evaluation)
        return record


def open_tests(
    cache: Path, data: CachedDataset, rule: Protocol, split: Split, others: Sequence[str] = ()
) -> tuple[TestSet, ...]:
    """Return a training's own test, then others (``NAME`` or ``NAME@PROTOCOL``). Raises CheckpointError: other classes.
    CacheError: no such dataset, or other settings. ConfigError: a test is named twice.
    """
    chosen = {data.info.name: (data, rule)}
    for text in others:
        name, at, protocol = text.partition("@")
        other = open_dataset(cache, name)
        if other.info.class_names != data.info.class_names:
            raise CheckpointError(
                f"--test {text}: {name} has other classes ({len(other.info.class_names)}) than {data.info.name} "
                f"({len(data.info.class_names)})"
            )
        if other.spec.fingerprint() != data.spec.fingerprint():
            raise CacheError(
                f"--test {text}: {other.store} was made with other settings than {data.store} "
                f"({describe_difference(other.spec, data.spec)}): preprocess it with the same settings"
            )
        if text in chosen:
            raise ConfigError(f"--test {text}: named twice; the test of the training's own protocol is always included")
        chosen[text] = other, parse_protocol(protocol if at else "all", other.info.kind)
    subjects = {clip.subject for clip in split.train if clip.subject}
    tests = []
    for name, (other, own) in chosen.items():
        parts = split_clips(other.clips, own, other.info.kind, other.info.view_names)
        same_dataset = other.info.name == data.info.name
        task = parts.task
        leak, _ = compare_sides(data, split.train, other, parts.test, data.info.class_names, own)
        note = leak.partition(":")[0]
        if not same_dataset or own != rule:
            task = (
                f"all clips of {other.info.name}" if own.name == "all" else f"test clips of {other.info.name} by {own}"
            )
            known = sum(clip.subject in subjects for clip in parts.test)
            if known and not note:
                note = f"{known} of its {len(parts.test)} clips are of subjects (by number) that were trained on"
        ids = sorted(clip.id for clip in parts.test)
        summary = TestSummary(name=name, task=task, n_groups=len({clip.group for clip in parts.test}), note=note)
        key = hash_of([other.spec.fingerprint(), other.info.name, str(own), ids])
        tests.append(TestSet(summary, other, own, key))
    return tuple(tests)


def hash_of(document: object) -> str:
    """Return a hash of a JSON document; the same on every machine."""
    return xxhash.xxh3_64_hexdigest(json.dumps(document, sort_keys=True).encode())


def resolve(recipe: Recipe, data: CachedDataset, split: Split, init: Path | None) -> Recipe:
    """Return the recipe with the sizes that the training will choose for this split, or for the run or checkpoint ``init``."""
    split, _ = exclude_classes(split, data.info, recipe.train.exclude_classes)
    n_clips = len(limit_training(split, recipe.train).train)
    return resolve_auto(start_from(init, recipe, data.spec)[0], n_clips)


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


def locked(out: Path, command: str) -> AbstractContextManager[None]:
    """Create the folder ``out`` and lock it. Raises ConfigError: another process works in it, or it cannot be created."""
    return lock(
        out / ".lock",
        unwritable=lambda why: ConfigError(f"cannot write to the folder {out}: {why}; choose another --out"),
        busy=ConfigError(f"another dtsf {command} works in {out}: wait for it, or choose another --out"),
    )
