"""Reproduce N-UCLA from the videos to one table: check the data, preprocess, train every protocol with every seed.

With a checkpoint and a GPU it runs a second time, from pixels as in the paper, in ``OUT/paper`` and with its own cache.
A second call repeats nothing that is finished. A call after a kill continues.
"""

from __future__ import annotations

import os
import shlex
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from dtsf import api
from dtsf.cache.reader import open_dataset
from dtsf.errors import BadClipsError, ConfigError, DataError
from dtsf.experiments.checks import STAGE1, check_recipe, choose_protocols, claim
from dtsf.experiments.grid import Job, finished_record, locked, read_json, resolve, run_job, timed, write_json
from dtsf.experiments.results import Reproduction, Stage, rows_of
from dtsf.experiments.settings import ReproduceSettings
from dtsf.experiments.tables import write_reproduction
from dtsf.experiments.test_sets import open_tests
from dtsf.experiments.variants import differences
from dtsf.pipeline.datasets.nucla_check import examine_nucla
from dtsf.training.protocols import parse_protocol, split_clips
from dtsf.training.recipe import default_recipe, load_recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from dtsf.experiments.results import ProtocolRow, RunRecord
    from dtsf.pipeline.datasets.catalog import SourceCatalog
    from dtsf.pipeline.datasets.nucla_check import NuclaCheck
    from dtsf.pipeline.preprocess import PreprocessResult
    from dtsf.training.loop import EpochReport

    Show = Callable[[str, str], AbstractContextManager[Callable[..., None]]]

NAME = "nucla"
"""Name of the dataset in the cache."""
PAPER: dict[str, Any] = {
    "recipe": "nucla-paper",
    "overrides": (),
    "encoder": "pixels",
    "size": 224,
    "frames": 16,
    "grid": 6,
}
"""Settings of the run from pixels. The grid has no effect on pixels."""


@dataclass(frozen=True)
class Part:
    """One of the two runs after stage 1: from embeddings, or from pixels."""

    title: str
    """Prefix of its stages."""
    settings: ReproduceSettings
    stage1: PreprocessResult
    too_many_bad: str | None
    seconds: float
    """Time of stage 1, over all starts."""
    jobs: tuple[Job, ...]


@contextmanager
def no_progress(title: str, unit: str) -> Iterator[Callable[..., None]]:
    """Show no progress."""
    yield lambda *_: None


