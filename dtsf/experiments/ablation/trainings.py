"""Where the trainings of an ablation lie, and how far each is."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel

from dtsf.errors import CheckpointError, ConfigError
from dtsf.experiments.ablation.judges import hash_of
from dtsf.files.read import parse_model, read_file
from dtsf.files.write import lock, write_atomically
from dtsf.training.train_state import versions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from dtsf.cache.reader import CachedDataset
    from dtsf.experiments.ablation.judges import Test
    from dtsf.experiments.ablation.tables import Variant
    from dtsf.training.protocols import Protocol, Split


class Judged(BaseModel):
    """One judgement of a training."""

    key: str
    """Of the test, as it was then."""
    top1: float


class Record(BaseModel):
    """What is kept beside a training's folder: written after every epoch and every judgement."""

    seconds: float = 0.0
    trained: bool = False
    judged: dict[str, Judged] = {}


@dataclass(frozen=True)
class Job:
    """One training: a variant and a seed."""

    variant: Variant
    seed: int
    folder: Path

    @property
    def file(self) -> Path:
        """Its record, beside its folder."""
        return self.folder.with_name(self.folder.name + ".json")


def folder_name(
    variant: Variant, seed: int, data: CachedDataset, rule: Protocol, split: Split, init: Path | None
) -> str:
    """Name of a training's folder: what a reader calls it, and a hash of everything that decides its numbers."""
    if init is not None and not init.is_file():
        raise CheckpointError(f"--init {init}: no such file")
    identity = [
        variant.recipe.model_dump(mode="json"),
        data.info.model_dump(mode="json"),
        data.spec.fingerprint(),
        str(rule),
        sorted(clip.id for clip in split.train),
        None if init is None else [init.stat().st_size, init.stat().st_mtime_ns],
        versions()["dtsf"],
    ]
    plain = re.sub(r"[^a-z0-9]+", "-", variant.name.lower()).strip("-") or "row"
    return f"{plain[:40]}-{hash_of(identity)}-seed{seed}"


def existing(job: Job) -> Job:
    """The same training under another row's name, where another table made it."""
    code = "-".join(job.folder.name.split("-")[-2:])
    others = sorted(path for path in job.folder.parent.glob(f"*-{code}") if path.is_dir())
    return job if job.folder.is_dir() or not others else Job(job.variant, job.seed, others[0])


def read(job: Job) -> Record:
    """How far a training is."""
    try:
        data = read_file(job.file, limit=1 << 20, error=CheckpointError)
        return parse_model(Record, data, str(job.file), error=CheckpointError)
    except CheckpointError:
        # Not there, or not ours any more: the training's own checkpoint says how far it is.
        return Record()


def write(job: Job, record: Record) -> None:
    """Keep how far a training is."""
    write_atomically(job.file, record.model_dump_json().encode())


def is_finished(job: Job, tests: Sequence[Test]) -> bool:
    """Whether it is trained, and judged on all tests."""
    record = read(existing(job))
    return record.trained and all(value_of(record, test) is not None for test in tests)


def value_of(record: Record, test: Test) -> float | None:
    """Its accuracy on a test as the test is now, if it was judged on that."""
    judged = record.judged.get(test.shown.name)
    return judged.top1 if judged is not None and judged.key == test.key else None


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Only one at a time: two would train the same and write over each other."""
    with lock(
        out / "trainings" / ".lock",
        unwritable=lambda why: ConfigError(f"cannot make the folder {out}: {why}"),
        busy=ConfigError(f"another dtsf ablate works in {out}: wait for it, or choose another --out"),
    ):
        yield
