"""Fonts for words in any script: the built-in one where it has the letters, else one of this machine, else a way to say so."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL.ImageFont import FreeTypeFont, ImageFont

    Font = FreeTypeFont | ImageFont

NO_FONT = "no font here has all letters of these names: install one, such as fonts-noto-cjk"
FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts", "/Library/Fonts")
LIKELY = ("cjk", "noto", "wqy", "droid", "unifont", "arialuni", "dejavu")
"""Words in the names of fonts that have many letters: tried first."""
MOST_FONTS = 400
ABSENT = "\U0010ffff"
"""A character that no font has: what is drawn for it is what is drawn for all that a font lacks."""


@cache
def font_for(words: str, size: int) -> Font | None:
    """A font of a size that has every letter of ``words``, or None."""
    from PIL import ImageFont

    built_in = ImageFont.load_default(size)
    letters = frozenset(words) - {" "}
    if _has(built_in, letters):
        return built_in
    for file in _fonts():
        try:
            font = ImageFont.truetype(file, size)
        except (OSError, ValueError):
            continue
        if _has(font, letters):
            return font
    return None


def legible(words: str, otherwise: str, size: int) -> tuple[str, Font, bool]:
    """Words that can be drawn, their font, and whether they are the given ones; ``otherwise`` is in plain Latin letters."""
    from PIL import ImageFont

    words = "".join(letter if letter.isprintable() else " " for letter in words)
    font = font_for(words, size) if words.strip() or not words else None
    return (words, font, True) if font is not None else (otherwise, ImageFont.load_default(size), False)


def _has(font: Font, letters: frozenset[str]) -> bool:
    absent = _drawn(font, ABSENT)
    return all(_drawn(font, letter) != absent for letter in letters)


def _drawn(font: Font, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)


@cache
def _fonts() -> tuple[str, ...]:
    """Font files of this machine, the likely ones first."""

    def rank(file: str) -> tuple[int, str]:
        name = os.path.basename(file).lower()
        return next((k for k, word in enumerate(LIKELY) if word in name), len(LIKELY)), name

    return tuple(sorted(_files(), key=rank)[:MOST_FONTS])


def _files() -> Iterator[str]:
    for folder in FOLDERS:
        for path, _, names in os.walk(Path(folder).expanduser()):
            yield from (os.path.join(path, name) for name in names if name.lower().endswith((".ttf", ".otf", ".ttc")))
