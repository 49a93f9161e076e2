"""Commands for a cache: info, verify, repair, convert, compact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Exit, Option, Typer

from dtsf.cli.run import write_page
from dtsf.cli.screen import CLASSES_SHOWN, Lines, emit, progress, styled, table
from dtsf.names import counted

if TYPE_CHECKING:
    from dtsf.cache.store import Store

cache_app = Typer(help="Inspect, verify, repair, convert and compact a cache.", no_args_is_help=True)

PATH = Annotated[Path, Argument(help="Cache, or one dataset in it: a folder or a URL (s3://BUCKET/FOLDER).")]
PATHS_SHOWN = 3
DATASET = Annotated[str | None, Option(help="Only this dataset.")]


@cache_app.command("info")
def cache_info_command(
    path: PATH = Path("cache"),
    dataset: DATASET = None,
    html: Annotated[Path | None, Option(help="Write an HTML page with pictures of random clips to FILE.")] = None,
) -> None:
    """Print the content of a cache: datasets, classes, groups, statuses and settings."""
    if html is not None:
        from dtsf.report.cache_page import report_cache

        write_page("cache page", "datasets", report_cache, path, html, dataset=dataset)
        return
    from dtsf.cache.reader import summarise
    from dtsf.cache.schema import Clip
    from dtsf.cache.status import CROP_NOTES

    pages = [summarise(store) for store in _stores(path, dataset)]

    def lines() -> Lines:
        for page in pages:
            yield table(page["place"], ("", ""), _describe(**page).items())
            rows = [(Clip.model_validate(one["clip"]).place, one["status"], one["reason"]) for one in page["bad"]]
            if rows:
                yield table(f"{counted(len(rows), 'clip')} without a row", ("clip", "status", "reason"), rows)
            squares = [_about(CROP_NOTES[name], paths) for name, paths in page["squares"].items()]
            notes = [*page["notes"], *squares]
            if late := page["pictures_begin"]:
                begin = f"the picture begins up to {max(late.values()):.1f} s after the file, often after its sound"
                notes.append(_about(begin, [*late]))
            yield from (styled((f"note: {note}", "yellow")) for note in notes)

    emit({"datasets": pages}, lines(), [f"next, to look at the clips: dtsf cache info {path} --html cache.html"])


def _about(what: str, paths: list[str]) -> str:
    more = f" and {len(paths) - PATHS_SHOWN} more" if len(paths) > PATHS_SHOWN else ""
    return f"{counted(len(paths), 'clip')}: {what} ({', '.join(paths[:PATHS_SHOWN])}{more})"


def _describe(name: str, dataset: str, spec: dict[str, Any], **page: Any) -> dict[str, Any]:
    lengths, unused = page["views_differ_by"], page["not_listed"]
    classes, views = (
        [f"{key} ({count})" for key, count in page[f"clips_by_{one}"].items()] for one in ("class", "view")
    )
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
        "views": ", ".join(views),
        "embeddings": f"{spec['frames']} frames x {grid}, {spec['embedding_dtype']}",
        "size": f"{page['bytes'] / 1e6:,.1f} MB in {counted(page['shards'], 'shard')} of up to {page['shard_size']} clips",
        "format": page["format"] + ("" if page["compress"] == "none" else f", {page['compress']}"),
        "encoder": f"{spec['encoder']} (weights {spec['weights_hash']}) at {spec['size']} px, {spec['crop']} crop",
        "decoder": f"{spec['decoder']}, sampling {spec['sampling']}",
        "unused": unused and f"{unused} rows, {page['not_listed_bytes'] / 1e6:,.1f} MB: dtsf cache compact",
        **{key.replace("_", " "): page[key] for key in ("last_written", "fingerprint", "catalog")},
        "damaged": page["redo"] and f"shards {', '.join(map(str, page['redo']))}: run dtsf preprocess",
    }
    return {head: text for head, text in lines.items() if text}


@cache_app.command("verify")
def cache_verify_command(
    path: PATH = Path("cache"),
    dataset: DATASET = None,
    deep: Annotated[bool, Option("--deep", help="Read every byte and compare checksums.")] = False,
    source: Annotated[bool, Option("--source", help="Decode the videos again and compare their frames.")] = False,
    sample: Annotated[str, Option(help="With --source: share of the clips, evenly over the dataset.")] = "100%",
    root: Annotated[Path | None, Option(help="With --source: folder of the videos, as for preprocess.")] = None,
) -> None:
    """Compare a cache with its checksums. Exit code 2 if a file is damaged; then run dtsf cache repair."""
    from dtsf.cache.check import verify

    stores = _stores(path, dataset)
    found = _each("verify", stores, verify, deep=deep)
    damaged = [(name, damage) for name, one in found.items() for damage in one.damaged]
    # With the dataset: paths are relative to it.
    listed = [{"dataset": name, **damage.model_dump()} for name, damage in damaged]
    document: dict[str, Any] = {"ok": not damaged, "damaged": listed, "deep": deep}
    checks: dict[str, Any] = {}
    if source:
        from dtsf.api import verify_source
        from dtsf.errors import ConfigError
        from dtsf.pipeline.settings import read_share

        try:
            share = float(read_share(sample))
        except ValueError as error:
            raise ConfigError(f"--sample {sample!r} {error}") from error

        def check(store: Store, **options: Any) -> Any:
            return verify_source(str(store).removesuffix(f"/{store.name}"), root, store.name, sample=share, **options)

        checks = _each("decode", [store for store in stores if found[store.name].ok], check, unit="clips")
        document["ok"] = not damaged and all(one.ok for one in checks.values())
        document["source"] = {name: one.model_dump() for name, one in checks.items()}
    document["datasets"] = {name: one.model_dump(exclude={"damaged"}) for name, one in found.items()}

    def lines() -> Lines:
        scope = "every byte checked" if deep else "names, sizes and records checked; --deep reads every byte"
        for store in stores:
            one = found[store.name]
            state = "intact" if one.ok else "damaged"
            yield f"{store}: {state}: {one.shards} shards, {one.bytes / 1e6:,.1f} MB, {scope}"
            if one.redo:
                yield f"damaged shards that dtsf preprocess makes again: {', '.join(map(str, one.redo))}"
        if damaged:
            rows = [("-" if d.shard is None else d.shard, f"{name}/{d.file}", d.reason) for name, d in damaged]
            yield table(f"{len(rows)} damaged files", ("shard", "file", "reason"), rows)
            yield f"next: dtsf cache repair {path}"
        for name, one in checks.items():
            yield f"{name}: {one.checked} clips decoded with {one.decoder}, {len(one.mismatches)} differ"
            if one.mismatches:
                different = [(clip.path, clip.line or "", clip.reason) for clip in one.mismatches]
                yield table("clips with other frames", ("clip", "line", "reason"), different)

    emit(document, lines())
    if not document["ok"]:
        raise Exit(2)


@cache_app.command("repair")
def cache_repair_command(path: PATH = Path("cache"), dataset: DATASET = None) -> None:
    """Mark the damaged shards, so that dtsf preprocess makes them again. Reads every byte; intact shards stay."""
    from dtsf.cache.check import repair

    datasets, hints = {}, []
    for store in _stores(path, dataset):
        found, done = repair(store)
        datasets[store.name] = found.model_dump(include={"damaged"}) | {"done": done}
        intact = f"nothing to repair: {found.shards} shards, {found.bytes / 1e6:,.1f} MB are intact"
        hints += [f"{store}: {line}" for line in done or [intact]]
        if any(line.startswith("shard ") for line in done):
            hints.append("next: run the dtsf preprocess command of this dataset again")
    emit({"datasets": datasets}, (), hints)


@cache_app.command("convert")
def cache_convert_command(
    path: PATH,
    target: Annotated[Path, Argument(help="New cache: a folder or URL. Shards that it has are skipped.")],
    dataset: DATASET = None,
    format_: Annotated[Literal["zarr", "hdf5"] | None, Option("--format", help="Default: unchanged.")] = None,
    compress: Annotated[str | None, Option(help="none, zstd (zarr), gzip (hdf5). Default: unchanged.")] = None,
    dtype: Annotated[str | None, Option(help="float16 or float32 embeddings. Default: unchanged.")] = None,
) -> None:
    """Copy a cache as zarr or hdf5, raw or compressed, float16 or float32, to a folder or an object store."""
    from dtsf.cache.store import open_store
    from dtsf.cache.writer import convert

    cache = open_store(target)

    def copy(store: Store, **options: Any) -> int:
        return convert(store, cache.below(store.name), **options)

    written = _each("convert", _stores(path, dataset), copy, format=format_, compress=compress, dtype=dtype)
    hints = [f"{name}: {counted(n, 'shard')} written to {cache}" for name, n in written.items()]
    emit({"target": str(cache), "shards_written": written}, (), hints)


@cache_app.command("compact")
def cache_compact_command(path: PATH = Path("cache"), dataset: DATASET = None) -> None:
    """Free the disk space of rows that a dataset no longer lists. Safe to interrupt; listed rows do not change."""
    from dtsf.cache.writer import compact

    done = _each("compact", _stores(path, dataset), compact)
    hints = [
        f"{name}: {one.rows} rows and {one.bytes / 1e6:,.1f} MB removed; {one.shards_before} shards, now {one.shards_after}"
        for name, one in done.items()
    ]
    emit({"datasets": {name: one.model_dump() for name, one in done.items()}}, (), hints)


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
