"""Accuracy of a recipe on unseen people by the number of training people. The recipes were chosen by it.

    python benchmarks/people.py --cache cache --dataset iid --subjects 1,2,3,4 --seeds 3 [--set section.key=value] [--json]

Trains on one, two, ... of the subjects, in every combination that has clips of all classes, and evaluates on the others.
``--subjects`` are training subjects of a protocol. Its test subjects stay unused, so they can still evaluate the choice.

With N subjects, the rows are 1 to N - 1 training people. Each row is the mean over combinations and seeds, with equal weights
of the combinations. ``--classes`` names classes with a separate accuracy. Four subjects and one seed of ``default`` on a
hundred groups take three minutes on one core.
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


def evaluate_on_others(
    data: CachedDataset, recipe: Recipe, train_on: set[str], evaluated: set[str], seed: int
) -> list[tuple[str, bool]]:
    """Train on some subjects and predict the others. Return the class of each predicted group, and True if it is right."""
    train = load_groups(data, [clip for clip in data.clips if clip.subject in train_on])
    test = load_groups(data, [clip for clip in data.clips if clip.subject in evaluated])
    with tempfile.TemporaryDirectory() as run:
        net = fit(
            train, recipe, info=data.info, spec=data.spec, protocol="", run=Path(run), seed=seed, device="cpu"
        ).net
    metrics = evaluate_groups(net, test, data.info.class_names, draws=recipe.train.draws)
    return [(data.info.class_names[p.label], p.label == p.predicted) for p in metrics.predictions]


def sides(data: CachedDataset, subjects: list[str], people: int) -> list[tuple[set[str], set[str]]]:
    """Yield every choice of ``n`` training people with clips of all classes, and the other people."""
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
    parser.add_argument("--dataset", help="name in the cache; optional if the cache has one dataset")
    parser.add_argument("--subjects", default="1,2,3,4")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--set", action="append", default=[], help="section.key=value, as for dtsf train")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--classes", default="", help="names of classes with a separate accuracy, joined by commas")
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
        for (train_on, evaluated), seed in itertools.product(sides(data, subjects, people), range(options.seeds)):
            answers = evaluate_on_others(data, recipe, train_on, evaluated, seed)
            all_classes.append(statistics.mean(right for _, right in answers))
            some_classes += [float(right) for name, right in answers if name in chosen]
        if not all_classes:
            continue
        result[people] = {"top1": statistics.mean(all_classes), "trainings": len(all_classes)}
        line = f"training people {people}: {result[people]['top1']:.3f} of the others' groups right ({len(all_classes)} trainings)"
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
