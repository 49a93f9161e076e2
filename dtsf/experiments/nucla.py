"""Reproduce N-UCLA from the videos to one table: check the data, preprocess, train every protocol with every seed.

With a checkpoint and a GPU it runs a second time, from pixels as in the paper, in ``OUT/paper`` and with its own cache.
A second call repeats nothing that is finished. A call after a kill continues.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from dtsf import api
from dtsf.cache.reader import open_dataset
from dtsf.errors import BadClipsError, ConfigError, DataError
from dtsf.experiments.grid import Job, finished_record, locked, read_json, resolve, run_jobs, timed, write_json
from dtsf.experiments.results import Reproduction, Stage, rows_of
from dtsf.experiments.settings import Settings
from dtsf.experiments.tables import write_reproduction
from dtsf.experiments.test_sets import open_tests
from dtsf.experiments.variants import differences
from dtsf.pipeline.datasets.nucla_check import examine_nucla
from dtsf.training.protocols import parse_protocol, split_clips
from dtsf.training.recipe import default_recipe, load_recipe, recipe_names

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
SETTINGS, STAGE1 = "reproduce.json", "stage1.json"
PUBLISHED_SUBJECT = 10
"""Test subject of DVANet's public cross-subject list."""
PAPER = {"recipe": "nucla-paper", "encoder": "pixels", "size": 224, "frames": 16, "grid": 6}
"""Settings of the run from pixels. The grid has no effect on pixels."""


@dataclass(frozen=True)
class Part:
    """One of the two runs: from embeddings, or from pixels. Each has its own folder, settings and cache."""

    title: str
    """Prefix of its stages."""
    folder: Path
    settings: Settings
    cache: Path
    stage1: PreprocessResult | None = None
    too_many_bad: str | None = None
    jobs: tuple[Job, ...] = ()


@contextmanager
def no_progress(title: str, unit: str) -> Iterator[Callable[..., None]]:
    """Show no progress."""
    yield lambda *_: None


