"""Every error dtsf raises on purpose: one tree, so that one ``except DtsfError`` catches all of them.

A message names the value, the file and, where there is one, the next command to run.
The command line prints the message without a traceback and exits with ``exit_code``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence


class DtsfError(Exception):
    """Base of all errors that are the input's or the machine's, not a defect of dtsf."""

    exit_code: ClassVar[int] = 2


class DataError(DtsfError):
    """The data set is not what was asked for: missing root, no video, unknown view, a clip claimed twice."""


class SourceError(DataError):
    """The disk or server that holds the videos does not answer: no fault of any clip, and nothing is held against one."""


class VideoError(DtsfError):
    """One video cannot be used. ``verdict`` says why, in the vocabulary of :class:`dtsf.cache.records.Status`."""

    def __init__(self, message: str, verdict: str) -> None:
        super().__init__(message)
        self.verdict = verdict


class BadClipsError(DtsfError):
    """Stage 1 finished and everything usable is in the cache, but more clips were bad than ``--max-bad`` allows."""

    exit_code = 1

    def __init__(self, message: str, result: object = None, listed: Sequence[str] = ()) -> None:
        super().__init__("\n".join([message, *(f"  {line}" for line in listed)]))
        self.message, self.result, self.listed = message, result, tuple(listed)


class CacheError(DtsfError):
    """The cache is missing, empty, ambiguous or damaged."""


class FingerprintError(CacheError):
    """The cache was made with other settings than those asked for; the two are never mixed."""


class ConfigError(DtsfError):
    """A recipe, an override or an option has an unknown name or a value out of range."""


class FilmError(ConfigError):
    """The film of a prediction cannot be written. ``prediction`` is what was predicted all the same."""

    def __init__(self, message: str, prediction: object = None) -> None:
        super().__init__(message)
        self.prediction = prediction


class DivergedError(ConfigError):
    """A training's numbers left what numbers can be: its settings are too wild. The last good checkpoint stays."""


class CheckpointError(DtsfError):
    """A run folder or a checkpoint is missing, damaged, or belongs to other classes."""
