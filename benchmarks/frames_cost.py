"""Core-seconds per clip for decoding with dtsf and with decord in turns, on given clips or drawn clips of 1080p.

python benchmarks/frames_cost.py --root ../shared/data/motion/iid --limit 60
python benchmarks/frames_cost.py --draw h264 --limit 10
python benchmarks/frames_cost.py --draw mpeg4 --limit 10
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from dtsf.pipeline.video.clip import segment_centres
from dtsf.pipeline.video.crop import size_to_decode
from dtsf.pipeline.video.decode import decode_clip

WORDS = {
    "h264": ("mp4", ["-c:v", "libx264", "-preset", "veryfast", "-g", "250"]),
    "mpeg4": ("avi", ["-c:v", "mpeg4", "-q:v", "5", "-g", "12"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("../shared/data/motion/iid"))
    parser.add_argument("--draw", choices=list(WORDS), help="instead of --root: drawn clips of 1080p, 4 s")
    parser.add_argument("--limit", type=int, default=60)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.draw:
            paths = [draw(Path(folder), arguments.draw, k) for k in range(arguments.limit)]
        else:
            paths = sorted(arguments.root.rglob("*.avi"))[: arguments.limit]
        ours, theirs = np.array([(read_ours(p, arguments.frames), read_decord(p, arguments.frames)) for p in paths]).T
    document = {
        "clips": len(paths),
        "ours_ms": 1000 * float(np.median(ours)),
        "decord_ms": 1000 * float(np.median(theirs)),
        "ours_over_decord": float(ours.sum() / theirs.sum()),
    }
    print(json.dumps(document) if arguments.json else "\n".join(f"{k:18} {v:.3f}" for k, v in document.items()))


def draw(folder: Path, codec: str, k: int) -> Path:
    """Write a clip in which everything moves."""
    ending, words = WORDS[codec]
    path = folder / f"{k}.{ending}"
    source = ["-f", "lavfi", "-i", "testsrc2=s=1920x1080:r=30:d=4,noise=alls=8:allf=t"]
    turn = ["-vf", f"rotate={k + 1}*0.01*t:c=gray"]
    subprocess.run(["ffmpeg", "-v", "error", "-y", *source, *turn, *words, str(path)], check=True)
    return path


def read_ours(path: Path, n_frames: int) -> float:
    """Return the core-seconds of dtsf, index included."""
    begun = time.process_time()
    decode_clip(path, n_frames, 192)
    return time.process_time() - begun


def read_decord(path: Path, n_frames: int) -> float:
    """Return the core-seconds of decord alone, at the same size, without checks."""
    import av
    import decord

    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        width, height = size_to_decode(context.width, context.height, 192, "centre")
    begun = time.process_time()
    reader = decord.VideoReader(str(path), num_threads=1, width=width, height=height)
    reader.get_batch(segment_centres(len(reader), n_frames)).asnumpy()
    del reader
    return time.process_time() - begun


if __name__ == "__main__":
    main()
