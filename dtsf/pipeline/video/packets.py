"""Send packets to the decoder, and return its frames, each with the number of its packet."""

from __future__ import annotations

from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

from dtsf.pipeline.video.clip import short_message
from dtsf.pipeline.video.container import open_video
from dtsf.pipeline.video.index import NO_TIME, VideoIndex

if TYPE_CHECKING:
    from collections.abc import Iterator

SEARCHED = 3000
"""Maximum number of packets between the position of a seek and the key frame."""
WITHOUT_KEY_TABLE, EARLY = frozenset({"mpeg", "mpegts"}), 2
"""Formats without a table of key frames, and the seconds by which a seek aims before the key frame."""


class PacketSource:
    """The packets of one file for its decoder.

    ``kept``: the packets if they are in memory, else None. ``strict``: make the codec report damage instead of concealing it.
    """

    def __init__(self, container: Any, index: VideoIndex, kept: list[Any] | None, *, strict: bool = False) -> None:
        self._container, self._index, self._kept, self._strict = container, index, kept, strict
        self.errors: dict[int, str] = {}
        """Messages of the codec by packet number, since the last call of :meth:`frames`."""

    def frames(self, first: int, needed: set[int] | None = None) -> Iterator[tuple[int, Any]]:
        """Decode from packet ``first`` on and yield (packet number, frame) in presentation order.

        ``needed``: numbers of the packets whose frames are used. The decoder skips other packets that no frame refers to.
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
        last = first - 1
        for number, packet in self._packets(first):
            if packet is not None:
                # A decoder copies the PTS of a packet to its frame. So the packet number travels as the PTS.
                packet.pts, packet.dts = number, None
                if needed is not None:
                    context.skip_frame = "DEFAULT" if number in needed else "NONREF"
            try:
                frames = context.decode(packet)
            except av.FFmpegError as error:
                self.errors[number] = short_message(error)
                continue
            for frame in frames:
                last = last + 1 if frame.pts is None else frame.pts
                yield last, frame

    def _packets(self, first: int) -> Iterator[tuple[int, Any]]:
        n_packets = len(self._index.packets)
        if self._kept is not None:
            yield from enumerate(self._kept[first:], first)
        else:
            yield from zip(range(first, n_packets), self._read(first), strict=False)
        yield n_packets, None  # flushes the decoder

    def _read(self, first: int) -> Iterator[Any]:
        """Read packets from ``first`` on: by a seek if it finds the packet, else from the beginning of the file."""
        import av

        found = False
        if first > self._index.first_key:
            with suppress(av.FFmpegError, OSError):
                for k, packet in enumerate(self._after_seek(first)):
                    found = found or self._is_packet(packet, first)
                    if found:
                        yield packet
                    elif k + 1 == SEARCHED:
                        break
        if not found:
            with open_video(self._index.path) as container:
                packets = container.demux(container.streams[self._index.stream])
                yield from islice((packet for packet in packets if packet.size), first, None)

    def _after_seek(self, number: int) -> Iterator[Any]:
        """Seek to a packet and read on; yields nothing if the packet has no time."""
        packets, stream = self._index.packets, self._container.streams[self._index.stream]
        times = (packets.dts, packets.pts) if self._index.container == "avi" else (packets.pts, packets.dts)
        time = next((int(t[number]) for t in times if t[number] != NO_TIME), None)
        if time is None:
            return
        # Without a table of key frames, a seek ends at a packet of about that time.
        early = int(EARLY / stream.time_base) if self._index.container in WITHOUT_KEY_TABLE else 0
        self._container.seek(time - int(packets.shift[number]) - early, stream=stream)
        yield from (packet for packet in self._container.demux(stream) if packet.size)

    def _is_packet(self, packet: Any, number: int) -> bool:
        packets = self._index.packets
        if packet.size != packets.n_bytes[number] or (packet.pos or -1) != packets.pos[number]:
            return False
        # AVI's presentation times are guesses and change after a seek.
        return self._index.container == "avi" or packet.pts == packets.pts[number] - packets.shift[number]
