"""Results of a reproduction: a table in Markdown, a CSV line a run, JSON with everything."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from dtsf.experiments.reproduce.state import write_json
from dtsf.files.write import write_atomically
from dtsf.pipeline.datasets.nucla_check import SHORT, SOURCE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from dtsf.experiments.reproduce.records import Reproduction, Row
    from dtsf.pipeline.datasets.nucla_check import Count, NuclaCheck

COLUMNS = (
    "protocol",
    "measures",
    "trained on",
    "tested on",
    "top-1 %",
    "by seed",
    "paper",
    "left out",
    "recipe",
    "a run",
)


def write_results(reproduction: Reproduction, out: Path) -> None:
    """Write ``results.md``, ``results.csv`` and ``results.json``, each whole at any time."""
    write_atomically(out / "results.md", to_markdown(reproduction).encode())
    write_atomically(out / "results.csv", to_csv(reproduction).encode())
    write_json(out / "results.json", reproduction.model_dump(mode="json"))


def cells(row: Row, reproduction: Reproduction) -> tuple[str, ...]:
    """A row as the table shows it, in the order of :data:`COLUMNS`."""
    paper = f"{100 * reproduction.paper_top1:.1f}"
    return (
        row.protocol,
        row.task,
        row.train,
        row.test,
        f"{100 * row.mean:.1f}" + (f" ± {100 * row.spread:.1f}" if row.spread is not None else ""),
        " ".join(f"{100 * value:.1f}" for value in row.top1),
        paper if reproduction.comparable else f"({paper})",
        _left_out(row.left_out) if row.recipe else "",
        row.recipe,
        duration(row.seconds),
    )


def compared(reproduction: Reproduction) -> str:
    """Text on which row the paper's number may be compared with."""
    note = (
        f"The paper's {100 * reproduction.paper_top1:.1f} % is the number for N-UCLA in its abstract, which does not say for "
        "which protocol; so it stands beside every row and belongs to at most one. Cross-view tests one unseen camera alone, "
        "cross-subject all cameras of an unseen person together: these are different tasks, and a number of one is no "
        "number of the other. Peers' usual split is cross-view:3 (train views 1 and 2)."
    )
    if not reproduction.comparable:
        return f"These data are not N-UCLA: the paper's number, in brackets, is no number of theirs. {note}"
    if reproduction.data.missing:
        return f"{len(reproduction.data.missing)} clips of N-UCLA are missing here, so the split is not the published one. {note}"
    return note


def describe_data(check: NuclaCheck) -> Iterable[tuple[str, str]]:
    """Yield the rows of the data table: heading and text."""
    views = ", ".join(f"{n} of {k} view{'s' * (k > 1)}" for k, n in check.groups_by_views.items())
    yield (
        "found",
        f"{check.found:,} clips of {sum(check.groups_by_views.values())} performances ({views}) in {check.root}",
    )
    if not check.is_nucla:
        yield "classes", f"{', '.join(check.classes)} (from labels.csv)"
    yield (
        "in public lists" if check.is_nucla else "ids in lists",
        "; ".join(f"{n.found:,} of {n.listed:,} in {name}'s" for name, n in check.lists.items()),
    )
    yield "by view", _counts(check.views)
    yield "by subject", _counts(check.subjects)
    yield "by action", _counts(check.actions)
    if check.is_nucla:
        yield "missing", f"{_some(check.missing)} of the {check.certain:,} that all lists have"
        yield (
            "disputed",
            f"{_some(check.missing_disputed)} of the {check.listed - check.certain} that only some lists have",
        )
        yield "in no list", _some(check.unlisted)
        yield "very short", f"{_some(check.very_short)}: at most {SHORT} frames in CTR-GCN's list; used, frames repeat"
    for note in check.notes:
        yield "note", note


def to_markdown(reproduction: Reproduction) -> str:
    """The whole page."""
    check, finished = reproduction.data, len(reproduction.runs)
    title = "N-UCLA, reproduced" if reproduction.comparable else "Not N-UCLA: the experiment on other data"
    parts = [f"# {title}", f"{check.summary}."]
    if finished < reproduction.planned:
        parts.append(f"**Not finished: {finished} of {reproduction.planned} runs.** The same command goes on.")
    parts += [f"Note: {note}." for note in reproduction.notes]
    if reproduction.too_many_bad:
        parts.append(f"**Doubtful: {reproduction.too_many_bad}**")
    parts.append(_table(COLUMNS, [cells(row, reproduction) for row in reproduction.rows]))
    seeds = ", ".join(map(str, dict.fromkeys(run.seed for run in reproduction.runs)))
    parts.append(
        f"Mean ± standard deviation over the seeds ({seeds}). Top-1 counts performances (groups); of an unseen view alone "
        "each is one clip."
    )
    parts.append(compared(reproduction))
    parts.append("## Data\n\n" + _table(("what", "how much"), describe_data(check)))
    parts.append(f"Clips that could not be decoded: {_left_out(reproduction.bad_clips)}. N-UCLA: {SOURCE}")
    stages = [(stage.name, duration(stage.seconds), stage.what) for stage in reproduction.stages]
    parts.append("## Time\n\n" + _table(("stage", "time", "what"), stages))
    parts.append("## How\n\n" + "    " + reproduction.command)
    parts.append(", ".join(f"{name} {version}" for name, version in reproduction.versions.items()))
    return "\n\n".join(parts) + "\n"


def to_csv(reproduction: Reproduction) -> str:
    """A line a run."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    names = (
        "protocol",
        "seed",
        "top1",
        "top5",
        "ece",
        "test_groups",
        "train_groups",
        "recipe",
        "epochs",
        "seconds",
        "run",
    )
    writer.writerow([*names, "left_out"])
    for run in reproduction.runs:
        writer.writerow([*(getattr(run, name) for name in names), sum(run.left_out.values())])
    return stream.getvalue()


def duration(seconds: float) -> str:
    """``0.4 s``, ``52 s``, ``12 min 05 s`` or ``3 h 07 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _left_out(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "none"


def _counts(counts: dict[str, Count]) -> str:
    return ", ".join(f"{key} {n.found} of {n.listed}" for key, n in counts.items())


def _some(clips: Sequence[str]) -> str:
    names = f" ({', '.join(clips[:6])}{' ...' if len(clips) > 6 else ''})" if clips else ""
    return f"{len(clips)}{names}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
