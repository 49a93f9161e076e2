"""The child's side of :mod:`dtsf.pipeline.video.decoder_process`: as few imports as it can do with, because it is waited for."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from dtsf.errors import VideoError
from dtsf.pipeline.video.clip import Span


def serve(settings: dict[str, Any]) -> None:
    """The child: a request a line from stdin, an answer a line to stdout, until the parent is gone."""
    # A library that writes to stdout must not write into the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from dtsf.pipeline.video.decode import decode_clip, duration_of

    n_frames, size = settings["n_frames"], settings["size"]
    shape = (settings["slots"], n_frames, size, size, 3)
    shared = np.frombuffer(mmap.mmap(settings["fd"], int(np.prod(shape))), np.uint8).reshape(shape)
    how = {name: settings[name] for name in ("check", "crop", "decoder")}
    for line in sys.stdin:
        request = json.loads(line)
        path, span = Path(request["path"]), Span(**request["span"])
        try:
            if request["look"]:
                answer: dict[str, Any] = {"duration": duration_of(path, span)}
            else:
                clip = decode_clip(path, n_frames, size, span=span, **how)
                shared[request["slot"]] = clip.frames
                answer = clip.facts()
        except VideoError as error:
            answer = {"error": str(error), "verdict": str(error.verdict)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def die_with_parent(parent: int) -> None:
    """Linux: let the kernel end this process with its parent; one that hangs would outlive a parent that was killed.
    ``parent``: its process id, as it says itself: in a container it may well be 1.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    parent_death_signal = 1
    ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before the kernel was asked
        sys.exit()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        given = json.loads(sys.argv[1])
        die_with_parent(given["parent"])
        serve(given)
