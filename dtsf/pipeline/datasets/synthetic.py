"""``dtsf synth nucla``: a small multi-view action set, drawn and written as real video files in N-UCLA's layout."""

from __future__ import annotations

import csv
import shutil
import time
import uuid
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from dtsf.cache.records import Frozen
from dtsf.errors import ConfigError, DataError
from dtsf.pipeline.datasets.synthetic_scene import (
    ACTIONS,
    CAMERA_DEGREES,
    N_ROOMS,
    Style,
    draw_body,
    draw_room,
    trajectory,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from PIL import Image

COLUMNS = ("path", "action", "action_name", "subject", "view", "episode", "background", "occluded", "split")
SIZE = (320, 240)
FPS = 30


class SynthSummary(Frozen):
    """What was made."""

    out: str
    actions: int
    subjects: int
    views: int
    clips: int
    groups: int
    collections: dict[str, str]
    """By name: the folder to give to ``dtsf preprocess nucla --root``."""
    seconds: float


@dataclass(frozen=True)
class _Group:
    """One performance in one room, seen from all cameras."""

    collection: str
    action: int
    subject: int
    episode: int
    room: int
    hidden_view: int | None
    split: str


def synthesize_nucla(
    out: Path,
    *,
    subjects: int = 6,
    episodes: int = 3,
    bias: float | None = None,
    occlude: bool = False,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> SynthSummary:
    """Draw 10 actions by several subjects, filmed by three cameras 55 degrees apart.

    The last third of the subjects (at least one) is for testing. ``OUT/labels.csv`` names actions, rooms and split.

    Raises DataError: ``out`` exists and is not empty, or cannot be written. ConfigError: a number out of range.

    Args:
        out: Folder to make; nothing stands there before everything is written.
        bias: Share of training groups that are filmed in their action's own room. The main collection then holds training
            subjects only, and two more hold the same test performances: ``_aligned``, each in its action's own room, and
            ``_conflict``, each in another action's. None draws rooms at random.
        occlude: Add ``_occluded``: the test performances with a pillar before the actor in one view of three.
    """
    if subjects < 2 or episodes < 1:
        raise ConfigError(f"--subjects {subjects} must be at least 2 and --episodes {episodes} at least 1")
    if bias is not None and not 0 <= bias <= 1:
        raise ConfigError(f"--bias {bias} must be from 0 to 1")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists and is not empty: name another --out, or remove it")
    begun = time.monotonic()
    groups = _plan(subjects, episodes, bias, occlude, seed)
    temporary = out.absolute().with_name(f".{out.name}.tmp-{uuid.uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        _write_all(temporary, groups, seed, on_progress)
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    except OSError as error:
        raise DataError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    names = sorted({group.collection for group in groups})
    return SynthSummary(
        out=str(out),
        actions=len(ACTIONS),
        subjects=subjects,
        views=len(CAMERA_DEGREES),
        clips=len(groups) * len(CAMERA_DEGREES),
        groups=len(groups),
        collections={name: str(out / name) for name in names},
        seconds=time.monotonic() - begun,
    )


def _plan(subjects: int, episodes: int, bias: float | None, occlude: bool, seed: int) -> list[_Group]:
    """All groups of all collections, with their rooms."""
    main = "multiview_action_videos"
    first_test = subjects - max(1, subjects // 3) + 1
    groups = []
    for own_room, action in enumerate(ACTIONS):
        for subject in range(1, subjects + 1):
            for episode in range(episodes):
                rng = np.random.default_rng((seed, 1, action, subject, episode))
                anywhere = int(rng.integers(N_ROOMS))
                elsewhere = (own_room + int(rng.integers(1, N_ROOMS))) % N_ROOMS
                hidden = int(rng.integers(len(CAMERA_DEGREES))) + 1
                follows = bias is not None and rng.uniform() < bias
                split = "test" if subject >= first_test else "train"
                rooms = {main: own_room if follows else elsewhere if bias is not None else anywhere}
                if split == "test":
                    if bias is not None:
                        rooms = {f"{main}_aligned": own_room, f"{main}_conflict": elsewhere}
                    if occlude:
                        rooms[f"{main}_occluded"] = anywhere
                for name, room in rooms.items():
                    unseen = hidden if name.endswith("_occluded") else None
                    groups.append(_Group(name, action, subject, episode, room, unseen, split))
    return groups


def _write_all(folder: Path, groups: list[_Group], seed: int, on_progress: Callable[[int, int], None] | None) -> None:
    total = len(groups) * len(CAMERA_DEGREES)
    lines = []
    for group in groups:
        person = np.random.default_rng((seed, 2, group.subject))
        # Not the collection: aligned, conflict and occluded show the same performance.
        episode = np.random.default_rng((seed, 3, group.action, group.subject, group.episode))
        style = Style.draw(person, episode)
        joints = trajectory(group.action, style, int(episode.integers(44, 61)))
        for view, degrees in enumerate(CAMERA_DEGREES, 1):
            path = f"{group.collection}/a{group.action:02d}/v{view:02d}_s{group.subject:02d}_e{group.episode:02d}.avi"
            hidden = group.hidden_view == view
            frames = _film(
                joints,
                style,
                draw_room(group.room, degrees, SIZE),
                degrees,
                hidden,
                (seed, 4, group.action, group.subject, view),
            )
            _write_avi(folder / path, frames)
            name = ACTIONS[group.action][0]
            lines.append(
                (path, group.action, name, group.subject, view, group.episode, group.room, int(hidden), group.split)
            )
            if on_progress is not None:
                on_progress(len(lines), total)
    with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        writer.writerows(lines)


def _film(
    joints: np.ndarray, style: Style, room: Image.Image, degrees: float, hidden: bool, key: tuple[int, ...]
) -> np.ndarray:
    """Frames of one camera, (T, H, W, 3) uint8, with a little sensor noise."""
    from PIL import ImageDraw

    rng = np.random.default_rng(key)
    # A few noise pictures, shifted about, are as good as fresh ones and ten times cheaper.
    noise = rng.normal(0, 3, (4, SIZE[1], SIZE[0], 1)).astype(np.int16)
    frames = np.empty((len(joints), SIZE[1], SIZE[0], 3), np.uint8)
    for t, pose in enumerate(joints):
        picture = room.copy()
        draw_body(picture, pose, style, degrees)
        if hidden:
            middle = SIZE[0] // 2
            ImageDraw.Draw(picture).rectangle((middle - 75, 0, middle + 75, SIZE[1]), fill=(88, 84, 80))
        shifted = np.roll(noise[t % 4], int(rng.integers(SIZE[0])), axis=1)
        frames[t] = np.clip(np.asarray(picture, dtype=np.int16) + shifted, 0, 255)
    return frames


def _write_avi(path: Path, frames: np.ndarray) -> None:
    """MPEG-4 in AVI, as N-UCLA's own files are read by every decoder."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(FPS))
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.qmax = 6
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
