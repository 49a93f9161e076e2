"""The training loop: from groups of views to a checkpoint, resumable to the same numbers.

Every epoch draws its randomness from (seed, epoch) alone, so a run that was killed and resumed goes the same way as
one that was not: bit for bit on a CPU.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dtsf.errors import CheckpointError
from dtsf.model.network.dtsfnet import DTSFNet
from dtsf.model.training.checkpoint import RunState, load_checkpoint, save_checkpoint
from dtsf.model.training.data import channel_deviation, energy_mean, training_batches, training_source
from dtsf.model.training.debias import make_debiaser
from dtsf.model.training.initialise import load_initial_weights
from dtsf.model.training.losses import dtsf_loss

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from dtsf.cache.spec import CacheSpec, DatasetInfo
    from dtsf.model.training.data import Groups
    from dtsf.model.training.recipe import Recipe

__all__ = ["EpochReport", "fit", "parameter_groups", "versions"]


@dataclass(frozen=True)
class EpochReport:
    """What one epoch came to, for progress displays."""

    epoch: int
    epochs: int
    loss: float
    accuracy: float
    """On the augmented training groups themselves."""
    uncertainty: float
    seconds: float


def fit(
    groups: Groups,
    recipe: Recipe,
    *,
    info: DatasetInfo,
    spec: CacheSpec,
    protocol: str,
    run: Path,
    seed: int = 0,
    device: str = "auto",
    resume: bool = False,
    initial: dict[str, Tensor] | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
) -> DTSFNet:
    """Train a network and leave checkpoints in ``run/last`` and a line a step in ``run/log.jsonl``.

    Args:
        groups: Training groups.
        recipe: All choices.
        info: Classes and views of the data set.
        spec: How the cache was made.
        protocol: Its canonical text, for the record.
        run: Run folder; exists.
        seed: Of everything random.
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda``.
        resume: Go on from ``run/last``.
        initial: Weights that the encoder starts from, as :func:`.initialise.read_initial_weights` reads them; what
            became of each is written to ``run/init.json``.
        on_epoch: Called after each epoch.

    Returns:
        The network to evaluate (the running average where the recipe has one), in evaluation mode.

    Raises:
        CheckpointError: With ``resume``, when the checkpoint belongs to another recipe, cache or seed.

    """
    # Fabric takes seconds to import; whatever is refused is refused before.
    from lightning_fabric import Fabric

    train = recipe.train
    torch.set_num_threads(train.threads)
    # Fabric's own logger would print; one process is all that this version starts.
    fabric = Fabric(accelerator=device, devices=1, precision=train.precision)
    torch.manual_seed(seed)
    net = DTSFNet(
        recipe.model,
        channels=spec.channels,
        canvas=spec.grid,
        n_classes=len(info.class_names),
        n_views=len(info.view_names),
    )
    if initial is not None and not resume:
        report = load_initial_weights(net.encoder, initial)
        (run / "init.json").write_text(json.dumps(asdict(report), indent=1), encoding="utf-8")
    moves = recipe.model.anchor == "dynamic" or recipe.model.canvas == "energy"
    deviation_C = channel_deviation(groups, dynamic=moves)
    net.channel_scale_C.copy_(1.0 / deviation_C)
    if recipe.model.canvas == "energy":
        net.energy_mean_HW1.copy_(energy_mean(net, groups))
    source, pace = training_source(net, groups, recipe.augment, embeddings=recipe.debias.method != "none")
    debiaser = make_debiaser(
        recipe.debias, groups, width=recipe.model.width, n_classes=len(info.class_names), seed=seed
    ).to(fabric.device)
    trained = nn.ModuleDict({"net": net, "debiaser": debiaser})
    optimizer = torch.optim.AdamW(
        parameter_groups(trained, train.weight_decay), lr=train.lr, betas=(0.9, train.beta2), foreach=False
    )
    model, optimizer = fabric.setup(net, optimizer)
    average = {name: x.detach().clone() for name, x in net.state_dict().items()} if train.ema else None
    state = RunState(
        epoch=0,
        step=0,
        seed=seed,
        protocol=protocol,
        fingerprint=spec.fingerprint(),
        spec=spec,
        info=info,
        recipe=recipe,
        versions=versions(),
    )
    if resume:
        state = _restore(run / "last", state, net, debiaser, optimizer, average)
    n_steps = train.epochs * math.ceil(len(groups) / train.batch_size)
    with _open_log(run / "log.jsonl", state.step) as log:
        for epoch in range(state.epoch, train.epochs):
            begun = time.monotonic()
            torch.manual_seed(seed * 1_000_003 + epoch)
            model.train()
            sums = torch.zeros(3)
            step = state.step
            for batch in training_batches(
                source, train.batch_size, recipe.model.frames, pace, recipe.augment, deviation_C
            ):
                lr = train.lr * schedule(step, n_steps, train.warmup)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                batch = debiaser.prepare(batch.to(fabric.device))
                output = model(batch.x_BVTHWC, batch.mask_BV)
                losses = dtsf_loss(output, batch.label_B, recipe.loss, epoch)
                extra = debiaser.losses(batch, output)
                losses |= extra | {"loss": losses["loss"] + sum(extra.values())}
                optimizer.zero_grad()
                fabric.backward(losses["loss"])
                fabric.clip_gradients(model, optimizer, max_norm=train.clip_norm)
                optimizer.step()
                step += 1
                if average is not None:
                    _update_average(average, net, train.ema, step)
                right_B = output.logits_BK.argmax(-1) == batch.label_B
                sums += torch.stack(
                    [losses["loss"].detach() * len(right_B), right_B.sum(), output.uncertainty_B.detach().sum()]
                ).cpu()
                line = {"step": step, "epoch": epoch, "lr": lr, "accuracy": right_B.float().mean().item()}
                log.write(json.dumps(line | {name: x.item() for name, x in losses.items()}) + "\n")
            state = state.model_copy(update={"epoch": epoch + 1, "step": step})
            log.flush()
            _save(run / "last", state, net, debiaser, optimizer, average)
            if on_epoch is not None:
                loss, accuracy, uncertain = (sums / len(groups)).tolist()
                on_epoch(EpochReport(epoch + 1, train.epochs, loss, accuracy, uncertain, time.monotonic() - begun))
    if average is not None:
        net.load_state_dict(average)
    return net.eval()


def schedule(step: int, n_steps: int, warmup: float) -> float:
    """Share of the peak learning rate at ``step``: linear warm-up, then cosine to 0."""
    rising = max(1, round(warmup * n_steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1.0 + math.cos(math.pi * (step - rising) / max(1, n_steps - rising)))


def parameter_groups(net: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters by whether weight decay applies: to matrices, not to norms, biases, positions, A_log, D, cls."""
    exempt = ("A_log", "A_b_log", "pos_embed", "temporal_pos_embedding", "cls_token")
    decayed: list[Tensor] = []
    kept: list[Tensor] = []
    for name, parameter in net.named_parameters():
        (kept if parameter.ndim < 2 or name.endswith(exempt) else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    names = ("dtsf", "torch", "numpy", "zarr", "decord2", "lightning-fabric")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), "platform": platform.platform(), **found}


