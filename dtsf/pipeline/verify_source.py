"""``dtsf cache verify --source``: decode again, and name the clips whose pictures are not those that were embedded."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import xxhash

from dtsf.cache.records import Frozen
from dtsf.errors import ConfigError, VideoError
from dtsf.pipeline.video.decode import decoder_name
from dtsf.pipeline.video.decoder_process import Decoder, DecodeRequest, DecodeSettings, decode_all
from dtsf.pipeline.worker import span_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dtsf.cache.reader import CachedDataset


class Mismatch(Frozen):
    """A clip that does not give the pictures any more that its row was computed from."""

    clip: str
    path: str
    reason: str


class Recheck(Frozen):
    """What decoding again came to."""

    checked: int
    """Clips that were decoded again."""
    unlike: tuple[Mismatch, ...]
    unknown: int
    """Clips of an older layout, whose pictures' checksum nobody kept."""
    decoder: str
    """That of now. Another one than the cache's may round otherwise, and every clip then differs."""

    @property
    def ok(self) -> bool:
        """Whether all give the same pictures."""
        return not self.unlike


def verify_source(
    data: CachedDataset,
    root: Path,
    *,
    sample: float = 1.0,
    deadline: float = 60.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Recheck:
    """Decode clips again and compare the checksum of their pictures with what the record has. ``sample``: share of the clips,
    evenly over the catalog. Raises ConfigError: the cache was made with decord and it is not here.
    """
    spec = data.spec
    kind = "decord" if spec.decoder.startswith("decord") else "pyav"
    held = [(clip, data.records[clip.id][1]) for clip in data.clips]
    known = [(clip, record) for clip, record in held if record.frames_hash]
    if not 0 < sample <= 1:
        raise ConfigError(f"--sample ({sample:g}) must be a share above 0 and up to 100%")
    count = math.ceil(sample * len(known))
    chosen = [known[k * len(known) // count] for k in range(count)]
    requests = [DecodeRequest(root / clip.path, span_of(record.source, spec)) for clip, record in chosen]
    unlike: list[Mismatch] = []
    settings = DecodeSettings(spec.frames, spec.size, deadline=deadline, crop=spec.crop, decoder=kind)
    with Decoder(settings) as decoder:
        for k, ((clip, record), item) in enumerate(zip(chosen, decode_all(decoder, requests), strict=True), 1):
            if isinstance(item, VideoError):
                unlike.append(Mismatch(clip=clip.id, path=clip.path, reason=f"{item.verdict}: {item}"))
            elif xxhash.xxh3_64_hexdigest(item[0].tobytes()) != record.frames_hash:
                unlike.append(Mismatch(clip=clip.id, path=clip.path, reason="it gives other pictures"))
            if on_progress is not None:
                on_progress(k, count)
    return Recheck(checked=count, unlike=tuple(unlike), unknown=len(held) - len(known), decoder=decoder_name(kind))
