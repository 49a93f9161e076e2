"""Reproduce N-UCLA in one table: check the data, preprocess, train every protocol with every seed; a call after a kill continues.
With a checkpoint and a GPU it runs again, from pixels as in the paper, in ``OUT/paper`` and with its own cache.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from dtsf import api
from dtsf.cache.reader import open_dataset
from dtsf.errors import BadClipsError, ConfigError, DataError
from dtsf.experiments.grid import locked, open_tests, resolve
from dtsf.experiments.job import LIMIT, Job, timed, write_json
from dtsf.experiments.results import ProtocolRow, Reproduction, Stage, rows_of
from dtsf.experiments.run_jobs import finished_records, run_jobs
from dtsf.experiments.settings import ReproduceSettings
from dtsf.experiments.tables import differences, write_reproduction
from dtsf.files.read import parse_json, read_file
from dtsf.pipeline.datasets.catalog import SourceCatalog
from dtsf.pipeline.datasets.nucla_check import NuclaCheck, examine_nucla
from dtsf.pipeline.preprocess import PreprocessResult, Progress
from dtsf.training.protocols import parse_protocol, split_clips
from dtsf.training.recipe import builtin_names, default_recipe, load_recipe
from dtsf.training.splits import check_split
from dtsf.training.start import read_start

Plan = tuple[str, ReproduceSettings, Path]
Show = Callable[[str, str], AbstractContextManager[Callable[..., None]]]

NAME = "nucla"  # kind of the dataset, and its name in the cache
SETTINGS, STAGE1 = "reproduce.json", "stage1.json"
CHOOSE = "Choose another --out, or --overwrite to start again there"
PUBLISHED_SUBJECT = 10  # test subject of DVANet's public cross-subject list
PAPER: dict[str, Any] = {"recipe": "nucla-paper", "overrides": (), "encoder": "pixels", "size": 224}  # from pixels


@dataclass(frozen=True)
class Part:
    """One of the two runs after stage 1: from embeddings, or from pixels. ``title``: prefix of its stages."""

    title: str
    stage1: PreprocessResult
    too_many_bad: str | None
    seconds: float  # time of stage 1, over all starts
    jobs: list[Job]


def reproduce_nucla(
    root: Path | None,
    out: Path = Path("reproduce-nucla"),
    settings: ReproduceSettings | None = None,
    *,
    on_check: Callable[[NuclaCheck], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
    show: Show = lambda *_: nullcontext(lambda *_: None),
    **changes: Any,
) -> Reproduction:
    """Run both stages on N-UCLA, write ``results.md``, ``.csv`` and ``.json`` into ``out``, and return the content of the last.
    ``show(title, unit)``: context that returns ``update(done, total, note)``. Raises DataError: no data, or with ``strict`` not
    all. ConfigError: an unknown protocol, recipe or checkpoint, or a folder of something else.
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
    examined = time.monotonic() - begin
    with locked(out, "reproduce"):
        parts = [_preprocess(plan, out, catalog, protocols, say, show) for plan in plans]
        jobs = [job for part in parts for job in part.jobs]
        records = finished_records(jobs)
        for part in parts:
            # A row of the table must not mix two recipes.
            finished = [job for job in part.jobs if job.name in records]
            for job in finished if len(finished) < len(part.jobs) else ():
                changed = ", ".join(differences(records[job.name].settings, job.settings.model_dump(mode="json")))
                if changed:
                    recipe = f"another recipe than {job.tests[0].rule} has now (before in brackets): {changed}"
                    raise ConfigError(f"{job.folder} was trained with {recipe}. {CHOOSE}")
        if records:
            say(f"{len(records)} of {len(jobs)} runs were finished before")

        def publish() -> Reproduction:
            rows: list[ProtocolRow] = []
            stages = [Stage(name="check", seconds=examined, what=f"{check.found} clips listed")]
            for part in parts:
                own = [records[job.name] for job in part.jobs if job.name in records]
                rows += rows_of(own, [protocol for protocol in protocols if protocol.startswith("cross-view:")])
                clips, spent = part.stage1.clips, sum(run.seconds for run in own)
                what = f"{clips} clips decoded and embedded" if part.seconds else f"all {clips} clips were in the cache"
                count = f"{len(own)} of {len(part.jobs)} runs, their times added"
                stages.append(Stage(name=f"{part.title}preprocess", seconds=part.seconds, what=what))
                stages.append(Stage(name=f"{part.title}train and evaluate", seconds=spent, what=count))
            runs = [records[job.name] for job in jobs if job.name in records]
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
                versions=_read(out / runs[-1].run / "environment.json") | {"cpus": str(os.cpu_count())},
                command=chosen.command(catalog.root, out),
            )
            write_reproduction(result, out)
            return result

        # The long ones first, so that no core waits for the last one.
        todo = {job.name: job for job in sorted(jobs, key=lambda job: not job.calibrated) if job.name not in records}
        for job in todo.values():
            say(f"to train: {job.title}, recipe {job.recipe}")
        with show("train", "epochs") as update:
            for name, record in run_jobs(todo, on_epoch=update):
                records[name] = record
                top1 = f"top-1 {100 * record.top1:.1f} % on {record.test_groups} groups, {record.seconds:.0f} s"
                say(f"run {len(records)} of {len(jobs)}: {todo[name].title}: {top1}")
                publish()
        return publish()


