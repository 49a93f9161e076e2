"""Packets into the decoder and frames out of it, each frame with the number of the packet that it is of."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from dtsf.pipeline.video.clip import short
from dtsf.pipeline.video.container import open_video
from dtsf.pipeline.video.index import NO_TIME, VideoIndex

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SOUGHT = 3000
"""Packets that are looked through behind the place where a container says that a key frame is."""
CLOCKED, EARLY = frozenset({"mpeg", "mpegts"}), 2
"""Containers without a table of key frames, and by how many seconds too early they are sought."""


class PacketSource:
    """The packets of one file for its decoder, from any of them on. ``kept``: its packets, where they are in memory.
    ``strict``: have the codec report damage instead of concealing it.
    """

    def __init__(self, container: Any, index: VideoIndex, kept: list[Any] | None, *, strict: bool = False) -> None:
        self._container, self._index, self._kept, self._strict = container, index, kept, strict
        self.errors: dict[int, str] = {}
        """Messages of the codec about packets that it could not read, since :meth:`frames` was called."""

    @property
    def path(self) -> Path:
        """The file."""
        return self._index.path

    def frames(self, first: int, needed: set[int] | None = None) -> Iterator[tuple[int, Any]]:
        """Decode from packet ``first`` on: (number of the packet, frame) as frames come out, in order of presentation.

        Where it is said which packets' frames are ``needed``, others that no frame refers to are not decoded.
        """
        import av

        context = self._container.streams[self._index.stream].codec_context
        if context.is_open:
            context.flush_buffers()
        else:
            context.thread_count = 1
            if self._strict:
                context.options = {"err_detect": "explode"}
        context.skip_frame = "DEFAULT"
        self.errors = {}
        came = first - 1
        for number, packet in self._packets(first):
            if packet is not None:
                # A decoder hands the time of a packet to its frame, whatever the time means.
                packet.pts, packet.dts = number, None
                if needed is not None:
                    context.skip_frame = "DEFAULT" if number in needed else "NONREF"
            try:
                frames = context.decode(packet)
            except av.FFmpegError as error:
                self.errors[number] = short(error)
                continue
            for frame in frames:
                came = came + 1 if frame.pts is None else frame.pts
                yield came, frame

    def _packets(self, first: int) -> Iterator[tuple[int, Any]]:
        n_packets = len(self._index.packets)
        if self._kept is not None:
            yield from enumerate(self._kept[first:], first)
        else:
            yield from zip(range(first, n_packets), self._read(first), strict=False)
        yield n_packets, None  # empties the decoder

    def _read(self, first: int) -> Iterator[Any]:
        """Read on from packet ``first``: where the container's own seeking finds it, else from the beginning."""
        if first > self._index.first_key:
            yield from self._sought(first)
            # Nothing was found if this point is reached with nothing read: a found one is read to the end.
            if self._found:
                return
        with open_video(self.path) as again:
            ahead = (packet for packet in again.demux(again.streams[self._index.stream]) if packet.size)
            yield from islice(ahead, first, None)

    def _sought(self, first: int) -> Iterator[Any]:
        import av

        self._found = False
        packets, stream = self._index.packets, self._container.streams[self._index.stream]
        times = (packets.dts, packets.pts) if self._index.container == "avi" else (packets.pts, packets.dts)
        time = next((int(t[first]) for t in times if t[first] != NO_TIME), None)
        if time is None:
            return
        try:
            # Where there is no table of key frames, seeking finds a packet of about that time.
            early = 0 if self._index.container not in CLOCKED else int(EARLY / stream.time_base)
            self._container.seek(time - int(packets.moved[first]) - early, stream=stream)
            ahead = (packet for packet in self._container.demux(stream) if packet.size)
            for packet in islice(ahead, SOUGHT):
                if self._is(packet, first):
                    self._found = True
                    yield packet
                    yield from ahead
                    return
        except (av.FFmpegError, OSError):
            return

    def _is(self, packet: Any, number: int) -> bool:
        packets = self._index.packets
        if packet.size != packets.size[number] or (packet.pos or -1) != packets.pos[number]:
            return False
        # AVI's times of presentation are guesses, and others after a jump.
        return self._index.container == "avi" or packet.pts == packets.pts[number] - packets.moved[number]
