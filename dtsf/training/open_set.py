"""Actions that a network never learnt: classes left out of training, and how well uncertainty detects them.

The question of DEAR (Bao, Yu, Kong, ICCV 2021) and SOAR (Zhai et al., ICCV 2023), asked of people as unseen as those of the
known actions:

    dtsf train --protocol cross-subject:5,6 --set train.exclude_classes="golf swing,jogging" --out RUN
    dtsf evaluate RUN --unknown excluded                  or the name of another data set
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict

from dtsf.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dtsf.cache.schema import Clip, DatasetInfo
    from dtsf.training.protocols import Split

EXCLUDED = "excluded"
"""What ``--unknown`` calls the classes of the run's own data set that it has not learnt."""
ACCEPTED = 0.95
"""Share of the known groups that are to be accepted."""


class UnknownActions(BaseModel):
    """How well uncertainty detects unknown actions."""

    model_config = ConfigDict(frozen=True)

    name: str
    """``excluded``, or a data set."""
    what: str
    """In words."""
    n_groups: int
    """Unknown ones; the known ones are those of the judgement."""
    auroc: float
    """Share of pairs of an unknown and a known group of which the unknown one is the more uncertain; 0.5 is chance."""
    fpr95: float
    """Share of the unknown groups that pass for known where 95 % of the known ones do."""
    uncertainty: float
    """Mean over the unknown groups."""


def exclude_classes(split: Split, info: DatasetInfo, names: Sequence[str]) -> tuple[Split, DatasetInfo]:
    """Take classes out of both sides of a split, and out of what is known. Raises ConfigError: no such class, or fewer than two
    left.
    """
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
    clips: Sequence[Clip], theirs: Sequence[str], ours: Sequence[str]
) -> tuple[tuple[Clip, ...], tuple[Clip, ...]]:
    """Clips of classes that are known, labelled as those are, and the others as they are. ``theirs``: names of the data set's
    classes. ``ours``: names of the classes that a network knows.
    """
    if tuple(theirs) == tuple(ours):
        return tuple(clips), ()
    label = {k: ours.index(name) for k, name in enumerate(theirs) if name in ours}
    known = tuple(clip.model_copy(update={"label": label[clip.label]}) for clip in clips if clip.label in label)
    return known, tuple(clip for clip in clips if clip.label not in label)


def open_set_metrics(name: str, what: str, known_G: Tensor, unknown_G: Tensor) -> UnknownActions:
    """Sum up the uncertainties of known and of unknown groups."""
    from torchmetrics.functional.classification import binary_auroc

    both_G = torch.cat([known_G, unknown_G]).double()
    is_unknown_G = torch.cat([torch.zeros(len(known_G)), torch.ones(len(unknown_G))]).long()
    # The smallest bound that so many of the known ones do not exceed.
    bound = known_G.double().sort().values[max(0, -int(-ACCEPTED * len(known_G) // 1) - 1)]
    return UnknownActions(
        name=name,
        what=what,
        n_groups=len(unknown_G),
        auroc=binary_auroc(both_G, is_unknown_G).item(),
        fpr95=(unknown_G.double() <= bound).double().mean().item(),
        uncertainty=unknown_G.double().mean().item(),
    )
