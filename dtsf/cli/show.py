"""How results look: tables and sentences for a person, one JSON object for a program. Words go to stderr, JSON to stdout."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from dtsf.cli.progress import progress
from dtsf.cli.screen import console, results

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["console", "evaluation_table", "print_json", "progress", "results", "table"]


def print_json(document: object) -> None:
    """One JSON object on stdout, and nothing else."""
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> Table:
    """A plain table; every cell is text, never markup."""
    made = Table(title=title, title_justify="left", title_style="bold", header_style="bold", show_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(Text(str(cell)) for cell in row))
    return made


def evaluation_table(document: dict[str, Any]) -> Iterator[Table | Text]:
    """A judgement, for a person."""
    auroc = document["auroc_uncertainty"]
    yield Text.assemble(
        ("top-1 ", "bold"),
        (f"{document['top1']:.3f}", "bold green"),
        f"  top-5 {document['top5']:.3f}  on {document['n_groups']} groups of {document['dataset']}: {document['task']}",
    )
    yield Text(
        f"calibration error {document['ece']:.3f}; mean uncertainty {document['uncertainty']:.3f}"
        + (f"; it tells errors from right answers with AUROC {auroc:.2f}" if auroc is not None else "")
    )
    if document["left_out"]:
        listed = ", ".join(f"{count} {reason}" for reason, count in document["left_out"].items())
        yield Text(f"not in these numbers: {listed}", style="yellow")
    all_views = zip(document["view_names"], document["view_weights"], document["view_top1"], strict=True)
    yield table(
        "views",
        ("view", "mean weight", "top-1 of its feature"),
        [
            (name, f"{weight:.3f}", "-" if top1 is None else f"{top1:.3f}")
            for name, weight, top1 in all_views
            if name in document["views"]
        ],
    )
    yield table(
        "classes",
        ("class", "recall", "groups", "most often taken for"),
        [
            _class_row(document, k, name)
            for k, name in enumerate(document["per_class"])
            if sum(document["confusion"][k])
        ],
    )


def _class_row(document: dict[str, Any], k: int, name: str) -> tuple[str, str, int, str]:
    row = document["confusion"][k]
    classes = list(document["per_class"])
    wrong = [(count, classes[j]) for j, count in enumerate(row) if j != k and count]
    most = max(wrong, default=None)
    return name, f"{document['per_class'][name]:.3f}", sum(row), f"{most[1]} ({most[0]})" if most else ""
