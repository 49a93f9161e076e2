"""A folder that receives performances: which of its subfolders are complete and not yet answered.

Every direct subfolder is one performance, every video in it one view, in natural order of the names (cam2 before cam10).
A subfolder is taken when its videos have kept names, sizes and times for ``settle`` seconds; the answer is written beside
them as ``prediction.json``, which says what videos it is of. So a view that comes later, or a file that is replaced, makes
the performance be done again, and a restart does nothing twice.

Who fills the folder is not trusted: links are followed nowhere, pipes and devices not opened, an answer of others is read with
bounds, and what goes wrong with one performance is said once and is nothing to the others. What lies there and is not taken
(loose videos, videos in folders below, files with other endings) is said too; names that begin with a dot, files still under
way (``.part``, ``.tmp``) and what stands beside videos (``.txt``, ``.json``, pictures) are left alone.
"""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dtsf.errors import DataError, DtsfError
from dtsf.files.read import json_text, parse_json, read_file
from dtsf.files.write import write_atomically
from dtsf.pipeline.datasets.catalog import natural_key
from dtsf.pipeline.source import is_video

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ANSWER = "prediction.json"
ANSWER_LIMIT = 1 << 20
"""Bytes of the largest answer that is read."""
LISTED = 1000
"""Names of a folder below a performance that are looked at."""
BESIDE = (
    *(".part", ".tmp", ".temp", ".crdownload", ".filepart", ".lock"),
    *(".json", ".jsonl", ".txt", ".csv", ".md", ".xml", ".yaml", ".yml", ".toml", ".log", ".ini", ".srt", ".vtt"),
    *(
        ".jpg",
        ".jpeg",
        ".png",
        ".bmp",
        ".gif",
        ".wav",
        ".mp3",
        ".aac",
        ".flac",
        ".m4a",
        ".npy",
        ".npz",
        ".html",
        ".pdf",
    ),
)
"""Endings of what stands beside videos and needs no word."""

Seen = dict[str, tuple[int, int]]
"""Name of a video -> its size and time of change."""


@dataclass(frozen=True)
class Arrival:
    """A performance that is complete."""

    folder: Path
    videos: tuple[Path, ...]
    seen: Seen
    problem: str = ""
    """Why it cannot be asked about, in words; empty where it can."""
    left: tuple[str, ...] = ()
    """What lies there and is not taken, in words."""


@dataclass
class _Look:
    """What one look into a performance found."""

    seen: Seen = field(default_factory=dict)
    problem: str = ""
    left: list[str] = field(default_factory=list)


