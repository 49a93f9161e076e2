"""What held-out people promise of new people: sets, the surest answers, and cameras as needed, on people outside the training.

    dtsf crossval --cache cache --dataset ixmas --out runs/ixmas
    python benchmarks/promises.py runs/ixmas [--videos ROOT]

Each run of the cross-validation promises something about the people that its fold left out. Printed are, over all folds: coverage,
size and worst person of the sets of 80 and 90 %; accuracy of the surest answers; and, where there are several cameras, top-1 and
share of opened cameras as needed (``auto``), beside all cameras, the first camera of each run alone, and each camera alone.
``--videos``: the folder of the source; then performances are also predicted from their videos, with all cameras and as needed in
turns, for the time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import tomllib
from pathlib import Path
from typing import Any

import torch

from dtsf import api
from dtsf.cache.reader import CachedDataset, open_dataset
from dtsf.experiments.crossval_files import read_result
from dtsf.training.answers import Answers, ask, join
from dtsf.training.as_needed import answers_as_needed, plan_cameras
from dtsf.training.data import load_groups
from dtsf.training.promises import SHARES, at_shares, surest_curve
from dtsf.training.protocols import parse_protocol, split_clips, subjects_of

LEVELS = (0.8, 0.9)


def ask_outside(run: api.Run, data: CachedDataset, people: list[str]) -> Answers:
    """Return the answers of a run for people who are not in its training, with the cameras that a plan can open."""
    clips = [clip for clip in data.clips if clip.subject in people]
    groups, names = load_groups(data, clips), data.info.view_names
    assert run.held_out is not None
    order = plan_cameras(run.held_out.answers).order if len(names) > 1 else ()
    given = [[view + 1 for view in order[:n]] for n in range(1, len(order))] + [[view + 1] for view in order]
    subjects = {clip.group: clip.subject or "" for clip in clips}
    return ask(run.net, groups, subjects, data.info.class_names, names, given=given)


def sets(run: api.Run, answers: Answers, level: float) -> list[tuple[str, bool, int, bool]]:
    """Return for each group: its person, whether the set has the true class, its size, and whether it is for new people."""
    assert run.held_out is not None
    whole, found = answers.complete(), []
    for g, given, log_p_K in zip(whole.group_R.tolist(), whole.given_RV.tolist(), whole.log_p_RK, strict=True):
        rule = run.held_out.promise([view for view, there in enumerate(given) if there], level)
        chosen = rule.choose(log_p_K.exp())
        found.append((answers.subjects[g], int(answers.label_G[g]) in chosen, len(chosen), rule.by_person))
    return found


def seconds(run: api.Run, data: CachedDataset, root: Path, people: list[str], most: int) -> tuple[float, float]:
    """Return the mean seconds of a prediction from videos with all cameras and as needed, in turns."""
    groups: dict[str, list[Any]] = {}
    for clip in data.clips:
        if clip.subject in people:
            groups.setdefault(clip.group, []).append(clip)
    several = [clips for clips in groups.values() if len(clips) > 1][:: max(1, len(groups) // most)][:most]
    taken: dict[Any, list[float]] = {None: [], "auto": []}
    for k, clips in enumerate([several[0], *several]):
        words = {"views": ",".join(str(clip.view) for clip in clips)}
        for as_needed in (None, "auto") if k % 2 else ("auto", None):
            start = time.perf_counter()
            run.predict([root / clip.path for clip in clips], as_needed=as_needed, **words)
            if k:  # the first call starts the decoder
                taken[as_needed].append(time.perf_counter() - start)
    return statistics.mean(taken[None]), statistics.mean(taken["auto"])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return all numbers of a cross-validation."""
    result = read_result(options.result)
    assert result is not None, f"{options.result} has no result of dtsf crossval"
    data = open_dataset(options.cache or Path(result.cache), result.dataset)
    rows: dict[float, list[tuple[str, bool, int, bool]]] = {level: [] for level in LEVELS}
    asked, needed, held_out, opened, first, several, times = [], [], [], [], [], [], []
    folders = sorted(path for path in (options.result / "trainings").iterdir() if path.name.endswith("-seed0"))
    held_out_people = []
    for folder in folders:
        rule = parse_protocol(tomllib.loads((folder / "config.toml").read_text())["data"]["protocol"], data.info.kind)
        part = subjects_of(split_clips(data.clips, rule, data.info.kind, data.info.view_names).test)
        run = api.load(folder)
        assert run.held_out is not None
        answers = ask_outside(run, data, part)
        for level in LEVELS:
            rows[level] += sets(run, answers, level)
        asked.append(answers)
        held_out_people.append(len({*run.held_out.answers.subjects}))
        held_out.append(run.held_out.answers.complete())
        if len(answers.views) == 1:
            continue
        plan = plan_cameras(run.held_out.answers)
        chosen = answers_as_needed(answers, plan)
        both = torch.isin(answers.group_R, chosen.group_R)
        number_R = answers.rows(both & answers.complete_R).given_RV.sum(1)
        opened += (chosen.given_RV.sum(1)[chosen.group_R.argsort()] / number_R).tolist()
        view_R = torch.tensor([next(v for v in plan.order if given[v]) for given in chosen.given_RV.tolist()])
        alone = {
            (g, tuple(m)): right
            for g, m, right in zip(
                answers.group_R.tolist(), answers.given_RV.tolist(), answers.right_R.tolist(), strict=True
            )
        }
        for g, view in zip(chosen.group_R.tolist(), view_R.tolist(), strict=True):
            first.append(alone[g, tuple(v == view for v in range(len(answers.views)))])
        several += answers.rows(both & answers.complete_R).right_R.tolist()
        needed += chosen.right_R.tolist()
        if options.videos is not None:
            times.append(seconds(run, data, options.videos, part, options.performances))
    pooled = join(asked)
    outside = pooled.complete()
    curves = [surest_curve(one.log_p_RK.amax(1), one.right_R) for one in (join(held_out), outside)]
    numbers: dict[str, Any] = {
        "dataset": result.dataset,
        "people": len({*outside.subjects}),
        "people_held_out": held_out_people,
        "performances": len(outside.group_R),
        "top1": outside.right_R.double().mean().item(),
        "log_loss": -outside.true_log_p_R.double().mean().item(),
        "sets": {},
        "surest": {str(share): pair for share, *pair in zip(SHARES, *map(at_shares, curves), strict=True)},
    }
    for level, found in rows.items():
        by = {person: [inside for who, inside, *_ in found if who == person] for person in {row[0] for row in found}}
        numbers["sets"][str(level)] = {
            "coverage": statistics.mean(row[1] for row in found),
            "size": statistics.mean(row[2] for row in found),
            "worst_person": min(statistics.mean(inside) for inside in by.values()),
            "for_new_people": all(row[3] for row in found),
        }
    if needed:
        numbers["as_needed"] = {
            "performances": len(needed),
            "opened": statistics.mean(opened),
            "top1": statistics.mean(needed),
            "top1_all": statistics.mean(several),
            "top1_first": statistics.mean(first),
            "top1_alone": {name: _top1(pooled.alone(view)) for view, name in enumerate(data.info.view_names, 1)},
        }
    if times:
        numbers["as_needed"]["seconds"] = [statistics.mean(pair) for pair in zip(*times, strict=True)]
    return numbers


def _top1(answers: Answers) -> tuple[float, int] | None:
    return (answers.top1(), len(answers.group_R)) if len(answers.group_R) else None


def main() -> None:
    """Print the numbers of one cross-validation as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="folder of a result of dtsf crossval, with calibration")
    parser.add_argument("--cache", type=Path, help="by default that of the result")
    parser.add_argument("--videos", type=Path)
    parser.add_argument(
        "--performances", type=int, default=20, help="performances that are predicted from videos, for each fold"
    )
    print(json.dumps(measure(parser.parse_args()), indent=1))


if __name__ == "__main__":
    main()
