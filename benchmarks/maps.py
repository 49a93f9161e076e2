"""Accuracy of the default recipe on other embeddings: sizes, grids, maps and encoders, alone and averaged in pairs.

    python benchmarks/maps.py --embed "" --embed "--size 288 --grid 9" --embed "--encoder efficientnet-lite0:8 --grid 12"

Each ``--embed`` gives further arguments for ``dtsf preprocess``, with a separate cache in ``--cache``. Trains and evaluates
on halves of the training people (``benchmarks/trials.py``). A token stays one frame for every grid. An average of two embeddings is
the result of a network with one encoder for each: their evidence is averaged with equal weights.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from trials import groups_of, preprocess, trainer, trials

from dtsf.cache.reader import open_dataset
from dtsf.model.evidence import average_branches
from dtsf.training.data import evaluation_batches
from dtsf.training.recipe import load_recipe, resolve_auto

if TYPE_CHECKING:
    from trials import Trial

    from dtsf.model.network import DTSFNet
    from dtsf.training.data import Groups


@torch.inference_mode()
def ask(net: DTSFNet, groups: Groups) -> torch.Tensor:
    """Logits of all groups, (G, K)."""
    batches = evaluation_batches(groups, 32, net.config.frames, net.config.motion_sampling)
    return torch.cat([net(batch.x_BVTHWC, batch.mask_BV).logits_BK for batch in batches])


def answers(cache: Path, trial: Trial, seed: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Logits and labels of the evaluated groups, by row."""
    train_on = open_dataset(cache, trial.train_on)
    train = groups_of(train_on, trial.clips)
    recipe = "default" if trial.rule == "all" else "unseen-cameras"
    settings = resolve_auto(load_recipe(recipe, [f"model.patch={train_on.spec.grid}"]), int(train.mask_GV.sum()))
    with tempfile.TemporaryDirectory() as run:
        net = trainer(train_on, seed)(train, settings, run=Path(run)).net
    found = {}
    for row, name, chosen in trial.evaluations:
        groups = groups_of(open_dataset(cache, name), chosen)
        found[row] = ask(net, groups), groups.label_G
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cache", type=Path, default=Path("maps-cache"))
    parser.add_argument("--sets", default="motion,nucla")
    parser.add_argument("--embed", action="append", default=[], help="arguments for dtsf preprocess; may be repeated")
    parser.add_argument("--seeds", default="0")
    options = parser.parse_args()
    sets, embeds = options.sets.split(","), options.embed or [""]
    caches = {words: options.cache / ("".join(words.split()) or "default") for words in embeds}
    for words, cache in caches.items():
        # With arguments, the cache is written again; without, the existing cache is used.
        done = all((cache / trial.train_on).is_dir() for trial in trials(sets))
        preprocess(options.data, cache, sets, [] if done else words.split())
    right: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for seed, trial in itertools.product(map(int, options.seeds.split(",")), list(trials(sets))):
        found = {words or "default": answers(cache, trial, seed) for words, cache in caches.items()}
        for row, _, _ in trial.evaluations:
            logits = {words: said[row][0] for words, said in found.items()}
            half = torch.tensor([0.5, 0.5])
            for one, other in itertools.combinations(found, 2):
                logits[f"{one} and {other}"] = average_branches(torch.stack([logits[one], logits[other]]), half)
            label_G = next(iter(found.values()))[row][1]
            for words, x_GK in logits.items():
                right[words][row].append(float((x_GK.argmax(-1) == label_G).float().mean()))
    rows = list(next(iter(right.values())))
    print("| embeddings | " + " | ".join(rows) + " |\n|---|" + "---|" * len(rows))
    for words, numbers in right.items():
        print(f"| {words} | " + " | ".join(f"{statistics.mean(numbers[row]):.3f}" for row in rows) + " |", flush=True)


if __name__ == "__main__":
    main()
