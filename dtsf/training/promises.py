"""Sets of classes that hold the true one as often as promised, and the surest share of answers.

A set holds every class whose probability is at least a limit. The limit is the split-conformal quantile of the true class's
probability over held-out groups (Vovk et al. 2005; the score of Sadinle et al. 2019). A performance counts once, also with
several answers, from one camera each. For new *people*, each person counts once: hierarchical conformal prediction (Lee, Barber
and Willett 2023), which N people allow up to a level of N / (N + 1). Letters: R answers, U units, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dtsf.errors import ConfigError

SHARES = (0.5, 0.8, 0.9)  # of the surest held-out answers, in messages
ROUNDING = 1e-9  # of a product such as 10 * 0.9


@dataclass(frozen=True)
class Promise:
    """Rule for the set of one answer, and what it promises."""

    least: float
    """Smallest probability of a class in the set."""
    text: str
    by_person: bool
    """True if it is for new people."""
    n_people: int
    """Held-out people on whom it rests; 0 if people were not held out."""

    def choose(self, probability_K: Tensor) -> list[int]:
        """Return the classes of the set, the most probable first. It is never empty."""
        order = probability_K.argsort(descending=True, stable=True).tolist()
        return [k for n, k in enumerate(order) if n == 0 or float(probability_K[k]) >= self.least]


def check_level(level: float) -> None:
    """Raise ConfigError if a level is no share between 0 and 1."""
    if not 0 < level < 1:
        raise ConfigError(f"--set {level:g}: give a share above 0 and below 1, for example --set 0.9")


def limit_of_new(score_R: np.ndarray, unit_R: np.ndarray, level: float) -> float:
    """Return the smallest limit that a score of a new unit, exchangeable with these, does not exceed with probability ``level``; or
    inf. ``unit_R``: performance or person of each score, of N the weight 1 / (N + 1) each, however many scores it has.
    """
    units, number_R, count_U = np.unique(unit_R, return_inverse=True, return_counts=True)
    order_R = np.argsort(score_R, kind="stable")
    total_R = np.cumsum(1.0 / ((len(units) + 1) * count_U[number_R[order_R]]))
    rank = int(np.searchsorted(total_R, level - ROUNDING))
    return float(score_R[order_R[rank]]) if rank < len(score_R) else math.inf


def surest_curve(probability_R: Tensor, right_R: Tensor) -> list[tuple[float, float]]:
    """Return (share, accuracy) of the answers of highest probability, from the surest one to all."""
    right_R = right_R[probability_R.argsort(descending=True, stable=True)].double()
    n = len(right_R)
    accuracy_R = right_R.cumsum(0) / torch.arange(1, n + 1)
    return [((k + 1) / n, accuracy) for k, accuracy in enumerate(accuracy_R.tolist())]


def at_shares(curve: Sequence[tuple[float, float]], shares: Sequence[float] = SHARES) -> list[float]:
    """Return the accuracy of the surest ``shares`` of a curve, each of at least one answer."""
    return [curve[max(0, math.ceil(len(curve) * share - ROUNDING) - 1)][1] for share in shares]
