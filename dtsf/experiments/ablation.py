"""Train and evaluate a table of variants with several seeds.

Each training has a folder under ``OUT/trainings``. Its name contains a hash of settings, clips, protocol and seed.
So a finished training is not repeated, also not for another table in the same ``OUT`` with a row of the same settings.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtsf.cache.reader import open_dataset
from dtsf.errors import CheckpointError, ConfigError
from dtsf.experiments.grid import Job, finished_record, locked, resolve, run_job
from dtsf.experiments.results import Ablation, AblationRow
from dtsf.experiments.settings import AblateSettings
from dtsf.experiments.tables import write_ablation
from dtsf.experiments.test_sets import hash_of, open_tests
from dtsf.experiments.variants import load_table, make_variants
from dtsf.training.protocols import parse_protocol, split_clips
from dtsf.training.recipe import default_recipe
from dtsf.training.train import check_device, check_recipe_fits
from dtsf.training.train_state import versions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dtsf.experiments.results import RunRecord
    from dtsf.experiments.test_sets import TestSet
    from dtsf.experiments.variants import Variant
    from dtsf.training.loop import EpochReport


def ablate(
    cache: str | Path = Path("cache"),
    settings: AblateSettings | None = None,
    *,
    on_result: Callable[[Ablation], None] | None = None,
    on_epoch: Callable[[int, int, str], None] | None = None,
    **changes: Any,
) -> Ablation:
    """Train and evaluate every variant of a table with every seed. Write the table as CSV, Markdown and SVG after each training.

    Raises ConfigError, CacheError, CheckpointError: before the first training.

    Args:
        cache: Folder of the cache.
        settings: Table, recipe, seeds, tests and folder.
        on_result: Called with the table before the first training, and after each.
        on_epoch: Called with the number of epochs done, the number of all epochs, and a line about the last.
        changes: Fields of :class:`dtsf.experiments.settings.AblateSettings` that differ from ``settings``.
    """
    chosen = settings.changed(**changes) if settings is not None else AblateSettings.of(**changes)
    cache, out, seeds, gap, init = Path(cache), chosen.out, chosen.seeds, chosen.gap, chosen.init
    data = open_dataset(cache, chosen.dataset)
    rule = parse_protocol(chosen.protocol, data.info.kind)
    recipe = chosen.recipe or default_recipe(data.info, data.spec, rule.name)[0]
    rows = load_table(chosen.table)
    variants = make_variants(rows, recipe, chosen.changes())
    for variant in variants:
        try:
            check_recipe_fits(variant.recipe, data, rule)
        except ConfigError as error:
            raise ConfigError(f"row {variant.name!r}: {error}") from error
    check_device(chosen.device)
    split = split_clips(data.clips, rule, data.info.kind, data.info.view_names)
    variants = tuple(replace(variant, recipe=resolve(variant.recipe, data, split, init)) for variant in variants)
    tests = open_tests(cache, data, rule, split, chosen.tests)
    names = [test.summary.name for test in tests]
    if gap is not None and not set(gap) <= set(names):
        raise ConfigError(f"--gap {','.join(gap)} must name two of the tests: {', '.join(names)}; add others by --test")
    if init is not None and not init.is_file():
        raise CheckpointError(f"--init {init}: no such file")
    common = [
        data.info.model_dump(mode="json"),
        data.spec.fingerprint(),
        str(rule),
        sorted(clip.id for clip in split.train),
        None if init is None else [init.stat().st_size, init.stat().st_mtime_ns],
        versions()["dtsf"],
    ]
    with locked(out, "ablate"):
        jobs = {
            (variant.name, seed): Job(
                out=out,
                name=f"trainings/{_folder(out / 'trainings', variant, seed, common)}",
                cache=cache,
                recipe=recipe,
                overrides=variant.overrides,
                settings=variant.recipe,
                seed=seed,
                tests=tests,
                device=chosen.device,
                init=init,
                calibrated=False,
            )
            for variant in variants
            for seed in seeds
            if variant.same_as is None
        }
        records = {key: record for key, job in jobs.items() if (record := finished_record(job))}
        todo = {key: job for key, job in jobs.items() if key not in records}
        start = Ablation(
            table=Path(chosen.table).stem,
            title=rows.title,
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
            rows=(),
            done=0,
            total=len(jobs),
            reused=len(records),
            fingerprint=data.spec.fingerprint(),
            versions=versions(),
        )
        total, before = sum(job.settings.train.epochs for job in todo.values()), 0

        def show(title: str, before: int, report: EpochReport) -> None:
            if on_epoch is not None:
                on_epoch(before + report.epoch, total, f"{title}, loss {report.loss:.3f}")

        def publish() -> Ablation:
            found = tuple(_row(variant, seeds, tests, records) for variant in variants)
            ablation = start.model_copy(update={"rows": found, "done": len(records)})
            write_ablation(ablation, out)
            if on_result is not None:
                on_result(ablation)
            return ablation

        ablation = publish()
        for key, job in todo.items():
            records[key] = run_job(job, partial(show, f"{key[0]}, seed {job.seed}", before))
            before += job.settings.train.epochs
            ablation = publish()
        return ablation


def _folder(trainings: Path, variant: Variant, seed: int, common: Sequence[object]) -> str:
    """Return the folder of a training: one with the same hash if there is one, also under the name of another row."""
    code = f"{hash_of([variant.recipe.model_dump(mode='json'), *common])}-seed{seed}"
    plain = re.sub(r"[^a-z0-9]+", "-", variant.name.lower()).strip("-") or "row"
    name = f"{plain[:40]}-{code}"
    others = sorted(path.name for path in trainings.glob(f"*-{code}") if path.is_dir())
    return name if name in others or not others else others[0]


def _row(
    variant: Variant, seeds: Sequence[int], tests: Sequence[TestSet], records: Mapping[tuple[str, int], RunRecord]
) -> AblationRow:
    own = variant.same_as or variant.name
    found = {seed: records[own, seed] for seed in seeds if (own, seed) in records}
    names = [test.summary.name for test in tests]
    return AblationRow(
        variant=variant.name,
        source=variant.source,
        differs=variant.differs,
        same_as=variant.same_as,
        overrides=variant.overrides,
        top1={name: {seed: record.scores[name].top1 for seed, record in found.items()} for name in names},
        seconds={seed: record.seconds for seed, record in found.items()},
    )
