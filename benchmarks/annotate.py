"""Time to change the annotations of all clips, and to open the dataset for training.

The cache has drawn records, and the table has as many small files. Every split is exchanged and a class is renamed, which
decodes nothing. Then the cache is opened as in a training: clips are joined to groups.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import xxhash

from dtsf.cache.formats import array_shapes
from dtsf.cache.reader import open_dataset
from dtsf.cache.schema import ClipRecord, DatasetName, ShardRecord, Source
from dtsf.cache.status import Status
from dtsf.cache.writer import create_or_open, extend, write_shard
from dtsf.pipeline import preprocess as run
from dtsf.pipeline.datasets import scan_source
from dtsf.pipeline.settings import PreprocessSettings
from dtsf.training.protocols import parse_protocol, split_clips

SHARD = 64
VIEWS = 3
COLUMNS = ("path", "label", "group", "view", "subject", "split")


def rows_of(clips: int, *, edited: bool) -> list[dict[str, str]]:
    """Rows of the table, before or after the edit."""
    return [
        {
            "path": f"class{k // VIEWS % 60:02d}/{k:06d}.avi",
            "label": f"class {k // VIEWS % 60:02d}".replace("class 07", "class seven" if edited else "class 07"),
            "group": f"g{k // VIEWS:06d}",
            "view": f"cam{k % VIEWS}",
            "subject": f"s{k // VIEWS % 40}",
            "split": ("train", "test")[(k // VIEWS % 40 < 20) ^ edited],
        }
        for k in range(clips)
    ]


def write_table(root: Path, rows: list[dict[str, str]]) -> None:
    """Write the table as a spreadsheet program does."""
    with (root / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def make(root: Path, cache: Path, clips: int, settings: PreprocessSettings) -> None:
    """Write files of eight bytes, and a cache with a row of each; the values of the rows do not matter."""
    rows = rows_of(clips, edited=False)
    write_table(root, rows)
    for k, row in enumerate(rows):
        path = root / row["path"]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(f"{k:08d}".encode())
    # Small rows, because documents are measured.
    spec = run.make_spec(settings)
    dataset = create_or_open(cache / "manifest", spec, DatasetName(kind="manifest", name="manifest"), SHARD)
    arrays = {name: np.zeros((SHARD, *shape), dtype) for name, (shape, dtype) in array_shapes(spec).items()}
    extend(dataset, -(-clips // SHARD))
    for shard in range(-(-clips // SHARD)):
        records = []
        for row, one in enumerate(rows[shard * SHARD : (shard + 1) * SHARD]):
            path = root / one["path"]
            stat = path.stat()
            content = xxhash.xxh3_128_hexdigest(path.read_bytes())
            source = Source(path=one["path"], bytes=stat.st_size, mtime_ns=stat.st_mtime_ns, content_hash=content)
            records.append(ClipRecord(source=source, status=Status.OK, row=row))
        record = ShardRecord(
            shard=shard, fingerprint=spec.fingerprint(), rows=len(records), clips=tuple(records), files={}
        )
        write_shard(dataset, record, {name: values[: len(records)] for name, values in arrays.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    settings = PreprocessSettings(workers=1, frames=2, size=96, grid=3, encoder="efficientnet-lite0:32")
    with tempfile.TemporaryDirectory() as folder:
        root, cache = Path(folder, "videos"), Path(folder, "cache")
        root.mkdir()
        make(root, cache, arguments.clips, settings)

        def timed() -> tuple[float, float, run.PreprocessResult]:
            begun, cpu = time.perf_counter(), time.process_time()
            result = run.preprocess(scan_source("manifest", root), cache, settings)
            return time.perf_counter() - begun, time.process_time() - cpu, result

        timed()
        write_table(root, rows_of(arguments.clips, edited=True))
        seconds, cpu, result = timed()
        if result.changes.to_decode or result.changes.relabelled != arguments.clips:
            raise SystemExit(f"unexpected changes: {result.changes}")
        begun, opening = time.perf_counter(), time.process_time()
        data = open_dataset(cache)
        split = split_clips(data.clips, parse_protocol("split", "manifest"), "manifest", data.info.view_names)
        opened, opening = time.perf_counter() - begun, time.process_time() - opening
        document = {
            "clips": arguments.clips,
            "reannotate_s": seconds,
            "reannotate_cpu_s": cpu,
            "open_s": opened,
            "open_cpu_s": opening,
            "train_clips": len(split.train),
            "catalog_bytes": (cache / "manifest/catalog.json").stat().st_size,
        }
    sys.stdout.write(json.dumps(document, indent=1) + "\n" if arguments.json else f"{document}\n")


if __name__ == "__main__":
    main()
