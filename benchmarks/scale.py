"""Accuracy on people of another size than in training, with and without stage 1's crop around all motion.

    python benchmarks/scale.py --root ../shared/data/motion/iid --subjects 1,2,3,4 --seeds 2 [--json]

One subject at a time is held out of training. It is evaluated as filmed, and as if drawn smaller or larger: every frame is
scaled about the actor's feet (middle of the picture, five sixths of its height), and its edge is repeated if needed.
The training clips are as filmed. ``--subjects`` are training subjects of a protocol; its test subjects stay unused.
Embeds every clip six times: about four minutes for 333 clips on one core.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from dtsf.cache.schema import DatasetInfo
from dtsf.pipeline.datasets import scan_source
from dtsf.pipeline.encoders.choose import load_encoder
from dtsf.pipeline.preprocess import make_spec
from dtsf.pipeline.settings import PreprocessSettings
from dtsf.pipeline.video.clip import segment_centres
from dtsf.pipeline.video.crop import CROPS, cut_square
from dtsf.training.data import Groups
from dtsf.training.evaluate import evaluate_groups
from dtsf.training.loop import fit
from dtsf.training.recipe import load_recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dtsf.cache.schema import Clip

SIZES = (1.0, 0.85, 1.15)
SIZE, GRID, FRAMES = 192, 6, 16


def scaled(frames_FHWC: np.ndarray, factor: float) -> np.ndarray:
    """Return the clip, scaled by ``factor`` about the actor's feet."""
    if factor == 1.0:
        return frames_FHWC
    _, height, width, _ = frames_FHWC.shape
    about_y, about_x = height * 5 / 6, width / 2
    y_H = about_y + (torch.arange(height) + 0.5 - about_y) / factor
    x_W = about_x + (torch.arange(width) + 0.5 - about_x) / factor
    place_HW2 = torch.stack(torch.meshgrid(y_H / height * 2 - 1, x_W / width * 2 - 1, indexing="ij")[::-1], -1)
    frames_FCHW = torch.from_numpy(frames_FHWC).permute(0, 3, 1, 2).float()
    moved_FCHW = torch.nn.functional.grid_sample(
        frames_FCHW, place_HW2.expand(len(frames_FCHW), -1, -1, -1), padding_mode="border", align_corners=False
    )
    return moved_FCHW.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def embed_all(root: Path, clips: Sequence[Clip]) -> dict[tuple[str, float], torch.Tensor]:
    """Return the embeddings of all clips, (N, F, G, G, C), for each crop and size."""
    import decord

    encoder = load_encoder("efficientnet-lite0", SIZE, GRID)
    found: dict[tuple[str, float], list[np.ndarray]] = {(crop, factor): [] for crop in CROPS for factor in SIZES}
    for clip in clips:
        reader = decord.VideoReader(str(root / clip.path), num_threads=1)
        frames_FHWC = reader.get_batch(segment_centres(len(reader), FRAMES)).asnumpy()
        del reader
        for factor in SIZES:
            frames = scaled(frames_FHWC, factor)
            for crop in CROPS:
                found[crop, factor].append(encoder.embed(cut_square(frames, SIZE, crop)[0]))
    return {key: torch.from_numpy(np.stack(x)).unflatten(2, (GRID, GRID)) for key, x in found.items()}


def groups_of(clips: Sequence[Clip], embeddings: torch.Tensor, chosen: set[str]) -> Groups:
    """Return the groups of the chosen subjects' clips."""
    names = sorted({clip.group for clip in clips if clip.subject in chosen})
    row_GV = torch.full((len(names), max(clip.view for clip in clips)), -1, dtype=torch.int64)
    label_G = torch.zeros(len(names), dtype=torch.int64)
    for row, clip in enumerate(clips):
        if clip.subject in chosen:
            g = names.index(clip.group)
            row_GV[g, clip.view - 1], label_G[g] = row, clip.label
    return Groups(embeddings, row_GV, label_G, tuple(names))


def main() -> None:
    """Embed, train the folds and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("../shared/data/motion/iid"))
    parser.add_argument("--subjects", default="1,2,3,4")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--set", action="append", default=[], help="section.key=value, as for dtsf train")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    subjects = options.subjects.split(",")
    catalog = scan_source("nucla", options.root, "all", None)
    clips = [clip for clip in catalog.clips if clip.subject in subjects]
    recipe = load_recipe(options.recipe, options.set)
    info = DatasetInfo(kind="nucla", name="scale", class_names=catalog.class_names, view_names=catalog.view_names)
    embeddings = embed_all(catalog.root, clips)
    result: dict[str, dict[str, float]] = {}
    for crop in CROPS:
        spec = make_spec(PreprocessSettings(frames=FRAMES, size=SIZE, grid=GRID, crop=crop))
        right, count = dict.fromkeys(SIZES, 0.0), 0
        for held_out in subjects:
            train = groups_of(clips, embeddings[crop, 1.0], set(subjects) - {held_out})
            for seed in range(options.seeds):
                with tempfile.TemporaryDirectory() as run:
                    net = fit(
                        train, recipe, info=info, spec=spec, protocol="", run=Path(run), seed=seed, device="cpu"
                    ).net
                for factor in SIZES:
                    test = groups_of(clips, embeddings[crop, factor], {held_out})
                    right[factor] += evaluate_groups(net, test, info.class_names).top1 * len(test)
                count += len(test)
        result[crop] = {f"{factor:g}": right[factor] / count for factor in SIZES}
    if options.json:
        sys.stdout.write(json.dumps({"recipe": options.recipe, "seeds": options.seeds, "top1": result}) + "\n")
        return
    for crop, by_size in result.items():
        print(f"{crop:8s}", "   ".join(f"size {factor}: {top1:.3f}" for factor, top1 in by_size.items()))


if __name__ == "__main__":
    main()
