"""Commands that show: report, doctor, and the page of a cache."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from dtsf.cli.options import JSON


def report_command(
    runs: Annotated[list[Path], typer.Argument(help="Run folder; several with --compare.")],
    compare: Annotated[bool, typer.Option("--compare", help="One page that sets several runs side by side.")] = False,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of the cache; where it was at training if left out.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The file; RUN/report.html, or ./compare.html with --compare, if left out.")
    ] = None,
    samples: Annotated[int, typer.Option(min=0, help="Performances of each kind in the gallery.")] = 6,
    json_: JSON = False,
) -> None:
    """Write what there is to know of a run into one HTML file: curves, classes, calibration, bias probes, pictures."""
    from dtsf.cli.show import progress
    from dtsf.errors import ConfigError

    if len(runs) > 1 and not compare:
        raise ConfigError(f"{len(runs)} runs named: dtsf report --compare RUN RUN..., or one run at a time")
    begun = time.monotonic()
    with progress("report", "steps") as update:
        if compare:
            from dtsf.report.compare_page import compare_runs

            file = compare_runs(runs, out or Path("compare.html"), on_step=update)
        else:
            from dtsf.report.run_page import report_run

            file = report_run(runs[0], cache=cache, out=out, samples=samples, on_step=update)
    _say(file, begun, json_)


def cache_page(cache: Path, html: Path, dataset: str | None, *, json_: bool) -> None:
    """Write the page of a cache and say where it is: ``dtsf cache info --html``."""
    from dtsf.cli.show import progress
    from dtsf.report.cache_page import report_cache

    begun = time.monotonic()
    with progress("cache page", "data sets") as update:
        file = report_cache(cache, html, dataset=dataset, on_step=update)
    _say(file, begun, json_)


def doctor_command(
    cache: Annotated[Path, typer.Option(help="Folder of the cache, for the space on its disk.")] = Path("cache"),
    json_: JSON = False,
) -> None:
    """Say what this machine can do: Python, CUDA, scan, codecs, encoder, disk, and whether both stages work."""
    from dtsf.cli.show import print_json, progress, results, table, words
    from dtsf.doctor import examine

    with progress("doctor", "checks") as update:
        found = examine(cache, on_step=update)
    if json_:
        print_json(found.summary())
    else:
        screen = results()
        good = "everything needed is here" if found.ok else "something that dtsf needs is missing"
        screen.print(good, style="bold green" if found.ok else "bold red")
        rows = [
            (c.name, "ok" if c.ok else "missing" if c.needed else "absent", c.found.removeprefix("not available: "))
            for c in found.checks
        ]
        screen.print(table("", ("", "", ""), rows))
        for check in found.checks:
            if check.how:
                screen.print(words((f"{check.name}: ", "bold"), check.how))
    if not found.ok:
        raise typer.Exit(2)


def _say(file: Path, begun: float, json_: bool) -> None:
    from dtsf.cli.show import print_json, results

    if json_:
        n_bytes = file.stat().st_size
        print_json({"report": str(file), "bytes": n_bytes, "seconds": time.monotonic() - begun})
        return
    results().print(f"wrote {file} ({file.stat().st_size / 1e3:,.0f} kB)", soft_wrap=True)
