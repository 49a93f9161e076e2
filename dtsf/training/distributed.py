"""Several processes, one a device, as ``torchrun`` starts them: who this one is, and which groups it takes.

    torchrun --nproc-per-node 2 -m dtsf train ...

A step takes ``batch_size`` groups for each process and each accumulated part, so two processes make the step that one makes
with the doubled batch (tested). Only the first process writes and prints.
"""

from __future__ import annotations

import inspect
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import Tensor


@dataclass(frozen=True)
class World:
    """The processes of a run."""

    size: int = 1
    rank: int = 0
    """Of this process, from 0."""
    local_size: int = 1
    """Processes on this machine."""

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0


@dataclass(frozen=True)
class Share:
    """The groups that one process takes at once."""

    chosen_B: Tensor
    """Rows of the training groups."""
    weight: float
    """Of its mean loss, so that the mean over processes and the sum over parts is the mean over the step's groups. 0 where
    a last step has too few groups for all processes: they must all take part, so one takes a group that does not count."""


@dataclass(frozen=True)
class Step:
    """What one process does for one step of the optimiser."""

    shares: tuple[Share, ...]
    """One after the other."""
    n_groups: int
    """Of all processes together."""


def current_world() -> World:
    """What torchrun says of this process; one process by itself where torchrun did not start it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return World()
    size = int(os.environ["WORLD_SIZE"])
    return World(size, int(os.environ["RANK"]), int(os.environ.get("LOCAL_WORLD_SIZE", size)))


def launch(device: str, precision: str) -> Fabric:
    """Start Fabric in this process, and meet the others where there are some. ``precision``: ``32-true`` or ``bf16-mixed``."""
    # Fabric takes seconds to import; whatever is refused is refused before.
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy
    from torch.nn.parallel import DistributedDataParallel

    world = current_world()
    # dtsf reports progress itself; Fabric would write to stderr too.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    # Buffers are constants: no need to send them at every step. PyTorch 2.13 renamed the switch.
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
    buffers: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    # A readout may leave some of VideoMamba's parameters unused.
    several = DDPStrategy(find_unused_parameters=True, **buffers)
    fabric = Fabric(
        accelerator=device,
        devices=world.local_size,
        num_nodes=world.size // world.local_size,
        strategy=several if world.size > 1 else "auto",
        precision=precision,  # type: ignore[arg-type]
    )
    fabric.launch()
    return fabric


def shutdown() -> None:
    """Part from the other processes; without them, nothing."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def epoch_plan(n_groups: int, batch_size: int, accumulate: int, world: World) -> list[Step]:
    """Draw one epoch's order from PyTorch's global generator and divide it. Returns the steps of the calling process."""
    together = batch_size * world.size
    return [
        Step(tuple(_share(part_X, len(step_X), world) for part_X in step_X.split(together)), len(step_X))
        for step_X in torch.randperm(n_groups).split(together * accumulate)
    ]


def _share(part_X: Tensor, n_groups: int, world: World) -> Share:
    mine_B = part_X.tensor_split(world.size)[world.rank]
    return Share(mine_B if len(mine_B) else part_X[:1], len(mine_B) * world.size / n_groups)
