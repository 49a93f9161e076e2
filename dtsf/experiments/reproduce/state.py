"""The folder of a reproduction: its settings, lock, finished runs and times."""

from __future__ import annotations

import hashlib
import shutil
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dtsf.errors import CheckpointError, ConfigError
from dtsf.experiments.reproduce.records import RunRecord
from dtsf.files.read import json_text, parse_json, parse_model, read_file
from dtsf.files.write import lock, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from dtsf.pipeline.datasets.catalog import SourceCatalog

SETTINGS, TIMES, RESULT = "reproduce.json", "times.json", "result.json"
LIMIT = 1 << 28
"""Bytes of the largest document of a reproduction that is read."""
TICK = 2.0
"""Seconds between two writes of the elapsed time; a killed process loses at most this."""


@contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Make the folder and lock it for this process. Raises ConfigError: another process works in it, or it cannot be made."""
    with lock(
        out / ".lock",
        unwritable=lambda why: ConfigError(f"cannot write to the folder {out}: {why}; choose another --out"),
        busy=ConfigError(f"another dtsf reproduce works in {out}: wait for it, or choose another --out"),
    ):
        yield


def claim(out: Path, settings: dict[str, Any], *, overwrite: bool) -> None:
    """Start in ``out``, or continue what was started there with the same settings. ``out``: folder, held by :func:`only_one`.
    Raises ConfigError: the folder holds something else, or was begun with other settings.
    """
    file = out / SETTINGS
    begun = file.is_file()
    if not begun and any(path.name != ".lock" for path in out.iterdir()):
        raise ConfigError(f"the folder {out} holds something else than a reproduction: choose another --out")
    if begun and overwrite:
        for name in ("runs", "cache"):
            shutil.rmtree(out / name, ignore_errors=True)
        for path in (out / TIMES, *out.glob("results.*")):
            path.unlink(missing_ok=True)
    elif begun:
        was = _read_json(file)
        changed = [
            f"{key} {was.get(key)!r}, now {settings.get(key)!r}"
            for key in sorted(settings.keys() | was.keys())
            if was.get(key) != settings.get(key)
        ]
        if changed:
            raise ConfigError(
                f"{out} was begun with {'; '.join(changed)}: choose another --out, or --overwrite to begin anew there"
            )
    write_json(file, settings)


def digest(catalog: SourceCatalog) -> str:
    """Short hash of the clips: id, path and label."""
    text = "\n".join(f"{clip.id} {clip.path} {clip.label}" for clip in catalog.clips)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_result(run: Path) -> RunRecord | None:
    """The record of a finished run, or None. Raises CheckpointError: the file is not a record."""
    file = run / RESULT
    if not file.is_file():
        return None
    data = read_file(file, limit=LIMIT, error=CheckpointError)
    return parse_model(
        RunRecord,
        data,
        f"{file} is not a result of this version of dtsf",
        error=lambda why: CheckpointError(f"{why}: remove it to judge the run again"),
    )


def write_json(file: Path, document: object) -> None:
    """Write JSON so that the file is always whole."""
    write_atomically(file, (json_text(document, indent=1) + "\n").encode())


def seconds_of(out: Path, key: str) -> float:
    """Seconds spent on ``key``, summed over all starts."""
    return float(_read_times(out).get(key, 0.0))


def set_seconds(out: Path, key: str, seconds: float) -> None:
    """Store the seconds of ``key``."""
    write_json(out / TIMES, _read_times(out) | {key: seconds})


@contextmanager
def timed(out: Path, key: str) -> Iterator[Callable[[], None]]:
    """Add the block's seconds to ``key``. Yields ``tick()``, to be called now and then, so that a kill loses little."""
    before, begun, written = seconds_of(out, key), time.monotonic(), time.monotonic()

    def write() -> None:
        set_seconds(out, key, before + time.monotonic() - begun)

    def tick() -> None:
        nonlocal written
        if time.monotonic() - written > TICK:
            written = time.monotonic()
            write()

    try:
        yield tick
    finally:
        write()


def _read_times(out: Path) -> dict[str, Any]:
    return _read_json(out / TIMES) if (out / TIMES).is_file() else {}


def _read_json(file: Path) -> dict[str, Any]:
    document = parse_json(
        read_file(file, limit=LIMIT, error=ConfigError),
        str(file),
        error=lambda why: ConfigError(f"{why}; choose another --out"),
    )
    if not isinstance(document, dict):
        raise ConfigError(f"{file} is not an object of JSON; choose another --out")
    return document
