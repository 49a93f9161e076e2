"""Random gather of batches (16 groups x 3 views) from a warm cache, compared with other readers of the same bytes.

Every reader reads the same rows in the same order, and the values are checked. The readers take turns, batch by batch, so
that other load on the machine affects all of them alike. A figure is the median of a reader's batches. A ratio is the
median over batches of (numpy.memmap's time / ours).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import xxhash
import zarr

from dtsf.cache.catalog import write_catalog
from dtsf.cache.formats import array_shapes
from dtsf.cache.reader import open_dataset
from dtsf.cache.schema import (
    CacheSpec,
    CatalogDocument,
    CatalogEntry,
    Clip,
    ClipRecord,
    DatasetInfo,
    ShardRecord,
    Source,
)
from dtsf.cache.status import Status
from dtsf.cache.writer import create_or_open, extend, write_shard

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SHARD = 64
VIEWS = 3
# As written by preprocess, with tiny pictures, so that the size is that of the embeddings.
SPEC = CacheSpec(
    decoder="none", frames=16, size=192, grid=6, encoder="none", weights_hash="0", channels=112, picture_size=1
)


def make(folder: Path, clips: int, format_: str) -> None:
    """Write a cache of random rows, the same rows in every format."""
    info = DatasetInfo(kind="manifest", name="a", class_names=("x",), view_names=("1", "2", "3"))
    drawn = [
        Clip(id=f"{k:06d}", path=f"{k}", label=0, raw_label="", group=f"{k // VIEWS}", view=k % VIEWS + 1)
        for k in range(clips // SHARD * SHARD)
    ]
    write_drawn(folder, SPEC, info, drawn, format_)


def write_drawn(folder: Path, spec: CacheSpec, info: DatasetInfo, clips: Sequence[Clip], format_: str = "zarr") -> None:
    """Write clips to a cache as preprocess does, with random rows."""
    shards = [clips[k : k + SHARD] for k in range(0, len(clips), SHARD)]
    dataset = create_or_open(folder, spec, info, SHARD, format=format_)
    extend(dataset, len(shards))
    listed: list[CatalogEntry] = []
    for shard, own in enumerate(shards):
        generator = np.random.default_rng(shard)
        rows = {
            name: generator.integers(0, 100, (len(own), *shape)).astype(dtype)
            for name, (shape, dtype) in array_shapes(spec).items()
        }
        records: list[ClipRecord] = []
        for row, clip in enumerate(own):
            source = Source(path=clip.path, content_hash=f"{shard * SHARD + row:032x}")
            records.append(ClipRecord(source=source, status=Status.OK, row=row))
            listed.append(CatalogEntry(clip=clip, key=source.key))
        record = ShardRecord(shard=shard, fingerprint=spec.fingerprint(), rows=len(own), clips=tuple(records), files={})
        write_shard(dataset, record, rows)
    write_catalog(dataset, CatalogDocument(info=info, clips=tuple(listed)))


def readers(root: Path, clips: int, rows_loose: int) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Return the readers by name: functions from rows to their values."""
    shape, dtype = array_shapes(SPEC)["embeddings"]
    ids = [f"{k:06d}" for k in range(clips)]
    found: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
    with (root / "all.bin").open("wb") as file:
        data = open_dataset(root / "zarr")
        for start in range(0, clips, SHARD):
            file.write(data.embeddings(ids[start : start + SHARD]).tobytes())
    whole = np.memmap(root / "all.bin", dtype, "r", shape=(clips, *shape))
    found["numpy.memmap"] = lambda rows: whole[rows]

    # One buffer for all of ours: the kernel gives large pages by chance, and they are a third of the speed.
    out = np.empty((16 * VIEWS, *shape), dtype)

    def ours(format_: str, *, hold: bool) -> Callable[[np.ndarray], np.ndarray]:
        opened = open_dataset(root / format_)
        if hold and not opened.hold():
            raise SystemExit("the cache does not fit into memory here")
        # Warm, as for all other readers: writing the loose files read their maps.
        for start in range(0, clips, SHARD):
            opened.embeddings(ids[start : start + SHARD])
        return lambda rows: opened.embeddings([ids[row] for row in rows], out)

    found["dtsf zarr"] = ours("zarr", hold=False)
    found["dtsf hdf5"] = ours("hdf5", hold=False)
    found["dtsf zarr, held in memory"] = ours("zarr", hold=True)
    array = zarr.open_group(root / "zarr/a", mode="r")["embeddings"]
    found["zarr oindex"] = lambda rows: array.oindex[rows]
    file5 = h5py.File(root / "hdf5/a/dataset.h5")["embeddings"]
    found["h5py rows, one by one"] = lambda rows: np.stack([file5[row] for row in rows])

    def sorted_h5py(rows: np.ndarray) -> np.ndarray:
        order = np.argsort(rows)
        out = np.empty((len(rows), *shape), dtype)
        out[order] = file5[rows[order]]
        return out

    found["h5py fancy, sorted"] = sorted_h5py
    loose = root / "loose"
    loose.mkdir()
    for row in range(rows_loose):
        np.save(loose / f"{row}.npy", whole[row])
    found["loose .npy files"] = lambda rows: np.stack([np.load(loose / f"{row}.npy") for row in rows])
    return found


