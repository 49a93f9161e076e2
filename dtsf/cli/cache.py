"""Commands for a cache: info, verify, repair, convert, compact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dtsf.cli.options import JSON

if TYPE_CHECKING:
    from dtsf.cache.store import Store
    from dtsf.cache.summary import DatasetSummary
    from dtsf.pipeline.worker import SourceCheck

cache_app = typer.Typer(help="Inspect, verify, repair, convert and compact a cache.", no_args_is_help=True)

PATH = Annotated[Path, typer.Argument(help="Cache, or one dataset in it: a folder or a URL (s3://BUCKET/FOLDER).")]
DATASET = Annotated[str | None, typer.Option(help="Only this dataset.")]


@cache_app.command("info")
def cache_info_command(
    path: PATH = Path("cache"),
    dataset: DATASET = None,
    html: Annotated[
        Path | None, typer.Option(help="Write an HTML page to FILE: counts, and pictures of random clips.")
    ] = None,
    json_: JSON = False,
) -> None:
    """Print the content of a cache: datasets, classes, groups, statuses and settings."""
    if html is not None:
        from dtsf.cli.report import cache_page

        cache_page(path, html, dataset, json_=json_)
        return
    from dtsf.cache.summary import summarise
    from dtsf.cli.show import console, print_json, results, table

    pages = [summarise(store) for store in _stores(path, dataset)]
    if json_:
        print_json({"datasets": [page.model_dump(mode="json") for page in pages]})
        return
    screen = results()
    for page in pages:
        screen.print(table(page.place, ("", ""), _lines(page)))
        if page.bad:
            rows = [(one.clip.path, one.status, one.reason) for one in page.bad]
            screen.print(table(f"{len(rows)} clips without a row", ("clip", "status", "reason"), rows))
        for note in page.notes:
            screen.print(f"note: {note}", style="yellow")
    console().print(f"next, to look at the clips: dtsf cache info {path} --html cache.html", soft_wrap=True)


def _lines(page: DatasetSummary) -> list[tuple[str, str]]:
    from dtsf.cli.show import CLASSES_SHOWN

    spec, lengths = page.spec, page.views_differ_by
    cells = f"{spec.grid} x {spec.grid} cells x {spec.channels} channels"
    classes = [f"{name} ({count})" for name, count in page.clips_by_class.items()]
    more = f" and {len(classes) - CLASSES_SHOWN} more" if len(classes) > CLASSES_SHOWN else ""
    sampled = "at common times" if spec.align == "group" else "over each view's own duration"
    lines = (
        ("dataset", "" if page.dataset == page.name else f"{page.name} ({page.dataset})"),
        ("clips", f"{page.clips} usable in {page.groups} groups"),
        ("statuses", ", ".join(f"{count} {status}" for status, count in page.verdicts.items())),
        ("groups by views", ", ".join(f"{count} with {n}" for n, count in page.groups_by_views.items())),
        (
            "lengths of views",
            f"differ by {lengths.median:.0%} in the median group, {lengths.largest:.0%} at most; sampled {sampled}"
            if lengths
            else "",
        ),
        ("classes", ", ".join(classes[:CLASSES_SHOWN]) + more),
        ("views", ", ".join(f"{name} ({count})" for name, count in page.clips_by_view.items())),
        ("embeddings", f"{spec.frames} frames x {cells}, {spec.embedding_dtype}"),
        ("size", f"{page.bytes / 1e6:,.1f} MB in {page.shards} shards of up to {page.shard_size} clips"),
        ("format", page.format + ("" if page.compress == "none" else f", {page.compress}")),
        ("encoder", f"{spec.encoder} (weights {spec.weights_hash}) at {spec.size} px, {spec.crop} crop"),
        ("decoder", f"{spec.decoder}, sampling {spec.sampling}"),
        (
            "unused",
            f"{page.not_listed} rows, {page.not_listed_bytes / 1e6:,.1f} MB: dtsf cache compact"
            if page.not_listed
            else "",
        ),
        ("last written", page.last_written or ""),
        ("fingerprint", page.fingerprint),
        ("catalog", page.catalog),
        ("damaged", f"shards {', '.join(map(str, page.redo))}: run dtsf preprocess" if page.redo else ""),
    )
    return [(name, value) for name, value in lines if value]


@cache_app.command("verify")
def cache_verify_command(
    path: PATH = Path("cache"),
    dataset: DATASET = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read every byte and compare checksums.")] = False,
    source: Annotated[
        bool, typer.Option("--source", help="Decode the videos again and compare the checksums of their frames.")
    ] = False,
    sample: Annotated[str, typer.Option(help="With --source: share of the clips, evenly over the dataset.")] = "100%",
    root: Annotated[
        Path | None, typer.Option(help="With --source: folder of the videos, as for dtsf preprocess.")
    ] = None,
    json_: JSON = False,
) -> None:
    """Compare a cache with its checksums. Exit code 2 if a file is damaged; then run dtsf cache repair."""
    from dtsf.cache.check import verify
    from dtsf.cli.show import print_json, progress, results, table

    found = []
    for store in _stores(path, dataset):
        with progress(f"verify {store.name}", "shards") as update:
            found.append((store, verify(store, deep=deep, on_progress=update)))
    checks = _check_source([store for store, one in found if one.ok], root, sample) if source else {}
    ok = all(one.ok for _, one in found) and all(check.ok for check in checks.values())
    # With the dataset: paths are relative to it.
    damaged = [{"dataset": store.name, **damage.model_dump()} for store, one in found for damage in one.damaged]
    if json_:
        print_json(
            {
                "ok": ok,
                "damaged": damaged,
                "deep": deep,
                **({"source": {name: check.model_dump() for name, check in checks.items()}} if source else {}),
                "datasets": {store.name: one.model_dump(exclude={"damaged"}) for store, one in found},
            }
        )
    else:
        screen = results()
        for store, one in found:
            state = "intact" if one.ok else "damaged"
            scope = "every byte checked" if deep else "names, sizes and records checked; --deep reads every byte"
            screen.print(f"{store}: {state}: {one.shards} shards, {one.bytes / 1e6:,.1f} MB, {scope}")
            if one.redo:
                screen.print(f"damaged shards that dtsf preprocess makes again: {', '.join(map(str, one.redo))}")
        if damaged:
            rows = [
                ("-" if d["shard"] is None else d["shard"], f"{d['dataset']}/{d['file']}", d["reason"]) for d in damaged
            ]
            screen.print(table(f"{len(damaged)} damaged files", ("shard", "file", "reason"), rows))
            screen.print(f"next: dtsf cache repair {path}", soft_wrap=True)
        for name, check in checks.items():
            different = [(one.path, one.reason) for one in check.mismatches]
            screen.print(f"{name}: {check.checked} clips decoded with {check.decoder}, {len(different)} differ")
            if different:
                screen.print(table("clips with other frames", ("clip", "reason"), different))
    if not ok:
        raise typer.Exit(2)


def _check_source(stores: list[Store], root: Path | None, sample: str) -> dict[str, SourceCheck]:
    from dtsf.api import verify_source
    from dtsf.cli.show import progress
    from dtsf.errors import ConfigError
    from dtsf.pipeline.settings import read_share

    try:
        share = float(read_share(sample))
    except ValueError as error:
        raise ConfigError(f"--sample {sample!r} {error}") from error
    checks = {}
    for store in stores:
        with progress(f"decode {store.name}", "clips") as update:
            cache = str(store).removesuffix(f"/{store.name}")
            checks[store.name] = verify_source(cache, root, store.name, sample=share, on_progress=update)
    return checks


@cache_app.command("repair")
def cache_repair_command(path: PATH = Path("cache"), dataset: DATASET = None, json_: JSON = False) -> None:
    """Mark the damaged shards, so that dtsf preprocess makes them again. Reads every byte; intact shards stay."""
    from dtsf.cache.check import repair
    from dtsf.cli.show import console, print_json

    results = [(store, *repair(store)) for store in _stores(path, dataset)]
    if json_:
        documents: dict[str, Any] = {
            store.name: {"damaged": [damage.model_dump() for damage in found.damaged], "done": done}
            for store, found, done in results
        }
        print_json({"datasets": documents})
        return
    screen = console()
    for store, found, done in results:
        for line in done or [f"nothing to repair: {found.shards} shards, {found.bytes / 1e6:,.1f} MB are intact"]:
            screen.print(f"{store}: {line}")
        if any(line.startswith("shard ") for line in done):
            screen.print("next: run the dtsf preprocess command of this dataset again")


@cache_app.command("convert")
def cache_convert_command(
    path: PATH,
    target: Annotated[Path, typer.Argument(help="New cache: a folder or URL. Shards that it has are skipped.")],
    dataset: DATASET = None,
    format_: Annotated[
        Literal["zarr", "hdf5"] | None, typer.Option("--format", help="Default: that of the cache.")
    ] = None,
    compress: Annotated[
        str | None, typer.Option(help="none, zstd (zarr) or gzip (hdf5). Default: that of the cache, if possible.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float16 or float32, of embeddings. Default: that of the cache.")
    ] = None,
    json_: JSON = False,
) -> None:
    """Copy a cache as zarr or hdf5, raw or compressed, float16 or float32, to a folder or an object store."""
    from dtsf.cache.rewrite import convert
    from dtsf.cache.store import open_store
    from dtsf.cli.show import console, print_json, progress

    cache = open_store(target)
    written = {}
    for store in _stores(path, dataset):
        options = {"format": format_, "compress": compress, "dtype": dtype}
        with progress(f"convert {store.name}", "shards") as update:
            written[store.name] = convert(store, cache.below(store.name), **options, on_progress=update)
    if json_:
        print_json({"target": str(cache), "shards_written": written})
        return
    for name, count in written.items():
        console().print(f"{name}: {count} shards written to {cache}")


@cache_app.command("compact")
def cache_compact_command(path: PATH = Path("cache"), dataset: DATASET = None, json_: JSON = False) -> None:
    """Free the disk space of rows that a dataset no longer lists. Safe to interrupt; listed rows do not change."""
    from dtsf.cache.rewrite import compact
    from dtsf.cli.show import console, print_json, progress

    done = {}
    for store in _stores(path, dataset):
        with progress(f"compact {store.name}", "shards") as update:
            done[store.name] = compact(store, on_progress=update)
    if json_:
        print_json({"datasets": {name: one.model_dump() for name, one in done.items()}})
        return
    for name, one in done.items():
        shards = f"{one.shards_before} shards, now {one.shards_after}"
        console().print(f"{name}: {one.rows} rows and {one.bytes / 1e6:,.1f} MB removed; {shards}")


def _stores(path: Path, dataset: str | None) -> list[Store]:
    """Return the stores of the datasets, also damaged ones, because these commands verify and repair them."""
    from dtsf.cache.check import looks_like_dataset
    from dtsf.cache.reader import find_datasets
    from dtsf.cache.store import open_store

    store = open_store(path)
    if dataset is None and looks_like_dataset(store):
        return [store]
    return find_datasets(path, dataset, accept=looks_like_dataset)
