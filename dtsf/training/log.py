"""What a run writes down as it goes: ``log.jsonl``, a line a step, and TensorBoard's events where TensorBoard is installed.

Keys of a line: ``step`` and ``epoch``, then numbers: ``lr``, ``accuracy``, ``loss`` and its terms. Behind the last step of an
epoch, where groups are held out, a line with ``held_out_loss`` and ``held_out_accuracy``.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from typing import TYPE_CHECKING, Any, Protocol

from dtsf.errors import CheckpointError
from dtsf.files.read import json_text, read_file
from dtsf.files.write import open_log, refusal, write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOG_LIMIT = 1 << 30
"""Bytes of the largest log that is gone on with: five million steps."""


class Writer(Protocol):
    """What is asked of TensorBoard's writer."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Note a number."""

    def close(self) -> None:
        """Write what is left."""


def summary_writer(folder: Path, step: int) -> Writer | None:
    """TensorBoard's writer for ``folder``; None where TensorBoard is not installed. ``step``: events of later steps, which a
    killed process left, count no more.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    writer: Writer = SummaryWriter(str(folder), purge_step=step + 1)
    return writer


class TrainingLog:
    """The open log of a run; use it as a context. ``run``: run folder; None writes nothing, for all processes but the first.
    ``step``: steps that the checkpoint knows: lines of later ones are cut off, they are made again.
    """

    def __init__(self, run: Path | None, step: int) -> None:
        self._file, self._writer = None, None
        if run is not None:
            if (run / "tensorboard").is_symlink():
                raise CheckpointError(f"{run / 'tensorboard'} is a link, which is not followed here: remove it")
            path = self._path = run / "log.jsonl"
            _cut(path, step)
            try:
                self._file = open_log(path)
            except OSError as error:
                raise CheckpointError(f"cannot write {path}: {refusal(error)}") from error
            self._writer = summary_writer(run / "tensorboard", step)

    def write(self, line: dict[str, Any]) -> None:
        """Write down a step's numbers."""
        if self._file is not None:
            # A term that is not finite, of a loss that is, has no place in JSON.
            finite = {name: value if math.isfinite(value) else None for name, value in line.items()}
            with self._told():
                self._file.write(json_text(finite) + "\n")
        if self._writer is not None:
            for name, value in line.items():
                if name not in ("step", "epoch"):
                    self._writer.add_scalar(name, value, line["step"])

    def flush(self) -> None:
        """Bring everything to the disk, before a checkpoint says that it is there."""
        if self._file is not None:
            with self._told():
                self._file.flush()
                os.fsync(self._file.fileno())

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"cannot write {self._path}: {refusal(error)}. The last checkpoint is safe; make room and --resume"
            ) from error

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            # A full disk has been reported.
            with contextlib.suppress(OSError):
                self._file.close()
        if self._writer is not None:
            self._writer.close()


def _cut(path: Path, step: int) -> None:
    """Leave the whole lines of known steps: a kill finds the file as it was or cut, never half."""
    kept = 0
    data = read_file(path, limit=LOG_LIMIT, error=CheckpointError) if step and os.path.lexists(path) else b""
    for line in data.splitlines(keepends=True):
        try:
            known = line.endswith(b"\n") and json.loads(line)["step"] <= step
        except (ValueError, KeyError, TypeError, RecursionError):
            known = False
        if not known:
            break
        kept += len(line)
    write_atomically(path, data[:kept], parents=False, error=lambda why: CheckpointError(f"cannot write {path}: {why}"))
