"""``dtsf ablate``: a table of variants times seeds, trained and judged one after the other.

Every training lies in a folder of its own under ``OUT/trainings``, whose name holds a hash of all that decides it (settings,
clips, protocol, seed). What is there and finished is never done again: not by the same command run again, and not by another
table in the same ``OUT`` that has a row with the same settings. What was cut off goes on by ``--resume``.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dtsf.cache.reader import open_dataset
from dtsf.errors import CheckpointError, ConfigError
from dtsf.experiments.ablation.judges import open_tests
from dtsf.experiments.ablation.results import Ablation, AblationRow
from dtsf.experiments.ablation.tables import load_table, make_variants
from dtsf.experiments.ablation.trainings import (
    Job,
    Judged,
    Record,
    existing,
    folder_name,
    is_finished,
    locked,
    read,
    value_of,
    write,
)
from dtsf.training.checkpoint import load_checkpoint, load_network, resume_or_clear
from dtsf.training.evaluate import evaluate
from dtsf.training.init_weights import resolve_recipe
from dtsf.training.protocols import parse_protocol, split_clips
from dtsf.training.recipe import default_recipe
from dtsf.training.train import check_device, check_recipe_fits, train
from dtsf.training.train_state import versions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dtsf.cache.reader import CachedDataset
    from dtsf.experiments.ablation.judges import Test
    from dtsf.experiments.ablation.tables import Variant
    from dtsf.training.loop import EpochReport
    from dtsf.training.protocols import Protocol

logger = logging.getLogger(__name__)


def ablate(
    cache: Path = Path("cache"),
    *,
    table: str,
    dataset: str | None = None,
    protocol: str | None = None,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    judges: Sequence[str] = (),
    gap: tuple[str, str] | None = None,
    out: Path,
    device: str = "auto",
    init: Path | None = None,
    on_result: Callable[[Ablation], None] | None = None,
    on_epoch: Callable[[int, int, str], None] | None = None,
) -> Ablation:
    """Train and judge every variant of a table with every seed. Raises ConfigError, CacheError,
    CheckpointError: before the first training.

    Args:
        table: Name of :func:`.ablation_tables.table_names`, or a TOML file of the same form.
        overrides: ``section.key=value`` each, for all rows.
        judges: Other data sets of the cache that every training is judged on too: ``NAME`` for all of its clips, or
            ``NAME@PROTOCOL`` for the test clips of a protocol.
        gap: Two tests whose difference the table shows.
        on_result: Called with the table as far as it is: before the first training, and after each.
        on_epoch: Called with epochs done, epochs in all, and a line about the newest.
    """
    data = open_dataset(cache, dataset)
    rule = parse_protocol(protocol, data.info.dataset)
    recipe = recipe or default_recipe(data.info, data.spec, rule.name)[0]
    held = load_table(table)
    variants = make_variants(held, recipe, overrides)
    for variant in variants:
        try:
            check_recipe_fits(variant.recipe, data, rule)
        except ConfigError as error:
            raise ConfigError(f"row {variant.name!r}: {error}") from error
    if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**31 for seed in seeds):
        raise ConfigError(f"--seeds {','.join(map(str, seeds))!r} must be different numbers from 0, as in 0,1,2")
    check_device(device)
    split = split_clips(data.clips, rule, data.info.dataset, data.info.view_names)
    variants = tuple(
        replace(variant, recipe=resolve_recipe(init, variant.recipe, len(split.train))[0]) for variant in variants
    )
    tests = open_tests(cache, data, rule, split, judges)
    names = [test.shown.name for test in tests]
    if gap is not None and (gap[0] == gap[1] or not set(gap) <= set(names)):
        raise ConfigError(
            f"--gap {','.join(gap)} must name two of the tests: {', '.join(names)}; add others by --judge"
        )
    jobs = {
        (variant.name, seed): Job(
            variant, seed, out / "trainings" / folder_name(variant, seed, data, rule, split, init)
        )
        for variant in variants
        for seed in seeds
        if variant.same_as is None
    }
    known = Ablation(
        table=Path(table).stem,
        title=held.title,
        cache=str(cache),
        dataset=data.info.name,
        protocol=str(rule),
        recipe=recipe,
        overrides=tuple(overrides),
        init=None if init is None else str(init),
        device=device,
        seeds=tuple(seeds),
        tests=tuple(test.shown for test in tests),
        gap=gap,
        rows=(),
        done=0,
        total=len(jobs),
        reused=0,
        fingerprint=data.spec.fingerprint(),
        versions=versions(),
    )
    with locked(out):
        finished = [job for job in jobs.values() if is_finished(job, tests)]
        known = known.model_copy(update={"reused": len(finished)})
        result = _collect(known, variants, jobs, tests)
        if on_result is not None:
            on_result(result)
        todo = [job for job in jobs.values() if job not in finished]
        total = sum(job.variant.recipe.train.epochs for job in todo)
        before = 0
        for job in todo:
            _do(job, cache, data, rule, recipe, tests, device, init, _counted(on_epoch, job, before, total))
            before += job.variant.recipe.train.epochs
            result = _collect(known, variants, jobs, tests)
            if on_result is not None:
                on_result(result)
    return result


def _do(
    job: Job,
    cache: Path,
    data: CachedDataset,
    rule: Protocol,
    recipe: str,
    tests: Sequence[Test],
    device: str,
    init: Path | None,
    on_epoch: Callable[[EpochReport], None],
) -> None:
    """Train what is not trained, judge what is not judged."""
    job = existing(job)
    record = read(job)
    if not record.trained or not (job.folder / "last").is_dir():
        resume = resume_or_clear(job.folder)
        if not resume:
            record = Record()
        begun, spent = time.monotonic(), record.seconds
        # A run that goes on is not given the checkpoint again, from which an open size came.
        sizes = [f"model.{key}={getattr(job.variant.recipe.model, key)}" for key in ("width", "depth")]

        def note(report: EpochReport) -> None:
            record.seconds = spent + time.monotonic() - begun
            write(job, record)
            on_epoch(report)

        try:
            train(
                cache,
                dataset=data.info.name,
                protocol=str(rule),
                recipe=recipe,
                overrides=(*job.variant.overrides, *sizes),
                run=job.folder,
                seed=job.seed,
                device=device,
                resume=resume,
                init=None if resume else init,
                on_epoch=note,
                calibrated=False,
            )
        except CheckpointError as error:
            raise CheckpointError(f"{error}. To train it anew, remove {job.folder} and run the same command") from error
        record = record.model_copy(update={"trained": True, "judged": {}})
        write(job, record)
    missing = [test for test in tests if value_of(record, test) is None]
    if not missing:
        return
    torch.set_num_threads(job.variant.recipe.train.threads)
    checkpoint = load_checkpoint(job.folder / "last")
    net, known = load_network(checkpoint), checkpoint.state.info.class_names
    if device != "cpu" and torch.cuda.is_available():
        net = net.to("cuda")
    for test in missing:
        draws = job.variant.recipe.train.draws
        metrics = evaluate(net, test.data, test.rule, seed=job.seed, draws=draws, classes=known).metrics
        record.judged[test.shown.name] = Judged(key=test.key, top1=metrics.top1)
    write(job, record)
    logger.info("%s: %s", job.folder.name, {name: judged.top1 for name, judged in record.judged.items()})


def _collect(
    known: Ablation, variants: Sequence[Variant], jobs: dict[tuple[str, int], Job], tests: Sequence[Test]
) -> Ablation:
    """The table as far as the trainings' records go."""
    rows = []
    for variant in variants:
        records = {seed: read(existing(jobs[variant.same_as or variant.name, seed])) for seed in known.seeds}
        values = {test.shown.name: {seed: value_of(record, test) for seed, record in records.items()} for test in tests}
        # Only what is judged on all tests: a mean over other seeds in one column than in the next would mislead.
        whole = [seed for seed in known.seeds if all(column[seed] is not None for column in values.values())]
        rows.append(
            AblationRow(
                variant=variant.name,
                source=variant.source,
                differs=variant.differs,
                same_as=variant.same_as,
                overrides=variant.overrides,
                top1={
                    name: {seed: value for seed in whole if (value := column[seed]) is not None}
                    for name, column in values.items()
                },
                seconds={seed: records[seed].seconds for seed in whole},
            )
        )
    done = sum(len(row.seconds) for row in rows if row.same_as is None)
    return known.model_copy(update={"rows": tuple(rows), "done": done})


def _counted(
    on_epoch: Callable[[int, int, str], None] | None, job: Job, before: int, total: int
) -> Callable[[EpochReport], None]:
    def tell(report: EpochReport) -> None:
        if on_epoch is not None:
            on_epoch(before + report.epoch, total, f"{job.variant.name}, seed {job.seed}, loss {report.loss:.3f}")

    return tell
