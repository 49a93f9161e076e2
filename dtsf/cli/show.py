"""How results look: tables and sentences for a person, one JSON object for a program. Words go to stderr, JSON to stdout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dtsf.cli.progress import progress
from dtsf.cli.screen import console, results, say_on_stdout, words
from dtsf.files.read import json_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from pydantic import BaseModel
    from rich.table import Table
    from rich.text import Text

    from dtsf.cache.records import Clip
    from dtsf.training.protocols import Split

__all__ = ["console", "evaluation_table", "print_json", "progress", "results", "split_table", "table", "words"]


CLASSES_SHOWN = 15
"""Rows of classes that a terminal is given; ``metrics.json`` and the report have all."""


def print_json(document: object) -> None:
    """One JSON object on stdout, and nothing else. Raises DtsfError: a number that JSON does not have, or stdout cannot be
    written.
    """
    say_on_stdout(json_text(document))


def emit(document: BaseModel | dict[str, Any], json_: bool, show: Callable[..., None], *arguments: Any) -> None:
    """Print a result: ``document`` as JSON, or ``show(*arguments)`` for a person."""
    if json_:
        print_json(document if isinstance(document, dict) else document.model_dump(mode="json"))
    else:
        show(*arguments)


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> Table:
    """A plain table; every cell is text, never markup. Without a title it begins with its headings."""
    from rich.table import Table

    columns = list(columns)
    made = Table(title=words((title, "bold")), title_justify="left", header_style="bold", show_edge=False)
    made.show_header = any(columns)
    for column in columns:
        made.add_column(words(column), overflow="fold")
    for row in rows:
        made.add_row(*(words(str(cell)) for cell in row))
    return made


def split_table(split: Split, view_names: Sequence[str]) -> Table:
    """Who and what trains and is tested, for a person, before training."""
    sides = {"trains": split.train, "held out, watched": split.held_out, "tested": split.test}
    rows = [_side_row(what, clips, view_names) for what, clips in sides.items() if clips]
    columns = [("", 0), ("groups", 1), ("clips", 2), ("views (clips)", 3), ("subjects", 4), ("setups", 5)]
    # What a data set does not say gets no column.
    shown = [(name, k) for name, k in columns if k < 4 or any(row[k] for row in rows)]
    return table("who trains, who is tested", [name for name, _ in shown], [[row[k] for _, k in shown] for row in rows])


def _side_row(what: str, clips: Sequence[Clip], view_names: Sequence[str]) -> tuple[str, ...]:
    from dtsf.training.protocols import describe

    side = describe(clips, view_names)
    views = ", ".join(f"{name} ({n})" for name, n in side.views.items())
    return what, str(side.groups), str(side.clips), views, ", ".join(side.subjects), ", ".join(map(str, side.setups))


def evaluation_table(document: dict[str, Any]) -> Iterator[Table | Text]:
    """A judgement, for a person."""
    auroc = document["auroc_uncertainty"]
    yield words(
        ("top-1 ", "bold"),
        (f"{document['top1']:.3f}", "bold green"),
        f"  top-5 {document['top5']:.3f}  on {document['n_groups']} groups ({document['n_clips']} clips) of "
        f"{document['dataset']}: {document['task']}"
        + (f"; mean of {document['draws']} sets of frames" if document["draws"] > 1 else "")
        + ("; adapted to them one after the other" if document["adapted"] else ""),
    )
    yield words(
        f"calibration error {document['ece']:.3f}; mean uncertainty {document['uncertainty']:.3f}"
        + (f"; it tells errors from right answers with AUROC {auroc:.2f}" if auroc is not None else "")
    )
    if document["unknown"]:
        asked = document["unknown"]
        yield words(
            f"unknown actions, {asked['n_groups']} groups ({asked['what']}): told from these by uncertainty with AUROC "
            f"{asked['auroc']:.2f}; {asked['fpr95']:.2f} of them pass where 95 % of the known do; their mean uncertainty "
            f"{asked['uncertainty']:.3f}"
        )
    missing = [f"{count} clips {reason}" for reason, count in document["left_out"].items()]
    missing += [f"{count} groups {reason}" for reason, count in document["groups_left_out"].items()]
    if missing:
        listed = ", ".join(missing)
        yield words((f"not in these numbers: {listed}", "yellow"))
    all_views = zip(document["view_names"], document["view_weights"], document["view_top1"], strict=True)
    yield words("")
    yield table(
        "",
        ("view", "mean weight", "top-1 of its own feature"),
        [
            (name, f"{weight:.3f}", "-" if top1 is None else f"{top1:.3f}")
            for name, weight, top1 in all_views
            if name in document["views"]
        ],
    )
    tested = [
        (recall, k, name)
        for k, (name, recall) in enumerate(document["per_class"].items())
        if sum(document["confusion"][k])
    ]
    # Of many classes those that need a look; a screen keeps the numbers above in sight.
    shown = sorted(tested)[:CLASSES_SHOWN] if len(tested) > CLASSES_SHOWN else tested
    yield words("")
    yield table(
        "" if shown is tested else f"the {len(shown)} classes of lowest recall, of {len(tested)}",
        ("class", "recall", "groups", "most often taken for"),
        [_class_row(document, k, name) for _, k, name in shown],
    )


def _class_row(document: dict[str, Any], k: int, name: str) -> tuple[str, str, int, str]:
    row = document["confusion"][k]
    classes = list(document["per_class"])
    wrong = [(count, classes[j]) for j, count in enumerate(row) if j != k and count]
    most = max(wrong, default=None)
    return name, f"{document['per_class'][name]:.3f}", sum(row), f"{most[1]} ({most[0]})" if most else ""
