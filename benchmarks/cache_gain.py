"""Gain of the cache: training from a warm cache against training that decodes and embeds its clips in every epoch.

    python benchmarks/cache_gain.py --cache CACHE --dataset iid --protocol cross-subject:5,6 --root ../shared/data/motion/iid

One process, one thread, both ways in turns. ``--epochs`` epochs are run each way; the recipe's number of epochs is a
multiple. Frames are decoded and embedded by stage 1 of dtsf, in its fastest way on one core.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from dtsf.cache.reader import CachedDataset, open_dataset
from dtsf.pipeline.encoders.choose import load_encoder
from dtsf.pipeline.video.clip import Span
from dtsf.pipeline.video.decode import decode_clip
from dtsf.training.data import load_groups
from dtsf.training.loop import fit
from dtsf.training.protocols import parse_protocol, split_clips
from dtsf.training.recipe import load_recipe, resolve_auto


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--dataset")
    parser.add_argument("--protocol", default="cross-subject:5,6")
    parser.add_argument("--root", type=Path, required=True, help="folder of the source videos of the cache")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = open_dataset(arguments.cache, arguments.dataset)
    train_once(data, arguments, epochs=1)  # compiles kernels and opens files, which is not measured
    begun = time.perf_counter()
    train_once(data, arguments, epochs=arguments.epochs)
    cached = (time.perf_counter() - begun) / arguments.epochs
    begun = time.perf_counter()
    for _ in range(arguments.epochs):
        n_clips = decode_and_embed(data, arguments)
        train_once(data, arguments, epochs=1)
    decoded = (time.perf_counter() - begun) / arguments.epochs
    epochs = resolve_auto(load_recipe(arguments.recipe), n_clips).train.epochs
    document = {
        "clips": n_clips,
        "epoch_from_cache_s": cached,
        "epoch_decoding_s": decoded,
        "ratio": decoded / cached,
        "epochs_of_recipe": epochs,
        "ratio_with_stage_1_once": epochs * decoded / (epochs * cached + decoded - cached),
    }
    if arguments.json:
        print(json.dumps(document))
    else:
        for key, value in document.items():
            print(f"{key:24} {value:.3f}" if isinstance(value, float) else f"{key:24} {value}")


def train_once(data: CachedDataset, arguments: argparse.Namespace, *, epochs: int) -> None:
    """Read the training clips from the cache and train."""
    rule = parse_protocol(arguments.protocol, data.info.kind)
    clips = split_clips(data.clips, rule, data.info.kind, data.info.view_names).train
    recipe = load_recipe(arguments.recipe, [f"train.epochs={epochs}"])
    with tempfile.TemporaryDirectory() as run:
        fit(
            load_groups(data, clips),
            recipe,
            info=data.info,
            spec=data.spec,
            protocol=str(rule),
            run=Path(run),
            device="cpu",
        )


def decode_and_embed(data: CachedDataset, arguments: argparse.Namespace) -> int:
    """Decode and embed the clips, as an epoch without a cache must. Return the number of clips."""
    rule = parse_protocol(arguments.protocol, data.info.kind)
    clips = split_clips(data.clips, rule, data.info.kind, data.info.view_names).train
    encoder = load_encoder(data.spec.encoder, data.spec.size, data.spec.grid)
    for clip in clips:
        path, spec = arguments.root / clip.path, data.spec
        decoded = decode_clip(path, spec.frames, spec.size, span=Span(start=clip.start, end=clip.end), crop=spec.crop)
        encoder.embed(decoded.frames)
    return len(clips)


if __name__ == "__main__":
    main()
