"""Write results of experiments as Markdown, CSV, JSON and SVG. Each file is complete at any time."""

from __future__ import annotations

import csv
import io
import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from dtsf.experiments.results import Ablation, ProtocolRow, Reproduction
from dtsf.files.read import json_text
from dtsf.pipeline.datasets.nucla_check import SHORT, SOURCE, Count, NuclaCheck
from dtsf.report import svg
from dtsf.report.page import write_page

FIELDS = ("protocol", "seed", "top1", "top5", "ece", "test_groups", "train_groups", "recipe", "epochs", "seconds")
PAIRS = ("95 % interval", "minus the first row", "probability to be better")
CONTINUE = "Run the same command again to continue."
STYLE = Markup(  # of a picture that stands alone, for example in a README
    "<style>svg{background:#fff}text{font:12px system-ui,sans-serif;fill:#222}.small{font-size:11px;fill:#666}"
    ".strong{font-weight:600}.grid{stroke:#ddd}.fill0{fill:#4878b0}.fill1{fill:#c8641e}"
    "@media(prefers-color-scheme:dark){svg{background:#16181c}text{fill:#e6e6e6}.small{fill:#a0a4ab}.grid{stroke:#33373d}}"
    "</style>"
)


def write_ablation(ablation: Ablation, out: Path, protocol: str) -> None:
    """Write ``TABLE.csv``, ``TABLE.md`` and ``TABLE.svg`` into ``out``. ``protocol``: of the commands that train one row. Raises
    ConfigError: a file cannot be written.
    """
    lines = []
    for name, _, values in ablation.columns():
        for row, by_seed in values:
            seconds = f"{statistics.fmean(row.seconds.values()):.1f}" if row.seconds else ""
            numbers = ablation.cells(by_seed, digits=6, empty="")
            pairs = ablation.pairs(row, name, empty="")
            lines.append([row.variant, name, *numbers, seconds, "; ".join(row.differs), row.source, *pairs])
    seeds = [f"seed {seed}" for seed in ablation.seeds]
    heads = ["variant", "test", "mean", "spread", *seeds, "seconds", "differs", "source", *PAIRS]
    write_page(out / f"{ablation.table}.csv", _csv([heads, *lines]))
    write_page(out / f"{ablation.table}.md", _ablation_markdown(ablation, protocol))
    write_page(out / f"{ablation.table}.svg", str(_draw(ablation)))


def write_reproduction(reproduction: Reproduction, out: Path) -> None:
    """Write ``results.md``, ``results.csv`` and ``results.json`` into ``out``. Raises ConfigError: a file cannot be written."""
    lines = [
        [*(getattr(run, name) for name in FIELDS), run.run, sum(run.left_out.values())] for run in reproduction.runs
    ]
    write_page(out / "results.md", _reproduction_markdown(reproduction))
    write_page(out / "results.csv", _csv([[*FIELDS, "run", "left_out"], *lines]))
    write_page(out / "results.json", json_text(reproduction.model_dump(mode="json"), indent=1) + "\n")


