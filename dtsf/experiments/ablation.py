"""Train and evaluate a table of variants (``experiments/tables/*.toml``) with several seeds. A training's folder in
``OUT/trainings`` has a hash of settings, clips, protocol and seed in its name, so no table in the same ``OUT`` repeats it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from dtsf.cache.reader import open_dataset
from dtsf.errors import ConfigError
from dtsf.experiments.folds import Grid, Pool, open_folds, plan_folds
from dtsf.experiments.grid import locked
from dtsf.experiments.results import Ablation, AblationRow, RunRecord
from dtsf.experiments.run_jobs import publish_all
from dtsf.experiments.settings import AblateSettings
from dtsf.experiments.tables import differences, write_ablation
from dtsf.model.config import BranchConfig
from dtsf.settings import Frozen
from dtsf.training.answers import Answers
from dtsf.training.protocols import parse_protocol
from dtsf.training.recipe import Recipe, default_recipe, load_recipe, read_toml
from dtsf.training.scores import Comparison, Summary, compare, summarise
from dtsf.training.start import read_start
from dtsf.training.train import check_device, check_recipe_fits


class VariantRow(Frozen):
    """One row of a table file. Keys are ``section.key=value``, as in ``--set``."""

    name: str = Field(min_length=1)
    source: str = ""  # source of the method, and the part of the network that it replaces
    set: tuple[str, ...] = ()  # changed keys of the recipe
    # Input that a branch of the recipe must have, else the row changes no branch; or "views": two, else it changes nothing.
    needs: str = ""
    drop: tuple[str, ...] = ()  # inputs or views of branches to remove; a word that fits all branches removes none
    branch: dict[str, Any] = {}  # keys to set in the other branches; input pixels stays, equal branches are merged


class VariantTable(Frozen):
    """A table file. The other rows are compared with the first."""

    title: str
    row: tuple[VariantRow, ...] = Field(min_length=1)


def ablate(
    cache: str | Path = Path("cache"),
    settings: AblateSettings | None = None,
    *,
    on_result: Callable[[Ablation], None] = lambda _: None,
    on_epoch: Callable[[int, int, str], None] = lambda *_: None,
    **changes: Any,
) -> Ablation:
    """Train and evaluate every variant of a table with every seed. Write the table as CSV, Markdown and SVG and call
    ``on_result``, first and after each training. ``on_epoch``: called with epochs done, all epochs, and a line. ``changes``:
    fields of :class:`.settings.AblateSettings`. Raises ConfigError, CacheError, CheckpointError: before the first training.
    """
    chosen = settings.changed(**changes) if settings is not None else AblateSettings.of(**changes)
    cache, out, gap = Path(cache), chosen.out, chosen.gap
    data = open_dataset(cache, chosen.dataset)
    if chosen.folds is not None and chosen.protocol is not None:
        raise ConfigError("--folds and --protocol exclude each other: folds test every clip once")
    rule = parse_protocol(chosen.protocol, data.info.kind)
    by, rules = str(rule), {str(rule): rule}
    if chosen.folds is not None:
        by, rules = plan_folds(data, chosen.folds)
        rule = next(iter(rules.values()))
    recipe = chosen.recipe or default_recipe(data.info, data.spec, rule.name)[0]
    table = load_table(chosen.table)
    variants = make_variants(table, recipe, chosen.changes(), n_views=len(data.info.view_names))
    for row, settled in variants:
        try:
            check_recipe_fits(settled, data, rule)
        except ConfigError as error:
            raise ConfigError(f"row {row.variant!r}: {error}") from error
    check_device(chosen.device)
    start = read_start(chosen.init)
    options: dict[str, Any] = {"allow_leak": chosen.allow_leak, "one": chosen.folds is None, "start": start}
    folds = open_folds(cache, data, rules, load_recipe(recipe, chosen.changes()), chosen.tests, **options)
    grid = Grid(out, cache, data, folds, recipe, chosen, start, calibrated=False)
    tests = grid.tests(by)
    names = [test.name for test in tests]
    if gap is not None and not set(gap) <= set(names):
        raise ConfigError(f"--gap {','.join(gap)} must name two of the tests: {', '.join(names)}; add others by --test")
    trained = [row for row, _ in variants if row.same_as is None]
    grid_jobs = {row.variant: grid.jobs(row.variant, row.overrides) for row in trained}

    jobs = {job.name: job for own in grid_jobs.values() for job in own.values()}
    pool, first = Pool(), variants[0][0].variant
    known: dict[tuple[object, ...], tuple[Summary | None, Comparison | None]] = {}
    apart: dict[tuple[str, str], str] = {}

    def numbers(row: AblationRow, answers: Mapping[tuple[str, str], dict[int, Answers]]) -> dict[str, Any]:
        own = row.same_as or row.variant
        scores, compared = {}, {}
        for name in names:
            by_seed, others = answers[own, name], answers[first, name] if own != first else {}
            key = own, name, *by_seed, "minus", *others
            if key not in known:  # a training of another row changes nothing here
                comparison = None
                if by_seed.keys() & others.keys():
                    try:
                        comparison = compare(by_seed, others)
                    except ConfigError as error:  # the row has other classes, so other performances
                        apart[name, row.variant] = str(error)
                known[key] = summarise(list(by_seed.values())) if by_seed else None, comparison
            scores[name], compared[name] = known[key]
        return {
            "top1": {name: {seed: one.top1() for seed, one in answers[own, name].items()} for name in names},
            "scores": {name: one for name, one in scores.items() if one},
            "compared": {name: one for name, one in compared.items() if one},
        }

    def publish(records: dict[str, RunRecord], reused: int) -> Ablation:
        answers = {
            (row.variant, name): pool.complete(grid_jobs[row.variant], records, name)
            for row in trained
            for name in names
        }
        rows = []
        for row, _ in variants:
            seconds: dict[int, float] = defaultdict(float)
            for (_, seed), job in grid_jobs[row.same_as or row.variant].items():
                if job.name in records:
                    seconds[seed] += records[job.name].seconds
            rows.append(row.model_copy(update={"seconds": dict(seconds)} | numbers(row, answers)))
        said = {
            test: [f"row {row!r} is not compared: {why}" for (name, row), why in apart.items() if name == test]
            for test in names
        }
        ablation = Ablation(
            **grid.header(),
            table=Path(chosen.table).stem,
            title=table.title,
            protocol=by,
            tests=tuple(
                test.model_copy(update={"note": "; ".join(filter(None, [test.note, *said[test.name]]))})
                for test in tests
            ),
            gap=gap,
            rows=tuple(rows),
            done=len(records),
            total=len(jobs),
            reused=reused,
        )
        write_ablation(ablation, out, str(rule))
        on_result(ablation)
        return ablation

    with locked(out, "ablate"):
        return publish_all([*jobs.values()], publish, on_epoch)


def load_table(name_or_file: str) -> VariantTable:
    """Read a built-in table, or a TOML file. Raises ConfigError: an unknown table or an invalid file."""
    try:
        table = VariantTable.model_validate(read_toml("table", name_or_file))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"table {name_or_file}: {where}: {first['msg']}") from error
    names = [row.name for row in table.row]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(f"table {name_or_file}: two rows are called {twice[0]!r}")
    return table


def make_variants(
    table: VariantTable, recipe: str, overrides: Sequence[str] = (), *, n_views: int = 2
) -> list[tuple[AblationRow, Recipe]]:
    """Apply a table's rows to a recipe, each after ``overrides``, for a dataset of ``n_views`` views. Raises ConfigError: a
    row does not fit the recipe.
    """
    given = load_recipe(recipe, overrides).model.branch
    made: list[tuple[AblationRow, Recipe]] = []
    for row in table.row:
        alone = row.needs == "views" and n_views < 2
        branches, changes = _change_branches(given, row), (*overrides, *(() if alone else row.set))
        if branches != [branch.model_dump(exclude_defaults=True) for branch in given]:
            tables = (", ".join(f"{key} = {json.dumps(value)}" for key, value in keys.items()) for keys in branches)
            changes = (*changes, f"model.branch=[{', '.join(f'{{ {keys} }}' for keys in tables)}]")
        try:
            settings = load_recipe(recipe, changes)
        except ConfigError as error:
            raise ConfigError(f"row {row.name!r}: {error}") from error
        same = next((earlier.variant for earlier, other in made if other == settings), None)
        first = made[0][1] if made else settings
        differs = differences(first.model_dump(mode="json"), settings.model_dump(mode="json"))
        variant = AblationRow(variant=row.name, source=row.source, differs=differs, same_as=same, overrides=changes)
        made.append((variant, settings))
    return made


def _change_branches(given: Sequence[BranchConfig], row: VariantRow) -> list[dict[str, Any]]:
    """Return the branches of a recipe as a row changes them. A dropped branch leaves its weight to those with its input."""
    branches = list(given)
    if row.needs and row.needs not in {branch.input for branch in branches}:
        return [branch.model_dump(exclude_defaults=True) for branch in branches]
    for word in row.drop:
        kept = [branch for branch in branches if word not in (branch.input, branch.views)]
        for dropped in [branch for branch in branches if kept and branch not in kept]:
            heirs = [branch for branch in kept if branch.input == dropped.input]
            more = dropped.weight / max(1, len(heirs))
            kept = [x.model_copy(update={"weight": x.weight + more}) if x in heirs else x for x in kept]
        branches = kept or branches
    changed: list[dict[str, Any]] = []
    for branch in branches:
        keys = branch.model_dump(exclude_defaults=True) | row.branch
        if branch.input == "pixels":
            keys["input"] = branch.input
        if {**keys, "weight": 1} not in [{**other, "weight": 1} for other in changed]:
            changed.append(BranchConfig.model_validate(keys).model_dump(exclude_defaults=True))
    return changed
