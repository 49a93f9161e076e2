"""Training at the real size of NTU RGB+D 60 from a drawn cache of 40,320 clips: memory, speed and resuming.

The cache holds random numbers in the shape and number of cross-subject training (13,440 groups of three cameras). It is
written in --work, takes about 5.4 GB, and is removed at the end unless --keep. It gives no accuracy.

    python benchmarks/ntu.py --steps 10 --json
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from dtsf.cache.formats import array_shapes
from dtsf.cache.reader import CachedDataset, open_dataset
from dtsf.cache.schema import CacheSpec, Clip, ClipRecord, DatasetInfo, ShardRecord
from dtsf.cache.status import Status
from dtsf.cache.writer import create_or_open, extend, write_shard
from dtsf.model.network import DTSFNet
from dtsf.training.data import Groups, load_groups, training_batches
from dtsf.training.loop import fit
from dtsf.training.prepare import channel_deviation
from dtsf.training.recipe import Recipe, load_recipe

SHARD, VIEWS, CLASSES = 480, 3, 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, default=None, help="folder of the drawn cache; default: a temporary folder"
    )
    parser.add_argument("--groups", type=int, default=13_440)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--recipe", default="ntu60")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp(prefix="dtsf-ntu-"))
    try:
        document = measure(work, options)
    finally:
        if not options.keep:
            shutil.rmtree(work, ignore_errors=True)
    if options.json:
        sys.stdout.write(json.dumps(document) + "\n")
    else:
        for name, value in document.items():
            print(f"{name:22} {value}")


def measure(work: Path, options: argparse.Namespace) -> dict[str, object]:
    torch.set_num_threads(1)
    document: dict[str, object] = {"groups": options.groups, "clips": options.groups * VIEWS, "recipe": options.recipe}
    begun = time.perf_counter()
    dataset, clips = draw(work / "ntu", options.groups)
    document["draw_s"] = round(time.perf_counter() - begun, 1)
    before = peak_gb()
    begun = time.perf_counter()
    groups = load_groups(dataset, clips)
    document["load_s"] = round(time.perf_counter() - begun, 1)
    document["embeddings_gb"] = round(groups.embeddings_NFHWC.numel() * groups.embeddings_NFHWC.itemsize / 1e9, 3)
    document["load_peak_gb"] = round(peak_gb() - before, 3)
    begun = time.perf_counter()
    deviation_C = channel_deviation(groups, dynamic=True)
    document["deviation_s"] = round(time.perf_counter() - begun, 1)
    recipe = load_recipe(options.recipe, options.set)
    worked = time.process_time()
    order = torch.randperm(len(groups)).split(recipe.train.batch_size)
    n_batches = min(10, len(order))
    made = training_batches(
        groups, recipe.train.batch_size, recipe.model.frames, recipe.model.motion_sampling, recipe.augment, deviation_C, order
    )
    for _ in itertools.islice(made, n_batches):
        pass
    document["batch_ms"] = round(1000 * (time.process_time() - worked) / n_batches, 1)
    info, spec = dataset.info, dataset.spec
    net = DTSFNet(recipe.model, channels=spec.channels, side=spec.grid, n_classes=CLASSES, n_views=VIEWS)
    document["parameters"] = sum(x.numel() for x in net.parameters())
    # First, so that imports and compilation are finished before the steps are timed.
    document["resumes_bit_for_bit"] = resumes(take(groups, 8), options, info, spec)
    few = take(groups, options.steps * recipe.train.batch_size)
    with tempfile.TemporaryDirectory() as run:
        begun, worked = time.perf_counter(), time.process_time()
        fit(few, short(options, 1), info=info, spec=spec, protocol="", run=Path(run), device="cpu")
        step = (time.process_time() - worked) / options.steps
    document["step_wall_s"] = round((time.perf_counter() - begun) / options.steps, 2)
    # Processor time, without the load of other processes.
    document["step_s"] = round(step, 2)
    document["epoch_h"] = round(step * -(-len(groups) // recipe.train.batch_size) / 3600, 2)
    document["batch_share_of_step"] = round(float(document["batch_ms"]) / 1000 / step, 4)  # type: ignore[arg-type]
    document["peak_gb"] = round(peak_gb(), 3)
    document["load_1_minute"] = os.getloadavg()[0]
    return document


def draw(folder: Path, n_groups: int) -> tuple[CachedDataset, list[Clip]]:
    """Write random embeddings in shards, as stage 1 does, with the number of frames of the recipe's network."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from make_cache import list_clips, source

    spec = CacheSpec(
        decoder="drawn", frames=16, size=192, grid=6, encoder="e", weights_hash="0", channels=112, picture_size=4
    )
    names = tuple(f"class {k}" for k in range(CLASSES))
    info = DatasetInfo(kind="ntu", name="ntu", class_names=names, view_names=("1", "2", "3"))
    dataset = create_or_open(folder, spec, info, SHARD, format="zarr", compress="none")
    clips = [
        Clip(
            id=f"g{g:05d}v{view}", path=f"g{g:05d}v{view}.avi", label=g % CLASSES, raw_label=str(g % CLASSES),
            group=f"g{g:05d}", view=view, subject=str(g % 40), setup=1,
        )
        for g in range(n_groups)
        for view in range(1, VIEWS + 1)
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    n_shards = -(-len(clips) // SHARD)
    extend(dataset, n_shards)
    shapes = array_shapes(spec)
    # One block of random numbers, rolled: half a minute instead of ten, and all clips differ.
    block = rng.normal(size=(SHARD, *shapes["embeddings"][0])).astype(np.float16)
    for shard in range(n_shards):
        some = clips[shard * SHARD : (shard + 1) * SHARD]
        rows = {name: np.zeros((len(some), *shape), dtype) for name, (shape, dtype) in shapes.items()}
        rows["embeddings"] = np.roll(block, shard, axis=-1)[: len(some)]
        records = tuple(ClipRecord(source=source(clip), status=Status.OK, row=row) for row, clip in enumerate(some))
        record = ShardRecord(shard=shard, fingerprint=spec.fingerprint(), rows=len(some), clips=records, files={})
        write_shard(dataset, record, rows)
    list_clips(folder, clips, info)
    return open_dataset(folder.parent, folder.name), clips


def take(groups: Groups, n: int) -> Groups:
    from dataclasses import replace

    return replace(groups, row_GV=groups.row_GV[:n], label_G=groups.label_G[:n], names=groups.names[:n])


def short(options: argparse.Namespace, epochs: int, *more: str) -> Recipe:
    return load_recipe(options.recipe, [*options.set, f"train.epochs={epochs}", "train.precision=32-true", *more])


def resumes(groups: Groups, options: argparse.Namespace, info: object, spec: object) -> bool:
    """Train two epochs at once, and two with a kill between them, on a few of the groups in memory."""

    class Killed(Exception):
        pass

    def kill(report: object) -> None:
        raise Killed

    recipe = short(options, 2, "train.batch_size=4")
    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as cut:
        common = {"info": info, "spec": spec, "protocol": "", "device": "cpu"}
        right = fit(groups, recipe, run=Path(whole), **common).net.state_dict()
        with contextlib.suppress(Killed):
            fit(groups, recipe, run=Path(cut), on_epoch=kill, **common)
        found = fit(groups, recipe, run=Path(cut), resume=True, **common).net.state_dict()
    return all(torch.equal(x, found[name]) for name, x in right.items())


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
