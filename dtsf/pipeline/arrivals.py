"""A folder that receives performances: which of its subfolders are complete and not yet answered.

Every direct subfolder is one performance, every video in it one view, in natural order of the names (cam2 before cam10).
A subfolder is taken when its videos have kept names, sizes and times for ``settle`` seconds; the answer is written beside
them as ``prediction.json``, which says what videos it is of. So a view that comes later, or a file that is replaced, makes
the performance be done again, and a restart does nothing twice. Names that begin with a dot, and files that are no
videos (``.part``, ``.tmp``), are left alone.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dtsf.errors import DataError
from dtsf.pipeline.catalog import VIDEO_ENDINGS, natural_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["ANSWER", "Arrival", "answer", "watch_folder"]

ANSWER = "prediction.json"

Seen = dict[str, tuple[int, int]]
"""Name of a video -> its size and time of change."""


@dataclass(frozen=True)
class Arrival:
    """A performance that is complete."""

    folder: Path
    videos: tuple[Path, ...]
    seen: Seen


def watch_folder(folder: Path, *, settle: float = 3.0, poll: float = 1.0, once: bool = False) -> Iterator[Arrival]:
    """Yield performances as they become complete, for ever.

    Args:
        folder: The folder that receives subfolders.
        settle: Seconds for which a performance must not have changed.
        poll: Seconds between looks.
        once: Stop when nothing is waiting any more, instead of looking on.

    Raises:
        DataError: The folder does not exist, or is lost.

    """
    since: dict[str, tuple[Seen, float]] = {}
    while True:
        waiting = False
        for entry in _subfolders(folder):
            seen = _videos(entry)
            if not seen or _answered(entry) == seen:
                since.pop(entry.name, None)
                continue
            before, begun = since.get(entry.name, (None, 0.0))
            now = time.monotonic()
            if before != seen:
                since[entry.name] = (seen, now)
                waiting = True
            elif now - begun >= settle:
                # Taken once: were no answer written, it would be taken again after another ``settle``.
                since.pop(entry.name)
                yield Arrival(entry, tuple(entry / name for name in sorted(seen, key=natural_key)), seen)
            else:
                waiting = True
        if once and not waiting:
            return
        time.sleep(poll)


def answer(arrival: Arrival, document: dict[str, Any]) -> Path:
    """Write what was said of a performance beside its videos, whole or not at all.

    Raises:
        DataError: The folder cannot be written.

    """
    file = arrival.folder / ANSWER
    fresh = arrival.folder / f".{ANSWER}.{os.getpid()}"
    videos = {name: list(stat) for name, stat in arrival.seen.items()}
    try:
        fresh.write_text(json.dumps(document | {"videos": videos}, indent=1), encoding="utf-8")
        fresh.replace(file)
    except OSError as error:
        raise DataError(
            f"cannot write {file}: {error.strerror}; --watch keeps its answers beside the videos"
        ) from error
    return file


def _subfolders(folder: Path) -> list[Path]:
    try:
        entries = [entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"cannot look into {folder}: {error.strerror}; --watch needs an existing folder") from error
    return sorted(entries, key=lambda entry: natural_key(entry.name))


def _videos(folder: Path) -> Seen:
    seen = {}
    try:
        for file in folder.iterdir():
            if file.suffix.lower() in VIDEO_ENDINGS and not file.name.startswith(".") and file.is_file():
                stat = file.stat()
                # An empty file is one whose writing has not begun.
                if stat.st_size == 0:
                    return {}
                seen[file.name] = (stat.st_size, stat.st_mtime_ns)
    except OSError:
        return {}  # moved or removed while it was looked at: the next look sees what is left
    return seen


def _answered(folder: Path) -> Seen | None:
    """What the answer that lies there is of; None where there is none, or one that cannot be read."""
    try:
        videos = json.loads((folder / ANSWER).read_text("utf-8"))["videos"]
        return {str(name): (int(size), int(changed)) for name, (size, changed) in videos.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
