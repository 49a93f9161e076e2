"""Gain and cost of training the encoder's upper blocks: Lite0's blocks between strides 8 and 16.

    python benchmarks/upper.py --train-on biased --half 0 --epochs 4

The default recipe is trained on embeddings of the default cache, with two training people of ``motion``. Then network and
upper blocks are trained together from cached maps of stride 8 (24 x 24 cells, six times the bytes), for a few epochs with a
small learning rate and frozen batch normalisation. For comparison, the network alone is trained as long. Both are evaluated
on the two other people. The frames are those of the default cache.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from trials import groups_of, preprocess, trainer, trials

from dtsf.cache.reader import open_dataset
from dtsf.pipeline.encoders.efficientnet_lite import STAGES, weights_file
from dtsf.training.data import Groups, evaluation_batches, training_batches
from dtsf.training.losses import dtsf_loss
from dtsf.training.prepare import decay_groups, schedule
from dtsf.training.recipe import load_recipe, resolve_auto

if TYPE_CHECKING:
    from trials import ClipFilter

    from dtsf.model.network import DTSFNet
    from dtsf.training.recipe import Recipe

LITE0, LOW, HIGH, GRID = "efficientnet-lite0", 8, 16, 6


class Upper(nn.Module):
    """Upper blocks: maps of stride 8, (B, V, T, 24, 24, 40) -> embeddings of stride 16, (B, V, T, 6, 6, 112)."""

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite_pytorch import EfficientNet

        net: Any = EfficientNet.from_name(LITE0)
        net.load_state_dict(torch.load(weights_file(LITE0), map_location="cpu", weights_only=True))
        self.blocks = nn.ModuleList(net._blocks[STAGES[LITE0][LOW][0] : STAGES[LITE0][HIGH][0]])

    def train(self, mode: bool = True) -> Upper:  # noqa: FBT001, FBT002
        """Keep the batch normalisation of ImageNet."""
        return super().train(False)

    def forward(self, x_BVTHWC: Tensor) -> Tensor:
        """Run frame by frame."""
        x_FCHW = x_BVTHWC.float().flatten(0, 2).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            x_FCHW = block(x_FCHW)
        cells_FCGG = nn.functional.avg_pool2d(x_FCHW, x_FCHW.shape[-1] // GRID)
        return cells_FCGG.permute(0, 2, 3, 1).unflatten(0, x_BVTHWC.shape[:3])


def load(low: Path, high: Path, name: str, evaluated: ClipFilter) -> tuple[Groups, Groups]:
    """Return the groups of the maps, at the frames of the embeddings, and of the embeddings."""
    maps, embeddings = (groups_of(open_dataset(folder, name), evaluated) for folder in (low, high))
    if maps.names != embeddings.names:
        raise SystemExit("the two caches have different groups")
    # Float16 overflows in background swapping and occlusion.
    wide = maps.embeddings_NFHWC.float()
    return replace(maps, embeddings_NFHWC=wide, motion=[wide, embeddings.step_NS]), embeddings


@torch.inference_mode()
def top1(net: DTSFNet, upper: Upper, groups: Groups) -> float:
    right = []
    for batch in evaluation_batches(groups, 8, net.config.frames, net.config.motion_sampling):
        logits_BK = net.eval()(upper(batch.x_BVTHWC), batch.mask_BV).logits_BK
        right.append((logits_BK.argmax(-1) == batch.label_B).float())
    return float(torch.cat(right).mean())


def go_on(net: DTSFNet, upper: Upper, groups: Groups, recipe: Recipe, epochs: int, rates: tuple[float, float]) -> float:
    """Continue the training. Return the processor seconds per epoch."""
    train, begun = recipe.train, time.process_time()
    # The same share of the picture on a finer grid.
    finer = groups.embeddings_NFHWC.shape[2] / GRID
    augment = recipe.augment.model_copy(update={"shift": recipe.augment.shift * finer})
    sides = [(net, rates[0]), *([(upper, rates[1])] if rates[1] else [])]
    upper.requires_grad_(bool(rates[1]))
    chosen = [dict(group, peak=rate) for side, rate in sides for group in decay_groups(side, train.weight_decay)]
    optimizer = torch.optim.AdamW(chosen)
    steps = epochs * -(-len(groups) // train.batch_size)
    net.train()
    made = 0
    for epoch in range(epochs):
        for batch in training_batches(
            groups, train.batch_size, net.config.frames, net.config.motion_sampling, augment, torch.ones(1)
        ):
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * schedule(made, steps, train.warmup)
            output = net(upper(batch.x_BVTHWC), batch.mask_BV)
            optimizer.zero_grad()
            dtsf_loss(output, batch.label_B, recipe.loss, recipe.loss.kl_epochs + epoch)["loss"].backward()
            nn.utils.clip_grad_norm_([x for side, _ in sides for x in side.parameters()], train.clip_norm)
            optimizer.step()
            made += 1
    return (time.process_time() - begun) / epochs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cache", type=Path, default=Path("judge-cache"), help="cache of benchmarks/judge.py")
    parser.add_argument("--maps", type=Path, default=Path("maps-stride8"))
    parser.add_argument("--train-on", default="iid", choices=("iid", "biased"))
    parser.add_argument("--half", type=int, default=0, choices=(0, 1))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rate", type=float, default=2e-4, help="peak learning rate of the network")
    parser.add_argument("--upper-rate", type=float, default=3e-4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    preprocess(options.data, options.cache, ["motion"], [])
    words = [] if (options.maps / "made-hidden").is_dir() else f"--encoder {LITE0}:{LOW} --grid 24".split()
    preprocess(options.data, options.maps, ["motion"], words)
    trial = [one for one in trials(["motion"]) if one.train_on == options.train_on][options.half]
    maps, embeddings = load(options.maps, options.cache, trial.train_on, trial.clips)
    data = open_dataset(options.cache, trial.train_on)
    recipe = resolve_auto(load_recipe("default", []), int(embeddings.mask_GV.sum()))
    begun = time.process_time()
    with tempfile.TemporaryDirectory() as run:
        net = trainer(data, seed=0)(embeddings, recipe, run=Path(run)).net
    evaluated = {row: load(options.maps, options.cache, name, who)[0] for row, name, who in trial.evaluations}
    print(f"training on embeddings: {(time.process_time() - begun) / recipe.train.epochs:.2f} s per epoch")
    print("unchanged:", {row: round(top1(net, Upper(), groups), 3) for row, groups in evaluated.items()})
    for name, rate in (("network alone, on:", 0.0), ("with the upper blocks:", options.upper_rate)):
        torch.manual_seed(1)
        later, upper = copy.deepcopy(net), Upper()
        cost = go_on(later, upper, maps, recipe, options.epochs, (options.rate, rate))
        print(name, {row: round(top1(later, upper, g), 3) for row, g in evaluated.items()}, f"{cost:.0f} s per epoch", flush=True)


if __name__ == "__main__":
    main()
