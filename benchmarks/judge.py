"""One table of the accuracy of recipes on several datasets at once, beginning with the videos, and their mean rank.

    python benchmarks/judge.py --data ../shared/data --seeds 0,1,2 --json
    python benchmarks/judge.py --variant "no swapping: augment.swap_background=0" --variant "narrow: model.width=64"

Preprocesses the clips that are missing in ``--cache``, trains and evaluates. Without ``--test``, it uses training people and
sequences only, and holds out some of them in turn. Choose settings by these numbers. With ``--test``, it trains on all of
them and evaluates the test splits, once, for the table. :data:`ROWS` describes the rows. The README of the data describes
the datasets.

A setting is better if its mean rank over the rows is lower. Earlier choices by one dataset were wrong. ``--recipe`` and
``--variant`` may be repeated; ``--set`` applies to all of them. ``--quick`` halves the epochs at twice the learning rate.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from judge_sets import make_sets

from dtsf.cache.reader import CachedDataset, open_dataset
from dtsf.training.data import load_groups
from dtsf.training.evaluate import evaluate_groups
from dtsf.training.loop import fit
from dtsf.training.protocols import Split, parse_protocol
from dtsf.training.recipe import Recipe, load_recipe, resolve_auto
from dtsf.training.train import fit_calibrated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dtsf.cache.schema import Clip
    from dtsf.training.data import Groups
    from dtsf.training.loop import FitResult

    ClipFilter = Callable[[Clip], bool]
    Chosen = Callable[[str], Recipe]
    Numbers = dict[str, dict[str, float | None]]

ROWS = {
    "motion.people": "people not seen in training",
    "motion.hidden": "the same with one of three cameras hidden",
    "motion.aligned": "unseen people, background of their action",
    "motion.conflict": "unseen people, background of a different action",
    "nucla.people": "N-UCLA's movements: people not seen in training",
    "nucla.view": "N-UCLA's movements: a camera not seen in training",
    "uti.sequences": "real footage: sequences not seen in training",
    "uti.conflict": "real footage: where the scene tells another action",
    "uti.scene": "real footage: another place than in training",
}
TRAINED = ("1", "2", "3", "4")
"""Training people of ``motion`` and ``nucla``; 5 and 6 are the test people."""
HALVES = (("1", "2"), ("3", "4"))
LAWN_FIRST = ("handshake", "hug", "kick")
"""Classes of ``uti`` that one background gives away, if a conflict is made from training sequences."""


@dataclass(frozen=True)
class Trial:
    """One training and its evaluations."""

    train_on: str
    """Dataset in the cache."""
    clips: ClipFilter
    evaluations: tuple[tuple[str, str, ClipFilter], ...]
    """Row, dataset, clips."""
    rule: str = "all"
    """Kind of test, for the calibration: ``cross-view`` for new cameras, otherwise new people."""


def trials(sets: list[str], *, test: bool) -> Iterator[Trial]:
    """Return all trainings of the chosen datasets."""
    if "motion" in sets:
        yield from _motion(test=test)
    if "nucla" in sets:
        yield from _nucla(test=test)
    if "uti" in sets:
        yield from _uti(test=test)


def _of(*subjects: str) -> ClipFilter:
    return lambda clip: clip.subject in subjects


def _motion(*, test: bool) -> Iterator[Trial]:
    sides = [(TRAINED, ("5", "6"))] if test else [HALVES, HALVES[::-1]]
    hidden, aligned, conflict = (
        ("occluded", "aligned", "conflict") if test else ("made-hidden", "biased", "made-conflict")
    )
    for some, others in sides:
        seen, unseen = _of(*some), _of(*others)
        yield Trial("iid", seen, (("motion.people", "iid", unseen), ("motion.hidden", hidden, unseen)))
        yield Trial("biased", seen, (("motion.aligned", aligned, unseen), ("motion.conflict", conflict, unseen)))


def _nucla(*, test: bool) -> Iterator[Trial]:
    for some, others in [(TRAINED, ("5", "6"))] if test else [HALVES, HALVES[::-1]]:
        yield Trial("nucla", _of(*some), (("nucla.people", "nucla", _of(*others)),))
    people = (*TRAINED, "5", "6") if test else TRAINED
    for train_on, test_view in [((1, 2), 3)] if test else [((1,), 2), ((2,), 1)]:

        def seen(clip: Clip, views: tuple[int, ...] = train_on) -> bool:
            return clip.subject in people and clip.view in views

        def unseen(clip: Clip, view: int = test_view) -> bool:
            return clip.subject in people and clip.view == view

        yield Trial("nucla", seen, (("nucla.view", "nucla", unseen),), f"cross-view:{test_view}")


def _uti(*, test: bool) -> Iterator[Trial]:
    if test:
        for name in ("sequences", "conflict", "scene"):
            side = [lambda clip, part=part: clip.split == part for part in ("train", "test")]
            yield Trial(f"uti-{name}", side[0], ((f"uti.{name}", f"uti-{name}", side[1]),))
        return
    # Training sequences alone: three on the parking lot and three on the lawn.
    data = "uti-sequences"

    def among(wanted: ClipFilter) -> tuple[ClipFilter, ClipFilter]:
        return (lambda c: c.split == "train" and wanted(c)), (lambda c: c.split == "train" and not wanted(c))

    for k in range(1, 4):
        seen, unseen = among(lambda c, out=(f"s{k:02d}", f"s{k + 10}"): c.subject not in out)
        yield Trial(data, seen, (("uti.sequences", data, unseen),))
    for lawn in (False, True):
        seen, unseen = among(lambda c, lawn=lawn: (c.raw_label in LAWN_FIRST) == ((c.background == "lawn") == lawn))
        yield Trial(data, seen, (("uti.conflict", data, unseen),))
    for place in ("lot", "lawn"):
        seen, unseen = among(lambda c, place=place: c.background == place)
        yield Trial(data, seen, (("uti.scene", data, unseen),))


def preprocess(data: Path, cache: Path, sets: list[str], words: list[str], *, test: bool) -> None:
    """Preprocess the clips of the trials that are missing in the cache."""
    wanted: list[tuple[str, str, Path]] = []
    if "motion" in sets:
        wanted += [("nucla", "iid", data / "motion/iid")]
        biased = data / "motion/biased"
        wanted += [("nucla", "biased", biased / "multiview_action_videos")]
        if test:
            wanted += [("nucla", part, biased / f"multiview_action_videos_{part}") for part in ("aligned", "conflict")]
            wanted += [("nucla", "occluded", data / "motion/occluded")]
        else:
            made = make_sets(data / "motion", cache / "made-videos")
            wanted += [("nucla", f"made-{part}", made / part) for part in ("conflict", "hidden")]
    if "nucla" in sets:
        wanted += [("nucla", "nucla", data / "nucla")]
    if "uti" in sets:
        files = (
            {"sequences": "sequences", "conflict": "conflict", "scene": "other_scene"}
            if test
            else {"sequences": "sequences"}
        )
        wanted += [("manifest", f"uti-{name}", data / f"uti/{file}.csv") for name, file in files.items()]
    for kind, name, root in wanted:
        if (cache / name).is_dir() and not words:
            continue
        command = [sys.executable, "-m", "dtsf", "preprocess", kind, "--root", root, "--name", name, "--cache", cache]
        subprocess.run([*map(str, command), *words, "--quiet"], check=True, stdout=sys.stderr)


def groups_of(data: CachedDataset, chosen: ClipFilter) -> Groups:
    """Return the groups of some clips."""
    return load_groups(data, [clip for clip in data.clips if chosen(clip)])


def trainer(data: CachedDataset, seed: int) -> Callable[..., FitResult]:
    """Call :func:`fit` with the arguments that all trainings of a dataset share."""
    return partial(fit, info=data.info, spec=data.spec, protocol="", seed=seed, device="cpu")


def judge(
    cache: Path,
    recipe: Chosen,
    sets: list[str],
    seeds: list[int],
    *,
    test: bool,
    calibrated: bool = True,
    quick: bool = False,
) -> Numbers:
    """Train every trial with every seed and return the mean of each row's numbers. ``recipe`` is adapted to the trial."""
    opened: dict[str, CachedDataset] = {}
    found: dict[str, list[tuple[float, float, float | None]]] = {}

    def data(name: str) -> CachedDataset:
        return opened.setdefault(name, open_dataset(cache, name))

    for trial in trials(sets, test=test):
        settings, train_on = recipe(trial.rule), data(trial.train_on)
        clips = tuple(clip for clip in train_on.clips if trial.clips(clip))
        settings = resolve_auto(settings, len(clips))
        settings = _in_half_the_epochs(settings) if quick else settings
        for seed in seeds:
            with tempfile.TemporaryDirectory() as run:
                again = trainer(train_on, seed)
                split = Split(train=clips, test=(), left_out={}, task="")
                load, protocol = partial(load_groups, train_on), parse_protocol(trial.rule, train_on.info.kind).name
                options = {"protocol": protocol, "run": Path(run), "calibrated": calibrated}
                net = fit_calibrated(split, settings, load=load, fit_again=again, **options).net
            for row, name, chosen in trial.evaluations:
                metrics = evaluate_groups(net, groups_of(data(name), chosen), train_on.info.class_names, draws=settings.train.draws)
                found.setdefault(row, []).append((metrics.top1, metrics.ece, metrics.auroc_uncertainty))
    return {row: _mean(found[row]) for row in ROWS if row in found}


