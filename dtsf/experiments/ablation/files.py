"""Write an ablation as CSV, Markdown and SVG, anew after every training."""

from __future__ import annotations

import csv
import io
import shlex
from typing import TYPE_CHECKING

from dtsf.experiments.ablation.picture import draw_ablation
from dtsf.experiments.ablation.results import mean_and_spread
from dtsf.report.page import write_page

if TYPE_CHECKING:
    from pathlib import Path

    from dtsf.experiments.ablation.results import Ablation, AblationRow


def write_ablation(ablation: Ablation, out: Path) -> dict[str, Path]:
    """Write ``TABLE.csv``, ``TABLE.md`` and ``TABLE.svg`` into ``out``. Returns the files, by ``csv``, ``markdown`` and
    ``picture``. Raises ConfigError: they cannot be written.
    """
    name = ablation.table
    return {
        "csv": write_page(out / f"{name}.csv", _csv(ablation)),
        "markdown": write_page(out / f"{name}.md", _markdown(ablation)),
        "picture": write_page(out / f"{name}.svg", str(draw_ablation(ablation))),
    }


def _csv(ablation: Ablation) -> str:
    """A line a variant and test; the gap is a test of its own. Empty cells are not finished."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    seeds = [f"seed {seed}" for seed in ablation.seeds]
    writer.writerow(["variant", "test", "mean", "spread", *seeds, "seconds", "differs", "source"])
    for name, _, values in ablation.columns():
        for row, by_seed in zip(ablation.rows, values, strict=True):
            both = mean_and_spread(by_seed.values())
            writer.writerow(
                [
                    row.variant,
                    name,
                    *((f"{number:.6f}" for number in both) if both else ("", "")),
                    *(f"{by_seed[seed]:.6f}" if seed in by_seed else "" for seed in ablation.seeds),
                    f"{_seconds(row):.1f}" if row.seconds else "",
                    "; ".join(row.differs),
                    row.source,
                ]
            )
    return text.getvalue()


def _markdown(ablation: Ablation) -> str:
    lines = [f"# {ablation.title}", "", *_facts(ablation), "", f"![{ablation.title}]({ablation.table}.svg)", ""]
    for name, what, values in ablation.columns():
        heads = ["variant", "mean", "spread (max - min)", *(f"seed {seed}" for seed in ablation.seeds), "seconds"]
        lines += [f"## {_plain(name)}", "", f"{_plain(what)}.", "", _row(heads), _row(["---"] * len(heads))]
        for row, by_seed in zip(ablation.rows, values, strict=True):
            lines.append(
                _row([_plain(row.variant), *ablation.cells(by_seed), f"{_seconds(row):.0f}" if row.seconds else "-"])
            )
        lines.append("")
    first = ablation.rows[0].variant
    lines += [f"## What each row is, and how it differs from {_plain(first)}", ""]
    lines += [_row(["variant", "what", "settings that differ (in brackets: the first row's)"]), _row(["---"] * 3)]
    for row in ablation.rows:
        same = f"none: the same settings as {row.same_as}, one training for both" if row.same_as else "-"
        lines.append(
            _row(
                [
                    _plain(row.variant),
                    _plain(row.source),
                    _plain(same if row.same_as else ", ".join(row.differs) or "-"),
                ]
            )
        )
    lines += ["", "One training of a row by itself:", ""]
    lines += [f"    {_command(ablation, row)}" for row in ablation.rows if row.same_as is None]
    return "\n".join(lines) + "\n"


def _facts(ablation: Ablation) -> list[str]:
    changed = f" with {_plain(' '.join(ablation.overrides))}" if ablation.overrides else ""
    lines = [
        f"Data set {_plain(ablation.dataset)}, protocol {ablation.protocol}, recipe {_plain(ablation.recipe)}{changed}, "
        f"device {ablation.device}, cache fingerprint {ablation.fingerprint}, dtsf {ablation.versions.get('dtsf', '?')}, "
        f"PyTorch {ablation.versions.get('torch', '?')}. Fractions; seconds are the mean time of a training on the machine as "
        "loaded as it was."
    ]
    if ablation.done < ablation.total:
        lines += ["", f"**Not finished: {ablation.done} of {ablation.total} trainings.** The same command goes on."]
    lines += [
        line for test in ablation.tests if test.note for line in ("", f"**{_plain(test.name)}: {_plain(test.note)}.**")
    ]
    return lines


def _seconds(row: AblationRow) -> float:
    return sum(row.seconds.values()) / len(row.seconds)


def _command(ablation: Ablation, row: AblationRow) -> str:
    words = ["dtsf", "train", "--cache", ablation.cache, "--dataset", ablation.dataset, "--protocol", ablation.protocol]
    words += ["--recipe", ablation.recipe, *(word for change in row.overrides for word in ("--set", change))]
    words += ["--init", ablation.init] if ablation.init else []
    return shlex.join([*words, "--seed", str(ablation.seeds[0])])


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _plain(words: str) -> str:
    """A name from a file, as text of a Markdown table: nothing in it is markup or ends the cell."""
    for sign in "\\`*_<>|[]":
        words = words.replace(sign, f"\\{sign}")
    return " ".join(words.split())