def reproduce_nucla(
    root: Path | None,
    out: Path = Path("reproduce-nucla"),
    *,
    seeds: Sequence[int] = (0, 1, 2),
    protocols: Sequence[str] = (),
    settings: Settings | None = None,
    paper: Settings | None = None,
    cache: Path | None = None,
    workers: int | None = None,
    device: str = "auto",
    max_bad: float = 0.05,
    strict: bool = False,
    overwrite: bool = False,
    on_check: Callable[[NuclaCheck], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
    show: Show = no_progress,
) -> Reproduction:
    """Run both stages on N-UCLA and write ``results.md``, ``.csv`` and ``.json`` into ``out``.

    Return the content of ``results.json``. Raises DataError: no data, or with ``strict`` not all of them. ConfigError: an
    unknown protocol, recipe or checkpoint, or a folder of something else.

    Args:
        protocols: As in ``dtsf train``; those of :func:`choose_protocols` if empty.
        settings: Settings of the run from embeddings.
        paper: Settings of the run from pixels (:func:`paper_settings`). It is skipped without a GPU.
        cache: Folder of the cache, which may contain the embeddings already; ``OUT/cache`` if None.
        max_bad: Fraction of unusable clips above which the result is doubtful (``too_many_bad``).
        strict: Refuse data that are not the whole N-UCLA. Otherwise the results report it.
        say: Called with messages for the user.
        show: ``show(title, unit)`` is a context that returns ``update(done, total, note)``.
    """
    begin = time.monotonic()
    catalog, check = examine_nucla(root)
    on_check(check)
    if strict and not check.complete:
        raise DataError(f"{check.summary}. Refused because of --strict; omit it to continue with the available clips")
    if not check.complete:
        say("continuing with the available clips; every result reports it (--strict refuses)")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds {','.join(map(str, seeds)) or 'none'}: give at least one, and each once")
    chosen, notes = choose_protocols(catalog, protocols)
    for note in notes:
        say(f"note: {note}")
    parts = [Part("", out, settings or Settings(), (cache or out / "cache").absolute())]
    if paper is not None and has_gpu(device):
        parts.append(Part("paper: ", out / "paper", paper, (out / "paper/cache").absolute()))
    elif paper is not None:
        say(
            "no GPU: the run from pixels, as in the paper, is skipped; the same command on a machine with a GPU adds it"
        )
    for part in parts:
        check_recipe(part.settings.recipe, part.settings.overrides)
    examined = time.monotonic() - begin
    command = _command(catalog.root, out, seeds, protocols, parts[0].settings, paper, cache)
    with locked(out, "reproduce"):
        for k, part in enumerate(parts):
            _claim(part, catalog, overwrite=overwrite)
            part = _preprocess(part, catalog, workers, max_bad, say, show)  # noqa: PLW2901
            parts[k] = replace(part, jobs=_jobs(part, out, chosen, seeds, device))
        jobs = [job for part in parts for job in part.jobs]
        records = {job.name: record for job in jobs if (record := finished_record(job))}
        for part in parts:
            _check_same_recipe(part, records)
        if records:
            say(f"{len(records)} of {len(jobs)} runs were finished before")

        def publish() -> Reproduction:
            stages = [Stage(name="check", seconds=examined, what=f"{check.found} clips listed")]
            runs: list[RunRecord] = []
            rows: list[ProtocolRow] = []
            for part in parts:
                own = [records[job.name] for job in part.jobs if job.name in records]
                runs += own
                rows += rows_of(own, [protocol for protocol in chosen if protocol.startswith("cross-view:")])
                stages += _stages(part, own)
            stages.append(Stage(name="all", seconds=sum(stage.seconds for stage in stages), what="over all starts"))
            stage1 = cast("PreprocessResult", parts[0].stage1)
            versions = out / runs[-1].run / "environment.json" if runs else out
            result = Reproduction(
                data=check,
                comparable=check.is_nucla,
                planned=len(jobs),
                bad_clips=dict(sorted(Counter(record.status for record in stage1.bad).items())),
                too_many_bad="; ".join(part.too_many_bad for part in parts if part.too_many_bad) or None,
                notes=notes,
                rows=tuple(rows),
                runs=tuple(runs),
                stages=tuple(stages),
                versions=(read_json(versions) if versions.is_file() else {}) | {"cpus": str(os.cpu_count())},
                command=command,
            )
            write_reproduction(result, out)
            return result

        @contextmanager
        def watch(job: Job) -> Iterator[Callable[[EpochReport], None]]:
            title = f"{job.tests[0].rule} seed {job.seed}"
            say(f"run {jobs.index(job) + 1} of {len(jobs)}: {title}, recipe {job.recipe}")
            with show(title, "epochs") as update:
                yield lambda e: update(e.epoch, e.epochs, f"loss {e.loss:.3f}  accuracy {e.accuracy:.2f}")

        for job, record in run_jobs([job for job in jobs if job.name not in records], watch):
            records[job.name] = record
            say(f"  top-1 {100 * record.top1:.1f} % on {record.test_groups} groups, {record.seconds:.0f} s")
            publish()
        return publish()


def paper_settings(init: Path, overrides: Sequence[str] = ()) -> Settings:
    """Return the settings of the run from pixels, initialised from a VideoMamba checkpoint. Raises ConfigError: no such file."""
    if not init.is_file():
        raise ConfigError(f"--init {init}: no such file")
    return Settings(**PAPER, overrides=tuple(overrides), init=str(init.absolute()))


def has_gpu(device: str) -> bool:
    """Return whether training would run on a GPU."""
    return device != "cpu" and torch.cuda.is_available()


def choose_protocols(catalog: SourceCatalog, names: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Return the protocols to run, and notes on those that the dataset does not allow.

    The default is every rotation of cross-view, and cross-subject with test subject 10 as in DVANet's public list. Without
    such a subject, the last third of the subjects is tested.

    Raises ConfigError: a given protocol does not exist or leaves a side empty. DataError: no protocol is possible.
    """
    words, notes = (list(names), []) if names else _default_protocols(catalog)
    rules = [parse_protocol(word, catalog.kind) for word in words]
    for rule in rules:
        split_clips(catalog.clips, rule, catalog.kind, catalog.view_names)
    if not rules:
        raise DataError(f"{catalog.root} has one view of one subject: no protocol is possible")
    return list(dict.fromkeys(map(str, rules))), tuple(notes)


def _default_protocols(catalog: SourceCatalog) -> tuple[list[str], list[str]]:
    views = sorted({clip.view for clip in catalog.clips})
    subjects = sorted({int(clip.subject) for clip in catalog.clips if clip.subject})
    absent = [view for view in range(1, len(catalog.view_names) + 1) if view not in views]
    notes = [f"cross-view:{view} is left out: no clip of view {view}" for view in absent]
    protocols = [f"cross-view:{view}" for view in views] if len(views) > 1 else []
    if not protocols:
        notes.append(f"cross-view is left out: all clips are of view {views[0]}")
    if len(subjects) < 2:
        notes.append(f"cross-subject is left out: all clips are of subject {', '.join(map(str, subjects))}")
    elif PUBLISHED_SUBJECT in subjects:
        protocols.append(f"cross-subject:{PUBLISHED_SUBJECT}")
    else:
        test = ",".join(map(str, subjects[-max(1, len(subjects) // 3) :]))
        protocols.append(f"cross-subject:{test}")
        notes.append(f"cross-subject tests {test}: the data have no subject {PUBLISHED_SUBJECT}, as in the public list")
    return protocols, notes


def check_recipe(recipe: str | None, overrides: Sequence[str]) -> None:
    """Check recipe and overrides before stage 1. Without a recipe, the overrides must fit one of the built-in recipes. Raises
    ConfigError: an unknown recipe or key, or a value out of range.
    """
    candidates = [recipe] if recipe is not None else recipe_names()
    for name in candidates:
        try:
            load_recipe(name, overrides)
            return
        except ConfigError:
            if name == candidates[-1]:
                raise


def _claim(part: Part, catalog: SourceCatalog, *, overwrite: bool) -> None:
    """Start in the folder of a part, or continue there with the same settings. Raises ConfigError: the folder contains
    something else, or was started with other settings.
    """
    out, file = part.folder, part.folder / SETTINGS
    clips = "\n".join(f"{clip.id} {clip.path} {clip.label}" for clip in catalog.clips)
    settings = {
        "root": str(catalog.root),
        "clips": len(catalog.clips),
        "digest": hashlib.sha256(clips.encode()).hexdigest()[:16],
        "cache": str(part.cache),
        **part.settings.model_dump(mode="json"),
    }
    if not file.is_file():
        if out.is_dir() and any(path.name != ".lock" for path in out.iterdir()):
            raise ConfigError(f"the folder {out} contains something else than a reproduction: choose another --out")
    elif overwrite:
        for name in ("runs", "cache"):
            shutil.rmtree(out / name, ignore_errors=True)
        for path in (out / STAGE1, *out.glob("results.*")):
            path.unlink(missing_ok=True)
    else:
        before = read_json(file)
        changed = [
            f"{key} {before.get(key)!r}, now {settings.get(key)!r}"
            for key in sorted(settings.keys() | before.keys())
            if before.get(key) != settings.get(key)
        ]
        if changed:
            raise ConfigError(
                f"{out} was started with {'; '.join(changed)}: choose another --out, or --overwrite to start again there"
            )
    write_json(file, settings)


def _preprocess(
    part: Part, catalog: SourceCatalog, workers: int | None, max_bad: float, say: Callable[[str], None], show: Show
) -> Part:
    """Run stage 1. Too many unusable clips do not stop a reproduction: the results report them."""
    file, doubt, s = part.folder / STAGE1, None, part.settings
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
                part.cache,
                name=NAME,
                **{name: getattr(s, name) for name in ("encoder", "frames", "size", "grid")},
                workers=workers,
                max_bad=max_bad,
                on_progress=lambda p: progress(p.done, p.total, p.bad),
            )
        except BadClipsError as error:
            result, doubt = cast("PreprocessResult", error.result), str(error)
    if result.already_done == result.clips:
        store(spent)  # the time of a look at finished work does not count
        say(f"stage 1 was done before: {result.clips} clips")
    else:
        say(f"stage 1: {result.clips - result.already_done} clips in {result.seconds:.0f} s")
    return replace(part, stage1=result, too_many_bad=doubt)


def _stages(part: Part, runs: Sequence[RunRecord]) -> list[Stage]:
    clips, spent = cast("PreprocessResult", part.stage1).clips, read_json(part.folder / STAGE1)["seconds"]
    done = f"{clips} clips decoded and embedded" if spent else f"all {clips} clips were in the cache"
    trained, count = sum(run.seconds for run in runs), f"{len(runs)} of {len(part.jobs)} runs"
    return [
        Stage(name=f"{part.title}preprocess", seconds=spent, what=done),
        Stage(name=f"{part.title}train and evaluate", seconds=trained, what=count),
    ]


def _jobs(part: Part, out: Path, protocols: Sequence[str], seeds: Sequence[int], device: str) -> tuple[Job, ...]:
    """Return a job for each protocol and seed, with the recipe that ``dtsf train`` would choose."""
    data, jobs = open_dataset(part.cache, NAME), []
    init = Path(part.settings.init) if part.settings.init else None
    for protocol in protocols:
        rule = parse_protocol(protocol, data.info.kind)
        split = split_clips(data.clips, rule, data.info.kind, data.info.view_names)
        recipe = part.settings.recipe or default_recipe(data.info, data.spec, rule.name)[0]
        settings = resolve(load_recipe(recipe, part.settings.overrides), data, split, init)
        tests = open_tests(part.cache, data, rule, split)
        jobs += [
            Job(
                out=out,
                name=(part.folder.relative_to(out) / f"runs/{protocol.replace(':', '-')}-seed{seed}").as_posix(),
                cache=part.cache,
                recipe=recipe,
                overrides=part.settings.overrides,
                settings=settings,
                seed=seed,
                tests=tests,
                device=device,
                init=init,
            )
            for seed in seeds
        ]
    return tuple(jobs)


def _check_same_recipe(part: Part, records: Mapping[str, RunRecord]) -> None:
    """Raise ConfigError if a new run has another recipe than a finished run of its protocol: one row would mix two recipes."""
    for job in part.jobs:
        rule = str(job.tests[0].rule)
        finished = [] if job.name in records else [records[other.name] for other in part.jobs if other.name in records]
        for record in finished:
            changed = differences(record.settings, job.settings.model_dump(mode="json"))
            if record.protocol == rule and changed:
                raise ConfigError(
                    f"{job.out / record.run} was trained with another recipe than {rule} has now (before in brackets): "
                    f"{', '.join(changed)}. Choose another --out, or --overwrite to start again there"
                )


def _command(
    root: Path,
    out: Path,
    seeds: Sequence[int],
    protocols: Sequence[str],
    settings: Settings,
    paper: Settings | None,
    cache: Path | None,
) -> str:
    """Return the command that repeats this reproduction."""
    given: dict[str, Any] = {"--root": root, "--out": out, "--seeds": ",".join(map(str, seeds)), "--cache": cache}
    given |= {f"--{name}": getattr(settings, name) for name in ("recipe", "init", "encoder", "frames", "size", "grid")}
    defaults = {f"--{name}": value for name, value in Settings().model_dump().items()}
    given["--init"] = settings.init or (paper.init if paper else None)
    words = [w for name, value in given.items() if value != defaults.get(name) for w in (name, str(value))]
    words += [w for protocol in protocols for w in ("--protocol", protocol)]
    words += [w for override in settings.overrides for w in ("--set", override)]
    return shlex.join(["dtsf", "reproduce", "nucla", *words])