def _mean(numbers: list[tuple[float, float, float | None]]) -> dict[str, float | None]:
    top1, ece, auroc = ([x for x in column if x is not None] for column in zip(*numbers, strict=True))
    spread = statistics.stdev(top1) if len(top1) > 1 else 0.0
    return {
        "top1": statistics.mean(top1),
        "ece": statistics.mean(ece),
        "auroc_u": statistics.mean(auroc) if auroc else None,
        "deviation": spread,
        "trainings": len(top1),
    }


def _in_half_the_epochs(recipe: Recipe) -> Recipe:
    update = {"epochs": max(1, recipe.train.epochs // 2), "lr": recipe.train.lr * 2}
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=update)})


def mean_ranks(top1: dict[str, dict[str, float]]) -> dict[str, float]:
    """Return each recipe's mean rank over the rows; 1 is the best, and equal recipes share the mean of their ranks."""
    rows = next(iter(top1.values()))
    ranks: dict[str, list[float]] = {name: [] for name in top1}
    for row in rows:
        for name in top1:
            better = sum(other[row] > top1[name][row] for other in top1.values())
            equal = sum(other[row] == top1[name][row] for other in top1.values())
            ranks[name].append(better + (equal + 1) / 2)
    return {name: statistics.mean(values) for name, values in ranks.items()}


