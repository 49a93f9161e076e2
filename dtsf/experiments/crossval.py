"""Cross-validation of one recipe: every fold trains and answers what it left out; the answers of all folds are pooled.

Folds, seeds and smaller trainings (``people``, ``takes``, ``cameras``) are jobs of one grid, so a killed call continues.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dtsf.cache.reader import open_dataset
from dtsf.errors import ConfigError
from dtsf.experiments.crossval_files import read_others, read_result, write_crossval
from dtsf.experiments.folds import Fold, Grid, Pool, choose_people, open_folds, plan_folds
from dtsf.experiments.grid import hash_of, identity, locked, resolve
from dtsf.experiments.job import Job
from dtsf.experiments.results import Crossval, CrossvalFold, CurvePoint, RunRecord
from dtsf.experiments.run_jobs import publish_all
from dtsf.experiments.settings import CrossvalSettings
from dtsf.training.answers import Answers
from dtsf.training.checkpoint import versions
from dtsf.training.protocols import subjects_of
from dtsf.training.recipe import default_recipe, load_recipe
from dtsf.training.scores import Comparison, Numbers, compare, sum_up, summarise
from dtsf.training.start import read_start
from dtsf.training.train import check_device, check_recipe_fits

Point = tuple[str, int]
LIMITS = {"takes": "max_takes", "cameras": "max_views"}


def crossval(
    cache: str | Path = Path("cache"),
    settings: CrossvalSettings | None = None,
    *,
    on_result: Callable[[Crossval], None] = lambda _: None,
    on_epoch: Callable[[int, int, str], None] = lambda *_: None,
    **changes: Any,
) -> Crossval:
    """Train and test each fold of a dataset with every seed, and score the pooled answers.

    Writes ``crossval.json``, ``answers.csv``, ``answers/`` and ``report.html`` into ``out`` after each training. ``on_result``:
    called first and after each training. ``on_epoch``: with epochs done, all epochs, and a line. ``changes``: fields of
    :class:`.settings.CrossvalSettings`. Raises ConfigError, CacheError or CheckpointError, before the first training: the folds
    are not possible, ``out`` has the result of other settings, or ``compare`` names another kind of result.
    """
    chosen = settings.changed(**changes) if settings is not None else CrossvalSettings.of(**changes)
    cache, out = Path(cache), chosen.out
    data = open_dataset(cache, chosen.dataset)
    by, rules = plan_folds(data, chosen.folds)
    rule = next(iter(rules.values()))
    recipe = chosen.recipe or default_recipe(data.info, data.spec, rule.name)[0]
    loaded = load_recipe(recipe, chosen.changes())
    check_recipe_fits(loaded, data, rule)
    check_device(chosen.device)
    start = read_start(chosen.init)
    folds = open_folds(cache, data, rules, loaded, chosen.tests, allow_leak=chosen.allow_leak, start=start)
    grid = Grid(out, cache, data, folds, recipe, chosen, start)
    whole = [resolve(loaded, data, fold.split, start).model_dump(mode="json") for fold in folds]
    clips = [[str(fold.rule), identity(data, (*fold.split.train, *fold.split.test))] for fold in folds]
    classes = [name for name in data.info.class_names if name not in loaded.train.exclude_classes]
    key = hash_of([data.info.name, classes, data.spec.fingerprint(), by, clips])
    tests = grid.tests(by)
    names, own = [test.name for test in tests], tests[0].name
    settings_key = hash_of(whole if grid.init is None else [whole, grid.init])
    others = read_others(chosen, key, by)
    main = grid.jobs(recipe, chosen.changes())
    curve = _curve(grid, chosen)

    jobs = {job.name: job for part in (main, *curve.values()) for job in part.values()}
    pool = Pool()

    def publish(records: dict[str, RunRecord], reused: int) -> Crossval:
        answers = {name: pool.seeds(main, records, name) for name in names}
        answers = {name: by_seed for name, by_seed in answers.items() if by_seed}
        complete = {name: {seed: one.complete() for seed, one in by_seed.items()} for name, by_seed in answers.items()}
        notes = [f"{test.name}: {test.note}" for test in tests if test.note]
        compared: dict[str, dict[str, Comparison]] = {where: {} for where in others}
        for where, name, theirs in ((where, *test) for where, there in others.items() for test in there.items()):
            if complete.get(name, {}).keys() & theirs.keys():
                try:
                    compared[where][name] = compare(complete[name], theirs)
                except ConfigError as error:  # the clips of a --test have changed
                    notes.append(f"{name}: not compared with {where}: {error}")
        result = Crossval(
            **grid.header() | {"seeds": tuple(complete.get(own, ()))},
            by=by,
            folds_by=chosen.folds,
            class_names=data.info.class_names,
            tests={name: summarise(list(complete[name].values())) for name in names if name in complete},
            notes=tuple(notes),
            people=_people(list(complete.get(own, {}).values())),
            views=_views(data.info.view_names, answers.get(own, {})),
            folds=tuple(_folds(folds, main, records, pool, own)),
            curve=tuple(_points(grid, curve, records, pool, complete.get(own, {}), own)),
            compared=compared,
            done=len(records),
            total=len(jobs),
            reused=reused,
            key=key,
            settings=settings_key,
        )
        write_crossval(result, answers, out)
        on_result(result)
        return result

    with locked(out, "crossval"):
        before = read_result(out)
        mine = key, settings_key, versions()["dtsf"]
        if before is not None and (before.key, before.settings, before.versions.get("dtsf")) != mine:
            what = f"{before.dataset}, {before.by}, recipe {' '.join([before.recipe, *before.overrides])}"
            if before.key != key:
                raise ConfigError(
                    f"--out {out} has the result of other clips, labels or folds ({what}): choose another"
                )
            if before.settings == settings_key:
                what += f", dtsf {before.versions.get('dtsf')}"
            paired = f", and --compare {out}" if before.seeds else ""
            raise ConfigError(f"--out {out} has the result of other settings ({what}): choose another{paired}")
        return publish_all([*jobs.values()], publish, on_epoch)


def _curve(grid: Grid, chosen: CrossvalSettings) -> dict[Point, dict[tuple[int, int], Job]]:
    """Return the trainings on fewer people, takes and cameras. Raises ConfigError: a number is not below that of the fold."""
    found = {}
    excluded = [
        grid.data.info.class_names.index(name)
        for name in load_recipe(grid.recipe, chosen.changes()).train.exclude_classes
    ]
    for number in chosen.people:

        def some(fold: Fold, seed: int, number: int = number) -> tuple[str, ...]:
            chosen_people = choose_people(fold, number, seed, excluded)
            return (f"train.only_subjects={json.dumps(chosen_people, ensure_ascii=False)}",)

        found["people", number] = grid.jobs(f"{number} people", chosen.changes(), some)
    for kind, limit in LIMITS.items():
        most = _most(grid.folds, kind)
        for number in getattr(chosen, kind):
            if number >= most:
                raise ConfigError(
                    f"--{kind} {number}: fewer than {most} are possible, which {grid.data.info.name} has at most"
                )
            found[kind, number] = grid.jobs(
                f"{number} {kind}", chosen.changes(), lambda *_, k=limit, n=number: (f"train.{k}={n}",)
            )
    return found


def _most(folds: Sequence[Fold], kind: str) -> int:
    """Return how many people, takes or cameras the training of a fold has, at most."""
    found = 0
    for fold in folds:
        if kind == "people":
            found = max(found, len(subjects_of(fold.split.train)))
            continue
        of: dict[Any, set[Any]] = {}
        for clip in fold.split.train:
            key, one = ((clip.label, clip.subject), clip.group) if kind == "takes" else (clip.group, clip.view)
            of.setdefault(key, set()).add(one)
        found = max(found, *map(len, of.values()))
    return found


def _people(seeds: Sequence[Answers]) -> dict[str, Numbers]:
    """Return the scores of each person; none if a group names no subject."""
    sums = sum_up(seeds) if seeds else None
    return sums.each() if sums is not None and sums.unit == "people" else {}


def _views(names: Sequence[str], by_seed: Mapping[int, Answers]) -> dict[str, Numbers]:
    """Return the scores of each camera alone."""
    found = {}
    for view, name in enumerate(names, 1):
        alone = [answers.alone(view) for answers in by_seed.values()]
        if alone and len(alone[0].group_R):
            found[name] = {"groups": len(alone[0].group_R)} | sum_up(alone).numbers()
    return found


def _folds(
    folds: Sequence[Fold],
    jobs: Mapping[tuple[int, int], Job],
    records: Mapping[str, RunRecord],
    pool: Pool,
    test: str,
) -> list[CrossvalFold]:
    found = []
    for (k, seed), job in jobs.items():
        if job.name in records:
            record = records[job.name]
            scores = sum_up([pool.one(job, test).complete()]).numbers()
            found.append(
                CrossvalFold(
                    left_out=folds[k].name,
                    protocol=str(folds[k].rule),
                    seed=seed,
                    run=job.name,
                    train_groups=record.train_groups,
                    test_groups=record.test_groups,
                    seconds=record.seconds,
                    **scores,
                )
            )
    return found


def _points(
    grid: Grid,
    curve: Mapping[Point, Mapping[tuple[int, int], Job]],
    records: Mapping[str, RunRecord],
    pool: Pool,
    whole: Mapping[int, Answers],
    test: str,
) -> list[CurvePoint]:
    """Return the finished points of the curves, and all people, takes or cameras as the last of each."""
    found = []
    for kind in dict.fromkeys(kind for kind, _ in curve):
        points = [(n, pool.complete(jobs, records, test)) for (own, n), jobs in sorted(curve.items()) if own == kind]
        points = [(n, answers) for n, answers in points if answers]
        if whole and points:
            points.append((_most(grid.folds, kind), dict(whole)))
        for k, (n, answers) in enumerate(points):
            step = compare(answers, points[k - 1][1]) if k and answers.keys() & points[k - 1][1].keys() else None
            found.append(CurvePoint(kind=kind, number=n, scores=summarise(list(answers.values())), step=step))
    return found
