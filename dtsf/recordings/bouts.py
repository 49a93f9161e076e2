"""From windows to bouts: the set of windows without overlap that is most likely as a whole.

A window is an event if its class is more likely than all else. Windows of all lengths compete, so a bout gets the start and the
length at which its class is surest. Bouts are decided as windows come: a bout is certain once later windows cannot change it.
Letters: S starts, L lengths, K classes, V cameras.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dtsf.recordings.windows import Grid, WindowBlock
from dtsf.settings import Frozen

LEAST = 1e-6  # smallest probability, before its logarithm
HORIZON = 3  # longest windows behind the last start after which a bout is certain


class Bout(Frozen):
    """One event that was found. Times are seconds of the recording's clock."""

    label: str
    start: float
    stop: float
    probability: float
    uncertainty: float
    """Vacuity K / S in (0, 1]; 1 means no evidence."""
    view_weights: tuple[float, ...]
    """Weight of each camera in the fusion."""


class Curve(Frozen):
    """What is likely at each time: probability of the likeliest event, its class, and the uncertainty, averaged over the windows."""

    times: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()
    probability: tuple[float, ...] = ()
    uncertainty: tuple[float, ...] = ()


class MediaFile(Frozen):
    """One file of a camera: it shows the recording from ``start`` to ``stop``; ``begin`` is the second of the file at ``start``."""

    path: str
    start: float
    stop: float
    begin: float = 0.0


class Media(Frozen):
    """Camera of a recording. ``offset``: seconds that it began after time zero of the recording."""

    view: str
    offset: float
    files: tuple[MediaFile, ...]


class Timeline(Frozen):
    """Bouts of one recording between ``start`` and ``stop``, the time that all cameras share."""

    recording: str
    subject: str | None
    views: tuple[str, ...]
    start: float
    stop: float
    bouts: tuple[Bout, ...]
    notes: tuple[str, ...] = ()
    windows: tuple[float, ...] = ()
    """Lengths of the windows in seconds."""
    media: tuple[Media, ...] = ()
    curve: Curve = Curve()


@dataclass(frozen=True)
class BoutOptions:
    """How windows become bouts. ``threshold``: probability of a bout. ``shortest``, ``gap``: seconds of a bout, and between two of
    one class, below which they are dropped, or joined. ``no_event``: classes that are no bouts.
    """

    threshold: float
    shortest: float
    gap: float
    no_event: frozenset[str] = frozenset()


@dataclass
class BoutFinder:
    """Finds bouts in the windows of one recording as they come. ``names``: of the K classes."""

    names: Sequence[str]
    grid: Grid
    options: BoutOptions
    _first: int = field(default=0, init=False)  # number of the first start that is kept
    _odds_SL: np.ndarray = field(init=False)
    _windows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list, init=False)