def main() -> None:
    """Preprocess, train, evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cache", type=Path, default=Path("judge-cache"))
    parser.add_argument("--sets", default="motion,nucla,uti")
    parser.add_argument("--recipe", action="append", default=[])
    parser.add_argument(
        "--variant", action="append", default=[], help='"name: section.key=value ..." of the first recipe'
    )
    parser.add_argument("--set", action="append", default=[], help="section.key=value, for all")
    parser.add_argument(
        "--preprocess", default="", help="further arguments for dtsf preprocess, e.g. '--size 288 --grid 9'"
    )
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--test", action="store_true", help="evaluate the test splits, for the table; never choose by them")
    parser.add_argument("--quick", action="store_true", help="half the epochs at twice the learning rate")
    parser.add_argument("--uncalibrated", action="store_true", help="no calibration: half the time, the same top-1")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    sets, seeds = options.sets.split(","), [int(seed) for seed in options.seeds.split(",")]
    if unknown := set(sets) - {"motion", "nucla", "uti"}:
        sys.exit(f"--sets: {', '.join(sorted(unknown))} unknown; there are motion, nucla, uti")
    recipes = options.recipe or ["default"]
    variants = [(name, name, []) for name in recipes]
    variants += [(v.partition(":")[0].strip(), recipes[0], v.partition(":")[2].split()) for v in options.variant]
    preprocess(options.data, options.cache, sets, options.preprocess.split(), test=options.test)
    result: dict[str, dict[str, dict[str, float | None]]] = {}
    for name, recipe, changes in variants:

        def settings(rule: str, recipe: str = recipe, changes: list[str] = changes) -> Recipe:
            # The default recipe of dtsf train.
            own = "unseen-cameras" if recipe == "default" and rule != "all" else recipe
            return load_recipe(own, [*options.set, *changes])

        how = {"test": options.test, "calibrated": not options.uncalibrated, "quick": options.quick}
        result[name] = judge(options.cache, settings, sets, seeds, **how)
        print(name, " ".join(f"{row} {n['top1']:.3f}" for row, n in result[name].items()), file=sys.stderr, flush=True)
    ranks = mean_ranks({name: {row: float(n["top1"] or 0) for row, n in rows.items()} for name, rows in result.items()})
    if options.json:
        about = {"side": "test" if options.test else "training, held out in turn", "seeds": seeds, "set": options.set}
        one = next(iter(result.values())) if len(result) == 1 else {}
        sys.stdout.write(json.dumps({**one, "about": about, "recipes": result, "mean_rank": ranks}) + "\n")
        return
    print_table(result, ranks)


def print_table(result: dict[str, dict[str, dict[str, float | None]]], ranks: dict[str, float]) -> None:
    """Print Markdown with one line per row and one column per recipe: top-1 (calibration error, AUROC of uncertainty)."""
    print("| | " + " | ".join(result) + " |\n|---|" + "---|" * len(result))
    for row in next(iter(result.values())):
        cells = []
        for rows in result.values():
            n = rows[row]
            auroc = "-" if n["auroc_u"] is None else f"{n['auroc_u']:.2f}"
            cells.append(f"{n['top1']:.3f} ({n['ece']:.2f}, {auroc})")
        print(f"| {row}: {ROWS[row]} | " + " | ".join(cells) + " |")
    if len(result) > 1:
        print("| mean rank | " + " | ".join(f"{rank:.2f}" for rank in ranks.values()) + " |")


if __name__ == "__main__":
    main()
