"""Training in several processes, one for each device: ``torchrun --nproc-per-node 2 -m dtsf train ...``.

Two processes make the same step as one process with a batch of double size. Only the first process writes and prints.
"""

from __future__ import annotations

import inspect
import logging
import os
import re
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from dtsf.errors import ConfigError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

T = TypeVar("T")

# Variables that torchrun, Slurm and others set, and Fabric reads.
RANKS = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


class World(NamedTuple):
    """Processes of a run, the number of this one (from 0), and the number of processes on this machine."""

    size: int = 1
    rank: int = 0
    local_size: int = 1

    @property
    def first(self) -> bool:
        """True for the process that writes and prints."""
        return self.rank == 0


class Share(NamedTuple):
    """Groups in one batch of one process, and the weight of their mean loss in the step."""

    chosen_B: Tensor
    weight: float  # 0 for a process without a group in the last step: it takes one that does not count


class Step(NamedTuple):
    """Batches of one process in one step of the optimiser, and the number of groups of all processes."""

    shares: tuple[Share, ...]
    n_groups: int


def current_world() -> World:
    """Read the processes of this run from the environment of torchrun. Without torchrun there is one process. Raises ConfigError:
    a variable that Fabric or torchrun reads is no number.
    """
    numbers: dict[str, int] = {}
    for name in RANKS:
        text = os.environ.get(name, "0" if name not in ("WORLD_SIZE", "LOCAL_WORLD_SIZE") else "1")
        if not re.fullmatch(r"\d{1,6}", text):
            raise ConfigError(
                f"{name}={text!r} in the environment is not a number: unset {name}, or start with torchrun"
            )
        numbers[name] = int(text)
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return World()
    size, rank = numbers["WORLD_SIZE"], numbers["RANK"]
    world = World(size, rank, numbers["LOCAL_WORLD_SIZE"] if "LOCAL_WORLD_SIZE" in os.environ else size)
    if not (world.rank < world.size and 0 < world.local_size <= world.size):
        raise ConfigError(
            f"the environment says process {rank} of {size}, {world.local_size} here: start with torchrun"
        )
    return world


class OneProcess:
    """One process on a CPU in float32, with the methods of Fabric that the loop calls. Fabric does no more there, and its import
    takes three seconds.
    """

    device = torch.device("cpu")

    def setup(self, module: nn.Module, optimizer: Any) -> tuple[nn.Module, Any]:
        """Return both unchanged."""
        return module, optimizer

    def broadcast(self, value: T) -> T:
        """Return the value of the first process, which is this one."""
        return value

    def no_backward_sync(self, module: nn.Module, *, enabled: bool) -> AbstractContextManager[None]:  # noqa: ARG002
        """Return a context that changes nothing."""
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients."""
        loss.backward()

    def clip_gradients(self, _: nn.Module, optimizer: Any, *, max_norm: float, error_if_nonfinite: bool) -> Tensor:
        """Scale longer gradients down to ``max_norm``. Return their norm before. The order of the sum is Fabric's."""
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        return nn.utils.clip_grad_norm_(weights, max_norm, error_if_nonfinite=error_if_nonfinite)


def launch(device: str, precision: str) -> Fabric | OneProcess:
    """Start Fabric and connect to the other processes. ``precision``: ``32-true`` or ``bf16-mixed``."""
    other = device != "cpu" and (torch.cuda.is_available() or torch.backends.mps.is_available())
    if device != "cuda" and not other and precision == "32-true" and current_world().size == 1:
        return OneProcess()
    # The import of Fabric takes seconds; errors in the settings are raised before.
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy
    from torch.nn.parallel import DistributedDataParallel

    world = current_world()
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it would also write to stderr
    # Buffers are constant and need not be sent at every step. PyTorch 2.13 renamed the argument.
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
    buffers: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    fabric = Fabric(
        accelerator=device,
        devices=world.local_size,
        num_nodes=world.size // world.local_size,
        # Some readouts do not use all parameters of VideoMamba.
        strategy=DDPStrategy(find_unused_parameters=True, **buffers) if world.size > 1 else "auto",
        precision=precision,  # type: ignore[arg-type]
    )
    fabric.launch()
    return fabric


def shutdown() -> None:
    """Disconnect from the other processes, if there are any."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def epoch_plan(
    n_groups: int, batch_size: int, accumulate: int, world: World, share_G: Tensor | None = None
) -> list[Step]:
    """Draw the groups of an epoch from PyTorch's global generator. Return the steps of this process.

    ``share_G``: expected share of each group in the epoch; a group is drawn the whole number of times below or above it.
    Default: each group once.
    """
    together = batch_size * world.size
    plan = []
    order_G = torch.randperm(n_groups)
    if share_G is not None:
        # Systematic sampling: one random offset, then equal steps along the sum of the shares.
        edge_G = share_G[order_G].double().cumsum(0)
        step_G = (torch.arange(n_groups) + torch.rand(1, dtype=torch.float64)) * (edge_G[-1] / n_groups)
        drawn_G = torch.searchsorted(edge_G, step_G, right=True).clamp(max=n_groups - 1)
        order_G = order_G[drawn_G][torch.randperm(n_groups)]
    for step_X in order_G.split(together * accumulate):
        shares = []
        for part_X in step_X.split(together):
            mine_B = part_X.tensor_split(world.size)[world.rank]
            shares.append(Share(mine_B if len(mine_B) else part_X[:1], len(mine_B) * world.size / len(step_X)))
        plan.append(Step(tuple(shares), len(step_X)))
    return plan