def _update_average(average: dict[str, Tensor], net: nn.Module, decay: float, step: int) -> None:
    """Running average of the weights; its first steps forget faster, so that the start leaves no trace."""
    decay = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for name, x in net.state_dict().items():
            average[name].lerp_(x, 1.0 - decay)


def _save(
    folder: Path,
    state: RunState,
    net: nn.Module,
    debiaser: nn.Module,
    optimizer: Any,
    average: dict[str, Tensor] | None,
) -> None:
    kept = {"optimizer": optimizer.state_dict(), "debiaser": debiaser.state_dict()}
    if average is not None:
        kept["raw"] = net.state_dict()
    save_checkpoint(folder, state, average if average is not None else net.state_dict(), kept)


def _restore(
    folder: Path,
    fresh: RunState,
    net: nn.Module,
    debiaser: nn.Module,
    optimizer: Any,
    average: dict[str, Tensor] | None,
) -> RunState:
    checkpoint = load_checkpoint(folder, resume=True)
    state = checkpoint.state
    for field in ("recipe", "fingerprint", "seed", "protocol", "info"):
        was, now = getattr(state, field), getattr(fresh, field)
        if was != now:
            raise CheckpointError(
                f"{folder} was trained with {field} {was!r}, not {now!r}: resume with the same, or choose another --out"
            )
    if average is not None:
        for name, x in checkpoint.weights.items():
            average[name].copy_(x)
    net.load_state_dict(checkpoint.optimizer["raw"] if average is not None else checkpoint.weights)
    debiaser.load_state_dict(checkpoint.optimizer.get("debiaser", {}))
    optimizer.load_state_dict(checkpoint.optimizer["optimizer"])
    return state


def _open_log(path: Path, n_steps: int) -> Any:
    """Open the log for appending, cut to the steps that the checkpoint knows: later ones are made again."""
    lines: list[str] = []
    if n_steps and path.exists():
        lines = [
            line
            for line in path.read_text("utf-8").splitlines(keepends=True)
            if line.endswith("\n") and json.loads(line)["step"] <= n_steps
        ]
    path.write_text("".join(lines), encoding="utf-8")
    return path.open("a", encoding="utf-8")
