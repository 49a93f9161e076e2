"""Scene of ``dtsf synth``: a figure with joints, rooms and cameras. Metres; x right, y to the front camera, z up.

Actions form pairs; one action of a pair is the other one backwards in time (raise and lower the arm). Both have the same poses,
so a single frame does not separate them. tests/test_synthetic.py tests this, benchmarks/synthetic_check.py measures it.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

MOTIONS = {
    "raise": {1: "raise the arm", 2: "lower the arm"},
    "circle": {3: "circle the arms forwards", 4: "circle the arms backwards"},
    "sit": {5: "sit down", 6: "stand up"},
    "kick": {8: "kick fast and return slowly", 9: "lift the leg slowly and drop it"},
    "step": {11: "step to the left", 12: "step to the right"},
}
# N-UCLA's action id -> name, motion, and whether the motion is backwards.
ACTIONS = {k: (name, motion, k > min(pair)) for motion, pair in MOTIONS.items() for k, name in pair.items()}

SIZE = (320, 240)
CAMERA_DEGREES = (-55.0, 0.0, 55.0)
CAMERA_DISTANCE, CAMERA_HEIGHT, FOCAL = 3.7, 1.35, 1.45
N_ROOMS = 10
# Joints: pelvis, neck, head; shoulder, elbow and hand on the right, then on the left; hip, knee and foot likewise.
LIMBS = (
    *((12, 13, 0.085, "legs"), (13, 14, 0.065, "legs"), (9, 10, 0.085, "legs"), (10, 11, 0.065, "legs")),
    *((6, 7, 0.055, "shirt"), (7, 8, 0.042, "skin"), (3, 4, 0.055, "shirt"), (4, 5, 0.042, "skin")),
    *((0, 1, 0.15, "shirt"), (6, 3, 0.07, "shirt"), (12, 9, 0.09, "legs")),
)
"""Two joints, radius in metres, and part of the body."""


class Style:
    """Look of a person, drawn from one generator, and random variation of one performance, drawn from the other."""

    def __init__(self, person: np.random.Generator, episode: np.random.Generator) -> None:
        skin = np.array([224, 172, 128]) * person.uniform(0.45, 1.05)
        self.colours = {
            "shirt": _colour(person.uniform(30, 230, 3)),
            "legs": _colour(person.uniform(20, 160, 3)),
            "skin": _colour(skin),
            "hair": _colour(person.uniform(15, 120) * np.array([1.0, 0.8, 0.6])),
        }
        self.height = person.uniform(0.9, 1.1)
        self.arm = person.uniform(0.93, 1.07)
        self.hold_begin = episode.uniform(0.02, 0.16)
        self.hold_end = episode.uniform(0.02, 0.16)
        self.tempo = episode.uniform(0.8, 1.25)
        self.plane = person.uniform(-0.4, 0.4) + episode.uniform(-0.2, 0.2)
        self.amplitude = person.uniform(0.88, 1.08) * episode.uniform(0.95, 1.05)
        self.sway = episode.uniform(0.0, 0.03)
        self.turn = person.uniform(-8, 8) + episode.uniform(-10, 10)


def trajectory(action: int, style: Style, n_frames: int) -> np.ndarray:
    """Return the joints over time, (n_frames, 15, 3) metres; see :data:`LIMBS`."""
    _, motion, backwards = ACTIONS[action]
    time = np.linspace(0.0, 1.0, n_frames)
    phase = np.clip((time - style.hold_begin) / (1 - style.hold_begin - style.hold_end), 0.0, 1.0) ** style.tempo
    poses = np.stack([pose(motion, float(u), float(t), style) for u, t in zip(phase, time, strict=True)])
    return poses[::-1].copy() if backwards else poses


def pose(motion: str, u: float, t: float, style: Style) -> np.ndarray:
    """Return one pose, (15, 3) metres. Positions of hands and feet determine elbows and knees."""
    smooth = u * u * (3 - 2 * u)
    amplitude, sides = style.amplitude, (("r", 1), ("l", -1))
    pelvis = np.array([style.sway * math.sin(7 * t), 0.0, 0.92])
    lean = 0.04
    hands = {side: np.array([sign * 0.24, 0.06, 0.82]) for side, sign in sides}
    feet = {side: np.array([sign * 0.11, 0.02, 0.05]) for side, sign in sides}
    if motion == "raise":
        angle = smooth * 2.75 * amplitude
        sideways = math.cos(style.plane)
        swing = np.array([math.sin(angle) * sideways, math.sin(angle) * (0.5 + 0.5 * style.plane), -math.cos(angle)])
        hands["r"] = np.array([0.19, 0.0, 1.42]) + 0.56 * swing / np.linalg.norm(swing)
    elif motion == "circle":
        for side, sign in sides:
            angle = 4 * math.pi * u + 0.15 * sign
            ring = np.array([sign * (0.2 + 0.15 * style.plane), math.sin(angle), -math.cos(angle)])
            hands[side] = np.array([sign * 0.19, 0.0, 1.42]) + 0.53 * amplitude * ring / np.linalg.norm(ring)
    elif motion == "sit":
        pelvis += np.array([0.0, -0.36, -0.45]) * smooth * amplitude
        lean += 0.55 * math.sin(math.pi * smooth) + 0.05 * smooth
        for hand in hands.values():
            hand += np.array([0.0, 0.28, -0.2]) * smooth
    elif motion == "kick":
        lift = math.sin(math.pi / 2 * u / 0.25) if u < 0.25 else math.cos(math.pi / 2 * (u - 0.25) / 0.75)
        feet["r"] += np.array([0.04, 0.72, 0.62]) * lift * amplitude
        lean -= 0.22 * lift
        hands["l"] += np.array([-0.1, 0.25, 0.2]) * lift
        hands["r"] += np.array([0.12, -0.15, 0.1]) * lift
    elif motion == "step":
        across = (0.5 - smooth) * 1.0 * amplitude
        pelvis[0] += across
        for side, delay in (("r", 0.0), ("l", math.pi)):
            stride = math.sin(6 * math.pi * smooth + delay) * math.sin(math.pi * smooth)
            feet[side] += np.array([across + 0.07 * stride, 0.0, 0.16 * max(0.0, stride)])
            hands[side] += np.array([across, 0.12 * stride, 0.0])
    up = np.array([0.0, math.sin(lean), math.cos(lean)])
    neck = pelvis + 0.55 * up
    arms: list[np.ndarray] = []
    legs: list[np.ndarray] = []
    for side, sign in sides:
        shoulder = neck + np.array([sign * 0.19, 0.0, -0.04])
        hip = pelvis + np.array([sign * 0.1, 0.0, -0.02])
        arms += _bend(shoulder, hands[side], 0.29 * style.arm, np.array([sign * 0.4, -1.0, -0.3]))
        legs += _bend(hip, feet[side], 0.44, np.array([0.0, 1.0, 0.2]))
    joints = np.stack([pelvis, neck, neck + 0.2 * up, *arms, *legs]) * style.height
    turn = math.radians(style.turn)
    rotation = np.array([[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0, 0, 1]])
    return np.asarray(joints @ rotation.T)


def _bend(root: np.ndarray, end: np.ndarray, length: float, pole: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the joints of a limb of two halves that reaches for ``end`` and bends towards ``pole``."""
    reach = end - root
    distance = float(np.clip(np.linalg.norm(reach), 0.05, 0.999 * (length + length)))
    axis = reach / (np.linalg.norm(reach) + 1e-9)
    along = (distance**2 + length**2 - length**2) / (2 * distance)
    side = pole - axis * float(pole @ axis)
    side /= np.linalg.norm(side) + 1e-9
    return root, root + axis * along + side * math.sqrt(max(0.0, length**2 - along**2)), root + axis * distance


