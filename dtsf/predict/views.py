"""The camera of each video of one performance: as given, or by the names of files and folders, or by order."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dtsf.cache.catalog import view_number
from dtsf.errors import ConfigError, DataError

if TYPE_CHECKING:
    from dtsf.cache.schema import Box, DatasetInfo

By = Literal["views", "name", "folder", "order"]
CAMERA, LETTER, NEVER = "(?:camera|cam|kamera|view|c|v)", r"[^\W\d_]", "(?!)"


@dataclass(frozen=True)
class Views:
    """View of each video, from 0, and how it was found. A number behind those of the training is a camera that it lacks."""

    numbers: tuple[int, ...]
    by: tuple[By, ...]

    @property
    def known(self) -> bool:
        """True if at least one view is known by more than the order of the videos."""
        return any(by != "order" for by in self.by)

    def notes(self, names: Sequence[str], videos: Sequence[Path]) -> list[str]:
        """Return what must be said: the videos whose camera is a guess by their order."""
        taken = [
            f"{video} as {names[n]}"
            for n, by, video in zip(self.numbers, self.by, videos, strict=True)
            if by == "order" and n < len(names) > 1
        ]
        why = "because the names of files and folders do not contain the name of one camera: --views names the cameras"
        return [f"{', '.join(taken)}: taken in order, {why}"] if taken else []


def choose_views(names: Sequence[str], videos: Sequence[Path | None], views: str | None = None) -> Views:
    """Return the view of each video, or of data without a file (None). ``names``: of the cameras of the training. ``views``:
    numbers or names joined by commas.

    Without ``views``, a video is of the camera whose name, and no other, is in the name of its file, or else of its folder. All
    others are of the remaining cameras, in order. Raises DataError: two videos of a camera, or not one view for each video.
    Raises ConfigError: an unknown view.
    """
    if views is not None:
        numbers = tuple(view_number(word.strip(), names, "--views") - 1 for word in views.split(","))
        if len(numbers) != len(videos) or len(set(numbers)) != len(videos):
            raise DataError(f"--views {views} must name {len(videos)} different views, one for each video")
        given: By = "views"
        return Views(numbers, (given,) * len(videos))
    files = [video for video in videos if video is not None]
    if len(files) < len(videos):
        order: By = "order"
        return Views(tuple(range(len(videos))), (order,) * len(videos))
    found: list[tuple[int, By] | None] = [_find_camera(names, texts) for texts in _texts(files)]
    if not any(found):
        # A number alone, as in take_2.mp4, says little: it must fit all videos.
        cameras = [_matching(map(_number, names), _plain(video.stem)) for video in files]
        if all(len(one) == 1 for one in cameras) and len(set.union(*cameras)) == len(videos):
            found = [(one.pop(), "name") for one in cameras]
    taken: dict[int, Path] = {}
    for video, camera in zip(files, found, strict=True):
        other = taken.setdefault(camera[0], video) if camera else video
        if camera and other != video:
            raise DataError(
                f"{other} and {video} are both of camera {names[camera[0]]!r} by their names: name the cameras with --views. "
                "For several performances, use one subfolder each and --watch FOLDER --once"
            )
    rest = (number for number in count() if number not in taken)
    chosen: list[tuple[int, By]] = [camera or (next(rest), "order") for camera in found]
    return Views(tuple(number for number, _ in chosen), tuple(by for _, by in chosen))


def trained_region(info: DatasetInfo, number: int, hint: str) -> tuple[Box | None, tuple[Box, ...]]:
    """Return region and ignored parts of a view's training clips. Raises ConfigError if they differ, unless ``hint`` is empty."""
    region = info.view_regions[number] if number < len(info.view_regions) else None
    if region is None:
        return None, ()
    if region.varies and hint:
        raise ConfigError(f"the training clips of view {info.view_names[number]} have different regions: {hint}")
    return region.region, region.ignore


def _texts(videos: Sequence[Path]) -> Iterator[list[str]]:
    """Yield the name of each video and the names of its folders, the nearest first. A folder of all videos is left out."""
    paths = [Path(os.path.abspath(video)) for video in videos]
    shared = len(Path(os.path.commonpath([path.parent for path in paths])).parts) if len(paths) > 1 else 0
    for path in paths:
        folders = path.parts[max(1, shared) : -1] if shared else path.parts[1:-1][-1:]
        yield [path.name if path.is_dir() else path.stem, *folders[::-1]]


def _find_camera(names: Sequence[str], texts: Sequence[str]) -> tuple[int, By] | None:
    for k, text in enumerate(texts):
        for patterns in (map(_exact, names), map(_similar, names)):
            cameras = _matching(patterns, _plain(text))
            if len(cameras) == 1:
                return cameras.pop(), "name" if k == 0 else "folder"
            if cameras:
                break
    return None


def _matching(patterns: Iterator[str], text: str) -> set[int]:
    """Return the patterns in a text. One inside of a longer one does not count: left in front_left."""
    spans = [(number, *match.span()) for number, pattern in enumerate(patterns) for match in re.finditer(pattern, text)]
    return {
        number
        for number, start, stop in spans
        if not any(a <= start and stop <= b and b - a > stop - start for _, a, b in spans)
    }


def _plain(text: str) -> str:
    """Return a text in small letters, with camLeft as cam_left."""
    return unicodedata.normalize(
        "NFKC", re.sub("(?<=[a-z])(?=[A-Z])", "_", unicodedata.normalize("NFC", text))
    ).casefold()


def _exact(name: str) -> str:
    """Return a pattern of a camera's name as a word, with any separators and leading zeros. A number must be the whole text."""
    runs = re.findall(r"\d+|[^\W\d_]+", _plain(name))
    body = r"[\W_]*".join(f"0*{int(run[:1000])}" if run.isdecimal() else re.escape(run) for run in runs)
    if not runs:
        return NEVER
    return f"^{body}$" if runs[0].isdecimal() and len(runs) == 1 else _as_word(body, runs[0][0], runs[-1][-1])


def _similar(name: str) -> str:
    """Return a pattern with a word for camera: cam02 for camera 2 or c2, left_cam for left."""
    runs = re.findall(r"\d+|[^\W\d_]+", _plain(name))
    if runs and runs[-1].isdecimal() and (len(runs) == 1 or (len(runs) == 2 and re.fullmatch(CAMERA, runs[0]))):
        return _as_word(rf"{CAMERA}[\W_]*0*{int(runs[-1][:1000])}", "c", "0")
    if not runs or runs[0].isdecimal() or runs[-1].isdecimal():
        return NEVER
    body = r"[\W_]*".join(map(re.escape, runs))
    return _as_word(rf"(?:{CAMERA}[\W_]*)?{body}(?:[\W_]*{CAMERA})?", runs[0][0], runs[-1][-1])


def _number(name: str) -> str:
    return rf"(?<![^\W_])0*{int(name[:1000])}(?![^\W_])" if name.isdecimal() else NEVER


def _as_word(body: str, first: str, last: str) -> str:
    """Return a pattern that begins and ends at the border of a word. Scripts without capital letters have no such borders."""
    borders = (r"\d" if end.isdecimal() else LETTER if end.upper() != end else "" for end in (first, last))
    before, after = borders
    return f"{f'(?<!{before})' if before else ''}{body}{f'(?!{after})' if after else ''}"
