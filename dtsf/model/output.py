"""What the network says of a batch of groups. Letters as in :mod:`.dtsfnet`; S opinions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dtsf.model.evidence import probabilities

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Output:
    """What the network says of a batch of groups. Not frozen, because Lightning Fabric rebuilds it.

    Logits are the head's; alpha = softplus(logits) + 1, and the fused one, once :mod:`.belief` is learnt, what of it is to be
    believed. The views' are the head's always.
    """

    logits_BK: Tensor
    alpha_BK: Tensor
    uncertainty_B: Tensor
    view_logits_BVK: Tensor
    view_alpha_BVK: Tensor
    view_uncertainty_BV: Tensor
    view_feature_BVD: Tensor
    """The encoder's; zero for absent views."""
    feature_BD: Tensor
    """The fused one, which the head reads; with ``fusion`` ``tmc``, whose head reads none, the mean of the views'."""
    view_weights_BV: Tensor
    """Share of each view in the fused feature; 0 for absent and for covered views."""
    mask_BV: Tensor
    opinions_SBK: Tensor | None = None
    """Logits of each of two opinions, where ``canvas`` ``both`` has two; ``logits_BK`` is their pool."""
    view_opinions_SBVK: Tensor | None = None
    """The same of each view."""

    @property
    def probabilities_BK(self) -> Tensor:
        """Expected class probabilities of the fused Dirichlet."""
        return probabilities(self.alpha_BK)