def _project(points: np.ndarray, degrees: float, size: tuple[int, int]) -> np.ndarray:
    """Project points in perspective. (..., 3) metres -> (..., 3): column and row in pixels, depth in metres."""
    azimuth = math.radians(degrees)
    forward = -np.array([math.sin(azimuth), math.cos(azimuth), 0.0])
    right = np.array([-forward[1], forward[0], 0.0]) * -1.0
    relative = points - (np.array([0.0, 0.0, CAMERA_HEIGHT]) - forward * CAMERA_DISTANCE)
    depth = np.maximum(relative @ forward, 0.15)
    scale = FOCAL * size[1] / depth
    column = size[0] / 2 + (relative @ right) * scale
    row = size[1] * 0.40 - relative[..., 2] * scale
    return np.stack([column, row, depth], axis=-1)


def draw_clip(clip: dict[str, Any], seed: int) -> np.ndarray:
    """Draw the frames of one camera, with some sensor noise. (T, H, W, 3) uint8. ``clip``: its row of ``labels.csv``."""
    action, subject, view = clip["action"], clip["subject"], clip["view"]
    # The seed does not depend on the collection: aligned, conflict and occluded show the same performance.
    performance = np.random.default_rng((seed, 3, action, subject, clip["episode"]))
    style = Style(np.random.default_rng((seed, 2, subject)), performance)
    joints = trajectory(action, style, int(performance.integers(44, 61)))
    degrees = CAMERA_DEGREES[view - 1]
    room = draw_room(clip["background"], degrees)
    rng = np.random.default_rng((seed, 4, action, subject, view))
    # Four noise images, shifted at random, instead of a new one for each frame: ten times as fast.
    noise = rng.normal(0, 3, (4, SIZE[1], SIZE[0], 1)).astype(np.int16)
    frames = np.empty((len(joints), SIZE[1], SIZE[0], 3), np.uint8)
    for t, body in enumerate(joints):
        picture = room.copy()
        draw_body(picture, body, style, degrees)
        if clip["occluded"]:
            middle = SIZE[0] // 2
            ImageDraw.Draw(picture).rectangle((middle - 75, 0, middle + 75, SIZE[1]), fill=(88, 84, 80))
        shifted = np.roll(noise[t % 4], int(rng.integers(SIZE[0])), axis=1)
        frames[t] = np.clip(np.asarray(picture, dtype=np.int16) + shifted, 0, 255)
    return frames


