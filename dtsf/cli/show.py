"""Tables and sentences for a person, and one JSON object for a program. Text goes to stderr, JSON to stdout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dtsf.cli.progress import progress
from dtsf.cli.screen import console, print_stdout, results, styled
from dtsf.files.read import json_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from pydantic import BaseModel
    from rich.table import Table
    from rich.text import Text

    from dtsf.training.protocols import Split

__all__ = ["console", "emit", "evaluation_table", "print_json", "progress", "results", "split_table", "styled", "table"]

CLASSES_SHOWN = 15
"""Number of classes in a table on a terminal. ``metrics.json`` and the report have all."""


def emit(document: BaseModel | dict[str, Any], json_: bool, show: Callable[..., None], *arguments: Any) -> None:
    """Print a result: ``document`` as JSON, or ``show(*arguments)`` for a person."""
    if json_:
        print_json(document if isinstance(document, dict) else document.model_dump(mode="json"))
    else:
        show(*arguments)


def print_json(document: object) -> None:
    """Print one JSON object on stdout. Raises DtsfError: a number is not finite, or stdout cannot be written."""
    print_stdout(json_text(document))


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> Table:
    """Return a table. Cells are plain text, never markup. The title may be empty."""
    from rich.table import Table

    columns = list(columns)
    made = Table(title=styled((title, "bold")), title_justify="left", header_style="bold", show_edge=False)
    made.show_header = any(columns)
    for column in columns:
        made.add_column(styled(column), overflow="fold")
    for row in rows:
        made.add_row(*(styled(str(cell)) for cell in row))
    return made


def split_table(split: Split, view_names: Sequence[str]) -> Table:
    """Return a table of the clips of training and test. Columns without values are left out."""
    from dtsf.training.protocols import describe

    rows = []
    for name, clips in {"training": split.train, "held out": split.held_out, "test": split.test}.items():
        if clips:
            side = describe(clips, view_names)
            views = ", ".join(f"{view} ({count})" for view, count in side.views.items())
            setups = ", ".join(map(str, side.setups))
            rows.append((name, str(side.groups), str(side.clips), views, ", ".join(side.subjects), setups))
    columns = ("", "groups", "clips", "views (clips)", "subjects", "setups")
    shown = [k for k in range(len(columns)) if any(row[k] for row in rows)]
    return table("training and test", [columns[k] for k in shown], [[row[k] for k in shown] for row in rows])


def evaluation_table(document: dict[str, Any]) -> Iterator[Table | Text]:
    """Yield the lines and tables of an evaluation."""
    auroc, unknown = document["auroc_uncertainty"], document["unknown"]
    yield styled(
        ("top-1 ", "bold"),
        (f"{document['top1']:.3f}", "bold green"),
        f"  top-5 {document['top5']:.3f}  on {document['n_groups']} groups ({document['n_clips']} clips) of "
        f"{document['dataset']}: {document['task']}"
        + (f"; mean of {document['draws']} draws of frames" if document["draws"] > 1 else "")
        + ("; adapted to the test clips" if document["adapted"] else ""),
    )
    yield styled(
        f"calibration error {document['ece']:.3f}; mean uncertainty {document['uncertainty']:.3f}"
        + (f"; AUROC of uncertainty for errors {auroc:.2f}" if auroc is not None else "")
    )
    if unknown:
        yield styled(
            f"unknown actions ({unknown['n_groups']} groups: {unknown['description']}): AUROC {unknown['auroc']:.2f}, "
            f"FPR at 95 % TPR {unknown['fpr95']:.2f}, mean uncertainty {unknown['uncertainty']:.3f}"
        )
    missing = [f"{count} clips {reason}" for reason, count in document["left_out"].items()]
    missing += [f"{count} groups {reason}" for reason, count in document["groups_left_out"].items()]
    if missing:
        yield styled((f"not in these numbers: {', '.join(missing)}", "yellow"))
    all_views = zip(document["view_names"], document["view_weights"], document["view_top1"], strict=True)
    yield styled("")
    yield table(
        "",
        ("view", "mean weight", "top-1 of its own feature"),
        [
            (name, f"{weight:.3f}", "-" if top1 is None else f"{top1:.3f}")
            for name, weight, top1 in all_views
            if name in document["views"]
        ],
    )
    recalls = enumerate(document["per_class"].items())
    tested = [(recall, k, name) for k, (name, recall) in recalls if sum(document["confusion"][k])]
    # With many classes, only those of lowest recall: the numbers above must stay visible.
    many = len(tested) > CLASSES_SHOWN
    yield styled("")
    yield table(
        f"the {CLASSES_SHOWN} classes of lowest recall, of {len(tested)}" if many else "",
        ("class", "recall", "groups", "most frequent wrong answer"),
        [_class_row(document, k, name) for _, k, name in (sorted(tested)[:CLASSES_SHOWN] if many else tested)],
    )


def _class_row(document: dict[str, Any], k: int, name: str) -> tuple[str, str, int, str]:
    row, classes = document["confusion"][k], list(document["per_class"])
    most = max(((count, classes[j]) for j, count in enumerate(row) if j != k and count), default=None)
    return name, f"{document['per_class'][name]:.3f}", sum(row), f"{most[1]} ({most[0]})" if most else ""
