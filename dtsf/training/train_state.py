"""Trained modules, their state between steps, and its checkpoint."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dtsf.errors import CheckpointError
from dtsf.files.read import first_line
from dtsf.training.checkpoint import RunState, load_checkpoint, save_checkpoint
from dtsf.training.data import Batch
from dtsf.training.losses import LossConfig, dtsf_loss

if TYPE_CHECKING:
    from pathlib import Path

    from dtsf.model.network import DTSFNet


class TrainingModule(nn.Module):
    """Network, debiaser and losses as one module, which DistributedDataParallel synchronises."""

    def __init__(self, net: DTSFNet, debiaser: Any, config: LossConfig) -> None:
        super().__init__()
        self.net, self.debiaser, self.config = net, debiaser, config

    def forward(
        self, x_BVTHWC: Tensor, mask_BV: Tensor, label_B: Tensor, row_BV: Tensor, epoch: int
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return the loss; the loss and its terms by name, without gradients; correctness and uncertainty of each group (2, B)."""
        batch = self.debiaser.prepare(Batch(x_BVTHWC, mask_BV, label_B, row_BV))
        output = self.net(batch.x_BVTHWC, batch.mask_BV)
        losses = dtsf_loss(output, batch.label_B, self.config, epoch)
        extra = self.debiaser.losses(batch, output, self.net)
        losses |= extra | {"loss": losses["loss"] + sum(extra.values())}
        right_B = output.logits_BK.argmax(-1) == batch.label_B
        seen_2B = torch.stack([right_B.float(), output.uncertainty_B.detach().float()])
        return losses["loss"], {name: x.detach() for name, x in losses.items()}, seen_2B


@dataclass
class TrainState:
    """State that changes from step to step. A checkpoint contains all of it."""

    net: DTSFNet
    debiaser: nn.Module
    optimizer: Any
    average: dict[str, Tensor] | None
    """Running average of the weights, if the recipe has one."""
    best: dict[str, Tensor] | None = None
    """Weights of the best epoch on the held-out groups, if the recipe has a patience."""

    @property
    def current(self) -> dict[str, Tensor]:
        """Weights after this epoch: the running average, or the last weights."""
        return self.average if self.average is not None else self.net.state_dict()

    @property
    def evaluated(self) -> dict[str, Tensor]:
        """Weights to evaluate."""
        return self.best if self.best is not None else self.current


def versions() -> dict[str, str]:
    """Return the versions of Python, the platform, and the packages on which the numbers depend."""
    names = ("dtsf", "torch", "numpy", "zarr", "av", "lightning-fabric")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), "platform": platform.platform(), **found}


def save(folder: Path, state: RunState, training: TrainState) -> None:
    """Write a checkpoint from which the training resumes with the same numbers."""
    kept = {"optimizer": training.optimizer.state_dict(), "debiaser": training.debiaser.state_dict()}
    if training.average is not None or training.best is not None:
        kept["raw"] = training.net.state_dict()
    if training.average is not None and training.best is not None:
        kept["average"] = training.average
    save_checkpoint(folder, state, training.evaluated, kept)


def restore(folder: Path, fresh: RunState, training: TrainState) -> RunState:
    """Read a checkpoint into ``training``, and return its state. Raises CheckpointError: it is of other settings than ``fresh``."""
    checkpoint = load_checkpoint(folder, resume=True)
    state, kept = checkpoint.state, checkpoint.optimizer
    for field in ("recipe", "fingerprint", "seed", "protocol", "info", "processes"):
        if (was := getattr(state, field)) != (now := getattr(fresh, field)):
            raise CheckpointError(
                f"{folder} was trained with {field} {was!r}, not {now!r}: resume with the same, or choose another --out"
            )
    if state.catalog and fresh.catalog and state.catalog != fresh.catalog:
        raise CheckpointError(
            f"{folder} was trained on other clips or labels than the cache names now (catalog {state.catalog}, now "
            f"{fresh.catalog}): start a new run with another --out"
        )
    try:
        if training.average is not None:
            for name, x in kept.get("average", checkpoint.weights).items():
                training.average[name].copy_(x)
        if state.best_epoch is not None and state.recipe.train.patience:
            device = next(training.net.parameters()).device
            training.best = {name: x.to(device) for name, x in checkpoint.weights.items()}
        training.net.load_state_dict(kept.get("raw", checkpoint.weights))
        training.debiaser.load_state_dict(kept.get("debiaser", {}))
        training.optimizer.load_state_dict(kept["optimizer"])
    except Exception as error:  # noqa: BLE001  errors of a forged optimiser state have no common base
        raise CheckpointError(f"{folder / 'optimizer.pt'} does not fit its run: {first_line(error)}") from error
    return state