def draw_body(picture: Image.Image, joints: np.ndarray, style: Style, degrees: float) -> None:
    """Draw the figure into a picture: first the shadow, then far limbs, then near limbs."""
    draw = ImageDraw.Draw(picture)
    at = _project(joints, degrees, picture.size)
    scale = FOCAL * picture.size[1]
    ground = _project(np.array([joints[0, 0], joints[0, 1], 0.0]), degrees, picture.size)
    wide = 0.3 * scale / ground[2]
    draw.ellipse((ground[0] - wide, ground[1] - wide / 5, ground[0] + wide, ground[1] + wide / 5), fill=(45, 42, 40))
    parts = [(at[a][2] + at[b][2], a, b, radius, part) for a, b, radius, part in LIMBS]
    for depth, a, b, radius, part in sorted(parts, key=lambda item: -item[0]):
        # Near limbs are lighter, so that an arm is visible in front of the chest.
        light = float(np.clip(1.35 - 0.5 * (depth / 2 - CAMERA_DISTANCE + 0.5), 0.7, 1.3))
        colour = _colour(np.array(style.colours[part]) * light)
        thick = radius * style.height * scale * 2 / (depth / 2)
        draw.line((*at[a][:2], *at[b][:2]), fill=colour, width=max(2, round(thick)))
        for x, y, _ in (at[a], at[b]):
            draw.ellipse((x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), fill=colour)
    head, radius = at[2], 0.115 * style.height * scale / at[2, 2]
    box = (head[0] - radius, head[1] - 1.15 * radius, head[0] + radius, head[1] + 1.15 * radius)
    draw.ellipse(box, fill=style.colours["skin"])
    draw.chord(box, 180, 360, fill=style.colours["hair"])


