"""Groups in memory, their training in seconds, and the state and the outputs of a given network."""

import json

import torch
import torch.nn.functional as F

from dtsf.cache.schema import CacheSpec, DatasetInfo
from dtsf.predict.onnx import OUTPUTS, read_onnx
from dtsf.training.checkpoint import RunState
from dtsf.training.data import Groups
from dtsf.training.frame_sampling import read_frames, uniform_times
from dtsf.training.loop import fit
from dtsf.training.recipe import Recipe, load_recipe

CLASSES, VIEWS = 3, 2
INFO = DatasetInfo(kind="manifest", name="toy", class_names=("a", "b", "c"), view_names=("1", "2"))
SPEC = CacheSpec(decoder="none", frames=4, size=32, grid=3, encoder="none", weights_hash="0", channels=6)
EXPORT_INFO = DatasetInfo(kind="manifest", name="toy", class_names=("a", "b", "c", "d"), view_names=("1", "2", "3"))
EXPORT_SPEC = CacheSpec(decoder="none", frames=3, size=32, grid=6, encoder="none", weights_hash="0", channels=5)
SMALL = ("model.width=16", "model.depth=1", "model.frames=4", "model.patch=3", "model.reduce=4")


def toy(n=18):
    """Make groups in which each class has a channel of its own that moves."""
    torch.manual_seed(0)
    label = torch.arange(n) % CLASSES
    x = 0.1 * torch.randn(n * VIEWS, 4, 3, 3, 6)
    moving = F.one_hot(label.repeat_interleave(VIEWS), 6)[:, None, None, None]
    x += moving * torch.linspace(-1, 1, 4)[:, None, None, None]
    return Groups(x.half(), torch.arange(n * VIEWS).view(n, VIEWS), label, tuple(f"g{k:02}" for k in range(n)))


def train(run, groups, *overrides, **options):
    """Train on groups. Return the result and the lines of the log."""
    recipe = load_recipe("thumbnails", [*SMALL, *overrides])
    run.mkdir(exist_ok=True)
    fitted = fit(groups, recipe, info=INFO, spec=SPEC, protocol="all", run=run, device="cpu", **options)
    return fitted, [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def run_state(net, frames=None, draws=1):
    """Return the state of a run with this network, of a cache with more frames than the network reads."""
    spec = EXPORT_SPEC.model_copy(update={"frames": frames or net.config.frames + 2})
    recipe = Recipe(model=net.config, train={"draws": draws})
    known = {"epoch": 1, "step": 1, "seed": 0, "protocol": "all", "fingerprint": "f", "versions": {}}
    return RunState(spec=spec, info=EXPORT_INFO, recipe=recipe, **known)


def assert_same_outputs(file, net, x, draws=1, **tolerance):
    """Compare ONNX Runtime with PyTorch on all cached frames, as means over sets of frames. Return PyTorch's last output."""
    n_clips, n_frames = x.shape[0] * x.shape[1], net.config.frames
    parts = []
    with torch.inference_mode():
        for draw in range(draws):
            times = uniform_times(n_frames, (draw + 0.5) / draws).expand(n_clips, -1)
            frames = read_frames(x.flatten(0, 1), torch.arange(n_clips), times, net.config.motion_sampling)
            output = net(frames.unflatten(0, x.shape[:2]))
            parts.append((output.probabilities_BK, output.uncertainty_B, output.view_weights_BV))
    wanted = (torch.stack(part).mean(0) for part in zip(*parts, strict=True))
    for name, found, right in zip(OUTPUTS, read_onnx(file)(x), wanted, strict=True):
        torch.testing.assert_close(found, right, **{"rtol": 1e-4, "atol": 1e-5} | tolerance, msg=name)
    return output
