"""Settings of the peer methods, and the base class of a debiaser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

    from dtsf.model.network import Output
    from dtsf.training.data import Batch, Groups


class DebiasConfig(BaseModel):
    """Peer method against static bias, and its weights. Section ``[debias]`` of a recipe. Used in training only."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    method: Literal["none", "hsic", "stillmix", "albar", "soar"] = "none"
    """``hsic`` (Kobayashi et al.): independence of a biased stream, and a background loss. ``stillmix`` (Li et al.): mixes still
    frames into clips. ``albar`` (Fioresi et al.): the network must not recognise a single frame. ``soar`` (Zhai et al.):
    adversaries read the background out of the features. ``stillmix`` and ``albar`` need an input that shows still frames."""
    hsic: float = Field(default=1.0, ge=0)
    """``hsic``: weight of the dependence between the features of the network and of the biased stream."""
    background: float = Field(default=0.1, ge=0)
    """``hsic`` and ``soar``: weight of the background loss. 0 disables the background classifiers."""
    backgrounds: int = Field(default=8, ge=2)
    """``hsic`` and ``soar``: number of clusters of static embeddings, used if the dataset does not name its backgrounds."""
    bank: int = Field(default=1024, ge=1)
    """``stillmix``: number of still frames in the bank."""
    confident: float = Field(default=0.5, gt=0, le=1)
    """``stillmix``: share of all training frames, the most confidently classified ones, from which the bank is drawn."""
    mix: float = Field(default=0.5, ge=0, le=1)
    """``stillmix``: probability that a clip is mixed with a still frame."""
    beta: float = Field(default=200.0, gt=0)
    """``stillmix``: the mixing weight of a batch is drawn from Beta(beta, beta). At 200 it is close to one half."""
    adversary: float = Field(default=1.0, ge=0)
    """``albar``: weight of the cross-entropy of the static clip. The defaults of these three weights are the authors'."""
    entropy: float = Field(default=4.25, ge=0)
    """``albar``: weight of the entropy of the prediction for the static clip."""
    penalty: float = Field(default=10.0, ge=0)
    """``albar``: weight of the gradient penalty. 0 saves two thirds of the cost."""
    reconstruction: float = Field(default=1.0, ge=0)
    """``soar``: weight of the reconstruction of the background."""


class Debiaser(nn.Module):
    """No debiasing; each peer overrides :meth:`prepare`, :meth:`losses`, or both.

    Args:
        groups: Training groups.
        config: Weights of the method.
        width: Number of features of a view, D.
        n_classes: K.
        seed: Of the random draws of the constructor, where it has any.
    """

    def __init__(self, groups: Groups, config: DebiasConfig, *, width: int, n_classes: int, seed: int) -> None:
        super().__init__()
        self.config = config

    def prepare(self, batch: Batch) -> Batch:
        """Change a batch before it enters the network."""
        return batch

    def losses(self, batch: Batch, output: Output, net: Any) -> dict[str, Tensor]:
        """Return terms to add to the loss, by name, already weighted."""
        return {}
