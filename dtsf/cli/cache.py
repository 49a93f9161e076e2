"""Commands for a cache: info, verify, repair, convert, compact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dtsf.cli.options import JSON
from dtsf.cli.screen import CLASSES_SHOWN, console, emit, progress, results, table

if TYPE_CHECKING:
    from collections.abc import Callable

    from dtsf.cache.check import Verification
    from dtsf.cache.store import Store
    from dtsf.pipeline.worker import SourceCheck

cache_app = typer.Typer(help="Inspect, verify, repair, convert and compact a cache.", no_args_is_help=True)

PATH = Annotated[Path, typer.Argument(help="Cache, or one dataset in it: a folder or a URL (s3://BUCKET/FOLDER).")]
DATASET = Annotated[str | None, typer.Option(help="Only this dataset.")]


@cache_app.command("info")
def cache_info_command(
    path: PATH = Path("cache"),
    dataset: DATASET = None,
    html: Annotated[Path | None, typer.Option(help="Write an HTML page with pictures of random clips to FILE.")] = None,
    json_: JSON = False,
) -> None:
    """Print the content of a cache: datasets, classes, groups, statuses and settings."""
    if html is not None:
        from dtsf.cli.run import cache_page

        cache_page(path, html, dataset, json_=json_)
        return
    from dtsf.cache.reader import summarise

    pages = [summarise(store) for store in _stores(path, dataset)]

    def show() -> None:
        for page in pages:
            results().print(table(page["place"], ("", ""), _lines(**page)))
            rows = [(one["clip"]["path"], one["status"], one["reason"]) for one in page["bad"]]
            if rows:
                results().print(table(f"{len(rows)} clips without a row", ("clip", "status", "reason"), rows))
            for note in page["notes"]:
                results().print(f"note: {note}", style="yellow")
        console().print(f"next, to look at the clips: dtsf cache info {path} --html cache.html", soft_wrap=True)

    emit({"datasets": pages}, json_, show)


def _lines(name: str, dataset: str, spec: dict[str, Any], **page: Any) -> list[tuple[str, str]]:
    def counts(field: str) -> list[str]:
        return [f"{key} ({count})" for key, count in page[field].items()]

    lengths, classes = page["views_differ_by"], counts("clips_by_class")
    more = f" and {len(classes) - CLASSES_SHOWN} more" if len(classes) > CLASSES_SHOWN else ""
    sampled = "at common times" if spec["align"] == "group" else "over each view's own duration"
    grid = f"{spec['grid']} x {spec['grid']} cells x {spec['channels']} channels"
    lines = {
        "dataset": "" if dataset == name else f"{name} ({dataset})",
        "clips": f"{page['clips']} usable in {page['groups']} groups",
        "statuses": ", ".join(f"{count} {status}" for status, count in page["verdicts"].items()),
        "groups by views": ", ".join(f"{count} with {n}" for n, count in page["groups_by_views"].items()),
        "lengths of views": lengths
        and f"differ by {lengths['median']:.0%} in the median group, {lengths['largest']:.0%} at most; sampled {sampled}",
        "classes": ", ".join(classes[:CLASSES_SHOWN]) + more,
        "views": ", ".join(counts("clips_by_view")),
        "embeddings": f"{spec['frames']} frames x {grid}, {spec['embedding_dtype']}",
        "size": f"{page['bytes'] / 1e6:,.1f} MB in {page['shards']} shards of up to {page['shard_size']} clips",
        "format": page["format"] + ("" if page["compress"] == "none" else f", {page['compress']}"),
        "encoder": f"{spec['encoder']} (weights {spec['weights_hash']}) at {spec['size']} px, {spec['crop']} crop",
        "decoder": f"{spec['decoder']}, sampling {spec['sampling']}",
        "unused": page["not_listed"]
        and f"{page['not_listed']} rows, {page['not_listed_bytes'] / 1e6:,.1f} MB: dtsf cache compact",
        "last written": page["last_written"],
        "fingerprint": page["fingerprint"],
        "catalog": page["catalog"],
        "damaged": page["redo"] and f"shards {', '.join(map(str, page['redo']))}: run dtsf preprocess",
    }
    return [(name, str(value)) for name, value in lines.items() if value]


@cache_app.command("verify")
def cache_verify_command(
    path: PATH = Path("cache"),
    dataset: DATASET = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read every byte and compare checksums.")] = False,
    source: Annotated[bool, typer.Option("--source", help="Decode the videos again and compare their frames.")] = False,
    sample: Annotated[str, typer.Option(help="With --source: share of the clips, evenly over the dataset.")] = "100%",
    root: Annotated[Path | None, typer.Option(help="With --source: folder of the videos, as for preprocess.")] = None,
    json_: JSON = False,
) -> None:
    """Compare a cache with its checksums. Exit code 2 if a file is damaged; then run dtsf cache repair."""
    from dtsf.cache.check import verify

    stores = _stores(path, dataset)
    found: dict[str, Verification] = _each("verify", stores, verify, deep=deep)
    checks: dict[str, SourceCheck] = {}
    if source:
        from dtsf.api import verify_source
        from dtsf.errors import ConfigError
        from dtsf.pipeline.settings import read_share

        try:
            share = float(read_share(sample))
        except ValueError as error:
            raise ConfigError(f"--sample {sample!r} {error}") from error

        def check(store: Store, on_progress: Callable[..., None]) -> SourceCheck:
            cache = str(store).removesuffix(f"/{store.name}")
            return verify_source(cache, root, store.name, sample=share, on_progress=on_progress)

        checks = _each("decode", [store for store in stores if found[store.name].ok], check, unit="clips")
    damaged = [(name, damage) for name, one in found.items() for damage in one.damaged]
    ok = not damaged and all(check.ok for check in checks.values())
    # With the dataset: paths are relative to it.
    listed = [{"dataset": name, **damage.model_dump()} for name, damage in damaged]
    document: dict[str, Any] = {"ok": ok, "damaged": listed, "deep": deep}
    if source:
        document["source"] = {name: check.model_dump() for name, check in checks.items()}
    document["datasets"] = {name: one.model_dump(exclude={"damaged"}) for name, one in found.items()}

    def show() -> None:
        screen = results()
        scope = "every byte checked" if deep else "names, sizes and records checked; --deep reads every byte"
        for store in stores:
            one = found[store.name]
            state = "intact" if one.ok else "damaged"
            screen.print(f"{store}: {state}: {one.shards} shards, {one.bytes / 1e6:,.1f} MB, {scope}")
            if one.redo:
                screen.print(f"damaged shards that dtsf preprocess makes again: {', '.join(map(str, one.redo))}")
        if damaged:
            rows = [("-" if d.shard is None else d.shard, f"{name}/{d.file}", d.reason) for name, d in damaged]
            screen.print(table(f"{len(rows)} damaged files", ("shard", "file", "reason"), rows))
            screen.print(f"next: dtsf cache repair {path}", soft_wrap=True)
        for name, check in checks.items():
            different = [(one.path, one.reason) for one in check.mismatches]
            screen.print(f"{name}: {check.checked} clips decoded with {check.decoder}, {len(different)} differ")
            if different:
                screen.print(table("clips with other frames", ("clip", "reason"), different))

    emit(document, json_, show)
    if not ok:
        raise typer.Exit(2)


@cache_app.command("repair")
def cache_repair_command(path: PATH = Path("cache"), dataset: DATASET = None, json_: JSON = False) -> None:
    """Mark the damaged shards, so that dtsf preprocess makes them again. Reads every byte; intact shards stay."""
    from dtsf.cache.check import repair

    repaired = [(store, *repair(store)) for store in _stores(path, dataset)]

    def show() -> None:
        for store, found, done in repaired:
            for line in done or [f"nothing to repair: {found.shards} shards, {found.bytes / 1e6:,.1f} MB are intact"]:
                console().print(f"{store}: {line}")
            if any(line.startswith("shard ") for line in done):
                console().print("next: run the dtsf preprocess command of this dataset again")

    datasets = {
        store.name: {"damaged": [damage.model_dump() for damage in found.damaged], "done": done}
        for store, found, done in repaired
    }
    emit({"datasets": datasets}, json_, show)


@cache_app.command("convert")
def cache_convert_command(
    path: PATH,
    target: Annotated[Path, typer.Argument(help="New cache: a folder or URL. Shards that it has are skipped.")],
    dataset: DATASET = None,
    format_: Annotated[Literal["zarr", "hdf5"] | None, typer.Option("--format", help="Default: unchanged.")] = None,
    compress: Annotated[str | None, typer.Option(help="none, zstd (zarr), gzip (hdf5). Default: unchanged.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float16 or float32 embeddings. Default: unchanged.")] = None,
    json_: JSON = False,
) -> None:
    """Copy a cache as zarr or hdf5, raw or compressed, float16 or float32, to a folder or an object store."""
    from dtsf.cache.store import open_store
    from dtsf.cache.writer import convert

    cache = open_store(target)

    def copy(store: Store, on_progress: Callable[..., None]) -> int:
        below = cache.below(store.name)
        return convert(store, below, format=format_, compress=compress, dtype=dtype, on_progress=on_progress)

    written = _each("convert", _stores(path, dataset), copy)

    def show() -> None:
        for name, count in written.items():
            console().print(f"{name}: {count} shards written to {cache}")

    emit({"target": str(cache), "shards_written": written}, json_, show)


@cache_app.command("compact")
def cache_compact_command(path: PATH = Path("cache"), dataset: DATASET = None, json_: JSON = False) -> None:
    """Free the disk space of rows that a dataset no longer lists. Safe to interrupt; listed rows do not change."""
    from dtsf.cache.writer import compact

    done = _each("compact", _stores(path, dataset), compact)

    def show() -> None:
        for name, one in done.items():
            shards = f"{one.shards_before} shards, now {one.shards_after}"
            console().print(f"{name}: {one.rows} rows and {one.bytes / 1e6:,.1f} MB removed; {shards}")

    emit({"datasets": {name: one.model_dump() for name, one in done.items()}}, json_, show)


def _each(
    verb: str, stores: list[Store], action: Callable[..., Any], *, unit: str = "shards", **options: Any
) -> dict[str, Any]:
    """Return the results of ``action(store)`` by dataset name, with a progress bar for each."""
    done = {}
    for store in stores:
        with progress(f"{verb} {store.name}", unit) as update:
            done[store.name] = action(store, on_progress=update, **options)
    return done


def _stores(path: Path, dataset: str | None) -> list[Store]:
    """Return the stores of the datasets, also damaged ones, because these commands verify and repair them."""
    from dtsf.cache.documents import is_dataset
    from dtsf.cache.reader import find_datasets
    from dtsf.cache.store import open_store

    store = open_store(path)
    if dataset is None and is_dataset(store, damaged=True):
        return [store]
    return find_datasets(path, dataset, damaged=True)
