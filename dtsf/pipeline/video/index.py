"""What is in a video file: which packets hold frames that are shown, and when.

This alone tells a decoder what to do.

**Which frames are shown**: those of packets that are not empty, that no edit list hides, from the first key frame on. Where
packets follow that key frame and precede it in time (an open GOP, cut), decoding its head tells which of them come out.

**When**: at the packets' times of presentation. AVI has none, raw streams have no times at all: there the order is the decoder's,
and the k-th frame has the k-th decoding time (``by_rank``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from fractions import Fraction
    from pathlib import Path

NO_TIME = np.iinfo(np.int64).min
REORDERED = 32
"""Most frames that a decoder holds back to put them in order, and more."""


@dataclass(frozen=True)
class Packets:
    """The packets of one stream in decoding order, empty ones left out. Times in ticks, :data:`NO_TIME` where there is none."""

    pts: np.ndarray
    dts: np.ndarray
    duration: np.ndarray
    size: np.ndarray
    pos: np.ndarray
    key: np.ndarray
    hidden: np.ndarray
    """Of an edit list, or a picture that only others refer to."""
    moved: np.ndarray
    """Ticks that were added to a packet's times, because the clock had jumped before it."""

    def __len__(self) -> int:
        return len(self.size)


@dataclass(frozen=True)
class VideoIndex:
    """What a file holds and promises."""

    path: Path
    stream: int
    codec: str
    container: str
    width: int
    """As stored; turned and stretched only when shown."""
    height: int
    aspect: Fraction
    """Width of a pixel over its height."""
    tick: Fraction
    """Seconds."""
    rate: Fraction
    """Frames a second as the file states it, 0 where it does not."""
    declared_frames: int
    """0 where the header does not say."""
    promised_end: Fraction | None
    """Seconds at which the last packet should end, where the header says."""
    read_end: Fraction
    """Seconds at which the last packet that was read ends, of all streams where the promise is for all."""
    declared_packets: int
    """As many as the container's own table has, 0 where it has none."""
    packets: Packets
    unordered: bool
    """Times of presentation are guesses, or are not to be believed."""
    untimed: bool
    """They have none at all: frames follow each other at the stated rate."""
    cut: frozenset[int] = frozenset()
    """Packets behind the first key frame whose frames would precede it, and need one that was cut away."""
    absent: frozenset[int] = frozenset()
    """Other packets from which no frame comes, as decoding showed."""

    @cached_property
    def first_key(self) -> int:
        """Where decoding begins: the first key frame; where none is marked, the first packet."""
        return int(np.argmax(self.packets.key)) if self.packets.key.any() else 0

    @cached_property
    def shown(self) -> np.ndarray:
        """(packets,) bool: whether a packet holds a frame that is shown."""
        shown = ~self.packets.hidden
        shown[: self.first_key] = False
        shown[list(self.absent | self.cut)] = False
        return shown

    @cached_property
    def by_rank(self) -> bool:
        """Whether the order of frames is known from the decoder alone."""
        return self.unordered or self.untimed or bool((self.packets.pts[self.shown] == NO_TIME).any())

    @cached_property
    def head(self) -> np.ndarray:
        """Packets that may be :attr:`cut`: behind the first key frame, and before it in time."""
        pts, numbers = self.packets.pts, np.arange(len(self.packets))
        near = self.shown & (numbers > self.first_key) & (numbers <= self.first_key + REORDERED)
        found: np.ndarray = np.flatnonzero(near & (pts < pts[self.first_key]))
        return found

    @cached_property
    def order(self) -> np.ndarray:
        """Packets of the frames that are shown, as they are shown; ``by_rank`` as they are decoded."""
        packet = np.flatnonzero(self.shown)
        return packet if self.by_rank else packet[np.argsort(self.packets.pts[packet], kind="stable")]

    @cached_property
    def ticks(self) -> np.ndarray:
        """Times at which frames are shown, in order, from 0."""
        packets = np.flatnonzero(self.shown)
        times = self._decoding_times(packets) if self.by_rank else np.sort(self.packets.pts[packets])
        times = times - times[:1]
        step = self._stated_step
        by_rate = np.round(np.arange(len(times)) * step).astype(np.int64)
        if self.untimed or (packets.size and self.by_rank and self.packets.dts[packets].min() == NO_TIME):
            return by_rate
        # A program stream times some frames and leaves the others to FFmpeg, which is now and then a frame out.
        if self.container == "mpeg" and len(times) and np.abs(times - by_rate).max() <= step + 1:
            return by_rate
        return np.asarray(times)

    @cached_property
    def _stated_step(self) -> float:
        """Ticks from one frame to the next by the stated rate; where only some frames have times, by those."""
        dts = self.packets.dts
        known = np.flatnonzero(dts != NO_TIME)
        if 1 < len(known) < len(dts) and self.by_rank and dts[known[-1]] > dts[known[0]]:
            return float(dts[known[-1]] - dts[known[0]]) / int(known[-1] - known[0])
        return float(1 / ((self.rate or 25) * self.tick))

    def _decoding_times(self, packets: np.ndarray) -> np.ndarray:
        """Times for frames that have none of presentation: those of decoding, in order."""
        # What preceded the first key frame in time would have taken the first times.
        return np.sort(self.packets.dts[[*packets, *self.cut]])[len(self.cut) :]

    @cached_property
    def n_frames(self) -> int:
        """Frames that are shown."""
        return int(self.shown.sum())

    @cached_property
    def gap(self) -> float:
        """Usual ticks from one frame to the next."""
        if self.n_frames > 1:
            return float(max(np.median(np.diff(self.ticks)), 1e-9))
        return self._stated_step

    @cached_property
    def end_tick(self) -> float:
        """When the last frame's time is over."""
        if self.n_frames < 2:
            return self.gap * self.n_frames
        if self.is_steady:
            return self.step * self.n_frames
        stated = self.packets.duration[self.order]
        # Matroska states one length for all; where that is not how long frames last, it is not how long the last one does.
        is_true = stated[-1] > 0 and abs(float(np.median(stated)) - self.gap) <= 1
        return float(self.ticks[-1]) + float(stated[-1] if is_true else self.ticks[-1] - self.ticks[-2] or self.gap)

    @cached_property
    def is_steady(self) -> bool:
        """Whether frames follow each other at one rate, as exactly as the clock can tell."""
        if self.n_frames < 2:
            return True
        return bool((np.abs(self.ticks - self.step * np.arange(self.n_frames)) <= 1).all() and self.ticks[-1] > 0)

    @cached_property
    def step(self) -> float:
        """Ticks from one frame to the next on average; as the stated rate has it, where that is the same."""
        mean = float(self.ticks[-1]) / (self.n_frames - 1)
        stated = self._stated_step
        return stated if abs(stated - mean) * (self.n_frames - 1) <= 1 else mean

    @property
    def duration(self) -> float:
        """Seconds from the first frame's beginning to the last one's end."""
        return self.end_tick * float(self.tick)

    @property
    def fps(self) -> float:
        """Frames shown a second, on average."""
        return self.n_frames / self.duration if self.duration > 0 else 0.0

    @property
    def missing_frames(self) -> int:
        """Frames that nobody wrote, where the container has a place for each (AVI), and those that do not come out."""
        places = round(self.end_tick / self.gap) if self.container == "avi" else 0
        return max(places - self.n_frames, len(self.absent))

    @cached_property
    def rank(self) -> np.ndarray:
        """(packets,) int64: the how manyth frame a packet shows, -1 for none. Not for ``by_rank``."""
        rank = np.full(len(self.packets), -1)
        rank[self.order] = np.arange(self.n_frames)
        return rank

    def without(self, packets: set[int]) -> VideoIndex:
        """The same where these packets give no frame."""
        behind = self.first_key + 1
        n_cut = next((k for k in range(len(packets) + 1) if behind + k not in packets), 0)
        cut = set(range(behind, behind + n_cut))
        return replace(self, cut=self.cut | cut, absent=self.absent | (packets - cut))

    def ranked(self) -> VideoIndex:
        """The same where times of presentation are not to be believed."""
        return replace(self, unordered=True)
