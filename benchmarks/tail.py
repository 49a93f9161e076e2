"""Accuracy with a long tail of classes, by ``train.balance``: 24 groups of the first class in training, 1 of the last.

    python benchmarks/tail.py [--drawn DIR] [--cache CACHE] [--seeds 4] [--balance 0,0.5,1] [--json]

Draws the videos with ``dtsf synth nucla`` unless ``--drawn`` has them, and preprocesses the groups that it needs unless
``--cache`` has them. With odd seeds the order of the classes is reversed, so that frequent classes become rare. The test groups
are of other people and equally many for each class, so top-1 is the mean recall. ``rare``: classes with at most 3 training
groups; ``frequent``: all others.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import torch

from dtsf import api
from dtsf.cache.reader import open_dataset
from dtsf.pipeline.datasets.synthetic import synthesize_nucla
from dtsf.training.data import load_groups
from dtsf.training.evaluate import evaluate_groups
from dtsf.training.loop import fit
from dtsf.training.recipe import load_recipe

COUNTS = (24, 17, 12, 8, 6, 4, 3, 2, 1, 1)
TRAIN = ("1", "2", "3", "4")
"""People of the training; the others are tested."""
TEST_EPISODES = 3


def long_tail(seed: int, rows: list[dict[str, str]]) -> dict[str, int]:
    """Return the training groups with :data:`COUNTS` groups of the classes, each with the number of groups of its class."""
    groups_of: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row["subject"] in TRAIN:
            groups_of[row["label"]].add(row["group"])
    draw = random.Random(0)
    labels = draw.sample(sorted(groups_of), len(groups_of))[:: -1 if seed % 2 else 1]
    orders = {label: draw.sample(sorted(names), len(names)) for label, names in sorted(groups_of.items())}
    counts = zip(labels, COUNTS, strict=True)
    return {name: count for label, count in counts for name in orders[label][:count]}


def test_groups(rows: list[dict[str, str]]) -> set[str]:
    """Return the test groups: :data:`TEST_EPISODES` of each other person and class."""
    return {r["group"] for r in rows if r["subject"] not in TRAIN and int(r["group"][-2:]) < TEST_EPISODES}


def main() -> None:
    """Draw, preprocess, train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drawn", type=Path, help="folder of dtsf synth nucla --subjects 6 --episodes 6")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--balance", default="0,0.5,1")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--set", action="append", default=[], help="section.key=value, as for dtsf train")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--size", type=int, default=96, help="as for dtsf preprocess")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        cache = options.cache or Path(work, "cache")
        drawn = options.drawn or Path(work, "drawn")
        if not drawn.exists():
            synthesize_nucla(drawn, subjects=6, episodes=6, seed=5)
        with (drawn / "videos.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        chosen = test_groups(rows)
        needed = chosen.union(*(long_tail(seed, rows) for seed in range(options.seeds)))
        if not cache.exists():
            table = Path(work, "tail.csv")
            with table.open("w", newline="") as stream:
                writer = csv.DictWriter(stream, rows[0])
                writer.writeheader()
                writer.writerows(row for row in rows if row["group"] in needed)
            api.preprocess("manifest", root=table, cache=cache, videos=drawn, size=options.size)
        data = open_dataset(cache, "manifest")
        test = load_groups(data, [clip for clip in data.clips if clip.group in chosen])
        result: dict[str, dict[str, list[float]]] = {}
        for seed in range(options.seeds):
            counts = long_tail(seed, rows)
            clips = [clip for clip in data.clips if clip.group in counts]
            train = load_groups(data, clips)
            rare = {clip.label for clip in clips if counts[clip.group] <= 3}
            for balance in options.balance.split(","):
                recipe = load_recipe(options.recipe, [*options.set, f"train.balance={balance}"])
                with tempfile.TemporaryDirectory(dir=work) as run:
                    net = fit(
                        train, recipe, info=data.info, spec=data.spec, protocol="", run=Path(run), seed=seed, device="cpu"
                    ).net
                metrics = evaluate_groups(net, test, data.info.class_names)
                found = [(p.label in rare, p.label == p.predicted) for p in metrics.predictions]
                row = result.setdefault(balance, {"top1": [], "rare": [], "frequent": []})
                row["top1"].append(metrics.top1)
                for name, wanted in (("rare", True), ("frequent", False)):
                    row[name].append(statistics.mean(right for is_rare, right in found if is_rare == wanted))
                print(seed, balance, {name: round(values[-1], 3) for name, values in row.items()}, file=sys.stderr)
    if options.json:
        sys.stdout.write(json.dumps({"recipe": options.recipe, "test_groups": len(test), "balance": result}) + "\n")
        return
    for balance, row in result.items():
        shown = "  ".join(f"{name} {statistics.mean(x):.3f} ({min(x):.3f}-{max(x):.3f})" for name, x in row.items())
        print(f"balance {balance:4s}  {shown}")


if __name__ == "__main__":
    main()
