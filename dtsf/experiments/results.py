"""Results of experiments: ablations and reproductions. Accuracies are fractions; seconds are summed over all starts."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dtsf.names import counted
from dtsf.pipeline.datasets.nucla_check import NuclaCheck
from dtsf.settings import Frozen
from dtsf.training.scores import Comparison, Difference, Summary


class TestSummary(Frozen):
    """A test of an ablation: the groups that every training is evaluated on."""

    name: str
    task: str
    n_groups: int
    note: str = ""  # a warning: clips or subjects of the training are in the test


class AblationRow(Frozen):
    """One variant and its numbers so far."""

    variant: str
    source: str
    differs: tuple[str, ...]  # settings that differ from the first row, with its value in brackets
    same_as: str | None  # an earlier row with the same settings: one training serves both
    overrides: tuple[str, ...]  # changes of the recipe: first those of all rows, then those of this row
    top1: dict[
        str, dict[int, float]
    ] = {}  # test -> seed -> accuracy of the pooled answers, for seeds with all their folds
    scores: dict[str, Summary] = {}  # test -> scores of these answers, with intervals by bootstrap over people
    compared: dict[str, Comparison] = {}  # test -> this row minus the first, in pairs
    seconds: dict[int, float] = {}  # of all folds


class Experiment(Frozen):
    """Trainings of an experiment: of what, with which settings, and how many are done."""

    cache: str
    dataset: str
    recipe: str
    overrides: tuple[str, ...]
    init: str | None
    device: str
    seeds: tuple[int, ...]
    done: int  # number of finished trainings
    total: int  # rows with the same settings share a training
    reused: int
    fingerprint: str
    versions: dict[str, str]


class Ablation(Experiment):
    """A table of variants, finished or not."""

    table: str
    title: str
    protocol: str
    tests: tuple[TestSummary, ...]
    gap: tuple[str, str] | None
    rows: tuple[AblationRow, ...]

    def columns(self) -> list[tuple[str, str, list[tuple[AblationRow, dict[int, float]]]]]:
        """Return every test, and then the gap: name, task, and the rows, each with seed -> number."""
        found = []
        for test in self.tests:
            task = f"top-1, {test.task}, {test.n_groups} groups"
            found.append((test.name, task, [(row, row.top1[test.name]) for row in self.rows]))
        if self.gap is not None:
            more, less = self.gap
            gaps = [{seed: top1 - row.top1[less][seed] for seed, top1 in row.top1[more].items()} for row in self.rows]
            found.append((f"{more} - {less}", "difference of top-1", list(zip(self.rows, gaps, strict=True))))
        return found

    def cells(self, by_seed: Mapping[int, float], digits: int = 3, empty: str = "-") -> list[str]:
        """Return mean, spread and the number of each seed as text."""
        numbers = [*mean_and_spread(by_seed.values()), *(by_seed.get(seed) for seed in self.seeds)]
        return [empty if number is None else f"{number:.{digits}f}" for number in numbers]

    def pairs(self, row: AblationRow, test: str, empty: str = "-") -> list[str]:
        """Return as text: interval of top-1, difference to the first row with its interval, and probability to be better."""
        found, versus = row.scores.get(test), row.compared.get(test)
        interval = interval_text(found.intervals["top1"]) if found else ""
        difference = versus.scores["top1"] if versus else None
        better = difference.better if difference else None
        return [
            interval or empty,
            difference_text(difference) if difference else empty,
            empty if better is None else f"{better:.2f}",
        ]

    def document(self) -> dict[str, Any]:
        """Return the table for programs: for each row and test the mean, the spread and each seed."""
        apart = {"top1", "scores", "compared"}
        rows = {row.variant: row.model_dump(mode="json", exclude=apart) | {"tests": {}} for row in self.rows}
        for name, _, numbers in self.columns():
            for row, by_seed in numbers:
                mean, spread = mean_and_spread(by_seed.values())
                seeds = {str(seed): number for seed, number in by_seed.items()}
                own: dict[str, Any] = {"mean": mean, "spread": spread, "seeds": seeds}
                for key, found in (("scores", row.scores.get(name)), ("compared", row.compared.get(name))):
                    own |= {key: found.model_dump(mode="json")} if found is not None else {}
                rows[row.variant]["tests"][name] = own
        return self.model_dump(mode="json", exclude={"rows"}) | {"rows": list(rows.values())}


def interval_text(interval: tuple[float, float] | None) -> str:
    """Return ``0.81 to 0.94``; empty without an interval."""
    return f"{interval[0]:.3f} to {interval[1]:.3f}" if interval is not None else ""


def difference_text(difference: Difference) -> str:
    """Return ``+0.021 (-0.010 to +0.055)``."""
    interval = difference.interval
    return f"{difference.difference:+.3f}" + (f" ({interval[0]:+.3f} to {interval[1]:+.3f})" if interval else "")


def mean_and_spread(values: Collection[float]) -> tuple[float | None, float | None]:
    """Return the mean, and the largest value minus the smallest; None if there are no values."""
    return (statistics.fmean(values), max(values) - min(values)) if values else (None, None)


class Score(Frozen):
    """Accuracy on one test. ``key``: hash of the clips of the test. A score of other clips is not used."""

    key: str
    top1: float


class RunRecord(Frozen):
    """One training: ``result.json`` in its folder. Until ``trained`` is True, the fields below it are not valid."""

    protocol: str
    seed: int
    run: str
    task: str
    train_clips: int
    train_groups: int
    recipe: str
    settings: dict[str, Any]
    fingerprint: str
    seconds: float  # time of the training and its test
    trained: bool = False
    epochs: int = 0
    test_clips: int = 0
    test_groups: int = 0
    top1: float = 0.0
    top5: float = 0.0
    ece: float | None = None  # of a calibrated training
    view_top1: tuple[float | None, ...] = ()
    left_out: dict[str, int] = {}  # clips that are in no number, by reason
    scores: dict[str, Score] = {}  # accuracy on all tests, by the name of the test


class CrossvalFold(Frozen):
    """One training of a cross-validation, and the scores of its own answers."""

    left_out: str
    protocol: str
    seed: int
    run: str  # run folder in OUT
    train_groups: int
    test_groups: int
    seconds: float
    top1: float
    log_loss: float
    brier: float
    ece: float


class CurvePoint(Frozen):
    """Scores after trainings on so many people, takes or cameras. ``step``: compared with the point before."""

    kind: str
    number: int
    scores: Summary
    step: Comparison | None


def amount(number: int, kind: str) -> str:
    """Return a number of people, takes or cameras in words."""
    return counted(number, {"people": "person"}.get(kind, kind[:-1]), kind)


class Crossval(Experiment):
    """Result of a cross-validation, finished or not: ``crossval.json``. Scores count only seeds with all their folds."""

    by: str  # the folds in words
    folds_by: str  # the folds as in --folds
    class_names: tuple[str, ...]
    tests: dict[str, Summary]  # the first is that of the dataset itself
    notes: tuple[str, ...]
    people: dict[str, dict[str, float | None]]  # scores of each person
    views: dict[str, dict[str, float | None]]  # scores of each camera alone
    folds: tuple[CrossvalFold, ...]
    curve: tuple[CurvePoint, ...]
    compared: dict[str, dict[str, Comparison]]  # folder of another result -> test -> this one minus the other
    key: str  # hash of clips and folds: results with the same key can be compared
    settings: str  # hash of the recipe

    def document(self) -> dict[str, Any]:
        """Return the result for programs: the scores of the dataset itself, then everything."""
        own = self.tests.get(self.dataset)
        empty: dict[str, Any] = dict.fromkeys(("top1", "log_loss", "brier", "ece"))
        return (own.model_dump(mode="json") if own is not None else empty) | self.model_dump(mode="json")


class ProtocolRow(Frozen):
    """One protocol over its seeds."""

    protocol: str
    task: str
    runs: int
    seeds: tuple[int, ...]
    top1: tuple[float, ...]
    mean: float
    spread: float | None  # standard deviation over the seeds (n - 1); None for one seed
    train: str
    test: str
    left_out: dict[str, int]
    recipe: str
    seconds: float


class Stage(Frozen):
    """Time of one stage."""

    name: str
    seconds: float
    what: str


class Reproduction(Frozen):
    """A whole reproduction: ``results.json``."""

    schema_version: int = 1
    data: NuclaCheck
    comparable: bool  # the data are N-UCLA, so that the number of the paper is comparable
    paper_top1: float = 0.970  # from the abstract of the paper and the README of its authors, which name no protocol
    planned: int  # number of planned runs; ``runs`` has the finished ones
    bad_clips: dict[str, int]  # number of clips that could not be decoded, by status
    too_many_bad: str | None
    notes: tuple[str, ...]  # protocols that were left out or changed, and why
    rows: tuple[ProtocolRow, ...]
    runs: tuple[RunRecord, ...]
    stages: tuple[Stage, ...]
    versions: dict[str, str]
    command: str


def rows_of(runs: Sequence[RunRecord], rotations: Sequence[str] = ()) -> tuple[ProtocolRow, ...]:
    """Return one row for each protocol, and a row for the mean of the protocols ``rotations``, averaged seed by seed."""
    rows = []
    for protocol in dict.fromkeys(run.protocol for run in runs):
        own = [run for run in runs if run.protocol == protocol]
        recipes = ", ".join(dict.fromkeys(run.recipe for run in own))
        rows.append(_row(own, own[0].task, {run.seed: run.top1 for run in own}, recipes))
    parts = [row for row in rows if row.protocol in rotations]
    seeds = sorted(set(parts[0].seeds).intersection(*(row.seeds for row in parts))) if parts else []
    if len(rotations) > 1 and len(parts) == len(rotations) and seeds:
        own = [run for run in runs if run.protocol in rotations and run.seed in seeds]
        top1 = {seed: statistics.fmean(run.top1 for run in own if run.seed == seed) for seed in seeds}
        mean = _row(own, "the rows above, averaged seed by seed", top1, "")
        changes = {"protocol": f"mean of {len(parts)} rotations", "train": "", "test": "", "left_out": {}}
        rows.insert(rows.index(parts[-1]) + 1, mean.model_copy(update=changes))
    return tuple(rows)


def _row(runs: Sequence[RunRecord], task: str, by_seed: Mapping[int, float], recipe: str) -> ProtocolRow:
    first, top1 = runs[0], tuple(by_seed.values())
    return ProtocolRow(
        protocol=first.protocol,
        task=task,
        runs=len(runs),
        seeds=tuple(by_seed),
        top1=top1,
        mean=statistics.fmean(top1),
        spread=statistics.stdev(top1) if len(top1) > 1 else None,
        train=f"{first.train_clips} clips, {first.train_groups} groups",
        test=f"{first.test_clips} clips, {first.test_groups} groups",
        left_out=first.left_out,
        recipe=recipe,
        seconds=statistics.fmean(run.seconds for run in runs),
    )
