"""Watch a folder for performances that are complete and have no prediction yet.

Each direct subfolder is one performance, and each video in it is one view. The prediction is stored in the subfolder as
``prediction.json``, with the names, sizes and times of the videos. So a new video causes a new prediction, and a restart repeats
nothing. The content of the folder is not trusted: links are not followed, pipes and devices are not opened, an old
prediction is read with bounds, and an error in one performance does not affect the others.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dtsf.errors import DataError, DtsfError
from dtsf.files.read import json_text, parse_json, read_file
from dtsf.files.write import fresh_file, write_atomically
from dtsf.names import counted
from dtsf.pipeline.datasets.catalog import natural_key
from dtsf.pipeline.source import is_video

PREDICTION = "prediction.json"
MAX_PREDICTION_BYTES = 1 << 20
# Names that are read in a folder inside of a performance.
MAX_NAMES = 1000
# Endings of files that are ignored without a message.
OTHER_ENDINGS = (
    *(".part", ".tmp", ".temp", ".crdownload", ".filepart", ".lock"),
    *(".json", ".jsonl", ".txt", ".csv", ".md", ".xml", ".yaml", ".yml", ".toml", ".log", ".ini", ".srt", ".vtt"),
    *(".jpg", ".jpeg", ".png", ".bmp", ".gif", ".wav", ".mp3", ".aac", ".flac", ".m4a", ".npy", ".npz", ".html"),
    ".pdf",
)

# Name of a video -> its size and modification time.
Seen = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Performance:
    """Content of a subfolder. ``problem``: reason why no prediction is possible. ``ignored``: messages about unused files."""

    folder: Path
    seen: Seen
    problem: str = ""
    ignored: tuple[str, ...] = field(default=(), compare=False)

    @property
    def videos(self) -> tuple[Path, ...]:
        """Paths of the videos, one for each view."""
        return tuple(self.folder / name for name in sorted(self.seen, key=natural_key))

    @contextmanager
    def opened(self) -> Iterator[Path]:
        """Yield a folder of links to the videos, which are opened here, once. So nobody can put another file in the place of one
        that was seen. The folder has the name of the performance. Raises DataError: a file is not the one that was seen.
        """
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with ExitStack() as stack:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="dtsf-watch-"))) / self.folder.name
            folder.mkdir()
            name = ""
            try:
                below = os.open(self.folder, flags | os.O_DIRECTORY)
                stack.callback(os.close, below)
                for name, seen in self.seen.items():
                    file = stack.enter_context(os.fdopen(os.open(name, flags, dir_fd=below), "rb"))
                    status = os.fstat(file.fileno())
                    if not stat.S_ISREG(status.st_mode) or (status.st_size, status.st_mtime_ns) != seen:
                        raise DataError(f"{name} changed while it was opened: it is read again when it is complete")
                    handle = Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")
                    if handle.exists():
                        (folder / name).symlink_to(handle)
                    else:  # a system without /proc
                        with fresh_file(folder / name) as copy:
                            shutil.copyfileobj(file, copy)
            except OSError as error:
                what = name or "the folder"
                raise DataError(f"{what} cannot be opened, or is a link by now: {error.strerror}") from error
            yield folder


@dataclass
class Watch:
    """Iterator over the performances of a folder, each when it has not changed for ``settle`` seconds. ``once``: stop when no
    performance is waiting. ``notify``: called with each message, once.
    """

    folder: Path
    _: KW_ONLY
    settle: float = 3.0
    poll: float = 1.0
    once: bool = False
    notify: Callable[[str], None] = lambda _: None
    _waiting: dict[str, tuple[Performance, float]] = field(default_factory=dict, init=False)
    # Performances whose prediction could not be written. They are not repeated until their videos change.
    _given_up: dict[str, Seen] = field(default_factory=dict, init=False)
    _messages: dict[str, str] = field(default_factory=dict, init=False)

    def __iter__(self) -> Iterator[Performance]:
        """Yield each performance when it is complete. Raises DataError: the folder does not exist at the start."""
        entries: list[os.DirEntry[str]] = []
        first = True
        while True:
            try:
                with os.scandir(self.folder) as found:
                    entries = sorted(found, key=lambda entry: natural_key(entry.name))
                self._messages.pop("", None)
            except OSError as error:
                message = f"cannot read the folder {self.folder}: {error.strerror}"
                if first or self.once:
                    raise DataError(f"{message}; --watch needs an existing folder") from error
                # A file server may come back.
                self._send("", f"{message}; waiting for it")
                entries = []
            first = waiting = False
            for entry in entries:
                performance = None if entry.name.startswith(".") else self._check(entry)
                waiting |= performance is not None
                if isinstance(performance, Performance):
                    yield performance
            for known in (self._waiting, self._given_up, self._messages):
                for name in known.keys() - {entry.name for entry in entries} - {""}:
                    del known[name]
            if self.once and not waiting:
                return
            time.sleep(self.poll)

    def write_prediction(self, performance: Performance, document: dict[str, Any]) -> bool:
        """Write a prediction atomically beside its videos. On an error, send a message and return False."""
        try:
            text = json_text(document | {"videos": {k: list(v) for k, v in performance.seen.items()}}, indent=1)
            # The folder may have become a link in the meantime: do not follow it.
            file = performance.folder / PREDICTION
            write_atomically(file, text.encode(), parents=False, follow=False, error=DataError)
        except DtsfError as error:
            name = performance.folder.name
            self._given_up[name] = performance.seen
            self._send(name, f"cannot write {PREDICTION}: {error}; it is not done again until its videos change")
            return False
        return True

    def _check(self, entry: os.DirEntry[str]) -> Performance | bool | None:
        """Return the performance if it is complete, True if it may become complete soon, else None."""
        name = entry.name
        found = None
        try:
            if entry.is_symlink():
                self._send(name, "is a link, which --watch does not follow")
            elif entry.is_dir(follow_symlinks=False):
                found = _read_performance(self.folder / name)
                if found.ignored and not found.seen and not found.problem:
                    self._send(name, f"no video: {'; '.join(found.ignored)}")
            elif is_video(name):
                self._send(name, "is in the watched folder itself: put each performance into a subfolder")
        except OSError as error:
            # A folder that was removed in the meantime needs no message.
            if not isinstance(error, FileNotFoundError):
                self._send(name, f"cannot be read: {error.strerror}")
        if (
            found is None
            or not (found.seen or found.problem)
            or found.seen in (self._given_up.get(name), predicted_videos(found.folder))
        ):
            self._waiting.pop(name, None)
            return None
        now = time.monotonic()
        before, since = self._waiting.get(name, (None, now))
        if found != before or now - since < self.settle:
            self._waiting[name] = (found, since if found == before else now)
            return True
        empty = [video for video, (size, _) in found.seen.items() if not size]
        if empty:
            self._send(name, f"{', '.join(empty)} is empty; waiting for it")
            return None
        del self._waiting[name]
        return found

    def _send(self, name: str, message: str) -> None:
        if self._messages.get(name) != message:
            self._messages[name] = message
            self.notify(f"{name}: {message}" if name else message)


def _read_performance(folder: Path) -> Performance:
    """Return the content of a subfolder. Raises OSError."""
    seen: Seen = {}
    problem = ""
    ignored = []
    with os.scandir(folder) as entries:
        files = sorted(entries, key=lambda file: file.name)
    for file in files:
        name = file.name
        if name.startswith(".") or name == PREDICTION:
            continue
        status = file.stat(follow_symlinks=False)
        is_file = stat.S_ISREG(status.st_mode)
        if is_video(name):
            # An unusable file counts as seen, so that its replacement is noticed.
            seen[name] = (status.st_size if is_file else -1, status.st_mtime_ns)
            if stat.S_ISLNK(status.st_mode):
                problem = f"{name} is a link, which --watch does not follow"
            elif not is_file:
                problem = f"{name} is not a regular file"
        elif stat.S_ISDIR(status.st_mode):
            with os.scandir(file.path) as below:
                n_videos = sum(is_video(inner.name) for inner, _ in zip(below, range(MAX_NAMES), strict=False))
            if n_videos:
                ignored.append(
                    f"{counted(n_videos, 'video')} in the subfolder {name}: put all into the folder of the performance"
                )
        elif is_file and not name.lower().endswith(OTHER_ENDINGS):
            ignored.append(f"{name} does not have the ending of a video")
    return Performance(folder, seen, problem, tuple(ignored))


def predicted_videos(folder: Path) -> Seen | None:
    """Return the videos of the stored prediction; None if there is no valid one."""
    try:
        data = read_file(folder / PREDICTION, limit=MAX_PREDICTION_BYTES, error=DataError)
        videos = parse_json(data, PREDICTION, error=DataError)["videos"]
        return {str(name): (int(size), int(changed)) for name, (size, changed) in videos.items()}
    except (DataError, ValueError, KeyError, TypeError, AttributeError):
        return None