class Watch:
    """Looks into a folder again and again.

    Args:
        settle: Seconds for which a performance must not have changed.
        once: Stop when nothing is waiting any more, instead of looking on.
        say: Called with what a person should know, once each: what is not taken, what could not be written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        settle: float = 3.0,
        poll: float = 1.0,
        once: bool = False,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.folder, self.settle, self.poll, self.once = folder, settle, poll, once
        self._say = say or (lambda _: None)
        self._since: dict[str, tuple[_Look, float]] = {}
        self._given_up: dict[str, Seen] = {}
        """Performances whose answer cannot be written, as they were then: not done again while they stay so."""
        self._said: dict[str, str] = {}

    def __iter__(self) -> Iterator[Arrival]:
        """Yield performances as they become complete, for ever. Raises DataError: the folder does not exist when the watch
        begins.
        """
        entries = self._entries()
        while True:
            waiting = False
            for entry in entries:
                state = self._state(entry)
                waiting |= state is not None
                if isinstance(state, Arrival):
                    yield state
            for known in (self._since, self._given_up, self._said):
                for name in known.keys() - {entry.name for entry in entries} - {""}:
                    del known[name]
            if self.once and not waiting:
                return
            time.sleep(self.poll)
            entries = self._look_again()

    def answer(self, arrival: Arrival, document: dict[str, Any]) -> bool:
        """Write what was said of a performance beside its videos, whole or not at all. False, and said, where that fails."""
        videos = {name: list(status) for name, status in arrival.seen.items()}
        file = arrival.folder / ANSWER
        try:
            text = json_text(document | {"videos": videos}, indent=1)
            # Its folder may have become a link since it was looked into.
            write_atomically(file, text.encode(), parents=False, follow=False, error=DataError)
        except DtsfError as error:
            self._given_up[arrival.folder.name] = arrival.seen
            self._tell(
                arrival.folder.name, f"cannot write {ANSWER}: {error}; it is not done again until its videos change"
            )
            return False
        return True

    def _state(self, entry: os.DirEntry[str]) -> Arrival | bool | None:
        """The arrival if it is complete now, True while it settles, None where there is nothing to do."""
        name = entry.name
        look = self._look(entry)
        if look is None or not (look.seen or look.problem):
            self._since.pop(name, None)
            return None
        folder = self.folder / name
        if self._given_up.get(name) == look.seen or _answered(folder) == look.seen:
            self._since.pop(name, None)
            return None
        before, begun = self._since.get(name, (None, 0.0))
        now = time.monotonic()
        if before is None or (before.seen, before.problem) != (look.seen, look.problem):
            self._since[name] = (look, now)
            return True
        if now - begun < self.settle:
            return True
        empty = [video for video, (size, _) in look.seen.items() if not size]
        if empty:
            # Its writing has not begun.
            self._tell(name, f"{', '.join(empty)} is empty; waiting for it")
            return None
        self._since.pop(name)
        videos = tuple(folder / video for video in sorted(look.seen, key=natural_key))
        return Arrival(folder, videos, look.seen, look.problem, tuple(look.left))

    def _look(self, entry: os.DirEntry[str]) -> _Look | None:
        """What is in a performance; None where it is none, or gone while it was looked at."""
        try:
            if entry.is_symlink():
                self._tell(entry.name, "is a link, which --watch does not follow")
                return None
            if not entry.is_dir(follow_symlinks=False):
                if is_video(entry.name):
                    self._tell(entry.name, "lies in the watched folder itself: a performance is a folder in it")
                return None
            look = _Look()
            with os.scandir(self.folder / entry.name) as files:
                for file in sorted(files, key=lambda file: file.name):
                    _take(look, file)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                self._tell(entry.name, f"cannot be looked into: {error.strerror}")
            return None
        if look.left and not look.seen and not look.problem:
            self._tell(entry.name, f"no video to ask about: {'; '.join(look.left)}")
        return look

    def _entries(self) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self.folder) as entries:
                shown = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            raise DataError(
                f"cannot look into {self.folder}: {error.strerror}; --watch needs an existing folder"
            ) from error
        return sorted(shown, key=lambda entry: natural_key(entry.name))

    def _look_again(self) -> list[os.DirEntry[str]]:
        try:
            entries = self._entries()
        except DataError as error:
            if self.once:
                raise
            # A file server that is away comes back.
            self._tell("", f"{error}; waiting for it")
            return []
        self._said.pop("", None)
        return entries

    def _tell(self, name: str, words: str) -> None:
        if self._said.get(name) != words:
            self._said[name] = words
            self._say(f"{name}: {words}" if name else words)


def _take(look: _Look, file: os.DirEntry[str]) -> None:
    """Note what one name in a performance is."""
    name = file.name
    if name.startswith(".") or name == ANSWER:
        return
    status = file.stat(follow_symlinks=False)
    if is_video(name):
        # What stands there counts as seen, so that it is done again when something else does.
        look.seen[name] = (status.st_size if stat.S_ISREG(status.st_mode) else -1, status.st_mtime_ns)
        if stat.S_ISLNK(status.st_mode):
            look.problem = f"{name} is a link, which --watch does not follow"
        elif stat.S_ISDIR(status.st_mode):
            look.problem = f"{name} is a folder, not a video"
        elif not stat.S_ISREG(status.st_mode):
            look.problem = f"{name} is no plain file"
    elif stat.S_ISDIR(status.st_mode):
        with os.scandir(file.path) as below:
            found = sum(is_video(inner.name) for inner, _ in zip(below, range(LISTED), strict=False))
        if found:
            look.left.append(f"{found} videos in the folder {name} below: they must lie in the performance itself")
    elif stat.S_ISREG(status.st_mode) and not name.lower().endswith(BESIDE):
        look.left.append(f"{name} has no ending of a video")


def _answered(folder: Path) -> Seen | None:
    """What the answer that lies there is of; None where there is none, or one that cannot be read."""
    try:
        data = read_file(folder / ANSWER, limit=ANSWER_LIMIT, error=DataError)
        videos = parse_json(data, ANSWER, error=DataError)["videos"]
        return {str(name): (int(size), int(changed)) for name, (size, changed) in videos.items()}
    except (DataError, ValueError, KeyError, TypeError, AttributeError):
        return None
