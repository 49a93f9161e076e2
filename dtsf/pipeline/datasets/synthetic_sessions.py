"""``dtsf synth sessions``: draw recordings of three cameras that begin at different times, with marks and true offsets."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dtsf.errors import ConfigError
from dtsf.pipeline.datasets.synthetic import new_folder, write_rows
from dtsf.pipeline.datasets.synthetic_scene import (
    CAMERA_DEGREES,
    N_ROOMS,
    SIZE,
    Style,
    draw_body,
    draw_room,
    pose,
)
from dtsf.settings import Frozen

# Label -> motion, and phases of the motion in the course of the event. All begin and end standing.
EVENTS = {
    "raise the arm": ("raise", (0.0, 1.0, 1.0, 0.0)),
    "circle the arms forwards": ("circle", (0.0, 1.0)),
    "circle the arms backwards": ("circle", (1.0, 0.0)),
    "sit down and up": ("sit", (0.0, 1.0, 1.0, 0.0)),
    "kick": ("kick", (0.0, 1.0)),
}
OTHER = ("step", (0.5, 0.9, 0.1, 0.5))  # a movement that has no mark
FPS = (15, 12, 15)
SOUND_RATE = 16000
WITH_SOUND = 2  # the first cameras


class SessionsSummary(Frozen):
    """Numbers of drawn recordings. ``table``: the table of recordings."""

    out: str
    table: str
    recordings: int
    cameras: int
    actions: int
    events: int
    seconds: float


class _Movement(NamedTuple):
    start: float
    stop: float
    label: str  # empty: without a mark
    motion: str
    phases: tuple[float, ...]
    style: Style


def synthesize_sessions(
    out: Path,
    *,
    subjects: int = 4,
    seconds: float = 60.0,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> SessionsSummary:
    """Draw one recording for each subject, by three cameras that begin up to six seconds apart; the third has no sound.

    ``OUT/recordings.csv`` has no offsets: ``dtsf sync`` finds them. ``OUT/cameras.csv`` has the true ones, ``OUT/sNN/events.csv``
    the marks in BORIS's columns. Raises ConfigError: a number is out of range. DataError: ``out`` is not empty, or is read-only.
    """
    if subjects < 1 or not 30 <= seconds <= 7200:
        raise ConfigError(f"--subjects {subjects} must be at least 1, and --seconds {seconds:g} from 30 to 7200")
    started = time.monotonic()
    table: list[dict[str, Any]] = []
    cameras: list[dict[str, Any]] = []
    n_events = 0
    with new_folder(out) as folder:
        for subject in range(1, subjects + 1):
            name, rng = f"s{subject:02d}", np.random.default_rng((seed, 5, subject))
            movements = _plan(seconds, subject, seed, rng)
            marked = [movement for movement in movements if movement.label]
            n_events += len(marked)
            rows = [(name, one.label, f"{one.start:.2f}", f"{one.stop:.2f}") for one in marked]
            heads = ("Subject", "Behavior", "Start (s)", "Stop (s)")
            write_rows(folder / name / "events.csv", [dict(zip(heads, row, strict=True)) for row in rows])
            offsets = [0.0, *np.round(rng.uniform(0.5, 6.0, len(FPS) - 1), 2).tolist()]
            for view, offset in enumerate(offsets, 1):
                path = f"{name}/cam{view}.mp4"
                _film(folder / path, movements, view, offset, seconds, subject, seed)
                table.append({"recording": name, "view": f"cam{view}", "path": path, "subject": name})
                table[-1]["events"] = f"{name}/events.csv"
                cameras.append({"recording": name, "view": f"cam{view}", "path": path, "offset": offset})
                on_progress(len(table), subjects * len(FPS))
        write_rows(folder / "recordings.csv", table)
        write_rows(folder / "cameras.csv", cameras)
    counts = {"recordings": subjects, "cameras": len(FPS), "actions": len(EVENTS), "events": n_events}
    return SessionsSummary(
        out=str(out), table=str(out / "recordings.csv"), seconds=time.monotonic() - started, **counts
    )


def _plan(seconds: float, subject: int, seed: int, rng: np.random.Generator) -> list[_Movement]:
    """Return the movements of one recording, in order, with pauses between them."""
    movements: list[_Movement] = []
    labels: list[str] = []
    now = 4.0
    while True:
        labels = labels or list(rng.permutation(list(EVENTS)))
        label = "" if rng.uniform() < 0.2 else labels.pop()
        motion, phases = EVENTS.get(label, OTHER)
        style = Style(np.random.default_rng((seed, 2, subject)), rng)
        length = rng.uniform(1.8, 3.2)
        if now + length > seconds - 1:
            return movements
        movements.append(_Movement(round(now, 2), round(now + length, 2), label, motion, phases, style))
        now += length + rng.uniform(0.8, 3.5)


def _joints(movements: Sequence[_Movement], times: np.ndarray, standing: Style) -> np.ndarray:
    """Return the joints at these times, (times, 15, 3) metres."""
    starts = np.array([movement.start for movement in movements])
    joints = []
    for now in times.tolist():
        k = int(np.searchsorted(starts, now, "right")) - 1
        if k >= 0 and now < movements[k].stop:
            one = movements[k]
            share = (now - one.start) / (one.stop - one.start)
            phase = float(np.interp(share, np.linspace(0, 1, len(one.phases)), one.phases))
            body = pose(one.motion, phase, now, one.style)
            # The first and last tenth lead from standing and back.
            weight = min(1.0, 10 * share, 10 * (1 - share))
            body = weight * body + (1 - weight) * pose("stand", 0.0, now, standing)
        else:
            body = pose("stand", 0.0, now, standing)
        joints.append(body)
    return np.array(joints)


def _film(
    path: Path, movements: Sequence[_Movement], view: int, offset: float, seconds: float, subject: int, seed: int
) -> None:
    """Write the film of one camera from ``offset`` on. Raises OSError."""
    import av

    fps, rng = FPS[view - 1], np.random.default_rng((seed, 6, subject, view))
    standing = Style(np.random.default_rng((seed, 2, subject)), np.random.default_rng((seed, 7, subject)))
    room = draw_room(subject % N_ROOMS, CAMERA_DEGREES[view - 1])
    noise = rng.normal(0, 3, (4, SIZE[1], SIZE[0], 1)).astype(np.int16)
    times = offset + np.arange(int((seconds - offset) * fps)) / fps
    with av.open(str(path), "w") as container:
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        video: Any = container.add_stream(codec, rate=fps, options={"preset": "veryfast", "crf": "26"})
        video.width, video.height, video.pix_fmt = *SIZE, "yuv420p"
        video.codec_context.thread_count = 1
        audio: Any = container.add_stream("aac", rate=SOUND_RATE, layout="mono") if view <= WITH_SOUND else None
        for k, body in enumerate(_joints(movements, times, standing)):
            picture = room.copy()
            draw_body(picture, body, standing, CAMERA_DEGREES[view - 1])
            shifted = np.roll(noise[k % 4], int(rng.integers(SIZE[0])), axis=1)
            frame = np.clip(np.asarray(picture, np.int16) + shifted, 0, 255).astype(np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode())
        if audio is not None:
            wave = _sound(movements, offset, seconds, rng, standing)
            for first in range(0, len(wave) - 1023, 1024):
                sound = av.AudioFrame.from_ndarray(wave[None, first : first + 1024], format="flt", layout="mono")
                sound.sample_rate, sound.pts = SOUND_RATE, first
                container.mux(audio.encode(sound))
            container.mux(audio.encode())


def _sound(
    movements: Sequence[_Movement], offset: float, seconds: float, rng: np.random.Generator, standing: Style
) -> np.ndarray:
    """Return the sound of clothes and steps, as loud as the body moves fast, above the noise of a microphone: float32."""
    grid = np.arange(0, seconds, 0.02)
    joints = _joints(movements, grid, standing)
    speed = np.array([0.0, *(float(np.abs(b - a).sum()) for a, b in pairwise(joints))])
    at = offset + np.arange(int((seconds - offset) * SOUND_RATE)) / SOUND_RATE
    loud = 0.01 + 0.25 * np.interp(at, grid, speed) / max(float(speed.max()), math.ulp(1.0))
    return np.asarray(loud * rng.normal(0, 1, len(at)).clip(-3, 3), np.float32)
