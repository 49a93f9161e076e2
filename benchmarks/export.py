"""Export to ONNX: seconds, size, and ONNX Runtime against PyTorch, for networks with random weights.

    python benchmarks/export.py --recipe default
    python benchmarks/export.py --recipe nucla-paper        # pixels: 24 blocks of 3,137 tokens a view

The seconds are those of the export alone; ``dtsf export`` also imports PyTorch and reads the run, about 3 seconds.
``onnx_over_torch``: processor time of one performance. ``largest_error``: of the probabilities.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import torch

from dtsf.cache.schema import CacheSpec, DatasetInfo
from dtsf.predict.onnx import export_onnx, read_onnx
from dtsf.training.checkpoint import RunState, build_network
from dtsf.training.frame_sampling import read_frames, uniform_times
from dtsf.training.recipe import load_recipe, resolve_auto

CLASSES = tuple("abcdefghij")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--views", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    document = measure(arguments.recipe, arguments.views, arguments.repeats)
    lines = (f"{key:16} {value:.3g}" for key, value in document.items())
    print(json.dumps(document) if arguments.json else "\n".join(lines))


def measure(recipe_name: str, views: int, repeats: int) -> dict[str, float]:
    """Export, and run one performance in turns."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    recipe = resolve_auto(load_recipe(recipe_name), n_clips=333)
    pixels = "pixels" in recipe.model.inputs
    about = {"decoder": "none", "encoder": "none", "weights_hash": "0", "frames": 16}
    spec = CacheSpec(**about, size=224, grid=224 if pixels else 6, channels=3 if pixels else 112)
    info = DatasetInfo(kind="manifest", name="d", class_names=CLASSES, view_names=tuple("123456"[:views]))
    known = {"epoch": 1, "step": 1, "seed": 0, "protocol": "all", "fingerprint": "f", "versions": {}}
    state = RunState(spec=spec, info=info, recipe=recipe, **known)
    net = build_network(recipe.model, spec, info).eval()
    x_BVFHWC = 255 * torch.rand(1, views, spec.frames, spec.grid, spec.grid, spec.channels)
    times_VT = uniform_times(recipe.model.frames, 0.5).expand(views, -1)
    clips_VTHWC = read_frames(x_BVFHWC[0], torch.arange(views), times_VT, recipe.model.motion_sampling)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "net.onnx")
        begun, cpu = time.perf_counter(), time.process_time()
        export_onnx(net, state, file)
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        exported, size = read_onnx(file), file.stat().st_size
        ours, theirs = [], []
        with torch.inference_mode():
            for _ in range(repeats):
                begun = time.process_time()
                found_BK = exported(x_BVFHWC)[0]
                ours.append(time.process_time() - begun)
                begun = time.process_time()
                wanted_BK = net(clips_VTHWC.unsqueeze(0)).probabilities_BK
                theirs.append(time.process_time() - begun)
    return {
        "parameters": sum(x.numel() for x in net.parameters()),
        "seconds": seconds,
        "cpu_s": cpu,
        "megabytes": size / 1e6,
        "onnx_ms": 1000 * min(ours),
        "torch_ms": 1000 * min(theirs),
        "onnx_over_torch": min(ours) / min(theirs),
        "largest_error": float((found_BK - wanted_BK).abs().max()),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


if __name__ == "__main__":
    main()
