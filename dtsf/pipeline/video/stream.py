"""Frames of one camera of a recording at the moments of a grid, decoded once and in order. Entry point of its decoder process.

Moment ``k`` is at ``k / rate`` seconds of the recording's clock. A finished file is read by its index, as clips are. What is still
being written (a file that grows, standard input, a network stream) has none: there the container's times count.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import select
import signal
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from dtsf.errors import VideoError
from dtsf.pipeline.video.clip import frames_shown, short_message
from dtsf.pipeline.video.container import MAX_PIXELS, PLAYLISTS, open_video
from dtsf.pipeline.video.crop import Renderer, cut_region, ignored_mask
from dtsf.pipeline.video.decode import MAX_CORRECTIONS, checked_index, probe
from dtsf.pipeline.video.frames import IndexCorrected, PacketSource, frames_from, start_packet
from dtsf.pipeline.video.stretches import LONGEST, cut_stretches

ANSWER, SILENT = 10.0, 2.0  # seconds in which an address must answer; after which a silent one is opened again
POLL = 0.2  # seconds between looks at a file that grows
Range = tuple[int, int]  # first and last moment
Shown = tuple[int, Any]  # number of a moment, and the frame that is shown then


class Growing:
    """File or pipe that is still being written. A read waits for data until nothing came for ``idle`` seconds."""

    def __init__(self, descriptor: int, idle: float) -> None:
        self.stopped = False
        self._descriptor, self._idle = descriptor, idle

    def read(self, n: int) -> bytes:
        """Return up to ``n`` bytes; none at the end."""
        since = time.monotonic()
        while not self.stopped:
            # A pipe waits here for data; a file is always ready.
            if select.select([self._descriptor], [], [], POLL)[0]:
                data = os.read(self._descriptor, n)
                if data:
                    return data
                if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
                    return b""  # a closed pipe has no more
                time.sleep(POLL)
            if time.monotonic() - since > self._idle:
                return b""
        return b""


def shown_frames(
    chapters: list[dict[str, Any]], rate: float, ranges: Sequence[Range], damaged: set[int] | None = None
) -> Iterator[Shown]:
    """Yield the moments of ranges (in order) of the chapters ``{path, start, stop}`` with the frame that is shown at each.
    ``damaged``: gets the moments of damaged frames, each before the frames behind it are yielded.
    """
    damaged = set() if damaged is None else damaged
    shown, follows = None, -1

    def at_moments(seconds: list[float], moments: np.ndarray) -> set[int]:
        return {int(np.clip((start + one) * rate, moments[0], moments[-1])) for one in seconds}

    for chapter in chapters:
        path, start = Path(chapter["path"]), chapter["start"]
        begin, end = (math.ceil(chapter[name] * rate - 1e-6) for name in ("start", "stop"))
        parts = [np.arange(max(first, begin), min(last + 1, end)) for first, last in ranges]
        if not any(map(len, parts)):
            continue
        with open_video(path) as container:
            index, packets = checked_index(path, container)
            runs: list[np.ndarray] = []
            last_packet = -1
            for part_M in filter(len, parts):
                numbers = frames_shown(index, part_M / rate - start)
                # Where no key frame is between two ranges, decoding goes on.
                if runs and start_packet(index, int(numbers[0])) <= last_packet:
                    runs[-1] = np.concatenate([runs[-1], part_M])
                else:
                    runs.append(part_M)
                last_packet = index.order[numbers[-1]]
            for moments in runs:
                at, frame = 0, None
                for _ in range(MAX_CORRECTIONS):
                    numbers = frames_shown(index, moments / rate - start)
                    source, before, first = PacketSource(container, index, packets), index, int(numbers[at])
                    frame = None
                    try:
                        for number, next_frame in frames_from(source, index, first, set(numbers[at:].tolist())):
                            damaged |= at_moments(source.take_damaged(index, first), moments)
                            # A lost frame is replaced by the one before it, as a player does.
                            while frame is not None and at < len(moments) and numbers[at] < number:
                                yield int(moments[at]), frame
                                at += 1
                            frame = next_frame
                            if number >= numbers[-1]:
                                break
                        break
                    except IndexCorrected as corrected:
                        index = corrected.args[0]
                    finally:
                        damaged |= at_moments(source.take_damaged(before, first), moments)
                if frame is None:
                    # Nothing of these moments decodes: the last frame before them stays, so that time goes on.
                    damaged |= set(moments[at:].tolist())
                    frame = shown if moments[0] == follows else None
                for moment in moments[at:].tolist() if frame is not None else ():
                    yield moment, frame
                shown, follows = frame, int(moments[-1]) + 1


def live_frames(
    source: str,
    rate: float,
    offset: float,
    idle: float,
    growing: list[Growing],
    stopped: Sequence[bool] = (),
    damaged: set[int] | None = None,
) -> Iterator[Shown]:
    """Yield the moments of a camera that is still filming, each with the frame that is shown. ``offset``: of its first moment.

    ``source``: ``-`` (standard input), a URL, or a file. A URL that ends is opened again, until nothing came for ``idle`` seconds:
    meanwhile its last frame is shown. ``stopped``: not empty ends that. ``damaged``: gets the moments at which a frame does not
    decode; the one before it is shown. Raises VideoError: it cannot be read while it is written.
    """
    damaged = set() if damaged is None else damaged
    before, number = None, 0
    first, heard = 0.0, time.monotonic()  # when the first and the last frame came
    now = begin = offset  # seconds of the recording's clock: of the last frame, and at which the camera was opened
    while not stopped:
        try:
            opened = True
            for seconds, frame in _received(source, idle, growing):
                heard = time.monotonic()
                if frame is None:
                    if before is not None:
                        damaged.add(number)
                    continue
                if before is None:
                    first, number = heard, math.ceil((offset + seconds) * rate - 1e-6)
                elif opened:
                    begin = max(now, offset + heard - first) - seconds
                opened = False
                now = begin + seconds
                while before is not None and number / rate < now - 1e-6:
                    yield number, before
                    number += 1
                before = frame
        except VideoError:
            if before is None:
                raise
        if "://" not in source or before is None or time.monotonic() - heard > idle:
            break
        time.sleep(POLL)
    if before is not None:
        yield number, before


def _received(source: str, idle: float, growing: list[Growing]) -> Iterator[tuple[float, Any]]:
    """Yield the frames of a camera that is still filming with their seconds, from its first one on. None for a damaged frame."""
    import av

    options = {"protocol_whitelist": "file,pipe,rtsp,rtsps,rtp,udp,tcp,tls,srtp"}
    since = time.monotonic()
    try:
        if "://" in source:
            extra = {"rtsp_transport": "tcp"} if source.startswith("rtsp") else {}
            container: Any = av.open(source, options=options | extra, timeout=(ANSWER, min(idle, SILENT)))
        else:
            descriptor = 0 if source == "-" else os.open(source, os.O_RDONLY)
            growing.append(Growing(descriptor, idle))
            container = av.open(growing[0], options=options, metadata_errors="ignore")
    except (av.FFmpegError, OSError, ValueError) as error:
        if "://" not in source:
            why, hint = (
                short_message(error),
                "while it is written, use a format without an index at its end: .mkv, .ts, or fragmented MP4",
            )
        else:
            why = f"no answer in {ANSWER:g} s" if time.monotonic() - since >= ANSWER else short_message(error)
            hint = f"check the address, and that the camera sends: ffprobe {source}"
        raise VideoError(f"{source} cannot be read: {why}; {hint}") from error
    with container:
        if PLAYLISTS & set(container.format.name.split(",")) or not container.streams.video:
            raise VideoError(f"{source} ({container.format.name}) is no video")
        stream = container.streams.video[0]
        stream.thread_count = 1
        if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
            raise VideoError(f"{source} is {stream.codec_context.width} x {stream.codec_context.height}: too large")
        zero = None if container.start_time is None else container.start_time / av.time_base
        gap = float(1 / (stream.average_rate or 25))
        now = -gap
        with contextlib.suppress(av.FFmpegError):  # the end of what was sent
            for packet in container.demux(stream):
                try:
                    frames = packet.decode()
                except av.InvalidDataError:
                    yield now, None
                    continue
                for frame in frames:
                    now = now + gap if frame.time is None else float(frame.time)
                    zero = now if zero is None else zero
                    yield now - zero, frame


def serve(request: dict[str, Any]) -> None:
    """Write the stretches of one camera to stdout: a line of JSON each, then the frames. A line of stdin has the ranges that
    are wanted next; behind each range is a line with ``end``. ``live``: all that comes is one range. An ``error`` is the last line.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() != request["parent"]:
            sys.exit()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    rate, size, crop, live = request["rate"], request["size"], request["crop"], request["live"]
    region, ignore = request["region"], request["ignore"]
    growing: list[Growing] = []
    stopped: list[bool] = []
    damaged: set[int] = set()

    def stop(*_: object) -> None:
        stopped.append(True)
        for source in growing:
            source.stopped = True

    signal.signal(signal.SIGTERM, stop)

    def answer(line: dict[str, Any], frames_FSSC: np.ndarray | None = None) -> None:
        answers.write(json.dumps(line | {"damaged": sorted(damaged)}).encode() + b"\n")
        damaged.clear()
        if frames_FSSC is not None:
            answers.write(np.ascontiguousarray(frames_FSSC).data)
        answers.flush()

    def rendered(render: Renderer, shown: Iterator[Shown]) -> Iterator[tuple[int, np.ndarray]]:
        last, picture = None, np.empty(0)
        for number, frame in shown:
            if frame is not last:
                last, picture = frame, cut_region(render(frame), render.shown, region)
            yield number, picture
            if stopped:
                return

    def asked() -> Iterator[tuple[Sequence[Range], Iterator[Shown]]]:
        if live is not None:
            moments = live_frames(live["source"], rate, live["offset"], live["idle"], growing, stopped, damaged)
            yield [(0, sys.maxsize)], moments
            return
        chapters = json.loads(sys.stdin.readline() or "[]")
        for line in sys.stdin:
            ranges = json.loads(line)
            yield ranges, shown_frames(chapters, rate, ranges, damaged)

    try:
        aspect = Fraction(1) if live is not None else probe(Path(request["name"])).aspect
        render = Renderer(Path(request["name"]), aspect, size, crop, region, math.ceil(LONGEST * rate))
        for ranges, shown in asked():
            pictures = rendered(render, shown)
            held: list[Shown] = []

            def until(last: int, pictures: Iterator[Shown] = pictures, held: list[Shown] = held) -> Iterator[Shown]:
                while held and held[0][0] <= last:
                    one = held.pop()
                    yield one
                    held += islice(pictures, int(one[0] < last))

            for _, last in ranges:
                held += islice(pictures, int(not held))
                if held and held[0][0] <= last:
                    ignored_HW = ignored_mask(held[0][1][None], render.shown, region, ignore)
                    for stretch in cut_stretches(until(last), rate, size, crop, ignored_HW):
                        answer({"first": stretch.first, "n": len(stretch.frames_FSSC)}, stretch.frames_FSSC)
                answer({"end": True})
    except VideoError as error:
        answer({"error": str(error), "status": str(error.status)})


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        serve(json.loads(sys.argv[1]))
