"""Divisions of the training clips: held-out groups, folds for calibration, and excluded classes."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from dtsf.cache.compare import describe_pairs, examples, find_copies
from dtsf.cache.reader import CachedDataset
from dtsf.cache.schema import Clip, DatasetInfo
from dtsf.errors import ConfigError
from dtsf.names import counted, persons
from dtsf.settings import Frozen
from dtsf.training.protocols import Protocol, Split, find_subject, subjects_of
from dtsf.training.recipe import TrainConfig

EXCLUDED = "excluded"  # value of --unknown for the classes that the run excludes from training
QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)  # of the lengths of clips that a run keeps


class Fold(Frozen):
    """Training clips of one fold, and the clips that are held out."""

    train: tuple[Clip, ...]
    held_out: tuple[Clip, ...]


def make_folds(clips: Sequence[Clip], protocol: str, n_folds: int) -> tuple[list[Fold], str]:
    """Divide training clips into folds of about equal size, none if nothing can be divided. Return also the unit of division.

    The unit follows the name of the protocol: views for ``cross-view``, setups for ``cross-setup``, else people. With fewer than
    two units, groups are divided.
    """
    by = {"cross-view": "views", "cross-setup": "setups"}.get(protocol, "people")
    person = join_people(clip.subject for clip in clips)
    found = {c.id: {"views": c.view, "setups": c.setup, "people": person.get(c.subject or "")}[by] for c in clips}
    unit = {clip: str(name) for clip, name in found.items() if name is not None}
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
    folds = []
    for k in range(n_folds):
        train = tuple(clip for clip in clips if fold_of[unit[clip.id]] != k)
        folds.append(Fold(train=train, held_out=tuple(clip for clip in clips if fold_of[unit[clip.id]] == k)))
    return folds, f"{by} held out"


def drop_unknown_classes(fold: Fold) -> Fold:
    """Drop held-out clips of classes that are not in the training clips of the fold."""
    known = {clip.label for clip in fold.train}
    return Fold(train=fold.train, held_out=tuple(clip for clip in fold.held_out if clip.label in known))


def join_people(subjects: Iterable[str | None]) -> dict[str, str]:
    """Return one person for each subject: all who ever perform together (``3+4``) count as one, and stay in one fold."""
    leader: dict[str, str] = {}

    def lead(person: str) -> str:
        while leader.setdefault(person, person) != person:
            person = leader[person]
        return person

    known = sorted({subject for subject in subjects if subject})
    for subject in known:
        first, *others = persons(subject)
        for other in others:
            leader[lead(other)] = lead(first)
    return {subject: lead(persons(subject)[0]) for subject in known}


def hold_out(split: Split, config: TrainConfig, seed: int) -> Split:
    """Move the held-out groups of a recipe out of the training clips. A share takes at least one group of a class of two.

    Raises ConfigError: a subject without training clips, or no group left in training or held out.
    """
    names: set[str] = set()
    if config.held_out_subjects:
        key = f"train.held_out_subjects={','.join(config.held_out_subjects)}"
        groups_of: dict[str, set[str]] = defaultdict(set)
        for clip in split.train:
            for person in persons(clip.subject):
                groups_of[person].add(clip.group)
        chosen = [find_subject(word, list(groups_of)) for word in config.held_out_subjects]
        absent = [subject for subject in chosen if subject not in groups_of]
        if absent:
            raise ConfigError(
                f"train.held_out_subjects: {', '.join(absent)} is not among the training subjects "
                f"({', '.join(sorted(groups_of)) or 'the dataset names no subjects'})"
            )
        names = set().union(*(groups_of[subject] for subject in chosen))
    elif config.held_out:
        key = f"train.held_out={config.held_out}"
        by_label: dict[int, set[str]] = defaultdict(set)
        for clip in split.train:
            by_label[clip.label].add(clip.group)
        # A separate generator: held-out groups do not change the other draws of the seed.
        generator = torch.Generator().manual_seed(seed)
        for _, groups in sorted(by_label.items()):
            n = min(len(groups) - 1, max(1, round(config.held_out * len(groups))))
            drawn = torch.randperm(len(groups), generator=generator)[:n].tolist()
            names |= {sorted(groups)[k] for k in drawn}
    else:
        return split
    train = tuple(clip for clip in split.train if clip.group not in names)
    if not names or not train:
        n_groups = len({clip.group for clip in split.train})
        raise ConfigError(
            f"{key} holds out {len(names)} of {n_groups} training groups: some must be held out and some must train"
            + (" (a share leaves each class one group; hold out a subject instead)" if not names else "")
        )
    held_out = tuple(clip for clip in split.train if clip.group in names)
    return split.model_copy(update={"train": train, "held_out": held_out})


def compare_sides(
    trained: CachedDataset,
    train: Sequence[Clip],
    tested: CachedDataset,
    test: Sequence[Clip],
    class_names: Sequence[str],
    protocol: Protocol,
    *,
    pooled: bool = False,
) -> tuple[str, tuple[str, ...]]:
    """Return what a test shares with the training (empty: nothing that decides it), and other doubts about the test.

    Labels of both sides are indices of ``class_names``. ``protocol``: of the test. ``pooled``: the answers are pooled with those
    of other folds, so the classes of one fold are no doubt. A test of exactly the training clips has no doubts: its task says so.
    """
    same = trained.info.name == tested.info.name
    if same and {clip.id for clip in train} == {clip.id for clip in test}:
        return "", ()
    pieces = [trained.pieces[clip.id] for clip in train]
    copies, parts = find_copies([tested.pieces[clip.id] for clip in test], pieces)
    groups = sorted({clip.group for clip in train} & {clip.group for clip in test}) if same else []
    leak, notes = "", []
    if copies:
        leak = f"{len(copies)} of {len(test)} test clips show recordings of the training: {describe_pairs(copies)}"
    elif groups and protocol.name in ("cross-subject", "cross-setup"):
        leak = f"{counted(len(groups), 'group is', 'groups are')} in the training and in the test: {examples(groups)}"
    if parts:
        what = "other seconds, or other parts of the picture, of files of the training"
        notes.append(f"{len(parts)} of {len(test)} test clips are {what}: {describe_pairs(parts)}")
    if pooled:
        return leak, tuple(notes)
    known, counts = {clip.label for clip in train}, Counter(clip.label for clip in test)
    if unknown := [
        f"{class_names[label]} ({counted(n, 'test clip')})" for label, n in sorted(counts.items()) if label not in known
    ]:
        notes.append(f"classes without a training clip, which cannot be right: {examples(unknown)}")
    if len(counts) == 1 and len(known) > 1:
        notes.append(f"all test clips are of one class ({class_names[test[0].label]}): top-1 is only its recall")
    return leak, tuple(notes)


def check_split(
    data: CachedDataset, split: Split, class_names: Sequence[str], protocol: Protocol, *, allow_leak: bool = False
) -> Split:
    """Return the split with notes about its test. Raises ConfigError if the result would mean nothing: the training clips are of
    one class, or the test has recordings of the training and ``allow_leak`` is False.
    """
    if len({clip.label for clip in split.train}) < 2:
        raise ConfigError(
            f"all training clips ({len(split.train)}) are of one class ({class_names[split.train[0].label]}), so every answer "
            "would be right: add clips of another class, or choose another --protocol (crossval: --folds)"
        )
    leak, notes = compare_sides(data, split.train, data, split.test, class_names, protocol)
    if protocol.name == "all":
        leak = ""  # the task of this protocol says it
    if leak and not allow_leak:
        raise ConfigError(
            f"{leak}. The result would say nothing about new recordings: "
            "correct the table, --protocol or --folds, or give --allow-leak"
        )
    pieces = [data.pieces[clip.id] for clip in split.train]
    held_out, _ = find_copies([data.pieces[clip.id] for clip in split.held_out], pieces)
    if held_out:
        of = f"{len(held_out)} of {len(split.held_out)} held-out clips"
        notes = (*notes, f"{of} show recordings of the training: {describe_pairs(held_out)}")
    return split.model_copy(update={"notes": (*([leak] if leak else []), *notes)})


def exclude_classes(split: Split, info: DatasetInfo, names: Sequence[str]) -> tuple[Split, DatasetInfo]:
    """Remove classes from both sides of a split and from ``info``. Raises ConfigError: unknown class, or fewer than two left."""
    if not names:
        return split, info
    absent = [name for name in names if name not in info.class_names]
    if absent:
        known = ", ".join(info.class_names)
        raise ConfigError(f"train.exclude_classes: no class {', '.join(absent)}; {info.name} has {known}")
    kept = tuple(name for name in info.class_names if name not in names)
    if len(kept) < 2:
        raise ConfigError(f"train.exclude_classes leaves {len(kept)} of {len(info.class_names)} classes: at least 2")
    train, test = (split_by_known_classes(clips, info.class_names, kept)[0] for clips in (split.train, split.test))
    return split.model_copy(update={"train": train, "test": test}), info.model_copy(update={"class_names": kept})


def split_by_known_classes(
    clips: Sequence[Clip], class_names: Sequence[str], known_names: Sequence[str]
) -> tuple[tuple[Clip, ...], tuple[Clip, ...]]:
    """Divide clips into those of the network's classes (``known_names``), with its labels, and the others, unchanged."""
    if tuple(class_names) == tuple(known_names):
        return tuple(clips), ()
    label = {k: known_names.index(name) for k, name in enumerate(class_names) if name in known_names}
    known = tuple(clip.model_copy(update={"label": label[clip.label]}) for clip in clips if clip.label in label)
    return known, tuple(clip for clip in clips if clip.label not in label)


