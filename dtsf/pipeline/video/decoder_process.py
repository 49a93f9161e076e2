"""A child process that decodes, so that what a video does to the decoder it does not do to the run.

A codec can hang, can crash, and can take all memory there is: that ends the process it happens in. So decoding has a process of
its own with a deadline for every clip; a child that is lost costs the clip it was at, and the next clip gets a new one.

Frames cross by shared memory (two slots: the child fills one while the parent embeds the other), everything else as a
line of JSON a clip. The child is a plain ``subprocess``: dask's workers may have no children of ``multiprocessing``.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import mmap
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from dtsf.cache.status import Status
from dtsf.errors import DataError, VideoError
from dtsf.pipeline.video.clip import WHOLE, Span, reencode_hint

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

    from dtsf.pipeline.video.crop import Crop

SLOTS = 2
CLIPS_A_CHILD = 500
"""Clips after which a child is replaced: whatever a codec leaks goes with it, and starting one takes 0.3 s."""


@dataclass(frozen=True)
class DecodeRequest:
    """One clip to decode."""

    path: Path
    span: Span = WHOLE
    look: bool = False
    """Only say how long it lasts: ``duration`` in seconds. No frame is decoded."""


class Decoder:
    """Decodes clips in a child process, which is replaced after :data:`CLIPS_A_CHILD`. A context manager.

    Args:
        deadline: Seconds that one clip may take. Choose more for hour-long files with one key frame.
        check: ``fast``, or ``full`` to decode every frame and refuse clips with frames that the codec flags.
        crop: ``centre``, or ``motion``; see :func:`dtsf.pipeline.video.crop.cut_square`.
    """

    def __init__(
        self,
        n_frames: int,
        size: int,
        *,
        deadline: float = 60.0,
        check: str = "fast",
        crop: Crop = "centre",
        decoder: str = "pyav",
    ) -> None:
        self.shape = (n_frames, size, size, 3)
        self.deadline = deadline
        self.check = check
        self.crop = crop
        self.decoder = decoder
        self._child: subprocess.Popen[bytes] | None = None
        self._asked: tuple[DecodeRequest, int, float] | None = None
        self._slot = 0
        self._clips = 0
        self._buffer = b""
        n_bytes = int(np.prod(self.shape))
        self._file = _room(SLOTS * n_bytes)
        self._map = mmap.mmap(self._file.fileno(), SLOTS * n_bytes)
        self._frames = np.frombuffer(self._map, np.uint8).reshape(SLOTS, *self.shape)

    def prepare(self) -> None:
        """Start the child now, while the caller does something else; :meth:`send` would start it."""
        if self._child is None:
            self._start()

    def __enter__(self) -> Decoder:
        self.prepare()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child and give the shared memory back."""
        self._stop()
        if self._file.closed:
            return
        del self._frames
        with contextlib.suppress(BufferError):
            self._map.close()  # an exception's traceback may still hold a view
        self._file.close()

    def forget(self) -> None:
        """Drop a clip that was asked for and will not be fetched, whatever its child is doing."""
        if self._asked is not None:
            self._asked = None
            self._stop()

    def send(self, request: DecodeRequest) -> None:
        """Ask for a clip; the answer to the one before must have been received. Its frames stay valid meanwhile."""
        if self._asked is not None:
            raise RuntimeError("one clip at a time: receive() first")
        self._slot = (self._slot + 1) % SLOTS
        line = {"path": os.fspath(request.path), "span": asdict(request.span), "slot": self._slot, "look": request.look}
        if self._child is None or self._child.poll() is not None or self._clips >= CLIPS_A_CHILD:
            self._stop()
            self._start()
        self._clips += 1
        assert self._child is not None
        assert self._child.stdin is not None
        self._asked = (request, self._slot, time.monotonic())
        # Dying at this very moment, the child is missed when its answer is read.
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(json.dumps(line).encode() + b"\n")
            self._child.stdin.flush()

    def receive(self) -> tuple[np.ndarray, dict[str, Any]]:
        """The frames of the clip that was asked for, (F, size, size, 3) uint8, and what is known of it. Raises VideoError: the
        clip cannot be used; the verdict says why.
        """
        if self._asked is None:
            raise RuntimeError("nothing was asked for: send() first")
        (request, slot, begun), self._asked = self._asked, None
        answer: dict[str, Any] = json.loads(self._read_line(request, begun))
        if "error" in answer:
            raise VideoError(answer["error"], Status(answer["verdict"]))
        return self._frames[slot], answer

    def _read_line(self, request: DecodeRequest, begun: float) -> bytes:
        assert self._child is not None
        assert self._child.stdout is not None
        pipe = self._child.stdout.fileno()
        while b"\n" not in self._buffer:
            # An answer that is there already counts, however late it is fetched.
            left = max(0.0, self.deadline - (time.monotonic() - begun))
            if not select.select([pipe], [], [], left)[0]:
                self._stop()
                raise VideoError(
                    f"{request.path}: not decoded in {self.deadline:g} s; if it is only long, give more --deadline",
                    Status.TIMEOUT,
                )
            part = os.read(pipe, 65536)
            if not part:
                code = self._child.wait() or 0
                self._stop()
                how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                raise VideoError(
                    f"{request.path}: the decoder crashed ({how}); {reencode_hint(request.path)}", Status.CRASHED
                )
            self._buffer += part
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line

    def _start(self) -> None:
        self._buffer = b""
        self._clips = 0
        settings = {"n_frames": self.shape[0], "size": self.shape[1], "check": self.check, "fd": self._file.fileno()}
        settings |= {"slots": SLOTS, "parent": os.getpid(), "crop": self.crop, "decoder": self.decoder}
        # stderr is FFmpeg's chatter about damaged files; what matters of it comes back as a verdict.
        self._child = subprocess.Popen(
            # -P: a file of the current folder, such as queue.py, is not imported in the place of a library.
            [sys.executable, "-P", "-m", "dtsf.pipeline.video.decoder_main", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=[self._file.fileno()],
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def _room(n_bytes: int) -> IO[bytes]:
    """A file without a name, gone with its last process: in memory, or on the disk where a container has too little of that."""
    folders = [folder for folder in ("/dev/shm", tempfile.gettempdir()) if os.path.isdir(folder)]
    refused = []
    for folder in folders:
        try:
            file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by Decoder.close
        except OSError as error:
            refused.append(f"{folder}: {error.strerror}")
            continue
        try:
            # Claims the room now: a sparse file on a full /dev/shm would kill the process with SIGBUS later.
            os.posix_fallocate(file.fileno(), 0, n_bytes)
        except OSError as error:
            file.close()
            refused.append(f"{folder}: {error.strerror}")
            continue
        return file
    raise DataError(
        f"no room for {n_bytes >> 20} MB of frames ({'; '.join(refused)}). Free some, name another folder with $TMPDIR, or "
        "use fewer --workers"
    )


@contextlib.contextmanager
def shared_decoders(
    n_frames: int, size: int, deadline: float, check: str, *, crop: Crop = "centre", decoder: str = "pyav", n: int = 1
) -> Iterator[tuple[Decoder, ...]]:
    """``n`` decoders of this process, kept from shard to shard because a child takes 0.4 s to start."""
    kept = _kept_decoders(n, n_frames, size, deadline, check, crop, decoder)
    try:
        yield kept
    finally:
        for one in kept:
            one.forget()


@lru_cache(maxsize=1)
def _kept_decoders(
    n: int, n_frames: int, size: int, deadline: float, check: str, crop: Crop, decoder: str
) -> tuple[Decoder, ...]:
    kept = tuple(Decoder(n_frames, size, deadline=deadline, check=check, crop=crop, decoder=decoder) for _ in range(n))
    for one in kept:
        one.prepare()
        atexit.register(one.close)
    return kept


def decode_all(
    decoder: Decoder, requests: list[DecodeRequest]
) -> Iterator[tuple[np.ndarray, dict[str, Any]] | VideoError]:
    """Decode clips in order; while the caller works on one, the child decodes the next. The first is begun at once.

    A clip over which the child died is tried once more, in a new one: what killed it may have been the machine (short of
    memory) and not the clip. One that ran into its deadline is not, because it would cost another deadline.

    Yields frames and facts as :meth:`Decoder.receive`, or the error of a clip that cannot be used. Frames are valid until the
    next item is asked for.
    """
    if requests:
        decoder.send(requests[0])
    return _receive_all(decoder, requests)


def _receive_all(
    decoder: Decoder, requests: list[DecodeRequest]
) -> Iterator[tuple[np.ndarray, dict[str, Any]] | VideoError]:
    for k in range(len(requests)):
        item = _receive(decoder)
        if isinstance(item, VideoError) and item.verdict == Status.CRASHED:
            decoder.send(requests[k])
            item = _receive(decoder)
        if k + 1 < len(requests):
            decoder.send(requests[k + 1])
        yield item


def _receive(decoder: Decoder) -> tuple[np.ndarray, dict[str, Any]] | VideoError:
    try:
        return decoder.receive()
    except VideoError as error:
        return error
