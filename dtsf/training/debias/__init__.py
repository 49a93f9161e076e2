"""Peer methods against static bias, missing cameras and habits of people, chosen by ``[debias] method``.

A debiaser may change a batch and may add terms to the loss. Its own weights are trained with the network and saved with the
optimiser state. The network does not depend on it.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from dtsf.model.network import Output
from dtsf.settings import Frozen
from dtsf.training.data import Batch, Groups


class DebiasConfig(Frozen):
    """Peer method against static bias, missing cameras or habits, and its weights. Section ``[debias]``. Used in training only."""

    # hsic (Kobayashi et al.): independence of a biased stream, and a background loss. stillmix (Li et al.): mixes still frames
    # into clips. albar (Fioresi et al.): the network must not recognise a single frame. soar (Zhai et al.): adversaries read
    # the background out of the features. stillmix and albar need an input that shows still frames. prototypes (MMG-Ego4D): near
    # the class in other views. actionmae (Woo et al.): features of hidden views from the others. Both need two views.
    # cir (Plizzari et al.): features from those of other people and backgrounds.
    method: Literal["none", "hsic", "stillmix", "albar", "soar", "prototypes", "actionmae", "cir"] = "none"
    hsic: float = Field(
        default=1.0, ge=0
    )  # weight of the dependence between the network's features and the biased stream
    background: float = Field(
        default=0.1, ge=0
    )  # hsic, soar: weight of the background loss; 0 disables the classifiers
    backgrounds: int = Field(
        default=8, ge=2
    )  # hsic, soar, cir: clusters of static embeddings, if backgrounds have no names
    bank: int = Field(default=1024, ge=1)  # stillmix: number of still frames in the bank
    confident: float = Field(
        default=0.5, gt=0, le=1
    )  # stillmix: share of frames, the most confident ones, for the bank
    mix: float = Field(default=0.5, ge=0, le=1)  # stillmix: probability that a clip is mixed with a still frame
    beta: float = Field(default=200.0, gt=0)  # stillmix: weight of a batch ~ Beta(beta, beta); at 200 close to one half
    # albar: weights of the cross-entropy of the static clip, of the entropy of its prediction, and of the gradient penalty. The
    # defaults are the authors'. A penalty of 0 saves two thirds of the cost.
    adversary: float = Field(default=1.0, ge=0)
    entropy: float = Field(default=4.25, ge=0)
    penalty: float = Field(default=10.0, ge=0)
    # soar, actionmae: weight of the reconstruction of the background, of the features of hidden views
    reconstruction: float = Field(default=1.0, ge=0)
    prototypes: float = Field(default=1.0, ge=0)  # prototypes: weight of the term
    cir: float = Field(default=1.0, ge=0)  # cir: weight of the term


class Debiaser(nn.Module):
    """No debiasing. A method overrides :meth:`build`, :meth:`prepare` and :meth:`losses` as needed.

    ``width``: number of features of a view, D. ``seed``: of the random draws of :meth:`build`.
    """

    def __init__(self, groups: Groups, config: DebiasConfig, *, width: int, n_classes: int, seed: int) -> None:
        super().__init__()
        self.config, self.width, self.n_classes, self.seed = config, width, n_classes, seed
        self.build(groups)

    def build(self, groups: Groups) -> None:
        """Make the buffers and layers from the training groups."""

    def prepare(self, batch: Batch) -> Batch:
        """Change a batch before it enters the network."""
        return batch

    def losses(self, batch: Batch, output: Output, net: Any) -> dict[str, Tensor]:
        """Return terms to add to the loss, by name, already weighted."""
        return {}


def make_debiaser(config: DebiasConfig, groups: Groups, *, width: int, n_classes: int, seed: int) -> Debiaser:
    """Build the debiaser of ``config.method`` from the training groups. The same seed gives the same debiaser."""
    from dtsf.training.debias.background import Hsic, Soar
    from dtsf.training.debias.cir import Cir
    from dtsf.training.debias.still_frames import Albar, StillMix
    from dtsf.training.debias.views import ActionMae, Prototypes

    methods = {"none": Debiaser, "hsic": Hsic, "stillmix": StillMix, "albar": Albar, "soar": Soar}
    methods |= {"prototypes": Prototypes, "actionmae": ActionMae, "cir": Cir}
    return methods[config.method](groups, config, width=width, n_classes=n_classes, seed=seed)
