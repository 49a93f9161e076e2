"""Records of a reproduction: one a run, and the whole with its data and settings."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from dtsf.cache.records import Frozen
from dtsf.pipeline.datasets.nucla_check import NuclaCheck  # noqa: TC001  pydantic reads it

if TYPE_CHECKING:
    from collections.abc import Sequence

PAPER_TOP1 = 0.970
"""N-UCLA in the abstract of the paper and in its authors' README. Neither says for which protocol."""


class RunRecord(Frozen):
    """One finished training: ``result.json`` in its folder."""

    protocol: str
    seed: int
    run: str
    """Folder, relative to the reproduction's."""
    task: str
    """What the test measures, in words."""
    train_clips: int
    train_groups: int
    test_clips: int
    test_groups: int
    top1: float
    """A fraction, as ``top5`` and ``ece``."""
    top5: float
    ece: float
    view_top1: tuple[float | None, ...]
    left_out: dict[str, int]
    """Clips in no number, by reason."""
    recipe: str
    """Its name; ``custom`` for a file or a recipe that has changed since."""
    settings: dict[str, Any]
    """The recipe with all its values."""
    epochs: int
    fingerprint: str
    """Of the cache."""
    seconds: float
    """Training and judgement, over all starts."""


class Row(Frozen):
    """One protocol over its seeds."""

    protocol: str
    task: str
    runs: int
    seeds: tuple[int, ...]
    top1: tuple[float, ...]
    """By seed."""
    mean: float
    spread: float | None
    """Standard deviation over the seeds (n - 1); None for one seed."""
    train: str
    """``328 clips, 111 groups``."""
    test: str
    left_out: dict[str, int]
    recipe: str
    seconds: float
    """Of one run, on average."""


class Stage(Frozen):
    """Seconds of one stage, summed over all starts."""

    name: str
    seconds: float
    what: str


class Reproduction(Frozen):
    """Everything: ``results.json``. Fractions, not percents."""

    schema_version: int = 1
    data: NuclaCheck
    comparable: bool
    """Whether the data are N-UCLA, so that the paper's number may stand beside ours."""
    paper_top1: float = PAPER_TOP1
    planned: int
    """Planned runs; ``runs`` holds the finished ones."""
    bad_clips: dict[str, int]
    """Clips that could not be decoded, by verdict."""
    too_many_bad: str | None
    """Message of stage 1 if too many clips were unusable."""
    notes: tuple[str, ...]
    """Protocols that were left out or changed, and why."""
    rows: tuple[Row, ...]
    runs: tuple[RunRecord, ...]
    stages: tuple[Stage, ...]
    versions: dict[str, str]
    command: str
    """The command that repeats it."""


def rows_of(runs: Sequence[RunRecord], rotations: Sequence[str] = ()) -> tuple[Row, ...]:
    """Protocols in the order of the runs, and one row more for the mean of ``rotations``, seed by seed."""
    protocols = list(dict.fromkeys(run.protocol for run in runs))
    rows = [_row(protocol, [run for run in runs if run.protocol == protocol]) for protocol in protocols]
    parts = [row for row in rows if row.protocol in rotations]
    seeds = sorted(set(parts[0].seeds).intersection(*(row.seeds for row in parts))) if parts else []
    if len(rotations) > 1 and len(parts) == len(rotations) and seeds:
        top1 = tuple(statistics.fmean(row.top1[row.seeds.index(seed)] for row in parts) for seed in seeds)
        mean = Row(
            protocol=f"mean of {len(parts)} rotations",
            task="the rows above, averaged seed by seed",
            runs=len(seeds) * len(parts),
            seeds=tuple(seeds),
            top1=top1,
            mean=statistics.fmean(top1),
            spread=statistics.stdev(top1) if len(top1) > 1 else None,
            train="",
            test="",
            left_out={},
            recipe="",
            seconds=statistics.fmean(row.seconds for row in parts),
        )
        rows.insert(rows.index(parts[-1]) + 1, mean)
    return tuple(rows)


def _row(protocol: str, runs: Sequence[RunRecord]) -> Row:
    top1 = tuple(run.top1 for run in runs)
    first = runs[0]
    return Row(
        protocol=protocol,
        task=first.task,
        runs=len(runs),
        seeds=tuple(run.seed for run in runs),
        top1=top1,
        mean=statistics.fmean(top1),
        spread=statistics.stdev(top1) if len(top1) > 1 else None,
        train=f"{first.train_clips} clips, {first.train_groups} groups",
        test=f"{first.test_clips} clips, {first.test_groups} groups",
        left_out=first.left_out,
        recipe=", ".join(dict.fromkeys(run.recipe for run in runs)),
        seconds=statistics.fmean(run.seconds for run in runs),
    )
