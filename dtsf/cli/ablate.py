"""``dtsf ablate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dtsf.cli.options import CACHE, DEVICE, EPOCHS, JSON, SEEDS, SET, overrides, read_seeds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

    from dtsf.experiments.ablation.results import Ablation


def ablate_command(
    table: Annotated[str, typer.Option(help="fusion, motion, debias, paper, or a TOML file of the same form.")],
    cache: CACHE = Path("cache"),
    dataset: Annotated[str | None, typer.Option(help="Data set in the cache; needless where there is one.")] = None,
    protocol: Annotated[str | None, typer.Option(help="As for train; the data set's usual one if left out.")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="What the rows change: name or TOML file; the usual one if left out.")
    ] = None,
    set_: SET = None,
    epochs: EPOCHS = None,
    seeds: SEEDS = "0,1,2",
    judge: Annotated[
        list[str] | None,
        typer.Option(
            help="Judge every training on another data set too: NAME (all clips) or NAME@PROTOCOL. May be repeated."
        ),
    ] = None,
    gap: Annotated[
        str | None, typer.Option(help="Show the difference of two judgements, as in aligned,conflict.")
    ] = None,
    init: Annotated[Path | None, typer.Option(help="VideoMamba checkpoint that every encoder starts from.")] = None,
    device: DEVICE = "auto",
    out: Annotated[Path, typer.Option(help="Folder of tables and trainings.")] = Path("runs/ablate"),
    json_: JSON = False,
) -> None:
    """Train a table of variants, several seeds each, and write it as CSV, Markdown and a picture.

    Run it again to go on where it stopped: what is finished in --out is not trained again.
    """
    from dtsf import experiments
    from dtsf.cli.show import console, print_json, progress, results
    from dtsf.errors import ConfigError

    screen = console()
    pair = tuple(word.strip() for word in gap.split(",")) if gap else None
    if pair is not None and len(pair) != 2:
        raise ConfigError(f"--gap {gap!r} must be two names joined by a comma, as in aligned,conflict")
    announced: list[int] = []

    def announce(result: Ablation) -> None:
        if announced:
            return
        announced.append(result.total)
        screen.print(
            f"{result.title}: {len(result.rows)} variants, {len(result.seeds)} seeds, recipe {result.recipe}, "
            f"{result.dataset} by {result.protocol}: {result.total} trainings, {result.reused} of them done before"
        )
        for test in result.tests:
            words = f"judged on {test.name}: {test.task}, {test.n_groups} groups"
            screen.print(words)
            if test.note:
                screen.print(f"{test.name}: {test.note}", style="yellow")

    with progress("ablate", "epochs") as update:
        result = experiments.ablate(
            cache,
            table=table,
            dataset=dataset,
            protocol=protocol,
            recipe=recipe,
            overrides=overrides(set_, epochs),
            seeds=read_seeds(seeds),
            judges=judge or [],
            gap=pair,
            out=out,
            device=device,
            init=init,
            on_result=announce,
            on_epoch=update,
        )
    if json_:
        print_json(_document(result, out))
        return
    for part in _tables(result):
        results().print(part)
    files = ", ".join(f"{result.table}.{ending}" for ending in ("md", "csv", "svg"))
    screen.print(f"written to {out}: {files}; the trainings are in {out / 'trainings'}")


def _document(result: Ablation, out: Path) -> dict[str, Any]:
    """The table for programs: by row and test, mean, spread and each seed."""
    from dtsf.experiments.ablation.results import mean_and_spread

    rows: list[dict[str, Any]] = []
    for k, row in enumerate(result.rows):
        tests: dict[str, Any] = {}
        for name, _, values in result.columns():
            both = mean_and_spread(values[k].values())
            tests[name] = {
                "mean": both and both[0],
                "spread": both and both[1],
                "seeds": {str(seed): value for seed, value in values[k].items()},
            }
        shown = row.model_dump(mode="json", exclude={"top1"})
        rows.append(shown | {"tests": tests})
    files = {
        what: str(out / f"{result.table}.{end}")
        for what, end in (("csv", "csv"), ("markdown", "md"), ("picture", "svg"))
    }
    return result.model_dump(mode="json", exclude={"rows"}) | {"out": str(out), "files": files, "rows": rows}


def _tables(result: Ablation) -> Iterator[Table]:
    from dtsf.cli.show import table

    for name, what, values in result.columns():
        rows = zip(result.rows, values, strict=True)
        lines = [[row.variant, *result.cells(by_seed), ", ".join(row.differs)] for row, by_seed in rows]
        seeds = [f"seed {seed}" for seed in result.seeds]
        heads = ["variant", "mean", "spread", *seeds, "differs from the first row in"]
        yield table(f"{name}: {what}", heads, lines)
