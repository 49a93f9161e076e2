"""Commands that show: ``dtsf report``, ``dtsf doctor``, and the page of a cache."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Exit, Option

from dtsf.cli.options import JSON
from dtsf.cli.screen import emit, progress, results, styled, table

if TYPE_CHECKING:
    from dtsf.doctor import Health


def report_command(
    runs: Annotated[list[Path], Argument(help="Run folder; several with --compare.")],
    compare: Annotated[bool, Option("--compare", help="Write one page that compares several runs.")] = False,
    cache: Annotated[Path | None, Option(help="Folder of the cache. Default: the cache of the training.")] = None,
    out: Annotated[
        Path | None, Option(help="File to write. Default: RUN/report.html, or ./compare.html with --compare.")
    ] = None,
    samples: Annotated[int, Option(min=0, help="Performances of each kind in the gallery.")] = 6,
    json_: JSON = False,
) -> None:
    """Write an HTML report of a run: curves, classes, calibration, bias probes, pictures."""
    from dtsf.errors import ConfigError

    if len(runs) > 1 and not compare:
        raise ConfigError(f"{len(runs)} runs given: dtsf report --compare RUN RUN..., or one run at a time")
    begin = time.monotonic()
    with progress("report", "steps") as update:
        if compare:
            from dtsf.report.compare_page import compare_runs

            file = compare_runs(runs, out or Path("compare.html"), on_step=update)
        else:
            from dtsf.report.run_page import report_run

            file = report_run(runs[0], cache=cache, out=out, samples=samples, on_step=update)
    _emit_page(file, begin, json_)


def cache_page(cache: Path, html: Path, dataset: str | None, *, json_: bool) -> None:
    """Write the page of a cache: ``dtsf cache info --html``."""
    from dtsf.report.cache_page import report_cache

    begin = time.monotonic()
    with progress("cache page", "datasets") as update:
        file = report_cache(cache, html, dataset=dataset, on_step=update)
    _emit_page(file, begin, json_)


def _emit_page(file: Path, begin: float, json_: bool) -> None:
    size = file.stat().st_size
    document = {"report": str(file), "bytes": size, "seconds": time.monotonic() - begin}
    emit(document, json_, lambda: results().print(f"wrote {file} ({size / 1e3:,.0f} kB)", soft_wrap=True))


def doctor_command(
    cache: Annotated[Path, Option(help="Folder of the cache, to check the space on its disk.")] = Path("cache"),
    json_: JSON = False,
) -> None:
    """Check this machine: Python, CUDA, scan, codecs, encoder, disk, and both stages on a small example."""
    from dtsf.doctor import examine

    with progress("doctor", "checks") as update:
        found = examine(cache, on_step=update)
    emit(found.summary(), json_, _show_doctor, found)
    if not found.ok:
        raise Exit(2)


def _show_doctor(found: Health) -> None:
    summary = "everything required is available" if found.ok else "a required part is missing"
    results().print(summary, style="bold green" if found.ok else "bold red")
    rows = [
        (c.name, "ok" if c.ok else "missing" if c.needed else "absent", c.found.removeprefix("not available: "))
        for c in found.checks
    ]
    results().print(table("", ("", "", ""), rows))
    for check in found.checks:
        if check.how:
            results().print(styled((f"{check.name}: ", "bold"), check.how))
