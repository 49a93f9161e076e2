"""All errors that dtsf raises on purpose. A message names the value, the file and the next command to run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class DtsfError(Exception):
    """Base class of all. The cause is the input or the machine. The command line prints it and exits with ``exit_code``."""

    exit_code: ClassVar[int] = 2


class DataError(DtsfError):
    """The dataset does not match the request: missing folder, no video, unknown view, or a clip listed twice."""


class SourceError(DataError):
    """The disk or server with the videos does not respond. No clip is recorded as bad."""


class VideoError(DtsfError):
    """A video cannot be used. ``status`` is a value of :class:`dtsf.cache.status.Status`."""

    def __init__(self, message: str, status: str = "unreadable") -> None:
        super().__init__(message)
        self.status = status


class BadClipsError(DtsfError):
    """Stage 1 is complete, but more clips are bad than ``--max-bad`` allows. All usable clips are in the cache."""

    exit_code = 1

    def __init__(self, message: str, result: object = None, listed: Sequence[str] = ()) -> None:
        super().__init__("\n".join([message, *(f"  {line}" for line in listed)]))
        self.message, self.result, self.listed = message, result, tuple(listed)


class CacheError(DtsfError):
    """The cache is missing, empty, ambiguous or damaged."""


class FingerprintError(CacheError):
    """The cache was made with other settings. dtsf never mixes two settings in one dataset."""


class ConfigError(DtsfError):
    """A recipe, an override or an option has an unknown name or a value out of range."""


class FilmError(ConfigError):
    """The film of a prediction cannot be written. ``prediction`` holds the prediction itself."""

    def __init__(self, message: str, prediction: object = None) -> None:
        super().__init__(message)
        self.prediction = prediction


class DivergedError(ConfigError):
    """The training diverged: a loss, gradient or weight is not finite. The last checkpoint is kept."""


class CheckpointError(DtsfError):
    """A run folder or a checkpoint is missing, damaged, or has other classes."""
