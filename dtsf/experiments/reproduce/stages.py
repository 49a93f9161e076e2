"""Run both stages of :mod:`dtsf.api`: each piece once, timed, resumed after a kill."""

from __future__ import annotations

import tomllib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

from dtsf import api
from dtsf.errors import BadClipsError, ConfigError
from dtsf.experiments.reproduce.protocols import recipe_name
from dtsf.experiments.reproduce.records import RunRecord
from dtsf.experiments.reproduce.state import seconds_of, set_seconds, timed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from dtsf.cache.reader import CachedDataset
    from dtsf.experiments.reproduce.settings import Settings
    from dtsf.pipeline.datasets.catalog import SourceCatalog
    from dtsf.pipeline.preprocess import PreprocessResult
    from dtsf.training.protocols import Split
    from dtsf.training.recipe import Recipe

    Show = Callable[[str, str], AbstractContextManager[Callable[..., None]]]

NAME = "nucla"
"""Of the data set in the cache."""


@contextmanager
def unseen(title: str, unit: str) -> Iterator[Callable[..., None]]:
    """Show no progress."""
    yield lambda *_: None


def preprocess_once(
    catalog: SourceCatalog,
    cache: Path,
    out: Path,
    settings: Settings,
    workers: int | None,
    max_bad: float,
    say: Callable[[str], None],
    show: Show,
) -> tuple[PreprocessResult, str | None]:
    """Run stage 1. Too many unusable clips do not stop a reproduction; its results report them."""
    spent, doubt = seconds_of(out, "preprocess"), None
    with show("preprocess", "clips") as update, timed(out, "preprocess") as tick:

        def progress(done: int, total: int, bad: int) -> None:
            update(done, total, f"{bad} bad" if bad else "")
            tick()

        try:
            result = api.preprocess(
                "nucla",
                catalog.root,
                cache,
                name=NAME,
                encoder=settings.encoder,
                frames=settings.frames,
                size=settings.size,
                grid=settings.grid,
                workers=workers,
                max_bad=max_bad,
                on_progress=lambda p: progress(p.done, p.total, p.bad),
            )
        except BadClipsError as error:
            result, doubt = cast("PreprocessResult", error.result), str(error)
    if result.already_done == result.clips:
        # Looking through finished work is not time that stage 1 takes.
        set_seconds(out, "preprocess", spent)
        say(f"stage 1 was done before: {result.clips} clips")
    else:
        say(f"stage 1: {result.clips - result.already_done} clips in {result.seconds:.0f} s")
    return result, doubt


def train_once(
    cache: Path,
    out: Path,
    run: Path,
    protocol: str,
    seed: int,
    settings: Settings,
    device: str,
    show: Show,
    sister: RunRecord | None = None,
) -> RunRecord:
    """One run, from its newest checkpoint where it has one. Raises ConfigError: it would be trained with another recipe than
    its finished ``sister`` of the same protocol was: one row of the table would mix two recipes.
    """
    from dtsf.training.checkpoint import resume_or_clear

    seen: list[tuple[CachedDataset, Split, Recipe]] = []

    def begin(_: Path, data: CachedDataset, split: Split, chosen: Recipe) -> None:
        if sister is not None and chosen.model_dump(mode="json") != sister.settings:
            raise ConfigError(
                f"{out / sister.run} was trained with another recipe than {protocol} has now: {_differences(sister, chosen)}. "
                "Choose another --out, or --overwrite to begin anew there"
            )
        seen.append((data, split, chosen))

    key = f"{protocol} seed {seed}"
    resume = resume_or_clear(run)
    with show(key, "epochs") as update, timed(out, key) as tick:

        def progress(epoch: int, epochs: int, note: str) -> None:
            update(epoch, epochs, note)
            tick()

        result = api.train(
            cache,
            dataset=NAME,
            protocol=protocol,
            recipe=settings.recipe,
            overrides=settings.overrides,
            run=run,
            seed=seed,
            device=device,
            resume=resume,
            # A run that goes on does so from its own weights.
            init=Path(settings.init) if settings.init and not resume else None,
            on_start=begin,
            on_epoch=lambda e: progress(e.epoch, e.epochs, f"loss {e.loss:.3f}  accuracy {e.accuracy:.2f}"),
        )
    data, split, chosen = seen[0]
    metrics = result.evaluation.metrics
    return RunRecord(
        protocol=protocol,
        seed=seed,
        run=run.relative_to(out).as_posix(),
        task=split.task,
        train_clips=len(split.train),
        train_groups=len({clip.group for clip in split.train}),
        test_clips=len(split.test),
        test_groups=metrics.n_groups,
        top1=metrics.top1,
        top5=metrics.top5,
        ece=metrics.ece,
        view_top1=metrics.view_top1,
        left_out=result.evaluation.left_out,
        recipe=_recorded_recipe(run) or recipe_name(chosen, settings.recipe, settings.overrides),
        settings=chosen.model_dump(mode="json"),
        epochs=result.epochs,
        fingerprint=data.spec.fingerprint(),
        seconds=seconds_of(out, key),
    )


def _recorded_recipe(run: Path) -> str | None:
    """The recipe's name where the run's own record has it."""
    name = tomllib.loads((run / "config.toml").read_text("utf-8")).get("data", {}).get("recipe")
    return name if isinstance(name, str) else None


def _differences(sister: RunRecord, chosen: Recipe) -> str:
    now = chosen.model_dump(mode="json")
    return ", ".join(
        f"{section}.{key} {sister.settings.get(section, {}).get(key)!r}, now {value!r}"
        for section, values in now.items()
        for key, value in values.items()
        if sister.settings.get(section, {}).get(key) != value
    )
