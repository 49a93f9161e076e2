"""Index of a video file: the packets with frames that a player shows, from the first key frame on, and their times. A packet that
follows this key frame but precedes it in time (a cut open GOP) is shown only if it decodes. A time is the PTS in ticks of the
stream. AVI has no PTS, raw streams have no times: there the decoder gives the order, and the DTS the times. Packet numbers are in
decoding order, frame numbers in presentation order; both start at 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

NO_TIME = np.iinfo(np.int64).min
REORDERED = 32  # upper bound of the number of frames that a decoder buffers to reorder them
PACKET = np.dtype(
    [(name, "i8") for name in ("pts", "dts", "duration", "n_bytes", "pos", "shift")] + [("key", "?"), ("hidden", "?")]
)
# pos: byte, or -1. hidden: by an edit list, or only a reference. shift: ticks added to pts and dts behind clock jumps.


@dataclass(frozen=True)
class VideoIndex:
    """Packets of a video stream, and what its header declares about frames."""

    path: Path
    stream: int
    codec: str
    container: str
    aspect: Fraction  # width of a pixel over its height
    tick: Fraction  # seconds per tick
    rate: Fraction  # frame rate in the header, 0 if there is none
    declared_frames: int  # number of frames in the header, 0 if there is none
    packets: np.recarray[Any, Any]  # (packets,) PACKET: the non-empty packets of the stream in decoding order
    zero: Fraction  # time of the stream in seconds at which the file begins for a player: its earliest stream, as FFmpeg says
    unreliable_pts: bool  # True if presentation times are guesses or contradict the decoder
    no_pts: bool  # True if the format has no times: frames follow each other at the frame rate
    cut: frozenset[int] = frozenset()  # packets behind the first key frame, earlier in time, that lack a reference
    absent: frozenset[int] = frozenset()  # other packets that gave no frame when they were decoded

    @cached_property
    def first_key(self) -> int:
        """Packet number of the first key frame; 0 if no packet is marked as one."""
        return int(np.argmax(self.packets.key))

    @cached_property
    def shown(self) -> np.ndarray:
        """(packets,) bool: True for packets with a frame that is shown."""
        shown: np.ndarray = ~self.packets.hidden
        shown[: self.first_key] = False
        shown[list(self.absent | self.cut)] = False
        return shown

    @cached_property
    def keys(self) -> np.ndarray:
        """Numbers of the packets that are shown key frames."""
        return np.flatnonzero(self.packets.key & self.shown)

    @cached_property
    def order_from_decoder(self) -> bool:
        """True if only the decoder gives the order of frames."""
        return self.unreliable_pts or self.no_pts or bool((self.packets.pts[self.shown] == NO_TIME).any())

    @cached_property
    def order(self) -> np.ndarray:
        """(frames,) packet number of each frame; in decoding order if ``order_from_decoder``."""
        packets = np.flatnonzero(self.shown)
        return packets if self.order_from_decoder else packets[np.argsort(self.packets.pts[packets], kind="stable")]

    @cached_property
    def frame_number(self) -> np.ndarray:
        """(packets,) int64: frame number of each packet, -1 for none. Invalid if ``order_from_decoder``."""
        numbers = np.full(len(self.packets), -1)
        numbers[self.order] = np.arange(self.n_frames)
        return numbers

    @cached_property
    def n_frames(self) -> int:
        """Number of shown frames."""
        return int(self.shown.sum())

    @cached_property
    def ticks(self) -> np.ndarray:
        """(frames,) int64: time of each frame in ticks; the first is 0."""
        packets, dts = np.flatnonzero(self.shown), self.packets.dts
        if self.order_from_decoder:
            # Frames that were cut away would have the first decoding times.
            times = np.sort(dts[[*packets, *self.cut]])[len(self.cut) :]
        else:
            times = np.sort(self.packets.pts[packets])
        times = times - times[:1]
        step = self._header_step
        by_rate = np.round(np.arange(len(times)) * step).astype(np.int64)
        if self.no_pts or (packets.size and self.order_from_decoder and dts[packets].min() == NO_TIME):
            return by_rate
        # An MPEG program stream stores the times of some frames. FFmpeg guesses the others, with errors of up to one frame.
        if self.container == "mpeg" and len(times) and np.abs(times - by_rate).max() <= step + 1:
            return by_rate
        return np.asarray(times)

    @cached_property
    def begin(self) -> float:
        """Seconds of the file at which its first shown frame begins. A file begins with its earliest stream, often the sound."""
        pts, dts = self.packets.pts, self.packets.dts
        shown = np.flatnonzero(self.shown)[:1]
        first = pts[shown if self.order_from_decoder else self.order[:1]]
        if self.container == "avi" or (first == NO_TIME).any():  # AVI's presentation times are guesses
            first = dts[shown]
        if self.no_pts or not len(first) or first[0] == NO_TIME:
            return 0.0
        seconds = float(int(first[0]) * self.tick - self.zero)
        return seconds if seconds > 1e-6 else 0.0  # the zero is rounded to microseconds

    @cached_property
    def _header_step(self) -> float:
        """Ticks between frames by the header's frame rate, or by decoding times if only some packets have one."""
        dts = self.packets.dts
        known = np.flatnonzero(dts != NO_TIME)
        if 1 < len(known) < len(dts) and self.order_from_decoder and dts[known[-1]] > dts[known[0]]:
            return float(dts[known[-1]] - dts[known[0]]) / int(known[-1] - known[0])
        return float(1 / ((self.rate or 25) * self.tick))

    @cached_property
    def gap(self) -> float:
        """Median of the ticks between frames."""
        return float(max(np.median(np.diff(self.ticks)), 1e-9)) if self.n_frames > 1 else self._header_step

    @cached_property
    def step(self) -> float:
        """Mean of the ticks between frames; the header's value if the two agree."""
        mean = float(self.ticks[-1]) / (self.n_frames - 1)
        return self._header_step if abs(self._header_step - mean) * (self.n_frames - 1) <= 1 else mean

    @cached_property
    def is_steady(self) -> bool:
        """True if the frame rate is constant, within the resolution of the clock."""
        if self.n_frames < 2:
            return True
        return bool((np.abs(self.ticks - self.step * np.arange(self.n_frames)) <= 1).all() and self.ticks[-1] > 0)

    @cached_property
    def end_tick(self) -> float:
        """End of the last frame in ticks."""
        if self.n_frames < 2:
            return self.gap * self.n_frames
        if self.is_steady:
            return self.step * self.n_frames
        lengths = self.packets.duration[self.order]
        # Matroska stores one length for all frames. If it differs from the usual gap, it is wrong for the last frame too.
        is_valid = lengths[-1] > 0 and abs(float(np.median(lengths)) - self.gap) <= 1
        return float(self.ticks[-1]) + float(lengths[-1] if is_valid else self.ticks[-1] - self.ticks[-2] or self.gap)

    @property
    def duration(self) -> float:
        """Seconds from the start of the first frame to the end of the last one."""
        return self.end_tick * float(self.tick)

    @property
    def fps(self) -> float:
        """Mean frame rate."""
        return self.n_frames / self.duration if self.duration > 0 else 0.0

    @property
    def missing_frames(self) -> int:
        """Number of frames that were never written (AVI counts them) or that gave no picture."""
        counted = round(self.end_tick / self.gap) if self.container == "avi" else 0
        return max(counted - self.n_frames, len(self.absent))

    def without(self, packets: set[int]) -> VideoIndex:
        """Return the index without the frames of these packets."""
        behind = self.first_key + 1
        n_cut = next((k for k in range(len(packets) + 1) if behind + k not in packets), 0)
        cut = set(range(behind, behind + n_cut))
        return replace(self, cut=self.cut | cut, absent=self.absent | (packets - cut))
