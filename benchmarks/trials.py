"""Trainings on halves of four people, for experiments in which each training is dear: maps.py and upper.py.

The numbers of a recipe come from folds by people: ``benchmarks/judge.py``.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from judge_sets import make_sets

from dtsf.cache.reader import CachedDataset
from dtsf.training.data import load_groups
from dtsf.training.loop import fit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dtsf.cache.schema import Clip
    from dtsf.training.data import Groups
    from dtsf.training.loop import FitResult

    ClipFilter = Callable[[Clip], bool]

PEOPLE = ("1", "2", "3", "4")
HALVES = (("1", "2"), ("3", "4"))


@dataclass(frozen=True)
class Trial:
    """One training and its evaluations."""

    train_on: str
    """Dataset in the cache."""
    clips: ClipFilter
    evaluations: tuple[tuple[str, str, ClipFilter], ...]
    """Row, dataset, clips."""
    rule: str = "all"
    """Kind of test: ``cross-view`` for new cameras, otherwise new people."""


def trials(sets: list[str]) -> Iterator[Trial]:
    """Return all trainings of the chosen datasets."""
    for some, others in (HALVES, HALVES[::-1]):
        seen, unseen = _of(*some), _of(*others)
        if "motion" in sets:
            yield Trial("iid", seen, (("motion.people", "iid", unseen), ("motion.hidden", "made-hidden", unseen)))
            tests = ("motion.aligned", "biased", unseen), ("motion.conflict", "made-conflict", unseen)
            yield Trial("biased", seen, tests)
        if "nucla" in sets:
            yield Trial("nucla", seen, (("nucla.people", "nucla", unseen),))
    for train_on, test in ((1, 2), (2, 1)) if "nucla" in sets else ():

        def filmed_by(clip: Clip, view: int) -> bool:
            return clip.subject in PEOPLE and clip.view == view

        tests_of = (("nucla.view", "nucla", partial(filmed_by, view=test)),)
        yield Trial("nucla", partial(filmed_by, view=train_on), tests_of, f"cross-view:{test}")


def _of(*subjects: str) -> ClipFilter:
    return lambda clip: clip.subject in subjects


def preprocess(data: Path, cache: Path, sets: list[str], words: list[str]) -> None:
    """Preprocess the datasets of the rows that are missing in the cache."""
    wanted: list[tuple[str, str, Path]] = []
    if "ixmas" in sets:
        wanted += [("manifest", "ixmas", data / "ixmas/videos.csv")]
    if "motion" in sets:
        wanted += [("nucla", "iid", data / "motion/iid")]
        wanted += [("nucla", "biased", data / "motion/biased/multiview_action_videos")]
        made = make_sets(data / "motion", cache / "made-videos")
        wanted += [("nucla", f"made-{part}", made / part) for part in ("conflict", "hidden")]
    if "nucla" in sets:
        wanted += [("nucla", "nucla", data / "nucla")]
    if "uti" in sets:
        wanted += [("manifest", "uti", data / "uti/sequences.csv")]
    for kind, name, root in wanted:
        if (cache / name).is_dir() and not words:
            continue
        command = [sys.executable, "-m", "dtsf", "preprocess", kind, "--root", root, "--name", name, "--cache", cache]
        subprocess.run([*map(str, command), *words, "--quiet"], check=True, stdout=sys.stderr)


def groups_of(data: CachedDataset, chosen: ClipFilter) -> Groups:
    """Return the groups of some clips."""
    return load_groups(data, [clip for clip in data.clips if chosen(clip)])


def trainer(data: CachedDataset, seed: int) -> Callable[..., FitResult]:
    """Call :func:`fit` with the arguments that all trainings of a dataset share."""
    return partial(fit, info=data.info, spec=data.spec, protocol="", seed=seed, device="cpu")
