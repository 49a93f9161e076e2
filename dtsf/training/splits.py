"""Divisions of the training clips: held-out groups, folds for calibration, and excluded classes."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import torch

from dtsf.cache.schema import Clip
from dtsf.errors import ConfigError
from dtsf.settings import Frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dtsf.cache.schema import DatasetInfo
    from dtsf.training.protocols import Split
    from dtsf.training.recipe import TrainConfig

EXCLUDED = "excluded"
"""Value of ``--unknown`` for the classes that the run excludes from training."""


class Fold(Frozen):
    """Training clips of one fold, and the clips that are held out."""

    train: tuple[Clip, ...]
    held_out: tuple[Clip, ...]


def make_folds(clips: Sequence[Clip], protocol: str, n_folds: int) -> tuple[list[Fold], str]:
    """Divide training clips into folds of about equal numbers of groups. Return also the unit of division.

    The unit follows ``protocol`` (its name): views for ``cross-view``, setups for ``cross-setup``, else people. With fewer than
    two units, groups are divided. Returns no fold if nothing can be divided.
    """
    by = {"cross-view": "views", "cross-setup": "setups"}.get(protocol, "people")
    keys: dict[str, Callable[[Clip], str | None]] = {
        "views": lambda clip: str(clip.view),
        "setups": lambda clip: None if clip.setup is None else str(clip.setup),
        "people": lambda clip: clip.subject,
    }
    found = {clip.id: keys[by](clip) for clip in clips}
    if by == "people":
        found = _join_people(found)
    unit = {clip: name for clip, name in found.items() if name is not None}
    if len(unit) < len(found) or len(set(unit.values())) < 2:
        by, unit = "groups", {clip.id: clip.group for clip in clips}
    sizes = Counter(unit.values())
    n_folds = min(n_folds, len(sizes))
    if n_folds < 2:
        return [], by
    # Groups: each class is spread over the folds. Other units: the largest first, into the smallest fold.
    label = {unit[clip.id]: clip.label for clip in clips}
    order = sorted(sizes, key=lambda name: (label[name], name) if by == "groups" else (-sizes[name], name))
    fold_of: dict[str, int] = {}
    filled = [0] * n_folds
    for n, name in enumerate(order):
        fold_of[name] = n % n_folds if by == "groups" else filled.index(min(filled))
        filled[fold_of[name]] += sizes[name]
    return [
        Fold(
            train=tuple(clip for clip in clips if fold_of[unit[clip.id]] != k),
            held_out=tuple(clip for clip in clips if fold_of[unit[clip.id]] == k),
        )
        for k in range(n_folds)
    ], f"{by} held out"


def drop_unknown_classes(fold: Fold) -> Fold:
    """Drop held-out clips of classes that are not in the training clips of the fold."""
    known = {clip.label for clip in fold.train}
    return Fold(train=fold.train, held_out=tuple(clip for clip in fold.held_out if clip.label in known))


def _join_people(subject_of: dict[str, str | None]) -> dict[str, str | None]:
    """Replace each subject by one person of all who ever perform together (``3+4``): they stay in one fold."""
    leader: dict[str, str] = {}

    def lead(person: str) -> str:
        while leader.setdefault(person, person) != person:
            person = leader[person]
        return person

    for subject in {name for name in subject_of.values() if name}:
        first, *others = subject.split("+")
        for other in others:
            leader[lead(other)] = lead(first)
    return {clip: lead(name.split("+")[0]) if name else None for clip, name in subject_of.items()}


def hold_out(split: Split, config: TrainConfig, seed: int) -> Split:
    """Move the held-out groups of a recipe out of the training clips. All clips of a group stay together.

    ``config.held_out`` is a share of the groups of each class, at least one if the class has two. Raises ConfigError: a subject
    without training clips, or no group left in training or held out.
    """
    if config.held_out_subjects:
        names = _groups_of_subjects(split, config.held_out_subjects)
        key = f"train.held_out_subjects={','.join(config.held_out_subjects)}"
    elif config.held_out:
        names = _share_of_groups(split.train, config.held_out, seed)
        key = f"train.held_out={config.held_out}"
    else:
        return split
    train = tuple(clip for clip in split.train if clip.group not in names)
    if not names or not train:
        groups = len({clip.group for clip in split.train})
        raise ConfigError(
            f"{key} holds out {len(names)} of {groups} training groups: some must be held out and some must train"
            + (" (a share leaves each class one group; hold out a subject instead)" if not names else "")
        )
    held_out = tuple(clip for clip in split.train if clip.group in names)
    return split.model_copy(update={"train": train, "held_out": held_out})


def _groups_of_subjects(split: Split, subjects: tuple[str, ...]) -> set[str]:
    known = sorted({person for clip in split.train for person in (clip.subject or "").split("+") if person})
    absent = [subject for subject in subjects if subject not in known]
    if absent:
        raise ConfigError(
            f"train.held_out_subjects: {', '.join(absent)} is not among the training subjects "
            f"({', '.join(known) or 'the dataset names no subjects'})"
        )
    return {clip.group for clip in split.train if set((clip.subject or "").split("+")) & set(subjects)}


def _share_of_groups(clips: tuple[Clip, ...], share: float, seed: int) -> set[str]:
    by_label: dict[int, set[str]] = {}
    for clip in clips:
        by_label.setdefault(clip.label, set()).add(clip.group)
    # A separate generator: held-out groups do not change the other draws of the seed.
    generator = torch.Generator().manual_seed(seed)
    drawn: set[str] = set()
    for _, groups in sorted(by_label.items()):
        names = sorted(groups)
        n = min(len(names) - 1, max(1, round(share * len(names))))
        drawn |= {names[k] for k in torch.randperm(len(names), generator=generator)[:n].tolist()}
    return drawn


def exclude_classes(split: Split, info: DatasetInfo, names: Sequence[str]) -> tuple[Split, DatasetInfo]:
    """Remove classes from both sides of a split and from ``info``. Raises ConfigError: unknown class, or fewer than two left."""
    if not names:
        return split, info
    absent = [name for name in names if name not in info.class_names]
    if absent:
        raise ConfigError(
            f"train.exclude_classes: no class {', '.join(absent)}; {info.name} has {', '.join(info.class_names)}"
        )
    kept = tuple(name for name in info.class_names if name not in names)
    if len(kept) < 2:
        raise ConfigError(f"train.exclude_classes leaves {len(kept)} of {len(info.class_names)} classes: at least 2")
    train, test = (split_by_known_classes(clips, info.class_names, kept)[0] for clips in (split.train, split.test))
    return split.model_copy(update={"train": train, "test": test}), info.model_copy(update={"class_names": kept})


def split_by_known_classes(
    clips: Sequence[Clip], class_names: Sequence[str], known_names: Sequence[str]
) -> tuple[tuple[Clip, ...], tuple[Clip, ...]]:
    """Divide clips into those of known classes, with the labels of ``known_names``, and the others, unchanged.

    ``class_names``: of the dataset. ``known_names``: of the network.
    """
    if tuple(class_names) == tuple(known_names):
        return tuple(clips), ()
    label = {k: known_names.index(name) for k, name in enumerate(class_names) if name in known_names}
    known = tuple(clip.model_copy(update={"label": label[clip.label]}) for clip in clips if clip.label in label)
    return known, tuple(clip for clip in clips if clip.label not in label)
