"""Debiasing beside TSM, chosen by ``[debias] method``: none, or a peer's way. Each peer has a module here.

A debiaser is made from the training groups before the first step. It may change a batch, and may add terms to the
loss, with weights of its own that are trained along and kept with the optimiser's state; the network knows nothing of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from dtsf.training.debias.albar import Albar
from dtsf.training.debias.debiaser import Debiaser
from dtsf.training.debias.hsic import Hsic
from dtsf.training.debias.soar import Soar
from dtsf.training.debias.stillmix import StillMix

if TYPE_CHECKING:
    from dtsf.training.data import Groups


class DebiasConfig(BaseModel):
    """How training is kept from learning the room. Recipes hold it as ``[debias]``; evaluation uses none of it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    method: Literal["none", "hsic", "stillmix", "albar", "soar"] = "none"
    """``hsic``: Kobayashi et al., independence of a biased stream, and a scene loss. ``stillmix``: Li et al., still
    frames that betray the action are mixed into clips; needs ``model.anchor = frame``. ``albar``: Fioresi et al., the network
    must not know a clip of one frame; likewise. ``soar``: Zhai et al., adversaries read scene and background out of features."""
    hsic: float = Field(default=1.0, ge=0)
    """Weight of the dependence between the network's features and the biased stream's."""
    background: float = Field(default=0.1, ge=0)
    """Weight of the scene loss, of ``hsic`` and ``soar``; 0 turns the scene classifiers off."""
    backgrounds: int = Field(default=8, ge=2)
    """Scenes to tell apart where the data set does not name its backgrounds: clusters of static embeddings."""
    bank: int = Field(default=1024, ge=1)
    """Still frames that StillMix draws from."""
    confident: float = Field(default=0.5, gt=0, le=1)
    """Share of all training frames, those that betray the action most, that the bank is drawn from."""
    mix: float = Field(default=0.5, ge=0, le=1)
    """Probability that a clip is mixed with a still frame."""
    beta: float = Field(default=200.0, gt=0)
    """A clip keeps a share of itself drawn from Beta(beta, beta), for the whole batch: at 200 nearly one half."""
    adversary: float = Field(default=1.0, ge=0)
    """Of ``albar``: weight of the cross-entropy that the static clip is to have, as in its authors' code; so are the next two."""
    entropy: float = Field(default=4.25, ge=0)
    """Of ``albar``: weight of the entropy of its answer."""
    penalty: float = Field(default=10.0, ge=0)
    """Of ``albar``: weight of the length of the answer's gradient; 0 spares two thirds of the cost."""
    reconstruction: float = Field(default=1.0, ge=0)
    """Of ``soar``: weight of the reconstruction of what stands still."""


def make_debiaser(config: DebiasConfig, groups: Groups, *, width: int, n_classes: int, seed: int) -> Debiaser:
    """Make the chosen debiaser from the training groups; the same for the same seed. ``groups``: training groups, with their
    scenes where the data set names backgrounds.
    """
    if config.method == "hsic":
        return Hsic(
            groups,
            width,
            n_classes,
            hsic=config.hsic,
            background=config.background,
            backgrounds=config.backgrounds,
            seed=seed,
        )
    if config.method == "stillmix":
        return StillMix(
            groups,
            n_classes,
            bank=config.bank,
            confident=config.confident,
            probability=config.mix,
            beta=config.beta,
            seed=seed,
        )
    if config.method == "albar":
        return Albar(adversary=config.adversary, entropy=config.entropy, penalty=config.penalty)
    if config.method == "soar":
        return Soar(
            groups,
            width,
            reconstruction=config.reconstruction,
            background=config.background,
            backgrounds=config.backgrounds,
            seed=seed,
        )
    return Debiaser()
