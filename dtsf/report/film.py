"""Film of a prediction: the views side by side, with the class, the uncertainty and the weights.
Letters: V views, T frames, H W pixels, C colours.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dtsf.errors import ConfigError
from dtsf.files.write import check_targets, fresh_file
from dtsf.report.gallery import VIEW_COLOURS

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont, ImageFont

    from dtsf.pipeline.video.clip import Span

FORMATS = {".mp4": "mp4", ".mkv": "matroska", ".mov": "mov"}  # ending of the file -> format
SIZE, MAX_FRAMES, DEFAULT_FPS = 288, 300, 15.0  # side of a view in pixels, frames, fps of a frame folder
GAP, HEAD, FOOT, MIN_WIDTH = 8, 92, 44, 520  # in pixels
BACK, INK, SOFT, EMPTY, GOOD = (20, 23, 27), (235, 237, 240), (155, 165, 177), (52, 60, 70), (95, 176, 240)
FONTS = (  # of common systems, with letters that Pillow's own font lacks; Pillow searches the font folders
    *("NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "NotoSansSC-Regular.ttf", "wqy-zenhei.ttc"),
    *("wqy-microhei.ttc", "DroidSansFallbackFull.ttf", "PingFang.ttc", "Arial Unicode.ttf", "DejaVuSans.ttf"),
)
NO_FONT = "no font for these names: install a font such as fonts-noto-cjk"


class Caption(NamedTuple):
    """Text of a film. ``names`` and ``view_weights``: of each view."""

    names: Sequence[str]
    label: str
    probabilities: Mapping[str, float]
    uncertainty: float
    view_weights: Sequence[float]


def check_film(file: Path) -> None:
    """Raise ConfigError if the ending of the file is unknown, or it cannot be written."""
    if file.suffix.lower() not in FORMATS:
        raise ConfigError(f"--video {file}: the name must end in {', '.join(FORMATS)}")
    check_targets({"--video": file}, "film.mp4")


def film_videos(file: Path, videos: Sequence[Path], spans: Sequence[Span], **caption: Any) -> None:
    """Decode the used part of each video again, and write it with the prediction. Shorter views end with a still frame.

    ``spans``: used part of each video. ``caption``: fields of :class:`Caption`. Raises ConfigError, VideoError.
    """
    from dtsf.pipeline.video.decode import decode_clip, extent_of, probe

    longest, fps = 1, 0.0
    for video, span in zip(videos, spans, strict=True):
        rate = span.fps or (DEFAULT_FPS if video.is_dir() else probe(video).fps or DEFAULT_FPS)
        begin, end = extent_of(video, replace(span, fps=rate))
        seconds = min(end, span.end or end) - max(begin, span.start or begin)
        longest, fps = max(longest, round(seconds * rate)), max(fps, rate)
    n = min(longest, MAX_FRAMES)
    whole = [replace(span, region=None, ignore=()) for span in spans]
    frames_VTHWC = np.stack([decode_clip(v, n, SIZE, span=s).frames for v, s in zip(videos, whole, strict=True)])
    names = [f"{k} {video.name}" for k, video in enumerate(videos, 1)]
    write_film(file, frames_VTHWC, fps * n / longest, Caption(names, **caption))


def write_film(file: Path, frames_VTHWC: np.ndarray, fps: float, caption: Caption) -> Path:
    """Encode a film of uint8 RGB frames. Raises ConfigError: the file cannot be written."""
    import av

    check_film(file)
    V, T, H, W, _ = frames_VTHWC.shape
    picture_HWC, left = _draw_caption(caption, V, H, W)
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    try:
        # In memory first: FFmpeg would read a name such as "pipe:1.mp4" as a protocol, and hides why a file refuses bytes.
        in_memory = io.BytesIO()
        with av.open(in_memory, "w", format=FORMATS[file.suffix.lower()]) as container:
            stream: Any = container.add_stream(codec, rate=max(1, round(fps)))
            stream.height, stream.width, stream.pix_fmt = *picture_HWC.shape[:2], "yuv420p"
            for t in range(T):
                for v in range(V):
                    x = left + v * (W + GAP)
                    picture_HWC[HEAD : HEAD + H, x : x + W] = frames_VTHWC[v, t]
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture_HWC, format="rgb24")))
            container.mux(stream.encode())
        with fresh_file(file) as opened:
            opened.write(in_memory.getbuffer())
    except (av.FFmpegError, OSError) as error:
        raise ConfigError(f"--video {file} cannot be written: {error.strerror or error}") from error
    return file


def _draw_caption(caption: Caption, V: int, H: int, W: int) -> tuple[np.ndarray, int]:
    """Draw the picture without the views. Returns it as (H, W, C), and the left edge of the first view."""
    from PIL import Image, ImageDraw

    width = max(MIN_WIDTH, V * W + (V + 1) * GAP)
    # Both sides must be even, because codecs halve the colour planes.
    width, height = width + width % 2, HEAD + H + FOOT + (HEAD + H + FOOT) % 2
    image = Image.new("RGB", (width, height), BACK)
    draw = ImageDraw.Draw(image)
    missing = False

    def write(x: float, y: float, words: str, size: int, colour: tuple[int, int, int], most: float, other: str) -> None:
        """Write words in at most ``most`` pixels; ``other`` if no font has their letters."""
        nonlocal missing
        words = "".join(letter if letter.isprintable() else " " for letter in words)
        if words and not (words.strip() and find_font(words, size)):
            words, missing = other, True
        font = find_font(words, size)
        short = words
        while short and draw.textlength(short, font) > most:
            words = words[:-1]
            short = words + "..." if words else ""
        draw.text((x, y), short, colour, font)

    def meter(x: float, y: float, length: float, share: float, colour: tuple[int, int, int]) -> None:
        draw.rectangle((x, y, x + length, y + 8), EMPTY)
        draw.rectangle((x, y, x + max(1.0, length * min(1.0, share)), y + 8), colour)

    half, label = width // 2, caption.label
    numbered = {name: f"class {k}" for k, name in enumerate(caption.probabilities, 1)}
    write(GAP + 4, 10, label, 30, INK, half + 60, numbered.get(label, "?"))
    write(GAP + 4, 56, f"uncertainty {caption.uncertainty:.2f}", 16, SOFT, 150, "")
    meter(GAP + 150, 63, half - 120, caption.uncertainty, (224, 180, 84))
    best = sorted(caption.probabilities.items(), key=lambda item: -item[1])[:3]
    for k, (name, probability) in enumerate(best):
        x, y = half + 76, 12 + 24 * k
        write(x, y, name, 14, INK if name == label else SOFT, width - x - 150, numbered[name])
        meter(width - 138, y + 5, 80, probability, GOOD)
        write(width - 50, y, f"{probability:.2f}", 14, SOFT, 46, "")
    left = (width - V * W - (V - 1) * GAP) // 2
    for v, (name, weight) in enumerate(zip(caption.names, caption.view_weights, strict=True)):
        x, y = left + v * (W + GAP), HEAD + H + 10
        write(x, y, name, 14, INK, W * 0.42, f"view {v + 1}")
        meter(x + W * 0.44, y + 5, W * 0.26, weight, VIEW_COLOURS[v % len(VIEW_COLOURS)])
        write(x + W * 0.73, y, f"weight {weight:.2f}", 14, SOFT, W * 0.27, "")
    if missing:
        write(GAP + 4, HEAD - 16, NO_FONT, 14, SOFT, width - 2 * GAP, "")
    return np.asarray(image).copy(), left


@cache
def find_font(words: str, size: int) -> FreeTypeFont | ImageFont | None:
    """Return the first font that has every letter of ``words``: Pillow's own font, then :data:`FONTS`."""
    from PIL import ImageFont

    for name in ("", *FONTS):
        try:
            font = ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
        except (OSError, ValueError):
            continue
        # A font draws the same box for every letter that it lacks. No font has U+10FFFF.
        box, *masks = ((mask.size, bytes(mask)) for mask in map(font.getmask, ["\U0010ffff", *({*words} - {" "})]))
        if box not in masks:
            return font
    return None
