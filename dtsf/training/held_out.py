"""Answers for the held-out groups of a run, and what they promise of new answers.

Letters: G groups, R rows of answers, V views, K classes.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dtsf.cache.schema import Clip
from dtsf.errors import CheckpointError
from dtsf.model.network import DTSFNet
from dtsf.names import counted
from dtsf.training.answers import Answers, ask, join, read_answers
from dtsf.training.as_needed import CameraPlan, answers_as_needed, view_order
from dtsf.training.checkpoint import RunState
from dtsf.training.data import Groups
from dtsf.training.metrics import SetMetrics, SurestMetrics
from dtsf.training.parallel import side_by_side
from dtsf.training.promises import (
    ROUNDING,
    SHARES,
    Promise,
    at_shares,
    check_level,
    limit_of_new,
    surest_curve,
)
from dtsf.training.splits import Fold, draw_groups, join_people

FILE = "held_out.safetensors"  # in the folder of a run
LEVELS = (0.8, 0.9)  # of the sets that an evaluation measures
LEAST = 20  # performances with answers from the same cameras, on which a promise for these cameras alone rests
MOST_NUMBERS = 1 << 20  # probabilities that a run keeps
ALL_SETS = 3  # most views with answers for every set of them
TRUSTED = 0.95
"""Accuracy of the surest held-out answers with which a new one needs no look by a person."""


@dataclass(frozen=True)
class Surest:
    """Place of one answer among the held-out answers."""

    share: float
    """Share of the held-out answers that are at least as sure."""
    accuracy: float | None
    """Share of these that are right; None if there are none."""
    look: bool
    """True if a person must look: the answer is not among the surest held-out ones that are right in 95 % or more."""


@dataclass(frozen=True)
class HeldOut:
    """Answers for the held-out groups of a run. ``by``: what was held out, for example ``people held out``."""

    answers: Answers
    by: str
    plan: CameraPlan | None = None
    """Plan by which the cameras of a performance are opened; None if all are."""

    @cached_property
    def _as_needed(self) -> Callable[[frozenset[int] | None], Answers]:
        """Function that returns the answers with cameras opened by the plan; see :func:`.as_needed.answers_as_needed`."""
        assert self.plan is not None
        return lru_cache(64)(partial(answers_as_needed, self.answers, self.plan))

    @cached_property
    def people_G(self) -> np.ndarray | None:
        """Person of each group; all who perform together are one. None if they are not known, or were not held out."""
        subjects = self.answers.subjects
        if not self.by.startswith("people") or not all(subjects):
            return None
        leader = join_people(subjects)
        return np.array([leader[subject] for subject in subjects])

    def rows(self, views: Sequence[int]) -> tuple[Answers, str]:
        """Return the answers that are like one from these views (from 0), and what is said of their cameras.

        They are from the same cameras; if these are few, from as many cameras, as where two of five cameras film each
        performance; otherwise from the largest number below it. With a plan, ``views`` are the cameras that there are to be
        opened, and the answers are those to the same cameras, or if these are few, to all that a performance has.
        """
        if self.plan is not None and len(views) > 1:
            same = self._as_needed(frozenset(views))
            return same if _size(same) >= LEAST else self._as_needed(None), ", cameras opened as needed"
        number_R, n_views = self.answers.given_RV.sum(1), self.answers.given_RV.shape[1]
        found = []
        if max(views) < n_views:
            same = self.answers.given(torch.tensor([view in views for view in range(n_views)]))
            found = [(same, " from the same cameras" if _size(same) < len(self.answers.groups) else "")]
        for n in (len(views), *range(len(views) - 1, 0, -1), *range(len(views) + 1, int(number_R.max()) + 1)):
            how = "as many cameras" if n == len(views) else counted(n, "camera")
            found.append((self.answers.rows(number_R == n), f" from {how}"))
        enough = (pair for pair in found if _size(pair[0]) >= LEAST)
        return next(enough, max(found, key=lambda pair: _size(pair[0])))

    def promise(self, views: Sequence[int], level: float) -> Promise:
        """Return the rule for sets of answers from these views (from 0). For new people if there are enough people."""
        check_level(level)
        answers, how = self.rows(views)
        score_R = -answers.true_log_p_R.exp().numpy().astype(np.float64)
        people_G, percent, n = self.people_G, f"{100 * level:g} %", _size(answers)
        of = counted(n, "performance") + how
        person_R = people_G[answers.group_R.numpy()] if people_G is not None else None
        n_people = len(set(person_R)) if person_R is not None else 0
        if person_R is not None and n_people >= level * (n_people + 1) - ROUNDING:
            whose = f"new people like the {n_people} held-out ones ({of})"
            text = f"the true class is in it for {percent} of performances of {whose}"
            return Promise(-limit_of_new(score_R, person_R, level), text, by_person=True, n_people=n_people)
        limit = limit_of_new(score_R, answers.group_R.numpy(), level)
        whose = f"held-out people ({n_people} people, {of})" if n_people else f"held-out groups ({of}; {self.by})"
        text = f"the true class is in it for {percent} of performances like those of the {whose}"
        if not math.isfinite(limit):
            text = f"every class is in it: {of} allow at most {math.floor(100 * n / (n + 1))} %"
        elif n_people:
            text += (
                f"; for a new person, {n_people} people allow at most {math.floor(100 * n_people / (n_people + 1))} %"
            )
        return Promise(-limit, text, by_person=False, n_people=n_people)

    def curve(self, views: Sequence[int] | None = None) -> list[tuple[float, float]]:
        """Return (share, accuracy) of the surest held-out answers. Default: those to all views of each group."""
        if views is not None:
            answers = self.rows(views)[0]
        else:
            answers = self.answers.complete() if self.plan is None else self._as_needed(None)
        return surest_curve(answers.log_p_RK.amax(1).exp(), answers.right_R)

    def place(self, views: Sequence[int], probability: float) -> Surest:
        """Return the place of an answer from these views (from 0); ``probability``: of its class."""
        probability_R, curve = self.rows(views)[0].log_p_RK.amax(1).exp(), self.curve(views)
        n = int((probability_R >= probability).sum())
        return Surest(n / len(curve), curve[n - 1][1] if n else None, probability < self.trusted(views))

    def trusted(self, views: Sequence[int]) -> float:
        """Return the least probability of the surest answers from these views (from 0) of which 95 % are right; 1 if none are."""
        probability_R = self.rows(views)[0].log_p_RK.amax(1).exp().sort(descending=True).values.tolist()
        after_R = [*probability_R[1:], -1.0]  # of answers with the same probability, only all of them count
        rows = zip(probability_R, after_R, self.curve(views), strict=True)
        return min((p for p, after, (_, accuracy) in rows if after < p and accuracy >= TRUSTED), default=1.0)

    @property
    def surest_line(self) -> str:
        """Line that says how often the surest held-out answers are right."""
        shares, right = (" / ".join(f"{100 * x:.0f}" for x in row) for row in (SHARES, at_shares(self.curve())))
        people = set(self.people_G) if self.people_G is not None else set()
        whose = counted(len(people), "held-out person", "held-out people") if people else "the held-out groups"
        n = counted(len(set(self.answers.groups)), "performance")
        return f"of {whose} ({n}), the surest {shares} % were right in {right} %"

    def measure_sets(
        self, probability_GK: Tensor, groups: Groups, subjects: Sequence[str], levels: Sequence[float] = LEVELS
    ) -> tuple[SetMetrics, ...]:
        """Return the metrics of the sets of each level on evaluated groups; ``subjects``: of each group, empty if it has none."""
        views_G = [[v for v, given in enumerate(mask) if given] for mask in groups.mask_GV.tolist()]
        found = []
        for level in levels:
            rules = {views: self.promise(views, level) for views in set(map(tuple, views_G))}
            chosen = [rules[tuple(views)].choose(p_K) for views, p_K in zip(views_G, probability_GK, strict=True)]
            inside: dict[str, list[bool]] = defaultdict(list)
            for subject, label, some in zip(subjects, groups.label_G.tolist(), chosen, strict=True):
                inside[subject].append(label in some)
            by_person = {subject: sum(row) / len(row) for subject, row in inside.items() if subject}
            worst = min(by_person, key=lambda subject: by_person[subject]) if len(by_person) > 1 else None
            row = SetMetrics(
                level=level,
                by="people" if all(rule.by_person for rule in rules.values()) else "groups",
                n_people=min(rule.n_people for rule in rules.values()),
                n_held_out=len(set(self.answers.groups)),
                coverage=sum(map(sum, inside.values())) / len(chosen),
                mean_size=sum(map(len, chosen)) / len(chosen),
                worst_subject=worst,
                worst_coverage=by_person[worst] if worst is not None else None,
            )
            found.append(row)
        return tuple(found)

    def measure_surest(self, probability_G: Tensor, right_G: Tensor) -> tuple[SurestMetrics, ...]:
        """Return the accuracy of the surest shares of evaluated groups, beside that of the held-out ones."""
        both = (at_shares(curve) for curve in (self.curve(), surest_curve(probability_G, right_G)))
        rows = zip(SHARES, *both, strict=True)
        return tuple(SurestMetrics(share=share, held_out=held, evaluated=now) for share, held, now in rows)


def _size(answers: Answers) -> int:
    """Return the number of performances with an answer: several answers to one performance are no more performances."""
    return len(answers.group_R.unique())


def read_held_out(run: Path, state: RunState) -> HeldOut | None:
    """Return the held-out answers of a run; None if it has none. Raises CheckpointError: the file is damaged or of another run."""
    file, info, calibration = run / FILE, state.info, state.calibration
    if calibration is None or not file.exists():
        return None
    answers = read_answers(file)
    if (answers.classes, answers.views) != (info.class_names, info.view_names) or not answers.complete_R.any():
        raise CheckpointError(f"{file} is not of this run, which has other classes or views: train again")
    return HeldOut(answers, calibration.held_out)


def ask_held_out(
    nets: Sequence[DTSFNet],
    state: RunState,
    folds: Sequence[Fold],
    load: Callable[[Sequence[Clip]], Groups],
    workers: int = 1,
) -> Answers:
    """Return the answers of the network of each fold for its held-out groups: with all views, each alone, and growing sets.

    Up to three views: every set. More: the views join in the order of their accuracy alone. Of very many groups, some are drawn.
    ``workers``: networks that answer side by side.
    """
    classes, views = state.info.class_names, state.info.view_names
    numbers = range(1, len(views) + 1)
    given = [some for n in numbers for some in combinations(numbers, n) if n == 1 or len(views) <= ALL_SETS]
    most = max(1, MOST_NUMBERS // (2 * max(len(views), 4) * len(classes) * len(folds)))
    subjects = {clip.group: clip.subject or "" for fold in folds for clip in fold.held_out}
    draw = random.Random(0)
    asked = [load(draw_groups(fold.held_out, most, draw)[0]) for fold in folds]

    def answer(given: Sequence[Sequence[int]], known: Sequence[Answers | None]) -> list[Answers]:
        def answer_one(_: object, k: int) -> Answers:
            options: dict[str, Any] = {"given": given, "draws": state.recipe.train.draws, "known": known[k]}
            return ask(nets[k], asked[k], subjects, classes, views, **options)

        found = dict(side_by_side([partial(answer_one, k=k) for k in range(len(nets))], workers=workers))
        return [found[k] for k in range(len(nets))]

    answers = answer(given, [None] * len(nets))
    if len(views) > ALL_SETS:
        order = view_order(join(answers))
        answers = answer([tuple(view + 1 for view in order[:n]) for n in range(2, len(views))], answers)
    return join(answers)
