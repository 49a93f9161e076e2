"""Answers of a network for performances that it was not trained on: one row for each set of cameras that it was given.

Letters: G groups, R rows, V views, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from dtsf.errors import CheckpointError
from dtsf.files.read import read_file
from dtsf.files.write import write_atomically
from dtsf.model.network import DTSFNet
from dtsf.training.data import Groups
from dtsf.training.evaluate import predict_groups
from dtsf.training.tensor_files import load_state, save_state

LIMIT = 1 << 28  # maximum size of a file of answers, in bytes
NAMES = ("classes", "views", "groups", "subjects")
DTYPES = {"label_G": torch.int64, "group_R": torch.int64, "given_RV": torch.bool, "complete_R": torch.bool}


@dataclass(frozen=True)
class Answers:
    """Table of answers. A row is a group with some of its views; ``complete_R``: with all of them."""

    classes: tuple[str, ...]
    views: tuple[str, ...]  # names, in the order of given_RV
    groups: tuple[str, ...]
    subjects: tuple[str, ...]  # of each group, as in its clips; empty if it has none
    label_G: Tensor
    group_R: Tensor  # index of the group
    given_RV: Tensor  # True for the views that the network was given
    complete_R: Tensor
    log_p_RK: Tensor  # float32
    uncertainty_R: Tensor  # float32

    @property
    def label_R(self) -> Tensor:
        """Label of each row."""
        return self.label_G[self.group_R]

    @property
    def true_log_p_R(self) -> Tensor:
        """Log-probability of the true class of each row."""
        return self.log_p_RK.gather(1, self.label_R.unsqueeze(1)).squeeze(1)

    @property
    def right_R(self) -> Tensor:
        """True for each right answer."""
        return self.log_p_RK.argmax(1) == self.label_R

    def top1(self) -> float:
        """Return the share of right answers."""
        return self.right_R.double().mean().item()

    def rows(self, keep_R: Tensor) -> Answers:
        """Return some of the rows, with all groups."""
        return replace(self, **{name: getattr(self, name)[keep_R] for name in _fields("_R")})

    def complete(self) -> Answers:
        """Return the row of each group with all its views."""
        return self.rows(self.complete_R)

    def given(self, mask_V: Tensor) -> Answers:
        """Return the rows with exactly these views."""
        return self.rows((self.given_RV == mask_V).all(1))

    def alone(self, view: int) -> Answers:
        """Return the rows with a single view, ``view``: its number from 1."""
        return self.given(torch.arange(1, len(self.views) + 1) == view)


def ask(
    net: DTSFNet,
    groups: Groups,
    subjects: Mapping[str, str],
    classes: Sequence[str],
    views: Sequence[str],
    *,
    given: Sequence[Sequence[int]] = (),
    draws: int = 1,
    known: Answers | None = None,
) -> Answers:
    """Ask a network about groups with all their views, and with only the views of each of ``given`` (numbers from 1).

    ``subjects``: person of a group, by its name. ``classes`` and ``views``: names. ``known``: earlier answers about the same
    groups, which come first. No question is put to the network twice.
    """
    number = {name: g for g, name in enumerate(groups.names)}
    parts: dict[str, list[Tensor]] = {name: [] if known is None else [getattr(known, name)] for name in _fields("_R")}
    seen = set() if known is None else set(_keys(known.group_R, known.given_RV))
    for question in (None, *given):
        asked = groups if question is None else groups.with_views(question)
        keys = _keys(torch.tensor([number[name] for name in asked.names]), asked.mask_GV)
        new = [g for g, key in enumerate(keys) if key not in seen]
        seen.update(keys)
        if not new:
            continue
        asked = asked.choose(torch.tensor(new))
        p_GK, uncertainty_G = predict_groups(net, asked, draws)[:2]
        group_G, mask_GV = torch.tensor([number[name] for name in asked.names]), asked.mask_GV
        log_p_GK = p_GK.float().clamp(min=torch.finfo(torch.float32).tiny).log()
        complete_G = (mask_GV == groups.mask_GV[group_G]).all(1)
        values = (group_G, mask_GV, complete_G, log_p_GK, uncertainty_G.float())
        for name, value in zip(parts, values, strict=True):
            parts[name].append(value)
    people = tuple(subjects.get(name, "") for name in groups.names)
    found = {name: torch.cat(tensors) for name, tensors in parts.items()}
    return Answers(tuple(classes), tuple(views), groups.names, people, groups.label_G, **found)


def _keys(group_R: Tensor, given_RV: Tensor) -> list[tuple[int, tuple[bool, ...]]]:
    """Return what identifies each row: the group, and the views that the network is given."""
    return [(g, tuple(given)) for g, given in zip(group_R.tolist(), given_RV.tolist(), strict=True)]


def join(parts: Sequence[Answers]) -> Answers:
    """Join answers about the same classes and views. A group that is in two parts stays two groups."""
    before = torch.tensor([0, *(len(part.groups) for part in parts)]).cumsum(0).tolist()
    moved = [replace(part, group_R=part.group_R + n) for part, n in zip(parts, before, strict=False)]
    groups, subjects = (
        tuple(text for part in parts for text in getattr(part, name)) for name in ("groups", "subjects")
    )
    tensors = {name: torch.cat([getattr(part, name) for part in moved]) for name in ("label_G", *_fields("_R"))}
    return Answers(parts[0].classes, parts[0].views, groups, subjects, **tensors)


def write_answers(file: Path, answers: Answers) -> None:
    """Write answers as safetensors, atomically."""
    write_atomically(file, save_state({field.name: getattr(answers, field.name) for field in fields(Answers)}))


def read_answers(file: Path, step: str = "train again") -> Answers:
    """Read answers. ``step``: what to do about a damaged file. Raises CheckpointError: the file is missing, too large, damaged, or
    its parts do not fit together.
    """
    data = read_file(file, limit=LIMIT, error=CheckpointError)
    try:
        state = load_state(data)
        for name in NAMES:
            state[name] = tuple(state[name])
            if not all(isinstance(text, str) for text in state[name]):
                raise ValueError(f"{name} are not texts")
        answers = Answers(**state)
        _check(answers)
    except Exception as error:  # a forged file raises an error of any kind
        raise CheckpointError(f"{file} has no usable answers ({error}): {step}") from error
    return answers


def _fields(suffix: str) -> list[str]:
    """Return the names of the tensors with one value, or one line of values, for each row (``_R``)."""
    return [field.name for field in fields(Answers) if suffix in field.name]


def _check(answers: Answers) -> None:
    n = {"G": len(answers.groups), "R": len(answers.group_R), "V": len(answers.views), "K": len(answers.classes)}
    for name in ("label_G", *_fields("_R")):
        x, letters = getattr(answers, name), name.rpartition("_")[2]
        if tuple(x.shape) != tuple(n[letter] for letter in letters) or x.dtype != DTYPES.get(name, torch.float32):
            raise ValueError(f"{name} has shape {tuple(x.shape)} and type {x.dtype}")
    if len(answers.subjects) != n["G"]:
        raise ValueError(f"it has {len(answers.subjects)} subjects for {n['G']} groups")
    for x, limit in ((answers.label_G, n["K"]), (answers.group_R, n["G"])):
        if len(x) and not 0 <= int(x.min()) <= int(x.max()) < limit:
            raise ValueError(
                f"it has numbers from {int(x.min())} to {int(x.max())}, where 0 to {limit - 1} are possible"
            )
    sum_R, u_R = answers.log_p_RK.exp().sum(1), answers.uncertainty_R
    if not (((sum_R - 1).abs() < 1e-2).all() and (answers.log_p_RK <= 1e-6).all()):
        raise ValueError("it has probabilities that do not add up to 1")
    if not ((u_R >= 0) & (u_R <= 1 + 1e-6)).all():
        raise ValueError("it has uncertainties outside of 0 to 1")
