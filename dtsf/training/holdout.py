"""Groups of the training side that are not trained on: what a recipe is tuned and stopped by, never the test side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dtsf.errors import ConfigError

if TYPE_CHECKING:
    from dtsf.cache.schema import Clip
    from dtsf.training.protocols import Split
    from dtsf.training.recipe import TrainConfig


def hold_out(split: Split, config: TrainConfig, seed: int) -> Split:
    """Take the held-out groups from the training side; all clips of a group stay together.

    ``config``: ``held_out_subjects``, or ``held_out``, a share of every class's groups: at least one where the class has two.
    Raises ConfigError: a subject who does not train, or nothing left to train on or to watch.
    """
    if config.held_out_subjects:
        held = _groups_of(split, config.held_out_subjects)
        asked = f"train.held_out_subjects={','.join(config.held_out_subjects)}"
    elif config.held_out:
        held = _share(split.train, config.held_out, seed)
        asked = f"train.held_out={config.held_out}"
    else:
        return split
    train = tuple(clip for clip in split.train if clip.group not in held)
    if not held or not train:
        groups = len({clip.group for clip in split.train})
        raise ConfigError(
            f"{asked} holds out {len(held)} of {groups} training groups: some must be held out and some must train"
            + (" (a share leaves each class one group; hold out a subject instead)" if not held else "")
        )
    return split.model_copy(
        update={"train": train, "held_out": tuple(clip for clip in split.train if clip.group in held)}
    )


def _groups_of(split: Split, subjects: tuple[str, ...]) -> set[str]:
    known = sorted({person for clip in split.train for person in (clip.subject or "").split("+") if person})
    absent = [subject for subject in subjects if subject not in known]
    if absent:
        raise ConfigError(
            f"train.held_out_subjects: {', '.join(absent)} is not among the training subjects "
            f"({', '.join(known) or 'the data set does not say who performs'})"
        )
    return {clip.group for clip in split.train if set((clip.subject or "").split("+")) & set(subjects)}


def _share(clips: tuple[Clip, ...], share: float, seed: int) -> set[str]:
    by_label: dict[int, set[str]] = {}
    for clip in clips:
        by_label.setdefault(clip.label, set()).add(clip.group)
    # A generator of its own: holding out must not change what else the seed draws.
    generator = torch.Generator().manual_seed(seed)
    held: set[str] = set()
    for _, groups in sorted(by_label.items()):
        names = sorted(groups)
        n = min(len(names) - 1, max(1, round(share * len(names))))
        held |= {names[k] for k in torch.randperm(len(names), generator=generator)[:n].tolist()}
    return held
