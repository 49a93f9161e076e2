"""Peer methods against static bias, chosen by ``[debias] method``: HSIC, SOAR, StillMix and ALBAR.

A debiaser may change a batch and may add terms to the loss. Its own weights are trained with the network and saved with the
optimiser state. The network does not depend on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dtsf.training.debias.background import Hsic, Soar
from dtsf.training.debias.base import DebiasConfig, Debiaser
from dtsf.training.debias.still_frames import Albar, StillMix

if TYPE_CHECKING:
    from dtsf.training.data import Groups

__all__ = ["METHODS", "DebiasConfig", "Debiaser", "make_debiaser"]

METHODS = {"none": Debiaser, "hsic": Hsic, "stillmix": StillMix, "albar": Albar, "soar": Soar}


def make_debiaser(config: DebiasConfig, groups: Groups, *, width: int, n_classes: int, seed: int) -> Debiaser:
    """Build the debiaser of ``config.method`` from the training groups. The same seed gives the same debiaser."""
    return METHODS[config.method](groups, config, width=width, n_classes=n_classes, seed=seed)
