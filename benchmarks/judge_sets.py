"""Test sets made from those of ``motion``: another background, or a pillar in front of one of three cameras.

    python benchmarks/judge_sets.py --motion ../shared/data/motion --out judge-sets

Folds ask about people whom the release shows in front of one background only, and with all cameras. So both tests are made
here from the same videos, pixel by pixel, in N-UCLA's layout. ``conflict`` comes from ``biased``: each clip in
front of the median picture of a clip of another action and the same camera. ``hidden`` comes from ``iid``: a pillar of one
colour, as wide as the motion of the person, in front of one camera of each performance.
"""

from __future__ import annotations

import argparse
import random
import shutil
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageChops, ImageFilter

PEOPLE = ("01", "02", "03", "04")
BEHIND = 24.0
"""Smallest difference from the median picture, of 255, that counts as a person."""


def read(path: Path) -> tuple[list[Image.Image], int]:
    """Return all frames and their rate."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [frame.to_image() for frame in container.decode(stream)], round(float(stream.average_rate or 30))


def write(path: Path, frames: list[Image.Image], rate: int) -> None:
    """Write MPEG-4 in AVI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 1_500_000
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())


def background(frames: list[Image.Image]) -> Image.Image:
    """Return the picture without the moving person: the median of nine frames."""
    few = [np.asarray(frames[k]) for k in np.linspace(0, len(frames) - 1, 9).round().astype(int)]
    return Image.fromarray(np.median(few, 0).round().astype(np.uint8))


def somebody(picture: Image.Image, still: Image.Image) -> Image.Image:
    """Return the share of a person in each pixel, 0 to 255: a soft step of the difference, smoothed over 5 x 5 pixels."""
    red, green, blue = ImageChops.difference(picture, still).split()
    difference = ImageChops.lighter(ImageChops.lighter(red, green), blue).filter(ImageFilter.BoxBlur(2))
    return difference.point(lambda x: min(255, max(0, int((x - BEHIND / 2) * 255 / (BEHIND / 2)))))


def conflict(root: Path, out: Path) -> None:
    """Write each training person's biased clips in front of the background of another action."""
    videos = root / "biased" / "multiview_action_videos"
    files = sorted(path for path in videos.glob("*/*.avi") if path.stem.split("_")[1][1:] in PEOPLE)
    draw = random.Random(0)
    for path in files:
        others = [p for p in files if p.parent != path.parent and p.stem[:3] == path.stem[:3]]
        # One background per performance: the same draw for all its cameras.
        draw.seed(f"{path.parent.name}{path.stem[3:]}")
        room = background(read(draw.choice(others))[0])
        frames, rate = read(path)
        still = background(frames)
        mixed = [Image.composite(picture, room, somebody(picture, still)) for picture in frames]
        write(out / "conflict" / videos.name / path.parent.name / path.name, mixed, rate)


def hidden(root: Path, out: Path) -> None:
    """Write each person's clips with a pillar in front of one camera of each performance."""
    videos = root / "iid" / "multiview_action_videos"
    for path in sorted(videos.glob("*/*.avi")):
        draw = random.Random(f"{path.parent.name}{path.stem[3:]}")
        target = out / "hidden" / videos.name / path.parent.name / path.name
        if int(path.stem[1:3]) != draw.randint(1, 3):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
            continue
        frames, rate = read(path)
        still = background(frames)
        seen_W = np.mean([np.asarray(somebody(picture, still)).mean(0) for picture in frames], 0)
        total = np.cumsum(seen_W) / max(seen_W.sum(), 1e-9)
        left, right = max(0, int(np.searchsorted(total, 0.03)) - 6), int(np.searchsorted(total, 0.97)) + 6
        colour = tuple(draw.randint(60, 190) for _ in range(3))
        for picture in frames:
            picture.paste(colour, (left, 0, min(right, picture.width), picture.height))
        write(target, frames, rate)


def make_sets(motion: Path, out: Path) -> Path:
    """Write both sets, unless they are complete. Return ``out``."""
    if not (out / "all-people").exists():
        conflict(motion, out)
        hidden(motion, out)
        for name in ("conflict", "hidden"):  # the names of the classes
            shutil.copyfile(motion / "iid/labels.csv", out / name / "labels.csv")
        (out / "all-people").touch()
    return out


def main() -> None:
    """Write both sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--motion", type=Path, default=Path("../shared/data/motion"))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    make_sets(options.motion, options.out)


if __name__ == "__main__":
    main()
