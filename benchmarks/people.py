"""How right is a recipe about people it has not seen, by how many it has learnt from? What the recipes are chosen by.

    python benchmarks/people.py --cache cache --dataset iid --subjects 1,2,3,4 --seeds 3 [--set section.key=value] [--json]

Trains on one, two, ... of the subjects, in every combination that has clips of all classes, and judges on the others. The
fewer it has learnt from, the more it must have understood what is common to people. ``--subjects`` are training subjects of a
protocol whose test subjects are not to be looked at: choices made by this leave those for judging.

With N subjects the rows are 1 to N - 1 people learnt from; each is the mean over the combinations and seeds, every
combination counting the same. ``--classes`` names classes whose accuracy is wanted besides. Four subjects and one seed of
``default`` on a hundred groups: three minutes on one core.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
from pathlib import Path

from dtsf.cache.reader import CachedDataset, open_dataset
from dtsf.training.data import load_groups
from dtsf.training.evaluate import evaluate_groups
from dtsf.training.loop import fit
from dtsf.training.recipe import Recipe, load_recipe


def judged(data: CachedDataset, recipe: Recipe, learnt: set[str], asked: set[str], seed: int) -> list[tuple[str, bool]]:
    """Train on some subjects and ask for others: the class of each group asked for, and whether it was named right."""
    train = load_groups(data, [clip for clip in data.clips if clip.subject in learnt])
    test = load_groups(data, [clip for clip in data.clips if clip.subject in asked])
    with tempfile.TemporaryDirectory() as run:
        net = fit(
            train, recipe, info=data.info, spec=data.spec, protocol="", run=Path(run), seed=seed, device="cpu"
        ).net
    metrics = evaluate_groups(net, test, data.info.class_names, draws=recipe.train.draws)
    return [(data.info.class_names[p.label], p.label == p.predicted) for p in metrics.predictions]


def sides(data: CachedDataset, subjects: list[str], people: int) -> list[tuple[set[str], set[str]]]:
    """Every choice of so many people to learn from that has clips of all classes, and the others."""
    classes: dict[str, set[int]] = {}
    for clip in data.clips:
        classes.setdefault(clip.subject, set()).add(clip.label)
    wanted = set.union(*(classes[subject] for subject in subjects))
    choices = [set(choice) for choice in itertools.combinations(subjects, people)]
    return [(some, set(subjects) - some) for some in choices if set.union(*(classes[s] for s in some)) == wanted]


def main() -> None:
    """Train all combinations and print a line for each number of people."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--dataset", help="name in the cache; needless where there is one")
    parser.add_argument("--subjects", default="1,2,3,4")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--set", action="append", default=[], help="section.key=value, as dtsf train takes it")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument(
        "--classes", default="", help="names of classes, joined by commas, to be told apart from the rest"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    data = open_dataset(options.cache, options.dataset)
    subjects, chosen = options.subjects.split(","), set(filter(None, options.classes.split(",")))
    if len(subjects) < 2:
        sys.exit("--subjects: at least two, one to learn from and one to ask")
    if missing := set(subjects) - {clip.subject for clip in data.clips}:
        sys.exit(f"--subjects: {data.info.name} has no clip of {', '.join(sorted(missing))}")
    if unknown := chosen - set(data.info.class_names):
        sys.exit(f"--classes: {', '.join(sorted(unknown))} unknown; known are {', '.join(data.info.class_names)}")
    recipe = load_recipe(options.recipe, options.set)
    result: dict[int, dict[str, float]] = {}
    for people in range(1, len(subjects)):
        all_classes: list[float] = []
        some_classes: list[float] = []
        for (learnt, asked), seed in itertools.product(sides(data, subjects, people), range(options.seeds)):
            answers = judged(data, recipe, learnt, asked, seed)
            all_classes.append(statistics.mean(right for _, right in answers))
            some_classes += [float(right) for name, right in answers if name in chosen]
        if not all_classes:
            continue
        result[people] = {"top1": statistics.mean(all_classes), "trainings": len(all_classes)}
        line = f"learnt from {people}: {result[people]['top1']:.3f} of the others' groups right ({len(all_classes)} trainings)"
        if some_classes:
            result[people]["chosen_classes"] = statistics.mean(some_classes)
            line += f"; {options.classes}: {result[people]['chosen_classes']:.3f}"
        if not options.json:
            print(line, flush=True)
    if not result:
        sys.exit(f"--subjects {options.subjects}: no choice of them to learn from has clips of all classes")
    top1 = statistics.mean(row["top1"] for row in result.values())
    if options.json:
        sys.stdout.write(json.dumps({"mean": top1, "by_people": result, "set": options.set}) + "\n")
    else:
        print(f"mean of these: {top1:.3f}")


if __name__ == "__main__":
    main()
