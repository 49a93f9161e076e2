"""Folds of an experiment, by people, views or groups; and the trainings of every fold and seed of one recipe."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dtsf.cache.reader import CachedDataset
from dtsf.errors import ConfigError
from dtsf.experiments.grid import hash_of, identity, open_tests, resolve
from dtsf.experiments.job import Job, TestSet
from dtsf.experiments.results import RunRecord, TestSummary
from dtsf.experiments.settings import Trainings
from dtsf.names import counted, persons
from dtsf.training.answers import Answers, join
from dtsf.training.checkpoint import versions
from dtsf.training.protocols import Protocol, Split, split_clips, subjects_of
from dtsf.training.recipe import Recipe, load_recipe
from dtsf.training.scores import person_names
from dtsf.training.splits import check_split, exclude_classes, make_folds
from dtsf.training.start import Start, check_start, weights_file

PARTS = 5
"""Parts of the groups, without another number."""
KINDS = "people, views, groups, groups:K, or a number of parts of the people"


@dataclass(frozen=True)
class Fold:
    """One division of a dataset, and the tests of its trainings. ``name``: what is left out. ``number``: from 0."""

    number: int
    name: str
    rule: Protocol
    split: Split
    tests: tuple[TestSet, ...]
    notes: tuple[str, ...] = ()


def plan_folds(data: CachedDataset, text: str) -> tuple[str, dict[str, Protocol]]:
    """Return the folds in words, and the protocol of each by the name of its test. Raises ConfigError: they are not possible."""
    kind, _, number = text.partition(":")
    people = list(dict.fromkeys(person_names(sorted({clip.subject for clip in data.clips if clip.subject})).values()))
    if kind == "groups" and (not number or number.isdecimal()):
        parts, groups = int(number[:9] or PARTS), len({clip.group for clip in data.clips})
        if not 2 <= parts <= groups:
            raise ConfigError(
                f"--folds {text}: 2 to {groups} parts are possible, because {data.info.name} has {groups} groups"
            )
        names = {f"part {k}": Protocol(name="groups", argument=(f"{k}/{parts}",)) for k in range(1, parts + 1)}
        return f"{parts} parts of the performances", names
    if text == "views":
        views = sorted({clip.view for clip in data.clips})
        if len(views) < 2:
            raise ConfigError(f"--folds views: {data.info.name} has one view: --folds people, or groups")
        names_of = [data.info.view_names[view - 1] for view in views]
        _refuse_commas(text, "view", names_of)
        return "one view left out", {name: Protocol(name="cross-view", argument=(name,)) for name in names_of}
    if text != "people" and not text.isdecimal():
        raise ConfigError(f"--folds {text!r}: must be {KINDS}")
    if not people:
        raise ConfigError(
            f"--folds {text}: {data.info.name} names no subjects: add the column subject to its table and run dtsf "
            "preprocess again, or --folds groups"
        )
    if len(people) < 2:
        together = " (all who perform together count as one)" if "+" in people[0] else ""
        raise ConfigError(
            f"--folds {text}: {data.info.name} has one person, {people[0]}{together}: --folds groups, or views"
        )
    _refuse_commas(text, "subject", people)
    if text == "people":
        parts_of = [[person] for person in people]
    else:
        if not 2 <= int(text[:9]) <= len(people):
            there = f"{data.info.name} has {counted(len(people), 'person', 'people')}"
            raise ConfigError(f"--folds {text}: 2 to {len(people)} parts are possible, because {there}")
        named = [clip for clip in data.clips if clip.subject]
        folds, _ = make_folds(named, "cross-subject", int(text))
        held_out = [{clip.subject for clip in fold.held_out} for fold in folds]
        found = person_names(sorted({clip.subject for clip in named if clip.subject}))
        parts_of = [[person for person in people if person in {found[s] for s in some if s}] for some in held_out]
    names = {", ".join(part): Protocol(name="cross-subject", argument=tuple(persons(*part))) for part in parts_of}
    return "one person left out" if text == "people" else f"{text} parts of the people", names


def _refuse_commas(text: str, what: str, names: Sequence[str]) -> None:
    if odd := [name for name in names if "," in name]:
        raise ConfigError(
            f"--folds {text}: the {what} {odd[0]!r} has a comma, which separates names: rename it in the table"
        )


def open_folds(
    cache: Path,
    data: CachedDataset,
    rules: Mapping[str, Protocol],
    recipe: Recipe,
    tests: Sequence[str] = (),
    *,
    allow_leak: bool = False,
    one: bool = False,
    start: Start | None = None,
) -> tuple[Fold, ...]:
    """Divide a dataset by each rule. A further test without its own protocol has that of the fold, so that the same people are left
    out. ``one``: the rule is a protocol of its own, not a fold. ``start``: of every training. Raises ConfigError: a class can
    be learned in no fold that tests it, or as :func:`.start.check_start` and :func:`.grid.open_tests`.
    """
    folds: list[Fold] = []
    lonely: dict[str, list[str]] = defaultdict(list)
    for name, rule in rules.items():
        split = split_clips(data.clips, rule, data.info.kind, data.info.view_names)
        split = check_split(data, split, data.info.class_names, rule, allow_leak=allow_leak)
        known, info = exclude_classes(split, data.info, recipe.train.exclude_classes)
        for label in {clip.label for clip in known.test} - {clip.label for clip in known.train}:
            lonely[info.class_names[label]].append(name)
        notes = check_start(start, split, data.info, str(rule), allow_leak=allow_leak)
        asked = open_tests(cache, data, rule, split, tests, usual="all" if one else str(rule))
        folds.append(Fold(len(folds), name, rule, split, asked, notes))
    if lonely and not one:
        what = "; ".join(f"{label} only in the part {', '.join(names)}" for label, names in sorted(lonely.items()))
        raise ConfigError(
            f"{counted(len(lonely), 'class is', 'classes are')} in no training of the fold that tests it ({what}): film other "
            "people too, --set train.exclude_classes=NAMES, or --folds groups"
        )
    return tuple(folds)


@dataclass(frozen=True)
class Grid:
    """Trainings of several recipes on the same folds and seeds, in ``out/trainings``."""

    out: Path
    cache: Path
    data: CachedDataset
    folds: tuple[Fold, ...]
    recipe: str
    chosen: Trainings
    start: Start | None = None
    calibrated: bool = True

    @cached_property
    def init(self) -> list[int] | None:
        """Size and time of the file of ``--init``; None without one."""
        file = None if self.start is None else weights_file(self.start.path).stat()
        return None if file is None else [file.st_size, file.st_mtime_ns]

    @cached_property
    def _common(self) -> list[list[Any]]:
        info, fingerprint = self.data.info.model_dump(mode="json"), self.data.spec.fingerprint()
        last = [self.init, versions()["dtsf"], *(["calibrated"] if self.calibrated else [])]
        clips = [identity(self.data, fold.split.train) for fold in self.folds]
        return [
            [info, fingerprint, str(fold.rule), *([own], *last)] for fold, own in zip(self.folds, clips, strict=True)
        ]

    def jobs(
        self, name: str, overrides: Sequence[str], limit: Callable[[Fold, int], tuple[str, ...]] = lambda *_: ()
    ) -> dict[tuple[int, int], Job]:
        """Return the training of each fold and seed. ``limit``: further changes of the recipe for a fold and a seed."""
        found = {}
        for seed in self.chosen.seeds:
            for k, fold in enumerate(self.folds):
                changes = (*overrides, *limit(fold, seed))
                settings = resolve(load_recipe(self.recipe, changes), self.data, fold.split, self.start)
                found[k, seed] = self._job(name, k, seed, changes, settings)
        return found

    def _job(self, name: str, k: int, seed: int, changes: tuple[str, ...], settings: Recipe) -> Job:
        # A training with the same hash also counts under another name.
        fold = self.folds[k]
        code = f"{hash_of([settings.model_dump(mode='json'), *self._common[k]])}-seed{seed}"
        words = name if len(self.folds) == 1 else f"{name}, without {fold.name}"
        plain = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-") or "row"
        own = f"{plain[:40]}-{code}"
        others = sorted(path.name for path in (self.out / "trainings").glob(f"*-{code}") if path.is_dir())
        return Job(
            out=self.out,
            name=f"trainings/{own if own in others or not others else others[0]}",
            cache=self.cache,
            recipe=self.recipe,
            overrides=changes,
            settings=settings,
            seed=seed,
            tests=fold.tests,
            device=self.chosen.device,
            init=None if self.start is None else self.start.path,
            calibrated=self.calibrated,
            allow_leak=self.chosen.allow_leak,
            workers=self.chosen.workers,
            label=words,
        )

    def header(self) -> dict[str, Any]:
        """Return the fields of an :class:`.results.Experiment` that are known before the first training."""
        return {
            "cache": str(self.cache),
            "dataset": self.data.info.name,
            "recipe": self.recipe,
            "overrides": self.chosen.changes(),
            "init": None if self.start is None else str(self.start.path),
            "device": self.chosen.device,
            "seeds": self.chosen.seeds,
            "fingerprint": self.data.spec.fingerprint(),
            "versions": versions(),
        }

    def tests(self, by: str) -> tuple[TestSummary, ...]:
        """Return each test over all folds. ``by``: the folds in words."""
        merged: list[TestSummary] = []
        for summaries in zip(*([test.summary for test in fold.tests] for fold in self.folds), strict=True):
            first, n_groups = summaries[0], sum(one.n_groups for one in summaries)
            notes = list(dict.fromkeys(one.note for one in summaries if one.note))
            others = counted(len(notes) - 1, "other fold has", "other folds have")
            found = notes[:1] + ([f"{others} such a note"] if len(notes) > 1 else [])
            if not merged:
                found += [*dict.fromkeys(note for fold in self.folds for note in fold.notes), *self._missing()]
            task = first.task if len(summaries) == 1 else f"{by}, all answers pooled"
            merged.append(TestSummary(name=first.name, task=task, n_groups=n_groups, note="; ".join(found)))
        return tuple(merged)

    def _missing(self) -> list[str]:
        """Return how many clips of the dataset no fold trains or tests, and why."""
        data, why = self.data, self.folds[0].split.left_out
        known = {clip.id for fold in self.folds for clip in (*fold.split.train, *fold.split.test)}
        unused, bad = sum(clip.id not in known for clip in data.clips), Counter(one.status.value for one in data.bad)
        found = [f"{counted(unused, 'clip is', 'clips are')} left out ({', '.join(why)})"] if unused else []
        if bad:
            words = ", ".join(f"{n} {status}" for status, n in sorted(bad.items()))
            found.append(f"{counted(len(data.bad), 'clip')} cannot be used ({words}): dtsf cache info names them")
        return found


class Pool:
    """Answers of finished trainings, read once each."""

    def __init__(self) -> None:
        self._read: dict[tuple[Path, str], Answers] = {}

    def seeds(
        self, jobs: Mapping[tuple[int, int], Job], records: Mapping[str, RunRecord], test: str
    ) -> dict[int, Answers]:
        """Return the answers of all folds by seed, for the seeds whose trainings are all in ``records``."""
        found = {}
        for seed in dict.fromkeys(seed for _, seed in jobs):
            own = [job for (_, other), job in sorted(jobs.items(), key=lambda item: item[0]) if other == seed]
            if all(job.name in records for job in own):
                found[seed] = join([self.one(job, test) for job in own])
        return found

    def complete(
        self, jobs: Mapping[tuple[int, int], Job], records: Mapping[str, RunRecord], test: str
    ) -> dict[int, Answers]:
        """Return the answers as :meth:`seeds`, only those for all views of a group."""
        return {seed: answers.complete() for seed, answers in self.seeds(jobs, records, test).items()}

    def one(self, job: Job, test: str) -> Answers:
        """Return the answers of one training."""
        key = job.folder, test
        if key not in self._read:
            self._read[key] = job.answers(test)
        return self._read[key]


def choose_people(fold: Fold, number: int, seed: int, excluded: Sequence[int] = ()) -> tuple[str, ...]:
    """Return ``number`` training people of a fold, in turn for each fold and seed, who perform all of its classes. Raises
    ConfigError: there are none.
    """
    clips = [clip for clip in fold.split.train if clip.label not in excluded]
    people, wanted = subjects_of(clips), {clip.label for clip in clips}
    if not 1 <= number < len(people):
        there = "the dataset names no subjects" if not people else f"without {fold.name} there are {len(people)}"
        raise ConfigError(f"--people {number}: a fold needs more people in its training than that, and {there}")
    for start in range(len(people)):
        chosen = tuple(people[(fold.number + seed + start + n) % len(people)] for n in range(number))
        if {clip.label for clip in clips if clip.subject and set(persons(clip.subject)) <= set(chosen)} == wanted:
            return chosen
    raise ConfigError(
        f"--people {number}: no {number} neighbouring people of a fold perform all classes: a larger number"
    )
