"""Open a video file, choose among its streams, and ask how long it says it is.

**Which stream**: the largest picture that is no cover; of equals the one marked as default, then the first.

**How long**: AVI, MP4/MOV and Matroska write it at the front, which tells a file that was cut off. FFmpeg reads a file as far as
it goes and says nothing of what is missing; a cut that only takes the index leaves every frame readable. The formats: RIFF
(4-byte size of everything behind), ISO 14496-12 (a chain of sized boxes), EBML (RFC 8794).
"""

from __future__ import annotations

import os
import struct
from typing import IO, TYPE_CHECKING, Any

from dtsf.cache.status import Status
from dtsf.errors import VideoError
from dtsf.pipeline.video.clip import reencode_hint, short

if TYPE_CHECKING:
    from pathlib import Path

LARGEST = 1 << 26
"""Pixels of the largest picture that is decoded, 8192 x 8192: a decoder holds up to some twenty of them."""
PLAYLISTS = frozenset({"concat", "concatf", "dash", "hls", "image2", "image2pipe", "imf", "lavfi"})
"""Formats that name other files: never followed."""

EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def open_video(path: Path) -> Any:
    """Open a file, and nothing but that file. Raises VideoError: ``unreadable``."""
    import av

    try:
        # "file:" since a name may hold a colon; the white list since a playlist may name the network.
        container = av.open(f"file:{path}", metadata_errors="ignore", options={"protocol_whitelist": "file"})
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path} cannot be opened: {short(error)}", Status.UNREADABLE) from error
    if PLAYLISTS & set(container.format.name.split(",")):
        container.close()
        raise VideoError(f"{path} is a list of other files ({container.format.name}), not a video", Status.UNREADABLE)
    return container


def choose_stream(container: Any, path: Path) -> Any:
    """The stream with the largest picture that is no cover; of equals the default one, then the first. Raises VideoError:
    ``unreadable``: none, or one that nothing here decodes or that is too large.
    """
    from av.stream import Disposition

    covers = Disposition.attached_pic | Disposition.still_image | Disposition.timed_thumbnails
    streams = [stream for stream in container.streams if stream.type == "video" and not stream.disposition & covers]
    if not streams:
        raise VideoError(f"{path} has no video stream", Status.UNREADABLE)

    def worth(stream: Any) -> tuple[int, bool, int]:
        context = stream.codec_context
        area = context.width * context.height if context is not None else 0
        return area, bool(stream.disposition & Disposition.default), -stream.index

    stream = max(streams, key=worth)
    if stream.codec_context is None:
        raise VideoError(f"{path} has a codec that nothing here decodes; {reencode_hint(path)}", Status.UNREADABLE)
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > LARGEST:
        raise VideoError(f"{path} declares pictures of {width} x {height}: too large", Status.UNREADABLE)
    return stream


def declared_size(path: Path) -> int | None:
    """Bytes that the file should have at least, or None where its format or its writer does not say."""
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] == b"RIFF" and len(head) >= 8:
            size: int = struct.unpack("<I", head[4:8])[0]
            # Writers that could not go back leave 0 or the largest number.
            return None if size in (0, 0xFFFFFFFF) else 8 + size
        if head[:4] == EBML:
            return _size_of_matroska(file)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip"):
            return _size_of_boxes(file, os.fstat(file.fileno()).st_size)
    return None


def _size_of_boxes(file: IO[bytes], held: int) -> int | None:
    """Follow the chain of boxes to where it ends, or to the first box that ends behind the end of the file."""
    position = 0
    while position + 8 <= held:
        file.seek(position)
        head = file.read(16)
        size = struct.unpack(">I", head[:4])[0]
        if size == 1 and len(head) == 16:
            size = struct.unpack(">Q", head[8:])[0]
        if size < 8:  # 0: to the end of the file; less: not a box
            return None
        position += size
    return position


def _size_of_matroska(file: IO[bytes]) -> int | None:
    file.seek(4)
    header = _variable_number(file)
    if header is None or header > 4096:  # real ones have about forty bytes
        return None
    file.seek(header, os.SEEK_CUR)
    if file.read(4) != SEGMENT:
        return None
    segment = _variable_number(file)
    return None if segment is None else file.tell() + segment


def _variable_number(file: IO[bytes]) -> int | None:
    """EBML's number: leading zero bits of the first byte say how many bytes follow; all ones is 'unknown'."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    follow = 8 - first[0].bit_length()
    rest = file.read(follow)
    bits = 7 * (follow + 1)
    value = int.from_bytes(first + rest, "big") & ((1 << bits) - 1)
    return None if len(rest) < follow or value == (1 << bits) - 1 else value
