"""Draw the input of the network for one performance: python docs/pictures/input.py CACHE RUN GROUP OUT.png.

For runs of a recipe with motion magnitude (default, demo). Upper rows: the small pictures in the cache, one row per view, of
the frames that the network uses. Lower rows: its input, one number per cell: the motion magnitude.
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from dtsf.api import load
from dtsf.cache.reader import open_dataset
from dtsf.report.gallery import choose_frames

cache, run, group, out = sys.argv[1:5]
data = open_dataset(Path(cache))
clips = sorted((clip for clip in data.clips if clip.group == group), key=lambda clip: clip.view)
net = load(Path(run)).net
if "motion" not in net.config.inputs:
    sys.exit(f"{run} has no branch with input motion: choose a run of another recipe")
ids = [clip.id for clip in clips]
grid = data.spec.grid
cells = data.embeddings(ids)
frames = choose_frames(cells, net.config.frames, net.config.motion_sampling)
pictures = np.take_along_axis(data.pictures(ids), frames[:, :, None, None, None], 1)
read = torch.from_numpy(np.take_along_axis(cells, frames[:, :, None, None], 1))
with torch.inference_mode():
    motion = net.inputs.motion(read.unflatten(2, (grid, grid)))[..., 0]
metrics = json.loads((Path(run) / "metrics.json").read_text())
prediction = next(p for p in metrics["predictions"] if p["group"] == group)
names = list(metrics["per_class"])
times = [1, 4, 7, 10, 13]
figure, axes = plt.subplots(2 * len(clips), len(times), figsize=(7.5, 9.4), squeeze=False)
for v, clip in enumerate(clips):
    for column, t in enumerate(times):
        for row, picture in ((v, pictures[v, t]), (len(clips) + v, motion[v, t])):
            axes[row, column].imshow(picture, vmin=0, vmax=float(motion.max()), cmap="magma")
            axes[row, column].set(xticks=[], yticks=[])
        axes[0, column].set_title(f"frame {t + 1} of {pictures.shape[1]}", fontsize=9)
    weight = prediction["view_weights"][v]
    axes[v, 0].set_ylabel(f"view {clip.view}\nweight {weight:.2f}", fontsize=9)
    axes[len(clips) + v, 0].set_ylabel(f"view {clip.view}\nmotion", fontsize=9)
right = "right" if prediction["label"] == prediction["predicted"] else f"wrong: {names[prediction['label']]}"
figure.suptitle(
    f"{group}: \u201c{names[prediction['predicted']]}\u201d, probability {prediction['probability']:.2f}, "
    f"uncertainty {prediction['uncertainty']:.2f} ({right})",
    fontsize=11,
)
figure.tight_layout()
figure.savefig(out, dpi=80)
