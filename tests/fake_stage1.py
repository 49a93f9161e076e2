"""Stage 1 with a fake decoder and encoder, whose results follow from the bytes of a file. It counts the decoded clips."""

import contextlib
from collections import Counter

import numpy as np
import xxhash
from make_cache import SPEC

from dtsf.errors import VideoError
from dtsf.pipeline import preprocess as run
from dtsf.pipeline import worker
from dtsf.pipeline.video.clip import Span


def part(span):
    words = ((name, getattr(span, name)) for name in ("start", "end", "first", "last", "fps"))
    return tuple((name, value) for name, value in words if value is not None)


def rows_of(content, span=()):
    """Return frames and embeddings for the bytes and the part of a file."""
    generator = np.random.default_rng(xxhash.xxh3_64_intdigest(content + repr(span).encode()))
    frames = generator.integers(0, 255, (SPEC.frames, SPEC.size, SPEC.size, 3)).astype(np.uint8)
    embeddings = frames[:, : SPEC.grid**2, : SPEC.channels, 0].astype(np.float16)
    return frames, embeddings


class FakeStage1:
    """Replaces decoding and embedding. ``decoded`` counts (content, part)."""

    def __init__(self, patch, root):
        self.decoded = Counter()
        self.before = lambda path: None
        """Called before each clip is decoded; it may raise."""
        self.root = root
        self.device = "cpu"
        patch.setattr(run, "make_spec", lambda settings: SPEC)
        patch.setattr(run, "prepare_encoder", lambda *given: None)
        patch.setattr(worker, "shared_decoders", lambda *given, **named: contextlib.nullcontext())
        patch.setattr(worker, "decode_parallel", lambda decoders, requests: map(self._decode, requests))
        patch.setattr(worker, "load_encoder", lambda *given, **named: self)

    def _decode(self, request):
        self.before(request.path)
        content = read(request.path)
        span = part(request.span)
        self.decoded[content, span] += 1
        if content.startswith(b"bad"):
            return VideoError("not a video", "unreadable")
        frames, _ = rows_of(content, span)
        facts = {"frame_index": [0, 1], "frame_time": [0.0, 0.5], "status": "ok", "reason": ""}
        return frames, facts

    def embed(self, frames):
        return frames[:, : SPEC.grid**2, : SPEC.channels, 0].astype(np.float16)


def read(path):
    """Return the bytes of a file, or of all pictures in a folder."""
    if path.is_dir():
        return b"".join(file.name.encode() + file.read_bytes() for file in sorted(path.iterdir()))
    return path.read_bytes()


__all__ = ["FakeStage1", "Span", "part", "read", "rows_of"]
