"""Whether stage 2 works on this machine, tried on drawn embeddings."""

from __future__ import annotations

import time

import torch

from dtsf.model.network import DTSFNet
from dtsf.training.auto_size import USUAL, resolve_auto
from dtsf.training.losses import dtsf_loss
from dtsf.training.recipe import load_recipe

SECONDS = 5.0
MOST_STEPS = 40
CLASSES, GRID, CHANNELS = 4, 6, 112


def check_stage2() -> tuple[bool, str, str]:
    """Train the default recipe's network on groups of drawn embeddings for some seconds: its loss must fall. Returns whether it
    does, what was found, and how to mend it.
    """
    recipe = resolve_auto(load_recipe(), USUAL)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(recipe.train.threads)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = DTSFNet(recipe.model, channels=CHANNELS, canvas=GRID, n_classes=CLASSES).to(device).train()
        label_B = torch.arange(8, device=device) % CLASSES
        # Each class moves in channels of its own.
        x_BVTHWC = torch.randn(8, 3, recipe.model.frames, GRID, GRID, CHANNELS, device=device) * 0.3
        for b, label in enumerate(label_B.tolist()):
            wave_T11 = torch.linspace(0, 6.3, recipe.model.frames, device=device).sin()[:, None, None]
            x_BVTHWC[b, :, ..., label * 8] += 3 * wave_T11
        mask_BV = torch.ones(8, 3, dtype=torch.bool, device=device)
        optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.train.lr, foreach=False)
        losses: list[float] = []
        begun = time.monotonic()
        while len(losses) < 3 or (time.monotonic() - begun < SECONDS and len(losses) < MOST_STEPS):
            loss = dtsf_loss(net(x_BVTHWC, mask_BV), label_B, recipe.loss, 0)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        step_ms = 1000 * (time.monotonic() - begun) / len(losses)
    falls = losses[-1] < 0.9 * losses[0]
    how = "" if falls else "the loss does not fall: file an issue with dtsf doctor --json"
    found = f"{step_ms:.0f} ms a step of 8 groups x 3 views on {device.type}, loss {losses[0]:.2f} to {losses[-1]:.2f}"
    return falls, found, how
