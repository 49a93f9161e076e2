"""A film of a prediction: the views side by side, with class, uncertainty and weights drawn on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dtsf.errors import ConfigError
from dtsf.files.write import fresh_file
from dtsf.report.letters import NO_FONT, legible
from dtsf.report.strips import BORDERS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

FILM_ENDINGS = {".mp4": "mp4", ".mkv": "matroska", ".mov": "mov"}
"""Ending -> format."""
GAP, HEAD, FOOT, LEAST_WIDTH = 8, 92, 44, 520
MORE = "..."
"""What stands for the rest of words that are too long."""
BACK, INK, SOFT, EMPTY, GOOD = (20, 23, 27), (235, 237, 240), (155, 165, 177), (52, 60, 70), (95, 176, 240)


def check_film(file: Path) -> None:
    """Refuse a place where no film can be written, before anything costly is done. Raises ConfigError: unknown ending, or no
    such folder.
    """
    if file.suffix.lower() not in FILM_ENDINGS:
        raise ConfigError(f"--video {file}: the name must end in {', '.join(FILM_ENDINGS)}")
    if not file.absolute().parent.is_dir():
        raise ConfigError(f"--video {file}: there is no folder {file.absolute().parent}")


def write_film(
    file: Path,
    frames_VTHWC: np.ndarray,
    fps: float,
    *,
    names: Sequence[str],
    label: str,
    probabilities: Mapping[str, float],
    uncertainty: float,
    view_weights: Sequence[float],
) -> Path:
    """Encode a film. Raises ConfigError: the file cannot be written.

    Args:
        file: ``.mp4``, ``.mkv`` or ``.mov``.
        frames_VTHWC: uint8 RGB frames of every view, all of one size and number.
        fps: Frames a second.
    """
    import av

    check_film(file)
    V, T, H, W, _ = frames_VTHWC.shape
    canvas_HWC = _canvas(V, H, W, names, label, probabilities, uncertainty, view_weights)
    left = _left(V, W, canvas_HWC.shape[1])
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    try:
        # An open file: the name is never taken for a protocol, and stands for a whole film or none.
        with (
            fresh_file(file) as opened,
            av.open(opened, "w", format=FILM_ENDINGS[file.suffix.lower()]) as container,
        ):
            stream: Any = container.add_stream(codec, rate=max(1, round(fps)))
            stream.height, stream.width, stream.pix_fmt = *canvas_HWC.shape[:2], "yuv420p"
            for t in range(T):
                for v in range(V):
                    x = left + v * (W + GAP)
                    canvas_HWC[HEAD : HEAD + H, x : x + W] = frames_VTHWC[v, t]
                container.mux(stream.encode(av.VideoFrame.from_ndarray(canvas_HWC, format="rgb24")))
            container.mux(stream.encode())
    except (av.FFmpegError, OSError) as error:
        raise ConfigError(f"--video {file} cannot be written: {error.strerror or error}") from error
    return file


def _left(n_views: int, view_width: int, width: int) -> int:
    return (width - n_views * view_width - (n_views - 1) * GAP) // 2


def _canvas(
    V: int,
    H: int,
    W: int,
    names: Sequence[str],
    label: str,
    probabilities: Mapping[str, float],
    uncertainty: float,
    view_weights: Sequence[float],
) -> np.ndarray:
    """All that does not move, drawn once."""
    from PIL import Image, ImageDraw

    width = max(LEAST_WIDTH, V * W + (V - 1) * GAP + 2 * GAP)
    # Codecs halve the colour planes: both sides must be even.
    width, height = width + width % 2, HEAD + H + FOOT + (HEAD + H + FOOT) % 2
    image = Image.new("RGB", (width, height), BACK)
    draw = ImageDraw.Draw(image)
    missing = False

    def write(
        x: float, y: float, words: str, size: int, colour: tuple[int, int, int], room: float, otherwise: str = "?"
    ) -> None:
        nonlocal missing
        shown, font, whole = legible(words, otherwise, size)
        missing |= not whole
        while shown and draw.textlength(shown, font) > room:
            shown = shown.removesuffix(MORE)[:-1] + MORE if len(shown) > len(MORE) else ""
        draw.text((x, y), shown, colour, font)

    def meter(x: float, y: float, length: float, share: float, colour: tuple[int, int, int]) -> None:
        draw.rectangle((x, y, x + length, y + 8), EMPTY)
        draw.rectangle((x, y, x + max(1.0, length * min(1.0, share)), y + 8), colour)

    half = width // 2
    # A class whose name nobody can draw has a number.
    classes = {name: f"class {k}" for k, name in enumerate(probabilities, 1)}
    write(GAP + 4, 10, label, 30, INK, half + 60, classes.get(label, "?"))
    write(GAP + 4, 56, f"uncertainty {uncertainty:.2f}", 16, SOFT, 150)
    meter(GAP + 150, 63, half - 120, uncertainty, (224, 180, 84))
    best = sorted(probabilities.items(), key=lambda item: -item[1])[:3]
    for k, (name, probability) in enumerate(best):
        y = 12 + 24 * k
        x = half + 76
        write(x, y, name, 14, INK if name == label else SOFT, width - x - 150, classes[name])
        meter(width - 138, y + 5, 80, probability, GOOD)
        write(width - 50, y, f"{probability:.2f}", 14, SOFT, 46)
    left = _left(V, W, width)
    for v, (name, weight) in enumerate(zip(names, view_weights, strict=True)):
        x, y = left + v * (W + GAP), HEAD + H + 10
        write(x, y, name, 14, INK, W * 0.42, f"view {v + 1}")
        meter(x + W * 0.44, y + 5, W * 0.26, weight, BORDERS[v % len(BORDERS)])
        write(x + W * 0.73, y, f"weight {weight:.2f}", 14, SOFT, W * 0.27)
    if missing:
        write(GAP + 4, HEAD - 16, NO_FONT, 14, SOFT, width - 2 * GAP)
    return np.asarray(image).copy()
