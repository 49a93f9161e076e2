"""Accuracy where something else moves: a burnt-in clock, a lamp, a second person who passes; and what ``--region`` adds.

    python benchmarks/clutter.py --root ../shared/data/motion/iid --subjects 1,2,3,4 [--every 3] [--json]

Half of the subjects at a time train as filmed, the other half are evaluated as filmed and with each clutter. ``before`` is the
square around all motion of 0.2, ``motion`` is ``--crop motion``, ``region`` is the same within a region of the picture.
The clutter is drawn into the 16 frames that are read. ``--every`` evaluates every n-th group only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from judge_sets import background, read, somebody
from PIL import Image, ImageChops, ImageDraw, ImageFont
from scale import FRAMES, GRID, SIZE, groups_of

from dtsf.cache.schema import Box, Clip, DatasetInfo
from dtsf.pipeline.datasets import scan_source
from dtsf.pipeline.encoders.choose import load_encoder
from dtsf.pipeline.preprocess import make_spec
from dtsf.pipeline.settings import PreprocessSettings
from dtsf.pipeline.video.clip import segment_centres
from dtsf.pipeline.video.crop import cut_region, cut_square
from dtsf.pipeline.video.motion import motion_square
from dtsf.training.evaluate import evaluate_groups
from dtsf.training.loop import fit
from dtsf.training.recipe import load_recipe

REGIONS: dict[str, Box] = {"clock": (0.0, 0.0, 1.0, 0.9), "passer": (0.15, 0.0, 0.7, 1.0)}
"""Region that a user would give for the camera with this clutter."""


def before(frames_FHWC: np.ndarray) -> tuple[int, int, int] | None:
    """Return top, left and side of the square around all motion, as of 0.2."""
    F, height, width, _ = frames_FHWC.shape
    short = min(height, width)
    factor = max(1, round(short / 96))
    h, w = height // factor, width // factor
    whole = np.ascontiguousarray(frames_FHWC[:, : h * factor, : w * factor])
    tall = Image.fromarray(whole.reshape(F * h * factor, w * factor, 3)).convert("L").reduce(factor)
    padded_hw = np.pad(np.asarray(tall, np.float32).reshape(F, h, w).std(0), 1, mode="edge")
    deviation_hw = np.asarray(sum(padded_hw[i : i + h, j : j + w] for i in range(3) for j in range(3))) / 9
    moving_hw = deviation_hw > max(0.1 * np.quantile(deviation_hw, 0.995), 4 * np.median(deviation_hw), 1.5)
    if moving_hw.mean() <= 0.002:
        return None
    edges = []
    for count in (moving_hw.sum(1), moving_hw.sum(0)):
        begin, end = np.searchsorted(count.cumsum() / count.sum(), [0.01, 0.99])
        edges += [int(begin) * factor, (int(end) + 1) * factor]
    top, bottom, left, right = edges
    if (bottom - top) * (right - left) >= 0.9 * height * width:
        return None
    side = round(np.clip(1.1 * max(bottom - top, right - left), 0.5 * short, 1.25 * short))
    return (top + bottom - side) // 2, (left + right - side) // 2, side


def cut(frames_FHWC: np.ndarray, square: tuple[int, int, int] | None) -> np.ndarray:
    """Return the frames cut to a square, as ``cut_square`` does."""
    _, height, width, _ = frames_FHWC.shape
    short = min(height, width)
    top, left, side = square or ((height - short) // 2, (width - short) // 2, short)
    rows = np.clip(np.arange(top, top + side), 0, height - 1)
    columns = np.clip(np.arange(left, left + side), 0, width - 1)
    return cut_square(np.ascontiguousarray(frames_FHWC[:, rows][:, :, columns]), SIZE, "centre")[0]


def clock(frames: list[Image.Image], other: list[Image.Image]) -> list[Image.Image]:
    """Draw the time in hundredths of a second at the lower right."""
    font = ImageFont.load_default(12)
    for k, picture in enumerate(frames):
        seconds = 5 + 0.13 * k
        ImageDraw.Draw(picture).text((182, 222), f"2024-05-01 10:00:{seconds:05.2f}", "white", font=font)
    return frames


def lamp(frames: list[Image.Image], other: list[Image.Image]) -> list[Image.Image]:
    """Switch a lamp on in the middle: it shines, and the picture brightens, more on its side."""
    light = np.linspace(70, 15, frames[0].width)[:, None]
    lit = []
    for k, picture in enumerate(frames):
        if k >= len(frames) // 2:
            picture = Image.fromarray((np.asarray(picture) + light).clip(0, 255).astype(np.uint8))
            ImageDraw.Draw(picture).ellipse((10, 10, 50, 50), fill="white")
        lit.append(picture)
    return lit


def passer(frames: list[Image.Image], other: list[Image.Image]) -> list[Image.Image]:
    """Let the person of another clip, smaller, pass behind the person of this one."""
    still, room = background(frames), background(other)
    passed = []
    for k, (picture, walking) in enumerate(zip(frames, other, strict=True)):
        size = (round(walking.width * 0.8), round(walking.height * 0.8))
        small, mask = walking.resize(size), somebody(walking, room).resize(size)
        x = round(-size[0] / 2 - 40 + (picture.width + 80) * k / (len(frames) - 1))
        layer, shown = picture.copy(), Image.new("L", picture.size)
        layer.paste(small, (x, 40))
        shown.paste(mask, (x, 40))
        shown = ImageChops.multiply(shown, ImageChops.invert(somebody(picture, still)))
        passed.append(Image.composite(layer, picture, shown))
    return passed


CLUTTER: dict[str, Callable[[list[Image.Image], list[Image.Image]], list[Image.Image]]] = {
    "as filmed": lambda frames, other: frames,
    "clock": clock,
    "lamp": lamp,
    "passer": passer,
}


def ways(name: str, frames_FHWC: np.ndarray) -> dict[str, tuple[np.ndarray, tuple[int, int, int] | None]]:
    """Return the frames and the square of each way to crop."""
    found: dict[str, tuple[np.ndarray, tuple[int, int, int] | None]] = {
        "before": (frames_FHWC, before(frames_FHWC)),
        "motion": (frames_FHWC, motion_square(frames_FHWC).square),
    }
    if name in REGIONS:
        shown = (frames_FHWC.shape[2], frames_FHWC.shape[1])
        inside = np.stack([cut_region(picture, shown, REGIONS[name]) for picture in frames_FHWC])
        found["region"] = (inside, motion_square(inside).square)
    return found


def embed_all(
    root: Path, clips: list[Clip], chosen: set[str]
) -> tuple[dict[tuple[str, str], dict[str, np.ndarray]], dict[tuple[str, str], list[float]]]:
    """Return embeddings (F, G, G, C) by clutter, way and clip, and how far each square moves from that as filmed, in sides."""
    encoder = load_encoder("efficientnet-lite0", SIZE, GRID)
    found: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    moved: dict[tuple[str, str], list[float]] = {}
    sampled: dict[str, list[Image.Image]] = {}
    for clip in clips:
        frames = read(root / clip.path)[0]
        sampled[clip.id] = [frames[k] for k in segment_centres(len(frames), FRAMES)]
    for k, clip in enumerate(clips):
        other = next(c for c in clips[k:] + clips if c.view == clip.view and c.subject != clip.subject)
        clean: dict[str, tuple[int, int, int] | None] = {}
        for name, draw in CLUTTER.items():
            if name != "as filmed" and clip.group not in chosen:
                continue
            drawn = draw([picture.copy() for picture in sampled[clip.id]], sampled[other.id])
            known: dict[object, np.ndarray] = {}
            for way, (pictures, square) in ways(name, np.stack([np.asarray(one) for one in drawn])).items():
                key = (pictures.shape, square)
                if key not in known:
                    known[key] = encoder.embed(cut(pictures, square)).reshape(FRAMES, GRID, GRID, -1)
                found.setdefault((name, way), {})[clip.id] = known[key]
                if name == "as filmed":
                    clean[way] = square
                elif way in clean and (reference := clean[way]) is not None:
                    one = square or (0, 40, 240)
                    shift = max(abs(one[i] + one[2] / 2 - reference[i] - reference[2] / 2) for i in (0, 1))
                    moved.setdefault((name, way), []).append(max(shift, abs(one[2] - reference[2])) / reference[2])
        if k % 50 == 0:
            print(f"{k} of {len(clips)} clips", file=sys.stderr, flush=True)
    return found, moved


def main() -> None:
    """Embed, train both halves and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("../shared/data/motion/iid"))
    parser.add_argument("--subjects", default="1,2,3,4")
    parser.add_argument("--every", type=int, default=1, help="evaluate every n-th group")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--set", action="append", default=[], help="section.key=value, as for dtsf train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    subjects = options.subjects.split(",")
    catalog = scan_source("nucla", options.root, "all", None)
    clips = [clip for clip in catalog.clips if clip.subject in subjects]
    chosen = set(sorted({clip.group for clip in clips})[:: options.every])
    found, moved = embed_all(catalog.root, clips, chosen)
    info = DatasetInfo(kind="nucla", name="clutter", class_names=catalog.class_names, view_names=catalog.view_names)
    spec = make_spec(PreprocessSettings(frames=FRAMES, size=SIZE, grid=GRID, crop="motion"))
    tests = [clip for clip in clips if clip.group in chosen]
    half = len(subjects) // 2
    top1: dict[str, list[float]] = {}
    for train_on, test_on in ((subjects[:half], subjects[half:]), (subjects[half:], subjects[:half])):
        for trained in ("before", "motion"):
            every = torch.from_numpy(np.stack([found["as filmed", trained][clip.id] for clip in clips]))
            train = groups_of(clips, every, set(train_on))
            with tempfile.TemporaryDirectory() as run:
                net = fit(
                    train,
                    load_recipe(options.recipe, options.set),
                    info=info,
                    spec=spec,
                    protocol="",
                    run=Path(run),
                    seed=options.seed,
                    device="cpu",
                ).net
            for (name, way), rows in found.items():
                if (way if way == "before" else "motion") == trained:
                    cells = torch.from_numpy(np.stack([rows[clip.id] for clip in tests]))
                    metrics = evaluate_groups(net, groups_of(tests, cells, set(test_on)), info.class_names)
                    top1.setdefault(f"{name}, {way}", []).append(metrics.top1)
    far = {f"{name}, {way}": sum(x > 0.1 for x in xs) / len(xs) for (name, way), xs in moved.items()}
    about = {"subjects": subjects, "groups": len(chosen), "seed": options.seed, "recipe": options.recipe}
    result = {"top1": {key: statistics.mean(xs) for key, xs in top1.items()}, "squares_moved": far, "about": about}
    if options.json:
        sys.stdout.write(json.dumps(result) + "\n")
        return
    for key, value in result["top1"].items():
        print(f"{key:20s} {value:.3f}   squares that move by more than a tenth: {far.get(key, 0):.0%}")


if __name__ == "__main__":
    main()
