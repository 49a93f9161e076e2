"""Work file of a timeline: a line for each finished block of windows. After a kill, the next run goes on behind the last line."""

from __future__ import annotations

import base64
import io
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import xxhash

from dtsf.errors import DataError
from dtsf.files.write import json_text
from dtsf.recordings.windows import WindowBlock

DIGITS = 6  # of stored numbers: bouts are made of what is stored, so that an interrupted run gives the same
MAX_BYTES = 1 << 31
PICTURE_SIDE = 72


@dataclass
class WorkFile:
    """Finished blocks of one recording. ``identity``: all that the windows depend on; another identity begins again."""

    path: Path
    identity: dict[str, Any]
    blocks: list[WindowBlock] = field(default_factory=list, init=False)
    finished: bool = field(default=False, init=False)
    _file: IO[bytes] | None = field(default=None, init=False)

    def __enter__(self) -> WorkFile:
        """Read what is there, cut a line that is not whole, and open the file for more. Raises DataError: it cannot be written."""
        key = xxhash.xxh3_64_hexdigest(json.dumps(self.identity, sort_keys=True).encode())
        good = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = open(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644), "r+b")  # noqa: SIM115
            self._file = file
            if os.fstat(file.fileno()).st_size <= MAX_BYTES:
                for number, line in enumerate(file):
                    if not line.endswith(b"\n") or not self._take(number, line, key):
                        break
                    good += len(line)
            file.seek(good)
            file.truncate()
            if not good:
                file.write(json_text({"identity": key}).encode() + b"\n")
        except OSError as error:
            raise DataError(f"cannot write {self.path}: {error.strerror}; choose another --out") from error
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()

    @property
    def restart(self) -> tuple[int, ...]:
        """Moment of each camera from which the next block can be made; empty at the beginning."""
        return self.blocks[-1].restart if self.blocks else ()

    def add(self, block: WindowBlock) -> WindowBlock:
        """Store a block. Return it as it is stored."""
        jpegs = [(camera, moment, _jpeg(frame)) for camera, moment, frame in block.pictures]
        arrays = {
            "p": block.probabilities_SLK,
            "u": block.uncertainty_SL,
            "w": block.weights_SLV,
        }
        line: dict[str, Any] = {name: _listed(array) for name, array in arrays.items()}
        line |= {"restart": block.restart}
        line["pictures"] = [(camera, moment, base64.b64encode(jpeg).decode()) for camera, moment, jpeg in jpegs]
        self._write(line)
        self._keep(len(self.blocks), line)
        return self.blocks[-1]

    def finish(self) -> None:
        """Note that the recording is at its end."""
        self._write({"end": True})
        self.finished = True

    def pictures(self, wanted: set[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
        """Return the stored JPEG pictures of these cameras and moments, as far as there are some."""
        with open(self.path, "rb") as file:
            lines = (json.loads(line).get("pictures", ()) for line in file)
            stored = ((int(k), int(moment), text) for line in lines for k, moment, text in line)
            return {(k, moment): base64.b64decode(text) for k, moment, text in stored if (k, moment) in wanted}

    def _write(self, line: dict[str, Any]) -> None:
        assert self._file is not None
        try:
            self._file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise DataError(f"cannot write {self.path}: {error.strerror}") from error

    def _take(self, number: int, data: bytes, key: str) -> bool:
        """Take a stored line. Return False if it and all behind it cannot be used."""
        try:
            line = json.loads(data)
            if number == 0:
                return bool(line["identity"] == key)
            if "end" in line:
                self.finished = True
            else:
                self._keep(number - 1, line)
        except (ValueError, KeyError, TypeError):
            return False
        return True

    def _keep(self, number: int, line: dict[str, Any]) -> None:
        arrays = [np.array(line[name], np.float64) for name in ("p", "u", "w")]
        restart = tuple(int(moment) for moment in line["restart"])
        self.blocks.append(WindowBlock(number, *arrays, restart))


def _listed(array: np.ndarray) -> Any:
    """Return an array as nested lists of rounded numbers; NaN stays NaN, which Python's JSON reads."""
    return np.round(array.astype(np.float64), DIGITS).tolist()


def _jpeg(frame_SSC: np.ndarray) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(frame_SSC).resize((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.BOX).save(stream, "JPEG", quality=60)
    return stream.getvalue()