@lru_cache(maxsize=3 * N_ROOMS)
def draw_room(room: int, degrees: float) -> Image.Image:
    """Draw a room as one camera sees it: floor, walls and furniture. The result is cached; copy it before drawing into it."""
    rng = np.random.default_rng((90_210, room))
    floor, tiles = _muted(rng.uniform(60, 200, 3)), int(rng.integers(4, 12))
    walls = [_muted(rng.uniform(60, 230, 3)) for _ in range(4)]
    bands = int(rng.integers(2, 9))
    contrast = rng.uniform(8, 45)
    # Corners (4, 3) in metres, and colour (3,).
    quads: list[tuple[np.ndarray, np.ndarray]] = []

    def tile(origin: np.ndarray, along: np.ndarray, up: np.ndarray, n: int, m: int, colour: np.ndarray) -> None:
        """Add a plane of n x m tiles whose colours vary around ``colour``."""
        for i in range(n):
            for j in range(m):
                a = origin + along * i / n + up * j / m
                corners = np.stack([a, a + along / n, a + along / n + up / m, a + up / m])
                quads.append((corners, colour + rng.normal(0, contrast) + rng.normal(0, contrast / 3, 3)))

    reach, top = 2.8, 2.9
    origin, across, away = np.array([-reach, -reach, 0.0]), np.array([2 * reach, 0, 0]), np.array([0, 2 * reach, 0])
    tile(origin, across, away, tiles, tiles, floor)
    corners = np.array([[-reach, -reach, 0], [reach, -reach, 0], [reach, reach, 0], [-reach, reach, 0]])
    for k, wall in enumerate(walls):
        tile(corners[k], corners[(k + 1) % 4] - corners[k], np.array([0, 0, top]), bands * 2, bands, wall)
    for _ in range(int(rng.integers(4, 8))):
        # Furniture: four sides and the top of a box on the floor.
        angle, distance = rng.uniform(0, 2 * math.pi), rng.uniform(1.7, 2.5)
        centre = np.array([math.cos(angle) * distance, math.sin(angle) * distance, 0.0])
        x, y, z = rng.uniform((0.3, 0.3, 0.4), (0.9, 0.9, 2.0)) / np.array([2, 2, 1])
        colour = _muted(rng.uniform(20, 240, 3))
        base = [centre + np.array([sx * x, sy * y, 0]) for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
        lift = np.array([0, 0, z])
        for k, shade in enumerate((0.7, 0.9, 1.05, 0.8)):
            a, b = base[k], base[(k + 1) % 4]
            quads.append((np.stack([a, b, b + lift, a + lift]), colour * shade))
        quads.append((np.stack([corner + lift for corner in base]), colour * 1.15))
    picture = Image.new("RGB", (SIZE[0] * 2, SIZE[1] * 2), _colour(floor))
    draw = ImageDraw.Draw(picture)
    azimuth = math.radians(degrees)
    camera = np.array([math.sin(azimuth) * CAMERA_DISTANCE, math.cos(azimuth) * CAMERA_DISTANCE, CAMERA_HEIGHT])
    for quad, colour in sorted(quads, key=lambda quad: -float(np.linalg.norm(quad[0].mean(0) - camera))):
        flat = _project(quad, degrees, picture.size)
        # Skip walls and furniture beside or behind the camera.
        towards = quad.mean(0)[:2] @ camera[:2] / CAMERA_DISTANCE
        if flat[:, 2].min() > 0.2 and towards < 1.0:
            draw.polygon([(float(x), float(y)) for x, y, _ in flat], fill=_colour(colour))
    return picture.resize(SIZE, Image.Resampling.BOX)


def _muted(values: np.ndarray) -> np.ndarray:
    """Return a less saturated colour: half way to its grey."""
    return np.asarray(0.5 * values + 0.5 * values.mean())


def _colour(values: np.ndarray) -> tuple[int, int, int]:
    r, g, b = np.clip(values, 0, 255).astype(int).tolist()
    return r, g, b
