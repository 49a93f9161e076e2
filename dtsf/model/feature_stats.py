"""Statistics of the training tokens behind every norm, stored with the weights.

Test-time adaptation (:class:`dtsf.training.evaluate.OnlineAdapter`) aligns a test stream to them.
Letters: N norms, D width, X tokens.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from dtsf.model.mamba import RMSNorm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor


class FeatureStatistics(nn.Module):
    """Mean and variance of each channel behind each norm of ``net``, over the tokens of all training clips."""

    mean_var_N2D: Tensor

    def __init__(self, net: nn.Module, width: int) -> None:
        super().__init__()
        self.register_buffer("mean_var_N2D", torch.zeros(len(_norms(net)), 2, width))

    @property
    def recorded(self) -> bool:
        """True once the statistics are set: a recorded variance is never 0."""
        return bool((self.mean_var_N2D[:, 1] > 0).any())


def _norms(net: nn.Module) -> list[RMSNorm]:
    return [module for module in net.modules() if isinstance(module, RMSNorm)]


@contextmanager
def record_norms(net: nn.Module) -> Iterator[list[list[Tensor]]]:
    """Collect the output of each norm while the context is open: a list for each norm, tokens flattened to (X, D)."""
    norms = _norms(net)
    outputs: list[list[Tensor]] = [[] for _ in norms]

    def hook(mine: list[Tensor]) -> Callable[..., None]:
        return lambda *given: mine.append(given[2].flatten(0, -2).float())

    hooks = [norm.register_forward_hook(hook(mine)) for norm, mine in zip(norms, outputs, strict=True)]
    try:
        yield outputs
    finally:
        for one in hooks:
            one.remove()
