"""The command that turns other projects' lists into a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dtsf.cli.options import JSON


def import_command(
    lists: Annotated[
        list[Path], typer.Argument(help="mmaction2/pyskl pickle, DVANet CSV, or 'path label' lines; one or more.")
    ],
    root: Annotated[Path, typer.Option(help="Folder with the videos.")],
    out: Annotated[
        Path | None, typer.Option(help="Manifest to write, anywhere; ROOT/manifest.csv if left out.")
    ] = None,
    split: Annotated[str, typer.Option(help="Of a pickle with several: the prefix, as xsub of xsub_train.")] = "",
    labels: Annotated[
        Path | None,
        typer.Option(help="Label map: '0 name' lines, or names alone from 0; left out, the list's own labels."),
    ] = None,
    json_: JSON = False,
) -> None:
    """Turn lists that other projects use into a manifest for `dtsf preprocess manifest`."""
    from dtsf.cli.show import console, print_json
    from dtsf.pipeline.datasets.import_lists import import_lists

    result = import_lists(lists, root, out, split, labels)
    if json_:
        print_json(result.model_dump(mode="json"))
        return
    screen = console()
    splits = ", ".join(f"{count} {name}" for name, count in result.splits.items())
    screen.print(f"{result.rows} videos in {result.groups} groups ({splits}) in {result.manifest}")
    for note in result.notes:
        screen.print(f"note: {note}", style="yellow")
    if result.missing:
        screen.print(
            f"{len(result.missing)} entries have no video under {root} and are left out; the first is {result.missing[0]}",
            style="yellow",
        )
    if result.alone:
        screen.print(
            f"{result.alone} names say neither performance nor camera: each is a group of one view; fill in the columns "
            "group and view where you know them",
            style="yellow",
        )
    screen.print(f"next: dtsf preprocess manifest --root {result.manifest}", soft_wrap=True)
