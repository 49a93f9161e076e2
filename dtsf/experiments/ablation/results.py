"""Results of an ablation: numbers by variant, test and seed."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


class AblationTest(BaseModel):
    """One set of performances that all trainings are judged on."""

    model_config = ConfigDict(frozen=True)

    name: str
    task: str
    """What it measures, in words."""
    n_groups: int
    note: str = ""
    """What a reader must know: clips or persons in it that were trained on."""


class AblationRow(BaseModel):
    """One variant and its numbers so far."""

    model_config = ConfigDict(frozen=True)

    variant: str
    source: str
    differs: tuple[str, ...]
    """Settings that differ from the first row's, with the first row's in brackets."""
    same_as: str | None
    overrides: tuple[str, ...]
    top1: dict[str, dict[int, float]]
    """Test -> seed -> accuracy; only what is finished."""
    seconds: dict[int, float]
    """Seed -> time of the training, without judging it."""


class Ablation(BaseModel):
    """A table, finished or not."""

    model_config = ConfigDict(frozen=True)

    table: str
    title: str
    cache: str
    dataset: str
    protocol: str
    recipe: str
    overrides: tuple[str, ...]
    """Changes that all rows share."""
    init: str | None
    device: str
    seeds: tuple[int, ...]
    tests: tuple[AblationTest, ...]
    gap: tuple[str, str] | None
    """Two tests whose difference is shown."""
    rows: tuple[AblationRow, ...]
    done: int
    """Trainings finished and judged, of ``total``; rows with the same settings share theirs."""
    total: int
    reused: int
    """Of those, how many were there before."""
    fingerprint: str
    versions: dict[str, str]

    def columns(self) -> list[tuple[str, str, list[dict[int, float]]]]:
        """Every test and then the gap: its name, what it measures, and for each row seed -> number."""
        found = [
            (
                test.name,
                f"top-1, {test.task}, {test.n_groups} groups",
                [row.top1.get(test.name, {}) for row in self.rows],
            )
            for test in self.tests
        ]
        if self.gap is not None:
            more, less = self.gap
            gaps = [
                {seed: value - row.top1[less][seed] for seed, value in row.top1.get(more, {}).items()}
                for row in self.rows
            ]
            found.append((f"{more} - {less}", "difference of top-1", gaps))
        return found

    def cells(self, by_seed: Mapping[int, float]) -> list[str]:
        """Mean, spread and the number of each seed, as a table shows them."""
        both = mean_and_spread(by_seed.values())
        numbers = [f"{by_seed[seed]:.3f}" if seed in by_seed else "-" for seed in self.seeds]
        return [*([f"{number:.3f}" for number in both] if both else ["-", "-"]), *numbers]


def mean_and_spread(values: Collection[float]) -> tuple[float, float] | None:
    """Mean, and largest minus smallest; None of nothing."""
    return (statistics.fmean(values), max(values) - min(values)) if values else None
