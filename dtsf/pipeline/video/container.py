"""Open a video file, select its video stream, and read the file size that its header declares.

The selected stream has the largest frames and is not a cover; ties go to the default stream, then to the first.

The declared size reveals a file that was cut off: FFmpeg reads such a file without an error, and a cut that only removes the
index leaves every frame readable. Formats: RIFF (4-byte size), ISO 14496-12 (chain of sized boxes), EBML (RFC 8794).
"""

from __future__ import annotations

import os
import struct
from typing import IO, TYPE_CHECKING, Any

from dtsf.errors import VideoError
from dtsf.pipeline.video.clip import reencode_hint, short_message

if TYPE_CHECKING:
    from pathlib import Path

MAX_PIXELS = 1 << 26
"""Largest frame that is decoded, 8192 x 8192 pixels: a decoder buffers about twenty frames."""
PLAYLISTS = frozenset({"concat", "concatf", "dash", "hls", "image2", "image2pipe", "imf", "lavfi"})
"""Formats that refer to other files. They are refused."""
EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def open_video(path: Path) -> Any:
    """Open one file with PyAV. Raises VideoError: ``unreadable``."""
    import av

    try:
        # "file:" because a name may contain a colon; the white list because a playlist may name a network address.
        container = av.open(f"file:{path}", metadata_errors="ignore", options={"protocol_whitelist": "file"})
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path} cannot be opened: {short_message(error)}") from error
    if PLAYLISTS & set(container.format.name.split(",")):
        container.close()
        raise VideoError(f"{path} is a list of other files ({container.format.name}), not a video")
    return container


def select_stream(container: Any, path: Path) -> Any:
    """Return the video stream with the largest frames. Raises VideoError: ``unreadable``."""
    from av.stream import Disposition

    covers = Disposition.attached_pic | Disposition.still_image | Disposition.timed_thumbnails
    streams = [stream for stream in container.streams if stream.type == "video" and not stream.disposition & covers]
    if not streams:
        raise VideoError(f"{path} has no video stream")

    def preference(stream: Any) -> tuple[int, bool, int]:
        context = stream.codec_context
        area = context.width * context.height if context is not None else 0
        return area, bool(stream.disposition & Disposition.default), -stream.index

    stream = max(streams, key=preference)
    if stream.codec_context is None:
        raise VideoError(f"{path} has a codec that PyAV cannot decode; {reencode_hint(path)}")
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > MAX_PIXELS:
        raise VideoError(f"{path} declares frames of {width} x {height}: too large")
    return stream


def declared_size(path: Path) -> int | None:
    """Return the minimum file size in bytes by the header, or None if the format or the writer declares none."""
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] == b"RIFF" and len(head) >= 8:
            size: int = struct.unpack("<I", head[4:8])[0]
            # A writer that cannot seek back leaves 0 or the largest number.
            return None if size in (0, 0xFFFFFFFF) else 8 + size
        if head[:4] == EBML:
            return _matroska_size(file)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip"):
            return _boxes_size(file, os.fstat(file.fileno()).st_size)
    return None


def _boxes_size(file: IO[bytes], n_bytes: int) -> int | None:
    """Follow the chain of boxes up to the end of the last one, which may lie behind the end of the file."""
    position = 0
    while position + 8 <= n_bytes:
        file.seek(position)
        head = file.read(16)
        size = struct.unpack(">I", head[:4])[0]
        if size == 1 and len(head) == 16:
            size = struct.unpack(">Q", head[8:])[0]
        if size < 8:  # 0: to the end of the file; less: not a box
            return None
        position += size
    return position


def _matroska_size(file: IO[bytes]) -> int | None:
    file.seek(4)
    header = _ebml_number(file)
    if header is None or header > 4096:  # usual headers have about forty bytes
        return None
    file.seek(header, os.SEEK_CUR)
    if file.read(4) != SEGMENT:
        return None
    segment = _ebml_number(file)
    return None if segment is None else file.tell() + segment


def _ebml_number(file: IO[bytes]) -> int | None:
    """Read a number of variable length: the leading zero bits of the first byte count the bytes that follow; all ones is None."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    n_more = 8 - first[0].bit_length()
    rest = file.read(n_more)
    bits = 7 * (n_more + 1)
    value = int.from_bytes(first + rest, "big") & ((1 << bits) - 1)
    return None if len(rest) < n_more or value == (1 << bits) - 1 else value
