"""The command that takes a run out of dtsf: export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dtsf.cli.options import JSON


def export_command(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    onnx: Annotated[Path, typer.Option(help="File to write.")],
    views: Annotated[
        int | None, typer.Option(min=1, help="Videos that it will be given; all views of the data set if left out.")
    ] = None,
    json_: JSON = False,
) -> None:
    """Write a run's network as ONNX, for ONNX Runtime or dtsf predict --onnx: any batch, fixed views and frames."""
    from dtsf import api
    from dtsf.cli.show import console, print_json

    screen = console()
    if not json_:
        screen.print(f"exporting {run}: the scan is written out step by step, which takes a while")
    made = api.export(run, onnx, views=views)
    if json_:
        print_json({"onnx": str(onnx), "views": made.views, "frames": made.frames, "bytes": onnx.stat().st_size})
        return
    screen.print(
        f"{onnx}: {onnx.stat().st_size / 1e6:.1f} MB, any number of groups, {made.views} views x {made.frames} frames"
    )
    screen.print(
        f"next: dtsf predict {' '.join(f'CAM{v + 1}' for v in range(made.views))} --onnx {onnx}", soft_wrap=True
    )