def measure(megabytes: int, batches: int, root: Path) -> dict[str, object]:
    """Write the caches, run all readers in turns, and return the figures."""
    shape, dtype = array_shapes(SPEC)["embeddings"]
    row_bytes = int(np.prod(shape)) * dtype.itemsize
    clips = -(-megabytes * 10**6 // row_bytes // (SHARD * VIEWS)) * SHARD * VIEWS
    for format_ in ("zarr", "hdf5"):
        make(root / format_ / "a", clips, format_)
    all_readers = readers(root, clips, clips)
    sums = {row: xxhash.xxh3_64_intdigest(all_readers["numpy.memmap"](np.array([row]))) for row in range(clips)}
    evict = np.zeros(2**28, np.uint8)
    generator = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {name: [] for name in all_readers}
    slow = {"zarr oindex", "h5py rows, one by one", "h5py fancy, sorted"}
    for turn in range(batches + 3):
        groups = generator.choice(clips // VIEWS, 16, replace=False)
        rows = (groups[:, None] * VIEWS + np.arange(VIEWS)).ravel()
        names = generator.permutation(list(all_readers))
        for name in names:
            if name in slow and turn % 10 not in (0, 3):
                continue
            evict += 1  # remove the last reader's bytes from the processor's caches; they stay in the page cache
            begun = time.perf_counter()
            got = all_readers[name](rows)
            took = time.perf_counter() - begun
            # By checksum: a comparison with the rows of another reader would put them into the processor's cache.
            if [xxhash.xxh3_64_intdigest(np.ascontiguousarray(row)) for row in got] != [sums[row] for row in rows]:
                raise SystemExit(f"{name} returned other rows")
            if turn >= 3:
                seconds[name].append(took)
    batch_bytes = 16 * VIEWS * row_bytes
    speeds = {name: batch_bytes / statistics.median(times) / 1e9 for name, times in seconds.items()}

    def ratio(name: str) -> float:
        pairs = zip(seconds["numpy.memmap"], seconds[name], strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)

    return {
        "zarr_vs_memmap": ratio("dtsf zarr"),
        "hdf5_vs_memmap": ratio("dtsf hdf5"),
        "held_vs_memmap": ratio("dtsf zarr, held in memory"),
        "gigabytes_per_s": speeds,
        "megabytes": clips * row_bytes / 1e6,
        "batches": batches,
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--megabytes", type=int, default=600)
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument(
        "--folder",
        type=Path,
        help="folder with space for 4 times as many bytes; default: the system's temporary folder",
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as root:
        document = measure(arguments.megabytes, arguments.batches, Path(root))
    if arguments.json:
        sys.stdout.write(json.dumps(document) + "\n")
        return
    lines = [f"{document['megabytes']:.0f} MB, batches of 16 groups x 3 views, warm, GB/s:"]
    speeds = document["gigabytes_per_s"]
    assert isinstance(speeds, dict)
    lines += [f"  {speed:7.3f}  {name}" for name, speed in sorted(speeds.items(), key=lambda item: -item[1])]
    lines += [f"{key}: {document[key]:.2f}" for key in ("zarr_vs_memmap", "hdf5_vs_memmap", "held_vs_memmap")]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
