"""500 damaged videos through stage 1: no crash, no hang, and every cut file is found.

Each source is cut at every tenth, has flipped bytes, or has a zeroed header. There are also empty files, text named .avi,
clips of 0, 1 and 2 frames, odd sizes, a variable frame rate, a quarter turn, and sound alone.
Prints a table of statuses by kind of damage.

    python benchmarks/damaged.py --root ../shared/data/motion/iid --check full
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import wave
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("../shared/data/motion/iid"))
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--check", default="fast")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        kinds = make_damaged(sorted(arguments.root.rglob("*.avi")), work / "v", arguments.count)
        write_manifest(work / "v", kinds)
        words = [
            "preprocess",
            "manifest",
            "--root",
            work / "v/manifest.csv",
            "--cache",
            work / "c",
            "--check",
            arguments.check,
        ]
        words += ["--workers", arguments.workers, "--max-bad", "100%", "--deadline", "20", "--json"]
        done = subprocess.run(
            [Path(sys.executable).with_name("dtsf"), *map(str, words)], stdout=subprocess.PIPE, check=False
        )
        verdicts = read_verdicts(work / "c/manifest")
    table: dict[str, Counter[str]] = {}
    for name, kind in kinds.items():
        table.setdefault(kind, Counter())[verdicts.get(name, "left out")] += 1
    if arguments.json:
        print(json.dumps({"exit": done.returncode, "files": len(kinds), "table": table}))
        return
    print(f"{len(kinds)} files, exit code {done.returncode}")
    for kind, counts in table.items():
        print(f"| {kind} | " + ", ".join(f"{count} {status}" for status, count in sorted(counts.items())) + " |")


def make_damaged(sources: list[Path], folder: Path, count: int) -> dict[str, str]:
    """Write the files. Return the kind of damage by file name."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    kinds: dict[str, str] = {}
    for kind, name, data in special(folder):
        if data is not None:
            (folder / name).write_bytes(data)
        kinds[name] = kind
    formats = {"avi": "mpeg4", "mp4": "libx264", "mkv": "libx264"}
    k = 0
    while len(kinds) < count:
        source = sources[k * 7 % len(sources)]
        ending = list(formats)[k % 3]
        data = source.read_bytes() if ending == "avi" else encode(source, folder / f"tmp.{ending}", formats[ending])
        damages = [("whole", data)]
        damages += [(f"cut at 0.{tenth} ({ending})", data[: len(data) * tenth // 10]) for tenth in range(1, 10)]
        flipped = bytearray(data)
        for position in rng.integers(len(data) // 10, len(data), 20):
            flipped[position] ^= 1 << int(rng.integers(8))
        damages.append((f"20 bits flipped ({ending})", bytes(flipped)))
        damages.append((f"header zeroed ({ending})", bytes(2048) + data[2048:]))
        for kind, content in damages:
            if len(kinds) < count:
                name = f"d{len(kinds):03d}.{ending}"
                (folder / name).write_bytes(content)
                kinds[name] = kind
        k += 1
    return kinds


def special(folder: Path) -> list[tuple[str, str, bytes | None]]:
    """Yield files that are not cuts: (kind, name, content, or None if the file is written here)."""
    made: list[tuple[str, str, bytes | None]] = [
        ("empty", "s_empty.avi", b""),
        ("text", "s_text.avi", b"this is no video\n" * 1000),
        ("noise", "s_noise.mp4", np.random.default_rng(1).bytes(50_000)),
    ]
    for kind, frames in (("no frame", 0), ("one frame", 1), ("two frames", 2)):
        draw(folder / f"s_{frames}.avi", frames, 320, 240)
        made.append((kind, f"s_{frames}.avi", None))
    for width, height in ((322, 242), (18, 240), (640, 16), (98, 50)):
        draw(folder / f"s_{width}x{height}.mp4", 40, width, height, codec="libx264")
        made.append(("odd size", f"s_{width}x{height}.mp4", None))
    draw(folder / "s_vfr.mp4", 40, 320, 240, codec="libx264", vfr=True)
    draw(folder / "s_turned.mp4", 40, 320, 240, codec="libx264", rotation=90)
    with wave.open(str(folder / "s_sound.avi"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16_000))
    return [
        *made,
        ("variable rate", "s_vfr.mp4", None),
        ("quarter turn", "s_turned.mp4", None),
        ("sound alone", "s_sound.avi", None),
    ]


def draw(
    path: Path, n_frames: int, width: int, height: int, *, codec: str = "mpeg4", vfr: bool = False, rotation: int = 0
) -> None:
    """Write a small video with a moving square."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        if vfr:
            stream.time_base = Fraction(1, 600)
        if rotation:
            stream.set_display_rotation(rotation)
        time = 0
        for t in range(n_frames):
            picture = np.full((height, width, 3), 90, np.uint8)
            picture[height // 4 : height // 2, (t * 4) % width :][:, :20] = 250
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if vfr:
                time += 20 if t % 3 else 70
                frame.pts, frame.time_base = time, Fraction(1, 600)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def encode(source: Path, target: Path, codec: str) -> bytes:
    """Write the same pictures in another container and codec."""
    import av

    with av.open(str(source)) as read, av.open(str(target), "w") as written:
        stream = written.add_stream(codec, rate=30)
        video = read.streams.video[0]
        stream.width, stream.height, stream.pix_fmt = video.width, video.height, "yuv420p"
        for frame in read.decode(video):
            frame.pts = None
            written.mux(stream.encode(frame))
        written.mux(stream.encode())
    data = target.read_bytes()
    target.unlink()
    return data


def write_manifest(folder: Path, kinds: dict[str, str]) -> None:
    """Write a manifest with one group per file."""
    rows = [f"{name},a{k % 2},g{k},1,train" for k, name in enumerate(kinds)]
    (folder / "manifest.csv").write_text("\n".join(["path,label,group,view,split", *rows]) + "\n")


def read_verdicts(folder: Path) -> dict[str, str]:
    """Return the status by file name, from the commit records."""
    found = {}
    for path in (folder / "shards").glob("*.json"):
        for record in json.loads(path.read_text())["clips"]:
            found[record["source"]["path"]] = record["status"]
    return found


if __name__ == "__main__":
    main()
