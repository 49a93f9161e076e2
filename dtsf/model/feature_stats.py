"""What the tokens of the training clips are like at every norm: mean and variance of each channel, kept with the weights.

They are what test-time adaptation aligns a test stream to (:mod:`dtsf.training.adapt`). Networks trained before they
were kept have none.
Letters: N norms, D width.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dtsf.model.mamba import RMSNorm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor


class FeatureStatistics(nn.Module):
    """Mean and variance of each channel behind each norm of ``net``, over the tokens of all training clips."""

    moment_N2D: Tensor

    def __init__(self, net: nn.Module, width: int) -> None:
        super().__init__()
        self.register_buffer("moment_N2D", torch.zeros(len(_norms(net)), 2, width))

    @property
    def known(self) -> bool:
        """Whether they were ever taken: behind a norm no variance is 0."""
        return bool((self.moment_N2D[:, 1] > 0).any())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        state_dict.setdefault(prefix + "moment_N2D", self.moment_N2D)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def _norms(net: nn.Module) -> list[RMSNorm]:
    return [module for module in net.modules() if isinstance(module, RMSNorm)]


@contextmanager
def watched(net: nn.Module) -> Iterator[list[list[Tensor]]]:
    """While this lasts, what comes out of each norm is appended to the norm's own list, tokens flattened: (X, D)."""
    norms = _norms(net)
    seen: list[list[Tensor]] = [[] for _ in norms]

    def hook(mine: list[Tensor]) -> Callable[..., None]:
        return lambda *given: mine.append(given[2].flatten(0, -2).float())

    hooks = [norm.register_forward_hook(hook(mine)) for norm, mine in zip(norms, seen, strict=True)]
    try:
        yield seen
    finally:
        for one in hooks:
            one.remove()