def reproduce_nucla(
    root: Path | None,
    out: Path = Path("reproduce-nucla"),
    settings: ReproduceSettings | None = None,
    *,
    on_check: Callable[[NuclaCheck], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
    show: Show = no_progress,
    **changes: Any,
) -> Reproduction:
    """Run both stages on N-UCLA and write ``results.md``, ``.csv`` and ``.json`` into ``out``.

    Return the content of ``results.json``. Raises DataError: no data, or with ``strict`` not all of them. ConfigError: an
    unknown protocol, recipe or checkpoint, or a folder of something else.

    Args:
        say: Called with messages for the user.
        show: ``show(title, unit)`` is a context that returns ``update(done, total, note)``.
        changes: Fields of :class:`.settings.ReproduceSettings` that differ from ``settings``.
    """
    begin = time.monotonic()
    chosen = (settings or ReproduceSettings()).changed(**changes)
    catalog, check = examine_nucla(root)
    on_check(check)
    if chosen.strict and not check.complete:
        raise DataError(f"{check.summary}. Refused because of --strict; omit it to continue with the available clips")
    if not check.complete:
        say("continuing with the available clips; every result reports it (--strict refuses)")
    protocols, notes = choose_protocols(catalog, chosen.protocols)
    for note in notes:
        say(f"note: {note}")
    plans = _plans(chosen, out, say)
    for _, plan, _ in plans:
        check_recipe(plan.recipe, plan.changes())
    examined = time.monotonic() - begin
    with locked(out, "reproduce"):
        parts = []
        for title, plan, folder in plans:
            claim(plan, folder, catalog)
            stage1, doubt, seconds = _preprocess(plan, folder, catalog, say, show)
            parts.append(Part(title, plan, stage1, doubt, seconds, _jobs(plan, out, folder, protocols)))
        jobs = [job for part in parts for job in part.jobs]
        records = {job.name: record for job in jobs if (record := finished_record(job))}
        for part in parts:
            _check_same_recipe(part, records)
        if records:
            say(f"{len(records)} of {len(jobs)} runs were finished before")

        def publish() -> Reproduction:
            runs = [records[job.name] for job in jobs if job.name in records]
            rows: list[ProtocolRow] = []
            stages = [Stage(name="check", seconds=examined, what=f"{check.found} clips listed")]
            for part in parts:
                own = [records[job.name] for job in part.jobs if job.name in records]
                rows += rows_of(own, [protocol for protocol in protocols if protocol.startswith("cross-view:")])
                clips, spent = part.stage1.clips, sum(run.seconds for run in own)
                decoded = (
                    f"{clips} clips decoded and embedded" if part.seconds else f"all {clips} clips were in the cache"
                )
                count = f"{len(own)} of {len(part.jobs)} runs"
                stages.append(Stage(name=f"{part.title}preprocess", seconds=part.seconds, what=decoded))
                stages.append(Stage(name=f"{part.title}train and evaluate", seconds=spent, what=count))
            stages.append(Stage(name="all", seconds=sum(stage.seconds for stage in stages), what="over all starts"))
            versions = out / runs[-1].run / "environment.json" if runs else out
            result = Reproduction(
                data=check,
                comparable=check.is_nucla,
                planned=len(jobs),
                bad_clips=dict(sorted(Counter(clip.status for clip in parts[0].stage1.bad).items())),
                too_many_bad="; ".join(part.too_many_bad for part in parts if part.too_many_bad) or None,
                notes=notes,
                rows=tuple(rows),
                runs=tuple(runs),
                stages=tuple(stages),
                versions=(read_json(versions) if versions.is_file() else {}) | {"cpus": str(os.cpu_count())},
                command=_command(catalog.root, out, chosen),
            )
            write_reproduction(result, out)
            return result

        for n, job in enumerate(jobs, 1):
            if job.name not in records:
                title = f"{job.tests[0].rule} seed {job.seed}"
                say(f"run {n} of {len(jobs)}: {title}, recipe {job.recipe}")
                with show(title, "epochs") as update:
                    record = run_job(job, partial(_show_epoch, update))
                records[job.name] = record
                say(f"  top-1 {100 * record.top1:.1f} % on {record.test_groups} groups, {record.seconds:.0f} s")
                publish()
        return publish()


def _show_epoch(update: Callable[..., None], report: EpochReport) -> None:
    update(report.epoch, report.epochs, f"loss {report.loss:.3f}  accuracy {report.accuracy:.2f}")


def _plans(
    settings: ReproduceSettings, out: Path, say: Callable[[str], None]
) -> list[tuple[str, ReproduceSettings, Path]]:
    """Return title, settings and folder of each run. The second is from pixels, if there is a checkpoint and a GPU."""
    own = settings.changed(cache=(settings.cache or out / "cache").absolute())
    if settings.init is None:
        return [("", own, out)]
    init = settings.init.absolute()
    if not init.is_file():
        raise ConfigError(f"--init {init}: no such file")
    if settings.recipe is not None or settings.encoder != ReproduceSettings().encoder:
        return [("", own.changed(init=init), out)]
    plans = [("", own.changed(init=None), out)]
    if has_gpu(settings.device):
        paper = settings.changed(**PAPER, init=init, cache=(out / "paper/cache").absolute())
        plans.append(("paper: ", paper, out / "paper"))
    else:
        say(
            "no GPU: skipping the run from pixels, as in the paper; run the same command on a machine with a GPU to add it"
        )
    return plans


def has_gpu(device: str) -> bool:
    """Return whether training would run on a GPU."""
    return device != "cpu" and torch.cuda.is_available()


def _preprocess(
    plan: ReproduceSettings, out: Path, catalog: SourceCatalog, say: Callable[[str], None], show: Show
) -> tuple[PreprocessResult, str | None, float]:
    """Run stage 1. Return its result, its message if too many clips are unusable (the results report it), and its seconds."""
    file, doubt = out / STAGE1, None
    spent = read_json(file)["seconds"] if file.is_file() else 0.0

    def store(seconds: float) -> None:
        write_json(file, {"seconds": seconds})

    with show("preprocess", "clips") as update, timed(spent, store) as tick:

        def progress(done: int, total: int, bad: int) -> None:
            update(done, total, f"{bad} bad" if bad else "")
            tick()

        try:
            result = api.preprocess(
                "nucla",
                catalog.root,
                cast("Path", plan.cache),
                name=NAME,
                **{name: getattr(plan, name) for name in ("encoder", "frames", "size", "grid", "workers")},
                on_progress=lambda p: progress(p.done, p.total, p.bad),
            )
        except BadClipsError as error:
            result, doubt = cast("PreprocessResult", error.result), str(error)
    if result.already_done == result.clips:
        store(spent)  # the time of a look at finished work does not count
        say(f"stage 1 was done before: {result.clips} clips")
    else:
        say(f"stage 1: {result.clips - result.already_done} clips in {result.seconds:.0f} s")
    return result, doubt, read_json(file)["seconds"]


def _jobs(plan: ReproduceSettings, out: Path, folder: Path, protocols: Sequence[str]) -> tuple[Job, ...]:
    """Return a job for each protocol and seed, with the recipe that ``dtsf train`` would choose."""
    cache = cast("Path", plan.cache)
    data, jobs = open_dataset(cache, NAME), []
    for protocol in protocols:
        rule = parse_protocol(protocol, data.info.kind)
        split = split_clips(data.clips, rule, data.info.kind, data.info.view_names)
        recipe = plan.recipe or default_recipe(data.info, data.spec, rule.name)[0]
        settings = resolve(load_recipe(recipe, plan.changes()), data, split, plan.init)
        tests = open_tests(cache, data, rule, split)
        jobs += [
            Job(
                out=out,
                name=(folder.relative_to(out) / f"runs/{protocol.replace(':', '-')}-seed{seed}").as_posix(),
                cache=cache,
                recipe=recipe,
                overrides=plan.changes(),
                settings=settings,
                seed=seed,
                tests=tests,
                device=plan.device,
                init=plan.init,
            )
            for seed in plan.seeds
        ]
    return tuple(jobs)


def _check_same_recipe(part: Part, records: Mapping[str, RunRecord]) -> None:
    """Raise ConfigError if new runs have another recipe than finished ones: a row of the table would mix two recipes."""
    finished = [(job, records[job.name]) for job in part.jobs if job.name in records]
    for job, record in finished if len(finished) < len(part.jobs) else ():
        changed = differences(record.settings, job.settings.model_dump(mode="json"))
        if changed:
            raise ConfigError(
                f"{job.folder} was trained with another recipe than {record.protocol} has now (before in brackets): "
                f"{', '.join(changed)}. Choose another --out, or --overwrite to start again there"
            )


def _command(root: Path, out: Path, settings: ReproduceSettings) -> str:
    """Return the command that repeats this reproduction."""
    words = ["dtsf", "reproduce", "nucla", "--root", str(root), "--out", str(out)]
    words += ["--seeds", ",".join(map(str, settings.seeds))]
    defaults = ReproduceSettings()
    for name in ("protocols", "cache", "recipe", "init", "encoder", "frames", "size", "grid", "epochs", "overrides"):
        value = getattr(settings, name)
        items = value if isinstance(value, tuple) else [value]
        words += [w for item in items if value != getattr(defaults, name) for w in (settings.option(name), str(item))]
    return shlex.join(words)
