"""Entry point of the decoder process. It imports little, to start fast."""

from __future__ import annotations

import contextlib
import ctypes
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
    """Read one request per line from stdin and write one answer per line to stdout, until stdin ends."""
    if sys.platform.startswith("linux"):
        # The kernel ends this process with its parent, even if it hangs. 1: PR_SET_PDEATHSIG.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() != settings["parent"]:  # the parent ended before the call
            sys.exit()
    # Answers get their own descriptor, because a library may write to stdout.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from dtsf.pipeline.video.decode import decode_clip, duration_of

    shared = np.frombuffer(mmap.mmap(settings["fd"], 0), np.uint8).reshape(settings["shape"])
    for line in sys.stdin:
        request = json.loads(line)
        path, span = Path(request["path"]), Span(**request["span"])
        try:
            if request["duration_only"]:
                answer: dict[str, Any] = {"duration": duration_of(path, span)}
            else:
                clip = decode_clip(path, span=span, **settings["decode"])
                shared[request["slot"]] = clip.frames
                answer = clip.facts()
        except VideoError as error:
            answer = {"error": str(error), "status": str(error.status)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        serve(json.loads(sys.argv[1]))
