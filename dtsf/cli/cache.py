"""Commands that look after a cache: info, verify, repair, convert, compact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dtsf.cli.options import JSON

if TYPE_CHECKING:
    from dtsf.cache.info import DatasetPage, ViewLengths
    from dtsf.cache.remote import RemoteStore
    from dtsf.cache.store import LocalStore
    from dtsf.pipeline.worker import SourceCheck

cache_app = typer.Typer(
    help="Look after a cache: what is in it, whether it is whole, in which form.", no_args_is_help=True
)

PATH = Annotated[Path, typer.Argument(help="The cache, or one data set in it: a folder or a URL (s3://BUCKET/FOLDER).")]
DATASET = Annotated[str | None, typer.Option(help="Only this data set.")]


@cache_app.command("info")
def cache_info_command(
    path: PATH = Path("cache"),
    dataset: DATASET = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a page to FILE: verdicts, counts, filmstrips of random clips.")
    ] = None,
    json_: JSON = False,
) -> None:
    """Say what a cache holds: data sets, classes, groups, verdicts, how it was made."""
    if html is not None:
        from dtsf.cli.report import cache_page

        cache_page(path, html, dataset, json_=json_)
        return
    from dtsf.cache.info import describe
    from dtsf.cli.show import console, print_json, results, table

    pages = [describe(place) for place in _places(path, dataset)]
    if json_:
        print_json({"datasets": [page.model_dump(mode="json") for page in pages]})
        return
    screen = results()
    for page in pages:
        screen.print(table(page.place, ("", ""), _lines(page)))
        if page.bad:
            rows = [(one.clip.path, one.status, one.reason) for one in page.bad]
            screen.print(table(f"{len(rows)} clips that could not be used", ("clip", "status", "why"), rows))
        for note in page.notes:
            screen.print(f"note: {note}", style="yellow")
    console().print(f"next, to look at the clips: dtsf cache info {path} --html cache.html", soft_wrap=True)


def _lines(page: DatasetPage) -> list[tuple[str, str]]:
    spec = page.spec
    views = ", ".join(f"{count} with {n}" for n, count in page.groups_by_views.items())
    return [
        *([] if page.dataset == page.name else [("data set", f"{page.name} ({page.dataset})")]),
        ("clips", f"{page.clips} usable in {page.groups} groups"),
        ("verdicts", ", ".join(f"{count} {status}" for status, count in page.verdicts.items())),
        ("groups by views", views),
        *([("views' lengths", _apart(page.views_differ_by, spec.align))] if page.views_differ_by else []),
        ("classes", _classes(page.clips_by_class)),
        ("views", ", ".join(f"{name} ({count})" for name, count in page.clips_by_view.items())),
        (
            "embeddings",
            f"{spec.frames} frames x {spec.grid} x {spec.grid} cells x {spec.channels} channels, {spec.embedding_dtype}",
        ),
        ("size", f"{page.bytes / 1e6:,.1f} MB in {page.shards} shards of up to {page.shard_size} clips"),
        ("stored as", page.format + ("" if page.compress == "none" else f", {page.compress}")),
        ("encoder", f"{spec.encoder} (weights {spec.weights_hash}) at {spec.size} px, {spec.crop} crop"),
        ("decoder", f"{spec.decoder}, frames by {spec.sampling}"),
        *(
            [("not listed", f"{page.not_listed} rows, {page.not_listed_bytes / 1e6:,.1f} MB: dtsf cache compact")]
            if page.not_listed
            else []
        ),
        *([("last written", page.last_written)] if page.last_written else []),
        ("fingerprint", spec.fingerprint()),
        ("catalog", page.catalog),
        *([("to be done again", f"shards {', '.join(map(str, page.redo))}: run dtsf preprocess")] if page.redo else []),
    ]


def _classes(clips: dict[str, int]) -> str:
    """All, or of many the first; ``--html`` and ``--json`` have all."""
    from dtsf.cli.show import CLASSES_SHOWN

    listed = [f"{name} ({count})" for name, count in clips.items()]
    more = len(listed) - CLASSES_SHOWN
    return ", ".join(listed) if more <= 0 else f"{', '.join(listed[:CLASSES_SHOWN])} and {more} more"


def _apart(lengths: ViewLengths, align: str) -> str:
    moments = "at common moments" if align == "group" else "at moments of each view's own time"
    return f"differ by {lengths.median:.0%} in the median group, by {lengths.largest:.0%} at most; frames {moments}"


@cache_app.command("verify")
def cache_verify_command(
    path: PATH = Path("cache"),
    dataset: DATASET = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read every byte and compare checksums.")] = False,
    source: Annotated[
        bool, typer.Option("--source", help="Decode the videos again and compare their pictures' checksums.")
    ] = False,
    sample: Annotated[str, typer.Option(help="With --source: share of the clips, evenly over the data set.")] = "100%",
    root: Annotated[
        Path | None, typer.Option(help="With --source: what the clips' paths are relative to; as for dtsf preprocess.")
    ] = None,
    json_: JSON = False,
) -> None:
    """Check that a cache is what was committed. Exit code 2 if anything is damaged; dtsf cache repair is next."""
    from dtsf.cache.verify import verify
    from dtsf.cli.show import print_json, progress, results, table

    found = []
    for place in _places(path, dataset):
        with progress(f"verify {place.name}", "shards") as update:
            found.append((place, verify(place, deep=deep, on_progress=update)))
    again = _decode_again(found, root, sample) if source else {}
    ok = all(one.ok for _, one in found) and all(one.ok for one in again.values())
    # The place is named where several data sets are checked: paths are relative to it.
    damaged = [{"dataset": place.name, **d.model_dump()} for place, one in found for d in one.damaged]
    if json_:
        print_json(
            {
                "ok": ok,
                "damaged": damaged,
                "deep": deep,
                **({"source": {name: one.model_dump() for name, one in again.items()}} if source else {}),
                "datasets": {place.name: one.model_dump(exclude={"damaged"}) for place, one in found},
            }
        )
    else:
        screen = results()
        for place, one in found:
            words = "every byte checked" if deep else "names, sizes and records checked; --deep reads every byte"
            screen.print(
                f"{place}: {'whole' if one.ok else 'damaged'}: {one.shards} shards, {one.bytes / 1e6:,.1f} MB, {words}"
            )
            for note in one.notes:
                screen.print(f"note: {note}", style="yellow")
            if one.redo:
                screen.print(f"waiting to be done again by dtsf preprocess: shards {', '.join(map(str, one.redo))}")
        if damaged:
            rows = [
                ("-" if d["shard"] is None else d["shard"], f"{d['dataset']}/{d['file']}", d["reason"]) for d in damaged
            ]
            screen.print(table(f"{len(damaged)} files are damaged", ("shard", "file", "why"), rows))
            screen.print(f"next: dtsf cache repair {path}", soft_wrap=True)
        for name, decoded in again.items():
            words = f"{decoded.checked} clips decoded again with {decoded.decoder}, {len(decoded.mismatches)} differ"
            screen.print(f"{name}: {words}")
            if decoded.mismatches:
                unlike = [(u.path, u.reason) for u in decoded.mismatches]
                screen.print(table("clips that do not give the same pictures", ("clip", "why"), unlike))
    if not ok:
        raise typer.Exit(2)


def _decode_again(found: list[tuple[Any, Any]], root: Path | None, sample: str) -> dict[str, SourceCheck]:
    from dtsf.api import verify_source
    from dtsf.cli.show import progress
    from dtsf.errors import ConfigError
    from dtsf.pipeline.settings import read_share

    try:
        share = float(read_share(sample))
    except ValueError as error:
        raise ConfigError(f"--sample {sample!r} {error}") from error
    again = {}
    for place, one in found:
        if one.ok:
            with progress(f"decode {place.name} again", "clips") as update:
                cache = str(place).removesuffix(f"/{place.name}")
                again[place.name] = verify_source(cache, root, place.name, sample=share, on_progress=update)
    return again


@cache_app.command("repair")
def cache_repair_command(path: PATH = Path("cache"), dataset: DATASET = None, json_: JSON = False) -> None:
    """Mark exactly the damaged shards, so that dtsf preprocess does them again. Reads every byte; whole shards stay."""
    from dtsf.cache.repair import repair
    from dtsf.cli.show import console, print_json

    results = [(place, *repair(place)) for place in _places(path, dataset)]
    if json_:
        documents: dict[str, Any] = {
            place.name: {"damaged": [d.model_dump() for d in found.damaged], "done": done}
            for place, found, done in results
        }
        print_json({"datasets": documents})
        return
    screen = console()
    for place, found, done in results:
        for line in done or [f"nothing to repair: {found.shards} shards, {found.bytes / 1e6:,.1f} MB are whole"]:
            screen.print(f"{place}: {line}")
        if any(line.startswith("shard ") for line in done):
            screen.print("next: the dtsf preprocess command that made it, to do those clips again")


@cache_app.command("convert")
def cache_convert_command(
    path: PATH,
    target: Annotated[
        Path, typer.Argument(help="The new cache: another folder or URL. What it has is not copied again.")
    ],
    dataset: DATASET = None,
    format_: Annotated[Literal["zarr", "hdf5"] | None, typer.Option("--format", help="Left out: as it is.")] = None,
    compress: Annotated[
        str | None, typer.Option(help="none, zstd (zarr) or gzip (hdf5). Left out: as it is, where the format can.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float16 or float32, of embeddings. Left out: as it is.")] = None,
    json_: JSON = False,
) -> None:
    """Write a cache again: zarr or hdf5, raw or compressed, float16 or float32, here or on an object store."""
    from dtsf.cache.convert import convert
    from dtsf.cache.store import open_store
    from dtsf.cli.show import console, print_json, progress

    written = {}
    for place in _places(path, dataset):
        with progress(f"convert {place.name}", "shards") as update:
            goal = open_store(target).below(place.name)
            written[place.name] = convert(
                place, goal, format=format_, compress=compress, dtype=dtype, on_progress=update
            )
    if json_:
        print_json({"target": str(open_store(target)), "shards_written": written})
        return
    for name, count in written.items():
        console().print(f"{name}: {count} shards written to {open_store(target)}")


@cache_app.command("compact")
def cache_compact_command(path: PATH = Path("cache"), dataset: DATASET = None, json_: JSON = False) -> None:
    """Give back the room of rows that the data set no longer lists. No listed row changes; may be interrupted at any time."""
    from dtsf.cache.compact import compact
    from dtsf.cli.show import console, print_json, progress

    done = {}
    for place in _places(path, dataset):
        with progress(f"compact {place.name}", "shards") as update:
            done[place.name] = compact(place, on_progress=update)
    if json_:
        print_json({"datasets": {name: one.model_dump() for name, one in done.items()}})
        return
    for name, one in done.items():
        console().print(
            f"{name}: {one.rows} rows and {one.bytes / 1e6:,.1f} MB given back; {one.shards_before} shards, now "
            f"{one.shards_after}"
        )


def _places(path: Path, dataset: str | None) -> list[LocalStore | RemoteStore]:
    """The data sets that were asked for. Damaged ones too: to look after them is what these commands are for."""
    from dtsf.cache.store import LocalStore, open_store
    from dtsf.cache.verify import looks_like_dataset
    from dtsf.errors import CacheError

    place = open_store(path)
    if dataset is None and looks_like_dataset(place):
        return [place]
    if isinstance(place, LocalStore) and not place.path.is_dir():
        raise CacheError(f"no cache at {place}: make one with dtsf preprocess DATASET --root DIR --cache {place}")
    names = [name for name in place.folders() if looks_like_dataset(place.below(name))]
    if not names:
        raise CacheError(f"the cache {place} is empty: fill it with dtsf preprocess DATASET --root DIR --cache {place}")
    if dataset is not None and dataset not in names:
        raise CacheError(f"no data set {dataset!r} in the cache {place}; it holds {', '.join(names)}")
    return [place.below(name) for name in names if dataset in (None, name)]