def clip_seconds(data: CachedDataset, clips: Sequence[Clip], n_classes: int) -> tuple[tuple[float, ...], ...]:
    """Return the quantiles :data:`QUANTILES` of the seconds of each class's clips; empty for a class without a known length.

    The length of a group is that of its longest clip.
    """
    longest: dict[int, dict[str, float]] = defaultdict(dict)
    for clip in clips:
        seconds = _seconds(clip, data.records[clip.id][1].duration)
        if seconds is not None:
            of_class = longest[clip.label]
            of_class[clip.group] = max(seconds, of_class.get(clip.group, 0.0))
    return tuple(
        tuple(np.quantile(list(longest[label].values()), QUANTILES).round(3).tolist()) if longest[label] else ()
        for label in range(n_classes)
    )


def _seconds(clip: Clip, duration: float | None) -> float | None:
    if (clip.first, clip.last) != (None, None) or not (duration or clip.end):
        return None
    return max(0.0, (clip.end or duration or 0.0) - (clip.start or 0.0))


def limit_training(split: Split, config: TrainConfig) -> Split:
    """Leave out training clips as ``train.only_subjects``, ``max_takes`` and ``max_views`` say, to see how much must be filmed.

    Takes are counted in the order of their names, and each view stays equally often. Raises ConfigError: unknown subject, or no
    clip is left.
    """
    clips = split.train
    if config.only_subjects:
        known = subjects_of(clips)
        chosen = {find_subject(word, known) for word in config.only_subjects}
        if absent := sorted(chosen - set(known)):
            there = ", ".join(known) or "the dataset names no subjects"
            raise ConfigError(f"train.only_subjects: {', '.join(absent)} is not among the training subjects ({there})")
        clips = tuple(clip for clip in clips if clip.subject and chosen.issuperset(persons(clip.subject)))
    if config.max_takes:
        takes: dict[tuple[int, str | None], set[str]] = defaultdict(set)
        for clip in clips:
            takes[clip.label, clip.subject].add(clip.group)
        kept = {group for groups in takes.values() for group in sorted(groups)[: config.max_takes]}
        clips = tuple(clip for clip in clips if clip.group in kept)
    clips = limit_views(clips, config.max_views)
    if not clips:
        raise ConfigError("train.only_subjects leaves no training clip: name subjects who perform alone")
    left_out = {"of the training, by train.only_subjects, max_takes or max_views": len(split.train) - len(clips)}
    return split.model_copy(
        update={"train": clips, "left_out": split.left_out | {why: n for why, n in left_out.items() if n}}
    )


def limit_views(clips: Sequence[Clip], most: int) -> tuple[Clip, ...]:
    """Keep at most so many views of each group (0: all), each view equally often."""
    views: dict[str, list[int]] = defaultdict(list)
    for clip in clips:
        views[clip.group].append(clip.view)
    kept: dict[str, set[int]] = {}
    for k, (group, there) in enumerate(sorted(views.items())):
        order = sorted(there)
        kept[group] = {order[(k + n) % len(order)] for n in range(min(most or len(order), len(order)))}
    return tuple(clip for clip in clips if clip.view in kept[clip.group])


def draw_groups(clips: Sequence[Clip], most: int, draw: random.Random | None = None) -> tuple[list[Clip], int]:
    """Return the clips of at most ``most`` groups, and their number if some are left out, else 0. Names decide the choice.
    ``draw``: generator of several choices in turn.
    """
    names = sorted({clip.group for clip in clips})
    chosen = set((draw or random.Random(0)).sample(names, min(most, len(names))))
    return [clip for clip in clips if clip.group in chosen], most if len(names) > most else 0
