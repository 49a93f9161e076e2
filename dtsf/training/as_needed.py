"""Only as many cameras as an answer needs: their order, and the uncertainty above which the next one is opened.

Letters: G groups, R rows of answers, N numbers of opened cameras, V views.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dtsf.errors import ConfigError
from dtsf.training.answers import Answers

LOSS = 0.005
"""Share of the held-out groups that ``auto`` may lose: right with all cameras, wrong as needed. Gains do not pay for losses."""
MOST_TRIED = 1000  # limits that ``auto`` compares
LOG_LOSS = 0.02
"""Mean -log p of the true class that ``auto`` may lose. On few groups, accuracy alone is a matter of luck."""


@dataclass(frozen=True)
class CameraPlan:
    """Order of the cameras, and when the next one is opened. The other numbers are of held-out groups of several cameras."""

    order: tuple[int, ...]
    """Views from 0, from the one that is most often right alone."""
    limit: float
    """Uncertainty above which the next camera is opened."""
    n_groups: int
    accuracy: float
    all_accuracy: float
    """Accuracy with all cameras of a group."""
    opened: float
    """Share of the cameras that are opened."""

    def __str__(self) -> str:
        """Describe the limit and its effect on the held-out groups."""
        if not self.n_groups:
            return f"the next camera is opened above uncertainty {self.limit:.3g}"
        numbers = (
            f"{100 * self.opened:.0f} % of the cameras, top-1 {self.accuracy:.3f} instead of {self.all_accuracy:.3f}"
        )
        return f"the next camera is opened above uncertainty {self.limit:.3g}: on {self.n_groups} held-out performances {numbers}"

    def sort(self, views: Sequence[int]) -> list[int]:
        """Return the positions of these views (from 0) in the order of the plan. Views that it lacks are last."""
        rank = {view: place for place, view in enumerate(self.order)}
        return sorted(range(len(views)), key=lambda k: rank.get(views[k], len(rank)))


def read_limit(text: float | str) -> float | None:
    """Return the uncertainty of ``--as-needed``, None for ``auto``. Raises ConfigError: neither."""
    if str(text).strip().lower() == "auto":
        return None
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not 0 <= limit <= 1:
        raise ConfigError(f"--as-needed {text}: give auto, or an uncertainty from 0 to 1, for example --as-needed 0.3")
    return limit


def view_order(answers: Answers) -> tuple[int, ...]:
    """Return the views (from 0) from the one that is most often right alone. Those without answers are last."""
    alone = [answers.alone(view + 1) for view in range(len(answers.views))]
    right = [one.right_R.double().mean().item() if len(one.group_R) else -1.0 for one in alone]
    return tuple(sorted(range(len(right)), key=lambda view: -right[view]))


def plan_cameras(answers: Answers, limit: float | None = None, loss: float = LOSS) -> CameraPlan:
    """Return the plan of held-out answers. ``limit`` None: the highest one at which at most the share ``loss`` of the groups is
    lost, and :data:`LOG_LOSS`. Raises ConfigError: None, and no held-out group has several cameras.
    """
    order = view_order(answers)
    row_NG, n_G = _steps(answers, order)
    if not len(n_G):
        if limit is None:
            raise ConfigError(
                "--as-needed auto: no held-out performance of the run has several cameras: give an uncertainty, for example "
                "--as-needed 0.3"
            )
        return CameraPlan(order, limit, 0, math.nan, math.nan, math.nan)
    right_NG, log_p_NG = answers.right_R.double()[row_NG], answers.true_log_p_R.double()[row_NG]
    u_NG = answers.uncertainty_R.double()[row_NG]

    def follow(limit: float) -> tuple[float, float, float, float, float]:
        opened_G = _stop(u_NG, n_G, limit)
        right_G, log_p_G = (x_NG.gather(0, opened_G.unsqueeze(0)).squeeze(0) for x_NG in (right_NG, log_p_NG))
        lost = (right_NG[-1] > right_G).double().mean().item()
        share = ((opened_G + 1) / n_G).double().mean().item()
        return limit, right_G.mean().item(), share, lost, (log_p_NG[-1] - log_p_G).mean().item()

    if limit is not None:
        best = follow(limit)
    else:
        # With limit 0, all cameras are opened.
        limits_X = u_NG.flatten().unique()
        tried = map(follow, [0.0, *limits_X[:: 1 + len(limits_X) // MOST_TRIED].tolist()])
        best = max((row for row in tried if row[3] <= loss and row[4] <= LOG_LOSS), key=lambda row: row[0])
    return CameraPlan(order, best[0], len(n_G), best[1], right_NG[-1].mean().item(), best[2])


def answers_as_needed(answers: Answers, plan: CameraPlan, views: Collection[int] | None = None) -> Answers:
    """Return the answer of each held-out group of several cameras when its cameras are opened by a plan. ``views`` (from 0): as if
    each group that has all of these had no other.
    """
    row_NG, n_G = _steps(answers, plan.order, views)
    opened_G = _stop(answers.uncertainty_R.double()[row_NG], n_G, plan.limit)
    keep_R = torch.zeros(len(answers.group_R), dtype=torch.bool)
    keep_R[row_NG.gather(0, opened_G.unsqueeze(0)).flatten()] = True
    return answers.rows(keep_R)


def _steps(answers: Answers, order: Sequence[int], views: Collection[int] | None = None) -> tuple[Tensor, Tensor]:
    """Return the row after the first, second, ... camera of each group of several cameras, (N, G), and its number of cameras,
    (G,). After its last camera the row stays the same. ``views``: see :func:`answers_as_needed`.
    """
    keys = zip(answers.group_R.tolist(), answers.given_RV.tolist(), strict=True)
    row_of = {(g, tuple(given)): row for row, (g, given) in enumerate(keys)}
    whole, paths = answers.complete(), []
    for g, given in zip(whole.group_R.tolist(), whole.given_RV.tolist(), strict=True):
        own = [view for view in order if given[view] and (views is None or view in views)]
        wanted = [tuple(view in own[:n] for view in range(len(given))) for n in range(1, len(own) + 1)]
        whole_offer = views is None or len(own) == len(views)
        if len(own) > 1 and whole_offer and all((g, some) in row_of for some in wanted):
            paths.append([row_of[g, some] for some in wanted])
    most = max(map(len, paths), default=1)
    rows = [path + path[-1:] * (most - len(path)) for path in paths]
    return torch.tensor(rows, dtype=torch.int64).view(len(paths), most).T, torch.tensor([len(path) for path in paths])


def _stop(u_NG: Tensor, n_G: Tensor, limit: float) -> Tensor:
    """Return the step, from 0, at which each group opens no more cameras: (G,)."""
    last_NG = torch.arange(1, len(u_NG) + 1).unsqueeze(1) >= n_G
    return ((u_NG <= limit) | last_NG).double().argmax(0)