def _csv(lines: Iterable[Sequence[Any]]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(lines)
    return stream.getvalue()


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table as Markdown. Cells are plain text: markup in them is escaped."""
    lines = [[_escape(cell) for cell in line] for line in (columns, *rows)]
    lines.insert(1, ["---"] * len(columns))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _escape(text: str) -> str:
    """Escape a text for Markdown, on one line."""
    for sign in "\\`*_<>|[]":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


def _ablation_markdown(ablation: Ablation, protocol: str) -> str:
    changed = f" with {_escape(' '.join(ablation.overrides))}" if ablation.overrides else ""
    parts = [
        f"# {ablation.title}",
        f"Dataset {_escape(ablation.dataset)}, protocol {ablation.protocol}, recipe {_escape(ablation.recipe)}{changed}, "
        f"device {ablation.device}, cache fingerprint {ablation.fingerprint}, dtsf {ablation.versions.get('dtsf', '?')}, "
        f"PyTorch {ablation.versions.get('torch', '?')}. Numbers are fractions. Seconds are the mean time of a training.",
    ]
    if ablation.done < ablation.total:
        parts.append(f"**Not finished: {ablation.done} of {ablation.total} trainings.** {CONTINUE}")
    parts += [f"**{_escape(test.name)}: {_escape(test.note)}.**" for test in ablation.tests if test.note]
    parts.append(f"![{ablation.title}]({ablation.table}.svg)")
    heads = ["variant", "mean", *PAIRS, "spread (max - min)", *(f"seed {seed}" for seed in ablation.seeds), "seconds"]
    for name, task, values in ablation.columns():
        rows = []
        for row, by_seed in values:
            seconds = f"{statistics.fmean(row.seconds.values()):.0f}" if row.seconds else "-"
            mean, *others = ablation.cells(by_seed)
            rows.append([row.variant, mean, *ablation.pairs(row, name), *others, seconds])
        doubt = next((row.scores[name].doubt for row, _ in values if name in row.scores), "")
        parts += [f"## {_escape(name)}", f"{_escape(task)}{'; ' if doubt else ''}{doubt}.", _table(heads, rows)]
    details, commands = [], []
    train = ["dtsf", "train", "--cache", ablation.cache, "--dataset", ablation.dataset]
    train += ["--protocol", protocol, "--recipe", ablation.recipe]
    last = [*(["--init", ablation.init] if ablation.init else []), "--seed", str(ablation.seeds[0])]
    for row in ablation.rows:
        differs = ", ".join(row.differs) or "-"
        if row.same_as:
            differs = f"none: the same settings as {row.same_as}, one training for both"
        else:
            overrides = [word for change in row.overrides for word in ("--set", change)]
            commands.append(f"    {shlex.join([*train, *overrides, *last])}")
        details.append([row.variant, row.source, differs])
    parts.append(f"## The rows, and their differences from {_escape(ablation.rows[0].variant)}")
    parts.append(_table(["variant", "source", "different settings (in brackets: the first row)"], details))
    return "\n\n".join([*parts, "Commands that train one row:", "\n".join(commands)]) + "\n"


def _draw(ablation: Ablation) -> Markup:
    """Draw a panel for each test, with a row for each variant and a dot for each seed. The first row has its own colour."""
    parts, left, bottom = [STYLE, svg.text(8, 18, ablation.title, "strong")], 0.0, 0.0
    for name, task, values in ablation.columns():
        rows, notes = {}, {}
        for k, (row, by_seed) in enumerate(values):
            rows[row.variant] = [(value, k > 0, f"seed {seed}: {value:.3f}") for seed, value in by_seed.items()]
            notes[row.variant] = ablation.cells(by_seed, empty="not yet")[0]
        panel, width, height = svg.dot_rows(rows, lanes=1, notes=notes)
        parts.append(svg.text(left + 8, 42, name, "strong"))
        parts.append(Markup('<g transform="translate({:.0f} 48)">{}</g>').format(left, Markup("").join(panel)))
        parts.append(svg.text(left + 8, 64 + height, task, "small"))
        left, bottom = left + max(width, 6.0 * len(task)) + 24, 72 + height
    return svg.picture(left, bottom, f"{ablation.title}: seeds and means", parts)


def protocol_cells(row: ProtocolRow, reproduction: Reproduction) -> dict[str, str]:
    """Return the cells of a row, by the name of the column."""
    paper = f"{100 * reproduction.paper_top1:.1f}"
    spread = f" ± {100 * row.spread:.1f}" if row.spread is not None else ""
    return {
        "protocol": row.protocol,
        "measures": row.task,
        "trained on": row.train,
        "tested on": row.test,
        "top-1 %": f"{100 * row.mean:.1f}{spread}",
        "by seed": " ".join(f"{100 * value:.1f}" for value in row.top1),
        "paper": paper if reproduction.comparable else f"({paper})",
        "left out": _reasons(row.left_out) if row.recipe else "",
        "recipe": row.recipe,
        "a run": duration(row.seconds),
    }


def comparison_note(reproduction: Reproduction) -> str:
    """Return which row may be compared with the number of the paper."""
    note = (
        f"The paper's abstract gives {100 * reproduction.paper_top1:.1f} % for N-UCLA and does not say for which protocol. So "
        "this number stands in every row, but it belongs to at most one. Cross-view tests one unseen camera alone. "
        "Cross-subject tests all cameras of an unseen person together. The two tasks are not comparable. "
        "Other projects usually report cross-view:3 (train on views 1 and 2)."
    )
    if not reproduction.comparable:
        return f"This is not N-UCLA, so the paper's number (in brackets) is not comparable. {note}"
    if reproduction.data.missing:
        return f"{len(reproduction.data.missing)} clips of N-UCLA are missing, so the split is not the published one. {note}"
    return note


def describe_data(check: NuclaCheck) -> Iterable[tuple[str, str]]:
    """Yield the rows of the data table: heading and text."""

    def some(clips: Sequence[str]) -> str:
        return str(len(clips)) + (f" ({', '.join(clips[:6])}{' ...' if len(clips) > 6 else ''})" if clips else "")

    def counts(of: dict[str, Count]) -> str:
        return ", ".join(f"{key} {n.found} of {n.listed}" for key, n in of.items())

    views = ", ".join(f"{n} of {k} view{'s' * (k > 1)}" for k, n in check.groups_by_views.items())
    groups = sum(check.groups_by_views.values())
    yield "found", f"{check.found:,} clips of {groups} performances ({views}) in {check.root}"
    if not check.is_nucla:
        yield "classes", f"{', '.join(check.classes)} (from labels.csv)"
    lists = "; ".join(f"{n.found:,} of {n.listed:,} in {name}'s" for name, n in check.lists.items())
    yield "in public lists" if check.is_nucla else "ids in lists", lists
    yield "by view", counts(check.views)
    yield "by subject", counts(check.subjects)
    yield "by action", counts(check.actions)
    if check.is_nucla:
        yield "missing", f"{some(check.missing)} of the {check.certain:,} clips in all lists"
        yield "disputed", f"{some(check.missing_disputed)} of the {check.listed - check.certain} clips in some lists"
        yield "in no list", some(check.unlisted)
        yield "very short", f"{some(check.very_short)}: at most {SHORT} frames in CTR-GCN's list; used, frames repeat"
    yield from (("note", note) for note in check.notes)


def _reproduction_markdown(reproduction: Reproduction) -> str:
    check, finished = reproduction.data, len(reproduction.runs)
    title = "N-UCLA, reproduced" if reproduction.comparable else "Not N-UCLA: the experiment on other data"
    parts = [f"# {title}", f"{check.summary}."]
    if finished < reproduction.planned:
        parts.append(f"**Not finished: {finished} of {reproduction.planned} runs.** {CONTINUE}")
    parts += [f"Note: {note}." for note in reproduction.notes]
    if reproduction.too_many_bad:
        parts.append(f"**Doubtful: {reproduction.too_many_bad}**")
    rows = [protocol_cells(row, reproduction) for row in reproduction.rows]
    parts.append(_table(list(rows[0]), [list(row.values()) for row in rows]))
    seeds = ", ".join(map(str, dict.fromkeys(run.seed for run in reproduction.runs)))
    stages = [(stage.name, duration(stage.seconds), stage.what) for stage in reproduction.stages]
    parts += [
        f"Mean ± standard deviation over the seeds ({seeds}). Top-1 counts performances (groups). With one unseen view, a "
        "performance is one clip.",
        comparison_note(reproduction),
        "## Data",
        _table(("what", "how much"), describe_data(check)),
        f"Clips that could not be decoded: {_reasons(reproduction.bad_clips)}. N-UCLA: {SOURCE}",
        "## Time",
        _table(("stage", "time", "what"), stages),
        "## Command",
        f"    {reproduction.command}",
        ", ".join(f"{name} {version}" for name, version in reproduction.versions.items()),
    ]
    return "\n\n".join(parts) + "\n"


def duration(seconds: float) -> str:
    """Format a time: ``0.4 s``, ``52 s``, ``12 min 05 s`` or ``3 h 07 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _reasons(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "none"


def differences(first: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the settings of ``other`` that differ, with the value of ``first`` in brackets, and its branches in words."""
    found = []
    for section, values in other.items():
        for key, value in values.items():
            before, words = first.get(section, {}).get(key), []
            if (section, key) == ("model", "branch"):
                for branch in value:
                    more = [f"{branch['channels']} channels"] if branch["channels"] else []
                    more += [branch["paste"]] if branch["paste"] != "none" else []
                    more += ["msm"] if branch["msm"] else []
                    words.append(" ".join([branch["input"], branch["views"], *more, f"{branch['weight']:g}"]))
            if value != before:
                found.append(f"{section}.{key} " + ("; ".join(words) or f"{value} ({before})"))
    return tuple(found)
