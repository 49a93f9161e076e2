"""Draw the output of TSM on real videos: python docs/pictures/thumbnails.py VIDEO... OUT.png, one video per view.

Decoded frames, not embeddings: the same function on pixels. Upper rows: the frames, then the figure's literal reading in
training (random cells), then evaluation (fixed corners), then the default, the dynamic part.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from dtsf.model.motion import split_static_dynamic
from dtsf.model.tsm import paste_thumbnails
from dtsf.pipeline.video.decode import decode_clip

SIDE, FRAMES = 192, 16
*videos, out = map(Path, sys.argv[1:])
torch.manual_seed(4)
x_BVTHWC = (
    torch.stack([torch.from_numpy(decode_clip(video, FRAMES, SIDE).frames.copy()) for video in videos])[None] / 255
)
mask_BV = torch.ones(x_BVTHWC.shape[:2], dtype=torch.bool)
rows = {
    "frames": x_BVTHWC,
    "training": paste_thumbnails(x_BVTHWC, mask_BV, training=True),
    "evaluation": paste_thumbnails(x_BVTHWC, mask_BV, training=False),
    # Grey means no change.
    "dynamic": 0.5 + paste_thumbnails(split_static_dynamic(x_BVTHWC)[1], mask_BV, training=False),
}
times = [0, 5, 9, 13]
n_views = len(videos)
figure, axes = plt.subplots(len(rows) * n_views, len(times), figsize=(7.5, 1.9 * len(rows) * n_views), squeeze=False)
for k, (name, shown_BVTHWC) in enumerate(rows.items()):
    for v in range(n_views):
        for column, t in enumerate(times):
            axis = axes[k * n_views + v, column]
            axis.imshow(shown_BVTHWC[0, v, t].clamp(0, 1))
            axis.set(xticks=[], yticks=[])
            if k == v == 0:
                axis.set_title(f"frame {t + 1} of {FRAMES}", fontsize=9)
        axes[k * n_views + v, 0].set_ylabel(f"{name}\nview {v + 1}", fontsize=9)
figure.tight_layout()
figure.savefig(out, dpi=60)
