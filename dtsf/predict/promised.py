"""Additions to a prediction by the held-out answers of its run: a set with a promise, and whether a person must look at it.

Letters: K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtsf.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from dtsf.training.as_needed import CameraPlan
    from dtsf.training.held_out import HeldOut


@dataclass(frozen=True)
class Question:
    """Request for a set of a level, and for cameras as needed, with the held-out answers that the reply rests on."""

    held_out: HeldOut | None
    level: float | None = None
    plan: CameraPlan | None = None

    def reply(
        self, views: Sequence[int], opened: Sequence[int], probability_K: np.ndarray, names: Sequence[str]
    ) -> dict[str, Any]:
        """Return the fields of a prediction from the ``opened`` ones of these views (from 0); ``names``: of the classes."""
        import torch

        if self.held_out is None:
            return {}
        # With a plan, the answer is one to all views, however many of them it needed.
        views = opened if self.held_out.plan is None else views
        place = self.held_out.place(views, float(probability_K.max()))
        fields: dict[str, Any] = {"surest": place.share, "surest_right": place.accuracy, "look": place.look}
        if self.level is not None:
            rule = self.held_out.promise(views, self.level)
            chosen = rule.choose(torch.from_numpy(probability_K))
            fields |= {"set": tuple(names[k] for k in chosen), "promise": rule.text}
        return fields


def make_question(
    held_out: HeldOut | None, folder: Path, level: float | None, as_needed: float | str | None
) -> Question:
    """Return the question of the options ``--set`` and ``--as-needed``. Raises ConfigError: a wrong value, no answers."""
    if level is None and as_needed is None:
        return Question(held_out)
    from dtsf.training.as_needed import plan_cameras, read_limit
    from dtsf.training.held_out import FILE, HeldOut
    from dtsf.training.promises import check_level

    if level is not None:
        check_level(level)
    limit = read_limit(as_needed) if as_needed is not None else None
    if held_out is None:
        option = "--set" if level is not None else "--as-needed"
        raise ConfigError(
            f"{option}: {folder} has no answers of held-out groups ({FILE}): train again, with train.calibrate at least 2 and "
            "at least 12 groups"
        )
    if as_needed is None:
        return Question(held_out, level)
    plan = plan_cameras(held_out.answers, limit)
    if plan.n_groups:
        held_out = HeldOut(held_out.answers, held_out.by, plan)
    return Question(held_out, level, plan)
