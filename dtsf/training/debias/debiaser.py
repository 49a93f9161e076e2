"""What the training loop asks of a debiaser. This one does nothing; each peer changes a batch, or adds terms, or both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

    from dtsf.model.network import Output
    from dtsf.training.data import Batch


class Debiaser(nn.Module):
    """No debiasing."""

    def prepare(self, batch: Batch) -> Batch:
        """Change a batch before the network sees it."""
        return batch

    def losses(self, batch: Batch, output: Output, net: Any) -> dict[str, Tensor]:  # noqa: ARG002
        """Terms to add to the loss, by name, already weighted."""
        return {}
