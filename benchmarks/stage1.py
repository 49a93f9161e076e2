"""Efficiency of stage 1 on its cores, where its time goes, and comparison with a simple script.

core_efficiency = (processor seconds to decode all clips alone + to embed all frames alone) / (cores x wall seconds of preprocess)

    python benchmarks/stage1.py --root ../shared/data/motion/iid --limit 150
    python benchmarks/stage1.py --make-1080p 60 --codec mpeg4

limit: the efficiency of this machine: (processor seconds of the same work on one core) / (those on all cores at once, each with
its own share of the clips and nothing in common). start_s: workers with an empty shard each. plan_s: the source is read and
compared, without decoding. index_s: packets of all files, a part of decode_s. commit_s: all shards, written again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dtsf.cache.documents import open_handle, read_records
from dtsf.cache.formats import array_shapes
from dtsf.cache.reader import open_cached
from dtsf.cache.store import open_store
from dtsf.cache.writer import create_or_open, extend, write_shard
from dtsf.pipeline.datasets import scan_source
from dtsf.pipeline.encoders.choose import load_encoder
from dtsf.pipeline.plan import make_plan
from dtsf.pipeline.settings import PreprocessSettings
from dtsf.pipeline.video.decode import decode_clip, probe
from dtsf.pipeline.worker import ShardTask
from dtsf.pipeline.workers import run_on_workers

if TYPE_CHECKING:
    from dtsf.cache.documents import DatasetHandle
    from dtsf.pipeline.datasets.catalog import SourceCatalog
    from dtsf.pipeline.video.crop import Crop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("../shared/data/motion/iid"))
    parser.add_argument("--make-1080p", type=int, default=0, help="instead of --root: number of drawn clips of 1080p")
    parser.add_argument("--codec", default="h264", choices=["h264", "mpeg4"], help="of these clips")
    parser.add_argument("--seconds", type=int, default=4, help="length of these clips; NTU RGB+D's have about three")
    parser.add_argument("--limit", type=int, default=150)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    parser.add_argument("--shard-size", type=int, default=64)
    parser.add_argument(
        "--crop", default="motion", choices=["motion", "centre"], help="crop of dtsf; the peer uses the centre"
    )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        dataset, root = "nucla", arguments.root
        if arguments.make_1080p:
            dataset, root = "manifest", make_1080p(work / "videos", arguments)
        catalog = scan_source(dataset, root, "all", arguments.limit)
        paths = [catalog.root / clip.path for clip in catalog.clips]
        alone = measure_alone(paths, arguments.frames, arguments.crop)
        together = measure_together(paths, arguments)
        ours, command = measure_ours(dataset, root, work / "cache", arguments)
        parts = measure_parts(catalog, open_handle(open_store(work / "cache").below(dataset)), work / "again", arguments)
        peer = measure_peer(paths, work / "npy", arguments)
    document = {
        "clips": len(paths),
        "cores": arguments.cores,
        "decode_s": alone[0],
        "embed_s": alone[1],
        **parts,
        "preprocess_s": ours,
        "command_s": command,
        "peer_s": peer,
        "clips_per_s": len(paths) / ours,
        "core_efficiency": sum(alone) / (arguments.cores * ours),
        "limit": sum(alone) / together,
        "speedup_vs_peer": peer / ours,
        "load_1_minute": os.getloadavg()[0],
    }
    if arguments.json:
        print(json.dumps(document))
    else:
        for key, value in document.items():
            print(f"{key:18} {value:.3f}")


def measure_alone(paths: list[Path], n_frames: int, crop: Crop) -> tuple[float, float]:
    """Return the processor seconds to decode (and crop) all clips, and to embed all of them."""
    encoder = load_encoder("efficientnet-lite0", 192, 6)
    encoder.embed(np.zeros((n_frames, 192, 192, 3), np.uint8))  # the first call allocates
    decoding = embedding = 0.0
    for path in paths:
        begun = time.process_time()
        clip = decode_clip(path, n_frames, 192, crop=crop)
        decoding += time.process_time() - begun
        begun = time.process_time()
        encoder.embed(clip.frames)
        embedding += time.process_time() - begun
    return decoding, embedding


def measure_together(paths: list[Path], arguments: argparse.Namespace) -> float:
    """Return the processor seconds to decode and embed all clips if each core has a process with a share of them."""
    with ProcessPoolExecutor(arguments.cores, multiprocessing.get_context("spawn")) as pool:
        measure = partial(measure_alone, n_frames=arguments.frames, crop=arguments.crop)
        return sum(map(sum, pool.map(measure, [paths[k :: arguments.cores] for k in range(arguments.cores)])))


def measure_parts(
    catalog: SourceCatalog, made: DatasetHandle, copy: Path, arguments: argparse.Namespace
) -> dict[str, float]:
    """Return the wall seconds of the parts of stage 1 that are neither decoding nor embedding, and of the index of all files."""
    settings = PreprocessSettings(frames=arguments.frames, workers=arguments.cores)
    empty = [ShardTask(made, str(catalog.root), 10**6 + k, (), settings) for k in range(arguments.cores)]
    records = read_records(made)
    cached = open_cached(made)
    arrays = [
        {name: cached.shard_rows(name, record.shard) for name in array_shapes(made.spec)} for record in records
    ]
    target = create_or_open(open_store(copy).absolute().below("d"), made.spec, cached.info, made.shard_size)
    extend(target, len(records))

    def commit() -> None:
        for k, (record, rows) in enumerate(zip(records, arrays, strict=True)):
            write_shard(target, record.model_copy(update={"shard": k, "files": {}}), rows)

    def index() -> None:
        for clip in catalog.clips:
            probe(catalog.root / clip.path)

    steps = {
        "start_s": lambda: run_on_workers(empty, arguments.cores, lambda *_: None),
        "plan_s": lambda: make_plan(catalog, cached.info, None, arguments.shard_size, arguments.cores),
        "index_s": index,
        "commit_s": commit,
    }
    seconds = {}
    for name, step in steps.items():
        begun = time.perf_counter()
        step()
        seconds[name] = time.perf_counter() - begun
    return seconds


def measure_ours(dataset: str, root: Path, cache: Path, arguments: argparse.Namespace) -> tuple[float, float]:
    """Return the wall seconds of the work, with the start of the workers, and of the whole command.

    The second number includes Python's start and the reading of the catalog. The peer's number includes neither.
    """
    words = ["preprocess", dataset, "--root", root, "--cache", cache, "--limit", arguments.limit]
    words += [
        "--frames",
        arguments.frames,
        "--workers",
        arguments.cores,
        "--shard-size",
        arguments.shard_size,
        "--crop",
        arguments.crop,
        "--json",
    ]
    begun = time.perf_counter()
    made = subprocess.run(
        [Path(sys.executable).with_name("dtsf"), *map(str, words)], stdout=subprocess.PIPE, check=True
    )
    command = time.perf_counter() - begun
    return float(json.loads(made.stdout)["seconds"]), command


def measure_peer(paths: list[Path], out: Path, arguments: argparse.Namespace) -> float:
    """Return the seconds of the peer, in a separate process with PyTorch's default threads."""
    code = (
        "import sys, json; from pathlib import Path; from peers import extract; a = json.load(sys.stdin); "
        "print(extract([Path(p) for p in a['paths']], Path(a['out']), n_frames=a['frames'], size=192, grid=6, "
        "threads=a['threads']))"
    )
    request = {
        "paths": [str(path) for path in paths],
        "out": str(out),
        "frames": arguments.frames,
        "threads": arguments.cores,
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(request),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
        env=os.environ | {"OMP_NUM_THREADS": str(arguments.cores)},
    )
    return float(done.stdout)


def make_1080p(folder: Path, arguments: argparse.Namespace) -> Path:
    """Write clips of 1080p, H.264 with one key frame as in NTU RGB+D, or MPEG-4. Return their manifest."""
    import av

    h264 = arguments.codec == "h264"
    codec, ending, options = ("libx264", "mp4", {"g": "1000", "preset": "veryfast"}) if h264 else ("mpeg4", "avi", {})
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    room = np.kron(rng.integers(0, 255, (27, 48, 3)), np.ones((40, 40, 1))).astype(np.uint8)
    rows = ["path,label,group,view,split"]
    for k in range(arguments.make_1080p):
        name = f"c{k}.{ending}"
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream(codec, rate=30, options=options)
            stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
            for t in range(30 * arguments.seconds):
                picture = room.copy()
                left = 200 + 10 * t + 20 * k
                picture[300:900, left % 1700 : left % 1700 + 200] = [200, 40 + k, 40]
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        rows.append(f"{name},a{k % 2},g{k},1,train")
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join(rows) + "\n")
    return manifest


if __name__ == "__main__":
    main()
