"""Files of a cross-validation: results and pooled answers, read for a comparison, and the page."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path

from dtsf.errors import CheckpointError, ConfigError
from dtsf.experiments.grid import hash_of
from dtsf.experiments.job import LIMIT, write_json
from dtsf.experiments.results import Crossval, CurvePoint, amount, difference_text, interval_text
from dtsf.experiments.settings import CrossvalSettings
from dtsf.files.read import parse_model, read_file
from dtsf.report import svg
from dtsf.report.page import render, write_page
from dtsf.training.answers import Answers, read_answers, write_answers

RESULT = "crossval.json"
LONG = 100  # bytes of the name of a test in a file name
SURE = 0.9  # probability from which a step of a curve is called a gain


def write_crossval(result: Crossval, answers: Mapping[str, Mapping[int, Answers]], out: Path) -> None:
    """Write the result, the pooled answers (by test and seed) and the page. Raises ConfigError: a file cannot be written."""
    write_json(out / RESULT, result.model_dump(mode="json"))
    for test, by_seed in answers.items():
        for seed, one in by_seed.items():
            write_answers(_answers_file(out, test, seed), one)
    write_page(out / "answers.csv", _table(next(iter(answers.values()), {})))
    curves = {kind: [point for point in result.curve if point.kind == kind] for kind in ("people", "takes", "cameras")}
    drawn = [
        (
            kind,
            svg.levels([(p.number, p.scores.top1, p.scores.intervals["top1"]) for p in points], f"{kind} in training"),
        )
        for kind, points in curves.items()
        if points
    ]
    page = render(
        "crossval.html",
        title=f"{result.dataset}: {result.by}",
        r=result,
        own=result.tests.get(result.dataset),
        curves=drawn,
        advice=advice(result.curve),
        interval=interval_text,
        difference=difference_text,
    )
    write_page(out / "report.html", page)


def read_result(out: Path) -> Crossval | None:
    """Read the result in a folder; None without one. Raises CheckpointError: it is of another version, or damaged."""
    file = out / RESULT
    if not file.exists():
        return None
    data = read_file(file, limit=LIMIT, error=CheckpointError)
    step = f"remove {file} and run dtsf crossval again: trainings are kept"
    return parse_model(Crossval, data, str(file), error=lambda why: CheckpointError(f"{why}: {step}"))


def read_others(chosen: CrossvalSettings, key: str, by: str) -> dict[str, dict[str, dict[int, Answers]]]:
    """Read the answers of the results to compare with: folder -> test -> seed. Raises ConfigError: a folder has no result, or one
    of other clips, folds or seeds.
    """
    found: dict[str, dict[str, dict[int, Answers]]] = {}
    for folder in chosen.compare:
        other = read_result(folder)
        if other is None:
            raise ConfigError(f"--compare {folder}: no {RESULT} in it: name the --out of another dtsf crossval")
        if folder.resolve() == chosen.out.resolve():
            raise ConfigError(f"--compare {folder} is --out itself: choose another --out for this recipe")
        if other.key != key:
            there = f"{other.dataset}, {other.by}"
            raise ConfigError(
                f"--compare {folder} has other clips, labels or folds ({there}) than this one ({by}): give both the same"
            )
        if not set(other.seeds) & set(chosen.seeds):
            seeds = ", ".join(map(str, other.seeds)) or "none"
            raise ConfigError(
                f"--compare {folder} has other finished seeds ({seeds}): choose --seeds by them, or finish it first"
            )
        step = f"run its dtsf crossval --out {folder} again, which writes them"
        found[str(folder)] = {
            test: {seed: read_answers(_answers_file(folder, test, seed), step).complete() for seed in other.seeds}
            for test in other.tests
        }
    return found


def advice(curve: Sequence[CurvePoint]) -> list[str]:
    """Return in words what each curve says, and what to film more of: the largest gain by doubling that is probable enough."""
    lines, gains = [], {}
    for kind in dict.fromkeys(point.kind for point in curve):
        points = [point for point in curve if point.kind == kind]
        for before, after in zip(points, points[1:], strict=False):
            if after.step is None:
                continue
            step = after.step.scores["top1"]
            sure = (
                f", better with probability {step.better:.2f}"
                if step.better is not None
                else ", too few people for an interval"
            )
            lines.append(f"From {before.number} to {amount(after.number, kind)}: top-1 {difference_text(step)}{sure}.")
            if after is points[-1] and step.better is not None:
                doubled = step.difference / max(math.log2(after.number / before.number), 1e-9)
                gains[kind] = (doubled if step.better >= SURE else 0.0, after.number)
    if gains:
        kind, (gain, number) = max(gains.items(), key=lambda item: item[1][0])
        if gain > 0:
            lines.append(f"Of these, twice as many {kind} as {number} promise most: about {gain:+.3f} of top-1.")
        else:
            names = " or ".join(gains)
            lines.append(f"The last step shows no sure gain: more {names} like these are not known to help.")
    return lines


def _answers_file(out: Path, test: str, seed: int) -> Path:
    plain = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in test)
    if len(plain.encode()) > LONG:
        plain = f"{plain[: LONG // 4]}-{hash_of(test)}"
    return out / "answers" / f"{plain}-seed{seed}.safetensors"


def _table(by_seed: Mapping[int, Answers]) -> str:
    """Return one line for each seed and group with all its views."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    classes = next(iter(by_seed.values())).classes if by_seed else ()
    writer.writerow(
        ["seed", "group", "views", "subject", "label", "answer", "uncertainty", *(f"p {name}" for name in classes)]
    )
    for seed, answers in by_seed.items():
        one = answers.complete()
        p_RK = one.log_p_RK.exp()
        views = ("+".join(compress(one.views, given)) for given in one.given_RV.tolist())
        rows = zip(one.group_R.tolist(), views, one.label_R.tolist(), p_RK.argmax(1).tolist(), strict=True)
        values = zip(rows, one.uncertainty_R.tolist(), p_RK.tolist(), strict=True)
        for (g, given, label, answer), u, p in values:
            numbers = (f"{number:.6g}" for number in (u, *p))
            writer.writerow([seed, one.groups[g], given, one.subjects[g], classes[label], classes[answer], *numbers])
    return stream.getvalue()
