"""Train and evaluate a table of variants (``experiments/tables/*.toml``) with several seeds. A training's folder in
``OUT/trainings`` has a hash of settings, clips, protocol and seed in its name, so no table in the same ``OUT`` repeats it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from dtsf.cache.reader import open_dataset
from dtsf.errors import ConfigError
from dtsf.experiments.grid import Job, hash_of, locked, open_tests, resolve
from dtsf.experiments.results import Ablation, AblationRow
from dtsf.experiments.run_jobs import run_jobs
from dtsf.experiments.settings import AblateSettings
from dtsf.experiments.tables import differences, write_ablation
from dtsf.model.config import BranchConfig
from dtsf.settings import Frozen
from dtsf.training.checkpoint import versions
from dtsf.training.protocols import parse_protocol, split_clips
from dtsf.training.recipe import Recipe, default_recipe, load_recipe, read_toml
from dtsf.training.splits import check_split
from dtsf.training.start import weights_file
from dtsf.training.train import check_device, check_recipe_fits


class VariantRow(Frozen):
    """One row of a table file. Keys are ``section.key=value``, as in ``--set``."""

    name: str = Field(min_length=1)
    source: str = ""  # source of the method, and the part of the network that it replaces
    set: tuple[str, ...] = ()  # changed keys of the recipe
    needs: str = ""  # input that a branch of the recipe must have; else the row changes no branch
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
    cache, out, seeds, gap, init = Path(cache), chosen.out, chosen.seeds, chosen.gap, chosen.init
    data = open_dataset(cache, chosen.dataset)
    rule = parse_protocol(chosen.protocol, data.info.kind)
    recipe = chosen.recipe or default_recipe(data.info, data.spec, rule.name)[0]
    table = load_table(chosen.table)
    variants = make_variants(table, recipe, chosen.changes())
    for row, settled in variants:
        try:
            check_recipe_fits(settled, data, rule)
        except ConfigError as error:
            raise ConfigError(f"row {row.variant!r}: {error}") from error
    check_device(chosen.device)
    split = split_clips(data.clips, rule, data.info.kind, data.info.view_names)
    split = check_split(data, split, data.info.class_names, rule, allow_leak=chosen.allow_leak)
    variants = [(row, resolve(settled, data, split, init)) for row, settled in variants]
    tests = open_tests(cache, data, rule, split, chosen.tests)
    names = [test.summary.name for test in tests]
    if gap is not None and not set(gap) <= set(names):
        raise ConfigError(f"--gap {','.join(gap)} must name two of the tests: {', '.join(names)}; add others by --test")
    ids = sorted(clip.id for clip in split.train)
    common: list[Any] = [data.info.model_dump(mode="json"), data.spec.fingerprint(), str(rule), ids]
    start = None if init is None else weights_file(init).stat()
    common += [None if start is None else [start.st_size, start.st_mtime_ns], versions()["dtsf"]]

    def make_job(row: AblationRow, settled: Recipe, seed: int) -> Job:
        # A training with the same hash also counts under the name of another row.
        code = f"{hash_of([settled.model_dump(mode='json'), *common])}-seed{seed}"
        plain = re.sub(r"[^a-z0-9]+", "-", row.variant.lower()).strip("-") or "row"
        own = f"{plain[:40]}-{code}"
        others = sorted(path.name for path in (out / "trainings").glob(f"*-{code}") if path.is_dir())
        return Job(
            out=out,
            name=f"trainings/{own if own in others or not others else others[0]}",
            cache=cache,
            recipe=recipe,
            overrides=row.overrides,
            settings=settled,
            seed=seed,
            tests=tests,
            device=chosen.device,
            init=init,
            calibrated=False,
            allow_leak=chosen.allow_leak,
            workers=chosen.workers,
            label=row.variant,
        )

    with locked(out, "ablate"):
        trained = [variant for variant in variants if variant[0].same_as is None]
        jobs = {(row.variant, seed): make_job(row, settled, seed) for row, settled in trained for seed in seeds}
        records = {key: record for key, job in jobs.items() if (record := job.finished_record())}
        todo = {key: job for key, job in jobs.items() if key not in records}
        reused = len(records)

        def publish() -> Ablation:
            rows = []
            for row, _ in variants:
                own = row.same_as or row.variant
                found = {seed: records[own, seed] for seed in seeds if (own, seed) in records}
                top1 = {name: {seed: record.scores[name].top1 for seed, record in found.items()} for name in names}
                seconds = {seed: record.seconds for seed, record in found.items()}
                rows.append(row.model_copy(update={"top1": top1, "seconds": seconds}))
            ablation = Ablation(
                table=Path(chosen.table).stem,
                title=table.title,
                cache=str(cache),
                dataset=data.info.name,
                protocol=str(rule),
                recipe=recipe,
                overrides=chosen.changes(),
                init=None if init is None else str(init),
                device=chosen.device,
                seeds=seeds,
                tests=tuple(test.summary for test in tests),
                gap=gap,
                rows=tuple(rows),
                done=len(records),
                total=len(jobs),
                reused=reused,
                fingerprint=data.spec.fingerprint(),
                versions=versions(),
            )
            write_ablation(ablation, out)
            on_result(ablation)
            return ablation

        ablation = publish()
        for key, record in run_jobs(todo, on_epoch=on_epoch):
            records[key] = record
            ablation = publish()
        return ablation


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


def make_variants(table: VariantTable, recipe: str, overrides: Sequence[str] = ()) -> list[tuple[AblationRow, Recipe]]:
    """Apply a table's rows to a recipe, each after ``overrides``. Raises ConfigError: a row does not fit the recipe."""
    given = load_recipe(recipe, overrides).model.branch
    made: list[tuple[AblationRow, Recipe]] = []
    for row in table.row:
        branches, changes = _change_branches(given, row), (*overrides, *row.set)
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
