"""Efficiency of stage 1 on its cores, and comparison with a simple script.

core_efficiency = (seconds to decode all clips alone + seconds to embed all frames alone, one core each)
                  / (cores x wall seconds of preprocess)

    python benchmarks/stage1.py --root ../shared/data/motion/iid --limit 150
    python benchmarks/stage1.py --make-1080p 10
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dtsf.pipeline.datasets import scan_source
from dtsf.pipeline.encoders.choose import load_encoder
from dtsf.pipeline.video.decode import decode_clip

if TYPE_CHECKING:
    from dtsf.pipeline.video.crop import Crop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("../shared/data/motion/iid"))
    parser.add_argument("--make-1080p", type=int, default=0, help="instead of --root: number of drawn clips of 1080p")
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
            dataset, root = "manifest", make_1080p(work / "videos", arguments.make_1080p, arguments.seconds)
        catalog = scan_source(dataset, root, "all", arguments.limit)
        paths = [catalog.root / clip.path for clip in catalog.clips]
        alone = measure_alone(paths, arguments.frames, arguments.crop)
        ours, command = measure_ours(dataset, root, work / "cache", arguments)
        peer = measure_peer(paths, work / "npy", arguments)
    document = {
        "clips": len(paths),
        "cores": arguments.cores,
        "decode_s": alone[0],
        "embed_s": alone[1],
        "preprocess_s": ours,
        "command_s": command,
        "peer_s": peer,
        "clips_per_s": len(paths) / ours,
        "core_efficiency": sum(alone) / (arguments.cores * ours),
        "speedup_vs_peer": peer / ours,
        "load_1_minute": os.getloadavg()[0],
    }
    if arguments.json:
        print(json.dumps(document))
    else:
        for key, value in document.items():
            print(f"{key:18} {value:.3f}")


def measure_alone(paths: list[Path], n_frames: int, crop: Crop) -> tuple[float, float]:
    """Return the seconds of one core to decode (and crop) all clips, and to embed all of them."""
    encoder = load_encoder("efficientnet-lite0", 192, 6)
    decoding = embedding = 0.0
    for path in paths:
        begun = time.perf_counter()
        clip = decode_clip(path, n_frames, 192, crop=crop)
        decoding += time.perf_counter() - begun
        begun = time.perf_counter()
        encoder.embed(clip.frames)
        embedding += time.perf_counter() - begun
    return decoding, embedding


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


def make_1080p(folder: Path, count: int, seconds: int) -> Path:
    """Write clips of 1080p H.264 with one key frame, as in NTU RGB+D. Return their manifest."""
    import av

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    room = np.kron(rng.integers(0, 255, (27, 48, 3)), np.ones((40, 40, 1))).astype(np.uint8)
    rows = ["path,label,group,view,split"]
    for k in range(count):
        with av.open(str(folder / f"c{k}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=30, options={"g": "1000", "preset": "veryfast"})
            stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
            for t in range(30 * seconds):
                picture = room.copy()
                left = 200 + 10 * t + 20 * k
                picture[300:900, left % 1700 : left % 1700 + 200] = [200, 40 + k, 40]
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        rows.append(f"c{k}.mp4,a{k % 2},g{k},1,train")
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join(rows) + "\n")
    return manifest


if __name__ == "__main__":
    main()
