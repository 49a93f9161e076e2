"""Groups in memory that a network learns in seconds, and their training: no cache, no videos."""

import json

import torch
import torch.nn.functional as F

from dtsf.cache.schema import CacheSpec, DatasetInfo
from dtsf.training.data import Groups
from dtsf.training.loop import fit
from dtsf.training.recipe import load_recipe

CLASSES, VIEWS = 3, 2
INFO = DatasetInfo(kind="manifest", name="toy", class_names=("a", "b", "c"), view_names=("1", "2"))
SPEC = CacheSpec(decoder="none", frames=4, size=32, grid=3, encoder="none", weights_hash="0", channels=6)
SMALL = ("model.width=16", "model.depth=1", "model.frames=4", "model.patch=3", "model.reduce=4")


def toy(n=18):
    """Each class's own channel moves."""
    torch.manual_seed(0)
    label = torch.arange(n) % CLASSES
    x = 0.1 * torch.randn(n * VIEWS, 4, 3, 3, 6)
    moving = F.one_hot(label.repeat_interleave(VIEWS), 6)[:, None, None, None]
    x += moving * torch.linspace(-1, 1, 4)[:, None, None, None]
    return Groups(x.half(), torch.arange(n * VIEWS).view(n, VIEWS), label, tuple(f"g{k:02}" for k in range(n)))


def train(run, groups, *overrides, **options):
    """What was fitted, and the lines of its log."""
    recipe = load_recipe("thumbnails", [*SMALL, *overrides])
    run.mkdir(exist_ok=True)
    fitted = fit(groups, recipe, info=INFO, spec=SPEC, protocol="all", run=run, device="cpu", **options)
    return fitted, [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
