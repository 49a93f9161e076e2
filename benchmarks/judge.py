"""Numbers of recipes on several datasets at once, from folds: each training answers what it left out, and all answers are pooled.

    python benchmarks/judge.py --data ../shared/data --out judge-folds
    python benchmarks/judge.py --recipe default --recipe thumbnails --variant "narrow: model.width=64" --sets ixmas,nucla --json

Preprocesses the clips that are missing in ``--cache``, and calls ``dtsf crossval`` for the rows of :data:`ROWS`. The same command
continues after a kill. Each recipe is compared with the first one, in pairs. ``--recipe`` and ``--variant`` may be repeated;
``--set`` applies to all of them.

A recipe is better if it is so on several datasets by more than the spread of the seeds. Choices by one dataset were wrong.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trials import preprocess

import dtsf
from dtsf.experiments.results import difference_text, interval_text
from dtsf.training.scores import Difference

if TYPE_CHECKING:
    from dtsf.experiments.results import Crossval

ROWS: dict[str, tuple[str, str, str, str]] = {
    "ixmas.people": ("ixmas", "people", "ixmas", "real synchronous cameras: one person left out"),
    "motion.people": ("iid", "people", "iid", "one person left out"),
    "motion.hidden": ("iid", "people", "made-hidden", "the same with one of three cameras hidden"),
    "motion.aligned": ("biased", "people", "biased", "one person left out, background of the action"),
    "motion.conflict": ("biased", "people", "made-conflict", "the same with the background of a different action"),
    "nucla.people": ("nucla", "people", "nucla", "N-UCLA's movements: one person left out"),
    "nucla.view": ("nucla", "views", "nucla", "N-UCLA's movements: one camera left out"),
    "uti.sequences": ("uti", "5", "uti", "real footage: a fifth of the sequences left out"),
}
"""Dataset, folds, test and description of each row. Rows of one dataset and one kind of folds share their trainings."""
SETS = ("ixmas", "motion", "nucla", "uti")


def judge(
    options: argparse.Namespace, out: Path, recipe: str, changes: list[str], first: Path | None
) -> dict[str, dict[str, Any]]:
    """Return the numbers of each row for one recipe, compared with the result of the first recipe in its folder."""
    found: dict[str, dict[str, Any]] = {}
    done: dict[str, Crossval] = {}
    for row, (dataset, folds, test, _) in ROWS.items():
        if row.partition(".")[0] not in options.sets:
            continue
        name = f"{dataset}-{folds}"
        if name not in done:
            others = {own[2] for own in ROWS.values() if own[:2] == (dataset, folds)} - {dataset}
            done[name] = dtsf.crossval(
                options.cache,
                dataset=dataset,
                folds=folds,
                recipe=None if recipe == "default" else recipe,  # another one for unseen cameras
                overrides=[*options.set, *changes],
                seeds=options.seeds,
                tests=sorted(others),
                compare=[first / name] if first is not None else [],
                out=out / name,
                workers=options.workers,
                on_result=lambda r: print(f"{out.name} {r.dataset} {r.by}: {r.done} of {r.total}", file=sys.stderr, flush=True),
            )
        result = done[name]
        found[row] = result.tests[test].model_dump(mode="json")
        for compared in result.compared.values():
            found[row]["versus_first"] = compared[test].model_dump(mode="json")
    return found


def main() -> None:
    """Preprocess, train, ask and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cache", type=Path, default=Path("judge-cache"))
    parser.add_argument("--out", type=Path, default=Path("judge-folds"), help="folder of the results; continued if it exists")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--recipe", action="append", default=[])
    parser.add_argument("--variant", action="append", default=[], help='"name: section.key=value ..." of the first recipe')
    parser.add_argument("--set", action="append", default=[], help="section.key=value, for all")
    parser.add_argument("--preprocess", default="", help="further arguments for dtsf preprocess, e.g. '--size 288 --grid 9'")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--workers", type=int, help="trainings at the same time; default: one a core")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    options.sets = options.sets.split(",")
    if unknown := set(options.sets) - set(SETS):
        sys.exit(f"--sets: {', '.join(sorted(unknown))} unknown; there are {', '.join(SETS)}")
    recipes = options.recipe or ["default"]
    variants: list[tuple[str, str, list[str]]] = [(name, name, []) for name in recipes]
    variants += [(v.partition(":")[0].strip(), recipes[0], v.partition(":")[2].split()) for v in options.variant]
    preprocess(options.data, options.cache, options.sets, options.preprocess.split())
    result: dict[str, dict[str, dict[str, Any]]] = {}
    first: Path | None = None
    for name, recipe, changes in variants:
        out = options.out / (re.sub(r"[^\w.]+", "-", name).strip("-") or "recipe")
        result[name] = judge(options, out, recipe, changes, first)
        first = first or out
    if options.json:
        one = next(iter(result.values())) if len(result) == 1 else {}
        about = {"side": "folds", "seeds": options.seeds, "set": options.set}
        sys.stdout.write(json.dumps({**one, "about": about, "recipes": result}) + "\n")
        return
    print_table(result)


def print_table(result: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Print Markdown with one line for each row and recipe."""
    print("| row | recipe | top-1 | interval | log loss | ECE | AUROC of u | minus the first | better |\n" + "|---" * 9 + "|")
    for row in next(iter(result.values())):
        for name, rows in result.items():
            n = rows[row]
            auroc = "-" if n["auroc_u"] is None else f"{n['auroc_u']:.2f}"
            versus = n.get("versus_first", {}).get("scores", {}).get("top1")
            pair = ["-", "-"]
            if versus is not None:
                difference = Difference.model_validate(versus)
                pair = [difference_text(difference), "-" if difference.better is None else f"{difference.better:.2f}"]
            interval = interval_text(n["intervals"]["top1"]) or f"{n['people']} people"
            numbers = [f"{n['top1']:.3f}", interval, f"{n['log_loss']:.2f}", f"{n['ece']:.2f}", auroc, *pair]
            print(f"| {row}: {ROWS[row][3]} | {name} | " + " | ".join(numbers) + " |")


if __name__ == "__main__":
    main()
