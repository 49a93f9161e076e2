"""Scores of held-out answers: top-1, log loss, Brier score and calibration error, with intervals by bootstrap over people.

People, not performances, are drawn: the performances of one person are alike. Two results are compared in pairs: the same drawn
people for both. Letters: A drawings of people, E bins, G groups, K classes, P people, R rows of answers, S seeds, X sums.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dtsf.errors import ConfigError
from dtsf.names import by_number, counted, persons
from dtsf.training.answers import Answers
from dtsf.training.metrics import BINS, Record, auroc, bin_of
from dtsf.training.splits import join_people

METRICS = {"top1": 1, "log_loss": -1, "brier": -1, "ece": -1}
"""Scores, with 1 where more is better and -1 where less is better."""
DRAWINGS, CHUNK = 2000, 100
LEVEL = 0.95
"""Share of the drawings inside an interval."""
LEAST_PEOPLE, FEW_PEOPLE = 5, 10
"""Fewer people than the first have no interval; fewer than the second have one with a warning."""

Numbers = dict[str, float | None]
Interval = tuple[float, float] | None


class Difference(Record):
    """One result minus another in one score. ``better``: share of the drawings in which it is better; equal ones count half."""

    difference: float
    interval: Interval
    better: float | None


class Comparison(Record):
    """One result minus another for the same rows, in pairs. ``won``: rows that only the first answers correctly."""

    scores: dict[str, Difference]
    won: float
    lost: float


class Summary(Record):
    """Scores of all answers to a test, the means over the seeds, and on how many people they rest."""

    top1: float
    log_loss: float
    brier: float
    ece: float
    auroc_u: float | None  # AUROC of the uncertainty for errors
    intervals: dict[str, Interval]
    spread: dict[str, float]  # largest minus smallest of the seeds; empty for one seed
    groups: int
    people: int
    unit: str
    doubt: str


@dataclass(frozen=True)
class Sums:
    """Sums over the rows of each person: rows, right answers, log loss, Brier score; then rows, right answers and probability by
    bin. ``people``: names. ``unit``: ``people``, or ``performances`` if a group names no subject.
    """

    unit: str
    people: tuple[str, ...]
    sums_SPX: Tensor

    def scores(self, weight_AP: Tensor | None = None) -> dict[str, Tensor]:
        """Return each score (A,), the mean over the seeds, with people counted ``weight_AP`` times; not finite without a row."""
        if weight_AP is None:
            weight_AP = torch.ones(1, len(self.people), dtype=torch.float64)
        sums_SAX = weight_AP.to(self.sums_SPX) @ self.sums_SPX
        n_SA, right_SA, log_loss_SA, brier_SA = sums_SAX[..., :4].unbind(-1)
        _, right_SAE, p_SAE = sums_SAX[..., 4:].unflatten(-1, (3, BINS)).unbind(-2)
        values = (right_SA, log_loss_SA, brier_SA, (right_SAE - p_SAE).abs().sum(-1))
        return {name: (value_SA / n_SA).mean(0) for name, value_SA in zip(METRICS, values, strict=True)}

    def numbers(self) -> Numbers:
        """Return the scores of all people together."""
        return {name: _number(x_A[0]) for name, x_A in self.scores().items()}

    def each(self) -> dict[str, Numbers]:
        """Return the scores and the number of groups of each person."""
        scores = self.scores(torch.eye(len(self.people), dtype=torch.float64))
        n_P = self.sums_SPX[0, :, 0].tolist()
        return {
            person: {"groups": int(n_P[p])} | {name: _number(x_P[p]) for name, x_P in scores.items()}
            for p, person in enumerate(self.people)
        }

    def intervals(self) -> dict[str, Interval]:
        """Return the interval of each score; None for too few people."""
        if len(self.people) < LEAST_PEOPLE:
            return dict.fromkeys(METRICS)
        return {name: _interval(x_A) for name, x_A in _drawn(self).items()}

    def minus(self, other: Sums) -> dict[str, Difference]:
        """Compare with the result of another recipe for the same rows."""
        own, others = self.scores(), other.scores()
        enough = len(self.people) >= LEAST_PEOPLE
        drawn_own, drawn_others = (_drawn(self), _drawn(other)) if enough else ({}, {})
        found = {}
        for name, sign in METRICS.items():
            interval, better = None, None
            if enough:
                difference_A = drawn_own[name] - drawn_others[name]
                interval = _interval(difference_A)
                better = (((sign * difference_A).sign() + 1) / 2).mean().item()
            difference = (own[name] - others[name]).item()
            found[name] = Difference(difference=difference, interval=interval, better=better)
        return found

    def doubt(self) -> str:
        """Return on how many people the intervals rest, and what this means."""
        n, noun = len(self.people), self.unit[:-1] if self.unit != "people" else "person"
        rest = counted(n, noun, self.unit)
        if n < LEAST_PEOPLE:
            return f"the numbers rest on {rest}: too few for an interval (at least {LEAST_PEOPLE})"
        if self.unit != "people":
            return f"the intervals rest on {rest}: they say nothing about new people, because not every one names its subject"
        if n < FEW_PEOPLE:
            return f"the intervals rest on {rest}: with so few, the true ones are wider"
        return f"the intervals rest on {rest}"


def sum_up(seeds: Sequence[Answers]) -> Sums:
    """Sum up the answers of each seed by person. Every seed has the same groups."""
    first = seeds[0]
    unit = "people" if all(first.subjects) else "performances"
    names = person_names(first.subjects) if unit == "people" else {name: name for name in first.groups}
    people = tuple(dict.fromkeys(sorted(names.values(), key=by_number)))
    number = {person: p for p, person in enumerate(people)}
    sums = []
    for answers in seeds:
        of_G = answers.subjects if unit == "people" else answers.groups
        person_R = torch.tensor([number[names[name]] for name in of_G])[answers.group_R]
        label_R, p_RK = answers.label_R, answers.log_p_RK.double().exp()
        top_R, right_R = p_RK.amax(1), answers.right_R.double()
        log_loss_R = -answers.true_log_p_R.double()
        brier_R = (p_RK - F.one_hot(label_R, p_RK.shape[1])).square().sum(1)
        ones_R = torch.ones_like(top_R)
        in_bin_RE = F.one_hot(bin_of(top_R), BINS).double()
        parts = [torch.stack([ones_R, right_R, log_loss_R, brier_R], 1)]
        parts += [in_bin_RE * x_R[:, None] for x_R in (ones_R, right_R, top_R)]
        empty_PX = torch.zeros(len(people), 4 + 3 * BINS, dtype=torch.float64)
        sums.append(empty_PX.index_add(0, person_R, torch.cat(parts, 1)))
    return Sums(unit, people, torch.stack(sums))


def person_names(subjects: Sequence[str]) -> dict[str, str]:
    """Return the name of the person of each subject: all who ever perform together are one, for example ``3+4``."""
    person = join_people(subjects)
    members: dict[str, set[str]] = {}
    for subject, leader in person.items():
        members.setdefault(leader, set()).update(persons(subject))
    return {subject: "+".join(sorted(members[leader], key=by_number)) for subject, leader in person.items()}


def summarise(seeds: Sequence[Answers]) -> Summary:
    """Return the scores of the answers of each seed. Every seed has the same groups."""
    sums, alone = sum_up(seeds), [sum_up([answers]).scores() for answers in seeds]
    spread = {name: (max(one[name] for one in alone) - min(one[name] for one in alone)).item() for name in METRICS}
    numbers: dict[str, float] = {name: x_A[0].item() for name, x_A in sums.scores().items()}
    wrong = [(answers, ~answers.right_R) for answers in seeds]
    found = [auroc(one.uncertainty_R, wrong_R) for one, wrong_R in wrong if 0 < int(wrong_R.sum()) < len(wrong_R)]
    return Summary(
        **numbers,
        auroc_u=sum(found) / len(found) if found else None,
        intervals=sums.intervals(),
        spread=spread if len(seeds) > 1 else {},
        groups=int(sums.sums_SPX[0, :, 0].sum()),
        people=len(sums.people),
        unit=sums.unit,
        doubt=sums.doubt(),
    )


def compare(own: Mapping[int, Answers], other: Mapping[int, Answers]) -> Comparison:
    """Compare the answers of two recipes, by seed, in the seeds that both have. Raises ConfigError: there is no such seed, or the
    rows are not the same.
    """
    seeds = [seed for seed in own if seed in other]
    if not seeds:
        raise ConfigError(
            f"there is no common seed: {', '.join(map(str, own))} and {', '.join(map(str, other))}: add --seeds"
        )
    pairs = [(_in_order(own[seed]), _in_order(other[seed])) for seed in seeds]
    for one, two in pairs:
        apart = Counter(_names(one))
        apart.subtract(_names(two))
        if n := sum(map(abs, apart.values())):
            raise ConfigError(
                f"{counted(n, 'answer is', 'answers are')} about performances that only one of both results has"
            )
    scores = sum_up([one for one, _ in pairs]).minus(sum_up([two for _, two in pairs]))
    right = [(one.right_R, two.right_R) for one, two in pairs]
    won, lost = (sum(int((a & ~b).sum()) for a, b in some) / len(seeds) for some in (right, [(b, a) for a, b in right]))
    return Comparison(scores=scores, won=won, lost=lost)


def _names(answers: Answers) -> list[tuple[str, int]]:
    return [
        (answers.groups[g], label) for g, label in zip(answers.group_R.tolist(), answers.label_R.tolist(), strict=True)
    ]


def _in_order(answers: Answers) -> Answers:
    """Sort rows by group, and those of one group (folds by views) by their views."""
    keys = list(zip(_names(answers), answers.given_RV.tolist(), strict=True))
    return answers.rows(torch.tensor(sorted(range(len(keys)), key=keys.__getitem__), dtype=torch.int64))


def _drawn(sums: Sums) -> dict[str, Tensor]:
    parts = [sums.scores(weight_AP) for weight_AP in _drawings(len(sums.people))]
    return {name: torch.cat([part[name] for part in parts]) for name in METRICS}


def _drawings(n_people: int) -> Iterator[Tensor]:
    """Yield how often each person is drawn, (A, P): always the same for a number of people, so that results are paired."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(DRAWINGS // CHUNK):
        drawn_AP = torch.randint(n_people, (CHUNK, n_people), generator=generator)
        weight_AP = torch.zeros(CHUNK, n_people, dtype=torch.float64)
        yield weight_AP.scatter_add(1, drawn_AP, torch.ones_like(weight_AP))


def _interval(x_A: Tensor) -> Interval:
    low, high = x_A.quantile(torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=x_A.dtype)).tolist()
    return low, high


def _number(x: Tensor) -> float | None:
    return x.item() if x.isfinite() else None
