"""Experiments of many trainings: tables of variants, published experiments."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from dtsf.experiments.ablation.results import Ablation


def ablate(
    cache: str | Path = Path("cache"),
    *,
    table: str,
    out: str | Path | None = None,
    on_result: Callable[[Ablation], None] | None = None,
    **options: Any,
) -> Ablation:
    """Train and judge a table of variants times seeds, and write it as CSV, Markdown and SVG after every training.

    Args:
        cache: Folder of the cache.
        table: ``fusion``, ``motion``, ``debias``, ``paper``, or a TOML file of the same form.
        out: Folder of tables and trainings; ``runs/ablate`` if left out. What is finished there is not done again.
        on_result: Called with the table as far as it is: before the first training, and after each.
        options: The others of :func:`dtsf.experiments.ablation.run.ablate`.
    """
    from dtsf.experiments.ablation.files import write_ablation
    from dtsf.experiments.ablation.run import ablate as run_ablation

    folder = Path("runs/ablate") if out is None else Path(out)

    def write(result: Ablation) -> None:
        write_ablation(result, folder)
        if on_result is not None:
            on_result(result)

    return run_ablation(Path(cache), table=table, out=folder, on_result=write, **options)
