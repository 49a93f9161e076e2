"""Work file of a timeline: a line for each finished block of windows. After a kill, the next run goes on behind the last line."""

from __future__ import annotations

import base64
import contextlib
import io
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import xxhash

from dtsf.errors import DataError
from dtsf.files.write import lock, open_journal
from dtsf.recordings.windows import WindowBlock

WORK = ".work"  # folder of the work files, in that of the timelines
DIGITS = 9  # of stored numbers: bouts are made of what is stored, so that an interrupted run gives the same
PICTURE_SIDE = 72
ARRAYS = {"p": "probabilities_NK", "u": "uncertainty_N", "w": "weights_NV", "opened": "opened_NV", "moved": "moved_VT"}


@dataclass
class WorkFile:
    """Finished blocks of one recording. ``identity``: all that the windows depend on; a file with another one is empty, and
    so is every file if ``fresh``. Only one block is in memory.
    """

    path: Path
    identity: dict[str, Any]
    fresh: bool = False
    n_blocks: int = field(default=0, init=False)
    finished: bool = field(default=False, init=False)
    _file: IO[bytes] | None = field(default=None, init=False)

    def __enter__(self) -> WorkFile:
        """Open the file and cut it behind the last whole line. Raises DataError: it cannot be written."""
        key = xxhash.xxh3_64_hexdigest(json.dumps(self.identity, sort_keys=True).encode())
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open_journal(self.path)
            good = 0
            for number, line in enumerate(() if self.fresh else self._file):
                if not line.endswith(b"\n") or not self._take(number, line, key):
                    break
                good += len(line)
            self._file.seek(good)
            self._file.truncate()
            if not good:
                self._write({"identity": key})
        except OSError as error:
            raise self._refusal(error) from error
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        with contextlib.suppress(OSError):  # the rest of a line that did not fit, which _write has refused
            self._file.close()

    def stored(self) -> Iterator[WindowBlock]:
        """Yield the blocks that were there."""
        n_blocks = self.n_blocks
        for number, line in enumerate(self._lines(), -1):
            if 0 <= number < n_blocks:
                yield _block(number, line)

    def add(self, block: WindowBlock) -> WindowBlock:
        """Store a block. Return it with the stored numbers."""
        line: dict[str, Any] = {name: getattr(block, name) for name in ("begin", "rest", "restart", "read", "damaged")}
        line["stop"] = block.end
        line["spans"] = block.spans_N2.tolist()
        line |= {
            name: np.round(getattr(block, field).astype(np.float64), DIGITS).tolist() for name, field in ARRAYS.items()
        }
        line["pictures"] = [(k, moment, base64.b64encode(_jpeg(frame)).decode()) for k, moment, frame in block.pictures]
        self._write(line)
        self.n_blocks = block.number + 1
        return _block(block.number, line)

    def finish(self) -> None:
        """Note that the recording is at its end."""
        self._write({"end": True})
        self.finished = True

    def pictures(self, wanted: set[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
        """Return the stored JPEG pictures of these cameras and moments, as far as there are some."""
        stored = ((int(k), int(moment), text) for line in self._lines() for k, moment, text in line.get("pictures", ()))
        return {(k, moment): base64.b64decode(text) for k, moment, text in stored if (k, moment) in wanted}

    def _lines(self) -> Iterator[dict[str, Any]]:
        with open(self.path, "rb") as file:
            for line in file:
                yield json.loads(line)

    def _write(self, line: dict[str, Any]) -> None:
        assert self._file is not None
        try:
            self._file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise self._refusal(error) from error

    def _refusal(self, error: OSError) -> DataError:
        return DataError(
            f"cannot write {self.path}: {error.strerror}; run it again with more space, or choose another --out"
        )

    def _take(self, number: int, data: bytes, key: str) -> bool:
        """Note a stored line. Return False if it and all behind it cannot be used."""
        try:
            line = json.loads(data)
            if number == 0:
                return bool(line["identity"] == key)
            if "end" in line:
                self.finished = True
            else:
                _block(number - 1, line)
                self.n_blocks = number
        except (ValueError, KeyError, TypeError):
            return False
        return True


def only_one(out: Path, name: str) -> AbstractContextManager[None]:
    """Refuse a second process that makes the timeline of a recording in the same folder: they would share its work file."""
    busy = f"another dtsf process makes the timeline of {name} in {out}: wait for it, or choose another --out"
    return lock(
        out / WORK / f"{name}.lock",
        unwritable=lambda why: DataError(f"cannot write in {out}: {why}; choose another --out"),
        busy=DataError(busy),
    )


def _block(number: int, line: dict[str, Any]) -> WindowBlock:
    p_NK, u_N, w_NV, opened_NV, moved_VT = (np.array(line[name], np.float64) for name in ARRAYS)
    spans_N2 = np.array(line["spans"], int).reshape(-1, 2)
    restart, read = (tuple(int(moment) for moment in line[name]) for name in ("restart", "read"))
    begin, end, rest = int(line["begin"]), int(line["stop"]), bool(line["rest"])
    damaged = tuple((int(k), int(moment)) for k, moment in line["damaged"])
    arrays = spans_N2, p_NK, u_N, w_NV, moved_VT
    return WindowBlock(number, begin, end, rest, *arrays, restart, opened_NV, read, damaged=damaged)


def _jpeg(frame_SSC: np.ndarray) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    small = Image.fromarray(frame_SSC).resize((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.BOX)
    small.save(stream, "JPEG", quality=60)
    return stream.getvalue()