def choose_protocols(catalog: SourceCatalog, names: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Return the protocols to run, and notes on impossible ones. Default: every rotation of cross-view, and cross-subject of
    DVANet's subject or the last third. Raises ConfigError: a protocol is unknown or leaves a side empty. DataError: none remains.
    """
    words, notes = list(names), []
    if not names:
        views = sorted({clip.view for clip in catalog.clips})
        subjects = sorted({int(clip.subject) for clip in catalog.clips if clip.subject})
        absent = [view for view in range(1, len(catalog.view_names) + 1) if view not in views]
        notes = [f"cross-view:{view} is left out: no clip of view {view}" for view in absent]
        if len(views) > 1:
            words = [f"cross-view:{view}" for view in views]
        else:
            notes.append(f"cross-view is left out: all clips are of view {views[0]}")
        known = PUBLISHED_SUBJECT in subjects
        test = [PUBLISHED_SUBJECT] if known else subjects[-max(1, len(subjects) // 3) :]
        tested = ",".join(map(str, test))
        if len(subjects) < 2:
            notes.append(f"cross-subject is left out: all clips are of subject {tested}")
        else:
            words.append(f"cross-subject:{tested}")
            if not known:
                missing = f"the data have no subject {PUBLISHED_SUBJECT}, as in the public list"
                notes.append(f"cross-subject tests {tested}: {missing}")
    rules = [parse_protocol(word, catalog.kind) for word in words]
    for rule in rules:
        split_clips(catalog.clips, rule, catalog.kind, catalog.view_names)
    if not rules:
        raise DataError(f"{catalog.root} has one view of one subject: no protocol is possible")
    return list(dict.fromkeys(map(str, rules))), tuple(notes)


def _plans(settings: ReproduceSettings, out: Path, say: Callable[[str], None]) -> list[Plan]:
    """Return title, settings and folder of each run. A second run needs a checkpoint and a GPU. Raises ConfigError."""
    own = settings.changed(cache=(settings.cache or out / "cache").absolute(), init=None)
    plans = [("", own, out)]
    if settings.init is not None:
        init = settings.init.absolute()
        if not init.is_file():
            raise ConfigError(f"--init {init}: no such file")
        if settings.recipe is not None or settings.encoder != ReproduceSettings().encoder:
            plans = [("", own.changed(init=init), out)]
        elif has_gpu(settings.device):
            paper = settings.changed(**PAPER, frames=16, grid=6, init=init, cache=(out / "paper/cache").absolute())
            plans.append(("paper: ", paper, out / "paper"))
        else:
            say("no GPU: skipping the run from pixels, as in the paper; run this command again with a GPU to add it")
    for _, plan, _ in plans:
        candidates = builtin_names("recipe") if plan.recipe is None else [plan.recipe]
        for name in candidates:
            try:
                load_recipe(name, plan.changes())
                break
            except ConfigError:
                if name == candidates[-1]:
                    raise
    return plans


def has_gpu(device: str) -> bool:
    """Return whether training would run on a GPU."""
    return device != "cpu" and torch.cuda.is_available()


def _claim(plan: ReproduceSettings, out: Path, catalog: SourceCatalog) -> None:
    """Start or continue in the folder of a run. Raises ConfigError: it has something else, or was started with other settings."""
    file = out / SETTINGS
    clips = "\n".join(f"{clip.id} {clip.path} {clip.label}" for clip in catalog.clips)
    settings = {
        "root": str(catalog.root),
        "clips": len(catalog.clips),
        "digest": hashlib.sha256(clips.encode()).hexdigest()[:16],
        "overrides": list(plan.changes()),
        **plan.model_dump(mode="json", include={"cache", "recipe", "init", "encoder", "frames", "size", "grid"}),
    }
    if not file.is_file():
        if out.is_dir() and any(path.name != ".lock" for path in out.iterdir()):
            raise ConfigError(f"the folder {out} contains something else than a reproduction: choose another --out")
    elif plan.overwrite:
        for name in ("runs", "cache"):
            shutil.rmtree(out / name, ignore_errors=True)
        for path in (out / STAGE1, *out.glob("results.*")):
            path.unlink(missing_ok=True)
    else:
        before = _read(file)
        pairs = {key: (before.get(key), settings.get(key)) for key in sorted(settings.keys() | before.keys())}
        changed = "; ".join(f"{key} {old!r}, now {new!r}" for key, (old, new) in pairs.items() if old != new)
        if changed:
            raise ConfigError(f"{out} was started with {changed}. {CHOOSE}")
    write_json(file, settings)


def _read(file: Path) -> dict[str, Any]:
    """Read an object of JSON; an empty one without a file. Raises ConfigError: the file cannot be read."""
    if not file.is_file():
        return {}
    data = read_file(file, limit=LIMIT, error=ConfigError)
    document = parse_json(data, str(file), error=lambda why: ConfigError(f"{why}; choose another --out"))
    return document if isinstance(document, dict) else {}


def _preprocess(
    a_plan: Plan, out: Path, catalog: SourceCatalog, protocols: Sequence[str], say: Callable[[str], None], show: Show
) -> Part:
    """Run stage 1 and return the jobs for each protocol and seed, with the recipe that ``dtsf train`` would choose."""
    title, plan, folder = a_plan
    _claim(plan, folder, catalog)
    file, doubt, cache = folder / STAGE1, None, cast("Path", plan.cache)
    spent = _read(file).get("seconds", 0.0)

    def store(seconds: float) -> None:
        write_json(file, {"seconds": seconds})

    with show("preprocess", "clips") as update, timed(spent, store) as tick:

        def on_progress(progress: Progress) -> None:
            update(progress.done, progress.total, f"{progress.bad} bad" if progress.bad else "")
            tick()

        options = {name: getattr(plan, name) for name in ("encoder", "frames", "size", "grid", "workers")}
        try:
            result = api.preprocess(NAME, catalog.root, cache, name=NAME, **options, on_progress=on_progress)
        except BadClipsError as error:
            result, doubt = cast("PreprocessResult", error.result), str(error)
    if not result.changes.to_decode:
        store(spent)  # the time of a look at finished work does not count
        say(f"stage 1 was done before: {result.clips} clips")
    else:
        say(f"stage 1: {result.changes.to_decode} clips in {result.seconds:.0f} s")
    data, start, jobs = open_dataset(cache, NAME), read_start(plan.init), []
    for protocol in protocols:
        rule = parse_protocol(protocol, data.info.kind)
        split = split_clips(data.clips, rule, data.info.kind, data.info.view_names)
        split = check_split(data, split, data.info.class_names, rule, allow_leak=plan.allow_leak)
        recipe = plan.recipe or default_recipe(data.info, data.spec, rule.name)[0]
        settings = resolve(load_recipe(recipe, plan.changes()), data, split, start)
        common: dict[str, Any] = {"recipe": recipe, "overrides": plan.changes(), "settings": settings}
        common |= {"tests": open_tests(cache, data, rule, split), "device": plan.device, "init": plan.init}
        common |= {"allow_leak": plan.allow_leak, "workers": plan.workers}
        for seed in plan.seeds:
            name = folder.relative_to(out) / f"runs/{protocol.replace(':', '-')}-seed{seed}"
            # Calibration takes as long as the training, and changes no top-1: the other seeds only show its spread.
            calibrated = seed == plan.seeds[0]
            jobs.append(Job(out, name.as_posix(), cache, seed=seed, calibrated=calibrated, **common))
    return Part(title, result, doubt, _read(file).get("seconds", 0.0), jobs)
