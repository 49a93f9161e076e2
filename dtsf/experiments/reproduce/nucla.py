"""N-UCLA end to end: check the data, preprocess, train every protocol with every seed, one table.

```python
from dtsf.experiments.reproduce.nucla import reproduce_nucla

reproduce_nucla(Path("data/nucla"), Path("reproduce-nucla"))
```

Everything that is finished stays finished: a second call repeats nothing, a killed one goes on.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dtsf.errors import ConfigError, DataError
from dtsf.experiments.reproduce.protocols import check_recipe, choose_protocols
from dtsf.experiments.reproduce.records import Reproduction, RunRecord, Stage, rows_of
from dtsf.experiments.reproduce.settings import Settings
from dtsf.experiments.reproduce.stages import preprocess_once, train_once, unseen
from dtsf.experiments.reproduce.state import RESULT, claim, digest, only_one, read_result, seconds_of, write_json
from dtsf.experiments.reproduce.table import write_results
from dtsf.pipeline.datasets.nucla_check import examine_nucla

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dtsf.experiments.reproduce.stages import Show
    from dtsf.pipeline.datasets.nucla_check import NuclaCheck
    from dtsf.pipeline.preprocess import PreprocessResult


def reproduce_nucla(
    root: Path | None,
    out: Path = Path("reproduce-nucla"),
    *,
    seeds: Sequence[int] = (0, 1, 2),
    protocols: Sequence[str] = (),
    settings: Settings | None = None,
    cache: Path | None = None,
    workers: int | None = None,
    device: str = "auto",
    max_bad: float = 0.05,
    strict: bool = False,
    overwrite: bool = False,
    on_check: Callable[[NuclaCheck], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
    show: Show = unseen,
) -> Reproduction:
    """Both stages on N-UCLA, every protocol with every seed, and ``results.md``, ``.csv`` and ``.json`` in ``out``.

    Returns what ``results.json`` holds. Raises DataError: no data, or with ``strict`` not all of them. ConfigError: a protocol
    or recipe that does not exist, or a folder that holds something else.

    Args:
        protocols: As ``dtsf train`` takes them; those of :func:`dtsf.experiments.reproduce.protocols.choose_protocols` if empty.
        cache: Folder of a cache to use, which may hold the embeddings already.
        max_bad: Share of clips that may be unusable before the result counts as doubtful (``too_many_bad``).
        strict: Refuse anything but the whole N-UCLA, which is otherwise only reported.
        say: Called with a line for a person now and then.
        show: ``show(title, unit)`` is a context that gives ``update(done, total, note)``, as the command line's bars.
    """
    begun = time.monotonic()
    catalog, check = examine_nucla(root)
    on_check(check)
    if strict and not check.complete:
        raise DataError(f"{check.summary}. --strict refuses that; leave it out to go on with what is there")
    if not check.complete:
        say("going on with what is there; every result says so (--strict would refuse)")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds {','.join(map(str, seeds)) or 'none'}: name at least one, and each once")
    chosen, notes = choose_protocols(catalog, protocols)
    for note in notes:
        say(f"note: {note}")
    settings = settings or Settings()
    check_recipe(settings.recipe, settings.overrides)
    folder = (cache or out / "cache").absolute()
    identity = {
        "root": str(catalog.root),
        "clips": len(catalog.clips),
        "digest": digest(catalog),
        "cache": str(folder),
        **settings.model_dump(mode="json"),
    }
    examined = time.monotonic() - begun
    with only_one(out):
        claim(out, identity, overwrite=overwrite)
        stage1, too_many_bad = preprocess_once(catalog, folder, out, settings, workers, max_bad, say, show)
        plan = _Plan(
            check=check,
            jobs=tuple((protocol, seed) for protocol in chosen for seed in seeds),
            notes=notes,
            stage1=stage1,
            too_many_bad=too_many_bad,
            examined=examined,
            command=_command(catalog.root, out, seeds, protocols, settings, cache),
        )
        done = {job: record for job in plan.jobs if (record := read_result(_run_folder(out, *job))) is not None}
        if done:
            say(f"{len(done)} of {len(plan.jobs)} runs were finished before")
        for n, job in enumerate(plan.jobs, 1):
            if job in done:
                continue
            run = _run_folder(out, *job)
            say(f"run {n} of {len(plan.jobs)}: {job[0]}, seed {job[1]}")
            sister = next((done[other] for other in done if other[0] == job[0]), None)
            done[job] = record = train_once(folder, out, run, *job, settings, device, show, sister)
            write_json(run / RESULT, record.model_dump(mode="json"))
            say(f"  top-1 {100 * record.top1:.1f} % on {record.test_groups} groups, {record.seconds:.0f} s")
            # After every run: what a person finds in the folder is never older than the last finished run.
            write_results(_document(plan, done, out), out)
        write_results(result := _document(plan, done, out), out)
        return result


@dataclass(frozen=True)
class _Plan:
    """The reproduction before its first run: data, plan, settings."""

    check: NuclaCheck
    jobs: tuple[tuple[str, int], ...]
    """Protocol and seed of every run."""
    notes: tuple[str, ...]
    stage1: PreprocessResult
    too_many_bad: str | None
    examined: float
    command: str


def _document(plan: _Plan, done: Mapping[tuple[str, int], RunRecord], out: Path) -> Reproduction:
    runs = tuple(done[job] for job in plan.jobs if job in done)
    rotations = dict.fromkeys(protocol for protocol, _ in plan.jobs if protocol.startswith("cross-view:"))
    spent, trained = seconds_of(out, "preprocess"), sum(run.seconds for run in runs)
    clips = plan.stage1.clips
    stage1 = f"{clips} clips decoded and embedded" if spent else f"all {clips} clips were in the cache"
    return Reproduction(
        data=plan.check,
        comparable=plan.check.is_nucla,
        planned=len(plan.jobs),
        bad_clips=dict(sorted(Counter(record.verdict for record in plan.stage1.bad).items())),
        too_many_bad=plan.too_many_bad,
        notes=plan.notes,
        rows=rows_of(runs, list(rotations)),
        runs=runs,
        stages=(
            Stage(name="check", seconds=plan.examined, what=f"{plan.check.found} clips listed"),
            Stage(name="preprocess", seconds=spent, what=stage1),
            Stage(name="train and judge", seconds=trained, what=f"{len(runs)} of {len(plan.jobs)} runs"),
            Stage(name="all", seconds=plan.examined + spent + trained, what="over all starts"),
        ),
        versions=_versions(out, runs),
        command=plan.command,
    )


def _run_folder(out: Path, protocol: str, seed: int) -> Path:
    return out / "runs" / f"{protocol.replace(':', '-')}-seed{seed}"


def _versions(out: Path, runs: Sequence[RunRecord]) -> dict[str, str]:
    """Versions from the record of the last run."""
    file = out / runs[-1].run / "environment.json" if runs else None
    return (json.loads(file.read_text("utf-8")) if file is not None and file.is_file() else {}) | {
        "cpus": str(os.cpu_count())
    }


def _command(
    root: Path, out: Path, seeds: Sequence[int], protocols: Sequence[str], settings: Settings, cache: Path | None
) -> str:
    """The command that repeats this reproduction."""
    words = ["dtsf", "reproduce", "nucla", "--root", str(root), "--out", str(out)]
    words += ["--seeds", ",".join(map(str, seeds)), *(w for protocol in protocols for w in ("--protocol", protocol))]
    words += ["--cache", str(cache)] if cache else []
    usual = Settings()
    for name in ("recipe", "init", "encoder", "frames", "size", "grid"):
        if (value := getattr(settings, name)) != getattr(usual, name):
            words += [f"--{name}", str(value)]
    return shlex.join(words + [w for override in settings.overrides for w in ("--set", override)])
